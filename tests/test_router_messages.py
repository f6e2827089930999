"""Histories and tools in either shape, for either provider."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.errors import InvalidRequest
from router.messages import anthropic_history, openai_history
from router.tools import anthropic_tool_choice, anthropic_tools, openai_tool_choice, openai_tools

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
    def later(loop: list[dict[str, Any]]) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = json.loads(json.dumps(loop[1:]).replace("toolu_", "later_"))
        return written

    mixed = [*ANTHROPIC_LOOP, *later(OPENAI_LOOP)]

    assert openai_history(mixed) == [*OPENAI_LOOP, *later(OPENAI_LOOP)]
    assert anthropic_history(mixed)[1] == [*ANTHROPIC_LOOP, *later(ANTHROPIC_LOOP)]


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
    assert history[1]["content"][0] == {"type": "text", "text": "From tool call t1:"}
    assert history[1]["content"][1]["type"] == "image_url"


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (None, {}),
        ("[1]", {"arguments": "[1]"}),
        ("{}{", {"arguments": "{}{"}),
        ('{"a": NaN}', {"arguments": '{"a": NaN}'}),
    ],
)
def test_anthropic_always_gets_an_object_of_arguments(arguments: str | None, sent: dict[str, Any]) -> None:
    call = {"id": "c", "function": {"name": "click", "arguments": arguments}}
    _, turns = anthropic_history([{"role": "assistant", "content": "", "tool_calls": [call]}])

    assert turns[0]["content"][0]["input"] == sent


def test_arguments_that_are_no_object_are_told_as_the_model_wrote_them() -> None:
    call = {"id": "c1", "name": "click", "input": None, "input_raw": "{}{"}
    history = [{"role": "assistant", "content": "", "tool_calls": [call]}]

    assert openai_history(history)[0]["tool_calls"][0]["function"]["arguments"] == "{}{"
    assert anthropic_history(history)[1][0]["content"][0]["input"] == {"arguments": "{}{"}


def test_a_failed_tool_says_so_in_both_shapes() -> None:
    failed = {"type": "tool_result", "tool_use_id": "t1", "content": "no such page", "is_error": True}
    told = {"role": "tool", "tool_call_id": "t1", "content": "no such page", "is_error": True}

    as_message = {"role": "tool", "tool_call_id": "t1", "content": "Error: no such page"}
    assert openai_history([{"role": "user", "content": [failed]}]) == [as_message] == openai_history([told])
    assert anthropic_history([told])[1] == [{"role": "user", "content": [failed]}]


@pytest.mark.parametrize(("result", "text"), [({"forms": 2}, '{"forms": 2}'), ([1, 2], "[1, 2]"), (0, "0")])
def test_a_result_that_is_json_is_told_as_its_text(result: Any, text: str) -> None:
    block = {"type": "tool_result", "tool_use_id": "t1", "content": result}
    message = {"role": "tool", "tool_call_id": "t1", "content": result}

    for history in ([message], [{"role": "user", "content": [block]}]):
        assert openai_history(history) == [{**message, "content": text}]
        assert anthropic_history(history)[1] == [{"role": "user", "content": [{**block, "content": text}]}]


def test_pictures_wait_until_all_results_of_a_turn_are_told() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    results = [{"type": "tool_result", "tool_use_id": name, "content": [image]} for name in ("t1", "t2")]
    one_by_one = [{"role": "user", "content": [result]} for result in results]
    at_once = [{"role": "user", "content": results}]

    for history in (one_by_one, at_once):
        told = openai_history([*history, {"role": "user", "content": "Go on."}])
        assert [message["role"] for message in told] == ["tool", "tool", "user"]
        assert told[0]["content"] == told[1]["content"] == "(in the next message)"
        assert [part.get("text") for part in told[2]["content"]] == [
            *("From tool call t1:", None, "From tool call t2:", None, "Go on."),
        ]


def test_two_calls_of_one_id_get_two_at_anthropic_and_their_results_follow() -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "click", "arguments": "{}"}}
    turn = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "done"},
    ]
    first, second = (
        (turns[0]["content"][0]["id"], turns[1]["content"][0]["tool_use_id"])
        for turns in (anthropic_history(turn + turn)[1][:2], anthropic_history(turn + turn)[1][2:])
    )

    assert first == ("call_0", "call_0")
    assert second[0] == second[1] != "call_0"


@pytest.mark.parametrize("blank", ["", " \n", None])
def test_blank_text_beside_tool_calls_is_no_block(blank: str | None) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "click", "arguments": "{}"}}
    answer = {"role": "assistant", "content": blank, "tool_calls": [call]}
    use = {"type": "tool_use", "id": "c1", "name": "click", "input": {}}

    assert anthropic_history([answer])[1] == [{"role": "assistant", "content": [use]}]
    blocks = [{"type": "text", "text": blank or ""}, use]
    assert anthropic_history([{"role": "assistant", "content": blocks}])[1][0]["content"] == [use]


def test_no_calls_and_no_arguments_are_told_as_openrouter_reads_them() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "click", "arguments": ""}}

    assert openai_history([{"role": "assistant", "content": "Yes.", "tool_calls": []}]) == [
        {"role": "assistant", "content": "Yes."}
    ]
    told = openai_history([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert told[0]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_reasoning_stays_with_openrouter() -> None:
    thought = {
        "role": "assistant",
        "content": [{"type": "text", "text": "Yes."}],
        "reasoning": "hm",
        "reasoning_details": [{"type": "reasoning.text", "text": "hm"}],
    }

    assert openai_history([thought]) == [{**thought, "content": "Yes."}]
    assert anthropic_history([thought])[1] == [{"role": "assistant", "content": thought["content"]}]


def test_a_refusal_is_told_as_what_was_said() -> None:
    for message in (
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ):
        content = anthropic_history([message])[1][0]["content"]
        assert content in ("No.", [{"type": "text", "text": "No."}])


def test_cache_marks_are_kept_for_models_that_take_them() -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    history: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Look.", **mark}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I look.", **mark}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok", **mark}]},
    ]
    tool = {"name": "click", "input_schema": {"type": "object"}, **mark}
    result = {"role": "tool", "tool_call_id": "t", "content": "ok", **mark}
    assert anthropic_history([result])[1] == history[2:]
    assert openai_history([result]) == openai_history(history)[2:]

    for message in openai_history(history):
        assert message["content"][0]["cache_control"] == mark["cache_control"]
    assert anthropic_history(openai_history(history))[1][:2] == history[:2]
    assert openai_tools([tool])[0][0]["cache_control"] == mark["cache_control"]
    assert anthropic_tools(openai_tools([tool])[0])[0] == [tool]
    assert "cache_control" not in openai_tools([tool], caching=False)[0][0]
    assert [message["content"] for message in openai_history(history, caching=False)] == [
        *([{"type": "text", "text": "Look."}], "I look.", "ok")
    ]


def part_of(file: dict[str, str]) -> dict[str, Any]:
    return {"type": "file", "file": file}


def test_documents_are_translated_both_ways() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}
    file = {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBE"}

    assert openai_history([{"role": "user", "content": [pdf]}])[0]["content"] == [
        {"type": "file", "file": file}
    ]
    assert anthropic_history([{"role": "user", "content": [{"type": "file", "file": file}]}])[1] == [
        {"role": "user", "content": [pdf]}
    ]

    source = {"type": "text", "media_type": "text/plain", "data": "Log in."}
    note = {"type": "document", "source": source, "title": "Notes"}
    assert openai_history([{"role": "user", "content": [note]}])[0]["content"] == [
        {"type": "text", "text": "Notes\n\nLog in."}
    ]
    plain = {
        "type": "file",
        "file": {"filename": "Notes", "file_data": "data:text/plain;base64,TG9nIGluLg=="},
    }
    assert anthropic_history([{"role": "user", "content": [plain]}])[1][0]["content"] == [note]


TO_BOTH = [anthropic_history, openai_history]
TO_CLAUDE, TO_OPENROUTER = TO_BOTH[:1], TO_BOTH[1:]
HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("translations", "content", "says"),
    [
        (TO_BOTH, [{"type": "text", "text": "x"}, "y"], "messages[1].content[1]: a block must be a dict"),
        (TO_BOTH, [{"type": "text"}], "messages[1].content[0]: text must be text, not None"),
        (TO_BOTH, None, "messages[1]: content must be text or a list of blocks, not None"),
        (TO_CLAUDE, [{"type": "input_audio", "input_audio": {}}], "messages[1].content[0]: 'input_audio'"),
        (TO_CLAUDE, [{"type": "image_url"}], "messages[1].content[0]: image_url must be a dict, not None"),
        (
            TO_CLAUDE,
            [{"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,AA=="}}],
            "messages[1].content[0]: Anthropic takes no image of type image/svg+xml",
        ),
        (
            TO_CLAUDE,
            [{"type": "file", "file": {"file_id": "file-1"}}],
            "messages[1].content[0]: a file needs file_data",
        ),
        (
            TO_CLAUDE,
            [{"type": "file", "file": {"file_data": "data:text/plain;base64,x"}}],
            "messages[1].content[0]: the file is not base64: ",
        ),
        (
            TO_OPENROUTER,
            [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "search_result", "title": "x"}],
                }
            ],
            "messages[1].content[0].content[0]: 'search_result' has no place",
        ),
        (
            TO_OPENROUTER,
            [{"type": "image", "source": {"type": "file", "file_id": "file_1"}}],
            "messages[1].content[0]: a source of type 'file' cannot be sent here; give base64 or url",
        ),
    ],
)
def test_what_has_no_place_is_named_by_message_and_block(translations: Any, content: Any, says: str) -> None:
    for translate in translations:
        with pytest.raises(InvalidRequest) as refused:
            translate([HI, {"role": "user", "content": content}])
        assert str(refused.value).startswith(says)
        assert "\n" not in str(refused.value)


def test_what_has_no_place_in_an_answer_is_named_too() -> None:
    for translate in TO_BOTH:
        with pytest.raises(InvalidRequest, match=r"messages\[0\]\.tool_calls\[0\]: name must be text"):
            translate([{"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "function": {}}]}])
        with pytest.raises(InvalidRequest, match=r"system\.content\[0\]: a system prompt is text"):
            translate([HI], [{"type": "image"}])
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[0\]: 'server_tool_use' has no place"):
        openai_history([{"role": "assistant", "content": [{"type": "server_tool_use", "id": "s"}]}])
    with pytest.raises(InvalidRequest, match="function_call is of an older form; give tool_calls"):
        anthropic_history([{"role": "assistant", "function_call": {"name": "x", "arguments": "{}"}}])


@pytest.mark.parametrize("tool", ["click", {"name": "click"}, {"function": {}}, {"input_schema": {}}, {}])
def test_what_is_no_tool_is_named(tool: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"tools\[0\]: "):
        openai_tools([tool])
    with pytest.raises(InvalidRequest, match=r"tools\[0\]: "):
        anthropic_tools([tool])


@pytest.mark.parametrize("parameters", [{}, {"parameters": {}}, {"parameters": {"properties": {}}}])
def test_a_tool_without_parameters_takes_an_empty_object(parameters: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "look", **parameters}}

    assert anthropic_tools([tool])[0] == [
        {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    ]


def test_what_of_a_tool_only_anthropic_knows_is_said() -> None:
    tool = {"name": "click", "input_schema": {"type": "object"}, "input_examples": [{}], "strict": True}

    kept, left_out = openai_tools([tool])
    assert kept[0]["function"] == {"name": "click", "parameters": {"type": "object"}, "strict": True}
    assert left_out == ["input_examples of tool click"]


def test_tools_are_translated_both_ways() -> None:
    schema = {"type": "object", "properties": {"selector": {"type": "string"}}}
    ours = {"name": "click", "description": "Click it", "input_schema": schema}
    theirs = {
        "type": "function",
        "function": {"name": "click", "description": "Click it", "parameters": schema},
    }

    assert openai_tools([ours, theirs]) == ([theirs, theirs], [])
    assert anthropic_tools([ours, theirs]) == ([ours, ours], [])


def test_a_server_tool_goes_to_its_own_provider_only() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}

    assert anthropic_tools([search]) == ([search], [])
    assert openai_tools([search]) == ([], ["tool web_search_20250305"])

    fetch = {"type": "openrouter:web_fetch"}
    assert openai_tools([fetch]) == ([fetch], [])
    assert anthropic_tools([fetch]) == ([], ["tool openrouter:web_fetch"])


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
