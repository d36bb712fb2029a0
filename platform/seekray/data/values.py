"""A table's values as JSON."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import math
from typing import Any


def json_value(value: Any) -> Any:
    """Times as ISO text, bytes as base64, NaN and infinities as null."""
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple)):
        return [json_value(v) for v in value]
    return json_value(value.item()) if hasattr(value, "item") else value
