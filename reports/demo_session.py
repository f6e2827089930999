"""The story the demo plays: one crawl of a small shop, request by request, and what goes wrong.

Data, and nothing else. Five things go wrong, each once:

    /search         429 with Retry-After: waited out
    /checkout       extract_forms gets 503 three times, its tier is spent: the FAST tier answers
    TypeError       analyze_stack_trace gets no answer in time: the FAST tier answers
    lost order      validate_critical_bug gets 529: tried again after a backoff
    plan            asks for a screenshot first: the tool's result is sent back
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

Fault = Literal["rate limit", "overload", "silence", "outage", "tool call"]

# Named here, so that a bughive.toml nearby does not change what is played.
TIERS: Mapping[str, tuple[str, str]] = {
    "ORCHESTRATOR": ("claude-opus-4-5-20251101", "anthropic"),
    "REASONING": ("deepseek/deepseek-chat", "openrouter"),
    "CODING": ("deepseek/deepseek-coder", "openrouter"),
    "GENERAL": ("qwen/qwen-2.5-72b-instruct", "openrouter"),
    "FAST": ("qwen/qwen-2.5-32b-instruct", "openrouter"),
}

SCREENSHOT_TOOL = {
    "name": "take_screenshot",
    "description": "Takes a picture of one element of the page and says what is on it.",
    "input_schema": {
        "type": "object",
        "properties": {"selector": {"type": "string"}},
        "required": ["selector"],
    },
}
SCREENSHOT_INPUT = {"selector": "header nav"}
SCREENSHOT_RESULT = "A bar with five links: Home, Search, Basket, Checkout, Sign in."


class Step(NamedTuple):
    """One request. With `fallback` the FAST tier answers once its own tier has failed."""

    task: str
    prompt: str
    max_tokens: int = 800
    fault: Fault | None = None
    fallback: bool = False
    timeout_s: float = 120.0


class Page(NamedTuple):
    path: str
    html: str
    has_form: bool = False
    fault: Fault | None = None


class Bug(NamedTuple):
    title: str
    evidence: str


PAGES = (
    Page("/", '<header><nav><a href="/search">Search</a><a href="/basket">Basket</a></nav></header>' * 60),
    Page("/login", '<form><input name="email"><input name="password"><button>Sign in</button></form>', True),
    Page("/search", '<form role="search"><input name="q"></form><ul class="hits"></ul>', True, "rate limit"),
    Page("/product/17", '<h1>Blue kettle</h1><button id="add">Add to basket</button><p>In stock</p>' * 50),
    Page("/basket", '<table id="basket"><tr><td>Blue kettle</td><td>1</td></tr></table><a>Checkout</a>' * 40),
    Page("/checkout", '<form id="order"><input name="city"><input name="card"></form>' * 60, True, "outage"),
)
BUGS = (
    Bug("Order is lost when the basket changes during checkout", "POST /orders answers 500 after 30 s"),
    Bug("TypeError on an empty basket", "TypeError: cannot read 'total' of undefined at checkout.js:88"),
    Bug("Sign-in accepts an empty password", "POST /login with password='' answers 302 to /account"),
)
DUPLICATE = Bug("Checkout crashes without items", "TypeError: cannot read 'total' of undefined")


def crawl() -> Iterator[Step]:
    """Every request of the session, in the order an agent would make them."""
    yield Step("orchestrate_session", "Test shop.example: six pages, one hour, report what breaks orders.")
    yield Step(
        "plan_crawl_strategy", f"Plan the crawl of {_list(page.path for page in PAGES)}.", 1500, "tool call"
    )
    for page in PAGES:
        yield from _visit(page)
    yield from _triage()
    yield from _look_into_code()
    yield Step("validate_critical_bug", f"Is this critical? {_shown(BUGS[0])}", 1200, "overload")
    for bug in BUGS:
        yield Step("generate_title", f"A title of at most ten words for: {_shown(bug)}", 60)
        yield Step("format_ticket", f"A ticket with steps, expected and actual, for: {_shown(bug)}", 600)
    yield Step("quality_gate", f"May these be filed? {_list(bug.title for bug in BUGS)}", 1200)
    yield Step(
        "summarize_session", f"Six pages, four findings, one of them twice: {_list(b.title for b in BUGS)}"
    )


def _visit(page: Page) -> Iterator[Step]:
    shown = f"Page {page.path} of shop.example:\n{page.html}"
    rate_limit: Fault | None = "rate limit" if page.fault == "rate limit" else None
    yield Step("extract_navigation", f"Which pages does it lead to?\n{shown}", 400)
    yield Step("analyze_page", f"What can a user do here, and what may break?\n{shown}", 1200, rate_limit)
    yield Step("identify_elements", f"Selectors of everything one can click or fill in.\n{shown}", 600)
    if page.has_form:
        outage: Fault | None = "outage" if page.fault == "outage" else None
        yield Step(
            "extract_forms", f"Fields, their types and limits.\n{shown}", 500, outage, fallback=bool(outage)
        )
    yield Step("parse_console_logs", f"[warn] {page.path}: font not loaded\n[info] ready in 412 ms", 300)


def _triage() -> Iterator[Step]:
    for bug in (*BUGS, DUPLICATE):
        yield Step("categorize_simple", f"Function, layout or content? {bug.title}", 40)
        yield Step("classify_bug", f"Type, component and cause.\n{_shown(bug)}", 700)
        yield Step("evaluate_severity", f"How bad is it for whom?\n{_shown(bug)}", 500)
    yield Step("deduplicate_bugs", "Which are the same?\n" + _list(map(_shown, (*BUGS, DUPLICATE))), 500)


def _look_into_code() -> Iterator[Step]:
    for bug in BUGS:
        silent: Fault | None = "silence" if bug is BUGS[1] else None
        timeout_s = 1.0 if silent else 120.0
        yield Step(
            "analyze_stack_trace", _shown(bug), 900, silent, fallback=bool(silent), timeout_s=timeout_s
        )
        yield Step("propose_fix", f"The smallest change that mends it.\n{_shown(bug)}", 1500)
    yield Step("review_code", "if (!basket || !basket.items.length) return emptyBasket();", 900)
    yield Step("generate_edge_cases", "Inputs that might still break the checkout.", 900)


def _shown(bug: Bug) -> str:
    return f"{bug.title}: {bug.evidence}"


def _list(names: Iterable[str]) -> str:
    return "; ".join(names)
