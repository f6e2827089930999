"""Budgets as they stand, whether they hold, and why a request was refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.budgeting import budgets_of, changes_by, refuse_unknown_tier
from ledger.budgets import SCOPES, WINDOWS, Budget, budget_of, name_of
from ledger.errors import LedgerError, NoSuchSession, nearest
from ledger.ledger import Ledger
from ledger.money import MONEY, plain
from ledger.prices import PriceBook
from ledger.reader import existing_ledger, reading
from ledger.settings import Settings
from ledger.windows import beginning_of, quarter_of, window_of
from reports.render import Column, Document, Fact, Table, rfc3339, shown

if TYPE_CHECKING:
    from pathlib import Path

_MOST_OF_EACH = 20  # rows for people of one budget that holds for each session, request, …
_VIEWS = ("events", "attempts", "budget_status")
_COLUMNS = (
    Column("scope", "Scope", "text"),
    Column("scope_id", "Id", "text", whole=True),
    Column("mode", "Mode", "text"),
    Column("is_each", "Each", "text", detail=True),
    Column("tz", "Zone", "text", detail=True),
    Column("limit_usd", "Limit", "usd"),
    Column("spent_usd", "Spent", "usd"),
    Column("reserved_usd", "Reserved", "usd", if_any=True),
    Column("in_doubt_usd", "In doubt", "usd", if_any=True),
    Column("left_usd", "Left", "usd"),
    Column("exceeded", "Exceeded", "text", detail=True),
    Column("unpriced_attempts", "Unpriced", "count", if_any=True),
    Column("unbounded_attempts", "Unbounded", "count", if_any=True),
    Column("gone_at", "Gone by (UTC)", "minute", can_go=True),
    Column("resets_at", "Begins anew", "minute", detail=True),
    Column("set_at", "Set", "minute", detail=True),
    Column("reason", "Said by", "text", detail=True),
)
_STATUS = (
    "select scope, scope_id, mode, is_each, tz, limit_usd, spent_usd, reserved_usd, in_doubt_usd, left_usd,"
    " unpriced_attempts, unbounded_attempts, reason, set_at, spent_since,"
    " scope <> 'request' or scope_id in (select request_id from ledger_open) as can_spend from budget_status"
)
_REFUSAL = (
    "select request_id, session_id, task, tier, provider, model, attempt_number, reason, scope, scope_id,"
    " coalesce(mode, 'hard') as mode, tz, limit_usd, spent_usd, reserved_usd, in_doubt_usd, asked_usd,"
    " error_message, strftime(occurred_at, '%Y-%m-%dT%H:%M:%S.%f%z') as denied_at"
    " from events where event_type = 'request_denied' and request_id = ?"
)

Row = dict[str, Any]


class BudgetList(NamedTuple):
    """Each budget in force with what counts against it; of each-budgets a row per one that there is."""

    rows: list[Row]
    title: str
    to_come: str = ""  # what bughive.toml says that is not in force yet

    @property
    def exceeded(self) -> list[Row]:
        """Those that are used up: nothing is left, or less."""
        return [row for row in self.rows if row["exceeded"]]

    def table(self) -> Table:
        """All columns; one row per budget and what it counts."""
        return Table("", _COLUMNS, self.rows)

    def data(self) -> list[Row]:
        """The rows as they are; `gone_at` is null where it is not used, used up, or cannot be told."""
        return self.rows

    def document(self) -> Document:
        """The list for people: of a budget that holds for each of many those that have the least left."""
        if not self.rows:
            note = "no budget is set; for one: bughive-costs budget set 25 --scope day"
            return Document(self.title, [], [], note)
        over = len(self.exceeded)
        notes = [f"{over:,} of {len(self.rows):,} exceeded"] if over else []
        shown_rows: list[Row] = []
        for (_, is_each, _), found in groupby(sorted(self.rows, key=_place), lambda row: _place(row)[:3]):
            rows = list(found)
            most = _MOST_OF_EACH if is_each else len(rows)
            shown_rows += map(_for_people, rows[:most])
            notes += _of_the_rest(rows[most:])
        return Document(self.title, [], [Table("", _COLUMNS, shown_rows)], "; ".join(notes))


class Refusal(NamedTuple):
    """Why a request was refused, number by number."""

    row: Row

    def table(self) -> Table:
        """One row."""
        return Table("", [Column(name, name, "raw") for name in self.row], [self.row])

    def data(self) -> Row:
        """All that is known of it."""
        return self.row

    def document(self) -> Document:
        """The sum that did not fit, a number a line."""
        row = self.row
        told = [
            Fact("Refused", shown(row["denied_at"], "moment"), "UTC"),
            Fact("Task", row["task"], f"session {row['session_id']}" if row["session_id"] else "no session"),
            Fact("Asked of", row["tier"], row["model"]),
            Fact("Attempts", str(row["attempt_number"]), "made before"),
            Fact(
                "Limit", shown(row["limit_usd"], "usd"), name_of(row["scope"], row["scope_id"], row["mode"])
            ),
            Fact("Spent", shown(row["spent_usd"], "usd")),
            Fact("Reserved", shown(row["reserved_usd"], "usd"), "ceilings of attempts in flight"),
            Fact("In doubt", shown(row["in_doubt_usd"], "usd"), "ceilings of attempts of unknown cost"),
            Fact("Asked", shown(row["asked_usd"], "usd"), "the most it could cost"),
        ]
        if row["over_usd"] is not None:
            told.append(Fact("Too much by", shown(row["over_usd"], "usd")))
        return Document(f"Request {row['request_id']}", told, [], row["error_message"] or "")


def budget_list(
    path: str | Path,
    *,
    session_id: str | None = None,
    now: datetime | None = None,
    settings: Settings | None = None,
) -> BudgetList:
    """The budgets in force; with a session those that hold for it. Raises as `ledger.reader.connect`.

    settings: what they say of budgets is compared with those in force. NoSuchSession where neither events nor
    a budget know the session; SettingsError where bughive.toml has a budget that cannot be meant.
    """
    at = now or datetime.now(UTC)
    own = budgets_of(settings.budgets, settings.tiers) if settings else []
    with reading(path, views=_VIEWS) as connection:
        asked = connection.execute(_STATUS)
        names = [column[0] for column in asked.description or ()]
        found = [dict(zip(names, row, strict=True)) for row in asked.fetchall()]
        is_known = session_id is None or bool(
            connection.execute("select 1 from events where session_id = ? limit 1", [session_id]).fetchone()
        )
    file = settings and settings.file
    to_come = _to_come(file, changes_by(file, own, map(_budget, found))) if file else ""
    if session_id is not None:
        found = list(_of_session(found, session_id))
        if not is_known and not any(row["scope"] == "session" and not row["is_each"] for row in found):
            raise NoSuchSession(f"no session has the id {session_id}; see bughive-costs sessions")
    rows = [_row(row, at) for row in found]
    rows.sort(key=lambda row: (SCOPES.index(row["scope"]), row["scope_id"] or "", row["mode"]))
    title = f"Budgets of session {session_id}" if session_id is not None else "Budgets"
    return BudgetList(rows, title, to_come)


def change_budget(
    path: Path,
    scope: str,
    scope_id: str | None,
    limit: str,
    mode: str,
    tz: str,
    tell: Callable[[str], object],
) -> None:
    """Set a budget; a limit of "none" lifts it. Raises SettingsError, LedgerError: nothing changed.

    tell: takes what somebody who has mistyped a path or a name would want to know, a line each.
    """
    lifts = limit.lower() == "none"
    budget = budget_of(scope, scope_id, "0" if lifts else limit, mode, tz)
    settings = Settings.load()
    refuse_unknown_tier(budget, settings.tiers)
    if lifts:
        existing_ledger(path)
    is_new = not (path / "journals").is_dir()
    with Ledger.open(path, auto_seal=False) as ledger:
        if is_new:
            tell(f"there was no ledger at {path}: a new one is made in {path.absolute()}")
        if lifts:
            ledger.lift_budget(budget)
            return
        ledger.set_budget(budget)
        if note := _of_the_unheard(path, budget, ledger.prices, settings):
            tell(note)


def _of_the_unheard(path: Path, budget: Budget, prices: PriceBook, settings: Settings) -> str:
    """A note on a budget of a model or task that nothing knows, with the nearest name; empty for any other.

    Anthropic's models have other names here, under which nothing is on the books. Of tasks nothing is known
    here but what is on them.
    """
    if budget.scope not in ("task", "model") or budget.scope_id is None:
        return ""
    with reading(path, views=("ledger_attempts",)) as connection:
        told = connection.execute(f"select distinct {budget.scope} from ledger_attempts").fetchall()
    known = {name for (name,) in told}
    if budget.scope_id in known:
        return ""
    if budget.scope == "model":
        of_anthropic = [entry for entry in prices.entries if entry.provider == "anthropic"]
        if meant := next((each.model for each in of_anthropic if budget.scope_id in each.aliases), None):
            return (
                f"the budget is set, but what {budget.scope_id} is asked counts for {meant}: set it on that"
            )
        known |= {entry.model for entry in prices.entries}
        known |= {tier.model for tier in settings.tiers.values() if tier.model}
    if not known or budget.scope_id in known:
        return ""
    where = "on the books" if budget.scope == "task" else "on the books or in the price book"
    near = nearest(budget.scope_id, sorted(known))
    return f"the budget is set, but no {budget.scope} {budget.scope_id!r} is {where} so far{near}"


def refusal(path: str | Path, request_id: str) -> Refusal:
    """Why a request was refused. Raises LedgerError where none of that id was."""
    with reading(path, views=("events",)) as connection:
        asked = connection.execute(_REFUSAL, [request_id])
        names = [column[0] for column in asked.description or ()]
        found = asked.fetchone()
        known = connection.execute(
            "select 1 from events where request_id = ? limit 1", [request_id]
        ).fetchone()
    if found is None:
        what = f"request {request_id} was not refused" if known else f"no request has the id {request_id}"
        denied = "select request_id from requests where status = 'denied'"
        raise LedgerError(f'{what}; see bughive-costs sql "{denied}"')
    row: Row = dict(zip(names, found, strict=True))
    row["denied_at"] = rfc3339(row["denied_at"])
    row["over_usd"] = None
    if row["asked_usd"] is not None:
        counted = (row["spent_usd"], row["reserved_usd"] or Decimal(0), row["in_doubt_usd"], row["asked_usd"])
        row["over_usd"] = sum(counted, Decimal(0)) - row["limit_usd"]
    return Refusal(row)


def _of_session(rows: Sequence[Row], session_id: str) -> Iterator[Row]:
    """What holds for a session: its own, those of each session, and those of all there is."""
    of_it = False
    for row in rows:
        if row["scope"] in (*WINDOWS, "all"):
            yield row
        elif row["scope"] == "session" and row["scope_id"] == session_id:
            of_it = True
            yield row
    if not of_it:
        for row in rows:
            if row["scope"] == "session" and row["is_each"]:
                nothing = dict.fromkeys(("spent_usd", "reserved_usd", "in_doubt_usd"), Decimal(0))
                yield {
                    **row,
                    **nothing,
                    "scope_id": session_id,
                    "left_usd": row["limit_usd"],
                    "spent_since": None,
                }
                return


def _budget(row: Row) -> Budget:
    """The budget that a row of the view counts for."""
    scope_id = None if row["is_each"] else row["scope_id"]
    return Budget(row["scope"], scope_id, row["limit_usd"], row["mode"], row["tz"], row["reason"])


def _to_come(file: Path, changes: Sequence[tuple[Budget, Budget | None]]) -> str:
    """What is to say of changes that a file makes once the ledger is written to; empty without any."""
    told = [
        f"the {budget} is {f'set to ${plain(wanted.limit_usd)}' if wanted else 'lifted'}"
        for budget, wanted in changes
    ]
    when = "that is in force once a program opens the ledger to write"
    return f"not in force yet, but in {file}: {', '.join(told)}; {when}" if told else ""


def _row(found: Mapping[str, Any], now: datetime) -> Row:
    row = {column.name: found.get(column.name) for column in _COLUMNS}
    begins, ends = _window(found, now)
    row["exceeded"] = found["left_usd"] <= 0
    row["gone_at"] = _text(_gone_at(found, begins, ends, now))
    row["resets_at"] = _text(ends)
    row["set_at"] = _text(found["set_at"])
    if found["scope"] in WINDOWS:
        row["scope_id"] = window_of(found["scope"], found["tz"], quarter_of(now)).label
    return row


def _place(row: Row) -> tuple[int, bool, str, Decimal, str]:
    """Where a row stands for people: budgets of one before those of each, and of these the fullest first."""
    least_left = row["left_usd"] if row["is_each"] else Decimal(0)
    return SCOPES.index(row["scope"]), row["is_each"], row["mode"], least_left, row["scope_id"] or ""


def _of_the_rest(rows: Sequence[Row]) -> Iterator[str]:
    """What there is to say of rows that are not shown, the fullest of them first."""
    if rows:
        over = sum(row["exceeded"] for row in rows)
        which = f"{over:,} of them" if over else "none of them"
        yield f"{len(rows):,} more of each {rows[0]['scope']}, {which} exceeded: --format csv lists all"


def _for_people(row: Row) -> Row:
    """A row that says by itself which days it is of, and whether there is anything left to be gone."""
    scope = f"{row['scope']} in {row['tz']}" if row["scope"] in WINDOWS else row["scope"]
    return row | {
        "scope": f"each {scope}" if row["is_each"] else scope,
        "gone_at": "used up" if row["exceeded"] else row["gone_at"],
    }


def _window(row: Mapping[str, Any], now: datetime) -> tuple[datetime | None, datetime | None]:
    if row["scope"] not in WINDOWS:
        return None, None
    window = window_of(row["scope"], row["tz"], quarter_of(now))
    return beginning_of(window.first_quarter), beginning_of(window.end_quarter)


def _gone_at(
    row: Mapping[str, Any], begins: datetime | None, ends: datetime | None, now: datetime
) -> datetime | None:
    """When it is used up if all goes on as since its first attempt.

    None: it is, begins anew before, or is of a request that has ended.
    """
    since, spent = row["spent_since"] or now, row["spent_usd"]
    elapsed_us = (now - max(since, begins or since)) // timedelta(microseconds=1)
    if not row["can_spend"] or row["left_usd"] <= 0 or spent <= 0 or elapsed_us <= 0:
        return None
    left_us = MONEY.divide(MONEY.multiply(row["left_usd"], Decimal(elapsed_us)), spent)
    if left_us > 10**15:  # in thirty years
        return None
    gone = now + timedelta(microseconds=int(left_us))
    return gone if ends is None or gone < ends else None


def _text(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
