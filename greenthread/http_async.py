"""HTTP/1.1 as a client on plain asyncio: one connection, and one request on a connection of its own."""

from __future__ import annotations

import asyncio
import math
import select
import socket
from collections.abc import Mapping
from typing import NamedTuple, cast

from greenthread.http1 import Answer, BadAnswer

AHEAD = 1024 * 1024
"""Bytes of a stream that may wait for their reader before the server is held up."""


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.lost: BaseException | None = None
        """Why it is of no use any more."""
        self._wire: asyncio.Transport
        self._answer: Answer | None = None
        self._whole = True
        self._news: asyncio.Future[None] | None = None
        self._held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        wire: socket.socket | None = transport.get_extra_info("socket")
        if wire is not None and wire.family in (socket.AF_INET, socket.AF_INET6):
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                # a peer that vanished is noticed after half a minute, whatever the server's bookmarks do
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def begin(self, method: str, request: bytes, limit: float | None) -> Answer:
        """Sends a request. `limit`: most bytes of its answer's body, and `progress` returns only when all of it is
        there; None: it is a stream, which is taken as it comes."""
        if self.lost is not None:
            raise self.lost
        self._whole = limit is not None
        self._answer = Answer(method, math.inf if limit is None else limit)
        self._wire.write(request)
        return self._answer

    async def progress(self) -> None:
        """Returns when something came, or all of it; OSError: what ended the connection before."""
        answer = self._answer
        assert answer is not None
        if self._held:
            self._held = False
            self._wire.resume_reading()
        if answer.done or (not self._whole and answer.waiting):
            return
        if self.lost is not None:
            raise self.lost
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.done:
            self._fail(BadAnswer("the server sent something that nobody asked for"))
            return
        try:
            answer.feed(data)
        except BadAnswer as error:
            self._fail(error)
            return
        if not self._whole and answer.waiting > AHEAD:
            self._held = True
            self._wire.pause_reading()
        if answer.done or not self._whole:
            self._tell()

    def eof_received(self) -> bool:
        self.connection_lost(None)
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        if self.lost is not None:
            return
        try:
            if self._answer is not None and error is None:
                self._answer.end()
        except BadAnswer as bad:
            error = bad
        self.lost = error or ConnectionResetError("the server closed the connection")
        self._tell()

    def _fail(self, error: BadAnswer) -> None:
        self.lost = self.lost or error
        self.abort()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is None or news.done():
            return
        if self.lost is not None and self._answer is not None and not self._answer.done:
            news.set_exception(self.lost)
        else:
            news.set_result(None)

    def unread(self) -> bool:
        """Whether something came while it was idle, as the server's close does: a write on it could be lost."""
        wire: socket.socket = self._wire.get_extra_info("socket")
        poll = select.poll()
        poll.register(wire.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def abort(self) -> None:
        self._wire.abort()

    def close(self) -> None:
        self._wire.close()


def request_bytes(
    method: str, target: str, authority: str, headers: Mapping[str, str], body: bytes | None = None
) -> bytes:
    """One request as it is sent. `target`: path and query; the host and the body's length are added."""
    lines = [
        f"{method} {target} HTTP/1.1",
        f"host: {authority}",
        *(f"{name}: {text}" for name, text in headers.items()),
    ]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + (body or b"")


async def ask_once(host: str, port: int, method: str, target: str, body: bytes | None, limit: int) -> Reply:
    """One request over plain HTTP (a body is JSON), on a connection of its own; cancelled, the connection is closed.

    OSError when there is no whole answer with a body of at most `limit` bytes; the request may have run then.
    """
    headers = {"connection": "close"}
    if body:
        headers["content-type"] = "application/json"
    elif method != "GET":
        body = b""  # says that nothing follows
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    try:
        request = request_bytes(method, target, f"{host}:{port}", headers, body)
        answer = connection.begin(method, request, limit)
        await connection.progress()
        return Reply(answer.status, answer.take())
    finally:
        connection.abort()
