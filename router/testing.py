"""A scripted provider for tests of your own: the real router and clients, no network, no waiting.

    from router.testing import FakeProvider, answer, fails

    def test_my_agent():
        with FakeProvider(answer("a form"), fails(429, retry_after=30), answer(tool="click")) as fake:
            my_agent(fake.router)

        assert fake.calls[0].task == "analyze_page"
        assert fake.event_types[-2:] == ["attempt_succeeded", "request_completed"]
        assert fake.cost_usd == Decimal("0.0123")

As a fixture, scripted by each test:

    @pytest.fixture
    def fake():
        with FakeProvider() as provider:
            yield provider

    def test_a_bug_is_classified(fake):
        fake.script(answer("high", input_tokens=1000, output_tokens=200), task="classify_bug")

All but the wire is real: bodies, wire formats, retries, fallbacks, budgets, and a ledger in a folder
of its own. Waits take no time, but count against deadline_s and in latency_s. Costs are by the price
book, with the [[prices]] of your bughive.toml.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from ledger.events import (
    AttemptAbandoned,
    AttemptCancelled,
    AttemptFailed,
    AttemptSucceeded,
    ErrorType,
    Event,
    RequestReceived,
    event_of,
)
from ledger.ledger import Ledger, utc_now
from ledger.lines import read_story
from ledger.prices import PriceBook
from ledger.request_log import RequestLog
from ledger.settings import CircuitSetting, Settings
from ledger.tracker import CostTracker
from router.catalog import Catalog, model_id
from router.providers.client import AnthropicClient, OpenRouterClient
from router.router import LLMRouter, tier_of
from router.simulator import (
    Reply,
    Tokens,
    answers,
    authentication_failed,
    content_filtered,
    context_length_exceeded,
    cut_in_stream,
    insufficient_credits,
    invalid_request,
    not_found,
    overloaded,
    rate_limited,
    reset,
    server_error,
    silent,
    spend_limit_reached,
    unreadable,
)
from router.simulator.responses import Stream, response_to

_OUTCOMES = (AttemptSucceeded, AttemptFailed, AttemptCancelled, AttemptAbandoned)

__all__ = ["Call", "FakeProvider", "NotAsScripted", "Reply", "Tokens", "answer", "fails"]


class NotAsScripted(AssertionError):
    """A strict fake was asked what it has no reply for, or was not asked for all it has."""


class Call(NamedTuple):
    """One HTTP call as the provider got it; `body` is in that provider's own shape.

    `task` and `session_id` are None for a client used without router and tracker.
    """

    provider: str
    model: str
    body: Mapping[str, Any]
    task: str | None
    session_id: str | None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, as this provider was sent it."""
        return list(self.body.get("messages", ()))


Script = Reply | Callable[[Call], Reply]


def answer(
    text: str | None = None,
    *,
    tool: str | None = None,
    input: Mapping[str, object] | None = None,
    tools: Sequence[tuple[str, Mapping[str, object]]] = (),
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    cache_read_tokens: int | None = None,
    stop_reason: str | None = None,
    cost_usd: Decimal | None = None,
) -> Reply:
    """An answer: a text, one tool called with its input, several `tools` called, or text and tools.

    Without text and tools it says something plausible. Without tokens it used a plausible number;
    where some are given, the others are 0. `stop_reason` is in Anthropic's words. `cost_usd` is what
    OpenRouter says it billed; Anthropic never says. Raises ValueError for an input without its tool.
    """
    if input is not None and tool is None:
        raise ValueError(f"input={dict(input)!r} needs tool=, the name of the tool it is for")
    tokens = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_tokens": cache_read_tokens,
    }
    given = {name: count for name, count in tokens.items() if count is not None}
    return Reply(
        text=text,
        tool_calls=[*([(tool, input or {})] if tool else []), *tools],
        usage=Tokens(**given) if given else None,
        stop_reason=stop_reason,
        cost="absent" if cost_usd is None else cost_usd,
    )


_FAILURES: Mapping[str, Reply] = {
    "rate_limited": rate_limited(),
    "overloaded": overloaded(),
    "server_error": server_error(),
    "timeout": silent(),
    "connection_failed": reset(),
    "authentication_failed": authentication_failed(),
    "permission_denied": Reply(status=403),
    "insufficient_credits": insufficient_credits(),
    "spend_limit_reached": replace(spend_limit_reached(), message="monthly spend limit reached"),
    "not_found": not_found(),
    "invalid_request": invalid_request(),
    "context_length_exceeded": context_length_exceeded(),
    "request_too_large": Reply(status=413),
    "content_filtered": content_filtered(),
    "malformed_response": unreadable(),
    "stream_interrupted": replace(cut_in_stream(after=4), cut_after=40),
}


