"""Tool definitions, and which of them may be called, in either shape. Pure.

    Anthropic   {"name", "description", "input_schema"}; {"type": "any"}
    OpenAI      {"type": "function", "function": {"name", "description", "parameters"}}; "required"

A tool that a provider runs itself goes to that provider alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from router.blocks import Block, Misfit, mark_of, short, table_in, text_in
from router.errors import InvalidRequest

_SHARED = ("name", "description", "input_schema", "type", "strict", "cache_control")
_OPENROUTER_RUNS = "openrouter:"  # how the types of its own tools begin


def anthropic_tools(tools: Iterable[Block]) -> tuple[list[Block], list[str]]:
    """Tools of either shape as Anthropic takes them, and what of them it has no place for."""
    return _each(tools, _anthropic_tool)


def _anthropic_tool(tool: Block, left_out: list[str]) -> Block | None:
    kind = tool.get("type")
    if "function" not in tool:
        if isinstance(kind, str) and kind.startswith(_OPENROUTER_RUNS):
            left_out.append(f"tool {kind}")
            return None
        if kind in (None, "custom", "function"):
            text_in(tool, "name")
            table_in(tool, "input_schema")
        return tool
    function = table_in(tool, "function")
    return {
        "name": text_in(function, "name"),
        **_described(function),
        "input_schema": {"type": "object", **(function.get("parameters") or {"properties": {}})},
        **_strict(function),
        **mark_of(tool),
    }


def openai_tools(tools: Iterable[Block], *, caching: bool = True) -> tuple[list[Block], list[str]]:
    """Tools of either shape as OpenAI takes them, and what of them only Anthropic knows."""
    return _each(tools, lambda tool, left_out: _openai_tool(tool, left_out, caching))


def _openai_tool(tool: Block, left_out: list[str], caching: bool) -> Block | None:
    kind = tool.get("type")
    if "input_schema" in tool:
        name = text_in(tool, "name")
        left_out += [f"{key} of tool {name}" for key in tool if key not in _SHARED]
        function = {
            "name": name,
            **_described(tool),
            "parameters": tool["input_schema"],
            **_strict(tool),
        }
        return {"type": "function", "function": function, **mark_of(tool, caching)}
    if "function" in tool:
        text_in(table_in(tool, "function"), "name")
        return {**{key: tool[key] for key in tool if key != "cache_control"}, **mark_of(tool, caching)}
    if not isinstance(kind, str):
        raise Misfit("a tool needs an input_schema or a function")
    if kind in tool or kind.startswith(_OPENROUTER_RUNS):
        return tool
    left_out.append(f"tool {kind}")
    return None


def _each(tools: Iterable[Block], translate: Any) -> tuple[list[Block], list[str]]:
    kept: list[Block] = []
    left_out: list[str] = []
    for index, tool in enumerate(tools):
        try:
            if not isinstance(tool, Mapping):
                raise Misfit(f"a tool must be a dict, not {short(tool)}")
            told = translate(tool, left_out)
        except Misfit as misfit:
            raise misfit.refusal(f"tools[{index}]") from None
        if told is not None:
            kept.append(told)
    return kept, left_out


def _described(tool: Block) -> Block:
    return {"description": tool["description"]} if tool.get("description") else {}


def _strict(tool: Block) -> Block:
    return {"strict": tool["strict"]} if isinstance(tool.get("strict"), bool) else {}


_TO_ANTHROPIC = {"auto": "auto", "none": "none", "required": "any"}
_TO_OPENAI = {"auto": "auto", "none": "none", "any": "required"}


def anthropic_tool_choice(choice: str | Block) -> Block:
    """Which tools may be called, from either shape.

    >>> anthropic_tool_choice("required")
    {'type': 'any'}
    """
    if isinstance(choice, str):
        return {"type": _TO_ANTHROPIC.get(choice, choice)}
    _check(choice)
    kind = choice.get("type")
    if kind in ("function", "custom"):
        named = choice.get(kind)
        return {"type": "tool", "name": named.get("name") if isinstance(named, Mapping) else None}
    return choice


def openai_tool_choice(choice: str | Block) -> str | Block:
    """Which tools may be called, from either shape.

    >>> openai_tool_choice({"type": "tool", "name": "click"})
    {'type': 'function', 'function': {'name': 'click'}}
    """
    if isinstance(choice, str):
        return _TO_OPENAI.get(choice, choice)
    _check(choice)
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return _TO_OPENAI.get(str(choice.get("type")), choice)


def _check(choice: object) -> None:
    if not isinstance(choice, Mapping):
        raise InvalidRequest(f"tool_choice must be text or a dict, not {short(choice)}")
