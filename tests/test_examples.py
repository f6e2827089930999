"""Every example runs as its reader would run it: a process of its own, against the simulator.

With BUGHIVE_LIVE_TESTS=1 and both keys set, against the real providers too, for a few cents.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from router.simulator import Reply, Simulator, ToolCall, cut_in_stream, not_found

ROOT = Path(__file__).parents[1]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
OPUS = "claude-opus-4-5-20251101"
REASONING = "deepseek/deepseek-chat"
GENERAL = "qwen/qwen-2.5-72b-instruct"
FAST = "qwen/qwen-2.5-32b-instruct"


class Play(NamedTuple):
    """What the simulated models reply, and what the example then prints, in this order."""

    replies: Mapping[str, Sequence[Reply]]
    printed: Sequence[str]


PLAYS = {
    "basic_routing": Play(
        {REASONING: [Reply(text="Three tests.")]}, ["Three tests.", f"{REASONING} (REASONING)", "Cost: $0.0"]
    ),
    "tools": Play(
        {OPUS: [Reply(tool_call=ToolCall("look_at", {"selector": "#go"})), Reply(text="It is not.")]},
        ["tool: look_at {'selector': '#go'}", "It is not."],
    ),
    "cost_tracking": Play(
        {},
        [
            "Session cost: $0.0",
            "REASONING: $0.0",
            "in 2 requests",
            "Model Breakdown:",
            '{"REASONING": {"cost": "0.0',
        ],
    ),
    "fallback": Play(
        {"claude-that-never-was": [not_found()] * 2, FAST: [Reply(text="Critical.")]},
        [
            "answered by FAST, in attempt 2:",
            "Critical.",
            "no answer: [('claude-that-never-was', 'not_found')]",
        ],
    ),
    "streaming": Play(
        {REASONING: [Reply(text="Try " * 9, broken=cut_in_stream(3).broken)], FAST: [Reply(text="Try it.")]},
        [f"--- stream_interrupted: {FAST} (FAST) begins anew ---", "Try it.", f"{FAST}: "],
    ),
    "new_task": Play(
        {GENERAL: [Reply(text="No label.")], FAST: [Reply(text="No role.")]},
        ["GENERAL says: No label.", f"{FAST} says: No role."],
    ),
    "direct_clients": Play(
        {OPUS: [Reply(text="Checkout.")], "nobody/no-such-model": [not_found()]},
        ["Checkout.", "no answer: not_found 404", "Session direct Cost Summary:", "Total Requests: 2"],
    ),
    "threads": Play({}, ["TypeError", "AbortError", "Total Requests: 4"]),
    "in_asyncio": Play({}, ["NaN. → ", "phones. → ", "else. → ", "Total Requests: 3"]),
    "test_your_agent": Play({}, ["2 passed"]),
}


def run(name: str, folder: Path, **environment: str) -> str:
    """What an example prints; it has to end well, and to complain of nothing."""
    how = ["-m", "pytest", "-p", "no:cacheprovider"] if name.startswith("test_") else []
    done = subprocess.run(
        [sys.executable, *how, str(EXAMPLES[name])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_prints_what_it_is_about(name: str, tmp_path: Path) -> None:
    with Simulator(seed=7) as sim:
        for model, replies in PLAYS[name].replies.items():
            sim.script(model, *replies)
        printed = run(
            name,
            tmp_path,
            ANTHROPIC_API_KEY="not-a-key",
            OPENROUTER_API_KEY="not-a-key",
            ANTHROPIC_BASE_URL=sim.anthropic_url,
            OPENROUTER_BASE_URL=sim.openrouter_url,
        )

    at = 0
    for words in PLAYS[name].printed:
        assert words in printed[at:], printed
        at = printed.index(words, at) + len(words)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_against_the_real_providers(name: str, tmp_path: Path) -> None:
    if os.environ.get("BUGHIVE_LIVE_TESTS") != "1":
        pytest.skip("spends money: set BUGHIVE_LIVE_TESTS=1 and both keys")
    if not (os.environ.get("ANTHROPIC_API_KEY") and os.environ.get("OPENROUTER_API_KEY")):
        pytest.skip("needs ANTHROPIC_API_KEY and OPENROUTER_API_KEY")

    assert run(name, tmp_path)


def test_an_example_is_read_in_a_minute_and_the_readme_leads_to_it() -> None:
    assert EXAMPLES.keys() == PLAYS.keys()
    assert {
        name: lines for name, path in EXAMPLES.items() if (lines := len(path.read_text().splitlines())) > 40
    } == {}
    assert "(examples)" in (ROOT / "README.md").read_text("utf-8")
