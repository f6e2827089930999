"""The pieces of a message in either shape: texts, pictures, documents, tool calls, cache marks. Pure.

A `Misfit` is a piece that has no place in the other shape; whoever walks a list of pieces adds
where it stands, and `messages` and `tools` make an InvalidRequest of it.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from router.errors import InvalidRequest

Block = Mapping[str, Any]

THOUGHTS = ("thinking", "redacted_thinking")
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")  # those Anthropic takes inline
_UNNAMED = "document.pdf"  # OpenAI's files need a name
_NOT_IN_A_TOOL_ID = re.compile(r"[^a-zA-Z0-9_-]")
_MAPPING = (dict, Mapping)  # dict first: it is quicker to tell
_T = TypeVar("_T")


class Misfit(Exception):
    """What cannot be translated; where it stands is put together on the way out."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where

    def under(self, outer: str) -> Misfit:
        return Misfit(self.what, outer + self.where)

    def refusal(self, outer: str) -> InvalidRequest:
        return InvalidRequest(f"{outer}{self.where}: {self.what}")


def each(blocks: object, where: str, translate: Callable[[Block], _T]) -> list[_T]:
    """Each block translated, or the Misfit that says which could not be."""
    if type(blocks) is not list and (isinstance(blocks, (str, bytes)) or not isinstance(blocks, Sequence)):
        raise Misfit(f"{where} must be text or a list of blocks, not {short(blocks)}")
    done: list[_T] = []
    try:
        for block in blocks:
            if type(block) is not dict and not isinstance(block, _MAPPING):
                raise Misfit(f"a block must be a dict, not {short(block)}")
            done.append(translate(block))
    except Misfit as misfit:
        raise misfit.under(f".{where}[{len(done)}]") from None
    return done


