"""What both clients share: a key asked for when it is needed, one attempt, and retries without a router.

A key is a `Secret` from the moment it is found, and no frame that may raise has it as a plain text:
a traceback with locals shows `[key]`. What the provider says is searched for it before it is told on.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self, overload

import httpx

from ledger.secrecy import SHOWN, Secret, SecretBytes, scrubbed
from ledger.settings import Settings
from router.catalog import Route, model_id
from router.errors import InvalidRequest, MissingKey, ProviderError, RouteExhausted
from router.messages import System
from router.policy import BACKOFF, DEADLINE_S, retrying
from router.streams import Stream
from router.types import ClientResponse

if TYPE_CHECKING:  # loaded when the first call is made: `import router` stays light
    from ledger.tracker import CostTracker
    from router.providers.streaming import Reading
    from router.providers.transport import Channel
    from router.providers.wire import Answer, Reply
    from router.streams import Items, StreamItem


DIRECT_TIER = "DIRECT"  # where the books put what a client was asked without a router


MAX_TOKENS_BOUND = 1_000_000_000

_SECRET_HEADERS = ("x-api-key", "authorization")
_log = logging.getLogger("router")


@dataclass(frozen=True, slots=True)
class Call:
    """What a model is asked, whoever is asked. Raises InvalidRequest for what nobody could answer."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    tools: Sequence[Mapping[str, Any]] | None = None
    system: System = None
    temperature: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False

    def __post_init__(self) -> None:
        if not _is_list(self.messages) or not self.messages:
            raise InvalidRequest("messages must be a list of at least one message")
        if not (self.tools is None or _is_list(self.tools)):
            raise InvalidRequest("tools must be a list of tools")
        whole_number("max_tokens", self.max_tokens, at_least=1, at_most=MAX_TOKENS_BOUND)
        taken = sorted({"model", "messages", "stream"}.intersection(self.params))
        if taken:
            instead = "call router.stream()" if taken[0] == "stream" else "leave it out"
            raise InvalidRequest(f"{taken[0]} cannot be set here; {instead}")


class StreamLimits(NamedTuple):
    """How long a stream may be silent, in seconds: until its first token, and then between two chunks."""

    first_token_s: float = 20.0
    idle_s: float = 30.0


class PricesPerMtok(NamedTuple):
    """The most that may be paid upstream, in USD per million tokens."""

    prompt: Decimal
    completion: Decimal


class Assembler(Protocol):
    """Puts one answer together from the chunks of its stream; pure.

    `begun`: something came for which the provider may bill. `flowing`: the model has said something.
    `finished`: it said that it is done; what may still come is its usage. `done`: the provider said that
    nothing more comes. `has_usage`: what the whole answer used is known. `error`: the last one told.
    """

    begun: bool
    flowing: bool
    finished: bool
    done: bool
    has_usage: bool
    error: ToldError | None

    def take(self, chunk: Mapping[str, Any], data: bytes, /) -> Sequence[StreamItem] | None:
        """What a chunk adds, in items; None: it is a sign of life alone. `data` is the chunk as it came.

        Raises sse.TooLong for an answer beyond all bounds, ValueError where a part of it cannot be read.
        """

    def answer(self, reply: Reply, /) -> Answer:
        """What has been put together so far; `reply` is the head, of which the body is not looked at."""


class ToldError(NamedTuple):
    """An error inside a stream: the HTTP status it stands for, where it does, and its words."""

    code: object
    said: str
    data: bytes  # the chunk


class Dialect(Protocol):
    """How a provider is spoken to; pure. `providers.anthropic` and `providers.openrouter` are two."""

    def request_body(self, call: Call, model: str, max_price: PricesPerMtok | None, /) -> dict[str, Any]:
        """The body of a call."""

    def why_unbounded(self, body: Mapping[str, Any], /) -> str | None:
        """What in a body may cost more than its size tells; None: nothing."""

    def read_reply(self, reply: Reply, /) -> Answer:
        """The answer in a reply. Raises ProviderError where there is none."""

    def request_id_of(self, reply: Reply, /) -> str | None:
        """How the provider names this call in the head of a reply; None: not."""

    def assembler(self) -> Assembler:
        """What puts a stream together."""


