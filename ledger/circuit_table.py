"""Circuits in state.db.

    circuits         openings by their moment, and whether they are closed: derived from the events
    circuit_watch    what is known besides, of each route: failures in a row, the probe under way

What `circuit_watch` holds lives like reservations do: it stays when the rest is derived anew, and an open
circuit without it is probed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import apsw

from ledger.circuits import Circuit, RouteKey, microseconds

TABLES = """
create table circuits (
    provider text not null, model text not null, opened_us integer not null, closed integer not null,
    primary key (provider, model, opened_us)
) strict, without rowid;
create index open_circuits on circuits (provider, model) where closed = 0;
create table circuit_watch (
    provider text not null, model text not null, failures integer not null, error_type text, last_error text,
    failed_us integer, closed_us integer, due_us integer,
    prober text, prober_journal text, probe_until_us integer,
    primary key (provider, model)
) strict, without rowid;
"""

FOLDED = ("provider",)  # fields of events that only circuits are folded from


class Turn(NamedTuple):
    """What an event says of an opening: it was made, or is over."""

    provider: str
    model: str
    opened_us: int
    closed: bool


def turn_of(event: Mapping[str, Any]) -> Turn | None:
    """None for an event of before openings had their moment: it has long been over."""
    opened_at = event.get("started_at")
    if opened_at is None:
        return None
    at = datetime.fromisoformat(opened_at) if isinstance(opened_at, str) else opened_at
    closed = event["event_type"] == "circuit_closed"
    return Turn(event["provider"], event["model"], microseconds(at), closed)


def write_turns(db: apsw.Connection, turns: Iterable[Turn]) -> None:
    """Closed stays closed, in whichever order journals are applied."""
    db.executemany(
        "insert into circuits values (?, ?, ?, ?) on conflict do update set"
        " closed = max(closed, excluded.closed)",
        list(turns),
    )


def read_circuits(db: apsw.Connection) -> dict[RouteKey, Circuit]:
    """Each route of which anything is known."""
    rows = db.execute(
        "with routes as (select provider, model from circuits where closed = 0"
        " union select provider, model from circuit_watch)"
        " select provider, model, (select max(opened_us) from circuits where closed = 0"
        "  and circuits.provider = routes.provider and circuits.model = routes.model),"
        " coalesce(failures, 0), error_type, last_error, failed_us, closed_us, due_us,"
        " prober, prober_journal, probe_until_us"
        " from routes left join circuit_watch using (provider, model)"
    )
    return {(provider, model): Circuit(*known) for provider, model, *known in rows}


def write_watch(db: apsw.Connection, route: RouteKey, circuit: Circuit) -> None:
    """All of a circuit but whether it is open: that is the events' to say."""
    _, *watched = circuit
    db.execute(
        "insert or replace into circuit_watch values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*route, *watched)
    )


def dump(db: apsw.Connection) -> list[tuple[Any, ...]]:
    """The derived rows, sorted."""
    return sorted(db.execute("select * from circuits"))
