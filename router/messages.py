"""One history, two shapes. Pure.

    Anthropic   content blocks: text, image, document, tool_use, tool_result, thinking
    OpenAI      messages with tool_calls, role "tool", content parts text, image_url, file

A caller may write either, or both in one history: what already has the target's shape goes
through as it is, what has the other's is translated. So a fallback works in the middle of a
tool loop. Thinking blocks are bound to the model that wrote them: they stay behind when a
history goes to the other shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.errors import InvalidRequest

Message = Mapping[str, Any]
Block = Mapping[str, Any]
System = str | Sequence[Block] | None

_ROLES = ("user", "assistant", "system", "developer", "tool")
_NOT_IN_A_TOOL_ID = re.compile(r"[^a-zA-Z0-9_-]")
_DATA_URL = re.compile(r"data:(?P<type>[^;,]+);base64,(?P<data>.*)", re.DOTALL)


# To Anthropic ---------------------------------------------------------------------------------


def anthropic_history(
    messages: Iterable[Message], system: System = None
) -> tuple[str | list[Block] | None, list[dict[str, Any]]]:
    """The `system` and the `messages` of an Anthropic body.

    System messages, wherever they stand, go to the top; results of parallel tool calls come to
    stand in one message. Raises InvalidRequest for what Anthropic has no place for.
    """
    systems: list[Block] = _system_blocks(system)
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = _role(message)
        if role in ("system", "developer"):
            systems += _system_blocks(message.get("content"))
        elif role == "tool":
            _add_tool_result(turns, message)
        else:
            content = _anthropic_content(message)
            if content or role == "user":
                turns.append({"role": role, "content": content})
    return _system_of(systems), turns


def _add_tool_result(turns: list[dict[str, Any]], message: Message) -> None:
    block = {
        "type": "tool_result",
        "tool_use_id": tool_id(message.get("tool_call_id")),
        "content": _anthropic_parts(message.get("content")),
    }
    last = turns[-1] if turns else None
    if last and last["role"] == "user" and _holds_only_tool_results(last["content"]):
        last["content"] = [*last["content"], block]
    else:
        turns.append({"role": "user", "content": [block]})


def _holds_only_tool_results(content: object) -> bool:
    return isinstance(content, list) and all(block.get("type") == "tool_result" for block in content)


def _anthropic_content(message: Message) -> str | list[Block]:
    content = _anthropic_parts(message.get("content"))
    calls = message.get("tool_calls")
    if not calls:
        return content
    texts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*(block for block in texts if block.get("text") != ""), *map(_tool_use, calls)]


def _anthropic_parts(content: object) -> str | list[Block]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise InvalidRequest(f"a message's content must be text or a list of blocks, not {_short(content)}")
    return [_anthropic_block(part) for part in content]


def _anthropic_block(part: Block) -> Block:
    match part.get("type"):
        case "image_url":
            return {"type": "image", "source": _source(_url_of(part["image_url"]))}
        case "file":
            return {"type": "document", "source": _source(str(part["file"].get("file_data", "")))}
        case "refusal":
            return {"type": "text", "text": str(part.get("refusal", ""))}
        case "input_audio":
            raise InvalidRequest("input_audio has no place in a message to Anthropic; leave it out")
        case "tool_use":
            return {**part, "id": tool_id(part.get("id"))}
        case "tool_result":
            return _without_foreign_parts(part)
        case _:
            return part


def _without_foreign_parts(result: Block) -> Block:
    inner = result.get("content")
    translated = {**result, "tool_use_id": tool_id(result.get("tool_use_id"))}
    return translated if inner is None else {**translated, "content": _anthropic_parts(inner)}


def _tool_use(call: Block) -> dict[str, Any]:
    """A tool call of either shape, or one out of a response, as a tool_use block."""
    if "function" not in call:
        return _block_of_call(call.get("id"), call.get("name"), call.get("input"))
    function = call["function"]
    return _block_of_call(call.get("id"), function.get("name"), function.get("arguments"))


def _block_of_call(call_id: object, name: object, arguments: object) -> dict[str, Any]:
    return {"type": "tool_use", "id": tool_id(call_id), "name": name, "input": _as_object(arguments)}


def _as_object(arguments: object) -> dict[str, Any]:
    """Tool arguments as the object Anthropic requires; what is none is kept as text in one."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if not arguments:
        return {}
    try:
        parsed = json.loads(str(arguments))
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": str(arguments)}


def tool_id(given: object) -> str:
    """A tool call's id as Anthropic accepts it: letters, digits, _ and - only.

    >>> tool_id("functions.get_weather:0")
    'functions_get_weather_0'
    """
    return _NOT_IN_A_TOOL_ID.sub("_", str(given or "call"))


def _url_of(image: object) -> str:
    return str(image.get("url", "")) if isinstance(image, Mapping) else str(image)


def _source(url: str) -> dict[str, str]:
    inline = _DATA_URL.match(url)
    if inline is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": inline["type"], "data": inline["data"]}


def _system_blocks(content: object) -> list[Block]:
    if not content:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise InvalidRequest(f"a system prompt must be text or a list of blocks, not {_short(content)}")
    return list(content)


def _system_of(blocks: list[Block]) -> str | list[Block] | None:
    """One text where nothing is lost by it, else the blocks (they may carry cache_control)."""
    if not blocks:
        return None
    if all(set(block) == {"type", "text"} for block in blocks):
        return "\n\n".join(block["text"] for block in blocks)
    return blocks


# To OpenAI ------------------------------------------------------------------------------------


