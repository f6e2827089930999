"""What sessions cost, for the program that spends: the reading side a router is handed.

tracker = CostTracker("data/ledger")
tracker.get_session_cost("crawl_session_123")      # Decimal("0.053800000000")
tracker.get_breakdown("crawl_session_123")         # {"REASONING": {"cost": …, "requests": 3, …}, …}
print(tracker.get_cost_summary("crawl_session_123"))
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypedDict

from ledger.errors import LedgerError
from ledger.money import MONEY, total

if TYPE_CHECKING:
    from ledger.ledger import Ledger
    from ledger.settings import Durability

_log = logging.getLogger("ledger")

_SHOWN_PLACES = Decimal("0.0001")


class TierCost(TypedDict):
    """One tier of a breakdown. `cost`: USD, the priced part; `input_tokens`: all prompt tokens."""

    cost: Decimal
    requests: int
    input_tokens: int
    output_tokens: int
    unpriced_attempts: int


class _Tier(NamedTuple):
    """A row of tier_breakdown, summed; `cost_usd` None: nothing is priced."""

    tier: str
    cost_usd: Decimal | None
    requests: int
    input_tokens: int
    output_tokens: int
    unpriced_attempts: int
    unpriced_ceiling_usd: Decimal | None
    in_doubt_attempts: int
    in_doubt_ceiling_usd: Decimal | None


class CostTracker:
    """What a ledger's sessions cost; also where a router finds the ledger to record in.

    ledger: a folder, or an open `Ledger` (which then stays its owner's to close); None is the
    default ledger. durability: as in `Ledger.open`; only for a ledger this tracker opens itself.
    Thread-safe. Nothing is opened until it is needed; a ledger not there yet has cost nothing.

    Raises LedgerError: at once for a durability beside an open ledger, later for a ledger that
    cannot be read or written.
    """

    def __init__(
        self, ledger: Ledger | str | Path | None = None, *, durability: Durability | None = None
    ) -> None:
        self._given = Path(ledger).expanduser().absolute() if isinstance(ledger, (str, Path)) else ledger
        self._durability = durability
        self._opened: Ledger | None = None
        self._lock = threading.Lock()
        if durability is not None and ledger is not None and not isinstance(ledger, (str, Path)):
            raise LedgerError("durability belongs to Ledger.open; the ledger given is open already")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ledger(self) -> Ledger:
        """The ledger to record in; opened, and made where it is missing, when first asked for."""
        if self._given is not None and not isinstance(self._given, Path):
            return self._given
        with self._lock:
            if self._opened is None:
                from ledger.ledger import Ledger

                self._opened = Ledger.open(self._path(), durability=self._durability)
            return self._opened

    def close(self) -> None:
        """Close the ledger, if this tracker opened it. It may be used again after."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def get_session_cost(self, session_id: str) -> Decimal:
        """USD of a session so far, exact; 0 for one without events.

        The certain part, with a warning in the log, where something has no price or is in doubt.
        """
        known = self._known_cost(session_id)
        if known is not None:
            return known
        tiers = self._tiers(session_id)
        unpriced = [(tier.unpriced_attempts, tier.unpriced_ceiling_usd) for tier in tiers]
        in_doubt = [(tier.in_doubt_attempts, tier.in_doubt_ceiling_usd) for tier in tiers]
        _warn_of("have no price", unpriced, session_id)
        _warn_of("are in doubt", in_doubt, session_id)
        return _total(tiers) or Decimal(0)

    def _known_cost(self, session_id: str) -> Decimal | None:
        """What state.db says a session has cost; None where the events are to be asked.

        It is sure where this process has the ledger open, no other has written what state.db was not told
        of, and nothing of the session is in doubt or without a price.
        """
        ledger = self._opened if isinstance(self._given, Path) or self._given is None else self._given
        if ledger is None:
            return None
        try:
            return ledger.session_spent(session_id)
        except LedgerError as error:
            _log.debug("state.db does not say what session %s has cost: %s", session_id, error)
            return None

    def get_breakdown(self, session_id: str | None = None) -> dict[str, TierCost]:
        """What each tier of a session did and cost; of all sessions without one. Tiers in their order.

        A request counts at the tier that answered it (else the last one tried), cost and tokens at
        the tier that incurred them.
        """
        return {
            tier.tier: {
                "cost": tier.cost_usd or Decimal(0),
                "requests": tier.requests,
                "input_tokens": tier.input_tokens,
                "output_tokens": tier.output_tokens,
                "unpriced_attempts": tier.unpriced_attempts,
            }
            for tier in self._tiers(session_id)
        }

    def get_cost_summary(self, session_id: str | None = None) -> str:
        """The breakdown as text, dollars to 4 places, small ones to 2 digits; of all sessions without one."""
        return _summary(session_id, self._tiers(session_id))

    def _tiers(self, session_id: str | None) -> list[_Tier]:
        path = self._path()
        if not path.exists():
            return []
        from ledger.reader import reading, tier_rank

        with reading(path, session_id, views=("attempts", "requests", "tier_breakdown")) as connection:
            rows = connection.execute(
                "select tier, sum(cost_usd), sum(requests)::bigint, sum(input_tokens)::bigint,"
                " sum(output_tokens)::bigint, sum(unpriced_attempts)::bigint,"
                " if(count(*) = count(unpriced_ceiling_usd), sum(unpriced_ceiling_usd), null),"
                " sum(in_doubt_attempts)::bigint,"
                " if(count(*) = count(in_doubt_ceiling_usd), sum(in_doubt_ceiling_usd), null)"
                " from tier_breakdown group by tier"
            ).fetchall()
        return sorted((_Tier(*row) for row in rows), key=lambda row: tier_rank(row.tier))

    def _path(self) -> Path:
        if self._opened is not None:
            return self._opened.path
        if self._given is None:
            from ledger.settings import Settings

            self._given = Settings.load().ledger_path.absolute()  # once: a chdir does not move the books
        return self._given if isinstance(self._given, Path) else self._given.path


def _total(tiers: Sequence[_Tier]) -> Decimal | None:
    """The priced part of all tiers; None where there are some and nothing is priced."""
    priced = [tier.cost_usd for tier in tiers if tier.cost_usd is not None]
    return total(priced) if priced or not tiers else None


def _warn_of(what: str, lacking: Sequence[tuple[int, Decimal | None]], session_id: str) -> None:
    """Log how many attempts a cost lacks, and the most they can have cost; nothing where it lacks none."""
    attempts = sum(count for count, _ in lacking)
    ceilings_usd = [ceiling_usd for _, ceiling_usd in lacking if ceiling_usd is not None]
    is_bounded = len(ceilings_usd) == len(lacking)
    most = f"at most ${total(ceilings_usd):f}" if is_bounded else "an amount without a bound"
    if attempts:
        _log.warning("session %s: %d attempts %s; its cost lacks %s", session_id, attempts, what, most)


def _summary(session_id: str | None, tiers: Sequence[_Tier]) -> str:
    unpriced = sum(tier.unpriced_attempts for tier in tiers)
    title = "All Sessions" if session_id is None else f"Session {session_id}"
    lines = [
        f"{title} Cost Summary:",
        f"  Total Cost: {_shown(_total(tiers), unpriced)}",
        f"  Total Requests: {sum(tier.requests for tier in tiers):,}",
        f"  Input Tokens: {sum(tier.input_tokens for tier in tiers):,}",
        f"  Output Tokens: {sum(tier.output_tokens for tier in tiers):,}",
        *([f"  Unpriced Attempts: {unpriced:,}"] if unpriced else []),
        "",
        "Model Breakdown:",
    ]
    for tier in tiers:
        cost = _shown(tier.cost_usd, tier.unpriced_attempts)
        counts = f"{tier.requests} requests, {tier.input_tokens} in, {tier.output_tokens} out"
        lines.append(f"  {tier.tier}: {cost} ({counts})")
    return "\n".join(lines)


def _shown(cost_usd: Decimal | None, unpriced_attempts: int) -> str:
    """Dollars to 4 places, half-even, or to 2 digits where these are further down: $0.0123, $0.0000068.

    What is not known, and what is not nothing, is never shown as $0.
    """
    if cost_usd is None:
        return "unpriced" if unpriced_attempts else "unknown"
    four_places = cost_usd.quantize(_SHOWN_PLACES, ROUND_HALF_EVEN, MONEY)
    two_digits = cost_usd.quantize(
        Decimal((0, (1,), max(cost_usd.adjusted() - 1, -12))), ROUND_HALF_EVEN, MONEY
    )
    hides_a_digit = abs(cost_usd) < 10 * _SHOWN_PLACES and four_places != two_digits
    return f"${two_digits if hides_a_digit else four_places:f}"
