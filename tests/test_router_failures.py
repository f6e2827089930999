"""Each row of the failure table over real sockets: what is tried again, and where, and what is told."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import certified
from one_shot_server import OneShotServer, read_request
from tenacity.wait import wait_base, wait_none

from ledger import CostTracker, Ledger
from ledger.errors import SettingsError
from ledger.events import ErrorType
from router import (
    TASK_MODEL_MAP,
    AnthropicClient,
    LLMRouter,
    OpenRouterClient,
    ProviderError,
    RouteExhausted,
)
from router.providers import transport
from router.simulator import (
    Reply,
    Simulator,
    authentication_failed,
    content_filtered,
    context_length_exceeded,
    cut,
    endless,
    error_in_answer,
    gzip_bomb,
    insufficient_credits,
    invalid_request,
    not_found,
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

pytestmark = pytest.mark.usefixtures("nothing_set")

_ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = Path(os.environ.get("BUGHIVE_TRAFFIC") or _ROOT.parent / "shared" / "traffic")

OPUS, CHAT, QWEN = "claude-opus-4-5-20251101", "deepseek/deepseek-chat", "qwen/qwen-2.5-32b-instruct"
TASK = {OPUS: "plan_crawl_strategy", CHAT: "analyze_page"}  # both fall back to FAST, which is QWEN
ASK = [{"role": "user", "content": "Analyze this page."}]
LONG = timedelta(hours=2)


class Routed(NamedTuple):
    """How a call went: the failure of each attempt, the answer where there is one, the billing verdicts."""

    errors: list[ProviderError]
    answer: Any
    reason: str | None
    billing: list[str]
    seconds: float


@contextmanager
def routing(anthropic_url: str, openrouter_url: str, backoff: wait_base | None = None) -> Iterator[Any]:
    """A router of real clients, one retry, and waits that take no time unless a backoff is given."""
    with (
        AnthropicClient("sk-ant-test-key", base_url=anthropic_url) as anthropic,
        OpenRouterClient("sk-or-test-key", base_url=openrouter_url) as openrouter,
        Ledger.in_memory() as ledger,
    ):
        sleep = time.sleep if backoff else lambda _: None
        router = LLMRouter(
            *(anthropic, openrouter, CostTracker(ledger)),
            **{"max_retries": 1, "backoff": backoff or wait_none(), "sleep": sleep},
        )

        def route(model: str, *, fallback: bool = False, **options: Any) -> Routed:
            ask = router.route_with_fallback if fallback else router.route
            errors, answer, reason, began = [], None, None, time.monotonic()
            try:
                answer = ask(TASK[model], ASK, **options)
            except RouteExhausted as exhausted:
                errors, reason = [attempt.error for attempt in exhausted.attempts], exhausted.reason
            seconds = time.monotonic() - began
            return Routed(errors, answer, reason, _verdicts(ledger), seconds)

        yield route


def _verdicts(ledger: Ledger) -> list[str]:
    lines = [line for path in ledger.path.glob("journals/*.jsonl") for line in path.read_text().splitlines()]
    return [event["billing"] for event in map(json.loads, lines) if "billing" in event]


# The table of the design, as data: may the same tier be asked again, may the next one -----------

AGAIN, NOT_AGAIN = True, False
NEXT, NOT_NEXT = True, False


class Row(NamedTuple):
    """A reply, and what the design says follows from it."""

    reply: Reply
    error_type: ErrorType
    same_tier: bool
    next_tier: bool
    billing: str = "unbilled"
    status: int | None = None


def _row(reply: Reply, error_type: ErrorType, same: bool, other: bool, billing: str = "unbilled") -> Row:
    silent_or_broken = reply.silence or reply.reset or reply.cut_after is not None or reply.endless == "head"
    packed = "content-encoding" in reply.headers or reply.endless or reply.drip
    return Row(reply, error_type, same, other, billing, None if silent_or_broken or packed else reply.status)


_SPEND_LIMIT = replace(spend_limit_reached(), message="This would exceed your monthly spend limit.")
TABLE: dict[str, Row] = {
    "429 with Retry-After": _row(rate_limited(retry_after=2), "rate_limited", AGAIN, NEXT),
    "429 without it": _row(rate_limited(), "rate_limited", AGAIN, NEXT),
    **{
        f"HTTP {status}": _row(server_error(status), "server_error", AGAIN, NEXT)
        for status in (408, 409, 500, 502, 504, 520, 522)
    },
    **{f"HTTP {status}": _row(overloaded(status), "overloaded", AGAIN, NEXT) for status in (503, 529)},
    "reset before any byte": _row(reset(), "connection_failed", AGAIN, NEXT, "unknown"),
    "the account's own spend limit": _row(_SPEND_LIMIT, "spend_limit_reached", NOT_AGAIN, NEXT),
    "402": _row(insufficient_credits(), "insufficient_credits", NOT_AGAIN, NEXT),
    "silence": _row(silent(), "timeout", NOT_AGAIN, NEXT, "unknown"),
    "a dripping answer": _row(Reply(drip=(1, 0.05)), "timeout", NOT_AGAIN, NEXT, "unknown"),
    "an answer cut in the middle": _row(cut(after=40), "stream_interrupted", NOT_AGAIN, NEXT, "unknown"),
    "context length": _row(context_length_exceeded(), "context_length_exceeded", NOT_AGAIN, NEXT),
    "moderation": _row(content_filtered(), "content_filtered", NOT_AGAIN, NOT_NEXT),
    "400": _row(invalid_request(), "invalid_request", NOT_AGAIN, NOT_NEXT),
    "413": _row(Reply(status=413), "request_too_large", NOT_AGAIN, NOT_NEXT),
    "401": _row(authentication_failed(), "authentication_failed", NOT_AGAIN, NEXT),
    "403": _row(Reply(status=403), "permission_denied", NOT_AGAIN, NEXT),
    "404": _row(not_found(), "not_found", NOT_AGAIN, NEXT),
    "a redirect": _row(redirect("http://127.0.0.1:1/elsewhere"), "not_found", NOT_AGAIN, NEXT),
    "not JSON": _row(unreadable(), "malformed_response", AGAIN, NEXT, "unknown"),
    "not JSON, though it says so": _row(
        Reply(body=b"<html>Bad gateway"), "malformed_response", AGAIN, NEXT, "unknown"
    ),
    "JSON, but no answer": _row(Reply(body={"ok": True}), "malformed_response", AGAIN, NEXT, "unknown"),
    "an empty answer": _row(Reply(body=b""), "malformed_response", AGAIN, NEXT, "unknown"),
    "an event stream nobody asked for": _row(
        Reply(headers={"content-type": "text/event-stream"}, body=b"event: ping\ndata: {}\n\n"),
        *("malformed_response", AGAIN, NEXT, "unknown"),
    ),
    "an error inside HTTP 200": _row(error_in_answer(), "server_error", AGAIN, NEXT),
    "a rate limit inside HTTP 200": _row(error_in_answer("rate_limited"), "rate_limited", AGAIN, NEXT),
    "a wrong key inside HTTP 200": _row(
        error_in_answer("authentication_failed"), "authentication_failed", NOT_AGAIN, NEXT
    ),
    "truncated gzip": _row(truncated_gzip(), "malformed_response", AGAIN, NEXT, "unknown"),
    "a gzip bomb": _row(gzip_bomb(1 << 26), "malformed_response", AGAIN, NEXT, "unknown"),
    "a body without end": _row(endless("body"), "malformed_response", AGAIN, NEXT, "unknown"),
    "a head without end": _row(endless("head"), "malformed_response", AGAIN, NEXT, "unknown"),
    "x-should-retry: false": _row(
        Reply(status=529, headers={"x-should-retry": "false"}), "overloaded", NOT_AGAIN, NEXT
    ),
    "x-should-retry: true": _row(
        Reply(status=404, headers={"x-should-retry": "true"}), "not_found", AGAIN, NEXT
    ),
    "a spend limit that is to be retried": _row(
        replace(_SPEND_LIMIT, headers={"x-should-retry": "true"}),
        *("spend_limit_reached", NOT_AGAIN, NEXT),
    ),
}
DEADLINE_S = 0.6


def make_impatient(model: str) -> None:
    """Bound the attempts at this model's tier, and at no other: its fallback has all the time it needs."""
    Path("bughive.toml").write_text(f"[tiers.{TASK_MODEL_MAP[TASK[model]]}]\ntimeout_s = 0.3\n")


