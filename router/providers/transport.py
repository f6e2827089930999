"""The one place that does HTTP: post a body, get a Reply, within a time by the wall clock.

    post(channel, provider, url, headers, body, timeout_s) ──▶ Reply       raises ProviderError
    begin(channel, provider, url, headers, body, patience) ──▶ Opened      its body comes piece by piece
    Pool          the channel used unless a transport is given: httpcore's connections, kept
    Through       the channel through any httpx.BaseTransport

A `Deadline` is a timeout that runs out: it travels through httpcore as the value of each of its
timeouts, and the socket asks it what is left before every connect, read and write. So neither
a slow name server, nor a slow handshake, nor a server that drips can outlast it. With a transport
of the caller's own, the clock is looked at between the pieces of the body.

Redirects are not followed (a key would travel with them), no cookies are kept, head and body are
bounded. Proxies are taken from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (http:// proxies only;
never for this machine itself), certificates from SSL_CERT_FILE and SSL_CERT_DIR, else certifi. A
.netrc is never read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from ledger.errors import SettingsError
from ledger.events import ErrorType
from ledger.secrecy import Secret, SecretBytes
from router.errors import ProviderError
from router.providers.failures import failure_to_reach
from router.providers.network import Deadline, Network, Patience, is_this_machine, untold
from router.providers.sse import TooLong
from router.providers.wire import Reply

BODY_BOUND = 16 * 1024 * 1024  # bytes, unpacked; the longest answers, pictures in them, have a few millions
_PIECE = 64 * 1024  # bytes that are unpacked at a time
_IDLE_S = 20.0
_IDLE_CONNECTIONS = 100
_HTTPCORE_LOG = logging.getLogger("httpcore.http11")

Headers = list[tuple[bytes, bytes]]


class Opened(NamedTuple):
    """A reply that has begun: header names in lower case, a body in pieces, packed as `encoding` says."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterable[bytes]
    encoding: str | None
    close: Callable[[], None]  # to be called once by whoever opened it, whatever happened


class Channel(Protocol):
    """A way to a provider."""

    def open(self, url: httpx.URL, headers: Headers, body: bytes, deadline: Deadline) -> Opened:
        """Send one body and wait for a head. It, and reading on, raise what httpx or httpcore raise."""

    def close(self) -> None:
        """Close the connections this channel made."""


class _Cut(Exception):
    """An answer that had begun and did not come whole; from the error that cut it."""


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
    "RemoteProtocolError": ("malformed_response", "unreadable_answer"),
    "TooLong": ("malformed_response", "unreadable_answer"),
    "DecodingError": ("malformed_response", "unreadable_answer"),
}
TROUBLE = (  # what opening, reading and unpacking raise
    *(httpx.HTTPError, OSError, _Cut, TooLong),
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    *(httpcore.ProxyError, httpcore.UnsupportedProtocol),
)
_QUOTED = re.compile(r":?\s*\b(bytearray\()?b['\"].*", re.DOTALL)
_LEFT = re.compile("disconnected|closed", re.IGNORECASE)
TIMEOUTS = (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)


def post(
    channel: Channel, provider: str, url: httpx.URL, headers: Headers, body: bytes, timeout_s: float
) -> Reply:
    """Send one body and read the whole reply, whatever its status.

    Raises ProviderError: timeout, connection_failed, stream_interrupted or malformed_response.
    """
    deadline = Deadline(timeout_s)
    try:
        return reply_of(channel.open(url, headers, body, deadline), deadline)
    except TROUBLE as error:
        failure = failure_from(error, provider, url.host, deadline)
    raise failure  # without a cause: its frames hold the request's headers, its text what came


def begin(
    channel: Channel, provider: str, url: httpx.URL, headers: Headers, body: bytes, patience: Patience
) -> Opened:
    """Send one body and wait for the head of the reply, which its caller closes.

    Raises ProviderError as post() does.
    """
    try:
        return channel.open(url, headers, body, patience)
    except TROUBLE as error:
        failure = failure_from(error, provider, url.host, patience)
    raise failure


def reply_of(opened: Opened, deadline: Deadline) -> Reply:
    """The whole of what was opened, which is closed then. Raises one of TROUBLE."""
    try:
        content = whole(opened.pieces, opened.status, deadline)
    finally:
        opened.close()
    return Reply(opened.status, opened.headers, _unpacked(content, opened.encoding, opened.status))