def text_in(block: Block, key: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise Misfit(f"{key} must be text, not {short(value)}")
    return value


def table_in(block: Block, key: str) -> Block:
    value = block.get(key)
    if not isinstance(value, _MAPPING):
        raise Misfit(f"{key} must be a dict, not {short(value)}")
    return value


def short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


# Text and JSON --------------------------------------------------------------------------------


def joined(texts: list[Block], between: str) -> str | list[Block]:
    """One text where nothing is lost by it, else the blocks (they may carry cache_control)."""
    for block in texts:
        if len(block) != 2:
            return texts
    return between.join([block["text"] for block in texts])


def is_blocks(content: object) -> bool:
    """Whether the result of a tool is made of blocks; else it is text or JSON."""
    return isinstance(content, (list, tuple)) and all(map(_is_block, content))


def _is_block(part: object) -> bool:
    return isinstance(part, _MAPPING) and isinstance(part.get("type"), str)


def as_text(content: object) -> str:
    if isinstance(content, str):
        return content
    return "" if content is None else as_json(content)


def as_json(value: object) -> str:
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Misfit(f"{short(value)} cannot be written as JSON: {error}") from None


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


# Cache marks ----------------------------------------------------------------------------------

_NO_MARK: Block = {}


def mark_of(block: Block, caching: bool = True) -> Block:
    """A block's cache_control as a member to add; nothing without one, or without caching."""
    if not caching or "cache_control" not in block:
        return _NO_MARK
    return {"cache_control": block["cache_control"]} if block["cache_control"] else _NO_MARK


def for_openai(block: Block, caching: bool) -> Block:
    """A block of OpenAI's shape without what only Anthropic reads in it."""
    if "citations" not in block and (caching or "cache_control" not in block):
        return block
    dropped = ("citations",) if caching else ("citations", "cache_control")
    return {key: value for key, value in block.items() if key not in dropped}


# Tool calls -----------------------------------------------------------------------------------


class ToolIds:
    """Ids of tool calls as Anthropic accepts them: letters, digits, _ and - only, no two alike."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._latest: dict[str, str] = {}  # by the id that was given

    def of_call(self, given: object) -> str:
        wanted = unique = tool_id(given)
        number = len(self._taken)
        while unique in self._taken:
            number += 1
            unique = f"{wanted}_{number}"
        self._taken.add(unique)
        self._latest[str(given)] = unique
        return unique

    def of_result(self, given: object) -> str:
        return self._latest.get(str(given)) or tool_id(given)


def tool_id(given: object) -> str:
    """A tool call's id in the characters Anthropic accepts.

    >>> tool_id("functions.get_weather:0")
    'functions_get_weather_0'
    """
    return _NOT_IN_A_TOOL_ID.sub("_", str(given or "call"))


def tool_use(call: Block, ids: ToolIds) -> Block:
    """A tool call of any shape as Anthropic's block."""
    called, arguments = _name_and_arguments(call)
    call_id = ids.of_call(call.get("id"))
    return {"type": "tool_use", "id": call_id, "name": called, "input": as_object(arguments)}


def function_call(call: Block) -> Block:
    """A tool call of any shape as OpenAI's."""
    if call.get("type") == "custom" and "custom" in call:
        return call
    called, arguments = _name_and_arguments(call)
    if not isinstance(arguments, str):
        arguments = "{}" if arguments is None else as_json(arguments)
    call_id = str(call.get("id") or "call")
    function = {"name": called, "arguments": arguments or "{}"}
    if "function" not in call:
        return {"id": call_id, "type": "function", "function": function}
    return {**call, "id": call_id, "type": "function", "function": {**call["function"], **function}}


def _name_and_arguments(call: Block) -> tuple[str, object]:
    """Of OpenAI's call, of Anthropic's, or of one out of a response."""
    if "function" in call:
        function = table_in(call, "function")
        return text_in(function, "name"), function.get("arguments")
    given = call.get("input")
    return text_in(call, "name"), call.get("input_raw") if given is None else given


def as_object(arguments: object) -> dict[str, Any]:
    """Tool arguments as the object Anthropic requires; what is none is kept as text in one."""
    if isinstance(arguments, _MAPPING):
        return arguments if isinstance(arguments, dict) else dict(arguments)
    if not arguments:
        return {}
    try:
        parsed = _DECODER.decode(str(arguments))
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": str(arguments)}


# Pictures and documents -----------------------------------------------------------------------


def anthropic_image(part: Block) -> Block:
    image = part.get("image_url")
    url = image if isinstance(image, str) else text_in(table_in(part, "image_url"), "url")
    media_type, data = _inline(url)
    if data is None:
        return {"type": "image", "source": {"type": "url", "url": url}, **mark_of(part)}
    if media_type not in _IMAGES:
        raise Misfit(f"Anthropic takes no image of type {media_type}; it takes {', '.join(_IMAGES)}")
    source = {"type": "base64", "media_type": media_type, "data": data}
    return {"type": "image", "source": source, **mark_of(part)}


def anthropic_document(part: Block) -> Block:
    file = table_in(part, "file")
    if not isinstance(file.get("file_data"), str):
        raise Misfit("a file needs file_data: a file_id is known to one provider alone")
    name = file.get("filename")
    named = {"title": name} if name and name != _UNNAMED else {}
    return {"type": "document", "source": _document_source(file["file_data"]), **named, **mark_of(part)}


def _document_source(url: str) -> Block:
    media_type, data = _inline(url)
    if data is None:
        return {"type": "url", "url": url}
    if media_type == "application/pdf":
        return {"type": "base64", "media_type": media_type, "data": data}
    if not media_type.startswith("text/"):
        raise Misfit(f"Anthropic takes no file of type {media_type}; it takes PDF and text")
    try:
        text = b64decode(data).decode("utf-8", "replace")
    except ValueError as error:
        raise Misfit(f"the file is not base64: {error}") from None
    return {"type": "text", "media_type": "text/plain", "data": text}


def _inline(url: str) -> tuple[str, str | None]:
    """The media type and the base64 of a data: URL; no base64 where it is an address."""
    if url.startswith(("http://", "https://")):
        return "", None
    head, comma, data = url.partition(",")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise Misfit(f"{short(url)} is neither an http address nor a data: URL with base64")
    return head[5:].partition(";")[0], data


def openai_image(block: Block, caching: bool) -> Block:
    url = _url(table_in(block, "source"))
    return {"type": "image_url", "image_url": {"url": url}, **mark_of(block, caching)}


def openai_document(block: Block, caching: bool) -> Block:
    source = table_in(block, "source")
    if source.get("type") == "text":
        said = (block.get("title"), block.get("context"), source.get("data"))
        text = "\n\n".join(str(part) for part in said if part)
        return {"type": "text", "text": text, **mark_of(block, caching)}
    file = {"filename": str(block.get("title") or _UNNAMED), "file_data": _url(source)}
    return {"type": "file", "file": file, **mark_of(block, caching)}


def _url(source: Block) -> str:
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if source.get("type") == "url":
        return str(source.get("url"))
    raise Misfit(f"a source of type {short(source.get('type'))} cannot be sent here; give base64 or url")