@pytest.mark.parametrize("model", [OPUS, CHAT])
@pytest.mark.parametrize("name", TABLE)
def test_without_a_fallback_the_row_decides_how_often_the_tier_is_asked(
    sim: Simulator, name: str, model: str
) -> None:
    row = TABLE[name]
    sim.script(model, row.reply, row.reply)
    if row.error_type == "timeout":
        make_impatient(model)
    with routing(sim.anthropic_url, sim.openrouter_url) as route:
        went = route(model)

    assert len(went.errors) == len(sim.log) == (2 if row.same_tier else 1)
    for error in went.errors:
        assert error.error_type == row.error_type
        assert error.retryable is row.same_tier
        assert error.http_status == row.status
        assert 0 < len(str(error)) <= 500
        assert "\n" not in str(error)
    assert set(went.billing) == {row.billing}
    assert went.reason == ("exhausted" if row.next_tier else "given_up")


@pytest.mark.parametrize("model", [OPUS, CHAT])
@pytest.mark.parametrize("name", TABLE)
def test_with_a_fallback_the_row_decides_whether_it_is_asked(sim: Simulator, name: str, model: str) -> None:
    row = TABLE[name]
    sim.script(model, row.reply, row.reply)
    sim.script(QWEN, Reply(text="from the fallback"))
    if row.error_type == "timeout":
        make_impatient(model)
    with routing(sim.anthropic_url, sim.openrouter_url) as route:
        went = route(model, fallback=True)

    asked = [served.model for served in sim.log]
    tries = 2 if row.same_tier else 1
    if row.next_tier:
        assert asked == [model] * tries + [QWEN]
        assert (went.answer["content"], went.answer["fallback_used"]) == ("from the fallback", True)
        assert went.billing == [row.billing] * tries + ["billed"]
    else:
        assert asked == [model]
        assert went.errors[0].error_type == row.error_type


