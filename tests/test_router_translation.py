"""Laws of translation, over generated conversations of either shape.

Two conversations are the same where `told` reads the same out of them.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sdk_shapes import (
    assert_anthropic_accepts,
    assert_anthropic_messages,
    assert_openai_messages,
    assert_openai_tools,
)
from told import Messages, is_a_label, told_in_anthropic, told_in_openai, url

from router.errors import InvalidRequest
from router.messages import anthropic_history, openai_history
from router.tools import anthropic_tools, openai_tools

LAWS = settings(max_examples=50, deadline=None)
MARK = {"type": "ephemeral"}

# Conversations --------------------------------------------------------------------------------

texts = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and not is_a_label(text))
leaves = st.none() | st.booleans() | st.integers(-9, 2**60) | st.floats(-1e9, 1e9) | st.text(max_size=5)
objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)),
    max_size=3,
)
names = st.sampled_from(["click", "read_dom", "take_screenshot"])
ids = st.sampled_from(["toolu_1", "toolu_2", "functions.click:0", "functions_click_0", "é", "call"])
marks = st.just({}) | st.just({"cache_control": MARK})
pictures = st.sampled_from(
    [
        {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
        {"type": "url", "url": "https://a.example/b.png"},
    ]
)
papers = st.sampled_from(
    [
        {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
        {"type": "url", "url": "https://a.example/b.pdf"},
    ]
)
titles = st.just({}) | st.just({"title": "report.pdf"})


text_blocks = st.builds(lambda text, mark: {"type": "text", "text": text, **mark}, texts, marks)
images = st.builds(lambda source, mark: {"type": "image", "source": source, **mark}, pictures, marks)
documents = st.builds(
    lambda source, title, mark: {"type": "document", "source": source, **title, **mark}, papers, titles, marks
)
image_parts = st.builds(
    lambda source, mark: {"type": "image_url", "image_url": {"url": url(source)}, **mark}, pictures, marks
)
file_parts = st.builds(
    lambda source, mark: {
        "type": "file",
        "file": {"filename": "report.pdf", "file_data": url(source)},
        **mark,
    },
    papers,
    marks,
)
thoughts = st.sampled_from(
    [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "ZGF0YQ=="},
    ]
)
said = texts | st.lists(text_blocks | images | documents, min_size=1, max_size=3)
said_in_parts = texts | st.lists(text_blocks | image_parts | file_parts, min_size=1, max_size=3)
results = st.one_of(
    st.builds(lambda text, mark: {"content": text, **mark}, texts, marks),
    st.builds(lambda blocks: {"content": blocks}, st.lists(text_blocks | images, max_size=3)),
    st.just({}),
)
errors = st.just({}) | st.just({"is_error": True}) | st.just({"is_error": False})
systems = st.none() | texts | st.lists(text_blocks, min_size=1, max_size=3)


@st.composite
def anthropic_conversations(draw: st.DrawFn) -> Messages:
    messages: Messages = [{"role": "user", "content": draw(said)}]
    for _ in range(draw(st.integers(0, 4))):
        calls = draw(st.lists(ids, max_size=3, unique=True))
        answer: list[Any] = [*draw(st.lists(thoughts, max_size=1)), *draw(st.lists(text_blocks, max_size=2))]
        answer += [
            {"type": "tool_use", "id": call, "name": draw(names), "input": draw(objects)} for call in calls
        ]
        if not answer:
            answer = [{"type": "text", "text": "Yes."}]
        told = [
            {"type": "tool_result", "tool_use_id": call, **draw(results), **draw(errors)} for call in calls
        ]
        after = draw(said)
        also = [{"type": "text", "text": after}] if isinstance(after, str) else after
        user = [*told, *(also if not told or draw(st.booleans()) else [])]
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": user}]
    return messages


@st.composite
def openai_conversations(draw: st.DrawFn) -> Messages:
    prompts = st.builds(lambda role, text: {"role": role, "content": text}, st.just("system"), texts)
    messages = [*draw(st.lists(prompts, max_size=2)), {"role": "user", "content": draw(said_in_parts)}]
    for _ in range(draw(st.integers(0, 4))):
        calls = [
            {
                "id": call,
                "type": "function",
                "function": {"name": draw(names), "arguments": json.dumps(draw(objects))},
            }
            for call in draw(st.lists(ids, max_size=3, unique=True))
        ]
        content = draw(st.sampled_from([None, "", " \n"]) | texts) if calls else draw(texts)
        answer = {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
        if draw(st.booleans()):
            answer |= {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}
        messages.append(answer)
        for call in calls:
            text = draw(texts | st.lists(text_blocks, min_size=1, max_size=2))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        if not calls or draw(st.booleans()):
            messages.append({"role": "user", "content": draw(said_in_parts)})
    return messages


# The laws -------------------------------------------------------------------------------------


@LAWS
@given(anthropic_conversations(), systems)
def test_what_is_said_to_claude_is_said_to_openrouter_and_back(messages: Messages, system: Any) -> None:
    there = openai_history(messages, system)
    back = anthropic_history(there)

    assert told_in_openai(there) == told_in_anthropic(system, messages)
    assert told_in_anthropic(*back) == told_in_anthropic(system, messages)


@LAWS
@given(openai_conversations())
def test_what_is_said_to_openrouter_is_said_to_claude_and_back(messages: Messages) -> None:
    there = anthropic_history(messages)
    back = openai_history(there[1], there[0])

    assert told_in_anthropic(*there) == told_in_openai(messages)
    assert told_in_openai(back) == told_in_openai(messages)


@LAWS
@given(anthropic_conversations() | openai_conversations(), systems, st.booleans())
def test_every_translation_is_what_the_official_sdks_send(
    messages: Messages, system: Any, caching: bool
) -> None:
    prompt, turns = anthropic_history(messages, system)

    assert_anthropic_messages(turns)
    if prompt:
        assert_anthropic_accepts({"model": "m", "max_tokens": 1, "messages": turns, "system": prompt})
    assert_openai_messages(openai_history(messages, system, caching=caching))


@LAWS
@given(anthropic_conversations() | openai_conversations(), systems)
def test_translation_leaves_what_it_is_given_alone(messages: Messages, system: Any) -> None:
    before = copy.deepcopy((messages, system))
    anthropic_history(messages, system)
    openai_history(messages, system, caching=False)

    assert (messages, system) == before


@LAWS
@given(anthropic_conversations() | openai_conversations(), systems)
def test_no_cache_mark_is_left_for_models_that_take_none(messages: Messages, system: Any) -> None:
    assert '"cache_control": {' not in json.dumps(openai_history(messages, system, caching=False))


words = st.sampled_from(
    [
        *("role", "content", "type", "text", "user", "assistant", "tool", "system", "refusal", "thinking"),
        *("tool_calls", "tool_use", "tool_result", "tool_call_id", "id", "function", "name", "arguments"),
        *("input", "is_error", "image", "image_url", "url", "source", "base64", "file", "file_data"),
        *("document", "data:text/plain;base64,x", "data:,"),
    ]
)
junk = st.recursive(
    words | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=20,
)
messages_of_junk = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"])}, optional={}
    ).flatmap(lambda said: st.dictionaries(words, junk).map(lambda more: {**more, **said}))
    | junk,
    max_size=3,
)


def refusal_of(translate: Callable[[Any, Any], Any], messages: Any, system: Any) -> str | None:
    try:
        translate(messages, system)
    except InvalidRequest as refused:
        return str(refused)
    return None


@settings(LAWS, max_examples=200)
@given(messages_of_junk, junk)
def test_what_is_no_conversation_is_refused_in_one_line(messages: Any, system: Any) -> None:
    for translate in (anthropic_history, openai_history):
        said = refusal_of(translate, messages, system)
        assert said is None or re.fullmatch(r"(messages\[\d\]|system)[\w.\[\]]*: .+", said)


schemas = st.builds(
    lambda properties: {"type": "object", "properties": {name: {"type": "string"} for name in properties}},
    st.lists(texts, max_size=3),
)
described = st.just({}) | st.builds(lambda text: {"description": text}, texts)
strict = st.just({}) | st.builds(lambda value: {"strict": value}, st.booleans())
anthropic_definitions = st.builds(
    lambda name, schema, *more: {"name": name, "input_schema": schema} | more[0] | more[1] | more[2],
    *(names, schemas, described, strict, marks),
)
openai_definitions = st.builds(
    lambda name, schema, text, exact, mark: {
        "type": "function",
        "function": {"name": name, "parameters": schema, **text, **exact},
        **mark,
    },
    *(names, schemas, described, strict, marks),
)


@LAWS
@given(st.lists(anthropic_definitions | openai_definitions, min_size=1, max_size=3))
def test_tools_come_back_as_they_were(tools: list[Any]) -> None:
    ours, theirs = anthropic_tools(tools), openai_tools(tools)

    assert ours[1] == theirs[1] == []
    assert anthropic_tools(theirs[0]) == ours
    assert openai_tools(ours[0]) == theirs
    assert_openai_tools(theirs[0])
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "tools": ours[0]}
    assert_anthropic_accepts(body)