def fails(
    why: int | ErrorType, *, retry_after: float | str | None = None, message: str | None = None
) -> Reply:
    """A failure, named by its HTTP status or by the `error_type` it is to become.

    `retry_after`: how long the provider asks to wait, in seconds or as an HTTP date. `message`: the
    words in its error. Raises ValueError for what is no failure.
    """
    failure = Reply(status=why) if isinstance(why, int) else _FAILURES.get(why)
    if failure is None or (isinstance(why, int) and not 400 <= why <= 599):
        raise ValueError(f"{why!r} is no failure: expected 400 to 599, {', '.join(_FAILURES)}")
    wait = {} if retry_after is None else {"retry-after": str(retry_after)}
    return replace(failure, headers={**failure.headers, **wait}, message=message or failure.message)


class FakeProvider:
    """Anthropic and OpenRouter in one, answering what a test has scripted; from `with` to its end.

    router       an `LLMRouter` whose providers and ledger these are; for the code under test
    anthropic, openrouter, tracker, ledger, transport    what it is made of, for other uses
    calls        what the providers were sent
    events, event_types, cost_usd    what is on the books

    All of it can be read after the end too. `replies` are used in order, whoever asks; `script()`
    adds more, also for one task or model. A call without a scripted reply gets a plausible answer,
    the same in every run under one `seed`; with `strict` it raises NotAsScripted, as does the end
    where replies are left over, or the code under test swallowed the first. A reply may also be a
    function from a `Call` to a reply. `catalog`, `max_retries`, `circuit`: as in LLMRouter, but without a
    circuit a model that fails is never left alone. Thread-safe.

    Raises SettingsError for a bughive.toml that cannot be meant.
    """

    def __init__(
        self,
        *replies: Script,
        strict: bool = False,
        seed: int = 0,
        catalog: Catalog | None = None,
        max_retries: int | None = None,
        circuit: CircuitSetting | None = None,
    ) -> None:
        self._strict = strict
        self._seed = seed
        self._lock = threading.Lock()
        self._in_order: deque[Script] = deque(replies)
        self._by_task: dict[str, deque[Script]] = {}
        self._by_model: dict[str, deque[Script]] = {}
        self._calls: list[Call] = []
        self._asked_of: Counter[str] = Counter()  # by model
        self._unscripted: NotAsScripted | None = None  # the first such call
        self._time = _Time()
        self._books = _Books()
        weakref.finalize(self, _remove, self._books, os.getpid())
        self.ledger: Ledger = self._books
        self.tracker = CostTracker(self.ledger)
        self.transport: httpx.BaseTransport = httpx.MockTransport(self._handle)
        self.anthropic = AnthropicClient(
            "sk-ant-fake",
            base_url="https://anthropic.test",
            transport=self.transport,
            tracker=self.tracker,
            sleep=self._time.sleep,
        )
        self.openrouter = OpenRouterClient(
            "sk-or-fake",
            base_url="https://openrouter.test/api/v1",
            transport=self.transport,
            tracker=self.tracker,
            sleep=self._time.sleep,
        )
        self.router = LLMRouter(
            self.anthropic,
            self.openrouter,
            self.tracker,
            catalog=catalog,
            max_retries=max_retries,
            circuit=circuit or False,
            sleep=self._time.sleep,
            clock=self._time.clock,
        )

    def script(self, *replies: Script, task: str | None = None, model: str | None = None) -> None:
        """Line up replies: for a task's calls, a model's, or whichever come; used in that order.

        Raises UnknownTask for a task that TASK_MODEL_MAP does not name.
        """
        if task is not None:
            tier_of(task)
        with self._lock:
            if task is not None:
                self._by_task.setdefault(task, deque()).extend(replies)
            elif model is not None:
                self._by_model.setdefault(model, deque()).extend(replies)
            else:
                self._in_order.extend(replies)

    @property
    def calls(self) -> list[Call]:
        """Every HTTP call so far, retries included, in the order they came in."""
        with self._lock:
            return list(self._calls)

    @property
    def events(self) -> list[Event]:
        """What is on the books of all requests so far, as `ledger.events`, in the order it came there."""
        recorded = [
            event
            for path in sorted(self.ledger.path.glob("journals/*.jsonl"))
            for event in read_story(path.read_bytes(), path.stem).events
        ]
        return [event_of(event) for event in recorded if not event["event_type"].startswith("journal_")]

    @property
    def event_types(self) -> list[str]:
        """The events in a word each: "request_received", "attempt_started", …"""
        return [event.event_type for event in self.events]

    @property
    def cost_usd(self) -> Decimal | None:
        """USD of all attempts so far, exact; None where one that was billed has no price."""
        total = Decimal(0)
        for event in self.events:
            if isinstance(event, _OUTCOMES):
                cost = event.list_cost_usd if event.billed_cost_usd is None else event.billed_cost_usd
                if cost is None and event.billing == "billed":
                    return None
                total += cost or 0
        return total

    def close(self) -> None:
        """Close the ledger: nothing more can be asked. What was recorded can still be read."""
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._strict and kind is None:
            self._check_script()

    def _check_script(self) -> None:
        if self._unscripted is not None:
            raise self._unscripted
        scripts = {"any call": self._in_order, **self._by_task, **self._by_model}
        left = [f"{len(replies)} for {whom}" for whom, replies in scripts.items() if replies]
        if left:
            raise NotAsScripted(f"scripted replies were never asked for: {', '.join(left)}")

    # the wire

    def _handle(self, request: httpx.Request) -> httpx.Response:
        asked, refusal = answers.call_of(request.url.path, request.content)
        about = self._books.request_in_hand()
        call = Call(
            asked.provider,
            asked.model,
            asked.body,
            about.task if about else None,
            about.session_id if about else None,
        )
        with self._lock:
            self._calls.append(call)
            self._asked_of[call.model] += 1
            asked = asked._replace(number=self._asked_of[call.model])
            script = refusal or self._next_for(call)
        reply = script if isinstance(script, Reply) else script(call)
        return self._send(reply, asked, request)

    def _next_for(self, call: Call) -> Script:
        of_model = [
            replies
            for model, replies in self._by_model.items()
            if model_id(call.provider, model) == call.model
        ]
        for replies in (self._by_task.get(call.task or ""), *of_model, self._in_order):
            if replies:
                return replies.popleft()
        if not self._strict:
            return answer()
        said = shorten(str(call.messages[-1].get("content")), 100, placeholder=" …")
        what = f"call {len(self._calls)}, {call.task or 'no task'} on {call.model}"
        self._unscripted = self._unscripted or NotAsScripted(f"nothing is scripted for {what}: {said}")
        raise self._unscripted

    def _send(self, reply: Reply, asked: answers.Call, request: httpx.Request) -> httpx.Response:
        """A reply as it would come over a network, a broken one too; slow ones take no time."""
        self._pass(math.inf if reply.silence else reply.delay_s, request)
        if reply.reset:
            raise httpx.ReadError("the script resets the connection", request=request)
        if reply.endless == "head":
            raise httpx.RemoteProtocolError("the script's head has no end", request=request)
        response = response_to(asked, reply, self._seed, prices={})
        content: bytes | Iterator[bytes] = response.body
        if reply.endless:
            content = repeat(b" " * 65_536)
        elif response.stream is not None:
            content = self._streamed(response.stream, reply.drip, request)
        elif reply.cut_after is not None:
            content = _cut(response.body, reply.cut_after)
        return httpx.Response(response.status, headers=response.headers, content=content)

    def _streamed(
        self, stream: Stream, drip: tuple[int, float] | None, request: httpx.Request
    ) -> Iterator[bytes]:
        every, interval_s = drip or (0, 0.0)
        for number, piece in enumerate(stream.pieces):
            if every and number and number % every == 0:
                self._pass(interval_s, request)
            yield piece
        if stream.end == "open":
            yield from self._signs_of_life(stream, request)
            self._pass(math.inf, request)
        if stream.end == "reset":
            raise httpx.ReadError("the script resets the connection", request=request)
        if stream.end == "cut":
            raise httpx.RemoteProtocolError("the script cuts the answer")

    def _signs_of_life(self, stream: Stream, request: httpx.Request) -> Iterator[bytes]:
        """As many as fit in the time a read may take: for ever is how long a script cannot wait."""
        if stream.keep_alive_s is not None:
            for _ in range(int(_read_timeout_s(request) / stream.keep_alive_s)):
                self._pass(stream.keep_alive_s, request)
                yield stream.keep_alive

    def _pass(self, seconds: float, request: httpx.Request) -> None:
        """Lets so much time go by; raises ReadTimeout where a client would not wait so long."""
        timeout_s = _read_timeout_s(request)
        self._time.sleep(min(seconds, timeout_s))
        if seconds >= timeout_s:
            raise httpx.ReadTimeout("the script is silent", request=request)


