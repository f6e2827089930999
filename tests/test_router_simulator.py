"""The simulator as a client sees it: plain httpx over a real socket, one promise per test."""

from __future__ import annotations

import gzip
import json
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import anthropic
import httpx
import openai
import pytest
from certificates import certified

from router.simulator import (
    Price,
    Reply,
    Simulator,
    Tokens,
    ToolCall,
    content_filtered,
    context_length_exceeded,
    cut,
    endless,
    error_in_answer,
    gzip_bomb,
    insufficient_credits,
    overloaded,
    rate_limited,
    redirect,
    reset,
    server_error,
    silent,
    spend_limit_reached,
    truncated_gzip,
    unreadable,
)

CHAT = "deepseek/deepseek-chat"
OPUS = "claude-opus-4-5-20251101"


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as http:
        yield http


def ask(
    client: httpx.Client, sim: Simulator, model: str = CHAT, *, text: str = "Look at this page.", **more: Any
) -> httpx.Response:
    """One call, at Anthropic for a claude model, else at OpenRouter."""
    anthropic = model.startswith("claude")
    url = f"{sim.anthropic_url}/v1/messages" if anthropic else f"{sim.openrouter_url}/chat/completions"
    body = {"model": model, "max_tokens": 1000, "messages": [{"role": "user", "content": text}], **more}
    return client.post(url, json=body)


def test_anthropic_answers_a_message_with_disjoint_tokens_and_no_cost(sim, client):
    answer = ask(client, sim, OPUS)

    message = answer.json()
    assert answer.status_code == 200
    assert answer.headers["request-id"]
    assert message["type"] == "message"
    assert message["model"] == OPUS
    assert message["content"][0]["text"]
    assert message["stop_reason"] == "end_turn"
    assert message["usage"]["output_tokens"] > 0
    assert "cost" not in message["usage"]
    assert sim.log[0].cost_usd is None


def test_openrouter_answers_a_completion_whose_cost_is_tokens_times_prices(client):
    prices = {CHAT: Price(Decimal("0.27"), Decimal("1.10"), Decimal("0.027"))}
    with Simulator(seed=7, prices=prices) as sim:
        sim.script(CHAT, Reply(usage=Tokens(input_tokens=1001, output_tokens=333, cache_read_tokens=7)))
        answer = ask(client, sim)
        unpriced = ask(client, sim, "someone/unpriced-model")

        usage = json.loads(answer.text, parse_float=Decimal)["usage"]
        assert usage["prompt_tokens"] == 1008
        assert usage["prompt_tokens_details"]["cached_tokens"] == 7
        # 1001 × 0.27 + 7 × 0.027 + 333 × 1.10, all × 0.000001
        assert usage["cost"] == Decimal("0.000636759")
        assert '"cost": 0.000636759}' in answer.text
        assert sim.log[0].cost_usd == Decimal("0.000636759")
        assert "cost" not in unpriced.json()["usage"]
        assert sim.log[1].cost_usd is None


def test_the_official_sdks_read_both_providers_answers_and_tool_calls(sim):
    screenshot = Reply(tool_call=ToolCall("take_screenshot", {"selector": "#login"}))
    for model in (OPUS, CHAT):
        sim.script(model, Reply(text="Seen."), screenshot)
    messages = [{"role": "user", "content": "Look at this page."}]

    with anthropic.Anthropic(api_key="any", base_url=sim.anthropic_url) as sdk:
        said, called = (sdk.messages.create(model=OPUS, max_tokens=100, messages=messages) for _ in range(2))
    assert said.content[0].text == "Seen."
    assert said.usage.output_tokens == sim.log[0].output_tokens
    assert (called.stop_reason, called.content[0].input) == ("tool_use", {"selector": "#login"})

    with openai.OpenAI(api_key="any", base_url=sim.openrouter_url) as sdk:
        said, called = (sdk.chat.completions.create(model=CHAT, messages=messages) for _ in range(2))
    assert said.choices[0].message.content == "Seen."
    assert said.usage.completion_tokens == sim.log[2].output_tokens
    assert called.choices[0].finish_reason == "tool_calls"
    assert called.choices[0].message.tool_calls[0].function.name == "take_screenshot"


