"""A checkpoint with baked prompts as a server in front of an engine knows it: tokenizer and tasks, and no weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.data.encoding.placement import Placement
from softprompt.data.encoding.special_tokens import SpecialTokens
from softprompt.errors import PromptFileError
from softprompt.export.export_readme import USAGE_FILE, list_front, read_placement, read_usage
from softprompt.prompts.saved_prompt import Prompt


@dataclass(frozen=True)
class Probe:
    """Token ids, and the log-probabilities of ``tokens`` behind them, as the checkpoint gave them when it was made."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]


class BakedCheckpoint:
    """What ``softprompt.json`` and the tokenizer beside it say.

    Attributes:
        folder: where it lies.
        name, fingerprint, embedding_size, context_length: of the base model that it was made of.
        special_tokens: BOS.
        never: token ids that must never be generated.
        probes: by the name of the task; by them an engine can be seen to run this very checkpoint.
        tokenizer, generation_config: as the checkpoint has them, with the chat template of the base model.
    """

    architecture = "decoder-only"
    quantization: str | None = None
    precision: str | None = None  # the engine's own setting

    def __init__(self, folder: Path) -> None:
        """Read the folder of the checkpoint; its weights may be elsewhere.

        Raises:
            PromptFileError: it is no such folder, or was written before exports had what is needed here.
        """
        from transformers import AutoTokenizer, GenerationConfig

        usage = read_usage(folder)
        self.folder = folder
        try:
            self.name = str(usage["base"]["name"])
            self.fingerprint: Mapping[str, str] = dict(usage["base"]["fingerprint"])
            self.embedding_size = int(usage["embedding_size"])
            self.context_length: int | None = usage["context_length"]
            self.special_tokens = SpecialTokens(tuple(int(one) for one in usage["bos_ids"]))
            self.never = tuple(int(one) for one in usage["never_generate"])
            self.probes = {
                str(name): Probe(
                    tuple(int(one) for one in probe["ids"]),
                    tuple(int(one) for one in probe["tokens"]),
                    tuple(float(one) for one in probe["log_probabilities"]),
                )
                for name, probe in usage["probes"].items()
            }
            self._tasks = {
                str(task["digest"]): (
                    str(name),
                    read_placement(task),
                    tuple(int(one) for one in task["ids"]),
                    tuple(int(one) for one in task.get("label_ids", ())),
                )
                for name, task in usage["tasks"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PromptFileError(
                f"'{folder / USAGE_FILE}' lacks or misuses {error}: expected a checkpoint of this version's "
                "softprompt export --format vocab, export the prompts again"
            ) from error
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.tokenizer.chat_template = usage.get("chat_template")
            self.generation_config: Any = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise PromptFileError(f"'{folder}' holds no tokenizer or generation_config.json: {error}") from error

    @property
    def names(self) -> list[str]:
        """Of the baked tasks."""
        return [name for name, *_ in self._tasks.values()]

    def front(self, digest: str, placement: Placement | None = None) -> tuple[int, ...]:
        """All that stands in front of the texts of the prompt of this digest.

        Args:
            placement: for conversations that begin in another way, what stands around the virtual tokens there.

        Raises:
            PromptFileError: it was not baked.
        """
        if digest not in self._tasks:
            raise PromptFileError(
                f"it is none of the prompts in the checkpoint ({', '.join(self.names)}): bake it with softprompt "
                "export --format vocab, and restart the engine and this server on the new checkpoint"
            )
        _, place, virtual, _ = self._tasks[digest]
        return list_front(self.special_tokens.bos, placement or place, virtual)

    def label_ids(self, digest: str) -> tuple[int, ...]:
        """The tokens of the labels of the baked prompt of this digest; none where they are words."""
        return self._tasks[digest][-1]

    def check(self, prompt: Prompt) -> None:
        """Raise PromptFileError unless ``prompt``, as it is, was baked."""
        self.front(prompt.digest)
