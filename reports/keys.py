"""What figures are grouped by: `--by tier,model`, one or several keys, as SQL over rows of attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ledger.relations import quoted
from reports.options import UsageError, choice
from reports.render import rfc3339

KEYS = {
    "tier": "tier",
    "model": "model",
    "task": "task",
    "provider": "provider",
    "session": "session_id",
    "day": "strftime(started_at::date, '%Y-%m-%d')",
    "hour": "strftime(started_at, '%Y-%m-%dT%H:00%z')",
}
_DATE = (  # the days of UTC need no calendar
    "if(current_setting('TimeZone') = 'UTC', make_timestamp(epoch_us(started_at))::date, started_at::date)"
)
TAG = "tag:"
IN_TIME = ("day", "hour")


def keys(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The keys meant, in their order: each text may name several, between commas; none: ().

    Raises UsageError for an unknown key, naming the nearest, and for one that comes twice.
    """
    texts = [given] if isinstance(given, str) else given or ()
    named = [_key(word.strip()) for text in texts for word in text.split(",")]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise UsageError(f"--by names {twice} twice; once is enough")
    return tuple(named)


def key_sql(key: str) -> str:
    """The expression of a key over anything with the columns of `attempts` or `requests`."""
    return f"tags[{quoted(key.removeprefix(TAG))}]" if key.startswith(TAG) else KEYS[key]


def grouped_sql(key: str) -> str:
    """The same, as what is grouped by: a day as a date, of which there is less to compare than of a text."""
    return _DATE if key == "day" else key_sql(key)


def shown_sql(key: str, grouped: str) -> str:
    """The expression of a key over what `grouped_sql` has made of it."""
    return f"strftime({grouped}, '%Y-%m-%d')" if key == "day" else grouped


def key_value(key: str, value: Any) -> Any:
    """A key's value as reports have it: an hour is RFC 3339."""
    return rfc3339(value) if key == "hour" else value


def _key(word: str) -> str:
    if word.startswith(TAG) and len(word) > len(TAG):
        return word
    return choice(word, (*KEYS, f"{TAG}KEY"), "--by")


def titled(key: str) -> str:
    """A key as a column's title."""
    return key.removeprefix(TAG).capitalize()