def test_some_answers_are_partly_from_a_cache_and_none_counts_more_than_it_was_sent(sim, client):
    for model in (CHAT, OPUS):
        for _ in range(20):
            ask(client, sim, model, text="A page with a form. " * 20, max_tokens=30)

    assert {bool(served.cached_tokens) for served in sim.log if served.model == CHAT} == {True, False}
    assert any(served.tokens.cache_write_5m_tokens for served in sim.log if served.model == OPUS)
    for served in sim.log:
        assert served.tokens.prompt_tokens < len(json.dumps(served.request_body))
        assert 0 < served.output_tokens <= 30


def test_a_text_that_does_not_fit_in_max_tokens_is_cut_and_says_so(sim, client):
    sim.script(CHAT, Reply(text="word " * 100))
    sim.script(OPUS, Reply(text="word " * 100))

    completion = ask(client, sim, CHAT, max_tokens=10).json()
    message = ask(client, sim, OPUS, max_tokens=10).json()

    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"]["completion_tokens"] == 10
    assert message["stop_reason"] == "max_tokens"
    assert len(message["content"][0]["text"]) == 40


def test_the_same_seed_answers_the_same_whatever_other_models_are_asked(client):
    def answers(seed: int, *models: str) -> list[str]:
        with Simulator(seed=seed) as sim:
            return [ask(client, sim, model).text for model in models]

    alone = answers(7, CHAT, CHAT, CHAT)
    among_others = answers(7, CHAT, OPUS, CHAT, OPUS, OPUS, CHAT)

    assert [among_others[0], among_others[2], among_others[5]] == alone
    assert len(set(alone)) == 3
    assert answers(8, CHAT, CHAT, CHAT) != alone


def test_scripted_replies_come_in_order_and_then_the_usual_answer(sim, client):
    sim.script(CHAT, rate_limited(retry_after=1), Reply(text="second"))

    limited, second, usual, other = (
        ask(client, sim),
        ask(client, sim),
        ask(client, sim),
        ask(client, sim, OPUS),
    )

    assert (limited.status_code, limited.headers["retry-after"]) == (429, "1")
    assert second.json()["choices"][0]["message"]["content"] == "second"
    assert usual.status_code == other.status_code == 200
    assert [served.fault for served in sim.log] == ["rate_limited", None, None, None]


@pytest.mark.parametrize(
    ("reply", "status", "error_type"),
    [
        (rate_limited(), 429, "rate_limit_error"),
        (overloaded(), 529, "overloaded_error"),
        (server_error(), 500, "api_error"),
        (server_error(504), 504, "timeout_error"),
        (context_length_exceeded(), 400, "invalid_request_error"),
        (insufficient_credits(), 402, "billing_error"),
        (spend_limit_reached(), 429, "rate_limit_error"),
        (Reply(status=401), 401, "authentication_error"),
        (Reply(status=403), 403, "permission_error"),
        (Reply(status=404), 404, "not_found_error"),
        (Reply(status=413), 413, "request_too_large"),
    ],
)
def test_anthropic_errors_have_the_shape_of_anthropic(sim, client, reply, status, error_type):
    sim.script(OPUS, reply)

    answer = ask(client, sim, OPUS)

    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == error_type
    assert answer.json()["error"]["message"]
    assert answer.json()["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (rate_limited(), 429),
        (overloaded(503), 503),
        (server_error(502), 502),
        (context_length_exceeded(), 400),
        (content_filtered(), 403),
        (insufficient_credits(), 402),
        (Reply(status=404), 404),
    ],
)
def test_openrouter_errors_have_the_shape_of_openrouter(sim, client, reply, status):
    sim.script(CHAT, reply)

    answer = ask(client, sim)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status
    assert answer.json()["error"]["message"]


def test_the_account_s_own_spend_limit_is_told_from_a_rate_limit(sim, client):
    sim.script(OPUS, spend_limit_reached())

    answer = ask(client, sim, OPUS)

    assert answer.json()["error"]["details"]["error_code"] == "enforced_spend_limit_reached"
    assert "retry-after" not in answer.headers


def test_an_error_can_hide_in_an_answer_with_status_200(sim, client):
    sim.script(CHAT, error_in_answer(), unreadable())

    hidden, page = ask(client, sim), ask(client, sim)

    assert (hidden.status_code, hidden.json()["error"]["code"]) == (200, 502)
    assert page.status_code == 200
    assert page.text.startswith("<html>")


