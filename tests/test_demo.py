"""The demo as its user sees it: what it plays, what it prints, and whether its sums are right.

The first run is made in this process, for the simulator's log; the second by the command, in the
same folder, so that it adds a session to the ledger of the first.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest
from events_by_hand import answered_request
from rich.console import Console

from ledger import Ledger
from ledger.errors import LedgerError
from reports.demo import DemoResult, run_demo
from router import TASK_MODEL_MAP
from router.simulator import Served

ROOT = Path(__file__).parent.parent

# USD per token of Opus, by the price book: input, output, cache read, cache writes of 5 m and 1 h
OPUS_USD = [Decimal(price) / 1_000_000 for price in ("15", "75", "1.5", "18.75", "30")]


class Played(NamedTuple):
    folder: Path
    first: DemoResult
    first_output: str
    second_output: str


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("demo")
    out = Console(file=io.StringIO(), width=120)
    first = run_demo(folder / "data/demo", out, seed=7)
    second = run_command(folder, ["demo"])
    return Played(folder, first, out.file.getvalue(), second)  # type: ignore[attr-defined]


def run_command(folder: Path, arguments: Sequence[str]) -> str:
    """What `bughive-costs` prints when it is called in that folder; it has to end well."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from reports.cli import main; sys.exit(main())", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def cost_of(served: Served) -> Decimal:
    """The cost of one answer, added up without the ledger: as reported, else tokens × prices."""
    if served.tokens is None:
        return Decimal(0)
    if served.provider == "openrouter":
        assert served.cost_usd is not None
        return served.cost_usd
    return sum((count * price for count, price in zip(served.tokens, OPUS_USD, strict=False)), Decimal(0))


def report_of(played: Played, session_id: str) -> dict[str, object]:
    report: dict[str, object] = json.loads(_reported(played.folder, session_id))
    return report


@cache  # the sessions are over: each report is printed once
def _reported(folder: Path, session_id: str) -> str:
    return run_command(
        folder, ["report", "--session", session_id, "--format", "json", "--ledger", "data/demo"]
    )


def test_the_report_agrees_to_the_last_digit_with_what_the_providers_served(played):
    report = report_of(played, "crawl_demo")

    assert Decimal(str(report["cost_usd"])) == sum(map(cost_of, played.first.served))
    assert report["attempts"] == len(played.first.served)
    assert report["input_tokens"] == sum(s.tokens.prompt_tokens for s in played.first.served if s.tokens)
    assert report["output_tokens"] == sum(s.output_tokens for s in played.first.served)


def test_each_tier_s_sum_is_that_of_its_own_models(played):
    tiers = {
        "claude": "ORCHESTRATOR",
        "chat": "REASONING",
        "coder": "CODING",
        "72b": "GENERAL",
        "32b": "FAST",
    }
    served: dict[str, Decimal] = {}
    for call in played.first.served:
        tier = next(tier for mark, tier in tiers.items() if mark in call.model)
        served[tier] = served.get(tier, Decimal(0)) + cost_of(call)

    report = report_of(played, "crawl_demo")
    assert {row["tier"]: Decimal(row["cost_usd"]) for row in report["by_tier"]} == served  # type: ignore[attr-defined]


def test_a_second_run_is_a_session_of_its_own_that_costs_the_same(played):
    first, second = report_of(played, "crawl_demo"), report_of(played, "crawl_demo_2")

    assert second["cost_usd"] == first["cost_usd"]
    assert second["by_tier"] == first["by_tier"]


def test_sixty_requests_over_all_tasks_and_tiers_are_answered(played):
    report = report_of(played, "crawl_demo")

    assert (report["requests"], report["failed_requests"]) == (60, 0)
    assert len(report["by_tier"]) == 5  # type: ignore[arg-type]
    asked = duckdb.sql(f"select distinct task from {_segments(played)} where task is not null").fetchall()
    assert {task for (task,) in asked} == set(TASK_MODEL_MAP)


def test_everything_that_goes_wrong_in_it_is_on_the_books(played):
    failed = duckdb.sql(
        f"select error_type, http_status, retry_after_s, count(*) from {_segments(played)}"
        " where event_type = 'attempt_failed' and session_id = 'crawl_demo' group by all order by all"
    ).fetchall()
    kinds = duckdb.sql(
        f"select event_type, count(*) from {_segments(played)}"
        " where session_id = 'crawl_demo' group by all order by all"
    ).fetchall()

    assert sorted(failed, key=str) == [
        ("overloaded", 503, 0.2, 3),
        ("overloaded", 529, None, 1),
        ("rate_limited", 429, 1.0, 1),
        ("timeout", None, None, 1),
    ]
    assert kinds == [
        ("attempt_failed", 6),
        ("attempt_started", 66),
        ("attempt_succeeded", 60),
        ("fallback_engaged", 2),
        ("request_completed", 60),
        ("request_received", 60),
    ]
    assert report_of(played, "crawl_demo")["in_doubt"]["attempts"] == 1  # type: ignore[index]


def test_the_tool_s_result_went_back_to_the_model_that_asked_for_it(played):
    planned = [call.request_body["messages"] for call in played.first.served if "tools" in call.request_body]

    assert [len(messages) for messages in planned] == [1, 3]
    assert planned[1][1]["content"][0]["type"] == "tool_use"
    assert planned[1][2]["content"][0]["tool_use_id"] == planned[1][1]["content"][0]["id"]


def test_in_a_pipe_it_prints_plain_text_and_says_what_happened(played):
    for output in (played.first_output, played.second_output):
        assert "\x1b" not in output
        assert "60 requests, 66 attempts" in output
        for counted in ("rate limits waited out 1", "timeouts 1", "fallbacks 2", "tool calls 1"):
            assert counted in output


def test_the_commands_it_suggests_work_as_they_stand(played):
    suggested = [
        shlex.split(line)[1:]
        for line in played.second_output.partition("Next:")[2].splitlines()
        if line.strip().startswith("bughive-costs")
    ]

    assert len(suggested) >= 3
    for arguments in suggested:
        assert run_command(played.folder, arguments)


def test_no_key_is_anywhere(played):
    written = [path.read_bytes() for path in played.folder.rglob("*") if path.is_file()]

    assert written
    assert not any(b"demo-key" in content for content in written)
    assert "demo-key" not in played.first_output + played.second_output + repr(played.first.served)


def test_a_folder_that_is_no_ledger_is_left_as_it_is(tmp_path):
    own = tmp_path / "notes.txt"
    own.write_text("mine")

    with pytest.raises(LedgerError):
        run_demo(tmp_path, Console(file=io.StringIO()), seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def _segments(played: Played) -> str:
    files = played.folder / "data/demo/events/**/*.parquet"
    return f"read_parquet('{files}', hive_partitioning=true, union_by_name=true)"


def test_it_does_not_write_to_a_ledger_with_anything_else_in_it(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "own") as ledger:
        answered_request(ledger, "r-1")
    with pytest.raises(LedgerError, match="holds 1 requests of your own; name another folder"):
        run_demo(tmp_path / "own", Console(file=io.StringIO()), 7)