def failure_from(error: Exception, provider: str, host: str, deadline: Deadline) -> ProviderError:
    """What one of TROUBLE means, while an answer was waited for or read."""
    error_type, billing_rule = _kind(error)
    if not deadline.may_have_sent:
        billing_rule = "never_sent"
    return failure_to_reach(provider, error_type, _told(error, error_type, host, deadline), billing_rule)


def _kind(error: Exception) -> tuple[ErrorType, str]:
    """A failure's type, and its billing rule. A server that left is told from one that spoke no HTTP."""
    if type(error).__name__ == "RemoteProtocolError" and _LEFT.search(str(error)):
        return "connection_failed", "no_answer"
    return _FAILURES.get(type(error).__name__, ("connection_failed", "no_answer"))


def _told(error: Exception, error_type: ErrorType, host: str, deadline: Deadline) -> str:
    said = unquoted(error)
    match error_type:
        case "timeout":
            return deadline.told(host)
        case "stream_interrupted":
            return f"the answer of {host} was cut: {said}"
        case "malformed_response":
            return f"the answer of {host} cannot be read: {said}"
        case _:
            return f"no connection to {host}: {said}"


def unquoted(error: Exception) -> str:
    """An error's words without the bytes that h11 quotes: a key may be echoed in them."""
    return _QUOTED.sub("", str(error))


def whole(pieces: Iterable[bytes], status: int, deadline: Deadline) -> bytes:
    """A body put together. Of an error status what came is enough: that it failed is known already."""
    body = bytearray()
    try:
        for piece in pieces:
            body += piece
            if len(body) > BODY_BOUND:
                raise TooLong(f"it is longer than {BODY_BOUND:,} bytes")
            if deadline.left() <= 0:
                raise TimeoutError
    except TROUBLE as error:
        if status < 400:
            if isinstance(error, (*TIMEOUTS, TooLong, httpx.DecodingError)):
                raise
            raise _Cut(str(error)) from error
    return bytes(body)


