"""`**params`: what each provider is told is what the table says, and what is not exact is said aloud."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sdk_shapes import assert_anthropic_accepts, assert_openrouter_accepts

from router import AnthropicClient, InvalidRequest, OpenRouterClient
from router.params import PARAMS, Param, Rule, Translated
from router.providers.client import Call, ProviderClient

DOCS = Path(__file__).parents[1] / "docs" / "params.md"
ASK = [{"role": "user", "content": "hi"}]
TOOLS = [{"name": "click", "input_schema": {"type": "object"}}]
CLIENTS: dict[str, ProviderClient] = {"anthropic": AnthropicClient("x"), "openrouter": OpenRouterClient("x")}
OF_THE_CALL = {"model", "messages", "max_tokens", "tools"}


class Told(NamedTuple):
    params: dict[str, Any]
    logged: str


def told(provider: str, caplog: pytest.LogCaptureFixture, /, max_tokens: int = 4096, **params: Any) -> Told:
    """What of the parameters is in the body, and what was logged of them."""
    caplog.clear()
    temperature = params.pop("temperature", None)
    tools = params.pop("tools", TOOLS)
    with caplog.at_level(logging.WARNING, "router"):
        call = Call(ASK, max_tokens, tools, temperature=temperature, params=params)
        body = CLIENTS[provider].body(call, "m")
    if provider == "anthropic":
        assert_anthropic_accepts(body)
    return Told({name: value for name, value in body.items() if name not in OF_THE_CALL}, caplog.text)


def rows(rule: str) -> list[Any]:
    return [
        pytest.param(param.name, provider, id=f"{param.name} to {provider}")
        for param in PARAMS
        for provider in CLIENTS
        if rule_of(param, provider) == rule
    ]


def rule_of(param: Param, provider: str) -> Rule:
    return param.anthropic if provider == "anthropic" else param.openrouter


# The table as it is read ----------------------------------------------------------------------

PLAIN: dict[str, Any] = {  # values of the right type, where a string will not do
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "stop_sequences": ["END"],
    "stop": ["END"],
    "parallel_tool_calls": False,
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "output_config": {"effort": "low"},
    "cache_control": {"type": "ephemeral"},
    "diagnostics": {"previous_message_id": "msg_1"},
    "speed": "fast",
}


@pytest.mark.parametrize(("name", "provider"), rows("passed"))
def test_what_is_passed_arrives_as_it_is(name: str, provider: str, caplog: pytest.LogCaptureFixture) -> None:
    value = PLAIN.get(name, "x")

    assert told(provider, caplog, **{name: value}) == ({name: value}, "")


@pytest.mark.parametrize(("name", "provider"), rows("left out"))
def test_what_is_left_out_is_logged_by_name(
    name: str, provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    params, logged = told(provider, caplog, **{name: PLAIN.get(name, "x")})

    assert params == {}
    assert f"{provider} knows nothing of {name}: left out" in logged


SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
LOOSE = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{}]}}
BUDGET = {"type": "enabled", "budget_tokens": 2000}

# parameter, provider, value → what is in the body, what of it is logged ("": nothing)
TRANSLATED: list[tuple[str, str, Any, dict[str, Any], str]] = [
    ("temperature", "anthropic", 0.5, {"temperature": 0.5}, ""),
    ("temperature", "anthropic", 1.7, {"temperature": 1.0}, "only nearly: temperature 1.7 as 1"),
    ("top_p", "anthropic", 0.5, {"top_p": 0.5}, ""),
    ("top_k", "anthropic", 5, {"top_k": 5}, ""),
    ("stop", "anthropic", "END", {"stop_sequences": ["END"]}, ""),
    ("stop", "anthropic", ["END", "\n"], {"stop_sequences": ["END"]}, r"stop '\n': left out"),
    ("stop", "anthropic", "\n", {}, r"stop '\n': left out"),
    ("stop_sequences", "openrouter", ["END"], {"stop": ["END"]}, ""),
    ("tool_choice", "anthropic", "required", {"tool_choice": {"type": "any"}}, ""),
    (
        "tool_choice",
        "anthropic",
        ALLOWED,
        {"tool_choice": {"type": "any"}},
        "nearly: tool_choice allowed_tools",
    ),
    ("tool_choice", "openrouter", {"type": "any"}, {"tool_choice": "required"}, ""),
    (
        "tool_choice",
        "openrouter",
        {"type": "auto", "disable_parallel_tool_use": True},
        {"tool_choice": "auto", "parallel_tool_calls": False},
        "",
    ),
    (
        "parallel_tool_calls",
        "anthropic",
        False,
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        "",
    ),
    ("parallel_tool_calls", "anthropic", True, {}, ""),
    ("thinking", "openrouter", BUDGET, {"reasoning": {"max_tokens": 2000}}, ""),
    ("thinking", "openrouter", {"type": "disabled"}, {"reasoning": {"effort": "none"}}, ""),
    ("thinking", "openrouter", {"type": "adaptive"}, {"reasoning": {"enabled": True}}, "nearly: thinking"),
    ("thinking", "openrouter", {"type": "new"}, {}, "knows nothing of thinking"),
    (
        "thinking",
        "openrouter",
        {**BUDGET, "display": "omitted"},
        {"reasoning": {"max_tokens": 2000, "exclude": True}},
        "",
    ),
    ("reasoning", "anthropic", {"max_tokens": 2000}, {"thinking": BUDGET}, ""),
    (
        "reasoning",
        "anthropic",
        {"max_tokens": 2000, "exclude": True},
        {"thinking": {**BUDGET, "display": "omitted"}},
        "",
    ),
    (
        "reasoning",
        "anthropic",
        {"max_tokens": 10},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "only nearly: reasoning {'max_tokens': 10} as a thinking budget of 1024 tokens",
    ),
    (
        "reasoning",
        "anthropic",
        {"max_tokens": 9000},
        {"thinking": {"type": "enabled", "budget_tokens": 4095}},
        "only nearly: reasoning {'max_tokens': 9000} as a thinking budget of 4095 tokens",
    ),
    (
        "reasoning",
        "anthropic",
        {"effort": "high"},
        {"thinking": {"type": "enabled", "budget_tokens": 3276}},
        "only nearly: reasoning {'effort': 'high'}",
    ),
    ("reasoning", "anthropic", {"effort": "none"}, {"thinking": {"type": "disabled"}}, ""),
    ("reasoning", "anthropic", {"enabled": False}, {"thinking": {"type": "disabled"}}, ""),
    ("reasoning", "anthropic", "much", {}, "knows nothing of reasoning"),
    (
        "reasoning_effort",
        "anthropic",
        "low",
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "only nearly: reasoning {'effort': 'low'}",
    ),
    ("metadata", "anthropic", {"user_id": "u"}, {"metadata": {"user_id": "u"}}, ""),
    ("metadata", "anthropic", {"team": "qa"}, {}, "metadata.team: left out"),
    ("metadata", "openrouter", {"user_id": "u", "team": "qa"}, {"user": "u", "metadata": {"team": "qa"}}, ""),
    ("user", "anthropic", "u", {"metadata": {"user_id": "u"}}, ""),
    ("service_tier", "anthropic", "default", {"service_tier": "standard_only"}, ""),
    ("service_tier", "anthropic", "auto", {"service_tier": "auto"}, ""),
    ("service_tier", "anthropic", "flex", {}, "service_tier 'flex': left out"),
    ("service_tier", "openrouter", "standard_only", {"service_tier": "default"}, ""),
    ("service_tier", "openrouter", "flex", {"service_tier": "flex"}, ""),
    (
        "response_format",
        "anthropic",
        FORMAT,
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        "",
    ),
    ("response_format", "anthropic", LOOSE, {}, "response_format that is no strict json_schema: left out"),
    ("response_format", "anthropic", {"type": "json_object"}, {}, "knows nothing of response_format"),
    ("response_format", "anthropic", {"type": "text"}, {}, ""),
    (
        "output_config",
        "openrouter",
        {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": FORMAT},
        "output_config.effort: left out",
    ),
]


@pytest.mark.parametrize(("name", "provider", "value", "body", "says"), TRANSLATED)
def test_what_is_translated_is_exact_or_says_what_is_not(
    name: str,
    provider: str,
    value: Any,
    body: dict[str, Any],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    params, logged = told(provider, caplog, **{name: value})

    assert params == body
    assert says in logged
    assert bool(logged) == bool(says)


def test_every_translation_of_the_table_has_an_example() -> None:
    translated = {
        (param.name, provider)
        for param in PARAMS
        for provider in CLIENTS
        if isinstance(rule_of(param, provider), Translated)
    }

    assert translated == {(name, provider) for name, provider, *_ in TRANSLATED}


# Several at once ------------------------------------------------------------------------------


def test_each_provider_gets_its_own_word_where_both_are_given(caplog: pytest.LogCaptureFixture) -> None:
    both: dict[str, Any] = {
        "thinking": BUDGET,
        "reasoning": {"effort": "low"},
        "stop": "A",
        "stop_sequences": ["B"],
        "user": "theirs",
        "metadata": {"user_id": "ours"},
    }

    assert told("anthropic", caplog, **both) == (
        {"thinking": BUDGET, "stop_sequences": ["B"], "metadata": {"user_id": "ours"}},
        "",
    )
    assert told("openrouter", caplog, **both) == (
        {"reasoning": {"effort": "low"}, "stop": "A", "user": "theirs"},
        "",
    )


def test_a_choice_and_one_tool_at_a_time_are_told_together(caplog: pytest.LogCaptureFixture) -> None:
    for choice, kind in (("required", "any"), ("none", "none"), ({"type": "auto"}, "auto")):
        params, logged = told("anthropic", caplog, tool_choice=choice, parallel_tool_calls=False)
        only_one = {} if kind == "none" else {"disable_parallel_tool_use": True}
        assert params == {"tool_choice": {"type": kind, **only_one}}
        assert logged == ""


@pytest.mark.parametrize("provider", CLIENTS)
def test_without_tools_nothing_is_said_of_them(provider: str, caplog: pytest.LogCaptureFixture) -> None:
    params, logged = told(provider, caplog, tools=None, tool_choice="auto", parallel_tool_calls=False)

    assert params == {}
    assert "knows nothing of tool_choice, parallel_tool_calls: left out" in logged


def test_what_anthropic_refuses_beside_thinking_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    wanted = {"max_tokens": 2000}
    params, logged = told("anthropic", caplog, reasoning=wanted, temperature=0.2, top_k=5, top_p=0.5)
    assert params == {"thinking": BUDGET}
    for name in ("temperature", "top_k", "top_p"):
        assert f"{name} beside reasoning" in logged

    params, logged = told("anthropic", caplog, reasoning=wanted, tool_choice="required", temperature=0.2)
    assert params == {"tool_choice": {"type": "any"}, "temperature": 0.2}
    assert "reasoning beside a forced tool_choice: left out" in logged

    params, logged = told("anthropic", caplog, max_tokens=500, reasoning=wanted)
    assert params == {}
    assert "reasoning within max_tokens=500: left out" in logged


def test_form_and_effort_are_told_together(caplog: pytest.LogCaptureFixture) -> None:
    params, logged = told("anthropic", caplog, response_format=FORMAT, output_config={"effort": "low"})

    assert params["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}
    assert logged == ""


@pytest.mark.parametrize("provider", CLIENTS)
def test_what_is_not_in_the_table_is_passed_and_none_is_nothing(
    provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    call = Call(ASK, 10, params={"brand_new": {"a": 1}, "seed": None, "betas": None})

    assert CLIENTS[provider].body(call, "m")["brand_new"] == {"a": 1}
    assert "seed" not in CLIENTS[provider].body(call, "m")
    assert caplog.text == ""


@pytest.mark.parametrize("params", [{"stop": 5}, {"tool_choice": 5}])
def test_what_cannot_be_read_is_refused(params: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(params))):
        told("anthropic", caplog, **params)


def test_bodies_are_what_the_official_sdks_send() -> None:
    params = {
        "stop_sequences": ["END"],
        "tool_choice": {"type": "any"},
        "metadata": {"user_id": "u"},
        "seed": 5,
    }
    ours = Call(ASK, 2000, TOOLS, "You test.", 0.5, {**params, "reasoning": {"effort": "none"}})
    theirs = Call(ASK, 2000, TOOLS, "You test.", 0.5, {**params, "thinking": BUDGET})

    assert_anthropic_accepts(CLIENTS["anthropic"].body(ours, "m"))
    assert_openrouter_accepts(CLIENTS["openrouter"].body(theirs, "m"))


# The table as it is documented ----------------------------------------------------------------


def documented() -> Iterator[tuple[str, str, str]]:
    _, _, table = DOCS.read_text("utf-8").partition("| parameter | Anthropic | OpenRouter |\n|---|---|---|\n")
    for line in table.partition("\n\n")[0].splitlines():
        names, ours, theirs = (cell.strip() for cell in line.strip("|").split("|"))
        for name in names.split(", "):
            yield name.strip("`"), ours, theirs


def test_the_documentation_is_the_table() -> None:
    def words(rule: Rule) -> str:
        return rule.says if isinstance(rule, Translated) else rule

    assert sorted(documented()) == sorted(
        (param.name, words(param.anthropic), words(param.openrouter)) for param in PARAMS
    )
