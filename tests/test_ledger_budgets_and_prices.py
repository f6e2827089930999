"""What a request may cost at most, what an answer did cost, and since when a price holds."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.budgets import Balance, Hold, Limit, ceiling_usd, check, prompt_tokens_at_most
from ledger.errors import BudgetExceeded, SettingsError, UnpricedModel
from ledger.money import dollars, pico, usd
from ledger.prices import LongContext, ModelPrices, PriceBook, ServiceTier, UnitPrices, Usage, list_cost_usd
from ledger.settings import OwnPrice, Settings

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
D = Decimal


def prices(**units: str) -> ModelPrices:
    return ModelPrices(
        "openrouter", "m", datetime(2025, 1, 1, tzinfo=UTC), UnitPrices(**{k: D(v) for k, v in units.items()})
    )


def own(**fields: Any) -> OwnPrice:
    since = datetime(2026, 1, 1, tzinfo=UTC).date()
    return OwnPrice(
        "bughive.toml, line 7", {"provider": "openrouter", "model": "own/model", "from": since, **fields}
    )


@pytest.mark.parametrize(
    ("provider", "model", "input_price", "output_price"),
    [
        ("anthropic", "claude-opus-4-5-20251101", "15", "75"),
        ("anthropic", "anthropic/claude-opus-4-5-20250514", "15", "75"),
        ("openrouter", "deepseek/deepseek-chat", "0.27", "1.10"),
        ("openrouter", "deepseek/deepseek-coder", "0.14", "0.28"),
        ("openrouter", "qwen/qwen-2.5-72b-instruct", "0.15", "0.60"),
        ("openrouter", "qwen/qwen-2.5-32b-instruct", "0.06", "0.24"),
    ],
)
def test_the_default_book_is_bughives_table(
    provider: str, model: str, input_price: str, output_price: str
) -> None:
    entry = PriceBook.load().at(provider, model, NOON)
    assert entry is not None
    assert (entry.base.input, entry.base.output) == (D(input_price), D(output_price))


@pytest.mark.parametrize(
    "model", ["claude-opus-4-5", "claude-opus-4-5-20991231", "CLAUDE-OPUS-4-5-20251101", ""]
)
def test_an_id_that_is_only_alike_is_unpriced(model: str) -> None:
    assert PriceBook.load().at("anthropic", model, NOON) is None


def test_a_price_holds_from_its_day_on_and_not_before() -> None:
    first, second = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    book = PriceBook.load([own(input=D(1)), own(input=D(2), **{"from": second.date()})])
    at = [book.at("openrouter", "own/model", moment) for moment in (first, second)]
    assert [entry.base.input for entry in at if entry] == [D(1), D(2)]
    assert book.at("openrouter", "own/model", datetime(2025, 12, 31, 23, 59, tzinfo=UTC)) is None


def test_own_prices_replace_those_that_ship_and_the_book_is_another() -> None:
    replaced = PriceBook.load([own(model="deepseek/deepseek-chat", input=D(1), output=D(1))])
    entry = replaced.at("openrouter", "deepseek/deepseek-chat", NOON)
    assert entry is not None
    assert entry.base.input == 1
    assert replaced.hash != PriceBook.load().hash
    assert PriceBook.load().hash == PriceBook.load().hash


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"input": D(-1)}, "input must be between 0"),
        ({"input": D("NaN")}, "input must be between 0"),
        ({"output": D("0.1234567")}, "at most six decimals"),
        ({"input": "cheap"}, "must be a number"),
        ({"inputs": D(1)}, "unknown key 'inputs'"),
        ({"from": "today"}, "must be a date"),
        ({"model": 3}, "must be strings"),
        ({"aliases": "x"}, "aliases must be a list of ids"),
        ({"overrun_tokens": -1}, "overrun_tokens must be a number of tokens, not -1"),
        ({"long_context": [{}]}, "above_tokens must be a number of tokens, not None"),
        ({"long_context": [{"above": 1}]}, "unknown key 'above' in long_context"),
        ({"long_context": 200_000}, "long_context must be tables"),
        ({"service_tiers": "batch"}, "service_tiers must be tables"),
        ({"service_tiers": {"batch": 0.5}}, "service_tiers must be tables"),
        ({"service_tiers": {"batch": {"input": D(-1)}}}, r"service_tiers\.batch: input must be between 0"),
        ({"service_tiers": {"batch": {"output": D("0.1234567")}}}, r"batch: output must have at most six"),
        ({"service_tiers": {"batch": {"factor": D(1)}}}, r"service_tiers\.batch: unknown key 'factor'"),
        ({"service_tiers": {"batch": {"long_context": [{}]}}}, r"service_tiers\.batch: above_tokens must be"),
        ({"service_tiers": {"standard": {"input": D(1)}}}, "prices of the standard tier stand in the entry"),
    ],
)
def test_a_price_that_cannot_be_meant_is_named(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=f"^bughive.toml, line 7: .*{complaint}"):
        PriceBook.load([own(**fields)])


def test_two_prices_of_one_model_from_the_same_day_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"two .*of openrouter own/model from 2026-01-01; keep one"):
        PriceBook.load([own(input=D(5)), own(input=D(6))])


def test_a_list_cost_adds_every_bucket_at_its_own_price() -> None:
    units = UnitPrices(D(15), D("1.5"), D("18.75"), D(30), D(75), D("0.01"))
    usage = Usage(1000, 2000, 300, 40, 500, 100, 3)
    # 0.015 + 0.003 + 0.005625 + 0.0012 + 0.0375 + 0.03
    assert list_cost_usd(units, usage) == D("0.092325")


@pytest.mark.parametrize("bucket", [name for name in Usage._fields if name != "reasoning_tokens"])
def test_one_unpriced_unit_makes_the_list_cost_unknown_and_an_empty_bucket_does_not(bucket: str) -> None:
    everything = UnitPrices(*[D(1)] * 6)
    unit = {"input_tokens": "input", "output_tokens": "output"}.get(
        bucket, bucket.removesuffix("_tokens").removesuffix("_requests")
    )
    without = everything._replace(**{unit: None})
    assert list_cost_usd(without, Usage(**{bucket: 1})) is None
    assert list_cost_usd(without, Usage()) == 0


def test_above_its_threshold_the_dearer_price_applies_to_all_tokens() -> None:
    dear = UnitPrices(input=D(2), output=D(4))
    model = prices(input="1", output="2")._replace(long_context=(LongContext(200_000, dear),))
    assert model.units(200_000) == model.base
    assert model.units(200_001) == dear


def test_an_answer_of_a_service_tier_has_that_tiers_prices_or_none() -> None:
    batch = {"input": D("0.5"), "long_context": [{"above_tokens": 200_000, "input": D("0.75")}]}
    book = PriceBook.load([own(input=D(1), output=D(2), service_tiers={"batch": batch})])
    model = book.at("openrouter", "own/model", NOON)
    assert model is not None
    for standard in (None, "standard", "default"):
        assert model.units(10, standard) == UnitPrices(input=D(1), output=D(2))
    assert model.units(10, "batch") == UnitPrices(input=D("0.5"))
    assert model.units(200_001, "batch") == UnitPrices(input=D("0.75"))
    assert model.units(10, "priority") == UnitPrices()
    assert list_cost_usd(model.units(10, "batch"), Usage(output_tokens=1)) is None
    assert list_cost_usd(model.units(10, "priority"), Usage(input_tokens=1)) is None


def test_another_price_of_a_service_tier_makes_another_book() -> None:
    def book(price: str) -> str:
        return PriceBook.load([own(input=D(1), service_tiers={"batch": {"input": D(price)}})]).hash

    assert book("0.5") == book("0.50") != book("0.51")


def test_a_ceiling_is_at_the_dearest_service_tier() -> None:
    dear = ServiceTier("priority", UnitPrices(input=D(2), output=D(3)))
    model = prices(input="1", output="1")
    both = [
        ceiling_usd(entry, b"x", message_count=1, has_tools=False, max_tokens=100)
        for entry in (model._replace(service_tiers=(dear,)), model._replace(base=dear.base))
    ]
    assert both[0] == both[1]


def test_service_tiers_are_written_in_bughive_toml_as_tables(tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_text("""
        [[prices]]
        provider = "openrouter"
        model = "own/model"
        from = 2026-01-01
        input = 2
        output = 10

        [prices.service_tiers.priority]
        input = 4
        output = 20
    """)
    model = PriceBook.load(Settings.load(tmp_path, {}).prices).at("openrouter", "own/model", NOON)
    assert model is not None
    assert model.units(1, "priority") == UnitPrices(input=D(4), output=D(20))

    (tmp_path / "bughive.toml").write_text("""
        [[prices]]
        provider = "openrouter"
        model = "own/model"
        from = 2026-01-01
        service_tiers = { flex = { input = -1 } }
    """)
    with pytest.raises(SettingsError, match=r"bughive\.toml, line 2: .* service_tiers\.flex: input must be"):
        PriceBook.load(Settings.load(tmp_path, {}).prices)


@given(
    text=st.text(max_size=200),
    messages=st.integers(1, 50),
    tools=st.booleans(),
    max_tokens=st.integers(1, 100_000),
    input_price=st.decimals("0.000001", 100, places=6),
    cache_price=st.decimals("0.000001", 100, places=6),
    output_price=st.decimals("0.000001", 100, places=6),
)
def test_no_usage_within_the_bounds_costs_more_than_the_ceiling(
    text: str,
    messages: int,
    tools: bool,
    max_tokens: int,
    input_price: Decimal,
    cache_price: Decimal,
    output_price: Decimal,
) -> None:
    body = text.encode("utf-8", "replace")
    model = prices(input=str(input_price), cache_write_5m=str(cache_price), output=str(output_price))
    ceiling = ceiling_usd(model, body, message_count=messages, has_tools=tools, max_tokens=max_tokens)
    prompt_tokens = prompt_tokens_at_most(body, messages, tools)
    for usage in (
        Usage(input_tokens=prompt_tokens, output_tokens=max_tokens),
        Usage(cache_write_5m_tokens=prompt_tokens, output_tokens=max_tokens),
    ):
        cost = list_cost_usd(model.base, usage)
        assert cost is not None
        assert cost <= ceiling


def test_a_ceiling_counts_bytes_messages_tools_every_answer_and_the_overrun() -> None:
    book = PriceBook.load([own(input=D(2), output=D(10), overrun_tokens=7)])
    model = book.at("openrouter", "own/model", NOON)
    assert model is not None

    def ceiling(**counted: Any) -> Decimal:
        counted = {"message_count": 1, "has_tools": False, "max_tokens": 50, **counted}
        return ceiling_usd(model, b"x" * 100, **counted)

    assert ceiling() == D("0.00285")  # (100 + 1,024 + 16) tokens at 2 USD per million, 50 + 7 at 10
    assert ceiling(message_count=4) - ceiling() == D("0.000096")
    assert ceiling(has_tools=True) - ceiling() == D("0.002048")
    assert ceiling(answers=3) - ceiling() == D("0.001")


def test_a_character_that_normalizes_into_many_counts_as_many() -> None:
    assert prompt_tokens_at_most("ﷺ".encode(), 1, has_tools=False) > len("ﷺ".encode()) + 1_024 + 16


@pytest.mark.parametrize("units", [{"input": "1"}, {"output": "1"}, {}])
def test_a_model_without_its_prices_has_no_ceiling(units: dict[str, str]) -> None:
    with pytest.raises(UnpricedModel, match="no price for prompt and answer of m"):
        ceiling_usd(prices(**units), b"", message_count=1, has_tools=False, max_tokens=1)


def test_a_limit_holds_up_to_its_last_picodollar() -> None:
    hold = Hold("a", "r", None, "t", "FAST", "m", D("0.25"))
    limit = Limit("request", "r", D(1))
    check(limit, Balance(D("0.25"), D("0.25"), D("0.25")), hold)
    with pytest.raises(BudgetExceeded) as refused:
        check(limit, Balance(D("0.25"), D("0.25"), D("0.250000000001")), hold)
    assert str(refused.value) == (
        "budget of request r exceeded: limit $1, spent $0.25, reserved $0.25, in doubt $0.250000000001,"
        " asked $0.25; raise the limit or lower max_tokens"
    )


def test_money_is_exact_whatever_decimal_context_the_program_has_set() -> None:
    units = UnitPrices(input=D("0.27"), output=D("1.10"))
    usage = Usage(input_tokens=123_456_789, output_tokens=987_654)
    model = prices(input="0.27", output="1.10")
    with localcontext() as context:
        context.prec = 6
        assert list_cost_usd(units, usage) == D("34.41975243")
        assert usd("0.1234567890125") == D("0.123456789012")
        assert dollars(pico(D("123.456789012345"))) == D("123.456789012345")
        ceiling = ceiling_usd(model, b"x" * 9_999_999, message_count=1, has_tools=False, max_tokens=7)
        with pytest.raises(BudgetExceeded, match=r"spent \$0\.9999999,"):
            check(
                Limit("all", "", D(1)),
                Balance(D("0.9999999")),
                Hold("a", "r", None, "t", "FAST", "m", D("0.0000002")),
            )
    assert ceiling == ceiling_usd(model, b"x" * 9_999_999, message_count=1, has_tools=False, max_tokens=7)


def test_a_book_is_the_same_whatever_decimal_context_the_program_has_set() -> None:
    entry = own(input=D("123.456789"), service_tiers={"batch": {"input": D("61.728394")}})
    with localcontext() as context:
        context.prec = 3
        narrow = PriceBook.load([entry])
        with pytest.raises(SettingsError, match="at most six decimals"):
            PriceBook.load([own(input=D("123.4567891"))])
    assert narrow.hash == PriceBook.load([entry]).hash
    assert narrow.hash != PriceBook.load([own(input=D("123"))]).hash


@pytest.mark.parametrize(
    "spelt", ["1e999999999", "1e99999999999999999999", "-1e999999999", "1e-999999999", ""]
)
def test_an_amount_out_of_all_bounds_is_not_known(spelt: str) -> None:
    assert usd(spelt) in (None, 0)