def test_a_tool_call_is_told_in_each_provider_s_words(sim, client):
    for model in (OPUS, CHAT):
        sim.script(model, Reply(tool_call=ToolCall("take_screenshot", {"selector": "#login"})))

    message, completion = ask(client, sim, OPUS).json(), ask(client, sim, CHAT).json()

    assert message["stop_reason"] == "tool_use"
    assert message["content"][0]["type"] == "tool_use"
    assert message["content"][0]["input"] == {"selector": "#login"}
    call = completion["choices"][0]["message"]["tool_calls"][0]
    assert completion["choices"][0]["finish_reason"] == "tool_calls"
    assert json.loads(call["function"]["arguments"]) == {"selector": "#login"}
    assert completion["choices"][0]["message"]["content"] is None


def test_a_body_of_one_s_own_is_sent_as_it_is(sim, client):
    sim.script(CHAT, Reply(body={"choices": []}), Reply(status=502, body=b"<h1>bad</h1>"))

    assert ask(client, sim).json() == {"choices": []}
    assert ask(client, sim).content == b"<h1>bad</h1>"


def test_a_delayed_answer_comes_when_the_client_waits_for_it(sim, client):
    sim.script(CHAT, Reply(delay_s=0.2), Reply(delay_s=60))

    before = time.monotonic()
    assert ask(client, sim).status_code == 200
    assert time.monotonic() - before >= 0.2
    with pytest.raises(httpx.ReadTimeout):
        client.post(
            f"{sim.openrouter_url}/chat/completions",
            json={"model": CHAT, "messages": [{"role": "user", "content": "hi"}]},
            timeout=0.1,
        )


def test_a_cut_answer_breaks_off_after_so_many_bytes(sim, client):
    sim.script(CHAT, cut(after=25))

    with client.stream("POST", f"{sim.openrouter_url}/chat/completions", json=_body()) as answer:
        received = b""
        with pytest.raises(httpx.RemoteProtocolError):
            for chunk in answer.iter_raw():
                received += chunk

    assert len(received) == 25
    assert sim.log[0].fault == "cut"
    assert sim.log[0].cost_usd is not None


def test_a_dripping_answer_comes_whole_in_pieces(sim, client):
    sim.script(CHAT, Reply(text="slow", drip=(100, 0.01)), Reply(text="fast"))

    with client.stream("POST", f"{sim.openrouter_url}/chat/completions", json=_body()) as answer:
        pieces = list(answer.iter_raw())

    assert len(pieces) > 1
    assert json.loads(b"".join(pieces))["choices"][0]["message"]["content"] == "slow"
    assert ask(client, sim).json()["choices"][0]["message"]["content"] == "fast"


def test_a_reset_connection_gives_no_byte(sim, client):
    sim.script(CHAT, reset())

    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        ask(client, sim)

    assert (sim.log[0].status, sim.log[0].fault, sim.log[0].cost_usd) == (None, "reset", None)
    assert ask(client, sim).status_code == 200


def test_silence_lasts_until_the_client_leaves(sim, client):
    sim.script(CHAT, silent())

    with pytest.raises(httpx.ReadTimeout):
        client.post(f"{sim.openrouter_url}/chat/completions", json=_body(), timeout=0.1)

    assert (sim.log[0].status, sim.log[0].fault) == (None, "silence")
    assert ask(client, sim).status_code == 200


def test_a_call_is_in_the_log_while_it_still_waits_for_its_answer(sim, client):
    sim.script(CHAT, silent())
    failures: list[Exception] = []

    def wait_in_vain() -> None:
        try:
            ask(client, sim)
        except httpx.HTTPError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait_in_vain)
    waiting.start()
    assert sim.wait_served(1)[0].fault == "silence"

    sim.stop()
    waiting.join()
    assert len(failures) == 1


def test_waiting_for_calls_that_do_not_come_says_how_many_did(sim, client):
    ask(client, sim)

    with pytest.raises(TimeoutError, match="1 of 2 calls"):
        sim.wait_served(2, timeout_s=0.01)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no json", "not a JSON object"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": "m", "messages": []}', "messages"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}', "max_tokens"),
        (b'{"model": "m", "max_tokens": 9, "messages": [{"role": "system", "content": "hi"}]}', "role"),
    ],
)
def test_a_body_the_provider_would_not_take_is_refused(sim, client, body, words):
    answer = client.post(f"{sim.anthropic_url}/v1/messages", content=body)

    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_an_unknown_path_is_not_found(sim, client):
    assert client.post(f"{sim.anthropic_url}/v2/messages", json=_body()).status_code == 404


