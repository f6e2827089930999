"""What a command line may say: periods, keys, formats, time zones. Pure, but for the clock given.

Periods are half-open, [since, until): adjacent ones neither share a moment nor leave one out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from ledger.errors import BughiveError, SettingsError, nearest
from ledger.windows import zone_named

_LAST_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class UsageError(BughiveError):
    """The command line cannot be meant; says what was expected."""


class Period(NamedTuple):
    """[since, until), both UTC-aware; None: no bound."""

    since: datetime | None = None
    until: datetime | None = None


ALL_TIME = Period()


def choice(word: str, known: Sequence[str], option: str) -> str:
    """The word, if it is a known one. Raises UsageError naming the nearest."""
    if word in known:
        return word
    raise UsageError(f"{option} knows no {word!r}{nearest(word, known)} (expected {', '.join(known)})")


def count(text: str, option: str) -> int:
    """A whole number from 0 on. Raises UsageError for anything else."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise UsageError(f"{option} {text!r} is no number; expected a whole number from 0 on")


def time_zone(name: str) -> tzinfo:
    """A zone of the IANA database. Raises UsageError naming the nearest."""
    try:
        return zone_named(name)
    except SettingsError as error:
        raise UsageError(f"--tz: {error}") from error


def period(since: str | None, until: str | None, last: str | None, tz: str, now: datetime) -> Period:
    """The period that --since, --until and --last mean; a date is its midnight in `tz`.

    Raises UsageError for a moment that does not exist, and for bounds that leave nothing.
    """
    zone = time_zone(tz)
    if last is not None:
        if since is not None or until is not None:
            raise UsageError("--last goes without --since and --until; give one or the other")
        return Period(since=_first_of_month(now, zone) if last == "mtd" else _before(now, last))
    bounds = Period(
        moment_named(since, zone, "--since") if since is not None else None,
        moment_named(until, zone, "--until") if until is not None else None,
    )
    if bounds.since is not None and bounds.until is not None and bounds.since >= bounds.until:
        raise UsageError(
            f"nothing lies between --since {since} and --until {until}: --until itself is not included,"
            " so name the day after the last one"
        )
    return bounds


def shown_period(within: Period, tz: str) -> str:
    """For a title: where days begin, after the bounds if there are any."""
    zone = time_zone(tz)
    since, until = (at and f"{at.astimezone(zone):%Y-%m-%d %H:%M}" for at in within)
    bounds = " ".join(f"{word} {at}" for word, at in (("from", since), ("until", until)) if at)
    return f" {bounds} ({tz})" if bounds else f" ({tz})"


def nothing_in(within: Period, tz: str, what: str) -> str:
    """The line that stands where a table would have no rows."""
    return f"{what} yet" if within == ALL_TIME else f"{what}{shown_period(within, tz)}"


def in_period(within: Period) -> tuple[str, dict[str, str]]:
    """An SQL condition on started_at, and its parameters."""
    bounds = {"since": (">=", within.since), "until": ("<", within.until)}
    given = {name: (sign, at) for name, (sign, at) in bounds.items() if at is not None}
    conditions = [f"started_at {sign} ${name}::timestamptz" for name, (sign, _) in given.items()]
    return " and ".join(conditions) or "true", {name: at.isoformat() for name, (_, at) in given.items()}


def before(within: Period, now: datetime) -> Period:
    """The period of equal length right before one; without `until` that one lasts until now.

    Raises UsageError for a period without a beginning, and for one that has not begun.
    """
    if within.since is None:
        raise UsageError("--compare previous needs to know since when; give --last or --since")
    length = (within.until or now) - within.since
    if length <= timedelta(0):
        raise UsageError("--compare previous needs a period that has begun; --since is still to come")
    try:
        return Period(within.since - length, within.since)
    except OverflowError as error:
        raise UsageError("--compare previous reaches back before the year 1; expected such as 7d") from error


def moment_named(text: str, zone: tzinfo, option: str) -> datetime:
    """The date or moment that an option names, a date as its midnight in a zone. Raises UsageError."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else _in_zone(moment, zone)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{option} {text!r} is no date or moment ({error});"
            " expected such as 2026-11-22 or 2026-11-22T10:30"
        ) from error


def _in_zone(moment: datetime, zone: tzinfo) -> datetime:
    """A wall clock's reading as a moment: of one that occurs twice the first, so that a day is whole.

    One that never occurs, as midnight where clocks are put forward then, is the moment when they were.
    """
    localize = getattr(zone, "localize", None)  # of pytz, whose zones know no fold
    if localize is None:
        return moment.replace(tzinfo=zone)
    readings: list[datetime] = [localize(moment, is_dst=is_dst) for is_dst in (True, False)]
    shown = [
        each for each in readings if each.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == moment
    ]
    return min(shown) if shown else max(readings)


def _first_of_month(now: datetime, zone: tzinfo) -> datetime:
    """Midnight of the month's first day in a zone."""
    today = now.astimezone(zone)
    return _in_zone(datetime(today.year, today.month, 1), zone).astimezone(UTC)  # noqa: DTZ001


def _before(now: datetime, last: str) -> datetime:
    found = re.fullmatch(r"(\d+)([mhdw])", last)
    if not found or int(found[1]) == 0:
        raise UsageError(f"--last {last!r} is no span of time; expected such as 30m, 24h, 7d, 2w, or mtd")
    try:
        return now - timedelta(**{_LAST_UNITS[found[2]]: int(found[1])})
    except OverflowError as error:
        raise UsageError(f"--last {last} reaches back before the year 1; expected such as 7d") from error
