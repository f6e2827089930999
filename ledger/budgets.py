"""What a request may cost at most, which limits hold for it, and whether they still would. Pure: no I/O.

    Budgets.limits_on(hold, quarter) ──▶ [Limit, …] ── check(limit, balance, hold) ──▶ Balance | refusal

A ceiling is reserved before anything is sent; the constants are empirical, and wide on purpose:
where an attempt does cost more, `ceiling_broken` is recorded beside its outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Literal, NamedTuple
from unicodedata import normalize

from ledger.errors import BudgetError, BudgetExceeded, SettingsError, UnpricedModel, nearest
from ledger.money import MONEY, plain, total, usd
from ledger.prices import ModelPrices
from ledger.windows import Window, WindowKind, window_of, zone_named

BudgetScope = Literal["request", "session", "task", "tier", "model", "day", "month", "all"]
BudgetMode = Literal["hard", "warn"]
_ALIKE_AT_MOST = 1_024
SCOPES: tuple[BudgetScope, ...] = ("request", "session", "task", "tier", "model", "day", "month", "all")
WINDOWS: tuple[WindowKind, ...] = ("day", "month")
MODES: tuple[BudgetMode, ...] = ("hard", "warn")

PROMPT_TOKENS_ALWAYS = 1_024  # a 189-byte prompt has been counted as 687 tokens
PROMPT_TOKENS_PER_MESSAGE = 16
PROMPT_TOKENS_WITH_TOOLS = 1_024

_PICODOLLAR = Decimal("0.000000000001")


class Hold(NamedTuple):
    """The ceiling of one attempt, held in its name while it is in flight.

    `ceiling_usd` is why it is not known where no price or no bound says: a hard limit refuses that.
    """

    attempt_id: str
    request_id: str
    session_id: str | None
    task: str
    tier: str
    model: str
    ceiling_usd: Decimal | BudgetError

    @property
    def asked_usd(self) -> Decimal | None:
        """The ceiling; None: not known."""
        return self.ceiling_usd if isinstance(self.ceiling_usd, Decimal) else None


class Limit(NamedTuple):
    """The most that may be spent in a scope, in USD, and within a window where it has one."""

    scope: BudgetScope
    scope_id: str
    limit_usd: Decimal
    mode: BudgetMode = "hard"
    tz: str | None = None
    window: Window | None = None


class Limits(NamedTuple):
    """What an attempt must keep to: its request's own, and those it shares, the same object for all alike."""

    own: Sequence[Limit] = ()
    shared: tuple[Limit, ...] = ()


