"""A history of 200 messages translated to either provider's shape, against json.dumps of the same history.

    python -m benchmarks.bench_messages [--rounds 200]

The history is a tool loop: answers with two calls each, their results, and what the user says. At most
1 ms; the ratio says the same on any machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from benchmarks.compare import interleaved, verdict
from router.messages import anthropic_history, openai_history

MESSAGES = 200
PAGE = "<form id='login'><input name='user'><input name='password' type='password'></form> " * 8
GOAL_MS = 1.0


def tool_loop(messages: int) -> list[dict[str, Any]]:
    """In Anthropic's shape: a question, and then answers and results in turn."""
    history: list[dict[str, Any]] = [{"role": "user", "content": "Inspect the shop, page by page."}]
    for number in range(messages // 2 - 1):
        calls = (f"toolu_{number}_look", f"toolu_{number}_click")
        history += [
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": f"Page {number} has a form; I look at it and press the button."},
                    {"type": "tool_use", "id": calls[0], "name": "read_dom", "input": {"selector": "#login"}},
                    {"type": "tool_use", "id": calls[1], "name": "click", "input": {"x": number, "y": 5}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": calls[0], "content": PAGE},
                    {
                        "type": "tool_result",
                        "tool_use_id": calls[1],
                        "content": [{"type": "text", "text": "no such element"}],
                        "is_error": True,
                    },
                ],
            },
        ]
    return [*history, {"role": "assistant", "content": "No further defects were found."}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    written = tool_loop(MESSAGES)
    told = openai_history(written)
    assert len(written) == MESSAGES
    assert [turn["role"] for turn in anthropic_history(told)[1]] == [turn["role"] for turn in written]
    contestants: dict[str, Callable[[], object]] = {
        "json.dumps of the history": lambda: json.dumps(written),
        "Anthropic's shape to OpenAI's": lambda: openai_history(written),
        "OpenAI's shape to Anthropic's": lambda: anthropic_history(told),
        "Anthropic's shape to Anthropic": lambda: anthropic_history(written),
        "OpenAI's shape to OpenAI": lambda: openai_history(told),
    }
    timings = interleaved(contestants, rounds=rounds)
    for name, timing in timings.items():
        print(f"{name:31} {timing}")
    bare_s = timings.pop("json.dumps of the history").median_s
    for name, timing in timings.items():
        ratio = f"{timing.median_s / bare_s:.2f} × json.dumps"
        print(verdict(f"{name}: {ratio}; {MESSAGES} messages", timing.median_s * 1e3, GOAL_MS, "ms"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
