"""Parquet files, in batches of rows; nested columns by dotted name."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .columns import Columns, absent
from .documents import Dropped, Piece, Place, RowError
from .opening import error_reason, open_raw

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS = 256  # of a batch; bounds memory where texts are long


def read_table(piece: Piece, columns: Columns) -> Iterator[tuple[Place, Any]]:
    """The values of the rows of a .parquet file in its row groups from `start` to before `stop`.

    Raises:
        OSError: The file is damaged.
        RowError: A column is not there.
    """
    import pyarrow as pa

    try:
        with open_table(piece.path) as file:
            stop = file.num_row_groups if piece.stop is None else piece.stop
            paths = {name: _path(file.schema_arrow, name, field) for name, field in columns.all()}
            first = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
            rows = itertools.count(first)
            groups = list(range(piece.start, stop))
            # A dotted name selects a nested column, and one whose own name has dots.
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=list(paths)):
                for value in _values(batch, paths, columns):
                    yield Place(piece.path, "row", next(rows)), value
    except (pa.ArrowException, UnicodeDecodeError) as error:  # names of columns are not checked by Arrow
        raise OSError(error_reason(error)) from error


def open_table(path: str) -> "pq.ParquetFile":
    """An open .parquet file.

    Raises:
        InputError: It is no regular file.
        OSError: It can't be opened, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    open_raw(path).close()  # refuses what is no regular file
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except UnicodeEncodeError:
        raise OSError("its name is no UTF-8, as .parquet files need; rename it") from None
    except (pa.ArrowException, UnicodeDecodeError) as error:  # names of columns are not checked by Arrow
        raise OSError(error_reason(error)) from error


def _path(schema: "pa.Schema", name: str, field: str) -> tuple[str, ...]:
    """The names that lead to a column."""
    import pyarrow as pa

    if name in schema.names:
        return (name,)
    steps = tuple(name.split("."))
    kind: Any = pa.struct(list(schema))
    for step in steps:
        if not pa.types.is_struct(kind) or kind.get_field_index(step) < 0:
            raise absent(name, field, _names(schema))
        kind = kind.field(step).type
    return steps


def _names(schema: "pa.Schema") -> Iterator[str]:
    import pyarrow as pa

    for field in schema:
        inner = [one.name for one in field.type] if pa.types.is_struct(field.type) else []
        yield from (f"{field.name}.{name}" for name in inner) if inner else [field.name]


def _values(batch: "pa.RecordBatch", paths: dict[str, tuple[str, ...]], columns: Columns) -> Iterator[Any]:
    """What the source reads of each row; the text of rows that a filter leaves out is never made."""
    outcome: list[Any] = [None] * batch.num_rows
    for name in columns.filter:
        for i, value in enumerate(_listed(_column(batch, paths[name]))):
            if outcome[i] is None:
                try:
                    if isinstance(value, RowError):
                        raise value
                    outcome[i] = None if columns.keeps(name, value) else Dropped(f"filter {name}")
                except RowError as error:
                    outcome[i] = error
    kept = [one is None for one in outcome]
    column = _column(batch, paths[columns.name])
    if not all(kept):
        import pyarrow as pa

        column = column.filter(pa.array(kept, pa.bool_()))
    values = iter(_listed(column))
    for i, keep in enumerate(kept):
        yield next(values) if keep else outcome[i]


def _column(batch: "pa.RecordBatch", path: tuple[str, ...]) -> "pa.Array":
    import pyarrow.compute as pc

    column = batch.column(batch.schema.get_field_index(path[0]))
    return pc.struct_field(column, list(path[1:])) if len(path) > 1 else column


def _listed(column: "pa.Array") -> list[Any]:
    """The values of a column; text that is no UTF-8, which no writer checks, as the error of its row."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(column, i) for i in range(len(column))]


def _value(column: "pa.Array", row: int) -> Any:
    try:
        return column[row].as_py()
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 ({error.reason} at byte {error.start}); expected text in UTF-8")
