"""Histories and tools in either shape, for either provider."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import InvalidRequest
from router.messages import (
    anthropic_history,
    anthropic_tool_choice,
    anthropic_tools,
    openai_history,
    openai_tool_choice,
    openai_tools,
)

PNG = "iVBORw0KGgo="

ANTHROPIC_LOOP: list[dict[str, Any]] = [
    {"role": "user", "content": "Inspect the login form"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "screenshot", "input": {"selector": "#login"}},
            {"type": "tool_use", "id": "toolu_2", "name": "read_dom", "input": {}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a form"},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "<form>"},
        ],
    },
]
OPENAI_LOOP: list[dict[str, Any]] = [
    {"role": "user", "content": "Inspect the login form"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {
                "id": "toolu_1",
                "type": "function",
                "function": {"name": "screenshot", "arguments": '{"selector": "#login"}'},
            },
            {"id": "toolu_2", "type": "function", "function": {"name": "read_dom", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "toolu_1", "content": "a form"},
    {"role": "tool", "tool_call_id": "toolu_2", "content": "<form>"},
]


def test_a_tool_loop_is_translated_both_ways() -> None:
    assert openai_history(ANTHROPIC_LOOP) == OPENAI_LOOP
    assert anthropic_history(OPENAI_LOOP) == (None, ANTHROPIC_LOOP)


def test_what_has_the_targets_shape_goes_through_as_it_is() -> None:
    assert anthropic_history(ANTHROPIC_LOOP) == (None, ANTHROPIC_LOOP)
    assert openai_history(OPENAI_LOOP) == OPENAI_LOOP


def test_one_history_may_hold_both_shapes() -> None:
    mixed = [*ANTHROPIC_LOOP, *OPENAI_LOOP[1:]]

    assert openai_history(mixed) == [*OPENAI_LOOP, *OPENAI_LOOP[1:]]
    assert anthropic_history(mixed)[1] == [*ANTHROPIC_LOOP, *ANTHROPIC_LOOP[1:]]


def test_the_calls_of_a_response_can_be_sent_back_as_they_came() -> None:
    response = {"content": "I look.", "tool_calls": [{"id": "c1", "name": "click", "input": {"x": 1}}]}
    history = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": response["content"], "tool_calls": response["tool_calls"]},
    ]

    assert anthropic_history(history)[1][1]["content"][1]["input"] == {"x": 1}
    function = openai_history(history)[1]["tool_calls"][0]["function"]
    assert function == {"name": "click", "arguments": '{"x": 1}'}


def test_system_prompts_go_where_each_provider_wants_them() -> None:
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]

    assert anthropic_history(told, "You test.") == ("You test.\n\nBe brief.", told[1:])
    assert openai_history(told[1:], "You test.")[0] == {"role": "system", "content": "You test."}


def test_a_cached_system_prompt_stays_in_blocks() -> None:
    block = {"type": "text", "text": "You test.", "cache_control": {"type": "ephemeral"}}

    assert anthropic_history([], [block])[0] == [block]
    assert openai_history([], [block]) == [{"role": "system", "content": [block]}]


def test_tool_ids_are_ones_anthropic_accepts_on_both_ends() -> None:
    history = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "f.click:0", "function": {"name": "click"}}],
        },
        {"role": "tool", "tool_call_id": "f.click:0", "content": "done"},
    ]
    _, turns = anthropic_history(history)

    assert turns[0]["content"] == [{"type": "tool_use", "id": "f_click_0", "name": "click", "input": {}}]
    assert turns[1]["content"][0]["tool_use_id"] == "f_click_0"


def test_thinking_stays_behind_on_the_way_to_another_model() -> None:
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]}
    spoken = {"role": "assistant", "content": [*thought["content"], {"type": "text", "text": "Yes."}]}

    assert openai_history([thought, spoken]) == [{"role": "assistant", "content": "Yes."}]
    assert anthropic_history([spoken])[1] == [spoken]


def test_images_are_translated_inline_and_by_url() -> None:
    inline = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    linked = {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}
    as_parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
    ]

    assert openai_history([{"role": "user", "content": [inline, linked]}])[0]["content"] == as_parts
    assert anthropic_history([{"role": "user", "content": as_parts}])[1][0]["content"] == [inline, linked]


def test_a_picture_in_a_tool_result_follows_it_as_a_message() -> None:
    inline = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "the page"}, inline],
    }

    history = openai_history([{"role": "user", "content": [result]}])
    assert history[0] == {"role": "tool", "tool_call_id": "t1", "content": "the page"}
    assert history[1]["role"] == "user"
    assert history[1]["content"][0]["type"] == "image_url"


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (None, {}),
        ("[1]", {"arguments": "[1]"}),
        ("{}{", {"arguments": "{}{"}),
    ],
)
def test_anthropic_always_gets_an_object_of_arguments(arguments: str | None, sent: dict[str, Any]) -> None:
    call = {"id": "c", "function": {"name": "click", "arguments": arguments}}
    _, turns = anthropic_history([{"role": "assistant", "content": "", "tool_calls": [call]}])

    assert turns[0]["content"][0]["input"] == sent


def test_tools_are_translated_both_ways() -> None:
    schema = {"type": "object", "properties": {"selector": {"type": "string"}}}
    ours = {"name": "click", "description": "Click it", "input_schema": schema}
    theirs = {
        "type": "function",
        "function": {"name": "click", "description": "Click it", "parameters": schema},
    }

    assert openai_tools([ours, theirs]) == ([theirs, theirs], [])
    assert anthropic_tools([ours, theirs]) == [ours, ours]


def test_a_server_tool_goes_to_its_own_provider_only() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}

    assert anthropic_tools([search]) == [search]
    assert openai_tools([search]) == ([], ["web_search_20250305"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "click"}, {"type": "function", "function": {"name": "click"}}),
    ],
)
def test_tool_choice_is_translated_both_ways(ours: Any, theirs: Any) -> None:
    assert openai_tool_choice(ours) == theirs == openai_tool_choice(theirs)
    assert anthropic_tool_choice(theirs) == ours == anthropic_tool_choice(ours)


@pytest.mark.parametrize(
    "message",
    ["hello", {"content": "hello"}, {"role": "robot", "content": "x"}, {"role": "user", "content": 5}, None],
)
def test_what_is_no_message_is_refused_in_one_line(message: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        anthropic_history([message])

    assert "\n" not in str(refused.value)


def test_sound_has_no_place_at_anthropic() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}

    with pytest.raises(InvalidRequest, match="input_audio"):
        anthropic_history([{"role": "user", "content": [sound]}])