def test_a_spend_limit_that_only_its_code_tells_is_not_asked_about_again(sim: Simulator) -> None:
    said = {"message": "You are out of quota for now.", "type": "rate_limit_error"}
    told = {**said, "details": {"error_code": "enforced_spend_limit_reached"}}
    for error, types in ((told, ["spend_limit_reached"]), (said, ["rate_limited"] * 2)):
        sim.script(OPUS, *[Reply(status=429, body={"type": "error", "error": error})] * len(types))
        with routing(sim.anthropic_url, sim.openrouter_url) as route:
            assert [failure.error_type for failure in route(OPUS).errors] == types


# Deadlines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        *(silent(), Reply(drip=(1, 0.01)), Reply(delay_s=60), server_error(), reset(), cut(after=40)),
        *(endless("body"), endless("head"), truncated_gzip()),
        *(rate_limited(retry_after=0.1), rate_limited(retry_after=3600), unreadable()),
    ],
    ids=lambda reply: f"{reply.status} {reply.fault} {reply.headers}",
)
def test_every_call_ends_within_its_deadline_and_a_second(
    sim: Simulator, reply: Reply, fallback: bool
) -> None:
    for model in (CHAT, QWEN):
        sim.script(model, *[reply] * 20)
    with routing(sim.anthropic_url, sim.openrouter_url, Doubling()) as route:
        went = route(CHAT, fallback=fallback, deadline_s=DEADLINE_S)

    assert went.answer is None
    assert went.seconds <= DEADLINE_S + 1


class Doubling(wait_base):
    """A backoff in a tenth of the time."""

    def __call__(self, retry_state: Any) -> float:
        return float(0.2 * 2**retry_state.attempt_number)


