"""`LLMRouter`: a task in, an answer out, and every attempt on the books."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from tenacity.wait import wait_base

from ledger.errors import nearest
from ledger.settings import CircuitSetting, Settings, TierSetting
from router.catalog import Catalog, route_for
from router.errors import InvalidRequest, UnknownTask
from router.messages import System
from router.policy import BACKOFF, DEADLINE_S
from router.providers.client import (
    AnthropicClient,
    Call,
    OpenRouterClient,
    ProviderClient,
    StreamLimits,
    seconds,
    whole_number,
)
from router.streams import Items, Stream
from router.tasks import TASK_MODEL_MAP, ModelTier
from router.types import RouteResponse

if TYPE_CHECKING:
    from ledger.tracker import CostTracker
    from router.drive import Drive, OnLedgerError
    from router.prepare import Target


DEFAULT_MAX_TOKENS = 4096
_NOTHING_SET = TierSetting(None, None)
_T = TypeVar("_T", int, float)


class _Asked(NamedTuple):
    """What a caller asks, before it is known which tier will be asked it."""

    task: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int | None
    tools: Sequence[Mapping[str, Any]] | None
    system: System
    temperature: float | None
    params: Mapping[str, Any]
    stream: bool = False

    def call(self, default_max_tokens: int) -> Call:
        """The call for a tier with that default."""
        max_tokens = default_max_tokens if self.max_tokens is None else self.max_tokens
        return Call(
            self.messages, max_tokens, self.tools, self.system, self.temperature, self.params, self.stream
        )


class _Terms(NamedTuple):
    """For whom a call is, and what it may take; None: as it is set, or as it is by default."""

    session_id: str | None
    tags: Mapping[str, str] | None
    budget_usd: Decimal | int | str | float | None
    timeout_s: float | None
    deadline_s: float
    first_token_s: float | None = None
    idle_s: float | None = None


class LLMRouter:
    """Sends each task to the tier that TASK_MODEL_MAP names, and records what that cost.

    Clients and tracker that are not given are made when they are first needed, and closed by
    `close()`; given ones stay open. Thread-safe. `catalog` maps tiers to (model, provider) and
    is read at each call; it wins over bughive.toml. `max_retries`: further attempts on a tier
    after the first; without it as the tier is set, else as its client is.

    `on_ledger_error`: what becomes of an answer that came and cannot be recorded, as on a full disk.
    "raise" raises UnrecordedAnswer, with the answer in its `response`; "warn" returns it with a log
    line. Either way its events wait in this process and are written as soon as that is possible. A
    request that cannot be recorded before it is sent is refused, whatever is set here.

    `circuit`: when a model that fails again and again is left alone for a while; without it as
    bughive.toml has it, False: never.

    Raises InvalidRequest for a setting that cannot be meant.
    """

    def __init__(
        self,
        anthropic_client: AnthropicClient | None = None,
        openrouter_client: OpenRouterClient | None = None,
        cost_tracker: CostTracker | None = None,
        *,
        catalog: Catalog | None = None,
        max_retries: int | None = None,
        on_ledger_error: OnLedgerError = "raise",
        circuit: CircuitSetting | Literal[False] | None = None,
        backoff: wait_base = BACKOFF,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clients: dict[str, ProviderClient] = {}
        if anthropic_client is not None:
            self._clients["anthropic"] = anthropic_client
        if openrouter_client is not None:
            self._clients["openrouter"] = openrouter_client
        self._tracker = cost_tracker
        self._catalog = catalog if catalog is not None else {}
        self._max_retries = (
            None if max_retries is None else whole_number("max_retries", max_retries, at_least=0)
        )
        if on_ledger_error not in ("raise", "warn"):
            raise InvalidRequest(f"on_ledger_error must be raise or warn, not {on_ledger_error!r}")
        self._on_ledger_error: OnLedgerError = on_ledger_error
        self._circuit = _circuit(circuit)
        self._backoff = backoff
        self._sleep = sleep
        self._clock = clock
        self._lock = RLock()
        self._settings: Settings | None = None
        self._made: list[ProviderClient | CostTracker] = []

    def route(
        self,
        task: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        session_id: str | None = None,
        max_tokens: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        tags: Mapping[str, str] | None = None,
        budget_usd: Decimal | int | str | float | None = None,
        timeout_s: float | None = None,
        deadline_s: float = DEADLINE_S,
        **params: Any,
    ) -> RouteResponse:
        """Ask the task's tier.

        max_tokens: of the answer; without it as the tier is set, else 4096. timeout_s bounds one
        attempt (without it as the tier is set, else as the client is: 120 s), deadline_s the whole call
        with its waits, both by the wall clock. budget_usd is a hard limit in USD on this request,
        retries included. `params` go to the provider they are known to.

        Raises InvalidRequest (UnknownTask, UnknownTier), MissingKey, SettingsError: nothing was
        recorded. BudgetExceeded, UnpricedModel, UnboundedRequest: nothing was sent.
        RouteExhausted: no answer. LedgerError: the books could not be kept.
        """
        _refuse_mistyped(params)
        request = _Asked(task, messages, max_tokens, tools, system, temperature, params)
        terms = _Terms(session_id, tags, budget_usd, timeout_s, deadline_s)
        _, response = self._drive(request, (), terms).answer()
        return response

    def route_with_fallback(
        self,
        task: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        fallback_tier: ModelTier | str | Sequence[ModelTier | str] | None = None,
        session_id: str | None = None,
        max_tokens: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        tags: Mapping[str, str] | None = None,
        budget_usd: Decimal | int | str | float | None = None,
        timeout_s: float | None = None,
        deadline_s: float = DEADLINE_S,
        **params: Any,
    ) -> RouteResponse:
        """As `route`, and where the task's own tier fails, the fallback tier is asked too.

        fallback_tier: one, or several to be asked in turn; without it as the tier is set, else FAST.
        The task's own tier as fallback means none. budget_usd and deadline_s cover all tiers.

        Raises as `route` does; UnknownTier also for a fallback.
        """
        _refuse_mistyped(params)
        request = _Asked(task, messages, max_tokens, tools, system, temperature, params)
        if fallback_tier is None:
            setting = self._setting().tiers.get(tier_of(task))
            fallback_tier = setting.fallback if setting and setting.fallback else ModelTier.FAST
        terms = _Terms(session_id, tags, budget_usd, timeout_s, deadline_s)
        _, response = self._drive(request, _tiers(fallback_tier), terms).answer()
        return response

    def stream(
        self,
        task: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        fallback_tier: ModelTier | str | Sequence[ModelTier | str] = (),
        session_id: str | None = None,
        max_tokens: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: System = None,
        temperature: float | None = None,
        tags: Mapping[str, str] | None = None,
        budget_usd: Decimal | int | str | float | None = None,
        timeout_s: float | None = None,
        first_token_s: float | None = None,
        idle_s: float | None = None,
        deadline_s: float = DEADLINE_S,
        **params: Any,
    ) -> Stream[RouteResponse]:
        """As `route`, and the answer can be read while it is written; see `Stream`.

        fallback_tier: one, or several to be asked in turn; without it the task's own tier alone is asked.
        Where a stream breaks after a part of it was shown, a `Restarted` item says so, and the answer
        starts anew. first_token_s and idle_s bound the silence before the first token and between two
        chunks (without them as the tier is set, else as the client is: 20 s and 30 s).

        Raises at once as `route` does for what is not recorded, the rest while it is iterated.
        """
        _refuse_mistyped(params)
        request = _Asked(task, messages, max_tokens, tools, system, temperature, params, stream=True)
        terms = _Terms(session_id, tags, budget_usd, timeout_s, deadline_s, first_token_s, idle_s)
        return Stream(_responses(self._drive(request, _tiers(fallback_tier), terms)))

    def _drive(self, asked: _Asked, fallbacks: Sequence[str], terms: _Terms) -> Drive:
        from router import drive  # late: it loads the event models

        tier = tier_of(asked.task)
        for name in ("timeout_s", "first_token_s", "idle_s"):
            if (given := getattr(terms, name)) is not None:
                seconds(name, given)
        tiers = dict.fromkeys([tier, *map(str, fallbacks)])
        targets = [self._target(name, asked, terms) for name in tiers]
        targets[0].client.require_key()
        request = drive.Request(
            drive.new_id(), terms.session_id, asked.task, terms.tags, tier, _budget(terms.budget_usd)
        )
        pace = drive.Pace(seconds("deadline_s", terms.deadline_s), self._backoff, self._sleep, self._clock)
        circuit = self._circuit or self._setting().circuit
        return drive.Drive(self.tracker.ledger, request, targets, pace, self._on_ledger_error, circuit)

    def _target(self, tier: str, asked: _Asked, terms: _Terms) -> Target:
        """A tier as this call asks it: as the call says, else as the tier is set, else by default."""
        from router.prepare import Target  # late: it loads the price book's models

        tiers = self._setting().tiers
        setting = tiers.get(tier, _NOTHING_SET)
        route = route_for(tier, self._catalog, tiers)
        client = self._client(route.provider)
        return Target(
            route,
            client,
            asked.call(setting.max_tokens or DEFAULT_MAX_TOKENS),
            _first(terms.timeout_s, setting.timeout_s, client.timeout_s),
            _first(self._max_retries, setting.max_retries, client.max_retries),
            StreamLimits(
                _first(terms.first_token_s, setting.first_token_s, client.limits.first_token_s),
                _first(terms.idle_s, setting.idle_s, client.limits.idle_s),
            ),
        )

    @property
    def tracker(self) -> CostTracker:
        """The tracker given, else one of the default ledger, made now."""
        tracker = self._tracker
        if tracker is not None:
            return tracker
        with self._lock:
            if self._tracker is None:
                from ledger.tracker import CostTracker

                self._tracker = CostTracker()
                self._made.append(self._tracker)
            return self._tracker

    def _client(self, provider: str) -> ProviderClient:
        client = self._clients.get(provider)
        if client is not None:
            return client
        with self._lock:
            if provider not in self._clients:
                made = AnthropicClient() if provider == "anthropic" else OpenRouterClient()
                self._clients[provider] = made
                self._made.append(made)
            return self._clients[provider]

    def _setting(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.load()
        return self._settings

    def close(self) -> None:
        """Close what this router made; clients and a tracker that were given stay open."""
        with self._lock:
            made, self._made = self._made, []
            self._clients = {name: client for name, client in self._clients.items() if client not in made}
            if self._tracker in made:
                self._tracker = None
        for part in made:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_OWN = (
    *("session_id", "max_tokens", "tools", "system", "temperature", "tags", "budget_usd", "timeout_s"),
    *("deadline_s", "first_token_s", "idle_s", "fallback_tier", "messages", "task"),
)


def _refuse_mistyped(params: Mapping[str, Any]) -> None:
    """A budget or a session that is mistyped must not travel on as some provider's parameter."""
    if not params:
        return
    from router.params import PARAMS

    known = {param.name for param in PARAMS} | {"stream"}  # which is refused in words of its own
    for name in params:
        if name in ("first_token_s", "idle_s"):
            raise InvalidRequest(f"{name} is for stream(); route() waits for the whole answer")
        if name == "fallback_tier":
            raise InvalidRequest("fallback_tier is for route_with_fallback(); route() asks one tier")
        if name == "max_retries":
            raise InvalidRequest(
                "max_retries is a setting of the router, of a tier or of a client, not of a call"
            )
        if name not in known and (meant := nearest(name, _OWN)):
            raise InvalidRequest(f"there is no argument {name!r}{meant}")


