"""What a simulated provider is told to answer: a `Reply`, and ready ones for the usual faults.

    Reply()                                    a plausible answer, made from the seed
    Reply(text="ok", usage=Tokens(1000, 200))  an answer in the test's own words and numbers
    Reply(tool_call=ToolCall("click", {"selector": "#login"}))
    Reply(status=429, headers={"retry-after": "1"})      with the body that provider sends for it
    rate_limited(retry_after=1), overloaded(), silent(), reset(), cut(after=40), …
    stalled(after=3), error_in_stream(after="finish"), …  for streams

A Reply says nothing about the wire format: the provider that was asked gives it its shape.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple


class Tokens(NamedTuple):
    """Tokens of one answer in disjoint buckets; `reasoning_tokens` is a part of `output_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt, cached or not."""
        return (
            self.input_tokens
            + self.cache_read_tokens
            + self.cache_write_5m_tokens
            + self.cache_write_1h_tokens
        )


class ToolCall(NamedTuple):
    name: str
    input: Mapping[str, object]


Called = tuple[str, Mapping[str, object]]  # a tool and its input; a ToolCall is one


class Price(NamedTuple):
    """USD per million tokens, from which OpenRouter's reported cost is computed."""

    input: Decimal
    output: Decimal
    cache_read: Decimal


BUGHIVE_PRICES: Mapping[str, Price] = {
    "deepseek/deepseek-chat": Price(Decimal("0.27"), Decimal("1.10"), Decimal("0.027")),
    "deepseek/deepseek-coder": Price(Decimal("0.14"), Decimal("0.28"), Decimal("0.014")),
    "qwen/qwen-2.5-72b-instruct": Price(Decimal("0.15"), Decimal("0.60"), Decimal("0.015")),
    "qwen/qwen-2.5-32b-instruct": Price(Decimal("0.06"), Decimal("0.24"), Decimal("0.006")),
}

ErrorWord = Literal[
    "invalid_request",
    "context_length_exceeded",
    "content_filtered",
    "authentication_failed",
    "insufficient_credits",
    "spend_limit_reached",
    "permission_denied",
    "not_found",
    "request_too_large",
    "rate_limited",
    "overloaded",
    "server_error",
]


Then = Literal["rest", "end", "open", "cut", "reset"]


@dataclass(frozen=True, kw_only=True)
class Broken:
    """How a stream goes wrong: what is said at one point of it that should not be, and what then.

    after         so many deltas have been sent (text, thinking, tool calls; what goes before each
                  comes too), but none from the finish on; 0: nothing at all has been. "finish": the
                  event with the reason to stop has been, "usage": that with the final usage too (with
                  Anthropic they are one)
    data          the data of an event that is said then; error: one of the provider's own error
                  events, with the reply's `message`
    then          the rest follows; or a proper end of the HTTP body; or the connection stays open, is
                  closed within a chunk, or is reset
    keep_alive_s  while it stays open a comment (OpenRouter) or a ping (Anthropic) comes so often
    """

    after: int | Literal["finish", "usage"]
    then: Then
    data: bytes | None = None
    error: ErrorWord | None = None
    keep_alive_s: float | None = None

    @property
    def fault(self) -> str:
        """One word for it, as in `Reply.fault`."""
        if self.error is not None or self.data is not None:
            return self.error or "malformed_chunk"
        return {"open": "stalled", "cut": "cut", "reset": "reset"}.get(self.then, "ended_early")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One scripted answer. What is not given is made from the seed.

    thinking    what the model thinks before it answers; part of the output tokens
    tool_call   one tool the model calls; tool_calls: several
    body        JSON (dict, list) or raw bytes in place of what the provider would send
    error       with an error status: which of the provider's error bodies; default by status
    message     the provider's words in that error body
    cost        OpenRouter only: "computed" from the price table (absent for a model without a
                price), "absent", or a figure
    delay_s     seconds before the first byte
    cut_after   bytes of the body that are sent; then the connection is closed. A stream is cut there
                too, unless `broken` says where
    drip        (bytes, seconds): the body comes in pieces of so many bytes, so far apart;
                (pieces, seconds) where it comes in HTTP chunks, as every stream does
    silence     nothing is ever sent; ends when the client leaves or the simulator stops
    reset       the connection is reset (RST) in place of an answer
    endless     the head, or the body, goes on until the client leaves
    pieces      how many the text of a stream comes in, exactly, empty ones too where it is shorter;
                default: one per four characters. Without a `text`, four characters for each are made
    split       bytes per HTTP chunk, wherever that cuts; default: a chunk per event of a stream, and
                a content-length for all else
    broken      how a stream goes wrong on its way; an unstreamed answer stays whole
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    text: str | None = None
    thinking: str | None = None
    tool_call: Called | None = None
    tool_calls: Sequence[Called] = ()
    stop_reason: str | None = None
    usage: Tokens | None = None
    cost: Decimal | Literal["computed", "absent"] = "computed"
    error: ErrorWord | None = None
    message: str | None = None
    delay_s: float = 0.0
    cut_after: int | None = None
    drip: tuple[int, float] | None = None
    silence: bool = False
    reset: bool = False
    endless: Literal["head", "body"] | None = None
    pieces: int | None = None
    split: int | None = None
    broken: Broken | None = None

    @property
    def called(self) -> tuple[Called, ...]:
        """All tools the model calls, in their order."""
        return (*([self.tool_call] if self.tool_call else []), *self.tool_calls)

    @property
    def fault(self) -> str | None:
        """One word for what is wrong with this answer; None: nothing is."""
        if self.endless:
            return "endless"
        if self.reset or self.silence:
            return "reset" if self.reset else "silence"
        if self.broken is not None:
            return self.broken.fault
        if self.cut_after is not None or self.drip is not None:
            return "cut" if self.cut_after is not None else "drip"
        if self.error is not None or self.status >= 400:
            return self.error or ERROR_OF_STATUS.get(self.status, "server_error")
        return "delay" if self.delay_s else None


ERROR_OF_STATUS: Mapping[int, ErrorWord] = {
    400: "invalid_request",
    401: "authentication_failed",
    402: "insufficient_credits",
    403: "permission_denied",
    404: "not_found",
    413: "request_too_large",
    429: "rate_limited",
    503: "overloaded",
    529: "overloaded",
}


def rate_limited(retry_after: float | str | None = None) -> Reply:
    """429; `retry_after` in seconds, or an HTTP date as it stands in the header."""
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return Reply(status=429, headers=headers)


def overloaded(status: int = 529) -> Reply:
    return Reply(status=status, error="overloaded")


def server_error(status: int = 500) -> Reply:
    return Reply(status=status, error="server_error")


def invalid_request(message: str | None = None) -> Reply:
    return Reply(status=400, message=message)


def context_length_exceeded() -> Reply:
    return Reply(status=400, error="context_length_exceeded")


def content_filtered() -> Reply:
    """Refused by policy before anything was generated: 400 or 403, as each provider has it."""
    return Reply(status=403, error="content_filtered")


def authentication_failed() -> Reply:
    return Reply(status=401)


def insufficient_credits() -> Reply:
    return Reply(status=402)


def spend_limit_reached() -> Reply:
    """The account's own limit: a 429 that no waiting helps against."""
    return Reply(status=429, error="spend_limit_reached")


def not_found() -> Reply:
    return Reply(status=404)


def error_in_answer(error: ErrorWord = "server_error") -> Reply:
    """An error body under HTTP 200."""
    return Reply(status=200, error=error)


def unreadable() -> Reply:
    """HTTP 200 with a page in place of JSON."""
    return Reply(headers={"content-type": "text/html"}, body=b"<html><body>Bad gateway</body></html>")


def redirect(to: str) -> Reply:
    """Sends the client elsewhere: its key is not to travel with it."""
    return Reply(status=307, headers={"location": to}, body=b"")


def truncated_gzip() -> Reply:
    """A packed answer that ends in the middle, by a content-length that fits it."""
    packed = gzip.compress(bytes(range(256)) * 16)
    return Reply(headers={"content-encoding": "gzip"}, body=packed[: len(packed) // 2])


def gzip_bomb(unpacked_bytes: int = 1 << 30) -> Reply:
    """About a thousandth of the bytes it has when unpacked."""
    packer, piece = zlib.compressobj(wbits=31), bytes(1 << 20)
    packed = b"".join(packer.compress(piece) for _ in range(unpacked_bytes >> 20)) + packer.flush()
    return Reply(headers={"content-encoding": "gzip"}, body=packed)


def endless(what: Literal["head", "body"]) -> Reply:
    return Reply(endless=what)


def silent() -> Reply:
    return Reply(silence=True)


def reset() -> Reply:
    return Reply(reset=True)


def cut(after: int) -> Reply:
    return Reply(cut_after=after)


def event_stream(sent: bytes, *, split: int | None = None) -> Reply:
    """An event stream of the test's own, as it is; in HTTP chunks of `split` bytes, or in one piece."""
    return Reply(headers={"content-type": "text/event-stream"}, body=sent, split=split)


def stalled(after: int | Literal["finish", "usage"], *, keep_alive_s: float | None = None) -> Reply:
    """A stream in which nothing more comes, or nothing but a sign of life every `keep_alive_s`."""
    return Reply(broken=Broken(after=after, then="open", keep_alive_s=keep_alive_s))


def cut_in_stream(after: int | Literal["finish", "usage"], *, how: Literal["cut", "reset"] = "cut") -> Reply:
    """A stream whose connection is closed, or reset, in the middle of an event."""
    return Reply(broken=Broken(after=after, then=how))


def ended_early(after: int | Literal["finish", "usage"]) -> Reply:
    """A stream whose HTTP body ends as it should, but not what is told in it."""
    return Reply(broken=Broken(after=after, then="end"))


def error_in_stream(
    after: int | Literal["finish", "usage"],
    error: ErrorWord = "overloaded",
    *,
    message: str | None = None,
    then: Then = "end",
) -> Reply:
    """A stream under HTTP 200 with an error event in it; after=0: that is the first one."""
    return Reply(broken=Broken(after=after, error=error, then=then), message=message)


def malformed_chunk(after: int | Literal["finish", "usage"], data: bytes = b'{"choices": [{') -> Reply:
    """A stream with one more event, whose data is no JSON; the rest of it follows."""
    return Reply(broken=Broken(after=after, data=data, then="rest"))


def without_done() -> Reply:
    """A whole stream, usage too, but for `[DONE]` or `message_stop`, and with no end."""
    return stalled("usage")
