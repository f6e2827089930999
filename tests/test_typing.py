"""What users type has the types it is promised, for mypy and for pyright, wrong uses included."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = ["tests/typing_uses.py", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*.py"))]


def complaints(*command: str) -> str:
    """What a checker prints where it is not content; empty where it is."""
    if find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; it is in the dev extra")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.stdout + done.stderr if done.returncode else ""


def test_mypy_reads_uses_and_examples_as_meant() -> None:
    of_their_own = "--cache-dir=.mypy_cache/uses"  # what `make typecheck` keeps is of other options
    assert complaints("mypy", "--strict", "--follow-imports=silent", of_their_own, *READ) == ""


def test_pyright_reads_uses_and_examples_as_meant() -> None:
    assert complaints("basedpyright", "--pythonpath", sys.executable) == ""
