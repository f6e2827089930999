"""What a token costs, and since when: the price book, and the list cost of a usage.

    prices.toml, bughive.toml ──PriceBook.load()──▶ book.at(provider, model, moment) ──▶ ModelPrices | None
    ModelPrices.units(prompt tokens, service tier) ──▶ UnitPrices
    list_cost_usd(UnitPrices, Usage) ──▶ Decimal | None

Prices are USD per million tokens, exact decimals. An unknown price is None, and so is any cost
that would need it; nothing is ever taken for $0.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ledger.errors import SettingsError
from ledger.money import MONEY, dollars, usd
from ledger.settings import OwnPrice

_DATED = re.compile(r"(.+)-20\d{6}")
_PRICE_PLACES = Decimal("0.000001")
_DEFAULT_BOOK = Path(__file__).with_name("prices.toml")


class Usage(NamedTuple):
    """Tokens of one answer in disjoint buckets; `reasoning_tokens` is a part of `output_tokens`."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    web_search_requests: int = 0

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt, cached or not."""
        return (
            self.input_tokens
            + self.cache_read_tokens
            + self.cache_write_5m_tokens
            + self.cache_write_1h_tokens
        )


class UnitPrices(NamedTuple):
    """USD per million tokens, `web_search` per search; None: not known."""

    input: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write_5m: Decimal | None = None
    cache_write_1h: Decimal | None = None
    output: Decimal | None = None
    web_search: Decimal | None = None

    def as_event_fields(self) -> dict[str, Decimal | None]:
        """The unit prices under the names outcome events record them by."""
        return {
            "input_usd_per_mtok": self.input,
            "cache_read_usd_per_mtok": self.cache_read,
            "cache_write_5m_usd_per_mtok": self.cache_write_5m,
            "cache_write_1h_usd_per_mtok": self.cache_write_1h,
            "output_usd_per_mtok": self.output,
            "web_search_usd_per_request": self.web_search,
        }


class LongContext(NamedTuple):
    """Prices for all tokens of a request whose prompt has more than `above_tokens`."""

    above_tokens: int
    units: UnitPrices


class ServiceTier(NamedTuple):
    """The prices of a service tier, such as batch or priority, in place of all of the model's own."""

    name: str
    base: UnitPrices
    long_context: tuple[LongContext, ...] = ()


STANDARD_TIERS = (None, "standard", "default")  # what the providers call the tier that has the base prices
_UNPRICED = UnitPrices()


class ModelPrices(NamedTuple):
    """One entry of the book: the prices of one model from one day on."""

    provider: str
    model: str
    starts_at: datetime
    base: UnitPrices
    long_context: tuple[LongContext, ...] = ()
    service_tiers: tuple[ServiceTier, ...] = ()
    overrun_tokens: int = 0  # tokens the model is known to write beyond max_tokens
    aliases: tuple[str, ...] = ()
    source: str = ""
    checked: str = ""  # the day somebody looked
    ends_at: datetime | None = None  # from then on it holds no more; None: until a later entry
    dated_suffix: bool = False  # whether the id may be followed by a date, as in claude-opus-4-5-20251101

    @property
    def names(self) -> tuple[str, ...]:
        """The ids it is known by."""
        return (self.model, *self.aliases)

    def units(self, prompt_tokens: int, service_tier: str | None = None) -> UnitPrices:
        """The unit prices for a prompt of that many tokens; all None in a tier the book does not have."""
        if service_tier in STANDARD_TIERS:
            return _units_for(prompt_tokens, self.base, self.long_context)
        for tier in self.service_tiers:
            if tier.name == service_tier:
                return _units_for(prompt_tokens, tier.base, tier.long_context)
        return _UNPRICED

    def all_units(self) -> tuple[UnitPrices, ...]:
        """Every set of unit prices that may come to apply."""
        tables = (
            (self.base, self.long_context),
            *((tier.base, tier.long_context) for tier in self.service_tiers),
        )
        return tuple(units for base, dearer in tables for units in (base, *(tier.units for tier in dearer)))


def _units_for(prompt_tokens: int, base: UnitPrices, long_context: Iterable[LongContext]) -> UnitPrices:
    dearer = [tier for tier in long_context if prompt_tokens > tier.above_tokens]
    return max(dearer, key=lambda tier: tier.above_tokens).units if dearer else base


