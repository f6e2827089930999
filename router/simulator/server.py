"""The simulator's shell: sockets, threads, scripts and the log. What is answered is in `responses`.

One thread accepts, one thread per connection reads requests and writes answers; all are daemons.
A thread that waits (for a request, a delay, a silent client) waits on its socket, which the
client's leaving and stop() both end at once.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, Self

from router.simulator.answers import PROVIDER_OF_PATH, Answer, Call, Provider, call_of, wants_stream
from router.simulator.replies import BUGHIVE_PRICES, Price, Reply, Tokens
from router.simulator.responses import Response, Stream, response_to

_SECRET_HEADERS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 529: "Overloaded"}
_CHUNK_WITHOUT_BYTES = b"40\r\n"  # 64 are announced
_LINGER_NONE = struct.pack("ii", 1, 0)
_DEFAULT = Reply()


class Served(NamedTuple):
    """One call as the simulator saw it, written down when it came in, before anything was sent.

    `status` is None where no answer was meant to come (silence, reset). Tokens and `cost_usd` are
    those of the answer, also where it is cut short on its way; None where there is no answer.
    `cost_usd` is what the answer reports: None from Anthropic. `request_headers` has lower-case
    names and leaves out those that carry keys.
    """

    number: int
    at: datetime
    provider: Provider | None
    model: str
    path: str
    status: int | None
    tokens: Tokens | None
    cost_usd: Decimal | None
    fault: str | None
    response_id: str | None
    request_headers: Mapping[str, str]
    request_body: Mapping[str, Any]

    @property
    def input_tokens(self) -> int:
        """Prompt tokens neither read from nor written to a cache; 0 without an answer."""
        return self.tokens.input_tokens if self.tokens else 0

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens read from a cache; 0 without an answer."""
        return self.tokens.cache_read_tokens if self.tokens else 0

    @property
    def output_tokens(self) -> int:
        return self.tokens.output_tokens if self.tokens else 0


