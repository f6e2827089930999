"""`bughive-costs performance`: how each model did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from played import ROUTES, History

from ledger.events import CircuitOpened
from reports.cli import main

CHAT, QWEN = ROUTES["REASONING"][1], ROUTES["FAST"][1]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[str]:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1
            REASONING   ok        in=1000 out=200 ms=1200
        session=s-1
            REASONING   503
            REASONING   503
            FAST        ok        in=1000 out=200 ms=80
    """)
    history.record(
        CircuitOpened(
            tier="REASONING", provider="openrouter", model=CHAT, error_type="server_error", wait_s=30,
            started_at=datetime(2026, 11, 22, 11, 5, 7, tzinfo=UTC), reason="2 failures in a row",
        )
    )  # fmt: skip
    yield str(history.path)
    history.close()


def test_people_see_each_model_and_since_when_it_is_left_alone(
    ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["performance", "--ledger", ledger, "--tz", "Europe/Berlin"]) == 0
    title, _, _, *rows = capsys.readouterr().out.splitlines()

    assert title == "Models (Europe/Berlin)"
    words = [row.split() for row in rows]
    assert words[0][1:9] == [CHAT, "3", "33.3%", "1,200", "1,200", "1", "1", "2026-11-22"]
    assert words[0][9] == "12:05:07"
    assert words[1][1:9] == [QWEN, "1", "100.0%", "80", "80", "0", "0", "-"]


def test_programs_get_the_figures_as_they_are(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["performance", "--ledger", ledger, "--format", "json"]) == 0
    chat, qwen = json.loads(capsys.readouterr().out)

    assert (chat["provider"], chat["model"], chat["attempts"]) == ("openrouter", CHAT, 3)
    assert chat["circuit_opened_at"] == "2026-11-22T11:05:07.000000Z"
    assert (chat["circuit_openings"], chat["circuit_open_s"], chat["fallbacks"]) == (1, None, 1)
    assert (qwen["success_ratio"], qwen["circuit_openings"], qwen["circuit_opened_at"]) == (1.0, 0, None)


def test_a_ledger_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["performance", "--ledger", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
