"""A test of your own agent: no keys, no network, no waiting. Run it with pytest."""

from collections.abc import Iterator
from decimal import Decimal

import pytest

from ledger import Ledger
from router import CostTracker, LLMRouter
from router.testing import FakeProvider, answer, fails


def severity_of(bug: str, router: LLMRouter) -> str:
    """The agent under test."""
    ask = [{"role": "user", "content": f"Severity of this bug, high or low? {bug}"}]
    return router.route_with_fallback("evaluate_severity", ask, session_id="s-1")["content"]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


def test_a_busy_provider_is_waited_for(fake: FakeProvider) -> None:
    fake.script(fails(429, retry_after=30), answer("high", input_tokens=1000, output_tokens=200))

    assert severity_of("The basket is NaN.", fake.router) == "high"
    assert "NaN" in fake.calls[0].messages[0]["content"]
    assert fake.event_types.count("attempt_failed") == 1
    assert fake.cost_usd == Decimal("0.00049")  # 0.27 and 1.10 USD per million tokens


def test_what_it_spends_is_in_the_ledger(fake: FakeProvider) -> None:
    with Ledger.in_memory() as ledger:
        severity_of("A blurred logo.", LLMRouter(None, fake.openrouter, CostTracker(ledger)))
        assert ledger.connect().execute("select session_id, requests from sessions").fetchall() == [
            ("s-1", 1)
        ]
