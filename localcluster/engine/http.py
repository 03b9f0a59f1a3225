"""A small HTTP/1.1 server on asyncio and httptools.

Written for a quick start: six engines begin at once on a small machine, and importing a web framework would cost each
of them a third of a second. One request at a time on a connection, keep-alive, bodies with a length or chunked. When
the client leaves, the handler of its request is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote

import httptools

MAX_BODY_BYTES = 256 * 1024**2
MAX_HEADER_BYTES = 64 * 1024
_MAX_PIPELINED = 32
_HIGH_WATER = 1024**2


@dataclass(slots=True)
class Request:
    """One request. Header names are in lower case; `query` has every value of each name."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""


@dataclass(slots=True)
class Response:
    """An answer: a body, or an iterator of chunks that are sent as they come."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None


class BreakConnection(Exception):
    """Raised by a handler or a stream: the connection is closed at once, in the middle of what was being sent."""


Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as JSON, in the compact form that vLLM sends."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(status, body, headers=headers or {})


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handler: Handler, connections: set[Connection], idle_seconds: float = 5.0) -> None:
        """`idle_seconds`: how long a connection is kept without a request, as vLLM's server does."""
        self._handler = handler
        self._idle_seconds = idle_seconds
        self._idle: asyncio.TimerHandle | None = None
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[Request, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._body = bytearray()

    # Reading

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(_HIGH_WATER)
        self._connections.add(self)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(HTTPStatus.BAD_REQUEST)
        except httptools.HttpParserError as error:
            status = getattr(error.__context__, "status", HTTPStatus.BAD_REQUEST)
            self._refuse(status)

    def on_message_begin(self) -> None:
        self._url, self._headers, self._header_bytes = b"", [], 0
        self._body.clear()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._count_header(len(name) + len(value))

    def on_headers_complete(self) -> None:
        for name, value in self._headers:
            if (
                name.lower() == b"expect"
                and value.lower() == b"100-continue"
                and not self._queue
                and self._task is None
            ):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def on_message_complete(self) -> None:
        url = httptools.parse_url(self._url)
        request = Request(
            method=self._parser.get_method().decode(),
            path=unquote((url.path or b"/").decode("latin-1")),
            query=parse_qs((url.query or b"").decode("latin-1"), keep_blank_values=True),
            headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._headers},
            body=bytes(self._body),
        )
        self._body.clear()
        self._queue.append((request, self._parser.should_keep_alive()))
        if len(self._queue) > _MAX_PIPELINED:
            raise _Refused(HTTPStatus.TOO_MANY_REQUESTS)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._answer_all())

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._writable.set()
        if self._idle is not None:
            self._idle.cancel()
        if self._task is not None:
            self._task.cancel()

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _refuse(self, status: int) -> None:
        phrase = HTTPStatus(status).phrase
        if not self.transport.is_closing():
            head = f"HTTP/1.1 {status:d} {phrase}\r\nconnection: close\r\ncontent-length: {len(phrase)}\r\n\r\n{phrase}"
            self.transport.write(head.encode())
            self.transport.close()

    def _wait_for_request(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self.transport.close)

    # Answering

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def _answer_all(self) -> None:
        try:
            while self._queue:
                request, keep_alive = self._queue.popleft()
                response = await self._handler(request)
                await self._send(response, keep_alive, request.method == "HEAD")
                if not keep_alive:
                    self.transport.close()
                    return
        except BreakConnection:
            self.transport.abort()
        except Exception:
            # A programming error: the client sees a broken connection, the log has the reason.
            self.transport.abort()
            raise
        finally:
            self._task = None
            if not self.transport.is_closing():
                self._wait_for_request()

    async def _send(self, response: Response, keep_alive: bool, head_only: bool) -> None:
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        if response.content_type and (response.body or response.stream):
            lines.append(f"content-type: {response.content_type}")
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        if not keep_alive:
            lines.append("connection: close")
        if response.stream is None:
            lines.append(f"content-length: {len(response.body)}")
            head = "\r\n".join(lines).encode() + b"\r\n\r\n"
            self.transport.write(head if head_only else head + response.body)
            return
        lines.append("transfer-encoding: chunked")
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        async with contextlib.aclosing(response.stream) as stream:
            async for chunk in stream:
                self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await self._writable.wait()
        self.transport.write(b"0\r\n\r\n")

    @property
    def answering(self) -> asyncio.Task[None] | None:
        """The task that answers, while there is something to answer."""
        return self._task

    def close_when_idle(self) -> None:
        """Close now if nothing is being answered."""
        if self._task is None:
            self.transport.close()


class _Refused(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = int(status)
