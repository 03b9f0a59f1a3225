"""A proxy between a raw client and a scripted upstream, all on loopback in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11

from proxy import Exchange, Forward, Gate, Outcome, ProxyServer, RequestHead, Respond, Route, Settings

Script = Callable[["Upstream", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Answer:
    """A response as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool


class Client:
    """A client that sends the bytes it is told to, and reads by h11."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._rest = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        """Read one final response. `complete` is False when the connection ended inside it."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._rest:
            parser.receive_data(self._rest)
            self._rest = b""
        status, headers, body = 0, {}, bytearray()
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                return Answer(status, headers, bytes(body), False)
            if event is h11.NEED_DATA:
                try:
                    parser.receive_data(await self.reader.read(1 << 20))
                except ConnectionResetError:
                    return Answer(status, headers, bytes(body), False)
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {k.decode(): v.decode() for k, v in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._rest = parser.trailing_data[0]
                return Answer(status, headers, bytes(body), True)
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return Answer(status, headers, bytes(body), False)

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        await self.send(data)
        return await self.answer(method)

    async def closed(self) -> bool:
        """True once the server has closed the connection without another byte."""
        try:
            return self._rest == b"" and await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.writer.close()


@dataclass
class Upstream:
    """What reached the upstream: each request as (head, body), and how connections ended."""

    script: Script
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection was closed by the proxy."""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request's head has arrived."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Scripts wait for it where a test wants to act in the middle."""
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.gone.set()
            writer.close()

    async def read_request(self, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        """One request off the connection; IncompleteReadError when it is closed instead."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.reached.set()
        low = head.lower()
        body = b""
        if b"\r\ntransfer-encoding: chunked" in low:
            while True:
                size = int((await reader.readuntil(b"\r\n")).strip(), 16)
                body += (await reader.readexactly(size + 2))[:-2]
                if size == 0:
                    break
        elif b"\r\ncontent-length:" in low:
            length = int(low.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
        self.requests.append((head, body))
        return head, body


async def answer_ok(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every request is answered 200 with a small JSON body, on a kept connection."""
    while True:
        head, _ = await upstream.read_request(reader)
        body = b"" if head.startswith(b"HEAD ") else b'{"ok":true}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n" + body)


def answers(*pieces: bytes, close: bool = False, step: bool = False) -> Script:
    """A script that answers each request with these bytes; `step`: waits for `go` after the first piece."""

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await upstream.read_request(reader)
            for i, piece in enumerate(pieces):
                if i and step:
                    await upstream.go.wait()
                writer.write(piece)
                await writer.drain()
            if close:
                return

    return script


class FakeGate:
    """A gate that is open or shut, and counts."""

    def __init__(self, open_: bool = True) -> None:
        self.open = open_
        self.waiting: list[asyncio.Future[None]] = []
        self.entered = 0
        self.left: list[tuple[Outcome, int]] = []
        self.cancelled = 0
        self.asked = asyncio.Event()
        self.done = asyncio.Event()
        self.on_enter: Callable[[Exchange], None] = lambda exchange: None

    def try_enter(self, exchange: Exchange) -> bool:
        if self.open:
            self.entered += 1
            self.on_enter(exchange)
        return self.open

    async def enter(self, exchange: Exchange) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.asked.set()
        try:
            await future
        except asyncio.CancelledError:
            self.cancelled += 1
            self.done.set()
            raise
        self.entered += 1
        self.on_enter(exchange)

    def leave(self, exchange: Exchange, outcome: Outcome) -> None:
        self.left.append((outcome, exchange.status))
        self.done.set()


class Table:
    """Three paths go to the upstream; /health is answered here; anything else is 404."""

    def __init__(self, port: int | None, gate: Gate | None = None, **options: object) -> None:
        self.port = port
        self.gate = gate
        self.options = options
        self.seen: list[RequestHead] = []

    def route(self, request: RequestHead) -> Route:
        self.seen.append(request)
        if request.path in ("/v1/echo", "/v1/messages", "/v1/chat/completions"):
            upstream = ("127.0.0.1", self.port) if self.port is not None else None
            return Forward(request.path, upstream, self.gate, **self.options)  # type: ignore[arg-type]
        if request.path == "/health":
            return Respond.json({"status": "ok"})
        return Respond.error(request, 404, f"There is no {request.path} here.", "not_found")


@dataclass
class Rig:
    """A running proxy with its upstream."""

    server: ProxyServer
    upstream: Upstream
    table: Table
    port: int
    clients: list[Client] = field(default_factory=list)
    finished: list[Exchange] = field(default_factory=list)

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        """On a connection of its own."""
        return await (await self.client()).ask(data, method)


@asynccontextmanager
async def rig(
    script: Script = answer_ok,
    gate: Gate | None = None,
    settings: Settings | None = None,
    router: Callable[[int], object] | None = None,
    **options: object,
) -> AsyncIterator[Rig]:
    upstream = Upstream(script)
    listener = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = listener.sockets[0].getsockname()[1]
    table = Table(upstream.port, gate, **options)
    finished: list[Exchange] = []
    server = ProxyServer(router(upstream.port) if router else table, settings, finished.append)  # type: ignore[arg-type]
    port = await server.start()
    made = Rig(server, upstream, table, port, finished=finished)
    try:
        async with asyncio.timeout(60):  # a signal (pytest-timeout) does not get through uvloop
            yield made
    finally:
        for client in made.clients:
            client.close()
        await server.stop(grace=1)
        listener.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something that arrives over a socket has had its effect."""
    while not condition():  # noqa: ASYNC110 (what is waited for has no event)
        await asyncio.sleep(0)


async def send_until_blocked(client: Client, total: int) -> int:
    """Send up to `total` bytes until the other side has not taken any for a while; returns how many were written."""
    sent = 0
    while sent < total:
        client.writer.write(b"x" * 65536)
        sent += 65536
        try:
            async with asyncio.timeout(0.2):
                await client.writer.drain()
        except TimeoutError:
            break
    return sent


def post(body: bytes = b'{"a":1}', path: str = "/v1/echo", extra: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path.encode(), len(body), extra, body)


GET = b"GET /v1/echo HTTP/1.1\r\nHost: x\r\n\r\n"