def list_cost_usd(units: UnitPrices, usage: Usage) -> Decimal | None:
    """Σ tokens × price × 0.000001, exact; None where a bucket that is not empty has no price.

    In whole 1e-12 USD: a price has at most six decimals per million tokens, so one token costs a
    whole number of them. None too for what a ledger cannot hold, a million dollars or more.
    """
    total_pico = 0
    for count, price, per in (
        (usage.input_tokens, units.input, 1),
        (usage.cache_read_tokens, units.cache_read, 1),
        (usage.cache_write_5m_tokens, units.cache_write_5m, 1),
        (usage.cache_write_1h_tokens, units.cache_write_1h, 1),
        (usage.output_tokens, units.output, 1),
        (usage.web_search_requests, units.web_search, 1_000_000),
    ):
        if count == 0:
            continue
        if price is None:
            return None
        total_pico += count * per * _pico_per_token(price)
    return usd(dollars(total_pico))


def _pico_per_token(usd_per_mtok: Decimal) -> int:
    return int(usd_per_mtok.scaleb(6, context=MONEY))


class PriceBook:
    """Dated prices by provider and model; immutable. `hash` names its content in events."""

    def __init__(self, entries: Iterable[ModelPrices]) -> None:
        self._entries: dict[tuple[str, str], list[ModelPrices]] = {}
        for entry in entries:
            for name in entry.names:
                self._entries.setdefault((entry.provider, name), []).append(entry)
        for dated in self._entries.values():
            dated.sort(key=lambda entry: entry.starts_at)
        self.hash = _hash_of(self._entries)

    @classmethod
    def load(cls, own: Iterable[OwnPrice] = ()) -> PriceBook:
        """The book that ships with this package, with the user's `own` entries winning by model.

        Raises SettingsError naming file, line and entry for a price that is negative, not finite, has more
        than six decimals, or stands without model, provider or day; for periods that overlap, and for an
        id that two models claim.
        """
        shipped = tomllib.loads(_DEFAULT_BOOK.read_text("utf-8"), parse_float=Decimal)["prices"]
        own_entries = [_entry(price.entry, price.where) for price in own]
        _refuse_overlaps(own_entries)
        own_names = {(entry.provider, name) for entry in own_entries for name in entry.names}
        kept = [
            entry._replace(
                aliases=tuple(name for name in entry.aliases if (entry.provider, name) not in own_names)
            )
            for entry in (_entry(raw, _DEFAULT_BOOK.name) for raw in shipped)
            if (entry.provider, entry.model) not in own_names
        ]
        return cls([*kept, *own_entries])

    @classmethod
    def of_tables(cls, tables: Iterable[Mapping[str, Any]], where: str) -> PriceBook:
        """A book from tables as `as_tables` gives them. Raises SettingsError as `load` does."""
        return cls([_entry(_parsed(table), where) for table in tables])

    @property
    def entries(self) -> list[ModelPrices]:
        """All entries, each once, by provider, model and the day they begin."""
        found = {id(entry): entry for dated in self._entries.values() for entry in dated}
        return sorted(found.values(), key=lambda entry: (entry.provider, entry.model, entry.starts_at))

    def at(self, provider: str, model: str, moment: datetime) -> ModelPrices | None:
        """The entry in force at that moment; None: the model has no price then."""
        in_force = _at(self._entries.get((provider, model), ()), moment)
        if in_force is None and (dated := _DATED.fullmatch(model)):
            undated = _at(self._entries.get((provider, dated[1]), ()), moment)
            return undated if undated is not None and undated.dated_suffix else None
        return in_force