def test_a_client_alone_gives_an_attempt_no_more_than_its_deadline_leaves(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.providers.client.DEADLINE_S", DEADLINE_S)
    sim.script(CHAT, server_error(), silent())
    with OpenRouterClient("sk-or-test", base_url=sim.openrouter_url, sleep=lambda _: None) as client:
        began = time.monotonic()
        with pytest.raises(ProviderError) as failed:
            client.create_completion(CHAT, ASK)

    assert failed.value.error_type == "timeout"
    assert time.monotonic() - began <= DEADLINE_S + 1


# What a provider says about waiting ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(status=529, headers={"retry-after-ms": "1500"}), 1.5),
        (Reply(status=503, headers={"retry-after": "0.75"}), 0.75),
        (Reply(status=522, body={"title": "Error 522", "retry_after": 120}), 120.0),
        (
            Reply(status=522, body={"title": "Error 522", "retry_after": 120}, headers={"retry-after": "7"}),
            7.0,
        ),
        (Reply(status=429, body={"error": {"message": "slow", "retry_after": "3"}}), 3.0),
        (Reply(status=429, body={"error": {"metadata": {"headers": {"Retry-After": "9"}}}}), 9.0),
        (Reply(status=429, body={"retry_after": -5}), None),
        (Reply(status=429, body={"retry_after": {"seconds": 3}}), None),
        (Reply(status=503, body=b"retry_after: 5"), None),
    ],
)
def test_how_long_to_wait_is_read_from_the_headers_else_from_the_body(
    sim: Simulator, reply: Reply, seconds: float | None
) -> None:
    sim.script(CHAT, reply)
    waits: list[float] = []
    with OpenRouterClient("sk-or-test", base_url=sim.openrouter_url, sleep=waits.append) as client:
        assert client.create_completion(CHAT, ASK)["content"]

    assert waits == [seconds] if seconds is not None else 2 <= waits[0] <= 3


def test_an_http_date_is_waited_for(sim: Simulator) -> None:
    sim.script(CHAT, rate_limited(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)))
    waits: list[float] = []
    with OpenRouterClient("sk-or-test", base_url=sim.openrouter_url, sleep=waits.append) as client:
        client.create_completion(CHAT, ASK)

    assert 20 < waits[0] <= 30


def test_a_wait_beyond_the_deadline_falls_back_at_once(sim: Simulator) -> None:
    sim.script(CHAT, rate_limited(retry_after=LONG.total_seconds()))
    with routing(sim.anthropic_url, sim.openrouter_url) as route:
        went = route(CHAT, fallback=True, deadline_s=30)

    assert [served.model for served in sim.log] == [CHAT, QWEN]
    assert went.answer["fallback_used"]


# Bodies -------------------------------------------------------------------------------------------

_BY_STATUS: dict[int, ErrorType] = {
    400: "invalid_request",
    401: "authentication_failed",
    402: "insufficient_credits",
    403: "permission_denied",
    404: "not_found",
    408: "server_error",
    409: "server_error",
    413: "request_too_large",
    422: "invalid_request",
    429: "rate_limited",
    500: "server_error",
    502: "server_error",
    503: "overloaded",
    504: "server_error",
    522: "server_error",
    529: "overloaded",
}
BODIES: dict[str, tuple[str, object, str]] = {  # content type, body, words that the caller is told
    "JSON": (
        "application/json",
        {"type": "error", "error": {"type": "x", "message": "so it is"}},
        "so it is",
    ),
    "JSON of the edge": ("application/json", {"error": {"type": "forbidden", "message": "no"}}, "no"),
    "JSON by another name": ("text/plain", {"error": {"message": "so it is"}}, "so it is"),
    "an error that is a text": ("application/json", {"error": "so it is"}, "so it is"),
    "problem+json": ("application/problem+json", {"title": "Error", "detail": "timed out"}, "timed out"),
    "HTML": ("text/html", b"<html><title>502</title><h1>Bad\n gateway</h1></html>", "502 Bad gateway"),
    "plain": ("text/plain", b"upstream connect error\nreset", "upstream connect error reset"),
    "broken JSON": ("application/json", b'{"error": {"message": "cut sh', "cut sh"),
    "a list": ("application/json", b'["so", "it is"]', "it is"),
    "nothing": ("application/json", b"", "HTTP"),
    "no text at all": ("application/octet-stream", bytes(range(256)), "HTTP"),
}


