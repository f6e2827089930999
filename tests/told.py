"""What is said in a conversation, read out of either shape: its normal form.

In order: prompts, what the user and the model say, calls, results. Left out is what the other shape cannot
say: thinking, where one message ends and the next begins, how a text is cut into blocks, the ids of calls
(they are counted), that a result is an error (its text says so), that a picture stands in a result (it
comes after the results).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from router.messages import ERROR_MARK

Messages = list[dict[str, Any]]
NEXT = "(in the next message)"


def is_a_label(text: str) -> bool:
    """Whether a text only says where a picture of a result is."""
    return text == NEXT or text.startswith("From tool call ")


def url(source: dict[str, str]) -> str:
    return source.get("url") or f"data:{source['media_type']};base64,{source['data']}"


class Told:
    """What is said, in order; calls are counted, and pictures of results wait until results end."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.prompts: list[Any] = []
        self.calls = 0
        self.latest: dict[str, int] = {}
        self.waiting: list[Any] = []

    def call(self, call_id: str, name: str, given: Any) -> None:
        self.latest[call_id] = self.calls
        self.items.append(("call", self.calls, name, given))
        self.calls += 1

    def result(self, call_id: str, content: Any, mark: Any, is_error: bool = False) -> None:
        parts = list(parts_of(content or ""))
        self.waiting += [part for part in parts if part[0] != "text"]
        texts = [part for part in parts if part[0] == "text"]
        read = "\n".join(part[1] for part in texts)
        text = (ERROR_MARK if is_error else "") + read.replace(NEXT, "")
        marked = bool(mark) or any(part[-1] for part in texts)
        self.items.append(("result", self.latest[call_id], text, marked))

    def user(self, parts: list[Any]) -> None:
        self.items += self.waiting + [part for part in parts if not is_a_label(part[1])]
        self.waiting = []

    def answer(self, parts: list[Any]) -> None:
        text, marked = "".join(part[1] for part in parts), any(part[-1] for part in parts)
        if text.strip():
            self.items.append(("answer", text, marked))

    def in_all(self) -> Any:
        self.user([])
        prompt = "\n\n".join(part[1] for part in self.prompts)
        return prompt, any(part[-1] for part in self.prompts), self.items


def parts_of(content: Any) -> Iterator[tuple[Any, ...]]:
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        marked = "cache_control" in part
        match part["type"]:
            case "text":
                yield "text", part["text"], marked
            case "image":
                yield "image", url(part["source"]), marked
            case "image_url":
                yield "image", part["image_url"]["url"], marked
            case "document":
                yield "file", part.get("title", "document.pdf"), url(part["source"]), marked
            case "file":
                yield "file", part["file"]["filename"], part["file"]["file_data"], marked


def told_in_anthropic(system: Any, messages: Messages) -> Any:
    told = Told()
    told.prompts += parts_of(system or [])
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["role"] == "assistant":
            told.user([])
            told.answer([part for part in parts_of(blocks) if part[0] == "text"])
            for block in blocks:
                if block["type"] == "tool_use":
                    told.call(block["id"], block["name"], block["input"])
            continue
        for block in blocks:
            if block["type"] == "tool_result":
                failed = block.get("is_error", False)
                told.result(
                    block["tool_use_id"], block.get("content"), block.get("cache_control"), bool(failed)
                )
        parts = list(parts_of(blocks))
        if parts:
            told.user(parts)
    return told.in_all()


def told_in_openai(messages: Messages) -> Any:
    told = Told()
    for message in messages:
        match message["role"]:
            case "system":
                told.prompts += parts_of(message["content"])
            case "assistant":
                told.user([])
                told.answer(list(parts_of(message["content"] or "")))
                for call in message.get("tool_calls", []):
                    function = call["function"]
                    told.call(call["id"], function["name"], json.loads(function["arguments"] or "{}"))
            case "tool":
                told.result(message["tool_call_id"], message["content"], None)
            case _:
                told.user(list(parts_of(message["content"])))
    return told.in_all()
