"""The price book in force, how it differs from published prices, and taking those over.

The published prices are those of the package genai-prices, which is looked at as it is installed: nothing is
fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ledger.errors import LedgerError, SettingsError
from ledger.money import plain, total
from ledger.price_books import kept
from ledger.prices import LongContext, ModelPrices, PriceBook, UnitPrices, Usage, list_cost_usd
from ledger.reader import existing_ledger, reading
from ledger.settings import OwnPrice, Settings
from reports.render import Column, Document, Table

_UNITS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "web_search")
_TITLES = ("Input", "Output", "Cache read", "Write 5m", "Write 1h", "Search")
_LIST_COLUMNS = (
    Column("provider", "Provider", "text", can_go=True),
    Column("model", "Model", "text", whole=True),
    *(Column(name, title, "raw") for name, title in zip(_UNITS, _TITLES, strict=True)),
    Column("aliases", "Aliases", "text", detail=True),
    Column("from", "From", "text"),
    Column("until", "Until", "text", detail=True),
    Column("more", "More", "text", detail=True),
    Column("source", "Source", "text", can_go=True),
    Column("checked", "Checked", "text"),
)
_UNPRICED_COLUMNS = (
    Column("provider", "Provider", "text"),
    Column("model", "Model", "text", whole=True),
    Column("attempts", "Attempts", "count"),
    Column("input_tokens", "Input tokens", "count"),
    Column("output_tokens", "Output tokens", "count"),
)
_DIFF_COLUMNS = (
    Column("provider", "Provider", "text", can_go=True),
    Column("model", "Model", "text", whole=True),
    Column("unit", "Unit", "text"),
    Column("ours_usd", "Ours", "raw"),
    Column("theirs_usd", "Published", "raw"),
    Column("difference_usd", "Difference", "raw"),
)
_COST_COLUMNS = (
    Column("provider", "Provider", "text", can_go=True),
    Column("model", "Model", "text", whole=True),
    Column("attempts", "Attempts", "count"),
    Column("ours_usd", "At our prices", "usd"),
    Column("theirs_usd", "At published prices", "usd"),
)
_DAYS = 30
Row = dict[str, Any]


class Prices(NamedTuple):
    """A book's prices at a moment, USD per million tokens (a search: each), and what has none."""

    book: str
    at: datetime
    rows: list[Row]
    unpriced: list[Row]

    def table(self) -> Table:
        """One row per model."""
        return Table("", _LIST_COLUMNS, self.rows)

    def data(self) -> Row:
        """All of it."""
        return {"price_book": self.book, "at": self.at, "prices": self.rows, "unpriced": self.unpriced}

    def document(self) -> Document:
        """For people."""
        tables = [self.table()]
        if self.unpriced:
            tables.append(Table("Unpriced: asked, and not in the book", _UNPRICED_COLUMNS, self.unpriced))
        return Document(f"Price book {self.book} at {self.at:%Y-%m-%d}, USD per million tokens", [], tables)


class Difference(NamedTuple):
    """Where our prices and published ones differ, and what the last 30 days cost by each."""

    version: str
    rows: list[Row]
    costs: list[Row]
    missing: list[str]

    def table(self) -> Table:
        """One row per price that differs."""
        return Table("", _DIFF_COLUMNS, self.rows)

    def data(self) -> Row:
        """All of it; a cost is null where a unit that was used has no price."""
        return {
            "genai_prices": self.version,
            "differences": self.rows,
            "last_30_days": self.costs,
            "not_published": self.missing,
        }

    def document(self) -> Document:
        """For people."""
        tables = [self.table()] if self.rows else []
        if self.costs:
            tables.append(Table(f"What the last {_DAYS} days cost", _COST_COLUMNS, self.costs))
        notes = [] if self.rows else ["no price differs"]
        if self.missing:
            notes.append(f"not in genai-prices: {', '.join(self.missing)}")
        return Document(f"Our prices and those of genai-prices {self.version}", [], tables, "; ".join(notes))


def price_list(path: Path, *, at: datetime, book_hash: str | None = None) -> Prices:
    """The prices in force at a moment, by the book in use or one the ledger has kept.

    Raises SettingsError for a broken bughive.toml, LedgerError for a book that is not kept.
    """
    book = (
        PriceBook.load(Settings.load().prices)
        if book_hash is None
        else kept(existing_ledger(path), book_hash)
    )
    names = sorted({(entry.provider, entry.model) for entry in book.entries})
    entries = [entry for provider, model in names if (entry := book.at(provider, model, at)) is not None]
    return Prices(book.hash, at, [_row(entry) for entry in entries], _unpriced(path, book, at))


