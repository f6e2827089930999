"""Each snippet of the document this project was ordered by runs, against the simulator.

The document is not part of the project: it is read from $BUGHIVE_SHARED, else from ../shared. Changed in
it are the import line and async/await; where it writes `...` for what it leaves out, something stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from router import TASK_MODEL_MAP, AnthropicClient, OpenRouterClient, ProviderError
from router.simulator import Reply, Simulator, Tokens, ToolCall, not_found, rate_limited, server_error

ROOT = Path(__file__).parents[1]
DOCUMENT = Path(os.environ.get("BUGHIVE_SHARED", ROOT.parent / "shared")) / "USERS_DOCUMENT.md"
OPUS = "claude-opus-4-5-20251101"
REASONING = "deepseek/deepseek-chat"
FAST = "qwen/qwen-2.5-32b-instruct"
ASK = [{"role": "user", "content": "Analyze this bug"}]

pytestmark = pytest.mark.skipif(not DOCUMENT.is_file(), reason=f"the document is not here: {DOCUMENT}")


class Snippets:
    """The document's Python by heading, and a namespace in which it runs."""

    def __init__(self, text: str) -> None:
        self.names: dict[str, Any] = {}
        self._found: dict[str, str] = {}
        for section in re.split(r"^##+ ", text, flags=re.MULTILINE):
            heading = section.partition("\n")[0]
            for number, code in enumerate(
                re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
            ):
                self._found[f"{heading} {number + 1}" if number else heading] = code

    @property
    def headings(self) -> set[str]:
        return set(self._found)

    def run(self, *headings: str) -> None:
        for heading in headings:
            exec(compile(in_our_words(self._found[heading]), heading, "exec"), self.names)  # noqa: S102


def in_our_words(code: str) -> str:
    """The mechanical changes, and nothing else."""
    code = code.replace("from llm import", "from router import")
    code = re.sub(r"\b(await|async) ", "", code)
    code = code.replace("messages=[...]", 'messages=[{"role": "user", "content": "Analyze this page."}]')
    return code.replace("(...)", "(*_)")


