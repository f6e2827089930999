"""Values as text and as JSON that lose nothing: money is a string in full, moments are RFC 3339."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON of what `route()`, a client or a `CostTracker` returns, on one line unless indented.

    A Decimal becomes a string with all its digits, never a float or an exponent; a moment RFC 3339
    text; a duration its seconds; what is not known, or not a finite number, null.

    >>> to_json({"cost": Decimal("0.000270000000"), "usage": {"output_tokens": 46}})
    '{"cost": "0.000270000000", "usage": {"output_tokens": 46}}'
    """
    return json.dumps(_without_nan(value), indent=indent, default=_json_value)


def plain(value: Any) -> str:
    """A value as text that loses nothing, true and false as JSON and SQL have them; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, default=_json_value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return plain(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else plain(key): _without_nan(part) for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
