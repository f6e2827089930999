"""What the nightly page says, as one sparse table of typed rows: read from the ledger, and nothing drawn.

    day · day_before · week_before · month     totals
    tier · model · task · session · hour       the day, cut by a key; session_rest: all but the top ones
    day_tier                                   four weeks and the month, by day and tier
    failure · unpriced · in_doubt · budget     what did not go well, or is not known

Requests count on the day they started; attempts, tokens and money on the day the attempt started. All
is as of the end of the day: what started later is left out, and what was settled later is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.money import MONEY, total
from ledger.reader import reading, tier_rank

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

DAYS_SHOWN = 28
TOP = 10
MOST_BUDGETS = 100
NOTHING = Decimal("0.000000000000")
_VIEWS = ("events", "ledger_bounded", "ledger_requests", "ledger_failed", "budget_status")


class Row(NamedTuple):
    """One row of the night; None where a column has no meaning in a section, or is not known.

    Money is USD. `cost_usd` is the priced part, None where nothing has a price; a ceiling is the most
    that the attempts it stands beside can cost, None where that of one is not known.
    """

    section: str
    day: date | None = None
    hour: int | None = None  # since midnight
    tier: str | None = None
    provider: str | None = None
    model: str | None = None
    task: str | None = None
    session_id: str | None = None
    error_type: str | None = None  # or outcome, where an attempt had none
    error_message: str | None = None  # the latest
    requests: int | None = None
    succeeded_requests: int | None = None
    failed_requests: int | None = None
    denied_requests: int | None = None
    open_requests: int | None = None
    over_limit_requests: int | None = None  # that cost more than their own budget_usd
    fallbacks: int | None = None
    attempts: int | None = None
    succeeded_attempts: int | None = None
    failed_attempts: int | None = None
    retries: int | None = None  # attempts on the tier of the one before
    ceiling_broken_attempts: int | None = None  # that cost more than was reserved for them
    input_tokens: int | None = None  # cached ones included
    output_tokens: int | None = None
    cost_usd: Decimal | None = None
    list_cost_usd: Decimal | None = None
    failed_cost_usd: Decimal | None = None  # of attempts that brought no answer, the known part
    cost_per_success_usd: Decimal | None = None  # failures included
    unpriced_attempts: int | None = None
    unpriced_ceiling_usd: Decimal | None = None
    in_doubt_attempts: int | None = None
    in_doubt_ceiling_usd: Decimal | None = None
    in_flight_attempts: int | None = None
    in_flight_ceiling_usd: Decimal | None = None
    latency_ms_p50: float | None = None  # of answered attempts
    latency_ms_p95: float | None = None
    first_token_ms_p50: float | None = None  # of those that were streamed
    output_tokens_per_s: float | None = None
    scope: str | None = None
    scope_id: str | None = None
    mode: str | None = None
    tz: str | None = None  # where its days and months begin
    limit_usd: Decimal | None = None
    spent_usd: Decimal | None = None
    reserved_usd: Decimal | None = None
    in_doubt_usd: Decimal | None = None
    left_usd: Decimal | None = None


_KNOWN_COST = "if(coalesce(sum(attempts), 0) = 0, 0, sum({name}))::decimal(38, 12) as {name}"
_CEILING = """
    if(bool_or({which} and reserved_usd is null), null, coalesce(sum(reserved_usd) filter (where {which}), 0))
        ::decimal(38, 12) as {name}_ceiling_usd,
    count(*) filter (where {which}) as {name}_attempts"""
_UNKNOWN = {
    "unpriced": "coalesce(is_unpriced, false)",
    "in_doubt": "coalesce(billing = 'unknown', false)",
    "in_flight": "coalesce(outcome = 'in_flight', false)",
}
_FAILED = "outcome not in ('succeeded', 'in_flight')"
_OF_ATTEMPTS = f"""
    coalesce(sum(attempts), 0)::bigint as attempts,
    count(*) filter (where outcome = 'succeeded') as succeeded_attempts,
    count(*) filter (where {_FAILED}) as failed_attempts,
    count(*) filter (where is_ceiling_broken) as ceiling_broken_attempts,
    coalesce(sum(input_tokens), 0)::bigint as input_tokens,
    coalesce(sum(output_tokens), 0)::bigint as output_tokens,
    {_KNOWN_COST.format(name="cost_usd")},
    {_KNOWN_COST.format(name="list_cost_usd")},
    coalesce(sum(cost_usd) filter (where {_FAILED}), 0)::decimal(38, 12) as failed_cost_usd,
    {",".join(_CEILING.format(name=name, which=which) for name, which in _UNKNOWN.items())}
