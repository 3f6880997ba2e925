"""What a saved prompt says of itself, checked before any of it is used: types, sizes, and nothing that cannot be."""

from pydantic import Field

from softprompt.data.task_manifest import Facts, Key, Name, _Saved


class SavedBase(_Saved):
    """The base model that a prompt was learned on."""

    name: Name
    fingerprint: dict[Key, Key]
    dtype: Key | None = None


class SavedPrompt(_Saved):
    """What ``prompt.json`` holds, of whatever release."""

    method: Key
    length: int | None = None
    base: SavedBase
    task: Facts
    metrics: Facts
    training: Facts
    data: Facts
    seed: int = Field(ge=0, lt=2**64)
    versions: dict[Key, Key]
    parent: Name | None = None
    sha256: Key
