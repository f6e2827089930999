"""One attempt, streamed: pieces of a body ─▶ events ─▶ chunks ─▶ items, and at the end an Answer.

An answer is whole when its finish was seen. What comes after that is waited for briefly: usage that stands
last, the `[DONE]` that some leave out. Whatever ends before it is a failure, with what is known of its use.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import httpx

from ledger.events import ErrorType
from ledger.prices import Usage
from ledger.secrecy import Secret, frameless
from router.errors import ProviderError
from router.providers.client import Assembler, Dialect
from router.providers.echo import answer_without_key, read_without_key
from router.providers.failures import failure_in_stream, failure_to_read, failure_to_stream
from router.providers.network import Patience
from router.providers.sse import EventReader, TooLong
from router.providers.transport import (
    TIMEOUTS,
    TROUBLE,
    Channel,
    Headers,
    Opened,
    begin,
    failure_from,
    reply_of,
    unpacked_pieces,
    unquoted,
)
from router.providers.wire import Answer, Reply, chunk_of
from router.streams import StreamItem, TextDelta, ToolCallDelta

FINISH_S = 2.0  # for usage, after the finish
DONE_S = 0.1  # for the end of the body, after [DONE]: then the connection can be kept
_MEMBERS_OF_CHUNKS = (b'"id"', b'"type"', b'"object"', b'"choices"', b'"delta"', b'"content"')
_UNREADABLE = Answer(
    *("", (), Usage(), "end_turn", None, None, None),
    usage_suspect="what came cannot be read: it is nested too deeply",
    usage_known=False,
)

_log = logging.getLogger("router")


class Limits(NamedTuple):
    """Seconds: for an attempt as a whole, until its first token, and between two chunks."""

    timeout_s: float
    first_token_s: float
    idle_s: float


class Ask(NamedTuple):
    """What is sent, to whom, and how it is spoken to."""

    channel: Channel
    provider: str
    dialect: Dialect
    key: Secret
    url: httpx.URL
    headers: Headers
    body: bytes


class Reading:
    """An answer as it comes: iterate once for its items; then `answer` is there.

    `partial()` is what is known of one that did not come to its end. Iterating raises ProviderError where
    there is no whole answer.
    """

    answer: Answer

    def __init__(self, ask: Ask, limits: Limits) -> None:
        self._ask = ask
        self._limits = limits
        self._patience = Patience(limits.timeout_s)
        self._patience.wait_at_most(limits.first_token_s, "first token")
        self._stage: Literal["start", "flow", "finish", "done"] = "start"
        self._assembler: Assembler = ask.dialect.assembler()
        self._head: Reply | None = None
        self._trouble: Exception | None = None  # what broke the stream off
        self._has_events = False
        self._is_heard = False  # the last piece had a part of the answer
        self._has_noise = False  # something that is no chunk was left out
        self._is_damaged = False  # a chunk could not be read, and a part of the answer with it

    def __iter__(self) -> Iterator[StreamItem]:
        ending: BaseException
        try:
            yield from self._items()
            return
        except (ProviderError, KeyboardInterrupt, SystemExit) as raised:
            ending = frameless(raised)  # the frames of the reading hold what came, which may echo the key
        raise ending

    def _items(self) -> Iterator[StreamItem]:
        ask = self._ask
        opened = begin(ask.channel, ask.provider, ask.url, ask.headers, ask.body, self._patience)
        if not 200 <= opened.status < 300 or "json" in opened.headers.get("content-type", ""):
            self.answer = self._read_whole(opened)
            yield from _items_of(self.answer)
            return
        head = self._head = Reply(opened.status, opened.headers, b"")
        try:
            for events in self._events(opened):
                self._has_events = self._has_events or bool(events)
                for data in events:
                    yield from self._taken(data)
        except TooLong as error:  # all of it together
            self._trouble = error
        finally:
            opened.close()
        self.answer = self._whole_answer(head)

    def partial(self) -> Answer | None:
        """What came so far of an answer that is not whole; None: nothing that could have been billed."""
        if self._head is None or not self._assembler.begun:
            return None
        return self._put_together(self._head) or _UNREADABLE

    def _put_together(self, head: Reply) -> Answer | None:
        """What has come; None where it is nested too deeply to be read."""
        try:
            return answer_without_key(self._ask.key, self._assembler.answer(head))
        except RecursionError:
            return None

    def _read_whole(self, opened: Opened) -> Answer:
        """The answer, or the error, of a provider that does not stream it; closes what was opened."""
        ask = self._ask
        outcome: Answer | ProviderError
        try:
            reply = reply_of(opened, self._patience)
            outcome = read_without_key(ask.key, ask.provider, ask.dialect, reply)
        except TROUBLE as error:
            outcome = failure_from(error, ask.provider, ask.url.host, self._patience)
        if isinstance(outcome, ProviderError):
            raise outcome
        return outcome

    # the stream

    def _events(self, opened: Opened) -> Iterator[list[bytes]]:
        """The events that each piece completes, while more may come. What breaks it off becomes `_trouble`.

        Nothing but reading happens inside of this `try`: what a caller raises between two items is theirs.
        """
        reader = EventReader()
        try:
            for piece in unpacked_pieces(opened):
                self._is_heard = False
                if events := reader.feed(piece):
                    yield events
                if not self._may_go_on():
                    raise TimeoutError
            yield reader.end()
        except (*TROUBLE, TooLong) as error:
            self._trouble = error

    def _may_go_on(self) -> bool:
        """Set how long to wait for the next piece; whether there is any time to.

        What the caller took for the last items counts for no silence. A sign of life that is no part of the
        answer, a comment or a ping, ends none: a provider may send those for ever.
        """
        state, patience, stage = self._assembler, self._patience, self._stage
        if state.done or state.finished or state.error:
            self._stage = "done" if state.done else "finish"
            if stage != self._stage:
                patience.wait_at_most(DONE_S if state.done else FINISH_S, "end")
                return True
            return patience.left() > 0
        if stage == "start" and state.flowing:
            self._stage = "flow"
            patience.wait_at_most(self._limits.idle_s, "further chunk")
        elif self._is_heard and stage == "flow":
            return patience.heard()
        return patience.left() > 0

    def _taken(self, data: bytes) -> Sequence[StreamItem]:
        """The items of one event."""
        data = data.lstrip()
        if data.startswith(b"[DONE]"):
            self._assembler.done = True
            return ()
        try:
            chunk = chunk_of(data)
            if isinstance(chunk, dict):
                items = self._assembler.take(chunk, data)
                self._is_heard = self._is_heard or items is not None
                return items or ()
        except (ValueError, RecursionError):  # no JSON, or no chunk
            pass
        self._has_noise = True
        self._is_damaged = self._is_damaged or _may_be_a_chunk(data)
        _log.debug("an event of %s, of %d bytes, cannot be read", self._ask.provider, len(data))
        return ()

    # its end

    def _whole_answer(self, head: Reply) -> Answer:
        """What was put together. Raises ProviderError where it is not all of the answer."""
        is_whole = not self._assembler.error and self._is_whole()
        answer = self._put_together(head) if is_whole else None
        if answer is None:
            raise self._failure(head)
        return answer

    def _failure(self, head: Reply) -> ProviderError:
        ask, state = self._ask, self._assembler
        request_id = ask.key.hidden_in(ask.dialect.request_id_of(head) or "") or None
        if state.error:
            said = state.error._replace(said=ask.key.hidden_in(state.error.said))
            return failure_in_stream(ask.provider, head, said, self.partial(), request_id, state.has_usage)
        if not self._has_events and self._trouble is None:
            return failure_to_read(ask.provider, head, "it has neither JSON nor events", request_id)
        error_type, why = self._why_broken()
        return failure_to_stream(
            ask.provider, head, error_type, why, self.partial(), request_id, state.has_usage
        )

    def _is_whole(self) -> bool:
        """Whether the answer is all there: its finish was seen, or some that leave it out count the whole.

        What was left out must be proven to be none of it: by all that may come having come.
        """
        state = self._assembler
        is_counted = state.done and state.has_usage
        if self._is_damaged or (self._has_noise and not is_counted):
            return False
        return state.finished or (is_counted and state.flowing)

    def _why_broken(self) -> tuple[ErrorType, str]:
        host, trouble = self._ask.url.host, self._trouble
        if isinstance(trouble, TIMEOUTS):
            return "timeout", self._patience.told(host)
        if isinstance(trouble, (TooLong, httpx.DecodingError)):
            return "malformed_response", f"the answer of {host} cannot be read: {unquoted(trouble)}"
        if trouble is not None:
            return "stream_interrupted", f"the answer of {host} was cut: {unquoted(trouble)}"
        if self._is_whole():
            return "malformed_response", f"the answer of {host} cannot be read: it is nested too deeply"
        if self._has_noise:
            return "stream_interrupted", f"a part of the answer of {host} cannot be read"
        return "stream_interrupted", f"the answer of {host} ended before its finish"


def _may_be_a_chunk(data: bytes) -> bool:
    """Whether what cannot be read may have been a chunk, or the beginning of one."""
    is_begun = data.startswith(b"{") and data[1:].lstrip()[:1] in (b"", b'"')
    return is_begun or any(member in data for member in _MEMBERS_OF_CHUNKS)


def _items_of(answer: Answer) -> Iterator[StreamItem]:
    """The items of an answer that came in one piece."""
    if answer.content:
        yield TextDelta(answer.content)
    for index, call in enumerate(answer.tool_calls):
        given = call.get("input_raw") or json.dumps(call["input"])
        yield ToolCallDelta(index, call["id"], call["name"], given)
