"""What every answer becomes, whoever gave it. Pure: bytes in, an Answer out.

    Reply      status, headers, body          as it came
    Answer     content, tool calls, usage …   what was made of it

Whatever comes from outside is bounded here, so that the event that records an answer can always
be made: an answer that was paid for is never lost to a strange number or name in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NamedTuple

from ledger.events import plain_text
from ledger.money import usd
from ledger.prices import Usage
from ledger.secrecy import scrubbed
from router.errors import InvalidRequest
from router.types import ClientResponse, ToolCall, UsageReport

TOKENS_BOUND = 2**53
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _exact(spelt: str) -> Decimal:
    """A number as it is spelt; NaN for one that no decimal can be."""
    try:
        return Decimal(spelt)
    except InvalidOperation:
        return Decimal("NaN")


def _whole(spelt: str) -> int | Decimal:
    """A whole number, of however many digits."""
    return int(spelt) if len(spelt) < 1_000 else _exact(spelt)


_DECODER = json.JSONDecoder(parse_float=_exact, parse_constant=_exact)
_PATIENT_DECODER = json.JSONDecoder(parse_float=_exact, parse_constant=_exact, parse_int=_whole)
_USAGE_BOUND = 60_000
_NAME_LOOKED_AT = 4_000  # characters; 256 are kept


class Reply(NamedTuple):
    """An HTTP answer as it came; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Pass(NamedTuple):
    """One run of a model inside an answer; `model` None: the one that was asked."""

    model: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, and what it used.

    `cost_usd` is what the provider says it billed, None where it does not say; with one's own
    upstream key (`is_byok`) `upstream_cost_usd` is in it. `usage` is all of it; where a model ran
    several times `passes` are its parts, each with a price of its own.
    `service_tier` is what the price depends on; None: the provider says nothing of it.
    `usage_suspect` says why the provider's numbers cannot all be right; not `usage_known`: what was
    billed is not, or not only, what `usage` counts, so that it has no list price.
    """

    content: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    stop_reason: str
    provider_stop_reason: str | None
    model: str | None
    id: str | None
    cost_usd: Decimal | None = None
    upstream_cost_usd: Decimal | None = None
    is_byok: bool | None = None
    upstream_provider: str | None = None
    service_tier: str | None = None
    passes: tuple[Pass, ...] = ()
    usage_json: str | None = None
    usage_suspect: str | None = None
    usage_known: bool = True
    http_status: int = 200
    provider_request_id: str | None = None

    def as_response(self, model: str) -> ClientResponse:
        """As the clients return it; `model` is the one asked for, where the answer names none."""
        return {
            "content": self.content,
            "tool_calls": list(self.tool_calls),
            "usage": usage_report(self.usage),
            "stop_reason": self.stop_reason,
            "model": self.model or model,
            "id": self.id,
            "cost": self.cost_usd,
        }


def usage_report(usage: Usage) -> UsageReport:
    """The token buckets under the names callers know."""
    return {
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_5m_tokens": usage.cache_write_5m_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def added(usages: Iterable[Usage]) -> Usage:
    """Usages added up, bucket by bucket."""
    return Usage(*(min(sum(counts), TOKENS_BOUND) for counts in zip(*usages, strict=True)))


# Bytes and JSON -------------------------------------------------------------------------------


def encoded(body: Mapping[str, Any]) -> bytes:
    """A request body as it is sent: compact UTF-8. Lone surrogates, which no provider takes, become ?.

    Raises InvalidRequest for what JSON cannot say.
    """
    try:
        text = _ENCODER.encode(body)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from error
    return text.encode("utf-8", "replace")


def decoded(body: bytes) -> Any:
    """JSON with its fractions as exact decimals. Raises ValueError for what is not JSON."""
    text = body.decode("utf-8-sig")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError:  # a whole number of thousands of digits, which Python's int refuses
        return _PATIENT_DECODER.decode(text)


def chunk_of(data: bytes) -> Any:
    """The JSON of one event of a stream, as decoded() reads it, but faster. Raises ValueError."""
    text = data.decode()
    try:
        chunk, end = _DECODER.raw_decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if end != len(text) and text[end:].strip():
        raise ValueError("something stands behind the JSON")
    return chunk


def plain(value: Any) -> Any:
    """Decoded JSON as callers expect it: floats for fractions."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def compact(value: Any) -> str:
    """Decoded JSON as text again, its decimals digit by digit; what is not a number becomes null."""
    if isinstance(value, dict):
        return "{" + ",".join([f"{_quoted(key)}:{compact(inner)}" for key, inner in value.items()]) + "}"
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else "null"
    if isinstance(value, list):
        return "[" + ",".join(map(compact, value)) + "]"
    return str(value) if type(value) is int else json.dumps(value)