def test_the_log_keeps_no_key(sim, client):
    keys = {"x-api-key": "sk-ant-secret", "authorization": "Bearer sk-or-secret", "x-title": "BugHive"}
    client.post(f"{sim.openrouter_url}/chat/completions", json=_body(), headers=keys)

    assert "secret" not in repr(sim.log)
    assert sim.log[0].request_headers["x-title"] == "BugHive"
    assert sim.log[0].request_body["model"] == CHAT


def test_many_clients_at_once_get_one_answer_each(sim, client):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(client, sim).json()["id"], range(64)))

    assert len(set(answers)) == 64
    assert [served.number for served in sim.log] == list(range(1, 65))
    assert {served.response_id for served in sim.log} == set(answers)


def test_a_limited_log_keeps_the_newest(client):
    with Simulator(seed=7, log_limit=2) as sim:
        for _ in range(5):
            ask(client, sim)

        assert [served.number for served in sim.wait_served(5)] == [4, 5]


def test_stopping_twice_is_once_and_no_thread_is_left(client):
    before = threading.active_count()
    sim = Simulator()
    sim.start()
    ask(client, sim)
    sim.stop()
    sim.stop()

    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="not running"):
        _ = sim.anthropic_url


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "end of input"])
def test_as_a_process_it_prints_its_urls_and_stops_when_told(client, how):
    command = [sys.executable, "-m", "router.simulator", "--port", "0", "--seed", "7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        urls = json.loads(process.stdout.readline())
        assert client.post(f"{urls['openrouter_url']}/chat/completions", json=_body()).status_code == 200
        if how == "end of input":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, how))
        assert process.wait(timeout=20) == 0


def test_as_a_process_it_says_in_a_line_which_port_it_cannot_have(sim):
    taken = int(sim.anthropic_url.rpartition(":")[2].partition("/")[0])
    for port, why in ((taken, "Address already in use"), (99999, "0-65535")):
        done = subprocess.run(
            [sys.executable, "-m", "router.simulator", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"port {port} cannot be used: " in done.stderr
        assert why in done.stderr


def _body() -> dict[str, Any]:
    return {"model": CHAT, "max_tokens": 1000, "messages": [{"role": "user", "content": "Look."}]}


def test_it_speaks_https_with_a_certificate(tmp_path):
    identity = certified(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=identity.trusted)
    with Simulator(seed=7, tls=identity.server) as sim, httpx.Client(verify=trusting) as client:
        url = sim.openrouter_url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        assert client.post(f"{url}/chat/completions", json=_body()).status_code == 200
        with pytest.raises(httpx.ConnectError, match="mismatch"):
            client.post(f"{sim.openrouter_url}/chat/completions", json=_body())


@pytest.mark.parametrize("what", ["head", "body"])
def test_what_has_no_end_ends_when_the_client_leaves(sim, client, what):
    sim.script(CHAT, endless(what))

    if what == "head":
        with pytest.raises(httpx.RemoteProtocolError):
            ask(client, sim)
    else:
        with client.stream("POST", f"{sim.openrouter_url}/chat/completions", json=_body()) as answer:
            pieces = answer.iter_raw()
            assert sum(len(next(pieces)) for _ in range(100)) > 100_000

    assert sim.log[0].fault == "endless"
    assert ask(client, sim).status_code == 200


def test_a_redirect_a_cut_packing_and_a_bomb_are_what_they_say(sim, client):
    sim.script(CHAT, redirect("http://elsewhere.example/"), truncated_gzip(), gzip_bomb(1 << 24))

    assert ask(client, sim).headers["location"] == "http://elsewhere.example/"
    with pytest.raises(EOFError):
        gzip.decompress(_raw(client, sim))
    packed = _raw(client, sim)
    assert len(packed) < 100_000
    assert len(gzip.decompress(packed)) == 1 << 24


def _raw(client, sim):
    with client.stream("POST", f"{sim.openrouter_url}/chat/completions", json=_body()) as answer:
        return b"".join(answer.iter_raw())
