"""What the ledger refuses, and the root of every error of this project.

BughiveError                 carries request_id where there is one
  LedgerError                the ledger cannot be read or written as asked
    DamagedLedger            its files contradict each other: nothing is guessed
    LedgerBusy               another process is at it, and did not let go in time
    NoSuchSession            asked for by name and not there; names the nearest
  BudgetError                refused before any byte is sent
    BudgetExceeded           a limit would not hold
    UnpricedModel            a hard budget, and no price for the model
    UnboundedRequest         a hard budget, and a request whose cost has no bound
  SettingsError              a setting that cannot be meant: file, line, what was expected
  RouterError, ProviderError in router.errors
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self

from ledger.money import plain

if TYPE_CHECKING:
    from ledger.budgets import Balance, Limit


class BughiveError(Exception):
    """Root of all errors raised by `router`, `ledger` and `reports`; one line of text each."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class LedgerError(BughiveError):
    """The ledger cannot do what was asked; says what, where, and what to do."""


class DamagedLedger(LedgerError):
    """A file of the ledger is missing, altered or cut in the middle."""


class LedgerBusy(LedgerError):
    """Another process or thread holds what is needed; trying again may help."""


class NoSuchSession(LedgerError):
    """A session asked for by name that has no events."""


class SettingsError(BughiveError):
    """A setting that cannot be used; names the file and line, and what was expected."""


_DENIAL = (
    *("scope", "scope_id", "tz", "limit_usd", "spent_usd", "reserved_usd", "in_doubt_usd", "asked_usd"),
)


class BudgetError(BughiveError):
    """A request refused before any byte was sent.

    The limit that would not hold, and what counted against it, all in USD; None where no limit is told of.
    """

    scope: str | None = None
    scope_id: str | None = None  # of a day or a month: which one, in the zone `tz`
    tz: str | None = None
    limit_usd: Decimal | None = None
    spent_usd: Decimal | None = None
    reserved_usd: Decimal | None = None
    in_doubt_usd: Decimal | None = None
    asked_usd: Decimal | None = None  # None: not known

    def facts(self) -> dict[str, Any]:
        """The limit and what counted against it, as a denial is recorded."""
        return {name: getattr(self, name) for name in _DENIAL}

    def on(self, limit: Limit, balance: Balance) -> Self:
        """The same refusal, told of a limit."""
        told = type(self)(
            f"the budget of {limit.scope} {limit.scope_id}".rstrip() + f" cannot hold: {self}",
            request_id=self.request_id,
        )
        told.scope, told.scope_id, told.tz = limit.scope, limit.scope_id or None, limit.tz
        told.limit_usd = limit.limit_usd
        told.spent_usd, told.reserved_usd, told.in_doubt_usd = balance
        return told


class UnpricedModel(BudgetError):
    """The model has no price in force, so a hard budget cannot hold."""


class UnboundedRequest(BudgetError):
    """The request may cost more than can be told beforehand, so a hard budget cannot hold."""


class BudgetExceeded(BudgetError):
    """A limit would not hold: spent + reserved + in doubt + asked is above it. All amounts in USD."""

    scope: str
    limit_usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal
    in_doubt_usd: Decimal
    asked_usd: Decimal

    def __init__(
        self,
        *,
        scope: str,
        scope_id: str | None,
        limit_usd: Decimal,
        spent_usd: Decimal,
        reserved_usd: Decimal,
        in_doubt_usd: Decimal,
        asked_usd: Decimal,
        tz: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(
            f"budget of {scope} {scope_id or ''}".rstrip()
            + f" exceeded: limit ${plain(limit_usd)}, spent ${plain(spent_usd)},"
            f" reserved ${plain(reserved_usd)}, in doubt ${plain(in_doubt_usd)},"
            f" asked ${plain(asked_usd)}; raise the limit or lower max_tokens",
            request_id=request_id,
        )
        self.scope, self.scope_id, self.tz = scope, scope_id or None, tz
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.reserved_usd = reserved_usd
        self.in_doubt_usd = in_doubt_usd
        self.asked_usd = asked_usd


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message that names what was perhaps meant; empty where nothing is near.

    >>> nearest("analyse_page", ["analyze_page", "classify_bug"])
    '; did you mean analyze_page?'
    """
    found = get_close_matches(word, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""
