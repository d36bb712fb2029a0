"""Columns by name: a table or a mapping as one thing, and the words for a column that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from seekray.data.parse import Column
from seekray.errors import DataError

Columns = Mapping[str, Column]


class TableColumns(Mapping[str, Any]):
    """A pyarrow Table or RecordBatch as a mapping of columns."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._index = {name: i for i, name in enumerate(table.schema.names)}

    def __getitem__(self, name: str) -> Any:
        return self._table.column(self._index[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def as_columns(columns: Any) -> Columns:
    """A mapping of columns from a Table, a RecordBatch or a mapping."""
    return columns if isinstance(columns, Mapping) else TableColumns(columns)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for an error message, not too many."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return (", ".join(list(names)[:most]) or "no columns") + more


def missing_column(name: str, given: Sequence[str], *, field: str | None = None) -> DataError:
    """The error for a column that is not there, naming the nearest."""
    near = difflib.get_close_matches(name, given, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    what = f"{field}: column" if field else "column"
    return DataError(f"{what} {name!r} is not in the data, which has {listed(given)}{hint}", field=field or name)


def check_columns(wanted: Iterable[str], given: Sequence[str], *, field: str | None = None) -> None:
    """Raises DataError for the first of the columns that is not there."""
    for name in wanted:
        if name not in given:
            raise missing_column(name, given, field=field)
