"""What events change of state.db, as a value. Pure.

fold(journal_id, [(seq, event), …]) ──▶ Change ──▶ State.apply writes it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from ledger import circuit_table
from ledger.money import pico
from ledger.windows import quarter_of

HoldState = Literal["reserved", "in_flight", "in_doubt"]
Events = Sequence[tuple[int, Mapping[str, Any]]]  # of a journal, with their numbers, in order
BudgetKey = tuple[str, str, str]  # scope, scope_id, mode

FOLDED = (  # the fields of events that `fold` looks at
    *("event_type", "request_id", "session_id", "task", "attempt_id", "tier", "model"),
    *("occurred_at", "started_at", "billed_cost_usd", "list_cost_usd", "reserved_usd", "billing"),
    *("scope", "scope_id", "mode", "limit_usd", "tz", "reason"),
    *circuit_table.FOLDED,
)
DATED = frozenset({"attempt_started", "budget_set", "circuit_opened", "circuit_closed"})  # by `occurred_at`


class Spent(NamedTuple):
    """What money counts for: the quarter of an hour its attempt started in, and what it was spent on."""

    quarter: int
    session_id: str | None
    task: str
    tier: str
    model: str


class HoldRow(NamedTuple):
    """A ceiling that counts as if it were spent; `ceiling_pico` None: the cost has no known bound."""

    attempt_id: str
    journal_id: str
    request_id: str
    session_id: str | None
    task: str
    tier: str
    model: str
    ceiling_pico: int | None
    quarter: int
    state: HoldState

    @property
    def counts_for(self) -> Spent:
        """What the ceiling is held for."""
        return Spent(self.quarter, self.session_id, self.task, self.tier, self.model)


class BudgetRow(NamedTuple):
    """A budget as it was last set; `limit_pico` None: lifted. The latest `order` counts."""

    limit_pico: int | None
    tz: str
    reason: str | None
    order: tuple[str, str, int]  # occurred_at, journal_id, seq


@dataclass
class Change:
    """What a run of events does to the projection."""

    spent_pico: Counter[Spent] = field(default_factory=Counter)
    unpriced_attempts: Counter[Spent] = field(default_factory=Counter)
    request_spent_pico: dict[str, int] = field(default_factory=dict)
    requests_ended: set[str] = field(default_factory=set)
    holds: dict[str, HoldRow | None] = field(default_factory=dict)  # None: let go
    settled: set[str] = field(default_factory=set)
    budgets: dict[BudgetKey, BudgetRow] = field(default_factory=dict)
    circuit_turns: list[circuit_table.Turn] = field(default_factory=list)
    closed: bool = False


def fold(journal_id: str, events: Iterable[tuple[int, Mapping[str, Any]]]) -> Change:
    """The change a journal's events make, in their order; values may be JSON's or Python's."""
    change = Change()
    received: set[str] = set()  # requests that nothing is kept of yet
    started: dict[str, Mapping[str, Any]] = {}  # attempts without an outcome
    for seq, event in events:
        match event["event_type"]:
            case "request_received":
                received.add(event["request_id"])
            case "attempt_started":
                started[event["attempt_id"]] = event
            case "attempt_settled":
                _fold_money(change, event)
                if event["billing"] != "unknown":
                    change.settled.add(event["attempt_id"])
            case "attempt_succeeded" | "attempt_failed" | "attempt_cancelled" | "attempt_abandoned":
                _fold_money(change, event)
                started.pop(event["attempt_id"], None)
                doubt = None
                if event["billing"] == "unknown" or _is_unpriced(event):
                    doubt = _hold(journal_id, event, event["started_at"], "in_doubt")
                change.holds[event["attempt_id"]] = doubt
                _fold_request(change, event, doubt)
            case "request_completed" | "request_failed" | "request_denied":
                change.request_spent_pico.pop(event["request_id"], None)
                if event["request_id"] not in received:
                    change.requests_ended.add(event["request_id"])
            case "circuit_opened" | "circuit_closed":
                turn = circuit_table.turn_of(event)
                change.circuit_turns += [turn] if turn else []
            case "budget_set":
                _fold_budget(change, event, journal_id, seq)
            case "journal_closed":
                change.closed = True
    for attempt_id, event in started.items():
        change.holds[attempt_id] = _hold(journal_id, event, event["occurred_at"], "in_flight")
    return change


def _fold_money(change: Change, event: Mapping[str, Any]) -> None:
    cost = cost_of(event)
    if cost is None and not _is_unpriced(event):
        return
    quarter = quarter_of(event["started_at"])
    spent = Spent(quarter, event.get("session_id"), event["task"], event["tier"], event["model"])
    amount = 0
    if cost is None:
        change.unpriced_attempts[spent] += 1
    else:
        amount = pico(cost)
    change.spent_pico[spent] += amount


def _fold_request(change: Change, event: Mapping[str, Any], doubt: HoldRow | None) -> None:
    """What an outcome counts for in its request: its cost, and the ceiling of what is in doubt.

    A settlement, which may come before the request's end or after it, changes nothing here; so what it tells
    beyond the ceiling is not counted in the request, but everywhere else.
    """
    cost = cost_of(event)
    amount = (0 if cost is None else pico(cost)) + (0 if doubt is None else doubt.ceiling_pico or 0)
    if cost is not None or doubt is not None:
        request_id, of_request = event["request_id"], change.request_spent_pico
        of_request[request_id] = of_request.get(request_id, 0) + amount


def cost_of(event: Mapping[str, Any]) -> Decimal | str | None:
    """What an outcome says its attempt has cost, in USD: billed, else at list prices; None: not known."""
    billed: Decimal | str | None = event.get("billed_cost_usd")
    return event.get("list_cost_usd") if billed is None else billed


def _is_unpriced(event: Mapping[str, Any]) -> bool:
    return event["billing"] == "billed" and cost_of(event) is None


def _hold(journal_id: str, event: Mapping[str, Any], started_at: datetime | str, state: HoldState) -> HoldRow:
    ceiling = event.get("reserved_usd")
    return HoldRow(
        event["attempt_id"],
        journal_id,
        event["request_id"],
        event.get("session_id"),
        event["task"],
        event["tier"],
        event["model"],
        None if ceiling is None else pico(ceiling),
        quarter_of(started_at),
        state,
    )


def _fold_budget(change: Change, event: Mapping[str, Any], journal_id: str, seq: int) -> None:
    key = (event["scope"], event.get("scope_id") or "", event.get("mode") or "hard")
    at = event["occurred_at"]
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    limit = event.get("limit_usd")
    row = BudgetRow(
        None if limit is None else pico(limit),
        event.get("tz") or "UTC",
        event.get("reason"),
        (moment.isoformat(timespec="microseconds"), journal_id, seq),
    )
    known = change.budgets.get(key)
    if known is None or known.order < row.order:
        change.budgets[key] = row
