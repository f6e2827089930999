"""What both clients share: a key asked for when it is needed, one attempt, and retries without a router."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import httpx

from ledger.settings import Settings
from router.catalog import Route, model_id
from router.errors import InvalidRequest, MissingKey, RouteExhausted
from router.messages import System
from router.policy import BACKOFF, DEADLINE_S, retrying
from router.types import ClientResponse

if TYPE_CHECKING:  # loaded when the first call is made: `import router` stays light
    from ledger.tracker import CostTracker
    from router.providers.transport import Channel
    from router.providers.wire import Answer, Reply


DIRECT_TIER = "DIRECT"  # where the books put what a client was asked without a router


MAX_TOKENS_BOUND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """What a model is asked, whoever is asked. Raises InvalidRequest for what nobody could answer."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    tools: Sequence[Mapping[str, Any]] | None = None
    system: System = None
    temperature: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_list(self.messages) or not self.messages:
            raise InvalidRequest("messages must be a list of at least one message")
        if not (self.tools is None or _is_list(self.tools)):
            raise InvalidRequest("tools must be a list of tools")
        whole_number("max_tokens", self.max_tokens, at_least=1, at_most=MAX_TOKENS_BOUND)
        taken = sorted({"model", "messages", "stream"}.intersection(self.params))
        if taken:
            raise InvalidRequest(f"{taken[0]} cannot be set here; leave it out")


class PricesPerMtok(NamedTuple):
    """The most that may be paid upstream, in USD per million tokens."""

    prompt: Decimal
    completion: Decimal


class Dialect(Protocol):
    """How a provider is spoken to; pure. `providers.anthropic` and `providers.openrouter` are two."""

    def request_body(self, call: Call, model: str, max_price: PricesPerMtok | None, /) -> dict[str, Any]:
        """The body of a call."""

    def why_unbounded(self, body: Mapping[str, Any], /) -> str | None:
        """What in a body may cost more than its size tells; None: nothing."""

    def read_reply(self, reply: Reply, /) -> Answer:
        """The answer in a reply. Raises ProviderError where there is none."""


class ProviderClient:
    """One provider's API over HTTP. Thread-safe; a context manager; closes only a transport it made.

    timeout: seconds by the wall clock for one attempt. max_retries: further attempts after the first.
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
        tracker: CostTracker | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.timeout_s = seconds("timeout", timeout)
        self.max_retries = whole_number("max_retries", max_retries, at_least=0)
        self._given_key = api_key
        self._given_url = base_url
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
        """One attempt. Raises ProviderError where it gives no answer, MissingKey without a key."""
        from router.providers.transport import post

        channel = self._channel or self._open_channel()
        reply = post(channel, self.provider, self._url, self._headers, body, timeout_s)
        return self.dialect.read_reply(reply)

    def require_key(self) -> None:
        """Raise MissingKey now, rather than at the first attempt."""
        _ = self._headers

    def _answer(
        self, call: Call, model: str, task: str, session_id: str | None, tags: Mapping[str, str] | None
    ) -> ClientResponse:
        """Ask, and ask again as the retry policy says. Raises the last attempt's ProviderError."""
        named = model_id(self.provider, model)
        if self._tracker is not None:
            return self._booked(self._tracker, call, named, task, session_id, tags).as_response(named)
        if session_id is not None or tags is not None:
            raise InvalidRequest("session_id and tags are for the ledger; give this client a tracker=")
        from router.providers.wire import encoded

        body = encoded(self.body(call, named))
        answer: Answer = retrying(self.max_retries, sleep=self._sleep)(self.send, body, self.timeout_s)
        return answer.as_response(named)

    def _booked(
        self,
        tracker: CostTracker,
        call: Call,
        model: str,
        task: str,
        session_id: str | None,
        tags: Mapping[str, str] | None,
    ) -> Answer:
        """The same with every attempt on the books: a request of one tier, DIRECT."""
        from router import drive
        from router.prepare import Target

        request = drive.Request(drive.new_id(), session_id, task, tags, DIRECT_TIER)
        route = Route(DIRECT_TIER, model, self.provider)
        target = Target(route, self, call, self.timeout_s, self.max_retries)
        pace = drive.Pace(DEADLINE_S, BACKOFF, self._sleep, time.monotonic)
        try:
            answer, _ = drive.Drive(tracker.ledger, request, [target], pace).answer()
        except RouteExhausted as exhausted:
            raise exhausted.attempts[-1].error from None
        return answer

    # what is made when it is first needed

    @cached_property
    def _settings(self) -> Settings:
        return Settings.load()

    @cached_property
    def _url(self) -> httpx.URL:
        base = self._given_url or self._settings.get(self.url_variable) or self.default_base_url
        try:
            url = httpx.URL(base.rstrip("/") + self.path)
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"base_url {base!r} is no address: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidRequest(
                f"base_url must begin with http:// or https:// and name a host, not {base!r}"
            )
        return url

    @cached_property
    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = {
            "host": self._url.netloc.decode("ascii"),
            "content-type": "application/json",
            "user-agent": "bughive-costs",
            **self._auth(self._key()),
        }
        return [(name.encode(), value.encode()) for name, value in headers.items()]

    def _key(self) -> str:
        key = (self._given_key or self._settings.get(self.key_variable) or "").strip()
        if not key:
            raise MissingKey(
                f"no key for {self.provider}: set {self.key_variable} in the environment or in .env,"
                " or pass api_key=",
                variable=self.key_variable,
            )
        if not (key.isascii() and key.isprintable()):
            raise MissingKey(
                f"the key for {self.provider} holds characters no key has; check {self.key_variable}",
                variable=self.key_variable,
            )
        return key

    def _open_channel(self) -> Channel:
        from router.providers.transport import Pool, Through, proxy_for

        with self._lock:
            if self._channel is None:
                given = self._transport
                self._channel = Pool(proxy_for(self._url)) if given is None else Through(given)
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

    def create_message(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ClientResponse:
        """One answer, retried as the policy says; a leading `anthropic/` of the model is dropped.

        session_id and tags: for the books of a client with a tracker.

        Raises ProviderError when the last attempt has failed, MissingKey, InvalidRequest; with a
        tracker also LedgerError.
        """
        call = Call(messages, max_tokens, tools, system, temperature, params)
        return self._answer(call, model, "create_message", session_id, tags)

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

    def create_completion(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 4096,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        *,
        session_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ClientResponse:
        """One answer, retried as the policy says.

        session_id and tags: for the books of a client with a tracker.

        Raises ProviderError when the last attempt has failed, MissingKey, InvalidRequest; with a
        tracker also LedgerError.
        """
        call = Call(messages, max_tokens, tools, system, temperature, params)
        return self._answer(call, model, "create_completion", session_id, tags)

    @cached_property
    def dialect(self) -> Dialect:
        from router.providers import openrouter

        return openrouter

    def _auth(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}", "x-title": "BugHive"}


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