@pytest.mark.parametrize("body", BODIES)
def test_an_error_status_is_told_apart_whatever_its_body(sim: Simulator, body: str) -> None:
    content_type, sent, words = BODIES[body]
    with (
        AnthropicClient("sk-ant-test", max_retries=0, base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient("sk-or-test", max_retries=0, base_url=sim.openrouter_url) as openrouter,
    ):
        for ask in (anthropic.create_message, openrouter.create_completion):
            for status, error_type in _BY_STATUS.items():
                sim.script("m", Reply(status=status, headers={"content-type": content_type}, body=sent))
                with pytest.raises(ProviderError) as failed:
                    ask("m", ASK)  # type: ignore[operator]
                assert failed.value.error_type == error_type
                assert failed.value.http_status == status
                if body not in ("problem+json", "a list") or ask == anthropic.create_message:
                    assert words in str(failed.value)


@pytest.mark.parametrize(
    "content_type", ["text/html", "application/octet-stream", "application/json; a=b", ""]
)
def test_an_answer_is_one_whatever_it_says_it_is(sim: Simulator, content_type: str) -> None:
    for model in (OPUS, CHAT):
        sim.script(model, Reply(text="so it is", headers={"content-type": content_type}))
    with routing(sim.anthropic_url, sim.openrouter_url) as route:
        answers = [route(model).answer["content"] for model in (OPUS, CHAT)]

    assert answers == ["so it is"] * 2


def _recorded_failures() -> list[str]:
    index = _TRAFFIC / "index.json"
    if not index.is_file():
        return []
    rows = json.loads(index.read_text("utf-8"))
    return [row["file"] for row in rows if not row["stream"] and "_http_" in row["file"]]


@pytest.mark.skipif(not _recorded_failures(), reason=f"no recorded traffic at {_TRAFFIC}")
def test_every_recorded_failure_is_one_over_a_socket_too(sim: Simulator) -> None:
    with (
        AnthropicClient("sk-ant-test", max_retries=0, base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient("sk-or-test", max_retries=0, base_url=sim.openrouter_url) as openrouter,
    ):
        for file in _recorded_failures():
            recorded = json.loads((_TRAFFIC / file).read_text("utf-8"))["response"]
            sent = json.dumps(recorded["body"]) if "body" in recorded else recorded["text"]
            kept = {name: value for name, value in recorded["headers"].items() if _is_about_content(name)}
            sim.script("m", Reply(status=recorded["status"], headers=kept, body=sent.encode()))
            ask: Any = (
                anthropic.create_message if file.startswith("anthropic") else openrouter.create_completion
            )
            with pytest.raises(ProviderError) as failed:
                ask("m", ASK)
            assert failed.value.http_status == recorded["status"], file
            assert failed.value.billing_rule == "error_status", file


def _is_about_content(name: str) -> bool:
    return name.lower() in ("content-type", "retry-after", "retry-after-ms", "x-should-retry", "request-id")


# Connections --------------------------------------------------------------------------------------


def test_a_redirect_is_never_followed_for_a_key_would_travel(sim: Simulator) -> None:
    with Simulator() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            sim.script(CHAT, Reply(status=status, headers={"location": elsewhere.openrouter_url}, body=b""))
            with routing(sim.anthropic_url, sim.openrouter_url) as route:
                went = route(CHAT)
            assert "redirects are not followed; check base_url" in str(went.errors[0])
        assert elsewhere.log == []


@pytest.mark.parametrize("fallback", [False, True])
def test_nobody_listening_is_tried_again_and_costs_nothing(sim: Simulator, fallback: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with routing(f"http://127.0.0.1:{port}", sim.openrouter_url) as route:
        went = route(OPUS, fallback=fallback)

    assert went.billing == ["unbilled", "unbilled"] + (["billed"] if fallback else [])
    assert [error.error_type for error in went.errors] == ([] if fallback else ["connection_failed"] * 2)


def test_a_name_that_is_not_found_costs_nothing(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    known = socket.getaddrinfo

    def unknown(host: str, *more: Any, **options: Any) -> Any:
        if host == "nowhere.example":
            raise socket.gaierror(-2, "Name or service not known")
        return known(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with routing("http://nowhere.example", sim.openrouter_url) as route:
        went = route(OPUS)

    assert {error.error_type for error in went.errors} == {"connection_failed"}
    assert "Name or service not known" in str(went.errors[0])
    assert went.billing == ["unbilled", "unbilled"]


def test_a_server_that_speaks_no_http_gives_an_answer_that_cannot_be_read() -> None:
    def act(connection: socket.socket, leaving: Any) -> None:
        read_request(connection)
        connection.sendall(b"220 mail.example ESMTP\r\n\r\n")

    with OneShotServer(act) as server, routing(server.url, server.url) as route:
        went = route(OPUS)

    assert [error.error_type for error in went.errors] == ["malformed_response"] * 2
    assert went.billing == ["unknown", "unknown"]


def test_a_certificate_that_is_not_trusted_or_of_another_host_lets_nothing_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = certified(tmp_path, "localhost")
    with Simulator(tls=identity.server) as sim:
        with routing(sim.anthropic_url, sim.openrouter_url) as route:
            untrusted = route(CHAT)
        monkeypatch.setenv("SSL_CERT_FILE", str(identity.trusted))
        with routing(sim.anthropic_url, sim.openrouter_url) as route:
            of_another_host = route(CHAT)
        at_its_name = sim.openrouter_url.replace("127.0.0.1", "localhost")
        with routing(sim.anthropic_url, at_its_name) as route:
            trusted = route(CHAT)

        assert "self-signed certificate" in str(untrusted.errors[0])
        assert "IP address mismatch" in str(of_another_host.errors[0])
        for went in (untrusted, of_another_host):
            assert {error.error_type for error in went.errors} == {"connection_failed"}
            assert went.billing == ["unbilled", "unbilled"]
        assert trusted.answer["content"]
        assert len(sim.log) == 1


def test_behind_a_certificate_that_does_not_match_the_fallback_is_asked(
    sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = certified(tmp_path, "elsewhere.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(identity.trusted))
    with Simulator(tls=identity.server) as impostor:
        with routing(impostor.anthropic_url, sim.openrouter_url) as route:
            went = route(OPUS, fallback=True)

        assert went.answer["fallback_used"]
        assert went.billing == ["unbilled", "unbilled", "billed"]
        assert impostor.log == []


def test_certificates_that_cannot_be_loaded_are_told_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with (
        AnthropicClient("sk-ant-test", base_url="https://localhost:1") as client,
        Ledger.in_memory() as ledger,
    ):
        router = LLMRouter(client, cost_tracker=CostTracker(ledger))
        with pytest.raises(SettingsError, match=r"absent\.pem, which SSL_CERT_FILE"):
            router.route(TASK[OPUS], ASK)
        written = "".join(path.read_text() for path in ledger.path.glob("journals/*.jsonl"))

    assert "request_received" not in written


# Proxies ------------------------------------------------------------------------------------------


def test_a_proxy_that_opens_no_tunnel_is_no_attempt_that_was_billed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: socket.socket, leaving: Any) -> None:
        proxy.received.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")

    def leave(connection: socket.socket, leaving: Any) -> None:
        proxy.received.append(read_request(connection))

    def keep_silent(connection: socket.socket, leaving: Any) -> None:
        proxy.received.append(read_request(connection))
        leaving.wait(10)

    for act, error_type in [
        (refuse, "connection_failed"),
        (leave, "connection_failed"),
        (keep_silent, "timeout"),
    ]:
        with OneShotServer(act) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://me:canary-password@"))
            with routing("https://far.example", "https://far.example") as route:
                went = route(OPUS, timeout_s=0.3 if error_type == "timeout" else 30)

        assert {error.error_type for error in went.errors} == {error_type}
        assert set(went.billing) == {"unbilled"}
        assert proxy.received[0].startswith(b"CONNECT far.example:443 HTTP/1.1\r\n")
        assert b"sk-ant-test-key" not in b"".join(proxy.received)
        assert "canary-password" not in "".join(map(str, went.errors))


def test_what_was_sent_on_by_a_proxy_may_have_been_billed(monkeypatch: pytest.MonkeyPatch) -> None:
    with OneShotServer(lambda connection, leaving: read_request(connection) and None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with routing("http://far.example", "http://far.example") as route:
            went = route(OPUS)

    assert set(went.billing) == {"unknown"}


def test_a_netrc_never_stands_in_for_a_key(
    sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password canary-password\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    received: list[bytes] = []

    def act(connection: socket.socket, leaving: Any) -> None:
        received.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n")

    with OneShotServer(act) as server, routing(server.url, server.url) as route:
        route(OPUS)
        route(CHAT)

    assert b"x-api-key: sk-ant-test-key" in received[0]
    assert b"authorization" not in received[0].lower()
    assert b"authorization: Bearer sk-or-test-key" in received[1]


def test_the_bound_of_a_body_is_far_above_any_answer_and_far_below_memory() -> None:
    assert transport.BODY_BOUND == 16 * 1024 * 1024
