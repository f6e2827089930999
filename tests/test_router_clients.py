"""The clients without a router: keys, addresses, retries, what they send and return."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from router import AnthropicClient, InvalidRequest, MissingKey, OpenRouterClient, ProviderError
from router.simulator import Reply, Simulator, Tokens, invalid_request, rate_limited, server_error, silent

pytestmark = pytest.mark.usefixtures("nothing_set")

CHAT = "deepseek/deepseek-chat"
OPUS = "anthropic/claude-opus-4-5-20250514"
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Plan a crawl"}]
TOOL = {"name": "click", "description": "Click", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def anthropic(sim: Simulator, waits: list[float]) -> Iterator[AnthropicClient]:
    with AnthropicClient("sk-ant-test-key", base_url=sim.anthropic_url, sleep=waits.append) as client:
        yield client


@pytest.fixture
def openrouter(sim: Simulator, waits: list[float]) -> Iterator[OpenRouterClient]:
    with OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url, sleep=waits.append) as client:
        yield client


def test_a_message_comes_back_as_a_plain_dict(sim: Simulator, anthropic: AnthropicClient) -> None:
    sim.script("claude-opus-4-5-20251101", Reply(text="Go left.", usage=Tokens(100, 20, cache_read_tokens=7)))
    response = anthropic.create_message(model=OPUS, messages=ASK, max_tokens=2000)

    assert response == {
        "content": "Go left.",
        "tool_calls": [],
        "usage": {
            "input_tokens": 100,
            "cache_read_tokens": 7,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 0,
            "output_tokens": 20,
            "reasoning_tokens": 0,
        },
        "stop_reason": "end_turn",
        "model": "claude-opus-4-5-20251101",
        "id": sim.log[0].response_id,
        "cost": None,
    }


def test_a_completion_says_what_openrouter_billed(sim: Simulator, openrouter: OpenRouterClient) -> None:
    sim.script(CHAT, Reply(text="ok", usage=Tokens(1000, 200), cost=Decimal("0.00049")))
    response = openrouter.create_completion(model=CHAT, messages=ASK)

    assert response["content"] == "ok"
    assert response["cost"] == Decimal("0.00049")


def test_the_users_id_of_opus_is_sent_as_the_one_the_api_accepts(
    sim: Simulator, anthropic: AnthropicClient
) -> None:
    for model in (OPUS, "claude-opus-4-5-20250514", "anthropic/claude-haiku-4-5"):
        anthropic.create_message(model=model, messages=ASK)

    sent = [served.request_body["model"] for served in sim.log]
    assert sent == ["claude-opus-4-5-20251101", "claude-opus-4-5-20251101", "claude-haiku-4-5"]


def test_tools_and_their_choice_reach_each_provider_in_its_own_shape(
    sim: Simulator, anthropic: AnthropicClient, openrouter: OpenRouterClient
) -> None:
    for _ in range(2):
        sim.script("claude-opus-4-5-20251101", Reply(tool_call=("click", {"selector": "#login"})))
        sim.script(CHAT, Reply(tool_call=("click", {"selector": "#login"})))
    said = {"tools": [TOOL], "tool_choice": "required", "stop": ["END"], "top_p": 0.5, "temperature": 0.0}
    ours = anthropic.create_message(model=OPUS, messages=ASK, system="You test.", **said)
    theirs = openrouter.create_completion(model=CHAT, messages=ASK, system="You test.", **said)

    assert ours["tool_calls"][0]["name"] == theirs["tool_calls"][0]["name"] == "click"
    assert ours["tool_calls"][0]["input"] == theirs["tool_calls"][0]["input"] == {"selector": "#login"}
    assert ours["stop_reason"] == theirs["stop_reason"] == "tool_use"
    to_anthropic, to_openrouter = (served.request_body for served in sim.log)
    assert to_anthropic["tools"] == [TOOL]
    assert to_anthropic["tool_choice"] == {"type": "any"}
    assert (to_anthropic["stop_sequences"], to_anthropic["system"]) == (["END"], "You test.")
    assert to_openrouter["tools"][0]["function"]["name"] == "click"
    assert (to_openrouter["tool_choice"], to_openrouter["stop"]) == ("required", ["END"])
    assert to_openrouter["messages"][0] == {"role": "system", "content": "You test."}
    assert to_anthropic["temperature"] == to_openrouter["temperature"] == 0.0
    assert to_anthropic["top_p"] == to_openrouter["top_p"] == 0.5


def test_what_only_the_other_provider_knows_is_left_out_with_a_log_line(
    sim: Simulator, openrouter: OpenRouterClient, caplog: pytest.LogCaptureFixture
) -> None:
    openrouter.create_completion(model=CHAT, messages=ASK, mcp_servers=[], seed=5)

    assert "mcp_servers" not in sim.log[0].request_body
    assert sim.log[0].request_body["seed"] == 5
    assert "openrouter knows nothing of mcp_servers" in caplog.text


def test_a_client_alone_retries_as_the_policy_says(
    sim: Simulator, openrouter: OpenRouterClient, waits: list[float]
) -> None:
    sim.script(CHAT, rate_limited(retry_after=7), server_error(), Reply(text="done"))

    assert openrouter.create_completion(model=CHAT, messages=ASK)["content"] == "done"
    assert waits[0] == 7.0
    assert 4 <= waits[1] <= 5
    assert len(sim.log) == 3


def test_max_retries_is_how_many_further_attempts_are_made(sim: Simulator, waits: list[float]) -> None:
    sim.script(CHAT, *[server_error()] * 9)
    with OpenRouterClient("k" * 20, max_retries=5, base_url=sim.openrouter_url, sleep=waits.append) as client:
        with pytest.raises(ProviderError) as caught:
            client.create_completion(model=CHAT, messages=ASK)

    assert caught.value.error_type == "server_error"
    assert len(sim.log) == 6


def test_a_wait_of_hours_is_not_waited_for(
    sim: Simulator, openrouter: OpenRouterClient, waits: list[float]
) -> None:
    sim.script(CHAT, rate_limited(retry_after=7200))
    with pytest.raises(ProviderError) as caught:
        openrouter.create_completion(model=CHAT, messages=ASK)

    assert caught.value.retry_after_s == 7200
    assert waits == []


def test_the_callers_fault_is_told_at_once(sim: Simulator, anthropic: AnthropicClient) -> None:
    sim.script("claude-opus-4-5-20251101", invalid_request("max_tokens: too many"))
    with pytest.raises(ProviderError, match="max_tokens: too many") as caught:
        anthropic.create_message(model=OPUS, messages=ASK)

    assert caught.value.http_status == 400
    assert caught.value.provider_request_id is not None
    assert len(sim.log) == 1


def test_a_silent_provider_is_asked_once(sim: Simulator) -> None:
    sim.script(CHAT, silent())
    with OpenRouterClient("k" * 20, timeout=0.2, base_url=sim.openrouter_url) as client:
        with pytest.raises(ProviderError) as caught:
            client.create_completion(model=CHAT, messages=ASK)

    assert caught.value.error_type == "timeout"
    assert len(sim.log) == 1


# Keys and addresses


def seen_by(client_class: Any, **options: Any) -> httpx.Request:
    """The request a client sends."""
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(400, json={"error": {"message": "enough", "type": "invalid_request_error"}})

    client = client_class(transport=httpx.MockTransport(handler), **options)
    ask = client.create_message if client_class is AnthropicClient else client.create_completion
    with pytest.raises(ProviderError):
        ask(model="m", messages=ASK)
    return requests[0]


def test_a_key_comes_from_argument_then_environment_then_dotenv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=sk-ant-from-dotenv\n")
    assert seen_by(AnthropicClient).headers["x-api-key"] == "sk-ant-from-dotenv"

    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-from-environment")
    assert seen_by(AnthropicClient).headers["x-api-key"] == "sk-ant-from-environment"
    assert seen_by(AnthropicClient, api_key="sk-ant-given").headers["x-api-key"] == "sk-ant-given"


def test_each_provider_gets_its_own_headers() -> None:
    to_anthropic = seen_by(AnthropicClient, api_key="sk-ant-given")
    to_openrouter = seen_by(OpenRouterClient, api_key="sk-or-given")

    assert str(to_anthropic.url) == "https://api.anthropic.com/v1/messages"
    assert to_anthropic.headers["anthropic-version"] == "2023-06-01"
    assert str(to_openrouter.url) == "https://openrouter.ai/api/v1/chat/completions"
    assert to_openrouter.headers["authorization"] == "Bearer sk-or-given"
    assert json.loads(to_openrouter.content)["messages"] == ASK


def test_an_address_comes_from_argument_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_BASE_URL", "http://proxy.example/or/")
    key = {"api_key": "sk-or-given"}

    assert str(seen_by(OpenRouterClient, **key).url) == "http://proxy.example/or/chat/completions"
    given = seen_by(OpenRouterClient, base_url="http://given.example", **key)
    assert str(given.url) == "http://given.example/chat/completions"


@pytest.mark.parametrize(
    ("client", "variable"), [(AnthropicClient, "ANTHROPIC_API_KEY"), (OpenRouterClient, "OPENROUTER_API_KEY")]
)
def test_a_missing_key_is_asked_for_when_it_is_needed_and_by_name(client: Any, variable: str) -> None:
    made = client()
    ask = made.create_message if client is AnthropicClient else made.create_completion
    with pytest.raises(MissingKey, match=variable) as missing:
        ask(model="m", messages=ASK)

    assert missing.value.variable == variable
    assert "\n" not in str(missing.value)


def test_a_key_with_a_line_break_is_trimmed_and_a_broken_one_is_not_shown() -> None:
    assert seen_by(AnthropicClient, api_key="sk-ant-given\n").headers["x-api-key"] == "sk-ant-given"
    with pytest.raises(MissingKey, match="ANTHROPIC_API_KEY") as refused:
        AnthropicClient("sk-ant-gi\nven").require_key()
    assert "sk-ant" not in str(refused.value)


def test_a_key_is_never_shown(sim: Simulator) -> None:
    key = "sk-or-v1-0123456789abcdef"
    sim.script(CHAT, Reply(status=401, message=f"no such key: {key}"))
    with OpenRouterClient(key, base_url=sim.openrouter_url) as client:
        with pytest.raises(ProviderError) as caught:
            client.create_completion(model=CHAT, messages=ASK)

        assert key not in repr(client)
    assert key not in str(caught.value)
    assert key not in repr(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": "10"}, {"max_retries": -1}, {"max_retries": 1.5}],
)
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        OpenRouterClient("k" * 20, **options)


@pytest.mark.parametrize("url", ["ftp://a.example", "nowhere", "http://", "http://a:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="base_url"):
        OpenRouterClient("k" * 20, base_url=url).require_key()


@pytest.mark.parametrize("setting", ["model", "messages", "stream"])
def test_what_is_not_a_parameter_cannot_be_slipped_in(openrouter: OpenRouterClient, setting: str) -> None:
    from router.providers.client import Call

    with pytest.raises(InvalidRequest, match=setting):
        Call(ASK, 10, params={setting: "x"})


def test_a_closed_client_can_be_used_again(sim: Simulator, openrouter: OpenRouterClient) -> None:
    openrouter.create_completion(model=CHAT, messages=ASK)
    openrouter.close()

    assert openrouter.create_completion(model=CHAT, messages=ASK)["content"]


def test_a_stream_that_is_refused_gives_its_connection_back_once(
    sim: Simulator, openrouter: OpenRouterClient
) -> None:
    sim.script(CHAT, invalid_request(), Reply(text="left early"), Reply(text="done"))
    with pytest.raises(ProviderError):
        openrouter.create_completion(CHAT, ASK, stream=True).read()
    with openrouter.create_completion(CHAT, ASK, stream=True) as stream:
        next(iter(stream))  # the connection ends with it

    assert openrouter.create_completion(CHAT, ASK)["content"] == "done"
