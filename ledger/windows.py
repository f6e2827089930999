"""Days and months of any time zone, in quarters of an hour: what a budget of a day or a month covers. Pure.

    window_of("day", "Europe/Berlin", quarter) ──▶ Window(first_quarter, end_quarter, "2026-11-22")

A quarter is counted from 1970 in UTC. Every zone's days begin on one: no zone has had an offset that is
not a multiple of fifteen minutes since 1972, but for Liberia's until that year. A quarter that holds a
midnight which is none of these counts for the day it begins in.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal, NamedTuple

from ledger.errors import SettingsError, nearest

QUARTER_S = 900
_QUARTER = timedelta(seconds=QUARTER_S)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_QUARTERS_OF_A_DAY = 96
_FARTHEST = 2 * _QUARTERS_OF_A_DAY  # a zone may be 14 hours ahead, and once was put on by a whole day

WindowKind = Literal["day", "month"]


class Window(NamedTuple):
    """[first, end) in quarters of an hour; `label` is the day or month in its zone."""

    first_quarter: int
    end_quarter: int
    label: str


def quarter_of(moment: datetime | str) -> int:
    """The quarter of an hour a moment falls in, counted from 1970 in UTC."""
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return (at - _EPOCH) // _QUARTER


def beginning_of(quarter: int) -> datetime | None:
    """When a quarter of an hour begins, in UTC; None where no calendar reaches."""
    try:
        return _EPOCH + quarter * _QUARTER
    except OverflowError:
        return None


def zone_named(name: str) -> tzinfo:
    """A zone of the IANA database, in upper or lower case. Raises SettingsError naming the nearest."""
    if name.upper() == "UTC":
        return UTC
    import pytz  # late: few budgets and reports name a zone

    try:
        return pytz.timezone(name)
    except pytz.UnknownTimeZoneError as error:
        hint = nearest(name, pytz.all_timezones) or "; expected such as Europe/Berlin"
        raise SettingsError(f"there is no time zone {name!r}{hint}") from error


@lru_cache(maxsize=256)
def window_of(kind: WindowKind, tz: str, quarter: int) -> Window:
    """The day or month in zone `tz` that a quarter of an hour belongs to."""
    zone = zone_named(tz)
    day = _date_of(quarter, zone)
    first_day = day.replace(day=1) if kind == "month" else day
    next_day = _after(first_day, kind)
    return Window(
        _first_quarter(first_day, zone),
        _first_quarter(next_day, zone),
        first_day.isoformat()[: 7 if kind == "month" else 10],
    )


def _after(day: date, kind: WindowKind) -> date:
    if kind == "day":
        return day + timedelta(days=1)
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def _first_quarter(day: date, zone: tzinfo) -> int:
    """The first quarter whose local date is that day or, where clocks skipped it, a later one."""
    midnight = quarter_of(datetime(day.year, day.month, day.day, tzinfo=UTC))
    before, at = midnight - _FARTHEST, midnight + _FARTHEST
    while at - before > 1:  # local dates never step back from one quarter to another
        middle = (before + at) // 2
        before, at = (before, middle) if _date_of(middle, zone) >= day else (middle, at)
    return at


def _date_of(quarter: int, zone: tzinfo) -> date:
    return (_EPOCH + quarter * _QUARTER).astimezone(zone).date()
