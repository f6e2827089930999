"""Sockets that keep to a deadline: the network backend of the connections."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

import httpcore

_HELD_BYTES = 64 * 1024

SocketOptions = Iterable[
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
]


class Deadline(float):
    """Seconds from now that run out; as a float it is what it started with."""

    _ends_at: float
    may_have_sent: bool

    def __new__(cls, timeout_s: float) -> Deadline:
        deadline = super().__new__(cls, timeout_s)
        deadline._ends_at = time.monotonic() + timeout_s
        deadline.may_have_sent = True
        return deadline

    def left(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self._ends_at - time.monotonic()

    def told(self, host: str) -> str:
        """What it means that it ran out."""
        return f"no answer from {host} within {self:.3g} s"

    def watch_proxy(self) -> Callable[[str, dict[str, Any]], None]:
        """A trace for httpcore that notes when a request is sent on, beyond what opens a tunnel."""
        self.may_have_sent = False

        def note(event: str, about: dict[str, Any]) -> None:
            if event.endswith("send_request_headers.started") and about["request"].method != b"CONNECT":
                self.may_have_sent = True
            untold(event, about)

        return note


def untold(event: str, about: dict[str, Any]) -> None:
    """A trace for httpcore, which then logs `about`: without an answer's headers, that may echo the key."""
    if isinstance(told := about.get("return_value"), tuple):
        about["return_value"] = told[:2]  # HTTP version and status
    if "exception" in about:
        about["exception"] = type(about["exception"])


class Patience(Deadline):
    """A Deadline that besides bounds a silence: until the first token, between chunks, after the finish."""

    quiet_s: float
    _quiet_ends_at: float
    _awaited: str

    def wait_at_most(self, quiet_s: float, awaited: str) -> None:
        """From now on, and from each `heard()` on, so long for what is `awaited`."""
        self.quiet_s = quiet_s
        self._awaited = awaited
        self.heard()

    def heard(self) -> bool:
        """Something came: the silence begins anew. Whether there is time left for the whole."""
        now = time.monotonic()
        self._quiet_ends_at = now + self.quiet_s
        return now < self._ends_at

    def left(self) -> float:
        return min(self._ends_at, self._quiet_ends_at) - time.monotonic()

    def told(self, host: str) -> str:
        if self._ends_at <= time.monotonic():
            return f"no whole answer from {host} within {self:.3g} s"
        return f"no {self._awaited} from {host} within {self.quiet_s:.3g} s"


def _left(timeout: float | None, too_late: type[Exception]) -> float | None:
    """Seconds to give the next step; raises `too_late` where none are left."""
    left = timeout.left() if isinstance(timeout, Deadline) else timeout
    if left is not None and left <= 0:
        raise too_late("timed out")
    return left


class Network(httpcore.NetworkBackend):
    """Connects within a Deadline, whichever of a host's addresses answers."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolved(host, port, timeout)
        problem: OSError = OSError("no address")
        for untried, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            left = _left(timeout, httpcore.ConnectTimeout)
            try:
                sock = socket.create_connection((address, port), left and left / untried)
            except OSError as error:
                problem = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _Stream(sock)
        kind = httpcore.ConnectTimeout if isinstance(problem, TimeoutError) else httpcore.ConnectError
        raise kind(str(problem)) from problem


def is_this_machine(host: str) -> bool:
    """Whether a host is a loopback address, by number or as localhost."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _resolved(host: str, port: int, timeout: float | None) -> list[str]:
    """The addresses of a host. getaddrinfo knows no timeout: it is left behind when it takes too long."""
    found: list[str] = []
    problems: list[Exception] = []

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError) as error:  # the second: no name at all
            problems.append(error)

    if host == "localhost" or _is_address(host):
        look_up()
    else:
        thread = threading.Thread(target=look_up, name="bughive-dns", daemon=True)
        thread.start()
        thread.join(_left(timeout, httpcore.ConnectTimeout))
        if thread.is_alive():
            raise httpcore.ConnectTimeout(f"no address for {host} in time")
    if problems:
        raise httpcore.ConnectError(f"no address for {host}: {problems[0]}")
    return found


class _Stream(httpcore.NetworkStream):
    """A socket whose every step takes at most what is left of the Deadline.

    What is written is held until it is enough for a packet or an answer is waited for: the head
    and the body of a request then leave together.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = bytearray()
        self._poll: select.poll | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            self._send_before_reading(timeout)
        try:
            self._sock.settimeout(_left(timeout, httpcore.ReadTimeout))
            return self._sock.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def _send_before_reading(self, timeout: float | None) -> None:
        with contextlib.suppress(httpcore.WriteError):  # it may answer, and close, before it has read all
            self._send(timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._held += buffer
        if len(self._held) > _HELD_BYTES:
            self._send(timeout)

    def _send(self, timeout: float | None) -> None:
        rest = memoryview(self._held)  # by no other name: what a traceback may show of this frame
        self._held = bytearray()
        try:
            while rest:
                self._sock.settimeout(_left(timeout, httpcore.WriteTimeout))
                rest = rest[self._sock.send(rest) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._sock.settimeout(_left(timeout, httpcore.ConnectTimeout))
            return _Stream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname))
        except TimeoutError as error:
            self.close()
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._is_readable()
        if info == "ssl_object" and isinstance(self._sock, ssl.SSLSocket):
            return self._sock
        return None

    def _is_readable(self) -> bool:
        """Whether an idle connection has something to say: then the server has closed it."""
        if self._sock.fileno() < 0:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock.fileno(), select.POLLIN)
        return bool(self._poll.poll(0))
