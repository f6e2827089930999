"""The event-sourced ledger: every request, attempt, fallback and token count, as immutable events.

    events · schema                 what is recorded
    lines · journal · together      where it is kept: append-only journals,
    sealing · segments · manifest   sealed into Parquet
    files · layout                  what its folder must have, and how a file survives
    recovery · state · history      what is done when a process died; what is derived, in SQLite
    settlement                      a later word on an attempt in doubt
    secrecy · billing               what is never recorded; who pays, by which rule
    prices · budgets · settings     what it costs, may cost, and how it is set
    reader · views/*.sql            what is read: DuckDB over segments and journals
    verify · checks · backup        what proves that it is whole, and a copy of it
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
