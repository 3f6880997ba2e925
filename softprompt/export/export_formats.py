"""The formats of others: a module each, and a line of ``FORMATS`` each, from which the command line takes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt.data.task import TaskSpec
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.prompts.saved_prompt import Prompt
    from softprompt.prompts.state import PromptState


@dataclass(frozen=True)
class ExportRequest:
    """What is written, and what it takes.

    Attributes:
        prompts: by the names that tasks have outside; one, for formats that hold one.
        out: a place that does not exist yet.
        base: the model that they were learned on, for formats that need it.
        gguf: the user's GGUF file, for the format that extends it.
        tied: see ``bake_vocabulary``.
    """

    prompts: "Mapping[str, Prompt]"
    out: Path
    base: "FrozenLM | None" = None
    gguf: Path | None = None
    tied: bool = False

    @property
    def prompt(self) -> "Prompt":
        (prompt,) = self.prompts.values()
        return prompt

    @property
    def model(self) -> "FrozenLM":
        if self.base is None:
            raise TypeError("this format needs the base model")
        return self.base


@dataclass(frozen=True)
class ImportedState:
    """What was read, still to be placed on a base model.

    Attributes:
        file: that holds its numbers.
        on: the prompt as it stands in front of texts on a base model.
        spec: the task, where the format tells it.
    """

    file: Path
    on: "Callable[[FrozenLM], PromptState]"
    spec: "TaskSpec | None" = None


@dataclass(frozen=True)
class ExportFormat:
    """A format, described so that it can be offered before PyTorch is loaded.

    Attributes:
        summary: one line for people.
        module: of this room, with ``write(request)``, which gives what there is to tell of the export; and with
            ``read(place)``, which gives an ``ImportedState``, where ``imported``.
        writer: what ``write`` is called there.
        imported: whether prompts can be read from it too.
        several: whether it holds several prompts, as words of a vocabulary do.
        needs_base: whether writing takes the base model.
        key_values: whether it holds keys and values beside what stands at a model's input.
        labels: whether it holds labels that were learned with a prompt (a soft verbalizer).
        dtype: the precision that the base model is loaded in; ``saved`` is that of its weights, ``None`` what is fast.
    """

    summary: str
    module: str
    imported: bool = False
    several: bool = False
    needs_base: bool = True
    key_values: bool = False
    labels: bool = False
    dtype: str | None = "saved"
    writer: str = "write"

    def write(self, request: ExportRequest) -> dict[str, Any]:
        write = getattr(import_module(f"softprompt.export.{self.module}"), self.writer)
        facts: dict[str, Any] = write(request)
        return facts

    def read(self, place: Path) -> ImportedState:
        state: ImportedState = import_module(f"softprompt.export.{self.module}").read(place)
        return state


FORMATS: dict[str, ExportFormat] = {
    "peft": ExportFormat(
        "an adapter folder of Hugging Face PEFT; of keys and values too", "peft", imported=True, dtype="float32"
    ),
    "cartridge": ExportFormat(
        "an adapter folder of PEFT's CARTRIDGE, keys and values of every layer",
        "peft",
        writer="write_cartridge",
        dtype="float32",
    ),
    "vocab": ExportFormat(
        "a plain checkpoint with the prompts as new tokens, for transformers, vLLM and others",
        "vocabulary",
        several=True,
        labels=True,
    ),
    "vllm-embeds": ExportFormat(
        "parts of messages, for a stock vLLM with --enable-prompt-embeds on the model itself",
        "vllm_embeddings",
        several=True,
    ),
    "vllm-kv": ExportFormat(
        "keys and values, for a stock vLLM with softprompt's connector on the model itself",
        "vllm_prefixes",
        several=True,
        key_values=True,
        dtype=None,
    ),
    "gguf": ExportFormat("your GGUF file with the prompts as new tokens, for llama.cpp", "gguf", several=True),
    "npy": ExportFormat(
        "one NumPy array, float32, as google-research/prompt-tuning has it",
        "numpy_array",
        imported=True,
        needs_base=False,
    ),
}
