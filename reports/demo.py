"""`bughive-costs demo`: a crawl session through the real router, over HTTP, to simulated providers.

    reports.demo_session ──steps──▶ LLMRouter ──HTTP──▶ router.simulator
                                        │ events
                                        ▼
                                    data/demo  ──seal──▶ the session report, and what to type next

No key and no network are needed: the simulator listens on this machine. The ledger of the demo is
never anyone's own, and is only added to: the second run plays the session crawl_demo_2.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from ledger import Ledger
from ledger.errors import LedgerError
from ledger.reader import existing_ledger
from reports.demo_session import (
    SCREENSHOT_INPUT,
    SCREENSHOT_RESULT,
    SCREENSHOT_TOOL,
    TIERS,
    Fault,
    Step,
    crawl,
)
from reports.render import write
from reports.spend import spend_report

if TYPE_CHECKING:
    from rich.console import Console

    from router import LLMRouter
    from router.simulator import Reply, Served
    from router.types import RouteResponse

SESSION = "crawl_demo"


class DemoResult(NamedTuple):
    """What was played: `responses` as the agent got them, `served` as the providers saw it."""

    session_id: str
    ledger_path: Path
    responses: list[RouteResponse]
    served: list[Served]


def run_demo(directory: Path, out: Console, seed: int) -> DemoResult:
    """Plays the session into the ledger at `directory`, seals it and prints its report to `out`.

    Raises LedgerError where `directory` is there and is not a ledger; it is left as it is.
    """

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    if directory.is_dir() and any(directory.iterdir()):
        existing_ledger(directory)  # else it holds somebody's files
    with Ledger.open(directory) as ledger:
        session_id = _next_session(ledger)
        say(f"Playing {session_id}: the crawl of a small shop, with Anthropic and OpenRouter simulated here.")
        responses, served = _play(ledger, session_id, seed, out)
        ledger.seal()
    say(_story(responses, served) + "\n")
    write(spend_report(directory, session_id=session_id), "table", cast(TextIO, out.file))
    say("\n" + _next_commands(session_id, directory))
    return DemoResult(session_id, directory, responses, served)


def _next_session(ledger: Ledger) -> str:
    """crawl_demo, crawl_demo_2, …: each run of the demo is a session of its own.

    Raises LedgerError for a ledger that holds anything else: the demo never writes to a user's own.
    """
    with ledger.connect() as connection:
        ((runs, others),) = connection.execute(
            "select count(distinct session_id) filter (starts_with(session_id, $demo)),"
            " count(*) filter (not coalesce(starts_with(session_id, $demo), false)) from requests",
            {"demo": SESSION},
        ).fetchall()
    if others:
        raise LedgerError(
            f"{ledger.path} holds {others:,} requests of your own; name another folder for the demo"
        )
    return f"{SESSION}_{runs + 1}" if runs else SESSION


def _play(
    ledger: Ledger, session_id: str, seed: int, out: Console
) -> tuple[list[RouteResponse], list[Served]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from router import TASK_MODEL_MAP, AnthropicClient, CostTracker, LLMRouter, OpenRouterClient
    from router.simulator import Simulator

    steps = list(crawl())
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn())
    with (
        Simulator(seed=seed) as sim,
        AnthropicClient(api_key="demo-key-of-nobody", base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient(api_key="demo-key-of-nobody", base_url=sim.openrouter_url) as openrouter,
        Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress,
    ):
        router = LLMRouter(
            anthropic_client=anthropic,
            openrouter_client=openrouter,
            cost_tracker=CostTracker(ledger),
            catalog=TIERS,
        )
        bar = progress.add_task("", total=len(steps) + 1)  # one step is two requests
        responses: list[RouteResponse] = []
        for step in steps:
            progress.update(bar, description=step.task)
            if step.fault:
                model, _ = TIERS[TASK_MODEL_MAP[step.task]]
                sim.script(model, *_replies(step.fault))
            for response in _take(router, step, session_id):
                responses.append(response)
                progress.advance(bar)
        return responses, sim.log


def _replies(fault: Fault) -> Sequence[Reply]:
    """What the model of a step answers so that it goes wrong in this way."""
    from router.simulator import Reply, ToolCall, overloaded, rate_limited, silent

    outage = Reply(status=503, headers={"retry-after": "0.2"})
    replies: Mapping[Fault, Sequence[Reply]] = {
        "rate limit": [rate_limited(retry_after=1)],
        "overload": [overloaded()],
        "silence": [silent()],
        "outage": [outage, outage, outage],
        "tool call": [Reply(tool_call=ToolCall("take_screenshot", SCREENSHOT_INPUT))],
    }
    return replies[fault]


def _take(router: LLMRouter, step: Step, session_id: str) -> Iterator[RouteResponse]:
    """The response to a step; after a tool call also the one to the tool's result."""
    messages: list[Mapping[str, Any]] = [{"role": "user", "content": step.prompt}]
    route = router.route_with_fallback if step.fallback else router.route

    def ask() -> RouteResponse:
        return route(
            task=step.task,
            messages=messages,
            session_id=session_id,
            max_tokens=step.max_tokens,
            tools=[SCREENSHOT_TOOL] if step.fault == "tool call" else None,
            timeout_s=step.timeout_s,
        )

    response = ask()
    yield response
    if calls := response["tool_calls"]:
        messages.append({"role": "assistant", "content": [{"type": "tool_use", **call} for call in calls]})
        results = [
            {"type": "tool_result", "tool_use_id": call["id"], "content": SCREENSHOT_RESULT} for call in calls
        ]
        messages.append({"role": "user", "content": results})
        yield ask()


def _story(responses: Sequence[RouteResponse], served: Sequence[Served]) -> str:
    """What happened, in one sentence, counted from what was answered and what was served."""
    statuses = Counter(call.status for call in served)
    counts = {
        "rate limits waited out": statuses[429],
        "overloads tried again": statuses[529],
        "refusals by a tier that was down": statuses[503],
        "timeouts": sum(call.fault == "silence" for call in served),
        "fallbacks": sum(response["fallback_used"] for response in responses),
        "tool calls": sum(bool(response["tool_calls"]) for response in responses),
    }
    told = ", ".join(f"{what} {count}" for what, count in counts.items())
    return f"{len(responses)} requests, {len(served)} attempts: {told}."


def _next_commands(session_id: str, ledger_path: Path) -> str:
    """What to type next, ready to be pasted into the shell this was started from."""
    command = shlex.quote(_command())
    ledger = f"--ledger {shlex.quote(str(ledger_path))}"
    query = (
        "select task, count(*) as attempts, sum(cost_usd) as usd from attempts group by all order by usd desc"
    )
    return f"""Next:
  {command} report --session {session_id} --by task {ledger}
  {command} sessions {ledger}
  {command} sql {ledger} {shlex.quote(query)}"""


def _command() -> str:
    """This program as it can be called again from here: by its name, or by the path it was called with."""
    called = Path(sys.argv[0])
    if called.name != "bughive-costs":
        return "bughive-costs"
    found = shutil.which(called.name)
    if found and Path(found).resolve() == called.resolve():
        return called.name
    here = Path.cwd()
    return (
        str(called.relative_to(here)) if called.is_absolute() and called.is_relative_to(here) else str(called)
    )