@pytest.fixture
def document(sim: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Snippets]:
    """The snippets, in a folder and an environment as the document's reader has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUGHIVE_LEDGER", raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-...")
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-...")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", sim.anthropic_url)
    monkeypatch.setenv("OPENROUTER_BASE_URL", sim.openrouter_url)
    tasks = dict(TASK_MODEL_MAP)
    snippets = Snippets(DOCUMENT.read_text("utf-8"))
    yield snippets
    for value in snippets.names.values():
        if hasattr(value, "close") and not isinstance(value, type):
            value.close()
    TASK_MODEL_MAP.clear()
    TASK_MODEL_MAP.update(tasks)


def test_every_snippet_is_run_below(document: Snippets) -> None:
    run_below = set(re.findall(r'"([A-Z][\w ()-]+)"', Path(__file__).read_text("utf-8")))
    assert document.headings
    assert document.headings <= run_below


def test_basic_routing(document: Snippets, sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    sim.script(REASONING, Reply(text="Two forms.", usage=Tokens(1000, 200)))
    document.run("Basic Routing")

    assert capsys.readouterr().out == "Model used: REASONING\nResponse: Two forms.\nCost: $0.000490\n"
    assert document.names["response"]["session_id"] == "crawl_session_123"
    assert sim.log[0].request_body["max_tokens"] == 2000


def test_task_to_model_mapping(document: Snippets, sim: Simulator) -> None:
    shipped = dict(TASK_MODEL_MAP)
    document.run("Task-to-Model Mapping")

    assert shipped == TASK_MODEL_MAP  # the document's map is the one that ships


def test_direct_clients(document: Snippets, sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    sim.script(OPUS, Reply(text="Begin at the shop's front page."))
    sim.script(REASONING, Reply(text="The basket was empty."))
    document.run("Anthropic Client", "OpenRouter Client")

    assert capsys.readouterr().out == "Begin at the shop's front page.\nThe basket was empty.\n"
    assert [served.request_body["max_tokens"] for served in sim.log] == [2000, 1000]


def test_tool_use(document: Snippets, sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    sim.script(OPUS, Reply(tool_call=ToolCall("take_screenshot", {"selector": "#login"})))
    document.run("Basic Routing", "Tool Use (Function Calling)")

    assert capsys.readouterr().out.endswith("Tool: take_screenshot\nInput: {'selector': '#login'}\n")
    assert sim.log[-1].request_body["tools"][0]["input_schema"]["properties"] == {
        "selector": {"type": "string"}
    }


def test_cost_tracking(document: Snippets, sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    sim.script(REASONING, Reply(), Reply(usage=Tokens(10_000, 2_000)))
    document.run("Basic Routing")
    capsys.readouterr()
    document.run("Cost Tracking")

    # 10,000 × 0.27 and 2,000 × 1.10 USD per million tokens
    assert capsys.readouterr().out == (
        "Session cost: $0.0049\n"
        "REASONING: $0.0049\n"
        "Session session_123 Cost Summary:\n"
        "  Total Cost: $0.0049\n"
        "  Total Requests: 1\n"
        "  Input Tokens: 10,000\n"
        "  Output Tokens: 2,000\n"
        "\n"
        "Model Breakdown:\n"
        "  REASONING: $0.0049 (1 requests, 10000 in, 2000 out)\n"
    )
    assert document.names["total_cost"] == Decimal("0.0049")


def test_the_summary_is_laid_out_as_the_document_shows(document: Snippets) -> None:
    shown = re.search(r"^Output:\n```\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert shown

    def layout(text: str) -> list[str]:
        return [re.sub(r"[\d.,]*\d", "#", line) for line in text.splitlines()]

    document.run("Basic Routing")
    for task in ("plan_crawl_strategy", "analyze_page", "format_ticket"):
        document.names["router"].route(task, ASK, session_id="session_123")
    assert layout(document.names["tracker"].get_cost_summary("session_123")) == layout(shown[1])


def test_fallback_routing(document: Snippets, sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    document.run("Basic Routing", "Task-to-Model Mapping")
    sim.script(REASONING, not_found())
    document.run("Fallback Routing")

    assert capsys.readouterr().out.endswith("⚠️ Primary model failed, fallback was used\n")
    assert document.names["response"]["model_tier"] == "FAST"

    document.run("Fallback Routing")
    assert not document.names["response"]["fallback_used"]


def test_error_handling(document: Snippets, sim: Simulator) -> None:
    """tenacity as the document uses it is what the clients do: three attempts, waits of 2 s to 30 s."""
    document.run("Error Handling")
    assert document.names["_make_request"]() is None

    waits: list[float] = []
    with OpenRouterClient(sleep=waits.append) as client:
        sim.script(REASONING, *[server_error()] * 3)
        with suppress(ProviderError):
            client.create_completion(REASONING, ASK)
        assert len(sim.log) == 3
        assert len(waits) == 2
        assert all(2 <= wait <= 30 for wait in waits)

        sim.script(REASONING, rate_limited(retry_after=17))
        client.create_completion(REASONING, ASK)
        assert waits[2:] == [17]
        assert client.timeout_s == 120


def test_client_configuration(document: Snippets) -> None:
    document.run("Basic Routing", "Client Configuration")

    assert (document.names["anthropic"].timeout_s, document.names["anthropic"].max_retries) == (180, 5)
    assert (document.names["openrouter"].timeout_s, document.names["openrouter"].max_retries) == (120, 3)


def test_adding_new_tasks(document: Snippets, sim: Simulator) -> None:
    document.run("Basic Routing", "Adding New Tasks")

    assert document.names["response"]["model_tier"] == "REASONING"
    assert TASK_MODEL_MAP["my_new_task"] == "REASONING"


def test_keys_may_stand_in_a_dotenv_file(
    document: Snippets, sim: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dotenv = re.search(r"^# \.env\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert dotenv
    (tmp_path / ".env").write_text(dotenv[1])
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.delenv("OPENROUTER_API_KEY")
    document.run("Basic Routing")

    with AnthropicClient() as client:
        client.require_key()


def test_every_task_of_the_document_is_at_its_tier(document: Snippets) -> None:
    listed = DOCUMENT.read_text("utf-8").partition("## Task Types")[2].partition("## Error Handling")[0]
    tier = ""
    for line in listed.splitlines():
        if line.startswith("### "):
            tier = line.split()[1].upper()
        elif line.startswith("- "):
            task = line.split("`")[1]
            assert TASK_MODEL_MAP[task] == tier
    assert len(re.findall(r"^- `", listed, re.MULTILINE)) == len(TASK_MODEL_MAP)
