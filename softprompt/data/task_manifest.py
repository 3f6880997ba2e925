"""What a saved prompt says of its task, and how what is saved is checked: types, sizes, and nothing that cannot be."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from softprompt.config import TaskKind

LONGEST_NAME = 4096  # of a model, a place, a parent


Name = Annotated[str, StringConstraints(max_length=LONGEST_NAME)]


Key = Annotated[str, StringConstraints(max_length=500)]


Facts = dict[Key, Any]


class _Saved(BaseModel):
    # what later releases say beside it is left alone
    model_config = ConfigDict(strict=True, extra="ignore")


class SavedTask(_Saved):
    """What ``TaskSpec.from_dict`` reads."""

    kind: TaskKind
    template: str
    labels: list[str]
    verbalizers: list[str]
    max_length: int = Field(ge=1, le=2**24)
    metric: Key | None = None
    max_new_tokens: int | None = Field(None, ge=1, le=2**24)
    columns: dict[Key, Any] = Field(default_factory=dict)
    chat: dict[Key, Any] | None = None


Saved = TypeVar("Saved", bound=_Saved)


def validate_saved(kind: type[Saved], values: Any) -> Saved:
    """``values`` as one of these; raises ValueError, in one line, if they are not."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"it lacks '{where}'") from error
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
