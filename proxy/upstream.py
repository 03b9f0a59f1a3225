"""Connections to upstreams: one protocol for each, and the pool that keeps them between requests."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, cast

from proxy.errors import UpstreamError
from proxy.heads import LONGEST, Heads, Seen
from proxy.http1 import ChunkedDecoder, ResponseHead, parse_response_head
from proxy.routes import Upstream
from proxy.settings import Settings

if TYPE_CHECKING:
    from proxy.exchange import Exchange

logger = logging.getLogger(__name__)

MAX_RESPONSE_HEAD = 256 * 1024  # bytes


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream; carries one request at a time, for `exchange`."""

    __slots__ = (
        "_buffer",
        "_decoder",
        "_head",
        "_pool",
        "_remaining",
        "_seen",
        "_settings",
        "exchange",
        "idle_since",
        "reading",
        "transport",
        "upstream",
        "writable",
    )

    def __init__(self, pool: Pool, upstream: Upstream, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self.upstream = upstream
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)  # set before anybody sees the connection
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.writable = True
        self.reading = True
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._seen: Seen[ResponseHead] | None = None  # the head of the last answer
        self._decoder: ChunkedDecoder | None = None
        self._remaining = 0  # bytes of the body to come; -1 = until the connection ends

    # from the exchange

    def start(self, exchange: Exchange, data: bytes) -> None:
        """Take on a request, which begins with `data`."""
        self.exchange = exchange
        self._head = None
        self._decoder = None
        self.transport.write(data)  # the pool gives no connection that is closing

    def write(self, data: bytes) -> None:
        """Send bytes of the request."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def pause_reading(self) -> None:
        """Stop reading the answer: the client is slow."""
        if self.reading and not self.transport.is_closing():
            self.reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once (the engine then aborts the request)."""
        self.exchange = None
        self.transport.abort()

    # from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self._settings.write_buffer_bytes)
        self._pool.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The upstream closed, or the connection broke."""
        self._pool.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if exc is None and self._head is not None and self._remaining < 0:
            exchange.on_response_end()
        else:
            exchange.on_upstream_error(f"it closed the connection ({exc or 'end of stream'})")

    def pause_writing(self) -> None:
        """The upstream reads slowly."""
        self.writable = False
        if self.exchange is not None:
            self.exchange.on_upstream_blocked()

    def resume_writing(self) -> None:
        """The upstream reads again."""
        self.writable = True
        if self.exchange is not None:
            self.exchange.on_upstream_writable()

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        exchange = self.exchange
        if exchange is None:  # an idle upstream has nothing to say
            self.transport.abort()
            return
        try:
            if self._head is not None:
                decoder = self._decoder
                if decoder is not None and decoder.is_one_chunk(data) and not exchange.decode_response:
                    exchange.on_response_data(data)
                else:
                    self._read_body(exchange, data)
                return
            body = self._read_head(exchange, data)
            if body is not None:
                self._read_body(exchange, body)
                if not exchange.finished:
                    exchange.flush()
        except (UpstreamError, ValueError) as e:
            self.abort()
            exchange.on_upstream_error(str(e))

    def _read_head(self, exchange: Exchange, data: bytes) -> bytes | None:
        """Look for the head; tell the exchange. Returns what follows it; None when it is incomplete or unwanted."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        seen = self._seen
        found = seen.match(data) if seen is not None else None
        if seen is not None and found is not None:
            head, (length, end) = seen.parsed, found
            data = data[end:]
        else:
            while True:
                end = data.find(b"\r\n\r\n")
                if end < 0:
                    if len(data) > MAX_RESPONSE_HEAD:
                        raise UpstreamError("its response head is too long")
                    self._buffer = data
                    return None
                seen, length = self._pool.heads.read(data[:end])
                head = seen.parsed
                data = data[end + 4 :]
                if head.status >= 200:
                    break
                if head.status == 101:
                    raise UpstreamError("it switched protocols unasked")
                # 100 Continue and other interim answers end here: the client's 100 is ours
            self._seen = seen if end <= LONGEST else None
        self._head = head
        if exchange.request.method == "HEAD" or head.status in (204, 304):
            self._remaining = 0
        elif length is not None:
            self._remaining = length
        elif head.chunked:
            self._decoder = ChunkedDecoder()
            self._remaining = 1
        else:
            self._remaining = -1
        exchange.on_response_head(head, length, self._remaining)
        return data if self.exchange is exchange else None

    def _read_body(self, exchange: Exchange, data: bytes) -> None:
        decoder = self._decoder
        if decoder is not None:
            if not data:
                return
            if exchange.decode_response:
                pieces: list[bytes] = []
                used = decoder.feed(data, pieces)
                body = b"".join(pieces)
            else:
                used = decoder.feed(data)
                body = data if used == len(data) else data[:used]
            if not decoder.done:
                if body:
                    exchange.on_response_data(body)
                return
            extra = used < len(data)
        elif self._remaining < 0:
            if data:
                exchange.on_response_data(data)
            return
        else:
            length = len(data)
            if length < self._remaining:
                if data:
                    self._remaining -= length
                    exchange.on_response_data(data)
                return
            extra = length > self._remaining
            body = data[: self._remaining] if extra else data
        if body:
            exchange.on_response_data(body)  # may pause this connection, so first
        self.exchange = None
        if self._head is not None and self._head.keep_alive and not extra and exchange.request_sent:
            self._pool.put(self)
        else:
            self.transport.abort()
        exchange.on_response_end()


class Pool:
    """Idle connections by upstream, and new ones. There is no limit to their number."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self._loop = loop
        self._settings = settings
        self._idle: dict[Upstream, list[UpstreamConnection]] = {}
        self.open: set[UpstreamConnection] = set()
        self.heads: Heads[ResponseHead] = Heads(parse_response_head)

    def take(self, upstream: Upstream) -> UpstreamConnection | None:
        """The connection used last, if an idle one is known to be good."""
        idle = self._idle.get(upstream)
        while idle:
            connection = idle.pop()
            fresh = self._loop.time() - connection.idle_since < self._settings.upstream_idle_timeout
            if fresh and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        return None

    async def connect(self, upstream: Upstream) -> UpstreamConnection:
        """A new connection. Raises OSError (also on timeout): nothing was sent."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self, upstream, self._settings), *upstream
                )
        except TimeoutError:
            raise OSError(f"no connection within {self._settings.connect_timeout:g} s") from None
        sock = connection.transport.get_extra_info("socket")
        if sock is not None:  # a node that vanished is noticed within 30 s, in the middle of an answer too
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return connection

    def put(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose request is over."""
        if not connection.reading:
            connection.resume_reading()
        connection.idle_since = self._loop.time()
        idle = self._idle.get(connection.upstream)
        if idle is None:
            idle = self._idle[connection.upstream] = []
        idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection has ended."""
        self.open.discard(connection)
        idle = self._idle.get(connection.upstream)
        if idle is None:
            return
        if connection in idle:
            idle.remove(connection)
        if not idle:
            del self._idle[connection.upstream]

    def sweep(self, now: float) -> None:
        """Close what has been idle too long."""
        oldest = now - self._settings.upstream_idle_timeout
        for upstream, idle in list(self._idle.items()):
            old = 0  # they are in the order of their last use
            while old < len(idle) and idle[old].idle_since <= oldest:
                idle[old].transport.abort()
                old += 1
            del idle[:old]
            if not idle:
                del self._idle[upstream]

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self.open):
            connection.transport.abort()