class _Request(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: bytes


class Simulator:
    """Both providers on one local port, from `with` (or start()) to its end (or stop()).

    `script()` lines up replies for a model; a model without any answers from the seed.
    `prices`: USD per million tokens by model, for the cost OpenRouter reports.
    `log_limit`: how many calls the log keeps, the newest; None: all.
    `tls`: what it proves with who it is; None: plain http.

    >>> with Simulator(seed=7) as sim:
    ...     sim.script("deepseek/deepseek-chat", Reply(status=503), Reply(text="done"))
    ...     client = OpenRouterClient(api_key="any", base_url=sim.openrouter_url)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        port: int = 0,
        prices: Mapping[str, Price] = BUGHIVE_PRICES,
        log_limit: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._seed = seed
        self._asked_port = port
        self._prices = prices
        self._tls = tls
        self._scripts: dict[str, deque[Reply]] = {}
        self._calls: dict[str, int] = {}
        self._served: deque[Served] = deque(maxlen=log_limit)
        self._served_count = 0
        self._news = threading.Condition()
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._stopping = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        if self._listener is None:
            raise RuntimeError("the simulator is not running; use it in a with block or call start()")
        return int(self._listener.getsockname()[1])

    @property
    def anthropic_url(self) -> str:
        """The base_url for an Anthropic client, which adds /v1/messages."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def openrouter_url(self) -> str:
        """The base_url for an OpenRouter client, which adds /chat/completions."""
        return f"{self.anthropic_url}/api/v1"

    @property
    def log(self) -> list[Served]:
        """The calls so far, in the order they came in."""
        with self._news:
            return list(self._served)

    def script(self, model: str, *replies: Reply) -> None:
        """Lines up replies for a model as it is named on the wire; each is used once, in order."""
        with self._news:
            self._scripts.setdefault(model, deque()).extend(replies)

    def wait_served(self, count: int, timeout_s: float = 10.0) -> list[Served]:
        """The log, once `count` calls have come in. Raises TimeoutError where they do not."""
        with self._news:
            if not self._news.wait_for(lambda: self._served_count >= count, timeout_s):
                raise TimeoutError(f"{self._served_count} of {count} calls came in within {timeout_s} s")
            return list(self._served)

    def start(self) -> None:
        self._stopping = False
        self._listener = socket.create_server(("127.0.0.1", self._asked_port), backlog=256)
        self._run(self._accept, self._listener)

    def stop(self) -> None:
        """Ends every connection and the threads behind them; twice is once."""
        listener = self._listener
        if listener is None:
            return
        with self._news:
            self._stopping = True
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        with suppress(OSError):  # wakes accept(), which closing the listener does not
            socket.create_connection(listener.getsockname(), timeout=1).close()
        for thread in threads:
            thread.join(timeout=5)
        listener.close()
        self._listener = None

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            try:
                work(*arguments)
            finally:
                with self._news:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name="simulator", daemon=True)
        with self._news:
            self._threads.add(thread)
            thread.start()  # within the lock: stop() joins what it finds here

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._news:
                if self._stopping:
                    connection.close()
                    return
                self._connections.add(connection)
            self._run(self._converse, connection)

    def _converse(self, connection: socket.socket) -> None:
        """Reads requests and answers them until the client leaves or a reply ends the connection."""
        received = bytearray()
        try:
            if self._tls is not None:
                secured = connection = self._secured(connection, self._tls)
                secured.do_handshake()
            while (request := _read_request(connection, received)) is not None:
                if not self._answer(connection, request):
                    return
        except (OSError, ValueError, IndexError):
            pass  # the client is gone, or speaks no HTTP: nobody is left to tell
        finally:
            with self._news:
                self._connections.discard(connection)
            connection.close()

    def _secured(self, connection: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
        secured = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._news:
            self._connections.discard(connection)
            self._connections.add(secured)
        return secured

    def _answer(self, connection: socket.socket, request: _Request) -> bool:
        """Answers one request; False where the connection has to end."""
        call, problem = call_of(request.path, request.body)
        with self._news:
            reply, call = self._next_reply(call, problem)
        response = response_to(call, reply, self._seed, self._prices)
        self._write_down(call, reply, request, response.answer, response.status)
        if reply.silence:
            return _stay_open(connection)
        if reply.delay_s and _left_within(connection, reply.delay_s):
            return False
        if reply.reset:
            return _reset(connection)
        if reply.endless:
            _send_without_end(connection, reply.endless, response.status)
        return _send(connection, reply, response) and request.headers.get("connection", "").lower() != "close"

    def _next_reply(self, call: Call, problem: Reply | None) -> tuple[Reply, Call]:
        """The reply that is due, and the call with its number. A refused call uses neither up."""
        if problem is not None:
            return problem, call
        number = self._calls[call.model] = self._calls.get(call.model, 0) + 1
        script = self._scripts.get(call.model)
        return (script.popleft() if script else _DEFAULT), call._replace(number=number)

    def _write_down(
        self, call: Call, reply: Reply, request: _Request, answer: Answer | None, status: int
    ) -> None:
        served = Served(
            number=0,
            at=datetime.now(UTC),
            provider=PROVIDER_OF_PATH.get(request.path),
            model=call.model,
            path=request.path,
            status=None if reply.silence or reply.reset else status,
            tokens=answer.tokens if answer else None,
            cost_usd=answer.cost_usd if answer else None,
            fault=(reply if wants_stream(call.body) else replace(reply, broken=None)).fault,
            response_id=answer.response_id if answer else None,
            request_headers={
                name: value for name, value in request.headers.items() if name not in _SECRET_HEADERS
            },
            request_body=call.body,
        )
        with self._news:
            self._served_count += 1
            self._served.append(served._replace(number=self._served_count))
            self._news.notify_all()


def _head(response: Response) -> bytes:
    stream = response.stream is not None
    framing = ("transfer-encoding", "chunked") if stream else ("content-length", str(len(response.body)))
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Simulated')}"]
    lines += [f"{name}: {value}" for name, value in {framing[0]: framing[1], **response.headers}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _send(connection: socket.socket, reply: Reply, response: Response) -> bool:
    """Sends as the reply says; False where the answer was cut short or the client left."""
    head, body = _head(response), response.body[: reply.cut_after]
    if response.stream is not None:
        connection.sendall(head)
        return _send_stream(connection, response.stream, reply.drip)
    if reply.drip is not None:
        return _send_in_drops(connection, reply.drip, head, body) and reply.cut_after is None
    connection.sendall(head + body)
    return reply.cut_after is None


def _send_stream(connection: socket.socket, stream: Stream, drip: tuple[int, float] | None) -> bool:
    """Each piece as an HTTP chunk of its own; False where the stream has no proper end."""
    every, interval_s = drip or (0, 0.0)
    for number, piece in enumerate(stream.pieces):
        if every and number and number % every == 0 and _left_within(connection, interval_s):
            return False
        connection.sendall(_chunk(piece))
    match stream.end:
        case "end":
            connection.sendall(_chunk(b""))
            return True
        case "open":
            return _stay_open(connection, stream.keep_alive, stream.keep_alive_s)
        case "cut":
            connection.sendall(_CHUNK_WITHOUT_BYTES)
            return False
        case "reset":
            return _reset(connection)


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _stay_open(connection: socket.socket, sign: bytes = b"", every_s: float | None = None) -> Literal[False]:
    """Until the client leaves or the simulator stops, with a sign of life every so often or without."""
    if every_s is None:
        while connection.recv(65536):
            pass
        return False
    while not _left_within(connection, every_s):
        connection.sendall(_chunk(sign))
    return False


def _reset(connection: socket.socket) -> Literal[False]:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    return False


def _send_in_drops(connection: socket.socket, drip: tuple[int, float], head: bytes, body: bytes) -> bool:
    size, interval_s = drip
    connection.sendall(head)
    for start in range(0, len(body), size):
        if _left_within(connection, interval_s):
            return False
        connection.sendall(body[start : start + size])
    return True


def _send_without_end(connection: socket.socket, what: Literal["head", "body"], status: int) -> NoReturn:
    """Ends with the OSError of a client that left."""
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Simulated')}\r\ncontent-type: application/json\r\n"
    connection.sendall(head.encode() + (b"\r\n" if what == "body" else b"x-more: "))
    while True:
        connection.sendall(b" " * 65_536 if what == "body" else b"a" * 4_096)


def _left_within(connection: socket.socket, seconds: float) -> bool:
    """Waits so long; True as soon as the client has left or the simulator stops."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except TimeoutError:
        return False
    finally:
        connection.settimeout(None)


def _read_request(connection: socket.socket, received: bytearray) -> _Request | None:
    """The next request, from what was already received and from the socket; None: the client left.

    `received` keeps what came after it. Bodies need a content-length, as every client of the two
    providers sends it; a chunked body reads as empty and is refused as no JSON.
    """
    while (end := received.find(b"\r\n\r\n")) < 0:
        if not _receive(connection, received):
            return None
    request_line, *header_lines = received[:end].decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in header_lines)
    }
    body_end = end + 4 + int(headers.get("content-length", "0"))
    while len(received) < body_end:
        if not _receive(connection, received):
            return None
    request = _Request(
        request_line.split(" ")[1].partition("?")[0], headers, bytes(received[end + 4 : body_end])
    )
    del received[:body_end]
    return request


def _receive(connection: socket.socket, received: bytearray) -> bool:
    chunk = connection.recv(65536)
    received += chunk
    return bool(chunk)