class Through:
    """Any httpx.BaseTransport as a channel; it stays its owner's to close."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def open(self, url: httpx.URL, headers: Headers, body: bytes, deadline: Deadline) -> Opened:
        request = httpx.Request("POST", url, headers=headers, content=body, extensions=_timeouts(deadline))
        response = self._transport.handle_request(request)
        status, told = response.status_code, response.headers
        if response.is_stream_consumed:
            return Opened(status, told, [response.content], None, response.close)
        assert isinstance(response.stream, httpx.SyncByteStream), "a BaseTransport answers with such a stream"
        # unpacked by us: httpx would unpack a bomb whole
        return Opened(status, told, response.stream, told.get("content-encoding"), response.close)

    def close(self) -> None:
        pass


def _timeouts(deadline: Deadline) -> dict[str, Any]:
    """And, where httpcore logs what it reads, a trace that keeps it out of that log."""
    timeouts = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), deadline)}
    return {**timeouts, "trace": untold} if _HTTPCORE_LOG.isEnabledFor(logging.DEBUG) else timeouts


class Pool:
    """Connections kept for the next call; thread-safe, and begun anew after a fork.

    httpcore's connections, taken from a stack: its own pool, made for many hosts and a bounded number
    of connections, costs a call more than all of the ledger does. Through a proxy that pool is used.
    """

    def __init__(self, proxy: Secret | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._proxy = proxy
        self._tls = tls
        self._lock = threading.Lock()
        self._kept: _Kept | None = None
        self._url: tuple[httpx.URL, httpcore.URL] | None = None

    def open(self, url: httpx.URL, headers: Headers, body: bytes, deadline: Deadline) -> Opened:
        request = httpcore.Request(
            b"POST",
            self._url_of(url),
            headers=[*headers, (b"content-length", b"%d" % len(body))],
            content=body,
            extensions=_timeouts(deadline),
        )
        if self._proxy is not None:
            request.extensions["trace"] = deadline.watch_proxy()
        kept = self._connections()
        connection = kept.take(request.url)
        try:
            response = connection.handle_request(request)
        except BaseException:
            kept.give_back(request.url, connection)
            raise

        def close() -> None:
            try:
                response.close()
            finally:
                kept.give_back(request.url, connection)

        told = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in response.headers}
        return Opened(response.status, told, response.iter_stream(), told.get("content-encoding"), close)

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
                    kept = self._kept = _Kept(self._proxy, self._tls)
        return kept


class _Kept:
    """The idle connections of one process, by where they lead."""

    def __init__(self, proxy: Secret | None, tls: ssl.SSLContext | None) -> None:
        self.pid = os.getpid()
        self._given_tls = tls
        self._network = Network()
        self._idle: dict[tuple[bytes, bytes, int | None], list[httpcore.HTTPConnection]] = {}
        self._proxy = None if proxy is None else _through_proxy(proxy, tls, self._network)

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
        return self._given_tls or _certificates()

    def close(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


def _through_proxy(proxy: Secret, tls: ssl.SSLContext | None, network: Network) -> httpcore.HTTPProxy:
    at = httpx.Proxy(proxy.reveal())
    return httpcore.HTTPProxy(
        proxy_url=str(at.url),
        proxy_headers=_proxy_authorization(at),
        ssl_context=tls or _certificates(),
        max_connections=None,
        max_keepalive_connections=_IDLE_CONNECTIONS,
        keepalive_expiry=_IDLE_S,
        network_backend=network,
    )


def _proxy_authorization(proxy: httpx.Proxy) -> Headers:
    if proxy.raw_auth is None:
        return []
    return [(b"Proxy-Authorization", SecretBytes(b"Basic " + b64encode(b":".join(proxy.raw_auth))))]


def _unpacked(body: bytes, encoding: str | None, status: int) -> bytes:
    """The body of a server that packs although it was not asked to. Raises httpx.DecodingError, TooLong.

    Of an error status what can be unpacked is enough.
    """
    if encoding is None or not body or (packing := encoding.strip().lower()) in ("", "identity"):
        return body
    try:
        return _unzipped(body, packing)
    except (httpx.DecodingError, TooLong):
        if status < 400:
            raise
        return b""


def unpacked_pieces(opened: Opened) -> Iterable[bytes]:
    """The body of what was opened, piece by piece. Raises TROUBLE as it is read."""
    packing = (opened.encoding or "").strip().lower()
    return opened.pieces if packing in ("", "identity") else _unzipped_pieces(opened.pieces, packing)


def _unzipped_pieces(pieces: Iterable[bytes], packing: str) -> Iterator[bytes]:
    unpacker = _unpacker(packing)
    for piece in pieces:
        while piece:
            try:
                yield unpacker.decompress(piece, _PIECE)
            except zlib.error as error:
                raise httpx.DecodingError(str(error)) from error
            piece = unpacker.unconsumed_tail


def _unzipped(body: bytes, packing: str) -> bytes:
    unpacker = _unpacker(packing)
    try:
        unpacked = unpacker.decompress(body, BODY_BOUND)
    except zlib.error as error:
        raise httpx.DecodingError(str(error)) from error
    if unpacker.unconsumed_tail:
        raise TooLong(f"it is longer than {BODY_BOUND:,} bytes")
    if not unpacker.eof:
        raise httpx.DecodingError("it ends in the middle")
    return unpacked


def _unpacker(packing: str) -> zlib._Decompress:
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError("its content-encoding is neither gzip nor deflate")
    return zlib.decompressobj(47)


def certificates_for(url: httpx.URL) -> ssl.SSLContext | None:
    """What an address must be certified by; None: nothing, it is not asked over TLS. Raises SettingsError."""
    return _certificates() if url.scheme == "https" else None


def _certificates() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise SettingsError(
            f"no certificates in {named}, which SSL_CERT_FILE or SSL_CERT_DIR names: {error};"
            " name a file of PEM certificates, or unset it"
        ) from error


def proxy_for(url: httpx.URL) -> Secret | None:
    """The proxy the environment names for this address; None: a direct connection.

    Raises SettingsError for a proxy that cannot be used. What it names may hold a password.
    """
    if is_this_machine(url.host) or proxy_bypass(url.host):
        return None
    proxy = _named_proxy(url.scheme)
    problem = proxy and _problem_with(proxy)
    if problem:
        raise SettingsError(f"the proxy for {url.host} {problem}; name an http:// one, or set NO_PROXY")
    return proxy


def _named_proxy(scheme: str) -> Secret | None:
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return Secret.of(proxy and (proxy if "://" in proxy else f"http://{proxy}"))


def _problem_with(proxy: Secret) -> str | None:
    kind = proxy.reveal().partition("://")[0]
    if kind != "http":
        return f"is a {kind}:// one, which cannot be used"
    try:
        return None if httpx.Proxy(proxy.reveal()).url.host else "names no host"
    except (httpx.InvalidURL, ValueError):
        return "is no address"
