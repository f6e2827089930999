"""The one place that does HTTP: post a body, get a Reply, within a time by the wall clock.

    post(channel, provider, url, headers, body, timeout_s) ──▶ Reply       raises ProviderError
    Pool          the channel used unless a transport is given: httpcore's connections, kept
    Through       the channel through any httpx.BaseTransport

A `Deadline` is a timeout that runs out: it travels through httpcore as the value of each of its
timeouts, and the socket asks it what is left before every connect, read and write. So neither
a slow name server, nor a slow handshake, nor a server that drips can outlast it. With a transport
of the caller's own, the clock is looked at between the pieces of the body.

Redirects are not followed, no cookies are kept, a body is bounded. Proxies are taken from
HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (http:// proxies only; never for this machine
itself), certificates from SSL_CERT_FILE and SSL_CERT_DIR, else certifi.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from ledger.errors import SettingsError
from ledger.events import ErrorType
from router.providers.failures import failure_to_reach
from router.providers.network import Deadline, Network, is_this_machine
from router.providers.wire import Reply

BODY_BOUND = 64 * 1024 * 1024
_IDLE_S = 20.0
_IDLE_CONNECTIONS = 100

Headers = list[tuple[bytes, bytes]]


class Channel(Protocol):
    """A way to a provider."""

    def exchange(self, url: httpx.URL, headers: Headers, body: bytes, deadline: Deadline) -> Reply:
        """Send one body and read the whole reply. Raises what httpx or httpcore raise, or _Cut."""

    def close(self) -> None:
        """Close the connections this channel made."""


class _Cut(Exception):
    """An answer that had begun and did not come whole; from the error that cut it."""


class _TooLong(Exception):
    """An answer beyond all bounds."""


# httpx has namesakes of httpcore's errors.
_FAILURES: Mapping[str, tuple[ErrorType, str]] = {
    "ConnectTimeout": ("timeout", "never_sent"),
    "PoolTimeout": ("timeout", "never_sent"),
    "ReadTimeout": ("timeout", "no_answer"),
    "WriteTimeout": ("timeout", "no_answer"),
    "TimeoutError": ("timeout", "no_answer"),
    "ConnectError": ("connection_failed", "never_sent"),
    "ProxyError": ("connection_failed", "never_sent"),
    "UnsupportedProtocol": ("connection_failed", "never_sent"),
    "LocalProtocolError": ("connection_failed", "never_sent"),
    "_Cut": ("stream_interrupted", "no_answer"),
    "_TooLong": ("malformed_response", "unreadable_answer"),
    "DecodingError": ("malformed_response", "unreadable_answer"),
}
_TROUBLE = (
    *(httpx.HTTPError, OSError, _Cut, _TooLong),
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    *(httpcore.ProxyError, httpcore.UnsupportedProtocol),
)
_TIMEOUTS = (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)


def post(
    channel: Channel, provider: str, url: httpx.URL, headers: Headers, body: bytes, timeout_s: float
) -> Reply:
    """Send one body and read the whole reply, whatever its status.

    Raises ProviderError: timeout, connection_failed, stream_interrupted or malformed_response.
    """
    try:
        return channel.exchange(url, headers, body, Deadline(timeout_s))
    except _TROUBLE as error:
        error_type, billing_rule = _FAILURES.get(type(error).__name__, ("connection_failed", "no_answer"))
        why = _told(error, error_type, url.host, timeout_s)
        raise failure_to_reach(provider, error_type, why, billing_rule) from error


def _told(error: Exception, error_type: ErrorType, host: str, timeout_s: float) -> str:
    match error_type:
        case "timeout":
            return f"no answer from {host} within {timeout_s:.3g} s"
        case "stream_interrupted":
            return f"the answer of {host} was cut: {error}"
        case "malformed_response":
            return f"the answer of {host} cannot be read: {error}"
        case _:
            return f"no connection to {host}: {error}"


def whole(pieces: Iterable[bytes], status: int, deadline: Deadline) -> bytes:
    """A body put together. Of an error status what came is enough: that it failed is known already."""
    body = bytearray()
    try:
        for piece in pieces:
            body += piece
            if len(body) > BODY_BOUND:
                raise _TooLong(f"it is longer than {BODY_BOUND:,} bytes")
            if deadline.left() <= 0:
                raise TimeoutError
    except _TROUBLE as error:
        if status < 400:
            if isinstance(error, (*_TIMEOUTS, _TooLong, httpx.DecodingError)):
                raise
            raise _Cut(str(error)) from error
    return bytes(body)


class Through:
    """Any httpx.BaseTransport as a channel; it stays its owner's to close."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def exchange(self, url: httpx.URL, headers: Headers, body: bytes, deadline: Deadline) -> Reply:
        request = httpx.Request("POST", url, headers=headers, content=body, extensions=_timeouts(deadline))
        response = self._transport.handle_request(request)
        try:
            content = whole(response.iter_bytes(), response.status_code, deadline)
        finally:
            response.close()
        return Reply(response.status_code, response.headers, content)

    def close(self) -> None:
        pass


