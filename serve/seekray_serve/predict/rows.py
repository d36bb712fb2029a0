"""From a request's JSON to columns, and from one batch's answer back to each request.

The jobs of a batch are merged into one table before the features are computed, so that a
request of one row pays a row's share of `Predictor.prepare` too. Merging must not change an
answer: values of a column are merged only where they have the same JSON types (numbers of a
numeric feature count as one type), because a column of ints and one of ints and floats would
name their categories differently.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from seekray.errors import DataError, TooLargeError

if TYPE_CHECKING:
    from seekray.predictor import Predictor

Row = dict[str, Any]
Key = tuple[type, ...]

# A request with more rows carries its own cost of preparation; it is not worth merging.
MERGED_ROWS = 16
_NUMBERS = frozenset((int, float, type(None)))


class Job:
    """One request's rows: `rows` where they may be merged with others' (under `key`), else `columns`."""

    __slots__ = ("columns", "count", "key", "rows")

    def __init__(
        self,
        count: int,
        *,
        rows: list[Row] | None = None,
        key: Key | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        self.count = count
        self.rows = rows
        self.key = key
        self.columns = columns


class Answer:
    """The part of a batch's answer that belongs to one request: `predictions[start:stop]`."""

    __slots__ = ("_probabilities", "_quantiles", "_start", "_stop", "predictions")

    def __init__(
        self,
        predictions: list[Any],
        probabilities: Mapping[str, list[Any]] | None,
        start: int,
        stop: int,
        quantiles: Mapping[str, list[Any]] | None = None,
    ) -> None:
        self.predictions = predictions[start:stop]
        self._quantiles = quantiles
        self._probabilities = probabilities
        self._start = start
        self._stop = stop

    @property
    def probabilities(self) -> list[dict[str, Any]] | None:
        """A mapping from class to probability for each row; None for regression."""
        if self._probabilities is None:
            return None
        names = tuple(self._probabilities)
        columns = self._probabilities.values()
        return [dict(zip(names, [column[i] for column in columns], strict=True)) for i in range(self._start, self._stop)]

    @property
    def quantiles(self) -> list[dict[str, list[float]]] | None:
        """A mapping from quantile to the values to come for each row; None unless forecast."""
        if self._quantiles is None:
            return None
        return [{q: rows[i] for q, rows in self._quantiles.items()} for i in range(self._start, self._stop)]

    def as_json(self, predictor: Predictor) -> dict[str, Any]:
        """What an endpoint says, with the model that says it."""
        return {
            "predictions": self.predictions,
            "probabilities": self.probabilities,
            **({} if self._quantiles is None else {"quantiles": self.quantiles}),
            "model": predictor.name,
            "version": predictor.version,
        }

    def columns(self) -> dict[str, list[Any]]:
        """As the columns of a file: `prediction`, `probability_<class>`, `quantile_<q>`."""
        found: dict[str, list[Any]] = {"prediction": self.predictions}
        for kind, columns in (("probability", self._probabilities), ("quantile", self._quantiles)):
            found |= {f"{kind}_{name}": values[self._start : self._stop] for name, values in (columns or {}).items()}
        return found

    def probability_columns(self) -> dict[str, list[Any]] | None:
        """Class → the probabilities of each row."""
        if self._probabilities is None:
            return None
        return {name: column[self._start : self._stop] for name, column in self._probabilities.items()}


