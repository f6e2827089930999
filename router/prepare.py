"""A call made ready for one target: the bytes to send, and the most they can cost."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from ledger.budgets import ceiling_usd
from ledger.errors import BudgetError, UnboundedRequest, UnpricedModel
from ledger.prices import ModelPrices
from router.catalog import Route
from router.providers.client import Call, PricesPerMtok, ProviderClient, StreamLimits
from router.providers.wire import encoded

_NO_CEILING_FROM = 1_000_000  # USD; the ledger holds no such amount


class Target(NamedTuple):
    """A tier that may be asked: how it is reached, what it is asked, and how patiently."""

    route: Route
    client: ProviderClient
    call: Call
    timeout_s: float  # for one attempt
    max_retries: int  # further attempts after the first
    limits: StreamLimits = StreamLimits()  # where the call is streamed


PROMPT_FIELDS = ("system", "messages", "tools")  # of a request body, what the model reads


class Prepared(NamedTuple):
    """A call as one target is sent it. `ceiling` is the most it can cost in USD, or why that is not known.

    `prompt` is the part of `body` that the model reads, as JSON: equal prompts are equal here, however
    they are asked for.
    """

    body: bytes
    prompt: bytes
    prices: ModelPrices | None
    ceiling: Decimal | BudgetError
    is_hard: bool = False  # made ready for a hard limit


def prepare(target: Target, prices: ModelPrices | None, *, hard: bool) -> Prepared:
    """Raises InvalidRequest for what cannot be sent to this target. `hard`: under a hard budget."""
    route, client, call = target.route, target.client, target.call
    body = client.body(call, route.model, _max_price(prices) if hard and prices else None)
    prompt = encoded({name: body[name] for name in PROMPT_FIELDS if name in body})
    rest = encoded({name: value for name, value in body.items() if name not in PROMPT_FIELDS})
    sent = rest[:-1] + b"," + prompt[1:]
    try:
        why = client.dialect.why_unbounded(body)
        if why is not None:
            raise UnboundedRequest(f"{why} has no bound on its cost; leave it out, or lift the hard budget")
        if prices is None:
            raise UnpricedModel(f"{route.model} has no price; add it under [[prices]]")
        return Prepared(sent, prompt, prices, _ceiling(prices, body, sent, call.max_tokens), hard)
    except BudgetError as refusal:
        return Prepared(sent, prompt, prices, refusal, hard)


def _ceiling(prices: ModelPrices, body: Mapping[str, Any], sent: bytes, max_tokens: int) -> Decimal:
    n = body.get("n")
    ceiling = ceiling_usd(
        prices,
        sent,
        message_count=len(body["messages"]),
        has_tools="tools" in body,
        max_tokens=max_tokens,
        answers=n if isinstance(n, int) and n > 1 else 1,
    )
    if ceiling >= _NO_CEILING_FROM:
        raise UnboundedRequest("the request may cost a million dollars or more")
    return ceiling


def _max_price(prices: ModelPrices) -> PricesPerMtok | None:
    """The dearest context tier of the book, as the most that may be paid."""
    prompts = [units.input for units in prices.all_units() if units.input is not None]
    completions = [units.output for units in prices.all_units() if units.output is not None]
    return PricesPerMtok(max(prompts), max(completions)) if prompts and completions else None