def _timeouts(deadline: Deadline) -> dict[str, Any]:
    return {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), deadline)}


class Pool:
    """Connections kept for the next call; thread-safe, and begun anew after a fork.

    httpcore's connections, taken from a stack: its own pool, made for many hosts and a bounded number
    of connections, costs a call more than all of the ledger does. Through a proxy that pool is used.
    """

    def __init__(self, proxy: str | None = None) -> None:
        self._proxy = proxy
        self._lock = threading.Lock()
        self._kept: _Kept | None = None
        self._url: tuple[httpx.URL, httpcore.URL] | None = None

    def exchange(self, url: httpx.URL, headers: Headers, body: bytes, deadline: Deadline) -> Reply:
        request = httpcore.Request(
            b"POST",
            self._url_of(url),
            headers=[*headers, (b"content-length", b"%d" % len(body))],
            content=body,
            extensions=_timeouts(deadline),
        )
        kept = self._connections()
        connection = kept.take(request.url)
        try:
            response = connection.handle_request(request)
            try:
                content = whole(response.iter_stream(), response.status, deadline)
            finally:
                response.close()
        finally:
            kept.give_back(request.url, connection)
        told = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in response.headers}
        return Reply(response.status, told, _unpacked(content, told.get("content-encoding")))

    def _url_of(self, url: httpx.URL) -> httpcore.URL:
        """The same address in httpcore's terms; a client asks for one only."""
        known = self._url
        if known is None or known[0] is not url:
            target = httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            )
            known = self._url = (url, target)
        return known[1]

    def close(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None and kept.pid == os.getpid():
            kept.close()

    def _connections(self) -> _Kept:
        kept = self._kept
        if kept is None or kept.pid != os.getpid():
            with self._lock:
                kept = self._kept
                if kept is None or kept.pid != os.getpid():
                    kept = self._kept = _Kept(self._proxy)
        return kept


class _Kept:
    """The idle connections of one process, by where they lead."""

    def __init__(self, proxy: str | None) -> None:
        self.pid = os.getpid()
        self._network = Network()
        self._idle: dict[tuple[bytes, bytes, int | None], list[httpcore.HTTPConnection]] = {}
        self._proxy = None if proxy is None else _through_proxy(proxy, self._network)

    def take(self, url: httpcore.URL) -> httpcore.HTTPConnection | httpcore.HTTPProxy:
        """A connection for one call: the one used last, if it still is alive, else a new one."""
        if self._proxy is not None:
            return self._proxy
        idle = self._idle.setdefault((url.scheme, url.host, url.port), [])
        while idle:
            with contextlib.suppress(IndexError):  # another thread took it
                connection = idle.pop()
                if not connection.has_expired():
                    return connection
                connection.close()
        return httpcore.HTTPConnection(
            url.origin,
            ssl_context=self._tls if url.scheme == b"https" else None,
            keepalive_expiry=_IDLE_S,
            network_backend=self._network,
        )

    def give_back(self, url: httpcore.URL, connection: httpcore.HTTPConnection | httpcore.HTTPProxy) -> None:
        """Keep a connection whose call came to its end; close any other."""
        if isinstance(connection, httpcore.HTTPProxy):
            return
        idle = self._idle[(url.scheme, url.host, url.port)]
        if connection.is_idle() and len(idle) < _IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()

    def close(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


def _through_proxy(proxy: str, network: Network) -> httpcore.HTTPProxy:
    at = httpx.Proxy(proxy)
    return httpcore.HTTPProxy(
        proxy_url=str(at.url),
        proxy_auth=at.raw_auth,
        ssl_context=httpx.create_ssl_context(),
        max_connections=None,
        max_keepalive_connections=_IDLE_CONNECTIONS,
        keepalive_expiry=_IDLE_S,
        network_backend=network,
    )


def _unpacked(body: bytes, encoding: str | None) -> bytes:
    """The body of a server that packs although it was not asked to. Raises httpx.DecodingError."""
    if encoding in (None, "", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise httpx.DecodingError(f"its content-encoding is {encoding[:40]!r}")
    unpacker = zlib.decompressobj(47)
    try:
        unpacked = unpacker.decompress(body, BODY_BOUND)
    except zlib.error as error:
        raise httpx.DecodingError(str(error)) from error
    if not unpacker.eof:
        raise httpx.DecodingError("it ends in the middle, or is too long")
    return unpacked


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy the environment names for this address; None: a direct connection.

    Raises SettingsError for a proxy of a kind that cannot be used.
    """
    if is_this_machine(url.host) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy:
        return None
    kind, _, rest = proxy.rpartition("://")
    if kind not in ("", "http"):
        raise SettingsError(
            f"a {kind}:// proxy for {url.host} cannot be used; name an http:// one, or NO_PROXY"
        )
    return f"http://{rest}"
