"""How a delimited file is written: its delimiter, its encoding, its numbers (`1234.5`, `1.234,50`, `1 234,5`)."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seekray.data.parse import is_text
from seekray.errors import DataError

DELIMITERS = ",;\t|"
ENCODING_ADVICE = "set data.encoding, for a file of Western Europe to cp1252, or convert it: iconv -f CP1252 -t UTF-8"
LOOKED_AT = 1000  # records of the head
MOSTLY = 0.95
GROUPS = {".": ",'’", ",": ". \u00a0\u202f"}


def _grouped(decimal: str) -> str:
    """Numbers whose thousands are set apart, as a regular expression of RE2 and Python."""
    point = re.escape(decimal)
    return "|".join(rf"^[+-]?\d{{1,3}}({re.escape(mark)}\d{{3}})+({point}\d+)?$" for mark in GROUPS[decimal])


def _plain(decimal: str) -> str:
    point = re.escape(decimal)
    return rf"^[+-]?(\d+({point}\d*)?|{point}\d+)([eE][+-]?\d+)?$"


NUMBERS = {decimal: re.compile(f"{_plain(decimal)}|{_grouped(decimal)}") for decimal in GROUPS}
# `1,234` may be either; these cannot be thousands.
SURE = {
    decimal: re.compile(
        rf"^[+-]?(\d+{re.escape(decimal)}(\d{{1,2}}|\d{{4,}})|(\d{{4,}}|0\d*){re.escape(decimal)}\d+"
        rf"|\d{{1,3}}([{re.escape(GROUPS[decimal])}]\d{{3}})+{re.escape(decimal)}\d+)$"
    )
    for decimal in GROUPS
}


@dataclass(frozen=True)
class Written:
    """decimal: the decimal mark, "." or ",". rewritten: columns of numbers that PyArrow would leave as text."""

    decimal: str
    rewritten: frozenset[str]

    def plain(self, value: str) -> str:
        """A number as `1234.5`; other texts as they are."""
        text = value.strip()
        return _without_groups(text, self.decimal) if NUMBERS[self.decimal].match(text) else value

    def apply(self, table: Any, *, typed: bool) -> Any:
        """A table or batch whose text columns among `rewritten` have their numbers as `1234.5`.

        typed: they become numbers where all their values are; else they stay texts, which are parsed later.
        """
        for place, field in enumerate(table.schema):
            if field.name not in self.rewritten or not is_text(field.type):
                continue
            column = _rewrite(table.column(place), self.decimal)
            if typed:
                # Where some are no numbers, whoever reads the column says which.
                with contextlib.suppress(pa.ArrowInvalid):
                    column = column.cast(pa.float64())
            table = table.set_column(place, field.name, column)
        return table


def _without_groups(text: str, decimal: str) -> str:
    for mark in GROUPS[decimal]:
        text = text.replace(mark, "")
    return text.replace(decimal, ".")


def _rewrite(column: Any, decimal: str) -> Any:
    text = pc.utf8_trim_whitespace(column)
    is_number = pc.match_substring_regex(text, f"{_plain(decimal)}|{_grouped(decimal)}")
    bare = pc.replace_substring_regex(text, f"[{re.escape(GROUPS[decimal])}]", "")
    if decimal != ".":
        bare = pc.replace_substring(bare, decimal, ".")
    return pc.if_else(is_number, bare, column)


def find_written(
    head: str, names: Sequence[str], delimiter: str, decimal: str | None, nulls: Sequence[str], codes: Sequence[str] = ()
) -> Written:
    """How a file's numbers are written, from its first records.

    decimal: given, or None to find it: a comma where columns of numbers have one that cannot be a mark of
    thousands, and no column has such a point. codes: columns that only look like numbers.
    """
    columns = _columns(head, names, delimiter, frozenset(nulls))
    numeric = {
        mark: [n for n, values in columns.items() if values and _share(values, NUMBERS[mark]) >= MOSTLY] for mark in GROUPS
    }
    sure = {mark: any(any(SURE[mark].match(v) for v in columns[n]) for n in numeric[mark]) for mark in GROUPS}
    found = decimal or ("," if sure[","] and not sure["."] else ".")
    if found == "." and not (decimal or sure["."] or delimiter == ","):
        return Written(found, frozenset())  # `1;2,345` alone: thousands or thousandths, nobody knows
    groups = re.compile(_grouped(found))
    chosen = {n for n in numeric[found] if n not in codes}
    if found == ".":
        chosen = {n for n in chosen if any(groups.match(v) for v in columns[n])}
    return Written(found, frozenset(chosen))


def _columns(head: str, names: Sequence[str], delimiter: str, nulls: frozenset[str]) -> dict[str, list[str]]:
    """The values of each column in the first records; the last, which may be cut, is left out."""
    records = []
    try:
        for record in csv.reader(io.StringIO(head), delimiter=delimiter):
            records.append(record)
            if len(records) > LOOKED_AT:
                break
    except csv.Error:
        pass  # reading says what is wrong
    body = records[1:-1] if len(records) > 2 else records[1:]
    found: dict[str, list[str]] = {name: [] for name in names}
    for record in body:
        for name, value in zip(names, record, strict=False):
            if (text := value.strip()) not in nulls:
                found[name].append(text)
    return found


def _share(values: Sequence[str], pattern: re.Pattern[str]) -> float:
    return sum(bool(pattern.match(v)) for v in values) / len(values)


def looks_like_comma_number(value: object) -> bool:
    """True for a text such as `7.722,14`: a number with a decimal comma."""
    return isinstance(value, str) and bool(SURE[","].match(value.strip()))


def encoding_of(raw: bytes, given: str | None, path: str) -> str:
    """The encoding of a file that begins with `raw`: UTF-8 where that fits, else the one given. Raises DataError."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        # A character may be cut at the end.
        text = codecs.getincrementaldecoder("utf-8")().decode(raw)
    except UnicodeDecodeError:
        if given is not None:
            return given
        try:
            raw.split(b"\n", 1)[0].decode()
        except UnicodeDecodeError:
            raise DataError(f"{path}: the header is not UTF-8; {ENCODING_ADVICE}", field="data.encoding") from None
        return "utf8"  # the column that is not may not be read
    return given if given and text.isascii() else "utf8"


def find_delimiter(head: str) -> str:
    """The delimiter that cuts the first records into the same number of values, more than one."""
    best, most = ",", 1
    for delimiter in DELIMITERS:
        records = []
        for record in csv.reader(io.StringIO(head[:65_536]), delimiter=delimiter):
            records.append(record)
            if len(records) == 20:
                break
        widths = [len(r) for r in records[: max(1, len(records) - 1)] if r]
        if widths and widths[0] > most and sum(w == widths[0] for w in widths) * 10 >= len(widths) * 8:
            best, most = delimiter, widths[0]
    return best