def _tiers(given: ModelTier | str | Sequence[ModelTier | str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _responses(drive: Drive) -> Items[RouteResponse]:
    """The items of a call, at their end the response alone."""
    _, response = yield from drive.stream()
    return response


def _first(*choices: _T | None) -> _T:
    """The first that is there; the last always is."""
    return next(choice for choice in choices if choice is not None)


def tier_of(task: str) -> str:
    """The tier TASK_MODEL_MAP names for a task. Raises UnknownTask naming the nearest."""
    tier = TASK_MODEL_MAP.get(task)
    if tier is None:
        raise UnknownTask(str(task), list(TASK_MODEL_MAP))
    return str(tier)


def _circuit(given: CircuitSetting | Literal[False] | None) -> CircuitSetting | None:
    """The setting given, checked; None: as bughive.toml has it. Raises InvalidRequest for what is none."""
    if given is None or given is False:
        return None if given is None else CircuitSetting(enabled=False)
    if not isinstance(given, CircuitSetting):
        raise InvalidRequest(f"circuit must be a CircuitSetting, or False for none, not {given!r}")
    return CircuitSetting(
        whole_number("circuit.failures", given.failures, at_least=1),
        seconds("circuit.probe_after_s", given.probe_after_s),
        bool(given.enabled),
    )


def _budget(given: Decimal | int | str | float | None) -> Decimal | None:
    """budget_usd as an exact amount. Raises InvalidRequest for what is none."""
    if given is None:
        return None
    from ledger.money import usd

    try:
        amount = None if isinstance(given, bool) else usd(Decimal(str(given)))
    except InvalidOperation:
        amount = None
    if amount is None or amount < 0:
        raise InvalidRequest(f"budget_usd must be an amount of USD from 0 to below 1,000,000, not {given!r}")
    return amount