"""
_OF_REQUESTS = """
    coalesce(sum(requests), 0)::bigint as requests,
    count(*) filter (where status = 'completed') as succeeded_requests,
    count(*) filter (where status = 'failed') as failed_requests,
    count(*) filter (where status = 'denied') as denied_requests,
    count(*) filter (where status = 'open') as open_requests,
    count(*) filter (where is_over_limit) as over_limit_requests,
    coalesce(sum(fallbacks), 0)::bigint as fallbacks,
    coalesce(sum(retries), 0)::bigint as retries
"""
# A sum of floats depends on its order, which threads change; one of decimals does not.
_SPEED = """
    quantile_cont(latency_ms, 0.50) filter (where outcome = 'succeeded') as latency_ms_p50,
    quantile_cont(latency_ms, 0.95) filter (where outcome = 'succeeded') as latency_ms_p95,
    quantile_cont(first_token_ms, 0.50) filter (where outcome = 'succeeded') as first_token_ms_p50,
    sum(output_tokens) filter (where outcome = 'succeeded' and latency_ms > 0) * 1000
        / sum(try_cast(latency_ms as decimal(18, 6))) filter (
            where outcome = 'succeeded' and latency_ms > 0 and output_tokens is not null
        )::double
        as output_tokens_per_s
"""
_MEASURES = f"{_OF_REQUESTS}, {_OF_ATTEMPTS}, {_SPEED}"

# Three days row by row, all else by day: a month may hold more attempts than memory does.
_COUNTED = """
create temp table counted as
with asked as (
    select * from ledger_requests
    where {around} and (status <> 'failed' or (provider is not null and model is not null))
    union all
    select * from ledger_failed where {around}
),
tried as (
    select request_id, count(*) as attempts, sum(cost_usd) as cost_usd
    from ledger_attempts
    where request_id in (select request_id from asked)
    group by request_id
),
moved as (
    select request_id, count(*) as fallbacks
    from events
    where event_type = 'fallback_engaged' and request_id in (select request_id from asked)
    group by request_id
),
limited as (
    select request_id, any_value(limit_usd) as limit_usd
    from events
    where
        event_type = 'request_received'
        and limit_usd is not null
        and request_id in (select request_id from asked)
    group by request_id
),
counted as (
    select
        started_at, tier, provider, model, task, session_id, 1 as requests, 0 as attempts, status,
        coalesce(fallbacks, 0) as fallbacks,
        greatest(coalesce(tried.attempts, 0) - 1 - coalesce(fallbacks, 0), 0) as retries,
        if(tried.attempts is null, 0, cost_usd) > limit_usd as is_over_limit
    from asked
        left join tried using (request_id)
        left join moved using (request_id)
        left join limited using (request_id)
    where started_at::date in ($day, $day_before, $week_before)
    union all by name
    select
        started_at, tier, provider, model, task, session_id, 0 as requests, 1 as attempts, outcome, billing,
        is_unpriced, is_ceiling_broken, reserved_usd, cost_usd, list_cost_usd, input_tokens, output_tokens,
        latency_ms, first_token_ms, coalesce(error_type, outcome) as error_type,
        nullif(error_message, '') as error_message
    from ledger_bounded
    where {around} and started_at::date in ($day, $day_before, $week_before)
)
select
    * exclude (started_at), started_at, started_at::date as day,
    floor((epoch(started_at) - epoch(started_at::date::timestamptz)) / 3600)::bigint as hour
