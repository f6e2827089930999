"""A provider that bills more than an attempt could cost at most: it is said wherever one looks."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from ledger import CostTracker, Ledger
from ledger.budgets import Budget
from ledger.errors import BudgetExceeded
from ledger.verify import verify
from reports.cli import main
from router import AnthropicClient, LLMRouter, OpenRouterClient
from router.simulator import Reply, Simulator, Tokens

ASK = [{"role": "user", "content": "What is on this page?"}]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with one honest answer and one that is billed at a thousand times its ceiling."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "ledger"
    lie = Reply(usage=Tokens(10, 10), cost=Decimal("3.5"))
    with (
        Simulator(seed=7) as sim,
        Ledger.open(root, "process-crash", auto_seal=False) as ledger,
        AnthropicClient("sk-ant-test-key", base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url) as openrouter,
    ):
        ledger.set_budget(Budget("session", "s-1", Decimal(1)))
        router = LLMRouter(anthropic, openrouter, CostTracker(ledger))
        sim.script("deepseek/deepseek-chat", Reply(), lie)
        for session_id in ("s-2", "s-1"):
            router.route("analyze_page", ASK, session_id=session_id, max_tokens=10)
        with pytest.raises(BudgetExceeded, match=r"spent \$3\.5"):  # from the next attempt on it counts
            router.route("analyze_page", ASK, session_id="s-1", max_tokens=10)
    return root


def test_a_report_says_that_a_ceiling_was_broken(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("report", "--session", "s-1", "--ledger", str(path))
    assert main([*at]) == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("  Ceiling broken")]
    assert line.split(maxsplit=3)[2:] == [
        "1",
        "attempts that cost more than the most they could: limits may be overshot by that",
    ]
    [total, *_] = [line.split() for line in lines if line.startswith("  Total")]
    assert total[-2:] == ["$3.500000", "1"]


def test_a_report_of_a_session_without_one_does_not_speak_of_ceilings(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--session", "s-2", "--ledger", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "By tier" in shown
    assert "Ceiling" not in shown


def test_verify_counts_them_and_finds_nothing_wrong(path: Path) -> None:
    found = verify(path)
    assert not found.findings
    assert [(note.kind, note.times) for note in found.notes if note.kind == "ceiling-broken"] == [
        ("ceiling-broken", 1)
    ]