class Budget(NamedTuple):
    """A limit that is set for good.

    scope_id: which session, task, tier, model or request; None: each of them by itself. A day, a month
    and `all` there is but one of. tz: where days and months begin. reason: who says so, such as a file.
    """

    scope: BudgetScope
    scope_id: str | None
    limit_usd: Decimal
    mode: BudgetMode = "hard"
    tz: str = "UTC"
    reason: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What is set anew when it is set again."""
        return (self.scope, self.scope_id or "", self.mode)

    def __str__(self) -> str:
        return name_of(self.scope, self.scope_id, self.mode)


def name_of(scope: str, scope_id: str | None, mode: str = "hard") -> str:
    """A budget in words: hard budget of session s-1, of each session, of the day."""
    if scope in WINDOWS:
        which = f"the {scope}" + (f" {scope_id}" if scope_id else "")
    elif scope == "all":
        which = "all there is"
    else:
        which = f"{scope} {scope_id}" if scope_id else f"each {scope}"
    return f"{mode} budget of {which}"


def budget_of(
    scope: str, scope_id: str | None, limit: object, mode: str = "hard", tz: str = "UTC", *, where: str = ""
) -> Budget:
    """A budget from what somebody wrote. Raises SettingsError saying what is wrong, and where."""
    at = f"{where}: " if where else ""
    for word, known, what in ((scope, SCOPES, "scope"), (mode, MODES, "mode")):
        if word not in known:
            near = nearest(str(word), known)
            raise SettingsError(
                f"{at}{what} must be {', '.join(known[:-1])} or {known[-1]}, not {word!r}{near}"
            )
    if scope in (*WINDOWS, "all") and scope_id:
        raise SettingsError(f"{at}a budget of scope {scope} takes no id, not {scope_id!r}: there is but one")
    if scope not in WINDOWS and tz.upper() != "UTC":
        raise SettingsError(f"{at}a time zone is for budgets of a day or a month, not of scope {scope}")
    if scope_id is not None and not (0 < len(scope_id) <= 256 and scope_id.isprintable()):
        raise SettingsError(f"{at}an id has 1 to 256 characters that print, unlike {scope_id[:60]!r}")
    try:
        zone = str(zone_named(tz))
    except SettingsError as error:
        raise SettingsError(f"{at}{error}") from error
    return Budget(scope, scope_id, limit_of(limit, at), mode, zone)  # type: ignore[arg-type]  # just looked up


def limit_of(given: object, at: str = "") -> Decimal:
    """An amount of USD, exact, from 0 to below a million. Raises SettingsError for anything else."""
    is_amount = isinstance(given, (int, str, Decimal)) and not isinstance(given, bool)
    amount = usd(given) if is_amount else None  # type: ignore[arg-type]  # just looked at
    if amount is None or amount < 0:
        raise SettingsError(f"{at}a limit is an amount of USD from 0 to below 1,000,000, not {given!r}")
    if Decimal(given) != amount:  # type: ignore[arg-type]  # just looked at
        raise SettingsError(f"{at}a limit has at most 12 decimals, not {given}")
    return amount


class Budgets:
    """The budgets in force, by what they hold for; immutable, but for what it remembers having found."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self.all = tuple(sorted(budgets, key=lambda budget: (SCOPES.index(budget.scope), *budget.key)))
        self._by_account: dict[tuple[str, str | None], list[Budget]] = {}
        for budget in self.all:
            self._by_account.setdefault((budget.scope, budget.scope_id), []).append(budget)
        on_each_request = [budget.limit_usd for budget in self._by_account.get(("request", None), ())]
        self._least_on_each_request = min(on_each_request, default=None)
        self._limits: dict[tuple[str | None, str, str, str, int], tuple[Limit, ...]] = {}  # of attempts alike

    def __bool__(self) -> bool:
        return bool(self.all)

    def on(self, **of: str | None) -> Iterator[tuple[Budget, str]]:
        """The budgets that hold for an attempt, each with the id it is counted under.

        of: request, session, task, tier and model of the attempt; without a session no session's does.
        """
        for scope in SCOPES:
            scope_id = of.get(scope, "")
            if scope_id is None:
                continue
            for key in ((scope, None), (scope, scope_id)):
                for budget in self._by_account.get(key, ()):
                    yield budget, scope_id

    def is_hard_on(self, **of: str | None) -> bool:
        """Whether a hard budget holds for an attempt."""
        return any(budget.mode == "hard" for budget, _ in self.on(**of))

    def limits_on(self, hold: Hold, quarter: int) -> Limits:
        """What an attempt that starts in that quarter of an hour must keep to."""
        of_request = [
            _limit(budget, hold.request_id, quarter) for budget in self._on_request(hold.request_id)
        ]
        return Limits(of_request, self.shared_on(hold, quarter))

    def shared_on(self, hold: Hold, quarter: int) -> tuple[Limit, ...]:
        """The same but for limits of its request alone; one object for all attempts alike."""
        alike = (hold.session_id, hold.task, hold.tier, hold.model, quarter)
        limits = self._limits.get(alike)
        if limits is None:
            if len(self._limits) >= _ALIKE_AT_MOST:
                self._limits.clear()
            of = dict(zip(("session", "task", "tier", "model"), alike[:4], strict=True))
            found = self.on(request=None, **of)
            limits = self._limits[alike] = tuple(_limit(*each, quarter) for each in found)
        return limits

    def least_on_request(self, request_id: str) -> Decimal | None:
        """The lowest limit on a request by itself, in USD; None: there is none."""
        if ("request", request_id) not in self._by_account:
            return self._least_on_each_request
        return min(budget.limit_usd for budget in self._on_request(request_id))

    def _on_request(self, request_id: str) -> list[Budget]:
        found = self._by_account
        return [*found.get(("request", None), ()), *found.get(("request", request_id), ())]


def _limit(budget: Budget, scope_id: str, quarter: int) -> Limit:
    if budget.scope not in ("day", "month"):
        return Limit(budget.scope, scope_id, budget.limit_usd, budget.mode)
    window = window_of(budget.scope, budget.tz, quarter)
    return Limit(budget.scope, window.label, budget.limit_usd, budget.mode, budget.tz, window)


NO_BUDGETS = Budgets()


class Warned(NamedTuple):
    """A warn limit that an attempt goes above, and what counted against it before."""

    limit: Limit
    balance: Balance


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


def is_above(limit: Limit, balance: Balance, hold: Hold) -> bool:
    """Whether the hold would take the balance above the limit; up to it is fine."""
    return total([*balance, hold.asked_usd or Decimal(0)]) > limit.limit_usd


def check(limit: Limit, balance: Balance, hold: Hold) -> None:
    """Raise a BudgetError if a hard limit would not hold, or could not be told to."""
    if not isinstance(hold.ceiling_usd, Decimal):
        raise hold.ceiling_usd.on(limit, balance)
    if is_above(limit, balance, hold):
        raise BudgetExceeded(
            scope=limit.scope,
            scope_id=limit.scope_id,
            limit_usd=limit.limit_usd,
            spent_usd=balance.spent_usd,
            reserved_usd=balance.reserved_usd,
            in_doubt_usd=balance.in_doubt_usd,
            asked_usd=hold.ceiling_usd,
            tz=limit.tz,
            request_id=hold.request_id,
        )


def in_words(warned: Warned, hold: Hold) -> str:
    """A warning as a log line."""
    limit, balance = warned
    asked = "an amount without a bound" if hold.asked_usd is None else f"at most ${plain(hold.asked_usd)}"
    return (
        f"{name_of(limit.scope, limit.scope_id, 'warn')}: an attempt of {asked} takes it above"
        f" ${plain(limit.limit_usd)}; spent ${plain(balance.spent_usd)}, reserved"
        f" ${plain(balance.reserved_usd)}, in doubt ${plain(balance.in_doubt_usd)}"
    )