def _read_timeout_s(request: httpx.Request) -> float:
    return float(request.extensions["timeout"]["read"])


def _cut(body: bytes, after: int) -> Iterator[bytes]:
    yield body[:after]
    raise httpx.RemoteProtocolError("the script cuts the answer")


class _Books(Ledger):
    """A ledger in a folder of its own, which knows the request each thread is on."""

    def __init__(self) -> None:
        prices = PriceBook.load(Settings.load().prices)
        folder = Path(tempfile.mkdtemp(prefix="bughive-fake-"))
        super().__init__(folder, durability="process-crash", clock=utc_now, prices=prices, auto_seal=False)
        self._begun = threading.local()

    def open_request(self, received: RequestReceived) -> RequestLog:
        log = super().open_request(received)
        self._begun.last = (received, log)
        return log

    def request_in_hand(self) -> RequestReceived | None:
        """The request this thread is on; None: it is on none."""
        received, log = getattr(self._begun, "last", (None, None))
        return received if log is not None and not log.ended else None


def _remove(ledger: Ledger, owner: int) -> None:
    """Only now, and not at the ledger's closing: what was recorded is read after it."""
    if os.getpid() == owner:
        ledger.close()
        shutil.rmtree(ledger.path, ignore_errors=True)


class _Time(threading.local):
    """Waits that take no time and are counted; each thread has its own."""

    def __init__(self) -> None:
        self._waited_s = 0.0

    def sleep(self, seconds: float) -> None:
        self._waited_s += seconds

    def clock(self) -> float:
        return time.monotonic() + self._waited_s
