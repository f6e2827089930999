"""What is said of a ledger that was looked at: findings, warnings, notes, and its head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple, Self

from ledger.errors import LedgerError

NOTHING_SEALED = "-"  # instead of a hash, in the head of a ledger without segments
CUT_SHORT = "cut-short"  # a note: what is there is sound, and something that was there is not


class Run(NamedTuple):
    """Events of one journal, from a number up to and with another."""

    journal_id: str
    first_seq: int
    last_seq: int

    def __str__(self) -> str:
        if self.first_seq == self.last_seq:
            return f"event {self.first_seq} of journal {self.journal_id}"
        return f"events {self.first_seq} to {self.last_seq} of journal {self.journal_id}"


class Finding(NamedTuple):
    """One thing that is wrong with a ledger, told at its cause."""

    kind: str  # a short stable word, such as altered-segment
    file: str  # relative to the ledger's folder; empty: the folder itself
    what: str  # one line
    remedy: str  # one line: what can be done
    batch: int | None = None
    events: Sequence[Run] = ()  # those it concerns, one run per journal

    @property
    def journal_id(self) -> str | None:
        """Of the first run; None: no event is known to be concerned."""
        return self.events[0].journal_id if self.events else None

    @property
    def first_seq(self) -> int | None:
        """Of the first run."""
        return self.events[0].first_seq if self.events else None

    @property
    def last_seq(self) -> int | None:
        """Of the first run."""
        return self.events[0].last_seq if self.events else None


class Note(NamedTuple):
    """Something to know about a sound ledger, and how often it was met."""

    kind: str
    times: int
    what: str


class Head(NamedTuple):
    """The end of the chain of segments: kept elsewhere, it proves that nothing before it was changed."""

    ledger_id: str
    batch: int  # 0: nothing has been sealed
    sha256: str

    def __str__(self) -> str:
        return f"{self.ledger_id}:{self.batch}:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A head from its text. Raises LedgerError for a text that is none."""
        found = re.fullmatch(r"([0-9a-f]{32}):(0:-|[1-9]\d{0,7}:[0-9a-f]{64})", text.strip())
        if not found:
            raise LedgerError(
                f"{text!r} is no head; expected ledger_id:batch:sha256, as bughive-costs verify shows it"
            )
        batch, _, sha256 = found[2].partition(":")
        return cls(found[1], int(batch), sha256)


class Counts(NamedTuple):
    """How much was looked at. `cost_usd` None: nothing in it has a price."""

    events: int = 0
    segments: int = 0
    journals: int = 0
    requests: int = 0
    attempts: int = 0
    cost_usd: Decimal | None = None


class Verification(NamedTuple):
    """What `verify` found. Warnings and notes do not make a ledger unsound."""

    head: Head
    counts: Counts
    findings: Sequence[Finding]
    warnings: Sequence[Finding]
    notes: Sequence[Note]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.findings


def runs_of(numbers: Iterable[int], journal_id: str) -> list[Run]:
    """Numbers in rising order as runs without a gap."""
    runs: list[Run] = []
    for seq in numbers:
        if runs and seq == runs[-1].last_seq + 1:
            runs[-1] = runs[-1]._replace(last_seq=seq)
        else:
            runs.append(Run(journal_id, seq, seq))
    return runs


def holes_in(numbers: Iterable[int], journal_id: str, after: int) -> list[Run]:
    """What is missing between a number and the highest of these."""
    runs: list[Run] = []
    for seq in sorted(numbers):
        if seq > after + 1:
            runs.append(Run(journal_id, after + 1, seq - 1))
        after = max(seq, after)
    return runs


def in_words(runs: Sequence[Run], most: int = 3) -> str:
    """Runs in words, the first of them by name."""
    shown = ", ".join(map(str, runs[:most]))
    return f"{shown} and {len(runs) - most} more runs" if len(runs) > most else shown
