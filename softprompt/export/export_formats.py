"""Prompts out of softprompt and into it, in the formats of others. One file a format, one dict of them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.export import gguf, numpy_array, peft, vllm_embeddings, vocabulary
from softprompt.export.virtual_tokens import check_kinds
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.training.training_run import library_versions
from softprompt.utils.messages import map_read_errors


@dataclass(frozen=True)
class Export:
    """What is written, and what it takes.

    Attributes:
        prompts: by the names that tasks have outside; one, for formats that hold one.
        out: a place that does not exist yet.
        base: the model that they were learned on, for formats that need it.
        gguf: the user's GGUF file, for the format that extends it.
        tied: see ``vocab.bake``.
    """

    prompts: Mapping[str, Prompt]
    out: Path
    base: FrozenLM | None = None
    gguf: Path | None = None
    tied: bool = False

    @property
    def prompt(self) -> Prompt:
        (prompt,) = self.prompts.values()
        return prompt

    @property
    def model(self) -> FrozenLM:
        if self.base is None:
            raise TypeError("this format needs the base model")
        return self.base


@dataclass(frozen=True)
class Found:
    """What was read, still to be placed on a base model.

    Attributes:
        file: that holds its numbers.
        on: the prompt as it stands in front of texts on a base model.
        spec: the task, where the format tells it.
    """

    file: Path
    on: Callable[[FrozenLM], PromptState]
    spec: TaskSpec | None = None


@dataclass(frozen=True)
class ExportFormat:
    """A format by its name.

    Attributes:
        summary: one line for people.
        write: an export; gives what there is to tell of it.
        check: raises for prompts that it cannot hold, before anything that takes long.
        read: what is at such a place, for formats that can be imported.
        several: whether it holds several prompts.
        needs_base: whether writing takes the base model.
        dtype: the precision that the base model is loaded in; ``saved`` is that of its weights.
    """

    summary: str
    write: Callable[[Export], dict[str, Any]]
    check: Callable[[Mapping[str, Prompt]], None]
    read: Callable[[Path], Found] | None = None
    several: bool = False
    needs_base: bool = True
    dtype: str = "saved"


def _check_single(prompts: Mapping[str, Prompt]) -> None:
    for prompt in prompts.values():
        prompt.state  # noqa: B018 (raises for an ensemble)


def _write_npy(export: Export) -> dict[str, Any]:
    numpy_array.write_npy(export.prompt, export.out)
    return {}


def _read_npy(path: Path) -> Found:
    state = numpy_array.read_npy(path)
    return Found(path, lambda base: state)


def _write_peft(export: Export) -> dict[str, Any]:
    peft.write_peft(export.model, export.prompt, export.out)
    return {
        "texts": "without BOS, as README.md there says"
        if export.model.special_tokens.bos
        else "as the tokenizer gives them"
    }


def _read_peft(path: Path) -> Found:
    adapter = peft.read_peft(path)
    task = adapter.usage.get("task")
    return Found(path / peft.TENSOR_FILE, adapter.on, None if task is None else TaskSpec.from_dict(task))


def _write_vocab(export: Export) -> dict[str, Any]:
    baked = vocabulary.bake_vocabulary(export.model, export.prompts, export.out, tied=export.tied)
    told = {"not_exact_as_text": f"{', '.join(baked.inexact)}: feed token ids (softprompt.export.engine_client)"}
    return {"first_ids": dict(baked.first), **(told if baked.inexact else {})}


def _write_embeds(export: Export) -> dict[str, Any]:
    vllm_embeddings.write_embeds(export.model, export.prompts, export.out)
    return {}


def _write_gguf(export: Export) -> dict[str, Any]:
    if export.gguf is None:
        raise ConfigError("--format gguf extends a GGUF file of the model: give yours with --gguf FILE")
    done = gguf.bake_gguf(export.model, export.prompts, export.gguf, export.out)
    return {"first_ids": dict(done.baked.first), "stored_as": done.stored_as, "rounding": round(done.rounding, 6)}


FORMATS: Mapping[str, ExportFormat] = {
    "npy": ExportFormat(
        "virtual tokens as one NumPy array (google-research/prompt-tuning)",
        _write_npy,
        _check_single,
        _read_npy,
        needs_base=False,
    ),
    "peft": ExportFormat(
        "an adapter folder of Hugging Face PEFT", _write_peft, _check_single, _read_peft, dtype="float32"
    ),
    "vocab": ExportFormat("a checkpoint with the prompts as new tokens", _write_vocab, check_kinds, several=True),
    "vllm-embeds": ExportFormat("input embeddings for vLLM", _write_embeds, check_kinds, several=True),
    "gguf": ExportFormat("a GGUF file with the prompts as new tokens", _write_gguf, check_kinds, several=True),
}


def imported(
    base: FrozenLM, spec: TaskSpec, state: PromptState, source: Path, form: str, file: Path | None = None
) -> Prompt:
    """A prompt that was learned elsewhere, as one of ours for ``base``; its metrics are still to be measured.

    Args:
        source: the file or folder that ``state`` was read from; its name is kept.
        form: the name of its format.
        file: the file with its numbers, whose digest is kept, if ``source`` is a folder.

    Raises:
        PromptFileError: its virtual tokens are not of the size of ``base``'s embeddings.
    """
    if state.kind == "embeddings" and (size := state.tensor.shape[1]) != base.embedding_size:
        raise PromptFileError(
            f"'{source}' holds virtual tokens of {size} values, expected {base.embedding_size} as the embeddings of "
            f"'{base.name}' have: give --model the model that it was learned on"
        )
    with map_read_errors(source):
        digest = hashlib.sha256((file or source).read_bytes()).hexdigest()
    return Prompt(
        states=(state,),
        spec=spec,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        method="imported",
        training={"imported_from": source.name, "format": form, "sha256": digest},
        versions=library_versions(),
    )
