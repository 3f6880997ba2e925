"""Saved prompts by folder or by reference into a store."""

from pathlib import Path
from typing import Any, TypeAlias

from softprompt.errors import PromptFileError
from softprompt.prompts.saved_prompt import (
    HISTORY_FILE,
    MANIFEST_FILE,
    TENSOR_FILE,
    Prompt,
    parse_manifest,
    parse_prompt,
    read_manifest_bytes,
)
from softprompt.prompts.state import PromptState
from softprompt.store.artifacts import resolve_reference
from softprompt.store.references import Reference, is_reference
from softprompt.utils.arguments import check_arguments, refuse_argument
from softprompt.utils.files import expand_user
from softprompt.utils.safe_io import FILE_LIMIT, read_file

AnyPrompt: TypeAlias = Prompt | PromptState | str | Path
_EXPECTED = "a prompt, its folder or its reference in a store (STORE#NAME@WHICH)"
_ADVICE = {
    "FrozenLM": "the base model comes first, the prompt behind it",
    "DeferredBase": "the base model comes first, the prompt behind it",
    "Task": "the prompt comes behind the data",
    "DataFrame": "the prompt comes behind the data",
    "PeftModel": "sp.import_prompt(base, folder, format='peft') reads what PEFT saved",
    "PreTrainedModel": "a model is no prompt; sp.fit learns one on it",
    "Tensor": "sp.import_prompt(base, 'FILE.npy') makes one of virtual tokens",
    "ndarray": "sp.import_prompt(base, 'FILE.npy') makes one of virtual tokens",
    "Store": "give STORE.get(NAME)",
    "Predictor": "a predictor has its prompt already: call its predict",
    "NoneType": "sp.fit gives one; was a variable not set?",
    "": "sp.fit or sp.load_prompt gives one",
}


def read_manifest(place: str | Path) -> dict[str, Any]:
    """``prompt.json`` of a saved prompt, its schema checked.

    Args:
        place: its folder, or a string that refers to one in a store (``STORE#NAME@WHICH``).

    Raises:
        PromptFileError: not there, not JSON, or of another schema.
        StoreError: it is not in the store, or damaged there.
    """
    if isinstance(place, str) and is_reference(place):
        artifacts, version = resolve_reference(Reference.parse(place))
        return parse_manifest(artifacts.read(version, [MANIFEST_FILE])[MANIFEST_FILE], f"{place}/{MANIFEST_FILE}")
    return parse_manifest(read_manifest_bytes(expand_user(place)), str(expand_user(place) / MANIFEST_FILE))


@check_arguments
def load_prompt(place: str | Path) -> Prompt:
    """Read a saved prompt and check it: schema, digests, shapes, numbers.

    Args:
        place: its folder, or a string that refers to one in a store (``STORE#NAME@WHICH``).

    Raises:
        PromptFileError: it is not there, or anything about it is wrong.
        StoreError: it is not in the store, or damaged there.
    """
    if isinstance(place, str) and is_reference(place):
        artifacts, version = resolve_reference(Reference.parse(place))
        return parse_prompt(artifacts.read(version), place)
    folder = expand_user(place)
    manifest = read_manifest_bytes(folder)
    files = {MANIFEST_FILE: manifest}
    for name in (TENSOR_FILE, HISTORY_FILE):
        try:
            files[name] = read_file(folder / name, FILE_LIMIT)
        except FileNotFoundError as error:
            if name == TENSOR_FILE:  # a history need not be kept
                raise PromptFileError(f"the saved prompt '{place}' is damaged: it holds no {name}") from error
        except (OSError, ValueError) as error:
            raise PromptFileError(f"the saved prompt '{place}' is damaged: {name}: {error}") from error
    return parse_prompt(files, str(folder))


def pin_reference(place: str) -> str:
    """The same prompt by its version's number, where ``place`` refers to one in a store by an alias, which may move.

    Raises:
        StoreError: it is not there.
    """
    if not is_reference(place):
        return place
    artifacts, version = resolve_reference(Reference.parse(place))
    return f"{artifacts.url}#{version}"


def resolve_prompt(prompt: AnyPrompt | None) -> Prompt | PromptState | None:
    """A prompt as it is, or read from its place.

    Raises:
        ConfigError: neither a prompt nor a place.
        PromptFileError, StoreError: as ``load_prompt``.
    """
    if prompt is None or isinstance(prompt, Prompt | PromptState):
        return prompt
    if not isinstance(prompt, str | Path) or not str(prompt).strip():
        raise refuse_argument("prompt", _EXPECTED, prompt, _ADVICE)
    return load_prompt(prompt)


def resolve_saved_prompt(prompt: Prompt | str | Path) -> Prompt:
    """As ``resolve_prompt``, for a prompt that says what it was learned for."""
    found = None if isinstance(prompt, PromptState) else resolve_prompt(prompt)
    if not isinstance(found, Prompt):
        raise refuse_argument("prompt", _EXPECTED, prompt, _ADVICE)
    return found
