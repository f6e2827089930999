"""What the ledger says, for people and programs.

spend · sessions · performance · comparison · adhoc · dictionary    one module per report
nightly · nightly_*         a day's page and files (+ templates)
keys · options              what may be asked for
tally · resampling          what performance is made of; intervals of differences
render · terminal           how it looks
frames                      the views as Polars frames, for programs
cli · queries               the commands (+ command_line, completion)
demo                        a session to look at, over real HTTP

    import reports

    with reports.open("data/ledger") as ledger:
        ledger.tier_breakdown(session_id="crawl_1")  # a Polars frame; money is Decimal
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from reports.frames import Frames as Frames

__all__ = ["Frames", "open"]

logging.getLogger("reports").addHandler(logging.NullHandler())


def open(path: str | Path | None = None, *, tz: str = "UTC", allow_damage: bool = False) -> Frames:
    """The ledger's views as Polars frames, all as of now: see `reports.frames.Frames`.

    path: the ledger's folder; None: as BUGHIVE_LEDGER or bughive.toml says, else data/ledger. tz: where
    days begin, and how moments are shown. allow_damage: leave out what is missing or altered. Reads
    only: nothing is created. Raises LedgerError where there is no ledger or no such time zone,
    DamagedLedger where its files contradict each other, SettingsError for settings that cannot be meant.
    """
    from reports.frames import Frames

    if path is None:
        from ledger.settings import Settings

        path = Settings.load().ledger_path
    return Frames(path, tz=tz, allow_damage=allow_damage)


def __getattr__(name: str) -> object:
    """`Frames` loads when it is asked for."""
    if name == "Frames":
        from reports.frames import Frames

        return Frames
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