def _row(entry: ModelPrices) -> Row:
    more = [f"above {tier.above_tokens:,} tokens" for tier in entry.long_context]
    more += [tier.name for tier in entry.service_tiers]
    units = {name: _shown(getattr(entry.base, name)) for name in _UNITS}
    return {
        "provider": entry.provider,
        "model": entry.model,
        **units,
        "aliases": ", ".join(entry.aliases),
        "from": f"{entry.starts_at:%Y-%m-%d}",
        "until": None if entry.ends_at is None else f"{entry.ends_at:%Y-%m-%d}",
        "more": ", ".join(more),
        "source": entry.source,
        "checked": entry.checked,
    }


def _shown(price: Decimal | None) -> str | None:
    return None if price is None else plain(price)


def _unpriced(path: Path, book: PriceBook, at: datetime) -> list[Row]:
    """Models that were asked and have no price now, or whose attempts had none, dearest in tokens first."""
    if not path.exists():
        return []
    with reading(path, views=("events", "attempts")) as connection:
        found = connection.execute(
            "select provider, model, count(*), coalesce(sum(input_tokens), 0)::bigint,"
            " coalesce(sum(output_tokens), 0)::bigint, count(*) filter (where is_unpriced) from attempts"
            " group by provider, model order by sum(input_tokens) desc nulls last, model"
        ).fetchall()
    names = ("provider", "model", "attempts", "input_tokens", "output_tokens")
    return [
        dict(zip(names, row[:-1], strict=True))
        for row in found
        if row[-1] or book.at(row[0], row[1], at) is None
    ]


def price_diff(path: Path, *, now: datetime) -> Difference:
    """Our prices against those of genai-prices. Raises LedgerError where that package is not installed."""
    book = PriceBook.load(Settings.load().prices)
    rows, theirs, missing = [], {}, []
    for ours in _in_force(book, now):
        published = _published(ours, now)
        if published is None:
            missing.append(ours.model)
            continue
        theirs[ours.provider, ours.model] = published
        rows += list(_differences(ours, published))
    return Difference(_version(), rows, _costs(path, book, theirs, now), missing)


def _in_force(book: PriceBook, now: datetime) -> Iterator[ModelPrices]:
    for provider, model in sorted({(entry.provider, entry.model) for entry in book.entries}):
        if (entry := book.at(provider, model, now)) is not None:
            yield entry


def _differences(ours: ModelPrices, theirs: ModelPrices) -> Iterator[Row]:
    for unit in _UNITS:
        here, there = getattr(ours.base, unit), getattr(theirs.base, unit)
        if here != there:
            yield {
                "provider": ours.provider,
                "model": ours.model,
                "unit": unit,
                "ours_usd": _shown(here),
                "theirs_usd": _shown(there),
                "difference_usd": None if here is None or there is None else plain(there - here),
            }


def _costs(
    path: Path, book: PriceBook, theirs: Mapping[tuple[str, str], ModelPrices], now: datetime
) -> list[Row]:
    """What the answers of the last days cost by our book now, and by the published prices."""
    if not path.exists():
        return []
    buckets = [name for name in Usage._fields if name != "reasoning_tokens"]
    with reading(path, views=("events",)) as connection:
        found = connection.execute(
            f"select provider, model, {', '.join(f'coalesce({name}, 0)' for name in buckets)} from events"
            " where event_type in ('attempt_succeeded', 'attempt_failed') and billing = 'billed'"
            " and output_tokens is not null and started_at >= ?::timestamptz",
            [(now - timedelta(days=_DAYS)).isoformat()],
        ).fetchall()
    usages: dict[tuple[str, str], list[Usage]] = {}
    for provider, model, *counts in found:
        entry = book.at(provider, model, now)
        if entry is not None and (provider, entry.model) in theirs:
            usage = Usage(**dict(zip(buckets, counts, strict=True)))
            usages.setdefault((provider, entry.model), []).append(usage)
    return [
        _cost_row(name, book.at(name[0], name[1], now), theirs[name], of)
        for name, of in sorted(usages.items())
    ]


def _cost_row(
    name: tuple[str, str], ours: ModelPrices | None, theirs: ModelPrices, usages: Sequence[Usage]
) -> Row:
    assert ours is not None, "it was looked up by its own name"
    return {
        "provider": name[0],
        "model": name[1],
        "attempts": len(usages),
        "ours_usd": _cost(ours, usages),
        "theirs_usd": _cost(theirs, usages),
    }


def _cost(prices: ModelPrices, usages: Sequence[Usage]) -> Decimal | None:
    costs = [list_cost_usd(prices.units(usage.prompt_tokens), usage) for usage in usages]
    known = [cost for cost in costs if cost is not None]
    return total(known) if len(known) == len(costs) else None


def _version() -> str:
    from importlib import metadata

    return metadata.version("genai-prices")


