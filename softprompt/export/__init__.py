"""Prompts out of softprompt and into it, in the formats of others. One file a format, one dict of them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompt.base import FrozenLM
from softprompt.errors import PromptFileError
from softprompt.export import npy
from softprompt.fit import library_versions
from softprompt.prefix import PromptState
from softprompt.rows import reading
from softprompt.store import Prompt
from softprompt.task import TaskSpec


@dataclass(frozen=True)
class Format:
    """A format by its name.

    Attributes:
        summary: one line for people.
        write: a prompt to a place that does not exist yet.
        read: what reaches the frozen model, out of such a place.
    """

    summary: str
    write: Callable[[Prompt, Path], None]
    read: Callable[[Path], PromptState]


FORMATS: Mapping[str, Format] = {
    "npy": Format("virtual tokens as one NumPy array (google-research/prompt-tuning)", npy.write_npy, npy.read_npy),
}


def imported(base: FrozenLM, spec: TaskSpec, state: PromptState, source: Path, form: str) -> Prompt:
    """A prompt that was learned elsewhere, as one of ours for ``base``; its metrics are still to be measured.

    Args:
        source: the file that ``state`` was read from; its name and digest are kept.
        form: the name of its format.

    Raises:
        PromptFileError: its virtual tokens are not of the size of ``base``'s embeddings.
    """
    size = state.tensor.shape[1]
    if size != base.embedding_size:
        raise PromptFileError(
            f"'{source}' holds virtual tokens of {size} values, expected {base.embedding_size} as the embeddings of "
            f"'{base.name}' have: give --model the model that it was learned on"
        )
    with reading(source):
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return Prompt(
        states=(state,),
        spec=spec,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        method="imported",
        training={"imported_from": source.name, "format": form, "sha256": digest},
        versions=library_versions(),
    )


__all__ = ["FORMATS", "Format", "imported"]