from counted
"""
_BY_DAY = f"""
create temp table by_day as
select started_at::date as day, tier, provider, model, {_OF_ATTEMPTS}
from (
    select *, 1 as attempts
    from ledger_bounded
    where {{around}} and started_at::date between $first_day::date and $day::date
    union all
    select *, 1 as attempts
    from ledger_bounded
    where
        started_at::date < least($first_day::date, $day::date)
        and (billing = 'unknown' or outcome = 'in_flight')
)
group by all
"""
_COUNTS = (
    "attempts",
    "succeeded_attempts",
    "failed_attempts",
    "ceiling_broken_attempts",
    "input_tokens",
    "output_tokens",
    *(f"{name}_attempts" for name in _UNKNOWN),
)
_ADDED = ",\n".join(
    [f"coalesce(sum({name}), 0)::bigint as {name}" for name in _COUNTS]
    + [_KNOWN_COST.format(name=name) for name in ("cost_usd", "list_cost_usd")]
    + ["coalesce(sum(failed_cost_usd), 0) as failed_cost_usd"]
    + [
        f"if(bool_or({name} is null), null, coalesce(sum({name}), 0))::decimal(38, 12) as {name}"
        for name in (f"{name}_ceiling_usd" for name in _UNKNOWN)
    ]
)


class Days(NamedTuple):
    """The days that a night is about."""

    day: date

    @property
    def before(self) -> date:
        """The day before."""
        return self.day - timedelta(days=1)

    @property
    def week_before(self) -> date:
        """The same weekday a week before."""
        return self.day - timedelta(days=7)

    @property
    def first_of_month(self) -> date:
        """Where the month's sum begins."""
        return self.day.replace(day=1)

    @property
    def first_shown(self) -> date:
        """The first of the days in the chart of days."""
        return self.day - timedelta(days=DAYS_SHOWN - 1)


class Night(NamedTuple):
    """The figures of a day: rows by section, in the order they are shown."""

    days: Days
    rows: Sequence[Row]

    def of(self, *sections: str) -> list[Row]:
        """The rows of some sections."""
        return [row for row in self.rows if row.section in sections]

    def one(self, section: str) -> Row:
        """The one row of a section that is a total."""
        return next(row for row in self.rows if row.section == section)

    def broken_budgets(self) -> list[Row]:
        """Hard budgets that more was spent of than they allow."""
        return [row for row in self.of("budget") if row.mode == "hard" and is_over(row)]


def is_over(budget: Row) -> bool:
    """Whether more was spent than the limit; what is in doubt does not count."""
    return (budget.spent_usd or NOTHING) > (budget.limit_usd or NOTHING)


def read_night(path: str | Path, day: date, *, tz: str = "UTC", allow_damage: bool = False) -> Night:
    """The figures of a day, which begins and ends at midnight in `tz`. Raises as `ledger.reader.connect`."""
    days = Days(day)
    with reading(path, tz=tz, allow_damage=allow_damage, views=_VIEWS) as connection:
        _count(connection, days)
        rows = [*_totals(connection, days), *_cuts(connection), *_unwell(connection)]
        rows += _budgets(connection, days)
    return Night(days, rows)


def _count(connection: duckdb.DuckDBPyConnection, days: Days) -> None:
    connection.execute("set variable day = $1::date", [days.day.isoformat()])
    three = {"day": days.day, "day_before": days.before, "week_before": days.week_before}
    counted = _COUNTED.format(around=_around(days.week_before, days.day))
    connection.execute(counted, {name: each.isoformat() for name, each in three.items()})
    first_day = min(days.first_of_month, days.first_shown)
    by_day = _BY_DAY.format(around=_around(first_day, days.day))
    connection.execute(by_day, {"day": days.day.isoformat(), "first_day": first_day.isoformat()})


