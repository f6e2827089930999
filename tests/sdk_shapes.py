"""What the official SDKs' own types say of a request body, strictly: every list is looked through.

The SDKs type lists as Iterable, which pydantic leaves unread until somebody iterates; and a TypedDict
ignores what it does not know. Here lists are lists, and unknown members are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import openai.types.chat
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

ANTHROPICS_OWN = (  # of betas, and of API version 2023-06-01, which the SDK's types have left behind
    *("betas", "context_management", "mcp_servers"),
    *("temperature", "top_p", "top_k"),
)
OPENROUTERS_OWN = ("cache_control", "reasoning", "reasoning_details")  # beside what OpenAI's types have


@cache
def _validator(of: Any) -> SchemaValidator:
    return SchemaValidator(_strict(TypeAdapter(of).core_schema))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    read = {key: _strict(part) for key, part in schema.items()}
    if kind == "generator":
        return {**read, "type": "list"}
    if kind == "typed-dict":
        allowed = (read.get("config") or {}).get("extra_fields_behavior") == "allow"
        return read if allowed else {**read, "extra_behavior": "forbid"}
    if kind == "model":  # an answer of the SDK's own, and not a dict that looks like one
        return {
            "type": "is-instance",
            "cls": schema["cls"],
            **({"ref": schema["ref"]} if "ref" in schema else {}),
        }
    return read


def assert_anthropic_accepts(body: Mapping[str, Any]) -> None:
    """A whole body of POST /v1/messages, and that no text in it is blank."""
    known = {name: value for name, value in body.items() if name not in ANTHROPICS_OWN}
    _validator(MessageCreateParamsNonStreaming).validate_python(known)
    for message in body["messages"]:
        blocks = message["content"] if isinstance(message["content"], list) else []
        assert all(block["text"].strip() for block in blocks if block["type"] == "text")


def assert_openrouter_accepts(body: Mapping[str, Any]) -> None:
    """A whole body of POST /chat/completions, but for what OpenRouter has beyond OpenAI."""
    _validator(CompletionCreateParamsNonStreaming).validate_python(_without_openrouters_own(body))


def assert_anthropic_messages(messages: list[dict[str, Any]]) -> None:
    """Messages by the types, and each result answering a call of the turn before, as the API wants it."""
    assert_anthropic_accepts({"model": "m", "max_tokens": 1, "messages": messages})
    called: list[str] = []
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else []
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        assert set(results) <= set(called), f"{results} answer none of {called}"
        if message["role"] == "assistant":
            called = [block["id"] for block in blocks if block["type"] == "tool_use"]
    ids = [block["id"] for message in messages for block in message["content"] if _is_call(block)]
    assert len(ids) == len(set(ids)), "two calls have one id"


def _is_call(block: Any) -> bool:
    return isinstance(block, dict) and block["type"] == "tool_use"


def assert_openai_messages(messages: list[dict[str, Any]]) -> None:
    """Messages by the types, and tool messages right after the answer whose calls they are of."""
    validator = _validator(openai.types.chat.ChatCompletionMessageParam)
    called: list[str] = []
    for message in messages:
        validator.validate_python(_without_openrouters_own(message))
        if message["role"] == "tool":
            assert message["tool_call_id"] in called, f"{message['tool_call_id']} is none of {called}"
        else:
            called = [call["id"] for call in message.get("tool_calls", [])]


def assert_openai_tools(tools: list[Any]) -> None:
    for tool in tools:
        _validator(openai.types.chat.ChatCompletionToolParam).validate_python(_without_openrouters_own(tool))


def _without_openrouters_own(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_openrouters_own(x) for key, x in value.items() if key not in OPENROUTERS_OWN}
    return [_without_openrouters_own(x) for x in value] if isinstance(value, list) else value