def openai_history(messages: Iterable[Message], system: System = None) -> list[dict[str, Any]]:
    """The `messages` of a chat completion; a `system` prompt becomes the first of them."""
    prompt = _system_of(_system_blocks(system))
    history: list[dict[str, Any]] = [{"role": "system", "content": prompt}] if prompt else []
    for message in messages:
        role = _role(message)
        if role == "assistant":
            history += _openai_answer(message)
        elif isinstance(message.get("content"), Sequence) and not isinstance(message["content"], str):
            history += _openai_question(message)
        else:
            history.append(dict(message))
    return history


def _openai_answer(message: Message) -> list[dict[str, Any]]:
    content = message.get("content")
    calls = [_openai_call(call) for call in message.get("tool_calls") or ()]
    if not isinstance(content, Sequence) or isinstance(content, str):
        return [{**message, **({"tool_calls": calls} if calls else {})}]
    texts = [str(block.get("text") or "") for block in content if block.get("type") == "text"]
    calls += [_openai_call(block) for block in content if block.get("type") == "tool_use"]
    if not calls and not any(texts):
        return []
    answer: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    return [{**answer, "tool_calls": calls} if calls else answer]


def _openai_call(call: Block) -> dict[str, Any]:
    if "function" in call:
        return dict(call)
    arguments = call.get("input_raw") or json.dumps(call.get("input") or {}, ensure_ascii=False)
    return {
        "id": call.get("id"),
        "type": "function",
        "function": {"name": call.get("name"), "arguments": arguments},
    }


def _openai_question(message: Message) -> list[dict[str, Any]]:
    """Tool results become messages of their own, before what else the user said with them."""
    results: list[dict[str, Any]] = []
    parts: list[Block] = []
    for block in message["content"]:
        if not isinstance(block, Mapping):
            raise InvalidRequest(f"a message's content must be a list of blocks, not of {_short(block)}")
        if block.get("type") == "tool_result":
            text, pictures = _openai_result(block.get("content"))
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
            parts += pictures
        else:
            parts.append(_openai_part(block))
    return [*results, {**message, "content": parts}] if parts else results


def _openai_result(content: object) -> tuple[str, list[Block]]:
    """The text of a tool's result, and what is not text: a tool message has no room for it."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return str(content or ""), []
    texts = [str(block.get("text") or "") for block in content if block.get("type") == "text"]
    return "\n".join(texts), [_openai_part(block) for block in content if block.get("type") != "text"]


def _openai_part(block: Block) -> Block:
    source = block.get("source")
    if not isinstance(source, Mapping):
        return block
    match block.get("type"), source.get("type"):
        case "document", "text":
            return {"type": "text", "text": str(source.get("data", ""))}
        case "document", _:
            name = str(block.get("title") or "document.pdf")
            return {"type": "file", "file": {"filename": name, "file_data": _url(source)}}
        case "image", _:
            return {"type": "image_url", "image_url": {"url": _url(source)}}
        case _:
            return block


def _url(source: Block) -> str:
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if source.get("type") == "url":
        return str(source.get("url"))
    raise InvalidRequest(f"a source of type {source.get('type')!r} cannot be sent here; use base64 or url")


# Tools ----------------------------------------------------------------------------------------


def anthropic_tools(tools: Iterable[Block]) -> list[Block]:
    """Tools of either shape as Anthropic takes them; its own server tools go through as they are."""
    return [_anthropic_tool(tool) for tool in tools]


def _anthropic_tool(tool: Block) -> Block:
    if "function" not in tool:
        return tool
    function = tool["function"]
    described = {"description": function["description"]} if function.get("description") else {}
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function.get("name"), **described, "input_schema": schema}


def openai_tools(tools: Iterable[Block]) -> tuple[list[Block], list[str]]:
    """Tools of either shape as OpenAI takes them, and the names of those that only Anthropic runs."""
    kept: list[Block] = []
    left_out: list[str] = []
    for tool in tools:
        if "input_schema" in tool:
            kept.append(_openai_tool(tool))
        elif "function" in tool or tool.get("type") in (None, "function", "custom"):
            kept.append(tool)
        else:
            left_out.append(str(tool.get("type")))
    return kept, left_out


def _openai_tool(tool: Block) -> Block:
    described = {"description": tool["description"]} if tool.get("description") else {}
    function = {"name": tool.get("name"), **described, "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


_TO_ANTHROPIC = {"auto": "auto", "none": "none", "required": "any"}
_TO_OPENAI = {"auto": "auto", "none": "none", "any": "required"}


def anthropic_tool_choice(choice: str | Block) -> Block:
    """Which tools may be called, from either shape.

    >>> anthropic_tool_choice("required")
    {'type': 'any'}
    """
    if isinstance(choice, str):
        return {"type": _TO_ANTHROPIC.get(choice, choice)}
    if choice.get("type") == "function":
        return {"type": "tool", "name": choice.get("function", {}).get("name")}
    return choice


def openai_tool_choice(choice: str | Block) -> str | Block:
    """Which tools may be called, from either shape.

    >>> openai_tool_choice({"type": "tool", "name": "click"})
    {'type': 'function', 'function': {'name': 'click'}}
    """
    if isinstance(choice, str):
        return _TO_OPENAI.get(choice, choice)
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return _TO_OPENAI.get(str(choice.get("type")), choice)


def _role(message: object) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in _ROLES:
        raise InvalidRequest(f"a message needs a role of {', '.join(_ROLES)}, not {_short(message)}")
    return str(role)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