def _published(ours: ModelPrices, now: datetime) -> ModelPrices | None:
    """What genai-prices says of a model; None where it does not know it."""
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError as error:
        raise LedgerError("genai-prices is not installed; pip install genai-prices") from error
    for name in ours.names:
        try:
            _, model = get_snapshot().find_provider_model(name, None, ours.provider, None)
        except LookupError:
            continue
        prices = model.get_prices(now)
        tiers = [getattr(getattr(prices, field, None), "tiers", ()) for field in _THEIR_NAMES.values()]
        thresholds = sorted({tier.start for each in tiers for tier in each})
        return ours._replace(
            base=_units_above(prices, None),
            long_context=tuple(LongContext(above, _units_above(prices, above)) for above in thresholds),
            service_tiers=(),
        )
    return None


_THEIR_NAMES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write_5m": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
}


def _units_above(prices: Any, above_tokens: int | None) -> UnitPrices:
    """Published prices for a prompt of more tokens than that; None: for any that has no other."""
    units = {
        unit: _number(getattr(prices, field, None), above_tokens) for unit, field in _THEIR_NAMES.items()
    }
    searches = _number(getattr(prices, "web_searches_kcount", None), above_tokens)
    return UnitPrices(**units, web_search=None if searches is None else searches / 1000)


def _number(price: Any, above_tokens: int | None) -> Decimal | None:
    """One price of perhaps several, by the length of the prompt."""
    number = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if above_tokens is not None and tier.start <= above_tokens:
            number = tier.price
    return number if isinstance(number, Decimal) else None


def import_prices(models: Sequence[str], *, file: Path | None, now: datetime) -> tuple[Path, list[str]]:
    """Write published prices of our models, all that differ or those named, into bughive.toml.

    Gives the file and the models. Raises SettingsError, LedgerError: nothing was changed.
    """
    settings = Settings.load()
    book = PriceBook.load(settings.prices)
    target = file or settings.file or Path.cwd() / "bughive.toml"
    own = {(price.entry.get("provider"), price.entry.get("model")): price.where for price in settings.prices}
    taken, tables = [], []
    for ours in _in_force(book, now):
        if models and not set(models) & set(ours.names):
            continue
        published = _published(ours, now)
        if published is None or not list(_differences(ours, published)):
            if models:
                raise LedgerError(
                    f"genai-prices has no other price of {ours.model}; see bughive-costs prices diff"
                )
            continue
        if where := own.get((ours.provider, ours.model)):
            raise SettingsError(
                f"{where}: {ours.model} has a price there already; change it there, or remove it"
            )
        taken.append(ours.model)
        tables.append(_toml(ours, published, now.date()))
    unknown = [name for name in models if not any(name in entry.names for entry in book.entries)]
    if unknown:
        raise LedgerError(f"the book has no model {unknown[0]}; see bughive-costs prices list")
    if tables:
        _append(target, "".join(tables))
    return target, taken


def _toml(ours: ModelPrices, published: ModelPrices, today: date) -> str:
    aliases = ", ".join(f'"{alias}"' for alias in ours.aliases)
    lines = ["", "[[prices]]", f'provider = "{ours.provider}"', f'model = "{ours.model}"']
    lines += [f"aliases = [{aliases}]"] if aliases else []
    lines += [f"from = {ours.starts_at:%Y-%m-%d}"]
    lines += [
        f"{unit} = {plain(price)}" for unit, price in published.base._asdict().items() if price is not None
    ]
    lines += [f'source = "genai-prices {_version()}"', f"checked = {today}"]
    for tier in published.long_context:
        lines += ["", "[[prices.long_context]]", f"above_tokens = {tier.above_tokens}"]
        dearer = tier.units._asdict().items()
        lines += [f"{unit} = {plain(price)}" for unit, price in dearer if price is not None]
    return "\n".join(lines) + "\n"


def _append(target: Path, text: str) -> None:
    """Add to the file, once what it would say is found to be in order."""
    import tomllib

    before = target.read_text("utf-8") if target.exists() else ""
    joined = (before.rstrip("\n") + "\n" if before else "") + text.lstrip("\n" if not before else "")
    content = tomllib.loads(joined, parse_float=Decimal)
    PriceBook.load(OwnPrice(str(target), entry) for entry in content["prices"])
    try:
        target.write_text(joined, "utf-8")
    except OSError as error:
        raise LedgerError(
            f"{target} cannot be written: {error.strerror}; see the permissions of {target.parent}"
        ) from error


def moment_of(text: str | None, now: datetime) -> datetime:
    """The moment --at means; None: now."""
    from reports.options import moment_named

    return now if text is None else moment_named(text, UTC, "--at")
