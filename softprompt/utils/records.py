"""The base of what is kept in files or handed from one step to the next."""

from pydantic import BaseModel, ConfigDict

from softprompt.utils.summaries import summarize_fields


class Record(BaseModel):
    """Immutable, and made of its own fields alone: a file with others is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr__(self) -> str:
        return summarize_fields(self)

    def __str__(self) -> str:
        return repr(self)
