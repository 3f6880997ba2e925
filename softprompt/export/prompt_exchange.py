"""Prompts out of softprompt and into it, in the formats of others."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.export.export_formats import FORMATS, ExportFormat, ExportRequest
from softprompt.export.virtual_tokens import check_kinds, check_labels
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import resolve_saved_prompt
from softprompt.training.training_run import evaluate_prompt
from softprompt.utils.arguments import check_arguments
from softprompt.utils.files import check_free
from softprompt.utils.messages import map_read_errors
from softprompt.utils.place_kinds import describe_mistaken_place, recognize_place
from softprompt.utils.version import read_versions


@check_arguments
def export_prompt(
    base: BaseSource | None,
    prompts: Prompt | str | Path | Mapping[str, Prompt | str | Path],
    out: str | Path,
    *,
    format: str,
    gguf: str | Path | None = None,
    tied: bool = False,
) -> dict[str, Any]:
    """Write saved prompts in the format of others.

    Args:
        base: the model that they were learned on, or its name; ``npy`` needs none.
        prompts: one, its folder or its reference in a store; or several by the names that their tasks get
            outside, for formats that hold several.
        out: the file or folder to write; nothing may be there yet.
        format: of ``FORMATS``: ``peft``, ``cartridge``, ``vocab``, ``vllm-kv``, ``vllm-embeds``, ``gguf`` or ``npy``.
        gguf: your GGUF file of the base model, which ``gguf`` extends.
        tied: ``vocab`` and ``gguf``: keep the output layer tied; smaller, but clients must forbid the new tokens.

    Returns:
        What there is to tell of it beside its place: ids of the new tokens, how they are stored.

    Raises:
        ConfigError: an unknown format, or options that are not of it.
        PromptFileError: a prompt that the format cannot hold.
        BaseModelError: a model for which it would compute something else.
        OutputError: ``out`` is taken or cannot be written.
        MissingExtraError: a package is not installed.
    """
    target = find_format(format)
    given = prompts if isinstance(prompts, Mapping) else {Path(out).stem: prompts}
    named = {name: resolve_saved_prompt(prompt) for name, prompt in given.items()}
    # weights are quantized from the precision that they are saved in
    plain = all(prompt.quantization is None for prompt in named.values())
    base = None if base is None else resolve_base(base, dtype=target.dtype if plain else "saved")
    request = ExportRequest(named, Path(out), None, None if gguf is None else Path(gguf), tied)
    check_export(format, len(named), request.out, request.gguf, tied=tied)
    if not target.labels:
        check_labels(named)
    if target.several:
        if not target.key_values:
            check_kinds(named)
    else:
        request.prompt.state  # noqa: B018 (raises for an ensemble)
    if target.needs_base:
        request = replace(request, base=None if base is None else load_checked(base))
    return target.write(request)


def check_export(format: str, count: int, out: Path, gguf: Path | None, *, tied: bool) -> None:
    """Raise ConfigError or OutputError for what can be seen before any of ``count`` prompts is read."""
    target = find_format(format)
    check_free(out)
    if count > 1 and not target.several:
        raise ConfigError(f"--format {format} holds one prompt, got {count}: export them one by one")
    if (gguf is None) == (format == "gguf"):
        raise ConfigError(
            "--format gguf extends a GGUF file of the base model: give yours with --gguf FILE"
            if gguf is None
            else f"--gguf is for --format gguf, got --format {format}: leave it out"
        )
    if tied and format not in ("vocab", "gguf"):
        raise ConfigError(f"--tied is for --format vocab and gguf, got --format {format}: leave it out")


@check_arguments
def import_prompt(
    base: BaseSource,
    source: str | Path,
    *,
    format: str | None = None,
    task: Task | TaskSpec | None = None,
) -> Prompt:
    """A prompt that was learned elsewhere, as one of ours.

    Args:
        base: the model that it was learned on, or its name; it is then loaded once ``source`` is read.
        source: the file or folder of others.
        format: of ``FORMATS``: ``npy`` or ``peft``; what ``source`` looks like, if not given.
        task: what it is for; of a ``Task`` the validation and test splits are scored. What ``source`` says, else
            generation from the text alone, if not given. In conversations a prompt of others stands before the first
            turn, one that softprompt exported where it stood.

    Raises:
        ConfigError: an unknown format, or one that is only written.
        PromptFileError, DataError: ``source`` is damaged, cannot be read, or is not of the size of ``base``.
    """
    source, base = Path(source), resolve_base(base)
    format = format or recognize_format(source)
    target = find_format(format)
    if not target.imported:
        raise ConfigError(f"format '{format}' is only written: expected one of {', '.join(name_imported())}")
    found = target.read(source)
    base = load_checked(base)
    state = found.on(base)
    if state.kind == "embeddings" and (size := state.tensor.shape[1]) != base.embedding_size:
        raise PromptFileError(
            f"'{source}' holds virtual tokens of {size} values, expected {base.embedding_size} as the embeddings of "
            f"'{base.name}' have: give --model the model that it was learned on"
        )
    with map_read_errors(source):
        digest = hashlib.sha256(found.file.read_bytes()).hexdigest()
    state, task = _decide_task(base, state, task or found.spec or TaskSpec.of(), found.spec)
    prompt = Prompt(
        states=(state,),
        spec=task.spec if isinstance(task, Task) else task,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        method="imported",
        training={"imported_from": source.name, "format": format, "sha256": digest},
        versions=read_versions(),
    )
    return evaluate_prompt(prompt, base, task, evaluate_test=True) if isinstance(task, Task) else prompt


def _decide_task(
    base: FrozenLM, state: PromptState, task: Task | TaskSpec, said: TaskSpec | None
) -> tuple[PromptState, Task | TaskSpec]:
    """The task, and the prompt in its conversations, if it has some; ``said`` is what the export tells of it."""
    if not isinstance(task, Task):
        return state, task
    if said is not None and said.chat is not None:
        return state, replace(task, spec=said, chat=None)
    if task.chat is None or all(one.conversation is None for one in task.splits["all"]):
        return state, task
    # others have a prompt in front of all that their chat template writes
    decided = resolve_chat(base, replace(task, chat=replace(task.chat, placement="first")))
    behind = find_placement(base, decided.spec).behind
    return replace(state, placement=replace(state.placement, behind=behind)), decided


def find_format(name: str) -> ExportFormat:
    """The format of this name; raises ConfigError if there is none."""
    if name not in FORMATS:
        raise ConfigError(f"unknown format '{name}': expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def recognize_format(source: Path) -> str:
    """The format of what lies at ``source``.

    Raises:
        PromptFileError: it is none that prompts can be imported from.
    """
    kind = recognize_place(source)
    if kind is not None and kind.is_a == "import":
        return "peft" if source.is_dir() else "npy"
    if told := describe_mistaken_place(source, "import"):
        raise PromptFileError(f"expected a prompt of another program; {told}")
    if source.suffix == ".npy":
        return "npy"
    what = "no such place" if not source.exists() else "a folder" if source.is_dir() else "a file"
    raise PromptFileError(
        f"'{source}': expected a .npy file of virtual tokens or the adapter folder of a prompt of PEFT, got {what}"
    )


def name_imported() -> list[str]:
    """The formats that prompts can be read from."""
    return [name for name, one in FORMATS.items() if one.imported]