class _Booking(NamedTuple):
    """How the ledger is to call what a client is asked."""

    task: str
    session_id: str | None
    tags: Mapping[str, str] | None


class ProviderClient:
    """One provider's API over HTTP. Thread-safe; a context manager; closes only a transport it made.

    timeout: seconds by the wall clock for one attempt. max_retries: further attempts after the first.
    first_token_s and idle_s: the most silence in a stream, before its first token and between two chunks.
    tracker: whose ledger is to record what is asked here without a router, under the tier DIRECT.
    """

    provider: ClassVar[str]
    key_variable: ClassVar[str]
    url_variable: ClassVar[str]
    default_base_url: ClassVar[str]
    path: ClassVar[str]

    def __init__(
        self,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 2,
        base_url: str | None = None,
        transport: httpx.BaseTransport | None = None,
        *,
        first_token_s: float = StreamLimits().first_token_s,
        idle_s: float = StreamLimits().idle_s,
        tracker: CostTracker | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._given_key = Secret.of(api_key)
        self._given_url = Secret.of(base_url)
        del api_key, base_url  # of what a traceback may show
        self.timeout_s = seconds("timeout", timeout)
        self.limits = StreamLimits(seconds("first_token_s", first_token_s), seconds("idle_s", idle_s))
        self.max_retries = whole_number("max_retries", max_retries, at_least=0)
        self._transport = transport
        self._channel: Channel | None = None
        self._tracker = tracker
        self._sleep = sleep
        self._lock = Lock()

    @cached_property
    def dialect(self) -> Dialect:  # pragma: no cover
        """How this provider is spoken to; loaded when it is first needed."""
        raise NotImplementedError

    def _auth(self, key: str) -> dict[str, str]:  # pragma: no cover
        raise NotImplementedError

    # one attempt

    def body(self, call: Call, model: str, max_price: PricesPerMtok | None = None) -> dict[str, Any]:
        """The request body for a model; what this provider does not know is left out, with a log line."""
        return self.dialect.request_body(call, model, max_price)

    def send(self, body: bytes, timeout_s: float) -> Answer:
        """One attempt. Raises ProviderError where it gives no answer, and as require_key() does."""
        from router.providers.echo import read_without_key
        from router.providers.transport import post

        channel = self._channel or self._open_channel()
        reply = post(channel, self.provider, self._url, self._headers, body, timeout_s)
        outcome = read_without_key(self._key, self.provider, self.dialect, reply)
        del reply  # it may echo the key: what a traceback may show of this frame
        if isinstance(outcome, ProviderError):
            raise outcome
        return outcome

    def read(self, body: bytes, timeout_s: float, limits: StreamLimits) -> Reading:
        """One attempt, streamed; nothing is sent before it is iterated. Raises as require_key() does."""
        from router.providers.streaming import Ask, Limits, Reading

        channel = self._channel or self._open_channel()
        ask = Ask(channel, self.provider, self.dialect, self._key, self._url, self._headers, body)
        return Reading(ask, Limits(timeout_s, *limits))

    def require_key(self) -> None:
        """Raise now, rather than at the first attempt: MissingKey, InvalidRequest, SettingsError."""
        _ = self._headers
        _ = self._channel or self._open_channel()

    def _answered(self, call: Call, model: str, booking: _Booking) -> Any:
        """A ClientResponse; of a call that streams a Stream of one."""
        named = model_id(self.provider, model)
        if self._tracker is not None:
            return self._booked(self._tracker, call, named, booking)
        if booking.session_id is not None or booking.tags is not None:
            raise InvalidRequest("session_id and tags are for the ledger; give this client a tracker=")
        from router.providers.wire import encoded

        body = encoded(self.body(call, named))
        if call.stream:
            self.require_key()
            return Stream(self._streamed(body, named))
        timeout_s = self._timeouts()
        answer: Answer = retrying(self.max_retries, sleep=self._sleep)(lambda: self.send(body, timeout_s()))
        return answer.as_response(named)

    def _streamed(self, body: bytes, model: str) -> Items[ClientResponse]:
        """The items of an answer; asked for again, as the retry policy says, while none of it has come."""
        timeout_s = self._timeouts()
        for attempt in retrying(self.max_retries, sleep=self._sleep):
            with attempt:  # which hands on whatever ends it, the caller's leaving too
                reading = self.read(body, timeout_s(), self.limits)
                yield from reading
        return reading.answer.as_response(model)

    def _timeouts(self) -> Callable[[], float]:
        """How long the next attempt of a call that begins now may take."""
        ends_at = time.monotonic() + DEADLINE_S
        return lambda: min(self.timeout_s, max(ends_at - time.monotonic(), 0.001))

    def _booked(self, tracker: CostTracker, call: Call, model: str, booking: _Booking) -> Any:
        """The same with every attempt on the books: a request of one tier, DIRECT."""
        from router import drive
        from router.prepare import Target

        request = drive.Request(drive.new_id(), booking.session_id, booking.task, booking.tags, DIRECT_TIER)
        route = Route(DIRECT_TIER, model, self.provider)
        target = Target(route, self, call, self.timeout_s, self.max_retries, self.limits)
        pace = drive.Pace(DEADLINE_S, BACKOFF, self._sleep, time.monotonic)
        driven = drive.Drive(tracker.ledger, request, [target], pace)
        if call.stream:
            self.require_key()
            return Stream(_of_one(driven.stream(), model))
        try:
            answer, _ = driven.answer()
        except RouteExhausted as exhausted:
            raise exhausted.attempts[-1].error from None
        return answer.as_response(model)

    # what is made when it is first needed

    @cached_property
    def _settings(self) -> Settings:
        return Settings.load()

    @cached_property
    def _url(self) -> httpx.URL:
        base = self._given_url or Secret.of(self._settings.get(self.url_variable))
        url = _parsed(base or Secret(self.default_base_url), self.path)
        if isinstance(url, str):
            raise InvalidRequest(url)
        if url.userinfo:
            _log.warning(
                "the user and password in the base_url of %s are not sent; leave them out", self.provider
            )
        return url.copy_with(userinfo=b"")

    @cached_property
    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = {
            "host": self._url.netloc.decode("ascii"),
            "content-type": "application/json",
            "user-agent": "bughive-costs",
        }
        return [
            *((name.encode(), value.encode()) for name, value in headers.items()),
            *(
                (name.encode(), SecretBytes(value.encode()) if name in _SECRET_HEADERS else value.encode())
                for name, value in self._auth(self._key.reveal()).items()
            ),
        ]

    @cached_property
    def _key(self) -> Secret:
        key = Secret.of(_trimmed(self._given_key or Secret.of(self._settings.get(self.key_variable))))
        if key is None:
            raise MissingKey(
                f"no key for {self.provider}: set {self.key_variable} in the environment or in .env,"
                " or pass api_key=",
                variable=self.key_variable,
            )
        if not (key.reveal().isascii() and key.reveal().isprintable()):
            raise MissingKey(
                f"the key for {self.provider} holds characters no key has; check {self.key_variable}",
                variable=self.key_variable,
            )
        return key

    def _open_channel(self) -> Channel:
        from router.providers.transport import Pool, Through, certificates_for, proxy_for

        with self._lock:
            if self._channel is None:
                given = self._transport
                if given is None:
                    self._channel = Pool(proxy_for(self._url), certificates_for(self._url))
                else:
                    self._channel = Through(given)
            return self._channel

    def close(self) -> None:
        """Close the connections this client made; it makes new ones if it is used again."""
        if self._channel is not None:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # the address may hold a password, the rest a key


class AnthropicClient(ProviderClient):
    """Anthropic's models. The key: api_key=, ANTHROPIC_API_KEY or .env, asked for when first used."""

    provider = "anthropic"
    key_variable = "ANTHROPIC_API_KEY"
    url_variable = "ANTHROPIC_BASE_URL"
    default_base_url = "https://api.anthropic.com"
    path = "/v1/messages"

    @overload
    def create_message(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        stream: Literal[False] = False,
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ClientResponse: ...

    @overload
    def create_message(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        stream: Literal[True],
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Stream[ClientResponse]: ...

    def create_message(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        stream: bool = False,
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ClientResponse | Stream[ClientResponse]:
        """One answer, retried as the policy says; a leading `anthropic/` of the model is dropped.

        stream: give its items while they come, and the answer at their end; see `Stream`.
        session_id and tags: for the books of a client with a tracker.

        Raises ProviderError when the last attempt has failed, MissingKey, InvalidRequest; with a
        tracker also LedgerError.
        """
        call = Call(messages, max_tokens, tools, system, temperature, params, stream)
        answered: ClientResponse | Stream[ClientResponse] = self._answered(
            call, model, _Booking("create_message", session_id, tags)
        )
        return answered

    @cached_property
    def dialect(self) -> Dialect:
        from router.providers import anthropic

        return anthropic

    def _auth(self, key: str) -> dict[str, str]:
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}


class OpenRouterClient(ProviderClient):
    """Models on OpenRouter. The key: api_key=, OPENROUTER_API_KEY or .env, asked for when first used."""

    provider = "openrouter"
    key_variable = "OPENROUTER_API_KEY"
    url_variable = "OPENROUTER_BASE_URL"
    default_base_url = "https://openrouter.ai/api/v1"
    path = "/chat/completions"

    @overload
    def create_completion(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        stream: Literal[False] = False,
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ClientResponse: ...

    @overload
    def create_completion(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        stream: Literal[True],
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Stream[ClientResponse]: ...

    def create_completion(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        stream: bool = False,
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ClientResponse | Stream[ClientResponse]:
        """One answer, retried as the policy says.

        stream: give its items while they come, and the answer at their end; see `Stream`.
        session_id and tags: for the books of a client with a tracker.

        Raises ProviderError when the last attempt has failed, MissingKey, InvalidRequest; with a
        tracker also LedgerError.
        """
        call = Call(messages, max_tokens, tools, system, temperature, params, stream)
        answered: ClientResponse | Stream[ClientResponse] = self._answered(
            call, model, _Booking("create_completion", session_id, tags)
        )
        return answered

    @cached_property
    def dialect(self) -> Dialect:
        from router.providers import openrouter

        return openrouter

    def _auth(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}", "x-title": "BugHive"}


def _trimmed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal().strip()


def _parsed(base: Secret, path: str) -> httpx.URL | str:
    """The address of a path under a base, or in a line why there is none."""
    shown = scrubbed(re.sub(r"[^/]*@", f"{SHOWN}@", base.reveal()))
    try:
        url = httpx.URL(base.reveal().rstrip("/") + path)
    except httpx.InvalidURL as error:
        return f"base_url {shown!r} is no address" + ("" if SHOWN in shown else f": {scrubbed(str(error))}")
    if url.scheme not in ("http", "https") or not url.host:
        return f"base_url must begin with http:// or https:// and name a host, not {shown!r}"
    return url


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def seconds(what: str, value: object) -> float:
    """A duration that can be waited for. Raises InvalidRequest for any other."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InvalidRequest(f"{what} must be a number of seconds above 0, not {value!r}")
    return float(value)


def whole_number(what: str, value: object, at_least: int, at_most: int = 1_000) -> int:
    """A number of things. Raises InvalidRequest for what is none, too few or too many."""
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise InvalidRequest(f"{what} must be a whole number from {at_least} to {at_most:,}, not {value!r}")
    return value


def _of_one(items: Items[tuple[Answer, Any]], model: str) -> Items[ClientResponse]:
    """The items of a call of one model, at their end its answer. Raises what its last attempt failed with."""
    try:
        answer, _ = yield from items
    except RouteExhausted as exhausted:
        raise exhausted.attempts[-1].error from None
    return answer.as_response(model)
