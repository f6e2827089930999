"""What a shell completes: words that are known, and the sessions of the ledger at hand.

Each takes what was typed so far. None writes or fails: where a ledger cannot be read there is nothing to
complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

_MOST = 50


def keys(incomplete: str) -> list[str]:
    """Keys of --by; after a comma the next one."""
    from reports.keys import KEYS, TAG

    before, comma, word = incomplete.rpartition(",")
    return [f"{before}{comma}{key}" for key in _beginning(word, (*KEYS, TAG))]


def formats(incomplete: str) -> list[str]:
    """Words of --format."""
    from reports.render import FORMATS

    return _beginning(incomplete, FORMATS)


def sql_formats(incomplete: str) -> list[str]:
    """Words of --format of `sql`."""
    from reports.adhoc import SQL_FORMATS

    return _beginning(incomplete, SQL_FORMATS)


def spans(incomplete: str) -> list[str]:
    """Words of --last."""
    return _beginning(incomplete, ("1h", "24h", "7d", "30d", "mtd"))


def comparisons(incomplete: str) -> list[str]:
    """Words of --compare."""
    return _beginning(incomplete, ("previous",))


def views(incomplete: str) -> list[str]:
    """Names of views."""
    from ledger.relations import VIEWS

    return _beginning(incomplete, VIEWS)


def time_zones(incomplete: str) -> list[str]:
    """Names of time zones."""
    import pytz

    return _beginning(incomplete, pytz.common_timezones)


def sessions(context: typer.Context, incomplete: str) -> list[str]:
    """Sessions of the ledger that --ledger or the settings name, fifty at most."""
    from ledger.errors import BughiveError
    from ledger.reader import session_ids
    from ledger.settings import Settings

    try:
        named = context.params.get("ledger")
        path = Path(str(named)).expanduser() if named else Settings.load().ledger_path
        found = session_ids(path, incomplete, _MOST)
    except BughiveError:
        return []
    return [name for name in found if name.isprintable() and " " not in name]


def _beginning(incomplete: str, words: Any) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
