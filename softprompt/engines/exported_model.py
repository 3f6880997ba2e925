"""An export for an engine as a server in front of the engine knows it: tokenizer and model facts, and no weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.data.encoding.placement import Placement
from softprompt.data.encoding.special_tokens import SpecialTokens
from softprompt.errors import PromptFileError
from softprompt.export.export_readme import USAGE_FILE, read_usage
from softprompt.prompts.saved_prompt import Prompt


@dataclass(frozen=True)
class Probe:
    """Token ids, and the log-probabilities of ``tokens`` behind them, as the model gave them when it was exported."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> "Probe":
        """As ``note_probe`` has it; raises KeyError, TypeError or ValueError."""
        return cls(
            tuple(int(one) for one in noted["ids"]),
            tuple(int(one) for one in noted["tokens"]),
            tuple(float(one) for one in noted["log_probabilities"]),
        )


class ExportedModel(ABC):
    """What ``softprompt.json`` and the tokenizer beside it say.

    Attributes:
        folder: where it lies.
        name, fingerprint, embedding_size, context_length: of the base model that it was made of.
        special_tokens: BOS.
        never: token ids that must never be generated.
        probes: by what they are of; by them an engine can be seen to run this very model.
        advice: what to do where an engine runs another model.
        tokenizer, generation_config: as the export has them, with the chat template of the base model.
    """

    advice = "start vLLM on it, or give --model the one that it runs"
    architecture = "decoder-only"
    quantization: str | None = None
    precision: str | None = None  # the engine's own setting

    def __init__(self, folder: Path) -> None:
        """Read the folder; weights may be elsewhere.

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
            self.probes = {str(name): Probe.of(noted) for name, noted in usage["probes"].items()}
            self._read_tasks(usage)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PromptFileError(
                f"'{folder / USAGE_FILE}' lacks or misuses {error}: expected a folder of this version's "
                "softprompt export --format vocab or vllm-kv, export the prompts again"
            ) from error
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.tokenizer.chat_template = usage.get("chat_template")
            self.generation_config: Any = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise PromptFileError(f"'{folder}' holds no tokenizer or generation_config.json: {error}") from error

    def _read_tasks(self, usage: Mapping[str, Any]) -> None:  # noqa: B027 (it may know none)
        """Take what is said of tasks; raises KeyError, TypeError or ValueError."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Of the prompts that it has."""

    @abstractmethod
    def front(self, digest: str, placement: Placement | None = None) -> tuple[int, ...]:
        """All that stands in front of the texts of the prompt of this digest.

        Args:
            placement: for conversations that begin in another way, what stands around the virtual tokens there.

        Raises:
            PromptFileError: it is not among its prompts.
            DataError: its conversations cannot begin so.
        """

    @abstractmethod
    def label_ids(self, digest: str) -> tuple[int, ...]:
        """The tokens of the labels of the prompt of this digest; none where they are words."""

    @abstractmethod
    def request_fields(self, digest: str) -> Mapping[str, Any]:
        """What a request for the prompt of this digest says beside its token ids."""

    @abstractmethod
    def check(self, prompt: Prompt) -> Probe | None:
        """Raise PromptFileError unless ``prompt``, as it is, can be asked for; gives what shows that the engine has it.

        BaseModelError, OutputError: where it is made so that it can, but cannot be.
        """
