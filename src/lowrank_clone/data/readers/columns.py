"""The columns of a row that a source reads, by name or by dotted names that reach into nested ones."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..config import SourceConfig
from ..filters import passes
from .documents import Dropped, RowError

_SHOWN = 20  # columns that an error lists


class Columns:
    """Takes the text or chat out of a row, or says why the row is left out."""

    def __init__(self, source: SourceConfig) -> None:
        self.name = source.column
        self.field = "chat_column" if source.chat_column else "text_column"
        self.filter = source.filter

    def all(self) -> list[tuple[str, str]]:
        """(dotted name, field of the source that says it) of every column that is looked at."""
        return [(self.name, self.field), *((name, "filter") for name in self.filter)]

    def take(self, row: Mapping[str, Any]) -> Any:
        """The value of the source's column; `Dropped` where a filter leaves the row out.

        Raises:
            RowError: A column is not there, or a filter can't be compared with its value.
        """
        for name in self.filter:
            if not self.keeps(name, reach(row, name, "filter")):
                return Dropped(f"filter {name}")
        return reach(row, self.name, self.field)

    def keeps(self, name: str, value: Any) -> bool:
        """Whether a row with this value in the column `name` is kept.

        Raises:
            RowError: The filter can't be compared with it.
        """
        try:
            return passes(value, self.filter[name])
        except ValueError as error:
            raise RowError(f"column `{name}`: {error}", "filter") from None


def reach(row: Mapping[str, Any], name: str, field: str) -> Any:
    """The value of a column; None where a nested one's parent is null.

    Raises:
        RowError: There is none of this name.
    """
    if name in row:
        return row[name]
    value: Any = row
    for step in name.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or step not in value:
            raise absent(name, field, dotted_names(row))
        value = value[step]
    return value


def dotted_names(row: Mapping[str, Any]) -> Iterable[str]:
    """The names of a row's columns, those inside nested ones too."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name


def absent(name: str, field: str, columns: Iterable[str]) -> RowError:
    """The error for a column that is not there, with those that are."""
    names = list(columns)
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return RowError(
        f"no column `{name}`; expected one of the columns {shown}" if names else f"no column `{name}`; it has none",
        field,
    )
