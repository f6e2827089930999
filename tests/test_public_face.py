"""What is public is documented: each name on docs/api.md, each error in the docstring of what raises it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WRAPPERS = ("__func__", "fget", "func")  # of a class method, a property, a cached one
MODULES = ("router", "router.testing", "ledger", "reports")


def documented(module: str) -> list[str]:
    """The names in the tables of a module's section of docs/api.md."""
    page = (ROOT / "docs/api.md").read_text("utf-8")
    section = page.partition(f"\n## {module}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_all_is_exactly_what_is_documented(module: str) -> None:
    exported = import_module(module).__all__

    assert sorted(exported) == sorted(documented(module))
    assert all(hasattr(import_module(module), name) for name in exported)


def public_things() -> Iterator[tuple[str, Any]]:
    """Every public class and function, and the public methods and properties of the classes."""
    for module in MODULES:
        for name in import_module(module).__all__:
            thing = getattr(import_module(module), name)
            if isinstance(thing, type | FunctionType):
                yield f"{module}.{name}", thing
            if isinstance(thing, type):
                yield from members(f"{module}.{name}", thing)


def members(name: str, of: type) -> Iterator[tuple[str, Any]]:
    for each in of.__mro__:
        if each.__module__.split(".")[0] not in ("router", "ledger", "reports"):
            continue
        for member, value in vars(each).items():
            function = next((f for kind in WRAPPERS if (f := getattr(value, kind, None))), value)
            if not member.startswith("_") and isinstance(function, FunctionType):
                yield f"{name}.{member}", function


THINGS = dict(public_things())


def raised_by(thing: Any) -> set[str]:
    """The errors a function raises by its own words; for a class, those its making raises."""
    if isinstance(thing, type):
        thing = vars(thing).get("__init__")
        if not isinstance(thing, FunctionType) or thing.__code__.co_filename == "<string>":
            return set()  # it has none, or one that dataclass wrote
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    return {
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }


@pytest.mark.parametrize("name", THINGS)
def test_what_is_public_says_what_it_is_and_what_it_raises(name: str) -> None:
    doc = THINGS[name].__doc__ or ""

    assert doc.strip()
    assert not doc.startswith(f"{name.rpartition('.')[2]}("), "this is the one Python makes"
    told = doc.partition("Raises")[2]
    assert {error for error in raised_by(THINGS[name]) if error not in told} == set()


@pytest.mark.parametrize(
    ("name", "errors"),
    {
        "router.LLMRouter.route": (
            "InvalidRequest UnknownTask UnknownTier MissingKey SettingsError BudgetExceeded UnpricedModel"
            " UnboundedRequest RouteExhausted LedgerError"
        ),
        "router.AnthropicClient.create_message": "ProviderError MissingKey InvalidRequest LedgerError",
        "router.OpenRouterClient.create_completion": "ProviderError MissingKey InvalidRequest LedgerError",
        "router.testing.FakeProvider": "NotAsScripted SettingsError",
        "router.testing.FakeProvider.script": "UnknownTask",
        "ledger.Ledger.open": "LedgerError SettingsError",
        "ledger.Ledger.begin": "LedgerError",
        "ledger.Ledger.reserve": "BudgetExceeded",
        "reports.open": "LedgerError DamagedLedger SettingsError",
    }.items(),
)
def test_the_ways_in_name_what_comes_from_within(name: str, errors: str) -> None:
    told = (THINGS[name].__doc__ or "").partition("aises")[2]

    assert [error for error in errors.split() if error not in told] == []


def test_what_is_like_another_says_of_which() -> None:
    assert (THINGS["router.LLMRouter.route_with_fallback"].__doc__ or "").startswith("As `route`")
