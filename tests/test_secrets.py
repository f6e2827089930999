"""A key shows nowhere: on no books, in no logs, errors, tracebacks with locals, reprs, pickles, reports."""

from __future__ import annotations

import base64
import copy
import io
import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

import httpx
import pytest
from one_shot_server import OneShotServer, read_request
from rich.traceback import Traceback

from ledger import CostTracker, Ledger
from ledger.errors import SettingsError
from ledger.secrecy import Hidden, Secret, SecretBytes, scrubbed
from ledger.settings import Settings
from router import (
    AnthropicClient,
    BughiveError,
    CircuitSetting,
    LLMRouter,
    MissingKey,
    OpenRouterClient,
    ProviderError,
    RouteExhausted,
)
from router.simulator import Broken, Reply, Simulator, cut, event_stream, reset, silent

pytestmark = pytest.mark.usefixtures("nothing_set")

_ROOT = Path(__file__).resolve().parent.parent
CANARY = "sk-or-v1-CaNaRy0123456789abcdef"
ODD = "gateway.CaNaRy/0123+4567="  # a key that looks like nobody's
CHAT, QWEN = "deepseek/deepseek-chat", "qwen/qwen-2.5-32b-instruct"
OPUS = "claude-opus-4-5-20251101"
ASK = [{"role": "user", "content": "Analyze this page."}]


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What every logger says, at every level."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root, names = logging.getLogger(), ("httpx", "httpcore", "router", "ledger", "reports")
    levels = {name: logging.getLogger(name).level for name in names}
    before = root.level
    root.addHandler(handler)
    for name in ("", *names):
        logging.getLogger(name).setLevel(1)
    yield text
    root.removeHandler(handler)
    root.setLevel(before)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def assert_hidden(shown: str, *secrets: str) -> None:
    """No secret shows, in any case, as base64, or with its letters escaped."""
    plain = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), shown).lower()
    for secret in secrets or ("canary",):
        coded = base64.b64encode(secret.encode()).decode()[:-4].lower()
        assert secret.lower() not in plain
        assert not coded or coded not in plain


def everything_shown_of(error: BaseException, *, as_rich: bool = True) -> str:
    """All that tools print of an error, its causes and the locals of every frame but this file's own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    text = traceback.TracebackException(type(error), error, trace, capture_locals=True)
    linked = [repr(one) + repr(vars(one)) for one in (error, error.__cause__, error.__context__) if one]
    return "".join([*text.format(), *(shown_by_rich(error, trace) if as_rich else ()), *linked])


def shown_by_rich(error: BaseException, trace: TracebackType | None) -> Iterator[str]:
    """What rich finds, which looks into what it is given. Its layout costs time, and says no more."""
    found = Traceback.extract(type(error), error, trace, show_locals=True, locals_max_string=None)
    for stack in found.stacks:
        yield f"{stack.exc_type}: {stack.exc_value} {stack.notes}\n"
        for frame in stack.frames:
            yield from (f"{name} = {value}\n" for name, value in (frame.locals or {}).items())


def interrupt_the_main_thread() -> None:
    """Ctrl-C, also for a thread that waits in the kernel: raised in another it would wait on."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def files_of(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def printed_by_the_report(folder: Path) -> str:
    command = [sys.executable, "-m", "reports.cli", "report", "--session", "s-1", "--format", "json"]
    report = subprocess.run([*command, "--ledger", str(folder)], capture_output=True, text=True, cwd=_ROOT)
    assert report.returncode == 0, report.stderr
    return report.stdout + report.stderr


# Where a key can be ---------------------------------------------------------------------------


def by_argument(key: str, url: str, monkeypatch: pytest.MonkeyPatch) -> OpenRouterClient:
    return OpenRouterClient(str(key), base_url=url)


def by_environment(key: str, url: str, monkeypatch: pytest.MonkeyPatch) -> OpenRouterClient:
    monkeypatch.setenv("OPENROUTER_API_KEY", key)
    return OpenRouterClient(base_url=url)


