"""Imports point one way: reports → ledger ← router."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("router", "ledger", "reports")
ALLOWED = {
    "ledger": {"ledger"},
    "router": {"router", "ledger"},
    "reports": {"reports", "ledger"},
}
THE_DEMO_PLAYS_A_SESSION = {"reports/demo.py", "reports/demo_session.py"}

MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    """Which of our packages a module imports, anywhere in it but under TYPE_CHECKING."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found.update(name.name.split(".")[0] for name in node.names)
    return found & set(PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_package_stands_on(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    allowed = ALLOWED[name.split("/")[0]] | ({"router"} if name in THE_DEMO_PLAYS_A_SESSION else set())
    assert imported_packages(path) <= allowed
