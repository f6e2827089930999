"""Exact amounts of US dollars, whatever decimal context the program around us has set.

usd(amount)       as the ledger holds it: 12 places, half-even; None where that cannot be
pico, dollars     the same as whole numbers of 1e-12 USD, and back
total(amounts)    a sum that is exact
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_EVEN, Context, Decimal, DecimalException, InvalidOperation
from functools import lru_cache

MONEY_PLACES = 12
MONEY = Context(prec=60, rounding=ROUND_HALF_EVEN, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation])
_QUANTUM = Decimal(1).scaleb(-MONEY_PLACES)
_BOUND_DIGITS = 6  # below a million dollars

__all__ = ["MONEY", "MONEY_PLACES", "dollars", "known_pico", "pico", "plain", "total", "usd"]


def usd(amount: Decimal | str | int) -> Decimal | None:
    """An amount in USD as the ledger holds it: 12 decimal places, rounded half-even.

    None where it is not a finite number or its size is a million dollars or more: a figure that
    decimal(18,12) cannot hold is not known, rather than wrong.
    """
    try:
        value = amount if isinstance(amount, Decimal) else Decimal(amount)
        if not value.is_finite() or value.adjusted() >= _BOUND_DIGITS:
            return None
        value = value.quantize(_QUANTUM, context=MONEY)
    except (DecimalException, ValueError):
        return None
    return value if value.adjusted() < _BOUND_DIGITS else None


def pico(amount: Decimal | str) -> int:
    """USD as a whole number of 1e-12 USD; exact for what a ledger's decimal holds."""
    return int(Decimal(amount).scaleb(MONEY_PLACES, context=MONEY))


known_pico = lru_cache(maxsize=1_024)(pico)
"""The same, remembered: limits and ceilings come again and again."""


def dollars(amount: int) -> Decimal:
    """A whole number of 1e-12 USD as USD; exact."""
    return Decimal(amount).scaleb(-MONEY_PLACES, context=MONEY)


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The sum of amounts in USD, exact; 0 of none."""
    summed = Decimal(0)
    for amount in amounts:
        summed = MONEY.add(summed, amount)
    return summed


def plain(amount: Decimal) -> str:
    """An amount with no more digits than it has."""
    return format(amount.normalize(MONEY), "f")