def _around(first: date, last: date) -> str:
    """A condition that days in any zone keep, and by which DuckDB leaves out what is far from them."""
    bounds = (each.isoformat() for each in (first - timedelta(days=2), last + timedelta(days=3)))
    return " and ".join(
        f"started_at {sign} '{each} 00:00:00Z'::timestamptz"
        for sign, each in zip((">=", "<"), bounds, strict=True)
    )


def _totals(connection: duckdb.DuckDBPyConnection, days: Days) -> Iterator[Row]:
    three = {"day": days.day, "day_before": days.before, "week_before": days.week_before}
    for section, day in three.items():
        sql = f"select {_MEASURES} from counted where day = $day::date"
        yield from _rows(connection, section, sql, {"day": day.isoformat()}, day=day)
    sql = f"select {_ADDED} from by_day where day >= $first::date"
    yield from _rows(
        connection, "month", sql, {"first": days.first_of_month.isoformat()}, day=days.first_of_month
    )
    sql = f"select day, tier, {_ADDED} from by_day where day >= $first::date group by all"
    first = min(days.first_of_month, days.first_shown).isoformat()
    by_day = _rows(connection, "day_tier", sql, {"first": first})
    yield from sorted(by_day, key=lambda row: (row.day or date.min, tier_rank(row.tier)))


