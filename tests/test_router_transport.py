"""HTTP by the wall clock, over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from one_shot_server import OK, OneShotServer, read_request

from ledger.errors import SettingsError
from ledger.secrecy import Secret
from router.errors import ProviderError
from router.providers import transport
from router.providers.transport import Channel, Pool, Through, post, proxy_for
from router.providers.wire import Reply

PATIENCE_S = 0.3


@pytest.fixture
def pool() -> Iterator[Pool]:
    channel = Pool()
    yield channel
    channel.close()


def ask(channel: Channel, url: str, *, body: bytes = b"{}", timeout_s: float = 10.0) -> Reply:
    target = httpx.URL(url)
    return post(channel, "openrouter", target, [(b"host", target.netloc)], body, timeout_s)


def trouble(channel: Channel, url: str, **more: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(channel, url, **more)
    return caught.value


def drip(pieces: bytes) -> Any:
    """Sends a byte now and then: each one in time, the whole never."""

    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        for byte in pieces:
            connection.sendall(bytes([byte]))
            if leaving.wait(PATIENCE_S / 20):
                return

    return act


def keep_silent(connection: socket.socket, leaving: threading.Event) -> None:
    leaving.wait(10)


def test_a_reply_comes_whole_with_lower_case_headers(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        server.received.append(read_request(connection))
        connection.sendall(OK.replace(b"content-type", b"X-Generation-Id: gen-1\r\nContent-Type"))

    with OneShotServer(act) as server:
        reply = ask(pool, server.url + "/v1", body=b'{"a":1}')

    assert reply.status == 200
    assert reply.body == b"{}"
    assert reply.headers["x-generation-id"] == "gen-1"
    assert server.received[0].startswith(b"POST /v1 HTTP/1.1\r\n")
    assert server.received[0].endswith(b'\r\n\r\n{"a":1}')


def test_one_connection_serves_many_calls(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        while read_request(connection):
            connection.sendall(OK)

    with OneShotServer(act) as server:
        for _ in range(3):
            ask(pool, server.url)
        pool.close()

    assert server.connections == 1


def test_a_body_of_megabytes_goes_through(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        server.received.append(read_request(connection))
        connection.sendall(OK)

    with OneShotServer(act) as server:
        ask(pool, server.url, body=b"x" * 5_000_000)

    assert server.received[0].count(b"x") == 5_000_000


@pytest.mark.parametrize(
    "pieces",
    [b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 500, OK.replace(b"length: 2", b"length: 500") + b" " * 498],
    ids=["head", "body"],
)
def test_a_server_that_drips_does_not_outlast_the_timeout(pool: Pool, pieces: bytes) -> None:
    with OneShotServer(drip(pieces)) as server:
        failure = trouble(pool, server.url, timeout_s=PATIENCE_S)

    assert failure.error_type == "timeout"
    assert failure.billing_rule == "no_answer"
    assert not failure.retryable


def test_a_server_that_drips_does_not_outlast_it_through_a_transport_of_ones_own_either() -> None:
    whole = OK.replace(b"length: 2", b"length: 500") + b" " * 498
    with OneShotServer(drip(whole)) as server, httpx.HTTPTransport() as given:
        failure = trouble(Through(given), server.url, timeout_s=PATIENCE_S)

    assert failure.error_type == "timeout"


def test_a_server_that_does_not_read_is_a_timeout(pool: Pool) -> None:
    with OneShotServer(keep_silent) as server:
        failure = trouble(pool, server.url, body=b"x" * 20_000_000, timeout_s=PATIENCE_S)

    assert failure.error_type == "timeout"
    assert failure.billing_rule == "no_answer"


def test_a_tls_handshake_that_stalls_is_a_timeout_before_anything_was_sent(pool: Pool) -> None:
    with OneShotServer(keep_silent) as server:
        failure = trouble(pool, f"https://127.0.0.1:{server.port}", timeout_s=PATIENCE_S)

    assert failure.error_type == "timeout"
    assert failure.billing_rule == "never_sent"


def test_no_tls_where_it_is_expected_is_a_failed_connection(pool: Pool) -> None:
    with OneShotServer(lambda connection, leaving: connection.sendall(OK)) as server:
        failure = trouble(pool, f"https://127.0.0.1:{server.port}")

    assert failure.error_type == "connection_failed"
    assert failure.billing_rule == "never_sent"


def test_a_name_server_that_does_not_answer_is_a_timeout(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(10) and [])
    try:
        failure = trouble(pool, "http://slow.example", timeout_s=PATIENCE_S)
    finally:
        released.set()

    assert failure.error_type == "timeout"
    assert failure.billing_rule == "never_sent"


def test_a_name_without_address_is_a_failed_connection(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failure = trouble(pool, "http://nowhere.example")

    assert failure.error_type == "connection_failed"
    assert failure.billing_rule == "never_sent"


def test_the_next_address_of_a_host_is_tried(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(OK)

    found = socket.getaddrinfo

    def two_addresses(host: str, port: int, *more: Any, **options: Any) -> Any:
        if host != "twofold.example":
            return found(host, port, *more, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, port)) for at in ("127.0.0.2", "127.0.0.1")]

    with OneShotServer(act) as server:
        monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
        assert ask(pool, f"http://twofold.example:{server.port}").status == 200


def test_nobody_listening_is_a_failed_connection_that_may_be_tried_again(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    failure = trouble(pool, f"http://127.0.0.1:{port}")

    assert failure.error_type == "connection_failed"
    assert failure.billing_rule == "never_sent"
    assert failure.retryable


def test_a_reset_before_any_byte_may_be_tried_again_though_it_may_have_been_billed(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with OneShotServer(act) as server:
        failure = trouble(pool, server.url)

    assert failure.error_type == "connection_failed"
    assert failure.billing_rule == "no_answer"
    assert failure.retryable


@pytest.mark.parametrize("own_transport", [False, True])
def test_an_answer_cut_in_the_middle_is_never_an_answer(pool: Pool, own_transport: bool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(OK.replace(b"length: 2", b"length: 99"))

    with OneShotServer(act) as server, httpx.HTTPTransport() as given:
        failure = trouble(Through(given) if own_transport else pool, server.url)

    assert failure.error_type == "stream_interrupted"
    assert failure.billing_rule == "no_answer"
    assert not failure.retryable


def test_of_an_error_status_half_a_body_is_enough(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 503 Busy\r\ncontent-length: 99\r\n\r\nover capa")

    with OneShotServer(act) as server:
        reply = ask(pool, server.url)

    assert (reply.status, reply.body) == (503, b"over capa")


def test_an_early_answer_to_a_body_not_read_is_still_an_answer(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        connection.recv(1_000)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.01)
        while not leaving.is_set():  # the client may keep the connection longer
            with contextlib.suppress(TimeoutError):
                connection.recv(65_536)

    with OneShotServer(act) as server:
        assert ask(pool, server.url, body=b"x" * 3_000_000).status == 413


@pytest.mark.parametrize("own_transport", [False, True])
def test_a_body_without_end_is_not_read_to_its_end(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, own_transport: bool
) -> None:
    monkeypatch.setattr(transport, "BODY_BOUND", 1_000_000)

    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not leaving.is_set():
            connection.sendall(b" " * 65_536)

    with OneShotServer(act) as server, httpx.HTTPTransport() as given:
        failure = trouble(Through(given) if own_transport else pool, server.url)

    assert failure.error_type == "malformed_response"
    assert failure.billing_rule == "unreadable_answer"


@pytest.mark.parametrize("own_transport", [False, True])
def test_a_packed_body_is_unpacked(pool: Pool, own_transport: bool) -> None:
    packed = gzip.compress(b'{"ok":true}')

    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
        connection.sendall(head + packed)

    with OneShotServer(act) as server, httpx.HTTPTransport() as given:
        assert ask(Through(given) if own_transport else pool, server.url).body == b'{"ok":true}'


@pytest.mark.parametrize("encoding", [b"gzip", b"br"])
def test_a_body_that_cannot_be_unpacked_may_have_been_billed(pool: Pool, encoding: bytes) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(
            OK.replace(b"content-type", b"content-encoding: " + encoding + b"\r\ncontent-type")
        )

    with OneShotServer(act) as server:
        failure = trouble(pool, server.url)

    assert failure.error_type == "malformed_response"
    assert failure.billing_rule == "unreadable_answer"


@pytest.mark.parametrize("own_transport", [False, True])
def test_a_bomb_is_not_unpacked(pool: Pool, own_transport: bool) -> None:
    packed = gzip.compress(bytes(2 * transport.BODY_BOUND))

    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
        connection.sendall(head + packed)

    with OneShotServer(act) as server, httpx.HTTPTransport() as given:
        failure = trouble(Through(given) if own_transport else pool, server.url)

    assert failure.error_type == "malformed_response"
    assert "16,777,216 bytes" in str(failure)


def test_a_body_that_a_transport_of_ones_own_has_read_already_is_taken_as_read() -> None:
    class Reading(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            response.read()
            return response

    packed = gzip.compress(b'{"ok":true}')

    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
        connection.sendall(head + packed)

    with OneShotServer(act) as server, Reading() as given:
        assert ask(Through(given), server.url).body == b'{"ok":true}'


def test_a_redirect_is_not_followed(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 307 Go\r\nlocation: http://evil.example/\r\ncontent-length: 0\r\n\r\n")

    with OneShotServer(act) as server:
        assert ask(pool, server.url).status == 307


def test_no_cookie_is_kept(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        while request := read_request(connection):
            server.received.append(request)
            connection.sendall(OK.replace(b"content-type", b"set-cookie: a=b\r\ncontent-type"))

    with OneShotServer(act) as server:
        ask(pool, server.url)
        ask(pool, server.url)
        pool.close()

    assert b"cookie" not in server.received[1].lower()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_makes_connections_of_its_own(pool: Pool) -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        while read_request(connection):
            connection.sendall(OK)

    with OneShotServer(act) as server:
        ask(pool, server.url)
        child = os.fork()
        if child == 0:
            try:
                status = ask(pool, server.url).status
            finally:
                os._exit(0 if status == 200 else 1)
        assert os.waitpid(child, 0)[1] == 0
        ask(pool, server.url)
        pool.close()

    assert server.connections == 2


WRONG_PROXIES = [
    ("socks5://user:secret@proxy.example", "socks5"),
    ("http://user:secret@proxy.example:port", "no address"),
    ("http://user:secret@", "names no host"),
]


def proxy_named(url: httpx.URL) -> str | None:
    proxy = proxy_for(url)
    return proxy and proxy.reveal()


def test_a_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    far = httpx.URL("https://api.anthropic.com/v1/messages")
    assert proxy_for(far) is None

    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert proxy_named(far) == "http://proxy.example:3128"
    assert proxy_for(httpx.URL("https://127.0.0.1/v1")) is None

    monkeypatch.setenv("NO_PROXY", "anthropic.com")
    assert proxy_for(far) is None

    monkeypatch.delenv("NO_PROXY")
    for wrong, words in WRONG_PROXIES:
        monkeypatch.setenv("HTTPS_PROXY", wrong)
        with pytest.raises(SettingsError, match=words) as refused:
            proxy_for(far)
        assert "secret" not in str(refused.value)


def test_a_call_goes_through_its_proxy() -> None:
    def act(connection: socket.socket, leaving: threading.Event) -> None:
        proxy.received.append(read_request(connection))
        connection.sendall(OK)

    with OneShotServer(act) as proxy:
        channel = Pool(Secret(proxy.url.replace("http://", "http://user:secret@")))
        assert ask(channel, "http://far.example/v1").status == 200
        channel.close()

    assert proxy.received[0].startswith(b"POST http://far.example/v1 HTTP/1.1\r\n")
    assert b"proxy-authorization: basic" in proxy.received[0].lower()


@pytest.mark.parametrize(
    ("raised", "error_type", "billing_rule"),
    [
        (httpx.ConnectTimeout("x"), "timeout", "never_sent"),
        (httpx.PoolTimeout("x"), "timeout", "never_sent"),
        (httpx.ReadTimeout("x"), "timeout", "no_answer"),
        (httpx.WriteTimeout("x"), "timeout", "no_answer"),
        (httpx.ConnectError("x"), "connection_failed", "never_sent"),
        (httpx.ReadError("x"), "connection_failed", "no_answer"),
        (httpx.RemoteProtocolError("x"), "malformed_response", "unreadable_answer"),
        (httpx.RemoteProtocolError("Server disconnected"), "connection_failed", "no_answer"),
        (ConnectionResetError("x"), "connection_failed", "no_answer"),
    ],
)
def test_what_a_transport_of_ones_own_raises_is_told_apart(
    raised: Exception, error_type: str, billing_rule: str
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    failure = trouble(Through(httpx.MockTransport(handler)), "http://far.example")

    assert (failure.error_type, failure.billing_rule) == (error_type, billing_rule)
