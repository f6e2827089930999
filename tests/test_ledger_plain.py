"""to_json: what route() returns, as JSON that loses nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.render import as_json
from router import to_json
from router.testing import FakeProvider, answer

ASK = [{"role": "user", "content": "Which elements can be clicked?"}]


def test_a_response_and_a_breakdown_have_their_money_as_strings(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeProvider(answer(tool="click", input={"at": ["é", 1]}, input_tokens=1000)) as fake:
        response = fake.router.route("analyze_page", ASK, session_id="s-1")
    text = to_json(response)
    breakdown = json.loads(to_json(fake.tracker.get_breakdown("s-1")))

    assert "\n" not in text
    assert json.loads(text) == {**response, "cost": "0.000270000000"}
    assert breakdown["REASONING"]["cost"] == "0.000270000000"
    assert breakdown["REASONING"]["input_tokens"] == 1000


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**6), max_value=10**6))
def test_money_comes_back_as_it_went_and_without_an_exponent(amount: Decimal) -> None:
    told = json.loads(to_json({"cost": amount}))["cost"]

    assert isinstance(told, str)
    assert Decimal(told) == amount
    assert "E" not in told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, None),
        (float("nan"), None),
        ([float("inf"), 0.5, True, 3], [None, 0.5, True, 3]),
        (datetime(2026, 11, 22, 10, 30, tzinfo=UTC), "2026-11-22T10:30:00+00:00"),
        (timedelta(seconds=90), 90),
        ({Decimal("0.10"): (1, 2)}, {"0.10": [1, 2]}),
    ],
)
def test_what_json_has_no_word_for_becomes_plain(value: object, told: object) -> None:
    assert json.loads(to_json(value)) == told


def test_the_command_line_speaks_the_same_json() -> None:
    value = {"cost_usd": Decimal("0.10"), "rows": [{"n": 1}, float("nan")]}

    assert json.loads(as_json(value)) == json.loads(to_json(value))
