"""The event-sourced ledger: every request, attempt, fallback and token count, as immutable events.

    events · schema                 what is recorded
    lines · journal                 where it is kept: append-only journals,
    segments · manifest             sealed into Parquet
    files · layout                  what its folder must have, and how a file survives
    recovery · state                what is done when a process died; what is derived, in SQLite
    prices · budgets · settings     what it costs, may cost, and how it is set
    reader · views/*.sql            what is read: DuckDB over segments and journals
    ledger · request_log · tracker  the classes a program uses

Importing this package imports none of them: each is loaded when first used.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ledger.ledger import Ledger
    from ledger.tracker import CostTracker

__all__ = ["CostTracker", "Ledger"]

logging.getLogger("ledger").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name == "Ledger":
        from ledger.ledger import Ledger

        return Ledger
    if name == "CostTracker":
        from ledger.tracker import CostTracker

        return CostTracker
    raise AttributeError(f"module 'ledger' has no attribute {name!r}")
