"""A proxy in front of the S3 server that fails on demand: down, erring, slow, or cutting answers short.

    with faulty_proxy(server) as proxy:
        ...                                    # a process with proxy.environment talks to the server through it
        proxy.down()                           # connections are reset, new ones refused
        proxy.up()
        proxy.answer(503, every=3)             # each third request is answered 503 SlowDown, and does nothing
        proxy.cut(after=100)                   # requests are carried out; of their answers 100 bytes arrive
        proxy.cut(after=0, methods=("PUT",))   # writes are carried out, and nobody hears of it
        proxy.delay(5)                         # requests wait before they are passed on
        proxy.calm()                           # as if it were not there

One fault at a time, beside `down`; a later one replaces the earlier. Calls return once the change is in force and may
come from any thread.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.s3_server import S3Server

HOST = "127.0.0.1"
MAX_HEAD_BYTES = 2**17
BLOCK_BYTES = 2**16
# A client that was answered early may still be sending its body: it must not be reset before it reads the answer.
DRAIN_SECONDS = 5.0
ERROR_CODES = {500: "InternalError", 502: "BadGateway", 503: "SlowDown", 504: "GatewayTimeout"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    """With its query."""


@dataclass(slots=True, kw_only=True)
class _Fault:
    kind: Literal["answer", "cut", "delay"]
    every: int
    methods: tuple[str, ...]
    left: int | None
    """Times that it strikes; None: until it is replaced."""
    status: int = 503
    after: int = 0
    seconds: float = 0.0
    seen: int = field(default=0)

    def strikes(self, request: Request) -> bool:
        if self.left == 0 or (self.methods and request.method not in self.methods):
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class FaultyProxy:
    """See the module. Built by `faulty_proxy`."""

    def __init__(self, server: S3Server) -> None:
        self.requests: list[Request] = []
        """Every request that arrived, also those that met a fault."""
        self.struck = 0
        """Requests that met a fault."""
        self._upstream = server
        self._fault: _Fault | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._socket = _bound(0)
        self.port = int(self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """As `S3Server.environment`, through the proxy."""
        return {**self._upstream.environment, "AWS_ENDPOINT_URL": f"http://{HOST}:{self.port}"}

    def down(self) -> None:
        """Reset what is connected and refuse what connects. The port stays taken."""
        self._run(self._down())

    def up(self) -> None:
        self._run(self._up())

    @contextmanager
    def outage(self, seconds: float) -> Iterator[None]:
        """Down now, and up again after `seconds`, whatever the body does meanwhile."""
        self.down()
        timer = threading.Timer(seconds, self.up)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def answer(self, status: int, *, every: int = 1, times: int | None = None, methods: tuple[str, ...] = ()) -> None:
        """Answer requests with an error instead of passing them on.

        Args:
            every: only each n-th request.
            times: then no more; None: until further notice.
            methods: only requests of these, such as PUT; all unless given.
        """
        self._fault = _Fault(kind="answer", status=status, every=every, left=times, methods=methods)

    def cut(self, *, after: int = 0, every: int = 1, times: int | None = None, methods: tuple[str, ...] = ()) -> None:
        """Pass requests on, but reset the connection once `after` bytes of the answer (with its head) have passed."""
        self._fault = _Fault(kind="cut", after=after, every=every, left=times, methods=methods)

    def delay(self, seconds: float, *, every: int = 1, times: int | None = None, methods: tuple[str, ...] = ()) -> None:
        """Hold requests before they are passed on."""
        self._fault = _Fault(kind="delay", seconds=seconds, every=every, left=times, methods=methods)

    def calm(self) -> None:
        """End the fault of `answer`, `cut` or `delay`."""
        self._fault = None

    def start(self) -> None:
        self._thread.start()
        self.up()

    def stop(self) -> None:
        self._run(self._down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _up(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, sock=self._socket, limit=MAX_HEAD_BYTES)

    async def _down(self) -> None:
        if self._listener is None:
            return
        self._listener.close()  # closes the socket
        self._listener = None
        self._socket = _bound(self.port)  # bound without listening: connections are refused, and nobody takes the port
        for writer in list(self._connections):
            _reset(writer)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        try:
            await self._exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            _reset(writer)
        finally:
            self._tasks.discard(task)
            self._connections.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer. Each request has a connection of its own, so that its end needs no parsing."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.split(b" ", 2)[:2]
        request = Request(method=method.decode(), path=path.decode())
        self.requests.append(request)
        fault = self._fault if self._fault is not None and self._fault.strikes(request) else None
        if fault is not None:
            self.struck += 1
            if fault.kind == "answer":
                await _answer_error(fault.status, request, reader, writer)
                return
            if fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
        upstream_reader, upstream_writer = await asyncio.open_connection(HOST, self._upstream.port)
        self._connections.add(upstream_writer)
        sending: asyncio.Task[None] | None = None
        try:
            upstream_writer.write(_closing(head))
            sending = asyncio.create_task(_pump(reader, upstream_writer))
            if fault is not None and fault.kind == "cut":
                answer = await _final_answer(upstream_reader, writer)  # the request has been carried out
                writer.write(answer[: fault.after])
                await writer.drain()
                if fault.after:
                    await asyncio.sleep(0.05)  # a reset would overtake what was sent
                _reset(writer)
                return
            await _pump(upstream_reader, writer)
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            self._connections.discard(upstream_writer)
            upstream_writer.close()


@contextmanager
def faulty_proxy(server: S3Server) -> Iterator[FaultyProxy]:
    """A proxy in front of `server`, up and without faults, while the context lasts."""
    proxy = FaultyProxy(server)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def _bound(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((HOST, port))
    return found


def _closing(head: bytes) -> bytes:
    """The head of a request with `Connection: close`, which no signature covers."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(BLOCK_BYTES):
            writer.write(block)
            await writer.drain()


async def _final_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The beginning of the answer itself; `100 Continue`, which asks for the request's body, is passed on."""
    answer = await reader.read(BLOCK_BYTES)
    while answer.startswith(b"HTTP/1.1 100"):
        interim, _, answer = answer.partition(b"\r\n\r\n")
        writer.write(interim + b"\r\n\r\n")
        await writer.drain()
        answer = answer or await reader.read(BLOCK_BYTES)
    return answer


async def _answer_error(
    status: int, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    code = ERROR_CODES.get(status, "InternalError")
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>Please reduce your request rate.'
        "</Message></Error>"
    ).encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + (b"" if request.method == "HEAD" else body))
    await writer.drain()
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while await reader.read(BLOCK_BYTES):
                pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST rather than FIN."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
