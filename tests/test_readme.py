"""The README is true: its code runs, its commands work, and their output looks as it shows.

One simulated environment runs all blocks in their order, as a newcomer would paste them. Shown output
is compared line by line with every number taken as one, since times differ; … stands for what is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest

from router.simulator import Simulator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
NOT_RUN_HERE = ("python3 -m venv", ". ~/agent-env", "export ")  # the set-up that runs these tests, and keys


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], README[: match.start()].count("\n") + 2) for match in found]


def commands(block: Block) -> list[tuple[str, str]]:
    """Each command of a console block, with the output shown after it."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def outline(text: str) -> list[str]:
    """Text without what differs from run to run."""
    return [re.sub(r"[\d.,:-]*\d|\s{2,}", "#", line).strip() for line in text.strip().splitlines()]


def assert_shows(shown: str, printed: str) -> None:
    """What the README shows is what was printed, but for the lines left out."""
    expected, found = outline(shown), outline(printed)
    if expected[-1] == "…":
        expected.pop()
        found = found[: len(expected)]
    assert found == expected


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(seed=7) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


def run(command: list[str], folder: Path, simulator: Simulator) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ANTHROPIC_API_KEY": "not-a-key",
        "OPENROUTER_API_KEY": "not-a-key",
        "ANTHROPIC_BASE_URL": simulator.anthropic_url,
        "OPENROUTER_BASE_URL": simulator.openrouter_url,
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_of_the_readme_works_in_its_order(folder: Path, simulator: Simulator) -> None:
    for block in blocks():
        print(f"README.md, line {block.line}")  # shown when this test fails  # noqa: T201
        if block.language == "toml":
            (folder / "bughive.toml").write_text(block.text)
            run([sys.executable, "-m", "reports.cli", "report"], folder, simulator)
        elif block.language == "python":
            run([sys.executable, "-c", block.text], folder, simulator)
        elif block.language == "sql":
            connection = duckdb.connect()
            connection.execute((folder / "data/ledger/ledger.sql").read_text())
            assert connection.execute(block.text).fetchall()
        elif block.language == "console":
            for command, shown in commands(block):
                if command.startswith(NOT_RUN_HERE):
                    continue
                words = shlex.split(command.replace("make demo", "bughive-costs demo"))
                assert words[0] == "bughive-costs"
                printed = run([sys.executable, "-m", "reports.cli", *words[1:]], folder, simulator)
                if shown:
                    assert_shows(shown, printed)


def test_every_command_there_is_appears_in_the_readme() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "reports.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    known = re.findall(r"^  (\w+)  ", help_text[help_text.index("Commands:") :], re.MULTILINE)
    assert known
    assert [name for name in known if f"bughive-costs {name}" not in README] == []


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