class RowReader:
    """Reads `{"rows": [...]}` and `{"columns": {...}}` for one model's features."""

    def __init__(self, predictor: Predictor, *, max_rows: int) -> None:
        features = predictor.schema.features
        self.names = tuple(feature.name for feature in features)
        self.max_rows = max_rows
        self._name_set = frozenset(self.names)
        # A row may bring its key along, as it does in a file; the answer is in the rows' order.
        self._keys = frozenset(getattr(predictor.schema, "key", ()))
        self._values = _getter(self.names)
        self._numbers = _getter([feature.name for feature in features if feature.kind == "numeric"])
        self._others = _getter([feature.name for feature in features if feature.kind != "numeric"])

    def read(self, body: object) -> Job:
        """The job of a parsed body; values are judged where they become tensors. Raises DataError, TooLargeError."""
        if not isinstance(body, dict):
            raise DataError('the body must be an object with "rows" or "columns"')
        rows = body.get("rows")
        if rows is not None and len(body) == 1:
            if not isinstance(rows, list) or not rows:
                raise DataError('"rows" must be a list of at least one object', field="rows")
            self.check_count(len(rows), "rows")
            return self._from_rows(rows)
        columns = body.get("columns")
        if columns is not None and len(body) == 1:
            return self._from_columns(columns)
        for name in body:
            if name not in ("rows", "columns"):
                raise DataError(f'the body has {name!r}; expected "rows" or "columns" and nothing else', field=name)
        what = "not both" if rows is not None else "and has neither"
        raise DataError(f'the body must have either "rows" or "columns", {what}')

    def check_count(self, count: int, field: str) -> None:
        """Raises TooLargeError when there are more rows than one request may have."""
        if count > self.max_rows:
            raise TooLargeError(
                f"{count:,} rows are over the limit of {self.max_rows:,} a request; send them in parts",
                field=field,
            )

    def _from_rows(self, rows: list[Any]) -> Job:
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(f"row {number} is not an object of columns", field="rows")
            if row.keys() != self._name_set:
                self.check_names(row, f"row {number}")
        if len(rows) <= MERGED_ROWS:
            key = self._key(rows)
            if key is not None:
                return Job(len(rows), rows=rows, key=key)
        return Job(len(rows), columns=self.columns(rows))

    def _key(self, rows: list[Row]) -> Key | None:
        """What decides with whom the rows may be merged; None: with nobody."""
        key: Key | None = None
        for row in rows:
            if not _NUMBERS.issuperset(map(type, self._numbers(row))):
                return None
            types = tuple(map(type, self._others(row)))
            if key is None:
                key = types
            elif key != types:
                return None
        return key

    def columns(self, rows: list[Row]) -> dict[str, list[Any]]:
        """A table of rows, column by column."""
        return dict(zip(self.names, map(list, zip(*map(self._values, rows), strict=True)), strict=True))

    def _from_columns(self, columns: object) -> Job:
        if not isinstance(columns, dict) or not columns:
            raise DataError('"columns" must be an object of lists', field="columns")
        lengths: dict[int, str] = {}
        for name, values in columns.items():
            if not isinstance(values, list):
                raise DataError(f"column {name!r} must be a list", field=name)
            lengths.setdefault(len(values), name)
        if len(lengths) > 1:
            (a, first), (b, second) = list(lengths.items())[:2]
            raise DataError(f"column {first!r} has {a} values, column {second!r} has {b}", field=second)
        count = next(iter(lengths))
        if not count:
            raise DataError("the columns are empty", field="columns")
        self.check_count(count, "columns")
        if columns.keys() != self._name_set:
            self.check_names(columns, "the table")
            columns = {name: columns[name] for name in self.names}
        return Job(count, columns=columns)

    def check_names(self, given: Mapping[str, Any], what: str) -> None:
        """Raises DataError naming the first column that is too many or not there; keys may be there."""
        for name in given:
            if name not in self._name_set and name not in self._keys:
                near = difflib.get_close_matches(name, self.names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DataError(f"{what} has a column {name!r} that the model does not know{hint}", field=name)
        for name in self.names:
            if name not in given:
                raise DataError(f"{what} has no column {name!r}; null means a missing value", field=name)


def _getter(names: Sequence[str]) -> Callable[[Row], tuple[Any, ...]]:
    """`itemgetter`, but a tuple for any number of names."""
    if not names:
        return lambda row: ()
    if len(names) == 1:
        (name,) = names
        return lambda row: (row[name],)
    return itemgetter(*names)