def by_dotenv(key: str, url: str, monkeypatch: pytest.MonkeyPatch) -> OpenRouterClient:
    Path(".env").write_text(f"OPENROUTER_API_KEY={key}\nOPENROUTER_BASE_URL={url}\n")
    return OpenRouterClient()


def in_the_address(key: str, url: str, monkeypatch: pytest.MonkeyPatch) -> OpenRouterClient:
    return OpenRouterClient(key, base_url=url.replace("http://", f"http://me:{CANARY}@"))


def by_a_transport_of_ones_own(key: str, url: str, monkeypatch: pytest.MonkeyPatch) -> OpenRouterClient:
    return OpenRouterClient(key, base_url=url, transport=httpx.HTTPTransport())


@pytest.mark.parametrize("key", [CANARY, ODD], ids=["a key", "an odd key"])
@pytest.mark.parametrize(
    "place", [by_argument, by_environment, by_dotenv, in_the_address, by_a_transport_of_ones_own]
)
def test_a_key_shows_nowhere_whatever_the_provider_does_with_it(
    sim: Simulator,
    logged: io.StringIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[str, str, pytest.MonkeyPatch], OpenRouterClient],
    key: str,
) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "note": key}
    message = {"message": {"content": "so it is", "role": "assistant"}, "finish_reason": "stop"}
    answer = {"id": key, "model": f"of {key}", "provider": key.upper(), "choices": [message], "usage": usage}
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
    echoes = [
        Reply(status=401, body={"error": {"message": f"no such key: {key}", "code": 401}}),
        Reply(status=401, body={"error": {"metadata": {"raw": f'{{"key":"{escaped}"}}'}, "code": 401}}),
        Reply(status=500, headers={"content-type": "text/html"}, body=f"<b>{key.lower()}</b>".encode()),
        Reply(status=500, body=f'{{"error": "{escaped}"}}'.encode()),
        Reply(status=500, body=("x" * (490 - len(key) // 2) + key).encode()),
        Reply(body=("x" * (75 - len(key) // 2) + key).encode()),
        Reply(body={"error": {"message": f"Bearer {key}", "code": key}}),
        *(reset(), cut(after=30), silent(), Reply(body=answer)),
    ]
    folder, shown = tmp_path / "ledger", []
    with place(key, sim.openrouter_url, monkeypatch) as client, Ledger.open(folder) as ledger:
        router = LLMRouter(
            openrouter_client=client,
            cost_tracker=CostTracker(ledger),
            max_retries=0,
            circuit=CircuitSetting(failures=1_000),  # counted, with their words, and never open
        )
        for reply in echoes:
            for model in (CHAT, QWEN):
                sim.script(model, reply)
            timeout_s = 0.3 if reply.silence else 30
            try:
                router.route_with_fallback("analyze_page", ASK, session_id="s-1", timeout_s=timeout_s)
            except RouteExhausted as failed:
                shown += [everything_shown_of(failed), *map(repr, failed.attempts)]
        shown += [repr(router), repr(vars(router)), repr(client), repr(vars(client)), repr(ledger)]
        shown.append(CostTracker(ledger).get_cost_summary("s-1"))
    assert_hidden("".join(shown) + printed_by_the_report(folder) + files_of(folder))
    assert_hidden(logged.getvalue())
    assert {served.fault for served in sim.log} >= {"reset", "silence", "cut", "server_error"}


@pytest.mark.parametrize("key", ["sk-ant-api03-" + CANARY, ODD], ids=["a key", "an odd key"])
def test_anthropics_key_shows_nowhere_either(
    sim: Simulator, logged: io.StringIO, tmp_path: Path, key: str
) -> None:
    block, usage = {"type": "text", "text": "so it is"}, {"input_tokens": 9, "output_tokens": 9, "note": key}
    answer = {"id": key, "model": f"of {key}", "stop_reason": key, "content": [block], "usage": usage}
    echoes = [
        Reply(status=401, body={"error": {"message": f"no such key: {key}", "details": {"error_code": key}}}),
        Reply(status=403, headers={"request-id": key}, body={"request_id": key}),
        Reply(status=522, body={"title": key, "detail": f"x-api-key: {key}"}),
        Reply(body={"type": "error", "error": {"type": key, "message": key}, "request_id": key}),
        *(Reply(body={**answer, "usage": {"output_tokens": key}}), Reply(body=answer)),
    ]
    folder, shown = tmp_path / "ledger", []
    with Ledger.open(folder, "process-crash") as ledger:
        tracker = CostTracker(ledger)
        made = {"base_url": sim.anthropic_url, "max_retries": 0, "tracker": tracker}
        with AnthropicClient(key, **made) as client:  # type: ignore[arg-type]
            router = LLMRouter(client, cost_tracker=tracker, max_retries=0)
            sim.script(OPUS, *[echo for echo in echoes for _ in range(2)])
            for _ in echoes:
                for ask in (
                    lambda: client.create_message(OPUS, ASK, session_id="s-1"),
                    lambda: router.route("quality_gate", ASK, session_id="s-1", budget_usd=5),
                ):
                    try:
                        ask()
                    except BughiveError as failed:
                        shown.append(everything_shown_of(failed))
        shown += [repr(client), repr(vars(client)), repr(vars(tracker))]
    assert (folder / "state.db").is_file()
    assert len(sim.log) == 2 * len(echoes)
    assert_hidden("".join(shown) + files_of(folder) + logged.getvalue())


OK = "HTTP/1.1 200 OK\r\n"
NO_HTTP = [  # where KEY stands in what comes back
    *("KEY\r\n\r\n", "HTTP/1.1 KEY\r\n\r\n", "HTTP/1.1 401 KEY\r\n\r\n"),
    *(f"{OK}KEY\r\n\r\n", f"{OK}{'x' * 470}KEY\r\n\r\n", f"{OK}content-length: KEY\r\n\r\n"),
    f"{OK}content-encoding: KEY\r\n\r\n.",
    f"{OK}transfer-encoding: chunked\r\n\r\nKEY\r\n",
    f"{OK}x-note: KEY\r\ncontent-length: 2\r\n\r\n{{}}",
    f"{OK}content-type: text/event-stream\r\n\r\ndata: KEY\n\n: KEY\n\nevent: KEY\n\n",
    f"{OK}transfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n9\r\ndata: {{}}\n\r\nKEY\r\n",
]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("how", ["our connections", "a transport of one's own", "a proxy"])
@pytest.mark.parametrize("key", [CANARY, ODD], ids=["a key", "an odd key"])
def test_a_key_that_comes_back_as_no_http_shows_nowhere(
    logged: io.StringIO, monkeypatch: pytest.MonkeyPatch, key: str, how: str, is_streamed: bool
) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(echoes.pop().replace("KEY", key).encode())

    echoes, shown = [*NO_HTTP], []
    while echoes:
        with OneShotServer(act) as server, httpx.HTTPTransport() as own:
            if how == "a proxy":
                monkeypatch.setenv("HTTP_PROXY", server.url)
            address = "http://far.example" if how == "a proxy" else server.url
            transport = own if how == "a transport of one's own" else None
            client = OpenRouterClient(key, base_url=address, max_retries=0, transport=transport)
            with client, pytest.raises(ProviderError) as failed:
                if is_streamed:
                    list(client.create_completion(CHAT, ASK, stream=True))
                client.create_completion(CHAT, ASK)
        shown.append(everything_shown_of(failed.value))

    assert_hidden("".join(shown))
    assert_hidden(logged.getvalue())
    assert logged.getvalue().count("send_request_headers.complete") == len(NO_HTTP)


def events(*chunks: object) -> bytes:
    texts = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def echoes_of_openrouter(key: str) -> list[Reply]:
    """Streams that say the key, wherever a stream can say anything."""
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "note": key}
    begun = {
        "id": key,
        "model": f"of {key}",
        "provider": key.upper(),
        "choices": [{"delta": {"content": "so"}}],
    }
    ended = {"choices": [{"finish_reason": key}], "usage": usage, "service_tier": key}
    refused = {"error": {"message": f"no such key: {key}", "code": 401}}
    headers = {"x-generation-id": key, "x-request-id": key, "retry-after": key, "x": key}
    return [
        event_stream(events(begun, {"error": {"metadata": {"raw": f'{{"k":"{escaped}"}}'}, "code": key}})),
        event_stream(events(refused)),
        event_stream(events(begun, refused)),
        event_stream(events(begun, {"choices": [{"error": {"message": escaped}, "finish_reason": "error"}]})),
        event_stream(events(begun, f'{{"choices": {key}', ended)),
        event_stream(events(begun, "x" * (75 - len(key) // 2) + key, ended, "[DONE]")),
        event_stream(events(begun)),
        event_stream(events(f"<b>{key}</b>")),
        event_stream(f"{key}\n\n".encode()),
        replace(event_stream(events(begun, refused)), headers=headers),
        replace(event_stream(events(begun)), headers={**headers, "content-encoding": key}),
        replace(event_stream(events(begun, ended)), headers={**headers, "content-type": "application/json"}),
        replace(event_stream(events(begun, ended, "[DONE]"), split=3), headers=headers),
        replace(event_stream(events(begun), split=7), broken=Broken(after="usage", then="open")),
        replace(event_stream(events(begun, key), split=7), cut_after=120),
        Reply(status=401, body=refused, headers=headers),
    ]


def echoes_of_anthropic(key: str) -> list[Reply]:
    usage = {"input_tokens": 9, "output_tokens": 1, "service_tier": key, "note": [key]}
    message = {"id": key, "model": f"of {key}", "usage": usage}
    said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "so"}}
    begun = events({"type": "message_start", "message": message}, said)
    refused = {"type": "error", "error": {"type": "authentication_error", "message": f"no such key: {key}"}}
    ended = {"type": "message_delta", "delta": {"stop_reason": key}, "usage": {key: key, "output_tokens": 9}}
    return [
        event_stream(events(refused)),
        event_stream(begun + events(refused)),
        replace(event_stream(begun), headers={"request-id": key}),
        event_stream(begun + events(f'{{"type": "{key}', ended)),
        replace(event_stream(begun + events(ended, {"type": "message_stop"})), headers={"request-id": key}),
    ]


@pytest.mark.parametrize("key", [CANARY, ODD], ids=["a key", "an odd key"])
def test_a_key_that_a_stream_echoes_shows_nowhere(
    sim: Simulator, logged: io.StringIO, tmp_path: Path, key: str
) -> None:
    folder, shown = tmp_path / "ledger", []
    echoes = [(CHAT, one) for one in echoes_of_openrouter(key)]
    echoes += [(OPUS, one) for one in echoes_of_anthropic(key)]
    with (
        AnthropicClient(key, base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient(key, base_url=sim.openrouter_url) as openrouter,
        Ledger.open(folder) as ledger,
    ):
        router = LLMRouter(anthropic, openrouter, CostTracker(ledger), max_retries=0, circuit=False)
        for model, reply in echoes:
            task = "analyze_page" if model == CHAT else "plan_crawl_strategy"
            for is_left in (False, True):
                sim.script(model, reply)
                stream = router.stream(task, ASK, session_id="s-1", timeout_s=0.5)
                try:
                    for _ in stream:
                        if is_left:
                            break
                    stream.close()
                except RouteExhausted as failed:
                    shown += [everything_shown_of(failed), *map(repr, failed.attempts)]
                shown += [repr(stream), repr(vars(stream)["_items"])]
    assert_hidden("".join(shown) + printed_by_the_report(folder) + files_of(folder))
    assert_hidden(logged.getvalue())
    assert "cannot be read" in logged.getvalue()  # what is no chunk is told of
    assert "attempt_cancelled" in files_of(folder)


def test_a_stream_that_is_interrupted_does_not_show_what_it_echoed() -> None:
    """Ctrl-C comes through frames that hold what has just been read."""
    echo = events({"id": ODD, "choices": [{"delta": {"content": "so"}}]}, f'{{"choices": {ODD}')
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"

    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(head + f"x: {ODD}\r\n\r\n".encode() + echo)
        shown.wait(5)
        interrupt_the_main_thread()
        leaving.wait(5)

    shown = threading.Event()
    with OneShotServer(act) as server, OpenRouterClient(ODD, base_url=server.url) as client:
        stream = client.create_completion(CHAT, ASK, stream=True)
        with pytest.raises(KeyboardInterrupt) as left:
            for _ in stream:
                shown.set()

    assert_hidden(everything_shown_of(left.value))


@pytest.mark.parametrize("how", ["waiting", "sending", "through a proxy"])
def test_an_interrupted_call_shows_no_key_in_the_locals_of_its_frames(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Ctrl-C, or a bug, comes through frames that know the headers."""

    def interrupt(connection: socket.socket, leaving: threading.Event) -> None:
        received.append(connection.recv(1_000) if how == "sending" else read_request(connection))
        interrupt_the_main_thread()
        leaving.wait(5)

    received: list[bytes] = []
    # "sending": more than the sockets take in of what nobody reads
    long = [{"role": "user", "content": "x" * (12_000_000 if how == "sending" else 10)}]
    with OneShotServer(interrupt) as server:
        address = server.url
        if how == "through a proxy":
            address = "http://far.example"
            monkeypatch.setenv("HTTP_PROXY", server.url.replace("http://", f"http://me:{ODD[:14]}@"))
        with AnthropicClient("sk-ant-" + ODD, base_url=address) as client:
            with pytest.raises(KeyboardInterrupt) as left:
                client.create_message("claude-haiku-4-5", long)
            monkeypatch.delenv("HTTP_PROXY", raising=False)
    shown = everything_shown_of(left.value, as_rich=how != "sending")  # it takes its time for so long a body

    assert ODD.encode() in received[0]
    assert "x-api-key" in shown  # the frames are there
    assert_hidden(shown, "CaNaRy", f"me:{ODD[:14]}")


def test_the_frames_of_a_transport_of_ones_own_do_not_travel_with_its_failure() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        headers = dict(request.headers)
        raise httpx.ReadError(f"it broke after {len(headers)} headers")

    client = OpenRouterClient(CANARY, transport=httpx.MockTransport(handler), max_retries=0)
    with pytest.raises(ProviderError, match="it broke") as failed:
        client.create_completion(CHAT, ASK)

    assert_hidden(everything_shown_of(failed.value))


@pytest.mark.parametrize("proxy", ["http://me:CaNaRy-password@127.0.0.1:1", "socks5://me:CaNaRy@127.0.0.1:1"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxys_password_shows_nowhere(
    logged: io.StringIO, monkeypatch: pytest.MonkeyPatch, proxy: str, scheme: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with OpenRouterClient(CANARY, base_url=f"{scheme}://far.example", max_retries=0) as client:
        with pytest.raises(BughiveError) as failed:
            client.create_completion(CHAT, ASK)
        monkeypatch.delenv("ALL_PROXY")

        assert_hidden(everything_shown_of(failed.value))
        assert_hidden(repr(vars(client)))
    assert_hidden(logged.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": f"http://me:{CANARY}@host:port"},
        {"base_url": f"me:{CANARY}@host/v1"},
        {"base_url": CANARY},
        {"base_url": f"ftp://{CANARY}@host"},
        {"api_key": f"{CANARY}\nmore"},
    ],
)
def test_what_is_mistyped_is_not_shown(options: dict[str, str]) -> None:
    options = {"api_key": CANARY, **options}
    client = OpenRouterClient(**options)  # type: ignore[arg-type]
    with pytest.raises(BughiveError) as refused:
        client.require_key()
    options.clear()

    assert_hidden(everything_shown_of(refused.value))


def test_a_client_that_cannot_be_made_shows_no_key() -> None:
    def make(key: Secret) -> None:
        OpenRouterClient(key.reveal(), timeout=0)

    with pytest.raises(BughiveError) as refused:
        make(Secret(CANARY))

    assert_hidden(everything_shown_of(refused.value))


@pytest.mark.parametrize(
    "toml",
    [
        '[ledger]\napi_key = "{}"\n',
        'OPENROUTER_API_KEY = "{}"\n',
        '[ledger]\ndurability = "{}"\n',
        '[tiers.FAST]\nmodel = "m"\nprovider = "{}"\n',
        '[tiers.FAST]\nfallback = ["{}"]\n',
        "OPENROUTER_API_KEY = {}\n[",
    ],
)
def test_a_key_in_bughive_toml_is_not_shown_by_the_complaint(tmp_path: Path, toml: str) -> None:
    (tmp_path / "bughive.toml").write_text(toml.replace("{}", CANARY))
    with pytest.raises(SettingsError) as wrong:
        Settings.load(tmp_path, {"OPENROUTER_API_KEY": CANARY})

    assert_hidden(everything_shown_of(wrong.value))


def test_a_dotenv_that_is_no_text_is_not_shown_by_the_complaint(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(f"OPENROUTER_API_KEY={CANARY}\n".encode() + b"\xff")
    with pytest.raises(SettingsError, match=r"\.env cannot be read") as wrong:
        Settings.load(tmp_path, {})

    assert_hidden(everything_shown_of(wrong.value))


def test_settings_keep_their_keys_from_reprs_copies_and_pickles(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"OPENROUTER_API_KEY={CANARY}\n")
    settings = Settings.load(tmp_path, {"ANTHROPIC_API_KEY": CANARY})

    assert settings.get("OPENROUTER_API_KEY") == settings.get("ANTHROPIC_API_KEY") == CANARY
    assert_hidden(repr(settings) + repr(vars(settings)) + repr(asdict(settings)))
    assert_hidden(pickle.dumps(settings).decode("latin-1"))
    assert dict(copy.deepcopy(settings).environ) == {}


def test_what_holds_a_key_can_be_printed_and_cannot_be_pickled() -> None:
    held = [Secret(CANARY), SecretBytes(CANARY.encode()), Hidden({"key": CANARY})]
    assert_hidden("".join(f"{one} {one!r}" for one in held))
    for client in (OpenRouterClient(CANARY), AnthropicClient(CANARY)):
        client.require_key()
        assert_hidden(repr(client) + repr(vars(client)))
    with pytest.raises(TypeError, match="not copied or pickled"):
        pickle.dumps(Secret(CANARY))


def test_the_demo_shows_no_key_of_the_environment(tmp_path: Path) -> None:
    keys = {"ANTHROPIC_API_KEY": CANARY, "OPENROUTER_API_KEY": CANARY}
    environment = {**os.environ, **keys, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", "reports.cli", "demo"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    assert ran.returncode == 0, ran.stderr
    assert_hidden(ran.stdout + ran.stderr + files_of(tmp_path))


# .env ------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, True), (0o604, True), (0o600, False)])
def test_a_dotenv_that_others_can_read_is_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    path = tmp_path / ".env"
    path.write_text(f"OPENROUTER_API_KEY={CANARY}\n")
    path.chmod(mode)
    for _ in range(3):
        Settings.load(tmp_path, {})

    told = [record for record in caplog.records if record.name == "ledger"]
    assert len(told) == (1 if warned else 0)
    if warned:
        assert told[0].levelname == "WARNING"
        assert f"chmod 600 {path}" in told[0].getMessage()
    assert_hidden(caplog.text)


# What looks like a key ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "sk-ant-api03-CaNaRy-0123456789",
        "sk-or-v1-CaNaRy0123456789abcdef",
        "SK-ANT-API03-CANARY0123456789",
        "sk-proj-CaNaRy_0123456789",
        "Bearer CaNaRy.0123456789",
        "bearer   CaNaRy.0123456789",
        "x-api-key: CaNaRy.0123456789",
        '"authorization": "CaNaRy.0123456789"',
        "key_of_sk-ant-CaNaRy0123456789",
        "Basic " + base64.b64encode(b"me:CaNaRy-password").decode(),
        "http://me:CaNaRy@proxy.example:3128",
        r"sk\u002dant-CaNaRy0123456789",
        r"sk-\\u0061nt-CaNaRy0123456789",
    ],
)
def test_what_looks_like_a_key_is_scrubbed_from_what_a_provider_says(sim: Simulator, key: str) -> None:
    secret = "me:CaNaRy-password" if key.startswith("Basic") else "canary"
    bodies: list[object] = [
        *(
            {"error": {"message": f"no such key: {key}."}},
            {"error": {"metadata": {"raw": f'{{"k":"{key}"}}'}}},
        ),
        *(key.encode(), f"<p>{key}</p>".encode(), json.dumps([key, key]).encode()),
    ]
    with OpenRouterClient("sk-or-v1-another-key", base_url=sim.openrouter_url, max_retries=0) as client:
        for body in bodies:
            sim.script(CHAT, Reply(status=400, body=body))
            with pytest.raises(ProviderError) as failed:
                client.create_completion(CHAT, ASK)
            assert_hidden(everything_shown_of(failed.value), secret)
            assert_hidden(str(failed.value), secret)


def test_so_is_anothers_key_wherever_an_answer_that_is_booked_may_hold_it(
    sim: Simulator, tmp_path: Path
) -> None:
    names = {"id": CANARY, "model": f"of {CANARY}", "service_tier": CANARY}
    message = {"role": "assistant", "content": "so it is"}
    usages: list[dict[str, object]] = [
        {"note": CANARY},
        {"prompt_tokens": CANARY, "input_tokens": CANARY, "cost": CANARY},
    ]
    with (
        Ledger.open(tmp_path / "ledger", "process-crash") as ledger,
        AnthropicClient("k" * 20, base_url=sim.anthropic_url, tracker=CostTracker(ledger)) as anthropic,
        OpenRouterClient("k" * 20, base_url=sim.openrouter_url, tracker=CostTracker(ledger)) as openrouter,
    ):
        for usage in usages:
            answer = {**names, "provider": CANARY, "usage": {**usage, "service_tier": CANARY}}
            choice = {"finish_reason": CANARY, "message": message}
            sim.script(CHAT, Reply(headers={"x-generation-id": CANARY}, body={**answer, "choices": [choice]}))
            openrouter.create_completion(CHAT, ASK)
            content = [{"type": "text", "text": "so it is"}]
            answer = {**answer, "stop_reason": CANARY, "content": content}
            sim.script(OPUS, Reply(headers={"request-id": CANARY}, body=answer))
            anthropic.create_message(OPUS, ASK)
    shown = files_of(tmp_path / "ledger")

    assert shown.count('"event_type":"attempt_succeeded"') == 4
    assert shown.count("[key]") >= 4 * 6
    assert_hidden(shown)


@pytest.mark.parametrize(
    "text",
    [
        "Basic authentication failed for this endpoint",
        "You can find your API key at https://platform.openai.com/account/api-keys.",
        "mail somebody@example.com about task-0123456789",
        "the asterisk-separated list",
    ],
)
def test_what_is_no_key_stays(text: str) -> None:
    assert scrubbed(text) == text


def test_an_answer_is_delivered_as_it_is_even_where_it_holds_the_key(sim: Simulator) -> None:
    sim.script(CHAT, Reply(text=f"your key is {CANARY}"))
    with OpenRouterClient(CANARY, base_url=sim.openrouter_url) as client:
        assert client.create_completion(CHAT, ASK)["content"] == f"your key is {CANARY}"


def test_a_missing_key_is_named_by_its_variable_alone() -> None:
    with pytest.raises(MissingKey, match="OPENROUTER_API_KEY"):
        OpenRouterClient("  ").require_key()