def words_of(reply: Reply) -> str:
    """What a body that is no JSON object says, as one line without markup."""
    text = reply.body[:4_000].decode("utf-8", "replace")
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:500]


def table(value: Any) -> Mapping[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a JSON list; none where it is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def name(value: Any) -> str | None:
    """A name from outside as an event may hold it; None where there is nothing to hold."""
    if value is None or isinstance(value, (dict, list, bool)):
        return None
    text = scrubbed(str(value)[:_NAME_LOOKED_AT])
    if text.isascii() and text.isprintable():
        return text[:256].strip() or None
    return plain_text(text, 256).strip() or None


def arguments(call_id: str, called: Any, text: Any) -> ToolCall:
    """A tool call whose arguments came as text: empty ones are {}, what is no object is kept raw."""
    call: ToolCall = {"id": call_id, "name": str(called or ""), "input": {}}
    if isinstance(text, dict):
        return {**call, "input": plain(text)}
    if text is None or not str(text).strip():
        return call
    try:
        parsed = json.loads(str(text))
    except (ValueError, RecursionError):
        parsed = None
    return (
        {**call, "input": parsed}
        if isinstance(parsed, dict)
        else {**call, "input": None, "input_raw": str(text)}
    )


# Numbers --------------------------------------------------------------------------------------


class Numbers:
    """Reads a provider's numbers, and keeps a list of those that cannot be right.

    doubt(why)        a number is absent, or cannot be meant: what was used is no longer `known`
    note(why)         a number was taken in the one way it can be meant
    has_no_price()    something was billed that no usage counts and no price book prices
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.known = True

    def doubt(self, why: str) -> None:
        self.problems.append(why)
        self.known = False

    def note(self, why: str) -> None:
        self.problems.append(why)

    def has_no_price(self) -> None:
        self.known = False

    def required(self, source: Mapping[str, Any], key: str) -> int:
        """A count without which it is not known what was used."""
        if source.get(key) is None:
            self.doubt(f"{key} is not reported")
        return self.count(source, key)

    def count(self, source: Mapping[str, Any], key: str) -> int:
        """A number of tokens; 0 where there is none. What is no count is bounded, and doubted."""
        value = source.get(key)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
            self.doubt(f"{key} is {compact(value)[:40]}, not a number")
            return 0
        if isinstance(value, int) and 0 <= value <= TOKENS_BOUND:
            return value
        bounded = self._bounded(value)
        self.doubt(f"{key} is {value!s:.40}, taken as {bounded}")
        return bounded

    @staticmethod
    def _bounded(value: int | Decimal) -> int:
        if isinstance(value, Decimal) and value.is_nan():
            return 0
        return int(min(max(value, 0), TOKENS_BOUND))

    def searches(self, tools: Mapping[str, Any], free: Sequence[str] = ()) -> int:
        """How often the web was searched. No price is known for the requests of other tools."""
        priced = ("web_search_requests", *free)
        if any(uses and key.endswith("_requests") and key not in priced for key, uses in tools.items()):
            self.has_no_price()
        return self.count(tools, "web_search_requests")

    def cost(self, source: Mapping[str, Any], key: str) -> Decimal | None:
        """An amount in USD, exactly as spelt; None where there is none, or none that can be meant."""
        value = source.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
            self.doubt(f"{key} is {compact(value)[:40]}, not an amount")
            return None
        amount = usd(value)
        if amount is None or amount < 0:
            self.doubt(f"{key} is {value!s:.40}, which is no amount")
            return None
        return amount

    def suspect(self) -> str | None:
        """Why the numbers cannot all be right, in one bounded line; None where they can."""
        return plain_text(scrubbed("; ".join(dict.fromkeys(self.problems)))) if self.problems else None


def verbatim(body: bytes, usage: Any) -> str | None:
    """The provider's usage object as it stands in the body, its numbers as they are spelt there.

    Without what looks like a key. None where there is none, or it is out of all bounds.
    """
    if not isinstance(usage, dict):
        return None
    at = body.find(b"{", body.rfind(b'"usage"'))
    text = body[at : at + _USAGE_BOUND].decode("utf-8", "replace")
    try:
        found, end = _DECODER.raw_decode(text)
    except ValueError:
        found, end = None, 0
    told = scrubbed(text[:end] if found == usage else compact(usage))
    return told if len(told) <= _USAGE_BOUND else None
