"""What a request may cost at most, and whether a limit would still hold. Pure: no I/O, no clock.

A ceiling is reserved before anything is sent; the constants are empirical, and wide on purpose:
where an attempt does cost more, `ceiling_broken` is recorded beside its outcome.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple
from unicodedata import normalize

from ledger.errors import BudgetExceeded, UnpricedModel
from ledger.money import MONEY, total
from ledger.prices import ModelPrices

PROMPT_TOKENS_ALWAYS = 1_024  # a 189-byte prompt has been counted as 687 tokens
PROMPT_TOKENS_PER_MESSAGE = 16
PROMPT_TOKENS_WITH_TOOLS = 1_024

_PICODOLLAR = Decimal("0.000000000001")


class Hold(NamedTuple):
    """The ceiling of one attempt, held in its name while it is in flight."""

    attempt_id: str
    request_id: str
    session_id: str | None
    task: str
    tier: str
    model: str
    ceiling_usd: Decimal


class Limit(NamedTuple):
    """The most that may be spent in a scope, in USD."""

    scope: str
    scope_id: str
    limit_usd: Decimal


class Balance(NamedTuple):
    """What counts against a limit, in USD; `in_doubt_usd`: ceilings of attempts of unknown outcome."""

    spent_usd: Decimal = Decimal(0)
    reserved_usd: Decimal = Decimal(0)
    in_doubt_usd: Decimal = Decimal(0)


def prompt_tokens_at_most(body: bytes, message_count: int, has_tools: bool) -> int:
    """A bound on the prompt tokens of a request body: no tokenizer makes more tokens than bytes.

    NFKC because tokenizers may normalize, and one character can become several.
    """
    size = len(body) if body.isascii() else len(normalize("NFKC", body.decode("utf-8")).encode())
    return (
        max(size, len(body))
        + PROMPT_TOKENS_ALWAYS
        + PROMPT_TOKENS_PER_MESSAGE * message_count
        + (PROMPT_TOKENS_WITH_TOOLS if has_tools else 0)
    )


def ceiling_usd(
    prices: ModelPrices,
    body: bytes,
    *,
    message_count: int,
    has_tools: bool,
    max_tokens: int,
    answers: int = 1,
) -> Decimal:
    """The most one attempt with this body can cost, in USD, rounded up to 12 places.

    Prompt tokens count at the model's dearest prompt price over all columns and context tiers.
    Raises UnpricedModel where the model has no price for its prompt or its answer.
    """
    prompt_prices = [
        price
        for units in prices.all_units()
        for price in (units.input, units.cache_read, units.cache_write_5m, units.cache_write_1h)
        if price is not None
    ]
    output_prices = [units.output for units in prices.all_units() if units.output is not None]
    if not prompt_prices or not output_prices:
        raise UnpricedModel(f"no price for prompt and answer of {prices.model}; add them under [[prices]]")
    prompt = MONEY.multiply(prompt_tokens_at_most(body, message_count, has_tools), max(prompt_prices))
    answer = MONEY.multiply(max_tokens * answers + prices.overrun_tokens, max(output_prices))
    exact = MONEY.add(prompt, answer).scaleb(-6, context=MONEY)
    return exact.quantize(_PICODOLLAR, rounding=ROUND_CEILING, context=MONEY)


def check(limit: Limit, balance: Balance, hold: Hold) -> None:
    """Raise BudgetExceeded if the hold would take the balance above the limit; up to it is fine."""
    if total([*balance, hold.ceiling_usd]) > limit.limit_usd:
        raise BudgetExceeded(
            scope=limit.scope,
            scope_id=limit.scope_id,
            limit_usd=limit.limit_usd,
            spent_usd=balance.spent_usd,
            reserved_usd=balance.reserved_usd,
            in_doubt_usd=balance.in_doubt_usd,
            asked_usd=hold.ceiling_usd,
            request_id=hold.request_id,
        )
