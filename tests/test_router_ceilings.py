"""Ceilings against recorded traffic: what a hard budget admits was never counted above them.

Each recorded request, in the bytes this router would send, is admitted or refused as under a hard budget.
OpenAI's and compatible services' are read as OpenRouter's, whose shape they have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ledger.budgets import prompt_tokens_at_most
from router.providers import anthropic, openrouter
from router.providers.wire import encoded

_ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = Path(os.environ.get("BUGHIVE_TRAFFIC") or _ROOT.parent / "shared" / "traffic")

pytestmark = pytest.mark.skipif(
    not (_TRAFFIC / "expected.json").is_file(), reason=f"no recorded traffic at {_TRAFFIC}"
)


COUNTED = {"admitted": 106, "refused": 68, "with max_tokens": 57}  # a comparison cannot silently shrink
_SHORTENED = "<MASSIVE_TEXT_FOR_PROMPT_CACHING>"  # stands in recordings for the prompt that was counted


class Recorded(NamedTuple):
    """A recorded request, what it was counted as, and why a hard budget refuses it; None: it does not."""

    file: str
    body: dict[str, Any]
    prompt_tokens: int
    output_tokens: int
    why_refused: str | None

    @property
    def tokens_at_most(self) -> int:
        return prompt_tokens_at_most(encoded(self.body), len(self.body["messages"]), "tools" in self.body)


@cache
def recorded() -> list[Recorded]:
    return list(_recorded())


def _recorded() -> Iterator[Recorded]:
    expected = json.loads((_TRAFFIC / "expected.json").read_text("utf-8"))
    for entry in json.loads((_TRAFFIC / "index.json").read_text("utf-8")):
        told = json.loads((_TRAFFIC / entry["file"]).read_text("utf-8"))
        body = (told.get("request") or {}).get("body")
        usage: Any = (expected.get(entry["file"]) or {}).get("usage")
        if not isinstance(body, dict) or "messages" not in body or not (usage and "output_tokens" in usage):
            continue
        if _SHORTENED in json.dumps(body):
            continue
        body.pop("stream", None)
        body.pop("stream_options", None)
        dialect = anthropic if told["provider"] == "anthropic" else openrouter
        passes = expected[entry["file"]].get("usage_iterations") or [usage]
        beside = usage["convention"] == "input_excludes_cache"
        prompt = sum(_prompt_tokens(each, beside) for each in passes)
        output = sum(each["output_tokens"] or 0 for each in passes)
        yield Recorded(entry["file"], body, prompt, output, dialect.why_unbounded(body))


def _prompt_tokens(usage: dict[str, Any], cached_are_beside: bool) -> int:
    cached = (usage.get("cache_read") or 0) + (usage.get("cache_write") or 0)
    return (usage["input_tokens"] or 0) + (cached if cached_are_beside else 0)


def test_what_a_hard_budget_admits_was_never_counted_above_its_bound() -> None:
    admitted = [each for each in recorded() if each.why_refused is None]
    assert [each.file for each in admitted if each.prompt_tokens > each.tokens_at_most] == []
    assert len(admitted) == COUNTED["admitted"]


def test_what_a_model_writes_beyond_max_tokens_is_known_by_name() -> None:
    """Reasoning that max_tokens does not bound: a hard budget needs overrun_tokens in the price book."""
    bounded = [each for each in recorded() if each.why_refused is None and "max_tokens" in each.body]
    over = {each.body["model"] for each in bounded if each.output_tokens > each.body["max_tokens"]}
    assert over == {"x-ai/grok-3-mini"}
    assert len(bounded) == COUNTED["with max_tokens"]


def test_what_a_hard_budget_refuses_is_named() -> None:
    words = ("parameter", "server tool", "content of type", "a document", "an image by URL")
    refused = [each.why_refused for each in recorded() if each.why_refused]
    assert all(why.startswith(words) for why in refused)
    assert {"parameter mcp_servers", "parameter models", "parameter web_search_options"} <= {*refused}
    assert len(refused) == COUNTED["refused"]


def test_what_is_refused_can_be_above_the_bound() -> None:
    """Server tools and remote documents cost more than a body tells: refusing them is not mere caution."""
    above = [each for each in recorded() if each.prompt_tokens > each.tokens_at_most]
    assert above
    assert all(each.why_refused for each in above)