def _parsed(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table whose days and prices are texts, as one of TOML."""
    read: dict[str, Any] = {}
    for name, value in table.items():
        if name in ("from", "until"):
            read[name] = datetime.fromisoformat(value)
        elif name in _UNIT_KEYS:
            read[name] = Decimal(value)
        elif name == "long_context":
            read[name] = [_parsed(tier) for tier in value]
        elif name == "service_tiers":
            read[name] = {tier: _parsed(prices) for tier, prices in value.items()}
        else:
            read[name] = value
    return read


def _at(dated: Iterable[ModelPrices], moment: datetime) -> ModelPrices | None:
    """The last entry that has begun by a moment, unless it has ended."""
    begun = None
    for entry in dated:
        if entry.starts_at <= moment:
            begun = entry
    return begun if begun is None or begun.ends_at is None or moment < begun.ends_at else None


def _refuse_overlaps(entries: Sequence[ModelPrices]) -> None:
    """Raise SettingsError for two periods of a model that overlap, and for a name that two models claim."""
    claimed: dict[tuple[str, str], str] = {}
    before: dict[tuple[str, str], ModelPrices] = {}
    for entry in sorted(entries, key=lambda entry: entry.starts_at):
        said = f"[[prices]] of {entry.provider} {entry.model} from {entry.starts_at:%Y-%m-%d}"
        earlier = before.get((entry.provider, entry.model))
        if earlier is not None and earlier.starts_at == entry.starts_at:
            raise SettingsError(f"bughive.toml has two {said}; keep one")
        if earlier is not None and earlier.ends_at is not None and entry.starts_at < earlier.ends_at:
            raise SettingsError(
                f"bughive.toml: {said} begins before the one from {earlier.starts_at:%Y-%m-%d} ends,"
                f" on {earlier.ends_at:%Y-%m-%d}; let one end where the next begins"
            )
        before[entry.provider, entry.model] = entry
        for name in entry.names:
            other = claimed.setdefault((entry.provider, name), entry.model)
            if other != entry.model:
                raise SettingsError(
                    f"bughive.toml: {entry.provider} {name} is claimed by {other} and {entry.model};"
                    " let one have it"
                )


_UNIT_KEYS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "web_search")
_ENTRY_KEYS = {
    *_UNIT_KEYS,
    *("provider", "model", "aliases", "from", "until", "source", "checked"),
    *("long_context", "service_tiers", "overrun_tokens", "dated_suffix"),
}


def _entry(raw: Mapping[str, Any], where: str) -> ModelPrices:
    """One [[prices]] table as an entry; raises SettingsError naming it."""
    label = f"{where}: [[prices]] of {raw.get('provider', '?')} {raw.get('model', '?')}"
    unknown = sorted(set(raw) - _ENTRY_KEYS)
    if unknown:
        raise SettingsError(f"{label}: unknown key {unknown[0]!r}; expected {', '.join(sorted(_ENTRY_KEYS))}")
    starts_on = raw.get("from")
    if not (isinstance(raw.get("provider"), str) and isinstance(raw.get("model"), str)):
        raise SettingsError(f"{label}: provider and model must be strings")
    if not isinstance(starts_on, date):
        raise SettingsError(f"{label}: from must be a date like 2026-11-22, not {starts_on!r}")
    ends_on = raw.get("until")
    if ends_on is not None and not (
        isinstance(ends_on, date) and _midnight_utc(starts_on) < _midnight_utc(ends_on)
    ):
        raise SettingsError(f"{label}: until must be a date after {starts_on}, not {ends_on!r}")
    if not isinstance(raw.get("dated_suffix", False), bool):
        raise SettingsError(f"{label}: dated_suffix must be true or false, not {raw['dated_suffix']!r}")
    aliases = raw.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise SettingsError(f"{label}: aliases must be a list of ids, not {aliases!r}")
    return ModelPrices(
        provider=raw["provider"],
        model=raw["model"],
        starts_at=_midnight_utc(starts_on),
        base=_units(raw, label),
        long_context=_long_context(raw.get("long_context", []), label),
        service_tiers=_service_tiers(raw.get("service_tiers", {}), label),
        overrun_tokens=_tokens(raw.get("overrun_tokens", 0), f"{label}: overrun_tokens"),
        aliases=tuple(aliases),
        source=str(raw.get("source", "")),
        checked=str(raw.get("checked", "")),
        ends_at=None if ends_on is None else _midnight_utc(ends_on),
        dated_suffix=raw.get("dated_suffix", False),
    )


def _long_context(raw: object, label: str) -> tuple[LongContext, ...]:
    if not isinstance(raw, list) or not all(isinstance(tier, dict) for tier in raw):
        raise SettingsError(f"{label}: long_context must be tables with above_tokens and prices")
    tiers = []
    for tier in raw:
        unknown = sorted(set(tier) - {"above_tokens", *_UNIT_KEYS})
        if unknown:
            raise SettingsError(f"{label}: unknown key {unknown[0]!r} in long_context")
        above = _tokens(tier.get("above_tokens"), f"{label}: above_tokens")
        tiers.append(LongContext(above, _units(tier, label)))
    return tuple(sorted(tiers, key=lambda tier: tier.above_tokens))


def _service_tiers(raw: object, label: str) -> tuple[ServiceTier, ...]:
    if not isinstance(raw, dict) or not all(isinstance(tier, dict) for tier in raw.values()):
        raise SettingsError(
            f"{label}: service_tiers must be tables of prices by tier, like batch = {{ input = 1 }}"
        )
    return tuple(_service_tier(name, raw[name], f"{label}: service_tiers.{name}") for name in sorted(raw))


def _service_tier(name: str, raw: Mapping[str, Any], label: str) -> ServiceTier:
    if name in STANDARD_TIERS:
        raise SettingsError(
            f"{label}: the prices of the {name} tier stand in the entry itself; put them there"
        )
    unknown = sorted(set(raw) - {"long_context", *_UNIT_KEYS})
    if unknown:
        raise SettingsError(
            f"{label}: unknown key {unknown[0]!r}; expected long_context, {', '.join(_UNIT_KEYS)}"
        )
    return ServiceTier(name, _units(raw, label), _long_context(raw.get("long_context", []), label))


def _tokens(value: object, label: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**12:
        raise SettingsError(f"{label} must be a number of tokens, not {value!r}")
    return value


def _midnight_utc(day: date) -> datetime:
    if isinstance(day, datetime):
        return day.astimezone(UTC) if day.tzinfo else day.replace(tzinfo=UTC)
    return datetime.combine(day, time(), UTC)


def _units(raw: Mapping[str, Any], label: str) -> UnitPrices:
    return UnitPrices(**{key: _price(raw[key], f"{label}: {key}") for key in _UNIT_KEYS if key in raw})


def _price(value: object, label: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise SettingsError(f"{label} must be a number of USD, not {value!r}")
    price = Decimal(value)
    if not price.is_finite() or price < 0 or price >= 1_000_000:
        raise SettingsError(f"{label} must be between 0 and 1,000,000 USD, not {value}")
    if price != price.quantize(_PRICE_PLACES, context=MONEY):
        raise SettingsError(f"{label} must have at most six decimals, not {value}")
    return price


def _hash_of(entries: Mapping[tuple[str, str], list[ModelPrices]]) -> str:
    text = repr(sorted((key, [_canonical(entry) for entry in dated]) for key, dated in entries.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(entry: ModelPrices) -> str:
    """What of an entry decides a figure, spelt the same for equal prices."""
    tiers = [(tier.name, _spelt(tier.base, tier.long_context)) for tier in entry.service_tiers]
    base = _spelt(entry.base, entry.long_context)
    told = (entry.starts_at.isoformat(), base, tiers, entry.overrun_tokens)
    if entry.ends_at is None and not entry.dated_suffix:
        return repr(told)
    return repr((*told, entry.ends_at and entry.ends_at.isoformat(), entry.dated_suffix))


def _spelt(base: UnitPrices, long_context: Sequence[LongContext]) -> list[tuple[int, list[str | None]]]:
    tables = [(0, base), *((tier.above_tokens, tier.units) for tier in long_context)]
    return [
        (above, [None if price is None else format(price.normalize(MONEY), "f") for price in units])
        for above, units in tables
    ]


def as_tables(entries: Iterable[ModelPrices]) -> list[dict[str, Any]]:
    """Entries as the tables they are written as: what `PriceBook.of_tables` reads. Prices are texts."""
    return [_table_of(entry) for entry in entries]


def _table_of(entry: ModelPrices) -> dict[str, Any]:
    table: dict[str, Any] = {
        "provider": entry.provider,
        "model": entry.model,
        "aliases": list(entry.aliases),
        "from": entry.starts_at.isoformat(),
        "until": entry.ends_at and entry.ends_at.isoformat(),
        "source": entry.source,
        "checked": entry.checked,
        "overrun_tokens": entry.overrun_tokens,
        "dated_suffix": entry.dated_suffix,
        **_prices_of(entry.base, entry.long_context),
        "service_tiers": {
            tier.name: _prices_of(tier.base, tier.long_context) for tier in entry.service_tiers
        },
    }
    return {name: value for name, value in table.items() if value not in (None, "", [], {}, 0, False)}


def _prices_of(base: UnitPrices, long_context: Iterable[LongContext]) -> dict[str, Any]:
    prices: dict[str, Any] = {
        key: format(price, "f") for key, price in base._asdict().items() if price is not None
    }
    dearer = [{"above_tokens": tier.above_tokens, **_prices_of(tier.units, ())} for tier in long_context]
    return prices | ({"long_context": dearer} if dearer else {})