def _cuts(connection: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    """The day by each key, the dearest first, but for tiers and hours."""
    of_the_day = "from counted where day = getvariable('day')"
    tiers = _rows(connection, "tier", f"select tier, {_MEASURES} {of_the_day} group by tier")
    yield from sorted(tiers, key=lambda row: tier_rank(row.tier))
    models = f"select provider, model, {_MEASURES} {of_the_day} group by all"
    yield from _dearest(row for row in _rows(connection, "model", models) if row.attempts)
    yield from _dearest(_rows(connection, "task", f"select task, {_MEASURES} {of_the_day} group by task"))
    yield from _sessions(connection)
    hours = (
        "select day, hour, sum(attempts)::bigint as attempts, sum(cost_usd)::decimal(38, 12) as cost_usd"
        " from counted where attempts > 0 group by all order by all"
    )
    yield from _rows(connection, "hour", hours)


def _sessions(connection: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    """The dearest, and all others as one row, so that they add up to the day."""
    ranked = (
        "select *, coalesce(least(row_number() over"
        f" (order by cost desc nulls last, calls desc, session_id nulls last), {TOP + 1}), 0) as place from"
        " (select session_id, sum(cost_usd) as cost, sum(requests) as calls"
        " from counted where day = getvariable('day') group by session_id)"
    )
    for section, condition, key in (
        ("session", f"place <= {TOP}", "ranked.session_id"),
        ("session_rest", f"place > {TOP}", "null::varchar as session_id"),
    ):
        sql = (
            f"with ranked as ({ranked}) select {key}, {_MEASURES} from counted join ranked"
            f" on counted.session_id is not distinct from ranked.session_id"
            f" where day = getvariable('day') and {condition} group by all"
        )
        yield from _dearest(row for row in _rows(connection, section, sql) if row.requests or row.attempts)


def _unwell(connection: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    """Failures of the day; what has no price; and all that is in doubt or in flight, whenever it began."""
    failures = (
        "select provider, model, error_type,"
        " arg_max(error_message, (started_at, error_message)) as error_message,"
        f" {_OF_ATTEMPTS} from counted where day = getvariable('day') and {_FAILED}"
        " group by provider, model, error_type order by attempts desc, provider, model, error_type"
    )
    yield from _rows(connection, "failure", failures)
    unpriced = (
        f"select provider, model, {_OF_ATTEMPTS} from counted where day = getvariable('day') and is_unpriced"
        " group by provider, model order by attempts desc, provider, model"
    )
    yield from _rows(connection, "unpriced", unpriced)
    in_doubt = (
        f"select min(day) as day, provider, model, {_ADDED} from by_day"
        " where in_doubt_attempts > 0 or in_flight_attempts > 0"
        " group by provider, model order by min(by_day.day), provider, model"
    )
    for row in _rows(connection, "in_doubt", in_doubt):
        yield Row("in_doubt", **{name: getattr(row, name) for name in _OF_IN_DOUBT})


_OF_IN_DOUBT = (
    "day",
    "provider",
    "model",
    "in_doubt_attempts",
    "in_doubt_ceiling_usd",
    "in_flight_attempts",
    "in_flight_ceiling_usd",
)
_BUDGETS = f"""
select scope, scope_id, mode, tz, limit_usd, spent_usd, reserved_usd, in_doubt_usd
from budget_status
order by
    scope in ('all', 'month', 'day') desc,
    spent_usd > limit_usd desc,
    (spent_usd + reserved_usd + in_doubt_usd)::double / greatest(limit_usd::double, 1e-12) desc,
    scope, scope_id, mode
limit {MOST_BUDGETS}
"""


def _budgets(connection: duckdb.DuckDBPyConnection, days: Days) -> Iterator[Row]:
    """Budgets as they stand. Those of a day or month are of this day and its month, not of today's."""
    windows: dict[tuple[str, str], Row] = {}
    for row in list(_rows(connection, "budget", _BUDGETS)):
        key = (row.scope or "", row.tz or "")
        if row.scope in ("day", "month"):
            windows[key] = windows.get(key) or _window(connection, days, *key)
            row = row._replace(
                spent_usd=windows[key].cost_usd or NOTHING,
                reserved_usd=windows[key].in_flight_ceiling_usd or NOTHING,
                in_doubt_usd=_added(windows[key].in_doubt_ceiling_usd, windows[key].unpriced_ceiling_usd),
            )
        used = _added(row.spent_usd, row.reserved_usd, row.in_doubt_usd)
        yield row._replace(left_usd=MONEY.subtract(row.limit_usd or NOTHING, used))


def _window(connection: duckdb.DuckDBPyConnection, days: Days, scope: str, tz: str) -> Row:
    """What counts against a budget of the day, or of its month, by the days of the budget's own zone."""
    first = days.day if scope == "day" else days.first_of_month
    sql = (
        f"select {_OF_ATTEMPTS} from (select *, 1 as attempts from ledger_bounded)"
        f" where {_around(first, days.day)}"
        " and timezone($tz, started_at)::date between $first::date and $day::date"
    )
    bounds = {"tz": tz, "first": first.isoformat(), "day": days.day.isoformat()}
    return next(_rows(connection, "budget", sql, bounds))


def _added(*amounts: Decimal | None) -> Decimal:
    return total(amount for amount in amounts if amount is not None)


def _dearest(rows: Iterable[Row]) -> list[Row]:
    """Dearest first, what has no price last; equal ones by their names."""
    names = ("provider", "model", "task", "session_id")
    return sorted(
        rows,
        key=lambda row: (
            row.cost_usd is None,
            -(row.cost_usd or NOTHING),
            -(row.requests or 0),
            [(getattr(row, name) is None, getattr(row, name) or "") for name in names],
        ),
    )


def _rows(
    connection: duckdb.DuckDBPyConnection,
    section: str,
    sql: str,
    parameters: dict[str, str] | None = None,
    **more: Any,
) -> Iterator[Row]:
    """What a SELECT gives, as rows of a section; sums over nothing are 0, as nothing was spent."""
    connection.execute(sql, parameters)
    names = [column[0] for column in connection.description or ()]
    for values in connection.fetchall():
        row = Row(section, **{**more, **dict(zip(names, map(_typed, values), strict=True))})
        yield row._replace(cost_per_success_usd=_per_success(row)) if "latency_ms_p50" in names else row


def _typed(value: Any) -> Any:
    return value.date() if isinstance(value, datetime) else value


def _per_success(row: Row) -> Decimal | None:
    if row.cost_usd is None or not row.succeeded_attempts:
        return None
    each = MONEY.divide(row.cost_usd, Decimal(row.succeeded_attempts))
    return each.quantize(NOTHING, ROUND_HALF_EVEN)
