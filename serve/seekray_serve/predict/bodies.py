"""Rows that come as files: forms (`multipart/form-data`), and a body that is one image or one sound."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from typing import TYPE_CHECKING, Any

import orjson

from seekray.errors import DataError
from seekray_serve.http import RequestError

if TYPE_CHECKING:
    from seekray.predictor import Predictor

FORM = "multipart/form-data"
MEDIA = {"image": "image", "audio": "audio", "audio_frames": "audio"}  # a feature's kind → the type of its files
_VALUES = frozenset(("numeric", "boolean", "vector", "sequence"))  # written as JSON; others are texts as they stand
_MOST_PARTS = 100_000


class FileBodies:
    """Reads such bodies into what `RowReader` takes, for one model's features."""

    def __init__(self, predictor: Predictor) -> None:
        self._features = {feature.name: feature for feature in predictor.schema.features}
        self._keys = frozenset(getattr(predictor.schema, "key", ()))
        self.media = [feature.name for feature in predictor.schema.features if feature.kind in MEDIA]

    def read(self, content_type: str, body: bytes) -> dict[str, Any]:
        """`{"columns": {...}}`. Raises RequestError 415 for a content type that no row can come in, DataError."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind == FORM:
            return {"columns": self._form(content_type, body)}
        for name in self.media:
            if kind.startswith(f"{MEDIA[self._features[name].kind]}/"):
                return {"columns": {name: [body]}}
        known = ["application/json", "application/vnd.apache.arrow.stream", FORM]
        known += sorted({f"{MEDIA[self._features[name].kind]}/…" for name in self.media})
        raise RequestError(
            415, "unsupported_media_type", f"content type {kind!r} is none of {', '.join(known)}", field="content-type"
        )

    def _form(self, content_type: str, body: bytes) -> dict[str, list[Any]]:
        """A column a name; a name that comes again is the next row."""
        columns: dict[str, list[Any]] = {}
        for name, content in parts(content_type, body):
            columns.setdefault(name, []).append(self._value(name, content))
        if not columns:
            raise DataError("the form has no parts; expected one for each feature of a row", field="body")
        return columns

    def _value(self, name: str, content: bytes) -> Any:
        feature = self._features.get(name)
        if feature is not None and feature.kind in MEDIA:
            return content
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"part {name!r} is not UTF-8", field=name) from error
        if feature is None or feature.kind not in _VALUES:
            return text
        try:
            return orjson.loads(text) if text.strip() else None
        except orjson.JSONDecodeError:
            return text  # the column's own parser says what is wrong with it


def parts(content_type: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each part of a form (RFC 7578). Raises DataError."""
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise DataError("the content type names no boundary between the form's parts", field="content-type")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(delimiter, _MOST_PARTS)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise DataError(f"the form does not end with its boundary, or has over {_MOST_PARTS:,} parts", field="body")
    for piece in pieces[1:-1]:
        # What follows the boundary up to its line's end is padding.
        _, _, part = piece.partition(b"\r\n")
        top, blank, content = part.partition(b"\r\n\r\n")
        name = _name(top) if blank else None
        if name is None:
            raise DataError("a part of the form has no name (content-disposition: form-data; name=…)", field="body")
        yield name, content


def _name(top: bytes) -> str | None:
    for line in top.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            about = Message()
            about["content-disposition"] = value.strip()
            found = about.get_param("name", header="content-disposition")
            return found if isinstance(found, str) else None
    return None
