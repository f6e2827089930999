"""One history, two shapes. Pure.

    Anthropic   content blocks: text, image, document, tool_use, tool_result, thinking
    OpenAI      messages with tool_calls, role "tool", content parts text, image_url, file

A caller may write either, or both in one history: what already has the target's shape goes
through as it is, what has the other's is translated, so that a fallback works in the middle of a
tool loop. Thinking is bound to the model that wrote it: Anthropic's thinking blocks and
OpenRouter's `reasoning` stay behind when a history goes to the other. What has no translation is
an InvalidRequest that names the message and the block in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.blocks import (
    THOUGHTS,
    Block,
    Misfit,
    ToolIds,
    anthropic_document,
    anthropic_image,
    as_object,
    as_text,
    each,
    for_openai,
    function_call,
    is_blocks,
    joined,
    mark_of,
    openai_document,
    openai_image,
    short,
    text_in,
    tool_use,
)

Message = Mapping[str, Any]
System = str | Sequence[Block] | None

ERROR_MARK = "Error: "  # how a failed tool's result begins where there is no is_error to say it
_PICTURES_FOLLOW = "(in the next message)"
_ROLES = ("user", "assistant", "system", "developer", "tool")


# To Anthropic ---------------------------------------------------------------------------------


def anthropic_history(
    messages: Iterable[Message], system: System = None
) -> tuple[str | list[Block] | None, list[dict[str, Any]]]:
    """The `system` and the `messages` of an Anthropic body.

    System messages, wherever they stand, go to the top; results of parallel tool calls come to
    stand in one message; blank texts and turns, which Anthropic refuses, are left out. Raises
    InvalidRequest.
    """
    systems = _given_system(system)
    turns: list[dict[str, Any]] = []
    results: list[Block] = []  # of the last turn, where it holds results of role "tool"
    ids = ToolIds()
    for index, message in enumerate(messages):
        try:
            role = _role(message)
            if role == "tool":
                if not results:
                    turns.append({"role": "user", "content": results})
                results.append(_tool_result(message, ids))
            elif role in ("system", "developer"):
                systems += _system_blocks(message.get("content"))
            else:
                content = _anthropic_content(message, role, ids)
                if content or (role == "user" and isinstance(content, str)):
                    turns.append({"role": role, "content": content})
                    results = []
        except Misfit as misfit:
            raise misfit.refusal(f"messages[{index}]") from None
    return _one_text(systems), turns


def _anthropic_content(message: Message, role: str, ids: ToolIds) -> str | list[Block]:
    content = message.get("content")
    if role == "user":
        return content if isinstance(content, str) else _anthropic_blocks(content, ids)
    if message.get("function_call"):
        raise Misfit("function_call is of an older form; give tool_calls")
    if content is None:
        content = message.get("refusal") or ""
    calls = message.get("tool_calls")
    if isinstance(content, str):
        if not calls:
            return content.strip() and content
        blocks: list[Block] = [{"type": "text", "text": content}] if content.strip() else []
    else:
        blocks = _anthropic_blocks(content, ids)
    return [*blocks, *each(calls or (), "tool_calls", lambda call: tool_use(call, ids))]


def _anthropic_blocks(content: object, ids: ToolIds) -> list[Block]:
    return [block for block in each(content, "content", lambda part: _anthropic_block(part, ids)) if block]


def _anthropic_block(part: Block, ids: ToolIds) -> Block | None:
    kind = part.get("type")
    match kind:
        case "text":
            return part if text_in(part, "text").strip() else None
        case "tool_use":
            return {**part, "id": ids.of_call(part.get("id")), "input": as_object(part.get("input"))}
        case "tool_result":
            told = {**part, "tool_use_id": ids.of_result(part.get("tool_use_id"))}
            return {**told, "content": _anthropic_result(part.get("content"), ids)}
        case "image_url":
            return anthropic_image(part)
        case "file":
            return anthropic_document(part)
        case "refusal":
            return {"type": "text", "text": text_in(part, "refusal")}
    if not isinstance(kind, str) or (kind in part and kind not in THOUGHTS):  # as OpenAI's parts have it
        raise Misfit(f"{short(kind)} has no place in a message to Anthropic; leave it out")
    return part


def _tool_result(message: Message, ids: ToolIds) -> Block:
    return {
        "type": "tool_result",
        "tool_use_id": ids.of_result(message.get("tool_call_id")),
        "content": _anthropic_result(message.get("content"), ids),
        **({"is_error": True} if message.get("is_error") else {}),
        **mark_of(message),
    }


def _anthropic_result(content: object, ids: ToolIds) -> str | list[Block]:
    return _anthropic_blocks(content, ids) if is_blocks(content) else as_text(content)


# To OpenAI ------------------------------------------------------------------------------------


def openai_history(
    messages: Iterable[Message], system: System = None, *, caching: bool = True
) -> list[dict[str, Any]]:
    """The `messages` of a chat completion; a `system` prompt becomes the first of them.

    Pictures in the results of tools, for which a tool message has no room, follow in a user
    message. Without `caching`, cache_control stays behind. Raises InvalidRequest.
    """
    prompt = _one_text([for_openai(block, caching) for block in _given_system(system)])
    history: list[dict[str, Any]] = [{"role": "system", "content": prompt}] if prompt else []
    pictures: list[Block] = []  # of the results just told
    for index, message in enumerate(messages):
        try:
            match _role(message):
                case "tool":
                    history.append(_tool_message(message, message.get("tool_call_id"), pictures, caching))
                    continue
                case "user":
                    said = _openai_question(message, history, pictures, caching)
                    if not said:
                        continue
                    told: dict[str, Any] | None = {**message, "content": said}
                    pictures = []
                case "assistant":
                    told = _openai_answer(message, caching)
                case _:
                    told = {**message, "content": _openai_parts(message.get("content"), caching)}
        except Misfit as misfit:
            raise misfit.refusal(f"messages[{index}]") from None
        if pictures:
            history.append({"role": "user", "content": pictures})
            pictures = []
        if told is not None:
            history.append(told)
    return [*history, {"role": "user", "content": pictures}] if pictures else history


def _openai_question(
    message: Message, history: list[dict[str, Any]], pictures: list[Block], caching: bool
) -> str | list[Block]:
    """What a user says after `pictures`; results of tools in it go to the history."""
    content = message.get("content")
    if isinstance(content, str):
        return [*pictures, {"type": "text", "text": content}] if pictures else content

    def part_of(block: Block) -> Block | None:
        if block.get("type") != "tool_result":
            return _openai_part(block, caching)
        history.append(_tool_message(block, block.get("tool_use_id"), pictures, caching))
        return None

    parts = [part for part in each(content, "content", part_of) if part]
    return [*pictures, *parts] if parts else []


def _openai_answer(message: Message, caching: bool) -> dict[str, Any] | None:
    content = message.get("content")
    calls = each(message["tool_calls"], "tool_calls", function_call) if message.get("tool_calls") else []
    if content is not None and not isinstance(content, str):
        texts: list[Block] = []

        def take(block: Block) -> None:
            kind = block.get("type")
            if kind == "tool_use":
                calls.append(function_call(block))
            elif kind == "text":
                texts.append({"type": "text", "text": text_in(block, "text"), **mark_of(block, caching)})
            elif kind == "refusal":
                texts.append({"type": "text", "text": text_in(block, "refusal")})
            elif kind not in THOUGHTS:
                raise Misfit(f"{short(kind)} has no place in an answer of another provider; leave it out")

        each(content, "content", take)
        content = joined(texts, "") or None
        if content is None and not calls:
            return None
    if calls:
        return {**message, "content": content, "tool_calls": calls}
    answer = {**message, "content": content}
    answer.pop("tool_calls", None)  # an empty list is refused
    return answer


def _tool_message(result: Block, call_id: object, pictures: list[Block], caching: bool) -> dict[str, Any]:
    """A tool's result as a message; what in it is no text is added to `pictures`."""
    content = result.get("content")
    text: str | list[Block]
    if isinstance(content, str):
        text = content
    elif is_blocks(content):
        texts: list[Block] = []
        others: list[Block] = []
        for part in _openai_parts(content, caching):
            (texts if part["type"] == "text" else others).append(part)
        text = joined(texts, "\n")
        if others:
            text = text or _PICTURES_FOLLOW
            pictures += [{"type": "text", "text": f"From tool call {call_id}:"}, *others]
    else:
        text = as_text(content)
    if result.get("is_error"):
        text = ERROR_MARK + text if isinstance(text, str) else _begun_with(ERROR_MARK, *text)
    if "cache_control" in result and isinstance(text, str) and (mark := mark_of(result, caching)):
        text = [{"type": "text", "text": text, **mark}]
    return {"role": "tool", "tool_call_id": str(call_id or "call"), "content": text}


