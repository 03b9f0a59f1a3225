"""The side towards the client: reads requests off a connection one by one, and writes their answers in order."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from typing import TYPE_CHECKING, cast

from proxy.errors import HttpError, error_body, reason
from proxy.heads import LONGEST, Seen
from proxy.http1 import ChunkedDecoder, RequestHead

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.server import ProxyServer


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body_bytes",
        "_body_left",
        "_body_open",
        "_buffer",
        "_closing",
        "_continue_due",
        "_deadline",
        "_decoder",
        "_exchange",
        "_fd",
        "_head_begun",
        "_parsing",
        "_reading",
        "_seen",
        "_server",
        "_settings",
        "_stall_deadline",
        "_transport",
        "_window_bytes",
        "_writable",
    )

    def __init__(self, server: ProxyServer) -> None:
        self._server = server
        self._settings = server.settings
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # set before any other callback
        self._fd = -1
        self._exchange: Exchange | None = None
        self._buffer = b""  # of the next request
        self._seen: Seen[RequestHead] | None = None  # the head of the last request
        self._head_begun = False
        self._parsing = False
        self._closing = False  # the last answer is written; what still comes is dropped
        self._reading = True
        self._writable = True
        # the present request's body
        self._body_open = False  # more of it is to come
        self._body_left = 0  # bytes, when the length is known
        self._body_bytes = 0  # seen so far
        self._window_bytes = 0  # of them since the last check of the sender's speed
        self._decoder: ChunkedDecoder | None = None
        self._continue_due = False
        # limits of time, in loop time
        self._deadline = math.inf
        self._stall_deadline = math.inf

    # from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._settings.write_buffer_bytes)
        server = self._server
        server.connections.add(self)
        server.counters.connections += 1
        self._deadline = server.loop.time() + self._settings.idle_timeout
        if len(server.connections) > self._settings.max_connections:
            self.refuse(HttpError(503, "Too many connections; try again shortly.", "overloaded"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._server.connections.discard(self)
        self._unwatch()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_client_gone()
        self._server.connection_closed()

    def eof_received(self) -> bool:
        """The client sends no more: it has left (as vLLM and nginx see it too)."""
        return False

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._writable = False
        self._stall_deadline = self._server.loop.time() + self._settings.stall_timeout
        if self._exchange is not None:
            self._exchange.on_client_blocked()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._writable = True
        self._stall_deadline = math.inf
        if self._exchange is not None:
            self._exchange.on_client_writable()
        elif not self._parsing and not self._closing and not self._body_open:
            self._next()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if (
            self._exchange is None
            and not (self._buffer or self._body_open or self._closing or self._parsing)
            and self._writable
            and self._start_whole(data)
        ):
            return
        if self._closing:
            return
        if self._body_open:
            data = self._read_body(data)
            if not data or self._closing:
                return
        if self._exchange is not None or self._parsing or not self._writable or self._body_open:
            self._buffer += data
            if len(self._buffer) > self._settings.max_head_bytes:
                self.pause_reading()
            return
        self._parse(data)

    # from the exchange

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def send_continue(self) -> None:
        """Tell a client that waits for it to send the body (RFC 9110 §10.1.1)."""
        if self._continue_due:
            self._continue_due = False
            self._start_window()
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause_reading(self) -> None:
        """Stop reading; that the client leaves is still noticed."""
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()
            if self._fd < 0:
                sock = self._transport.get_extra_info("socket")
                self._fd = sock.fileno() if sock is not None else -1
            self._server.hangups.watch(self._fd, self)

    def resume_reading(self) -> None:
        """Read on."""
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._unwatch()
            self._start_window()
            self._transport.resume_reading()

    def may_discard(self) -> bool:
        """True if what is left of the body is small enough to be read and dropped, to keep the connection."""
        return not self._continue_due and self._decoder is None and self._body_left <= self._settings.discard_bytes

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def close_when_idle(self, now: float) -> None:
        """The server stops. A connection that was used just now may have a request on its way: a peer of our own kind
        would see it fail and could not know that it was not run. So it stays open until such a peer has dropped it."""
        if self._exchange is None and not (self._body_open or self._closing or self._head_begun):
            settings = self._settings
            unused_since = self._deadline - settings.idle_timeout
            self._deadline = min(self._deadline, unused_since + settings.upstream_idle_timeout + 0.5)
            self.check(now)

    def break_off(self, *, reset: bool) -> None:
        """End an answer before its end, so that the client can tell."""
        if reset:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._closing = True
            self._deadline = self._server.loop.time() + self._settings.stall_timeout
            self._transport.close()

    def hung_up(self) -> None:
        """The client left while nothing was read from it."""
        self._transport.abort()

    def exchange_done(self, exchange: Exchange) -> None:
        """The answer is written: go on with the next request, or end the connection."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        if self._transport.is_closing():
            return
        if exchange.close:
            if exchange.request.keep_alive or self._body_open or self._buffer:
                self._finish_connection()
            else:  # the client wanted it so and sends no more
                self._closing = True
                self._transport.close()
        elif self._body_open:
            self.resume_reading()  # the rest of the body is dropped
        elif not self._parsing:
            self._next()

    # requests

    def _next(self) -> None:
        if not self._reading:
            self.resume_reading()
        self._deadline = self._server.loop.time() + self._settings.idle_timeout
        if self._buffer:
            data, self._buffer = self._buffer, b""
            self._parse(data)
        elif self._server.draining:
            self._transport.close()

    def _start_whole(self, data: bytes) -> bool:
        """The common case: start the request that `data` is, if it is just one, whole, with a head as the last one."""
        seen = self._seen
        found = seen.match(data) if seen is not None else None
        if seen is None or found is None:
            return False
        length, end = found
        size = len(data) - end
        if size != (length or 0) or seen.parsed.chunked or size > self._settings.max_body_bytes:
            return False
        self._exchange = exchange = self._server.exchange(self._server, self, seen.parsed, length)
        exchange.start([data[end:]] if size else [], size)
        return True

    def _parse(self, data: bytes) -> None:
        """Start the requests in `data`, until one is incomplete or has to wait for its answer."""
        self._parsing = True
        try:
            while data and not self._closing:
                if self._exchange is not None or self._body_open or not self._writable:
                    self._buffer = data + self._buffer
                    break
                if self._buffer:
                    data = self._buffer + data
                    self._buffer = b""
                rest = self._parse_one(data)
                if rest is None:
                    break
                data = rest
        except HttpError as e:
            self.refuse(e)
        finally:
            self._parsing = False
        if self._exchange is None and not self._closing and not self._body_open and not self._buffer:
            self._deadline = self._server.loop.time() + self._settings.idle_timeout
            if self._server.draining:
                self._transport.close()

    def _parse_one(self, data: bytes) -> bytes | None:
        """Start the request that `data` begins with. Returns what follows; None when its head is incomplete."""
        if data[:2] == b"\r\n":  # RFC 9112 §2.2: one empty line before a request is ignored
            data = data[2:]
        limit = self._settings.max_head_bytes
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > limit:
            if len(data) > limit:
                raise HttpError(431, f"The request head is larger than {limit} bytes.")
            if data.count(b"\n") != data.count(b"\r\n"):
                raise HttpError(400, "The lines of a request head must end in CRLF.")
            if data and data[0] < 0x21 and data != b"\r":
                raise HttpError(400, "This is not an HTTP request (is it TLS? This port speaks plain HTTP).")
            if data and not self._head_begun:
                self._head_begun = True
                self._deadline = self._server.loop.time() + self._settings.head_timeout
            self._buffer = data
            return None
        self._head_begun = False
        seen, length = self._server.request_heads.read(data[:end])
        self._seen = seen if end <= LONGEST else None
        return self._start(seen.parsed, length, data[end + 4 :])

    def _start(self, request: RequestHead, length: int | None, data: bytes) -> bytes:
        """Begin an exchange with what is there of its body. Returns what follows the body."""
        body: list[bytes] = []
        self._body_bytes = 0
        self._window_bytes = 0
        self._decoder = None
        exchange = self._server.exchange(self._server, self, request, length)
        if request.chunked:
            self._decoder = ChunkedDecoder()
            self._body_open = True
        elif length:
            if length > self._settings.max_body_bytes:
                self._exchange = exchange
                self._body_left = length
                self._body_open = True
                exchange.body_complete = False
                exchange.close = True
                exchange.fail(
                    413, f"The request body is larger than {self._settings.max_body_bytes} bytes.", "request_too_large"
                )
                return b""
            self._body_left = length
            self._body_open = True
        if self._body_open:
            self._continue_due = request.expect_continue and not data
            if data:
                try:
                    data = self._take_body(data, body)
                except HttpError as e:
                    self._exchange = exchange
                    exchange.close = True
                    exchange.fail(e.status, e.message, e.code)
                    return b""
            if self._body_open:
                exchange.body_complete = False
                self._start_window()
        self._exchange = exchange
        exchange.start(body, self._body_bytes)
        return data

    def _take_body(self, data: bytes, pieces: list[bytes]) -> bytes:
        """Move what belongs to the body from `data` to `pieces`; returns the rest."""
        if self._decoder is None:
            piece, rest = data[: self._body_left], data[self._body_left :]
            self._body_left -= len(piece)
            pieces.append(piece)
            self._body_bytes += len(piece)
            self._body_open = self._body_left > 0
        else:
            before = len(pieces)
            try:
                used = self._decoder.feed(data, pieces)
            except ValueError as e:
                raise HttpError(400, f"The request body is malformed: {e}.") from None
            rest = data[used:]
            self._body_bytes += sum(map(len, pieces[before:]))
            self._body_open = not self._decoder.done
            if self._body_bytes > self._settings.max_body_bytes:
                raise HttpError(
                    413, f"The request body is larger than {self._settings.max_body_bytes} bytes.", "request_too_large"
                )
        return rest

    def _read_body(self, data: bytes) -> bytes:
        """More of a body. Returns what follows it."""
        self._continue_due = False
        self._window_bytes += len(data)
        pieces: list[bytes] = []
        exchange = self._exchange
        try:
            data = self._take_body(data, pieces)
        except HttpError as e:
            if exchange is not None:
                exchange.close = True
                exchange.on_client_error(e)
            else:
                self._finish_connection()
            return b""
        if exchange is not None:
            if pieces:
                exchange.on_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if not self._body_open:
                exchange.on_body_end()
        elif not self._body_open:  # an answered request's rest has been dropped
            self._next()
        return data

    def _start_window(self) -> None:
        self._window_bytes = 0
        if self._body_open:
            self._deadline = self._server.loop.time() + self._settings.body_timeout

    # ends

    def refuse(self, error: HttpError) -> None:
        """Answer a request that could not be read, and end the connection."""
        body = error_body("", error.status, error.message, error.code)
        self._server.counters.refused += 1
        lines = [
            b"HTTP/1.1 %d %b" % (error.status, reason(error.status).encode()),
            self._server.date_line(),
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(body),
            b"Connection: close",
            b"\r\n",
        ]
        self._transport.write(b"\r\n".join(lines) + body)
        self._finish_connection()

    def _finish_connection(self) -> None:
        """Close, but read (and drop) for a while what the client still sends: else a reset would destroy the answer."""
        self._closing = True
        self._buffer = b""
        self.resume_reading()
        self._deadline = self._server.loop.time() + self._settings.linger_timeout
        if not self._transport.is_closing():
            self._transport.write_eof()

    def _unwatch(self) -> None:
        if self._fd >= 0:
            self._server.hangups.unwatch(self._fd)

    def check(self, now: float) -> None:
        """Look at the limits of time."""
        if now >= self._stall_deadline:
            self._transport.abort()
            return
        if now < self._deadline:
            return
        settings = self._settings
        if self._closing:
            # The answer may still be on its way to a slow reader: that has its own limit.
            if self._transport.get_write_buffer_size() == 0:
                self._transport.abort()
            elif self._stall_deadline == math.inf:
                self._stall_deadline = now + settings.stall_timeout
        elif self._body_open:
            if not self._reading or self._continue_due:
                return
            if self._window_bytes >= settings.min_body_rate * settings.body_timeout:
                self._start_window()
                return
            slow = HttpError(408, f"The request body came too slowly (less than {settings.min_body_rate:g} bytes/s).")
            if self._exchange is not None:
                self._exchange.close = True
                self._exchange.on_client_error(slow)
            else:
                self._transport.abort()
        elif self._exchange is None:
            if self._buffer:
                self.refuse(HttpError(408, f"The request head did not arrive within {settings.head_timeout:g} s."))
            else:
                self._transport.close()
