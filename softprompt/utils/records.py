"""The base of what is kept in files or handed from one step to the next."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable, and made of its own fields alone: a file with others is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
