"""Results as tables of pandas, which is installed by those who use it."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from softprompt.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame


def import_pandas() -> Any:
    """The module; MissingExtraError where it is not installed."""
    try:
        return import_module("pandas")
    except ModuleNotFoundError as error:
        raise MissingExtraError("pandas", "pandas") from error


def make_table(
    rows: Iterable[Mapping[str, Any]], types: Mapping[str, str | None], index: str | list[str] | None = None
) -> "DataFrame":
    """A table with the columns of ``types``, in that order.

    Args:
        types: by column, as pandas names them; ``None`` for what pandas makes of the values.
        index: the column, or columns, that becomes the index.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    pandas, found = import_pandas(), list(rows)
    columns = {name: [row.get(name) for row in found] for name in types}
    table = pandas.DataFrame({name: pandas.Series(values, dtype=types[name]) for name, values in columns.items()})
    return table if index is None else table.set_index(index)
