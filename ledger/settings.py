"""Every setting, in one place: argument > environment > .env > bughive.toml > default.

    environment, .env     ANTHROPIC_API_KEY, OPENROUTER_API_KEY      asked for when first used
                          ANTHROPIC_BASE_URL, OPENROUTER_BASE_URL    other addresses, e.g. a proxy
                          BUGHIVE_LEDGER                             the ledger's folder
    bughive.toml          [ledger]      path, durability ("power-loss" | "process-crash")
                          [tiers.NAME]  model and provider           re-points a tier, or adds one
                                        timeout_s, max_retries       of one attempt; after the first
                                        first_token_s, idle_s        the most silence in a stream
                                        max_tokens                   where a call names none
                                        fallback = ["FAST", …]       for route_with_fallback()
                          [circuit]     enabled (true | false)       whether failing routes are left alone
                                        failures, probe_after_s      when, and for how long at a time
                          [[prices]]    as in ledger/prices.toml     own prices
                          [[budgets]]   scope, id, limit_usd         limits, see docs/budgets.md
                                        mode, tz                     hard or warn; of days and months

Both files are looked for in the working directory and upwards. A path in bughive.toml is
relative to that file. Keys belong into the environment or `.env`, which only its owner should be
able to read: else a warning says so, once. docs/settings.md has the whole list, proxies and
certificates included.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ledger.errors import SettingsError, nearest
from ledger.schema import TIER_ORDER
from ledger.secrecy import Hidden, frameless, scrubbed

Durability = Literal["power-loss", "process-crash"]
DEFAULT_LEDGER = Path("data/ledger")

_TABLES = {
    "ledger": ("path", "durability"),
    "circuit": ("enabled", "failures", "probe_after_s"),
    "tiers": (
        *("model", "provider", "timeout_s", "first_token_s", "idle_s"),
        *("max_retries", "max_tokens", "fallback"),
    ),
}
_TOP_KEYS = ("budgets", "ledger", "circuit", "prices", "tiers")
_BUDGET_KEYS = ("scope", "id", "limit_usd", "mode", "tz")
_PROVIDERS = ("anthropic", "openrouter")
_DURABILITIES = ("power-loss", "process-crash")
_READ_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH

_log = logging.getLogger("ledger")
_warned_of: set[Path] = set()


class TierSetting(NamedTuple):
    """What is set for a tier; None, and no fallback: as it is by default.

    `model` and `provider` stand together. `timeout_s` bounds one attempt, `max_retries` counts further
    attempts after the first, `max_tokens` holds for calls that name none. `first_token_s` and `idle_s` bound
    the silence of a stream before its first token and between two chunks.
    """

    model: str | None
    provider: str | None
    timeout_s: float | None = None
    max_retries: int | None = None
    max_tokens: int | None = None
    fallback: tuple[str, ...] = ()
    first_token_s: float | None = None
    idle_s: float | None = None


class CircuitSetting(NamedTuple):
    """When a failing model is left alone: `LLMRouter(circuit=…)`, or [circuit] in bughive.toml.

    failures: so many in a row open its circuit, in whichever processes of a host. probe_after_s: one request
    in so many seconds tries it all the same; the first that is answered closes the circuit. enabled=False:
    each request tries each model, whatever others found.
    """

    failures: int = 5
    probe_after_s: float = 30.0
    enabled: bool = True


class OwnPrice(NamedTuple):
    """A [[prices]] entry of bughive.toml, and the file and line it begins at."""

    where: str
    entry: Mapping[str, Any]


class OwnBudget(NamedTuple):
    """A [[budgets]] entry of bughive.toml, and the file and line it begins at."""

    where: str
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the environment, `.env` and `bughive.toml` say; never holds more than was found."""

    ledger_path: Path = DEFAULT_LEDGER
    durability: Durability = "power-loss"
    tiers: Mapping[str, TierSetting] = field(default_factory=dict)
    prices: tuple[OwnPrice, ...] = ()
    circuit: CircuitSetting = field(default_factory=CircuitSetting)
    budgets: tuple[OwnBudget, ...] = ()
    file: Path | None = None  # bughive.toml
    environ: Hidden = field(default_factory=lambda: Hidden({}), repr=False)  # may hold keys
    dotenv: Hidden = field(default_factory=lambda: Hidden({}), repr=False)

    @classmethod
    def load(cls, start: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
        """Read what applies in folder `start` (default: the working directory).

        Raises SettingsError naming file and line for a bughive.toml that cannot be meant.
        """
        folder = (start or Path.cwd()).absolute()
        environment = Hidden(os.environ if environ is None else environ)
        del environ  # what a traceback may show of this frame holds no key
        dotenv = _read_dotenv(_find_upwards(folder, ".env"))
        file = _find_upwards(folder, "bughive.toml")
        toml = _read_toml(file)
        named = environment.get("BUGHIVE_LEDGER") or dotenv.get("BUGHIVE_LEDGER")
        return cls(
            ledger_path=Path(named).expanduser() if named else (toml.ledger_path if toml else DEFAULT_LEDGER),
            durability=toml.durability if toml else "power-loss",
            tiers=toml.tiers if toml else {},
            prices=toml.prices if toml else (),
            circuit=toml.circuit if toml else CircuitSetting(),
            budgets=toml.budgets if toml else (),
            file=file,
            environ=environment,
            dotenv=dotenv,
        )

    def get(self, name: str) -> str | None:
        """A value of the environment, else of `.env`; None where it is absent or empty."""
        return self.environ.get(name) or self.dotenv.get(name) or None


def _find_upwards(folder: Path, name: str) -> Path | None:
    return next((path for at in (folder, *folder.parents) if (path := at / name).is_file()), None)


def _read_dotenv(path: Path | None) -> Hidden:
    if path is None:
        return Hidden({})
    from dotenv import dotenv_values  # late: most processes have no .env

    try:
        _warn_if_read_by_others(path)
        return Hidden({name: value for name, value in dotenv_values(path).items() if value is not None})
    except (OSError, UnicodeDecodeError) as error:
        problem = SettingsError(f"{path} cannot be read as a .env file: {error}")
    raise problem


def _warn_if_read_by_others(path: Path) -> None:
    mode = path.stat().st_mode
    if os.name == "posix" and mode & _READ_BY_OTHERS and path not in _warned_of:
        _warned_of.add(path)
        _log.warning("%s can be read by others (mode %03o); run: chmod 600 %s", path, mode & 0o777, path)


def _read_toml(path: Path | None) -> _TomlFile | None:
    """What was written into the wrong file may be a key: an error shows neither the file nor its frames."""
    try:
        return None if path is None else _TomlFile.read(path)
    except SettingsError as error:
        problem = frameless(error)
    raise problem


class _TomlFile:
    """A bughive.toml that was found to be in order."""

    def __init__(self, path: Path, text: str, content: Mapping[str, Any]) -> None:
        self._path = path
        self._text = text
        self._expect_keys(content, _TOP_KEYS, table=None)
        ledger = self._table(content, "ledger")
        self._expect_keys(ledger, _TABLES["ledger"], table="ledger")
        self.durability: Durability = self._one_of(
            ledger, "ledger", "durability", _DURABILITIES, "power-loss"
        )
        ledger_path = Path(self._text_of(ledger, "ledger", "path", str(DEFAULT_LEDGER)))
        self.ledger_path = path.parent / ledger_path.expanduser()
        self.tiers = self._tiers(self._table(content, "tiers"))
        self.prices = tuple(
            OwnPrice(where, entry)
            for where, entry in self._entries(content, "prices", "as in ledger/prices.toml")
        )
        self.budgets = tuple(
            OwnBudget(where, entry)
            for where, entry in self._entries(content, "budgets", "with scope and limit_usd")
        )
        for budget in self.budgets:
            for key in budget.entry:
                if key not in _BUDGET_KEYS:
                    hint = nearest(key, _BUDGET_KEYS)
                    raise SettingsError(
                        f"{budget.where}: [[budgets]] has no key {key!r};"
                        f" expected {', '.join(_BUDGET_KEYS)}{hint}"
                    )
        self.circuit = self._circuit(self._table(content, "circuit"))

    @classmethod
    def read(cls, path: Path) -> _TomlFile:
        import tomllib  # late: most processes have no bughive.toml

        try:
            text = path.read_text("utf-8")
            content = tomllib.loads(text, parse_float=Decimal)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} cannot be read: {error}; expected a TOML file in UTF-8") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f'{path}: {error}; expected TOML such as path = "data/ledger"') from error
        return cls(path, text, content)

    def _tiers(self, raw: Mapping[str, object]) -> Mapping[str, TierSetting]:
        tiers = {name: self._tier(name, tier) for name, tier in raw.items()}
        known = sorted({*TIER_ORDER, *tiers})
        for name, tier in tiers.items():
            for fallback in tier.fallback:
                if fallback not in known:
                    raise self._wrong(
                        f"tiers.{name}",
                        "fallback",
                        f"fallback in [tiers.{name}] names no tier {fallback!r}{nearest(fallback, known)};"
                        f" expected {', '.join(known)}",
                    )
        return tiers

    def _tier(self, name: str, raw: object) -> TierSetting:
        table = f"tiers.{name}"
        if not isinstance(raw, dict):
            raise self._wrong(None, "tiers", f"{table} must be a table [{table}] with model and provider")
        self._expect_keys(raw, _TABLES["tiers"], table=table)
        if ("model" in raw) != ("provider" in raw) or (name not in TIER_ORDER and "model" not in raw):
            raise self._wrong(table, None, f"[{table}] needs a model and its provider")
        fallback = raw.get("fallback", [])
        if not isinstance(fallback, list) or not all(isinstance(tier, str) for tier in fallback):
            raise self._wrong(table, "fallback", f"fallback in [{table}] must be a list of tiers")
        return TierSetting(
            self._text_of(raw, table, "model", "") or None,
            self._one_of(raw, table, "provider", _PROVIDERS, None),
            self._number_of(raw, table, "timeout_s", above=0),
            self._whole_of(raw, table, "max_retries", at_least=0),
            self._whole_of(raw, table, "max_tokens", at_least=1),
            tuple(fallback),
            self._number_of(raw, table, "first_token_s", above=0),
            self._number_of(raw, table, "idle_s", above=0),
        )

    def _circuit(self, raw: Mapping[str, Any]) -> CircuitSetting:
        self._expect_keys(raw, _TABLES["circuit"], table="circuit")
        enabled = raw.get("enabled", True)
        if not isinstance(enabled, bool):
            what = f"enabled in [circuit] must be true or false, not {enabled!r}"
            raise self._wrong("circuit", "enabled", what)
        default = CircuitSetting()
        return CircuitSetting(
            self._whole_of(raw, "circuit", "failures", at_least=1) or default.failures,
            self._number_of(raw, "circuit", "probe_after_s", above=0) or default.probe_after_s,
            enabled,
        )

    def _entries(
        self, content: Mapping[str, Any], name: str, expected: str
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each [[name]] table, with the file and line it begins at."""
        raw = content.get(name, [])
        if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
            raise self._wrong(None, name, f"{name} must be tables [[{name}]] {expected}")
        headers = [
            number
            for number, line in enumerate(self._text.splitlines(), start=1)
            if re.match(rf"\s*\[\[\s*{name}\s*\]\]", line)
        ]
        lines = headers if len(headers) == len(raw) else [self._line_of(None, name)] * len(raw)
        for line, entry in zip(lines, raw, strict=True):
            yield f"{self._path}, line {line}", entry

    def _number_of(self, content: Mapping[str, Any], table: str, key: str, above: int) -> float | None:
        value = content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | Decimal) or not above < value < 10**9:
            raise self._wrong(table, key, f"{key} in [{table}] must be a number above {above}, not {value}")
        return float(value)

    def _whole_of(self, content: Mapping[str, Any], table: str, key: str, at_least: int) -> int | None:
        value = content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value < 10**9:
            what = f"{key} in [{table}] must be a whole number of at least {at_least}, not {value}"
            raise self._wrong(table, key, what)
        return value

    def _table(self, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        table = content.get(name, {})
        if not isinstance(table, dict):
            raise self._wrong(None, name, f"{name} must be a table [{name}], not {table!r}")
        return table

    def _expect_keys(self, content: Mapping[str, Any], expected: tuple[str, ...], table: str | None) -> None:
        for key in content:
            if key not in expected:
                where = f"in [{table}]" if table else "at the top"
                hint = nearest(key, expected)
                raise self._wrong(
                    table, key, f"unknown key {key!r} {where}; expected {', '.join(expected)}{hint}"
                )

    def _text_of(self, content: Mapping[str, Any], table: str, key: str, default: str) -> str:
        value = content.get(key, default)
        if not isinstance(value, str) or (key in content and not value):
            raise self._wrong(
                table, key, f"{key} in [{table}] must be a text in quotes that is not empty, not {value!r}"
            )
        return value

    def _one_of(
        self, content: Mapping[str, Any], table: str, key: str, allowed: tuple[str, ...], default: str | None
    ) -> Any:
        value = content.get(key, default)
        if key in content and value not in allowed:
            raise self._wrong(table, key, f"{key} in [{table}] must be {' or '.join(allowed)}, not {value!r}")
        return value

    def _wrong(self, table: str | None, key: str | None, what: str) -> SettingsError:
        return SettingsError(f"{self._path}, line {self._line_of(table, key)}: {scrubbed(what)}")

    def _line_of(self, table: str | None, key: str | None) -> int:
        """The line that sets `key` in `table`: found by text, since tomllib keeps no positions."""
        current: str | None = None
        header_at = 1
        for number, line in enumerate(self._text.splitlines(), start=1):
            header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
            if header:
                current = header.group(1).replace('"', "").replace(" ", "")
                if current == table or (table is None and key and current.split(".")[0] == key):
                    header_at = number
                    if key is None or table is None:
                        return number
            elif current == table and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
                return number
        return header_at