def _begun_with(words: str, first: Block, *others: Block) -> list[Block]:
    return [{**first, "text": words + first["text"]}, *others]


def _openai_parts(content: object, caching: bool) -> Any:
    if isinstance(content, str):
        return content
    return [part for part in each(content, "content", lambda block: _openai_part(block, caching)) if part]


def _openai_part(block: Block, caching: bool) -> Block | None:
    """A part of a message; None for thinking, which stays behind."""
    kind = block.get("type")
    match kind:
        case "text":
            text_in(block, "text")
            return for_openai(block, caching)
        case "image":
            return openai_image(block, caching)
        case "document":
            return openai_document(block, caching)
    if kind in THOUGHTS:
        return None
    if not isinstance(kind, str) or kind not in block:  # OpenAI's parts have a member named as their type
        raise Misfit(f"{short(kind)} has no place in a message to another provider; leave it out")
    return for_openai(block, caching)


# Both -----------------------------------------------------------------------------------------


def _role(message: object) -> str:
    role = message.get("role") if isinstance(message, (dict, Mapping)) else None
    if role not in _ROLES:
        raise Misfit(f"a message needs a role of {', '.join(_ROLES)}, not {short(message)}")
    return str(role)


def _given_system(system: System) -> list[Block]:
    try:
        return _system_blocks(system)
    except Misfit as misfit:
        raise misfit.refusal("system") from None


def _system_blocks(content: object) -> list[Block]:
    if not content:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return each(content, "content", _system_block)


def _system_block(block: Block) -> Block:
    if block.get("type") != "text":
        raise Misfit(f"a system prompt is text, not {short(block.get('type'))}")
    text_in(block, "text")
    return block


def _one_text(blocks: list[Block]) -> str | list[Block] | None:
    return joined([block for block in blocks if block["text"].strip()], "\n\n") or None
