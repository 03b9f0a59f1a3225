"""One request and its answer: follows the owner's route, and carries the bytes between client and upstream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from math import ceil
from typing import TYPE_CHECKING, Any

from proxy.errors import HttpError, error_body, reason
from proxy.http1 import RequestHead, ResponseHead
from proxy.routes import Forward, Gate, Handle, Outcome, ReadBody, Refuse, Respond, Route, Upstream

if TYPE_CHECKING:
    from proxy.client import ClientConnection
    from proxy.server import ProxyServer
    from proxy.upstream import UpstreamConnection

logger = logging.getLogger(__name__)

# What becomes of the request's body as it arrives.
_HOLD, _COLLECT, _STREAM, _DISCARD = range(4)

_PIECE_COST = 64  # bytes of memory that a piece of a body takes beside its own

CLIENT_GONE_STATUS = 499  # in metrics only: nobody reads it


class Exchange:
    """One request on its way through the proxy.

    For routers and gates: `request`, `started` (loop time), `upstream` (a gate may set it), `response_headers` (a gate
    may append), `status` (of the answer; 0 while there is none), `tag` (of the Forward), `state` (the gate's own).
    """

    __slots__ = (
        "_chunk_answer",
        "_client",
        "_collect_limit",
        "_collect_then",
        "_collected",
        "_connection",
        "_entered",
        "_gathered",
        "_mode",
        "_out",
        "_pending",
        "_pending_bytes",
        "_replay",
        "_replay_bytes",
        "_route",
        "_server",
        "_task",
        "body_complete",
        "close",
        "decode_response",
        "finished",
        "head_sent",
        "request",
        "response_headers",
        "started",
        "state",
        "status",
        "upstream",
    )

    def __init__(self, server: ProxyServer, client: ClientConnection, request: RequestHead) -> None:
        self.request = request
        self.started = server.loop.time()
        self.upstream: Upstream | None = None
        self.response_headers: list[tuple[str, str]] | None = None
        self.status = 0
        self.state: Any = None
        self.head_sent = False  # the client has seen the beginning of an answer
        self.finished = False
        self.close = not request.keep_alive  # the connection ends with this exchange
        self.body_complete = True
        self.decode_response = False  # the client takes no chunked coding
        self._chunk_answer = False
        self._out = b""  # the answer's head, until something goes with it
        self._server = server
        self._client = client
        self._route: Forward | None = None
        self._mode = _HOLD
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._replay: list[bytes] | None = None
        self._replay_bytes = 0
        self._collected = 0
        self._gathered = bytearray()  # one buffer: a body that comes in tiny pieces must not cost more than its size
        self._collect_limit = 0
        self._collect_then: ReadBody | None = None
        self._connection: UpstreamConnection | None = None
        self._entered: Gate | None = None
        self._task: asyncio.Task[None] | None = None
        server.in_flight += 1

    @property
    def tag(self) -> Any:
        """What the Forward carries for its owner; None for a request that was answered here."""
        return self._route.tag if self._route is not None else None

    @property
    def request_sent(self) -> bool:
        """True when the whole request has been written to the upstream."""
        return self.body_complete and self._mode == _STREAM

    def add_response_header(self, name: str, value: str) -> None:
        """Add a field to the answer's head; of no effect once that is sent."""
        if self.response_headers is None:
            self.response_headers = []
        self.response_headers.append((name, value))

    # The route

    def start(self, body: list[bytes]) -> None:
        """Route the request. `body` is what of its body has arrived."""
        self._pending = body
        self._pending_bytes = sum(map(len, body)) if body else 0
        if self.request.path == "*":  # about the server, not a resource (RFC 9110 §9.3.7)
            self.respond(Respond(204, [("Allow", "GET, HEAD, POST, OPTIONS")]))
            return
        try:
            route = self._server.router.route(self.request)
        except Exception:
            self._broken("The router failed")
            return
        self._dispatch(route)

    def _dispatch(self, route: Route) -> None:
        if isinstance(route, Forward):
            self._route = route
            if route.retry:
                self._replay = []
            self._forward()
        elif isinstance(route, Respond):
            self.respond(route)
        elif isinstance(route, Handle):
            self._drop_body()
            self._run(self._handle(route))
        else:
            self._collect(route)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._task = self._server.loop.create_task(coroutine)

    async def _handle(self, route: Handle) -> None:
        try:
            answer = await route.function(self.request)
        except Refuse as refusal:
            self._task = None
            self._refuse(refusal)
        except Exception:
            self._task = None
            self._broken("A handler failed")
        else:
            self._task = None
            if not self.finished:
                self.respond(answer)

    def _collect(self, route: ReadBody) -> None:
        self._mode = _COLLECT
        self._collect_then = route
        self._collect_limit = min(route.limit, self._server.settings.max_body_bytes)
        if (self.request.content_length or 0) > self._collect_limit:
            self._too_large()
            return
        if not self._count_collected(self._pending_bytes):
            return
        if self.body_complete:
            self._collect_done(route)
        else:
            self._gathered += b"".join(self._pending)
            self._pending = []
            self._client.send_continue()

    def _count_collected(self, size: int) -> bool:
        self._collected += size
        self._server.collected_bytes += size
        if self._collected > self._collect_limit:
            self._too_large()
            return False
        if self._server.collected_bytes > self._server.settings.max_collected_bytes:
            self._refuse(Refuse(503, "Too many large requests at once; try again shortly.", 1.0, "overloaded"))
            return False
        return True

    def _too_large(self) -> None:
        self.fail(413, f"The request body is larger than {self._collect_limit} bytes.", "request_too_large")

    def _collect_done(self, route: ReadBody) -> None:
        body = bytes(self._gathered) if self._gathered else b"".join(self._pending)
        self._gathered = bytearray()
        self._pending = [body] if body else []
        self._pending_bytes = len(body)
        self.request.content_length = len(body)
        self.request.chunked = False
        self._mode = _HOLD
        self._collect_then = None
        try:
            following = route.then(self.request, body)
        except Exception:
            self._broken("The router failed")
            return
        self._dispatch(following)

    # To the upstream

    def _forward(self) -> None:
        route = self._route
        assert route is not None
        self._mode = _HOLD
        if route.upstream is not None:
            self.upstream = route.upstream
        gate = route.gate
        if gate is None:
            self._connect()
            return
        try:
            entered = gate.try_enter(self)
        except Exception:
            self._broken("The gate failed")
            return
        if entered:
            self._entered = gate
            self._connect()
        else:
            self._hold_back()
            self._run(self._enter(gate))

    async def _enter(self, gate: Gate) -> None:
        try:
            await gate.enter(self)
        except Refuse as refusal:
            self._task = None
            self._refuse(refusal)
            return
        except Exception:
            self._task = None
            self._broken("The gate failed")
            return
        self._task = None
        self._entered = gate
        if self.finished:  # the client left in the same moment
            self._leave(Outcome.CLIENT_GONE)
        else:
            self._connect()

    def _connect(self) -> None:
        upstream = self.upstream
        if upstream is None:
            self._leave(Outcome.UNREACHABLE)
            self._broken("The gate named no upstream", trace=False)
            return
        connection = self._server.pool.take(upstream)
        if connection is not None:
            self._send(connection)
        else:
            self._run(self._open(upstream))

    async def _open(self, upstream: Upstream) -> None:
        try:
            connection = await self._server.pool.connect(upstream)
        except OSError as e:
            self._task = None
            if not self.finished:
                self._unreachable(e)
            return
        self._task = None
        if self.finished:
            connection.abort()
        else:
            self._send(connection)

    def _unreachable(self, error: OSError) -> None:
        assert self._route is not None
        self._leave(Outcome.UNREACHABLE)
        if self._route.retry:
            self._forward()
            return
        logger.warning("no connection to upstream %s: %s", self.upstream, error)
        self.fail(502, "The engine behind this address cannot be reached.", "upstream_unreachable")

    def _send(self, connection: UpstreamConnection) -> None:
        """Write the request's head and what has arrived of its body."""
        request, route = self.request, self._route
        assert route is not None
        self._connection = connection
        connection.start(self)
        target = f"{route.path}?{request.query}" if request.query else route.path
        lines = [f"{request.method} {target} HTTP/1.1".encode("ascii"), b"Host: " + request.host, *request.lines]
        if request.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif request.content_length is not None:
            lines.append(b"Content-Length: %d" % request.content_length)
        lines.append(b"Via: 1.1 greenthread" if request.minor else b"Via: 1.0 greenthread")
        for name, value in route.request_headers:
            lines.append(f"{name}: {value}".encode("latin-1"))
        lines.append(b"\r\n")
        head = b"\r\n".join(lines)
        self._mode = _STREAM
        pending, self._pending = self._pending, []
        self._pending_bytes = 0
        if pending:
            body = pending[0] if len(pending) == 1 else b"".join(pending)
            self._remember(body)
            head += self._frame(body)
        if request.chunked and self.body_complete:
            head += b"0\r\n\r\n"
        connection.write(head)
        if not self.body_complete:
            self._client.send_continue()
            if connection.writable:
                self._client.resume_reading()

    def _frame(self, body: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(body), body) if self.request.chunked else body

    def _remember(self, body: bytes) -> None:
        if self._replay is None:
            return
        if self._collected:  # it is held anyway
            self._replay = [body]
            return
        self._replay_bytes += len(body) + _PIECE_COST
        if self._replay_bytes > self._server.settings.replay_bytes:
            self._replay = None
        else:
            self._replay.append(body)

    # From the client

    def on_body(self, data: bytes) -> None:
        """A piece of the request's body."""
        mode = self._mode
        if mode == _STREAM:
            self._remember(data)
            if self._connection is not None:
                self._connection.write(self._frame(data))
        elif mode == _HOLD:
            self._pending.append(data)
            self._pending_bytes += len(data) + _PIECE_COST
            self._hold_back()
        elif mode == _COLLECT and self._count_collected(len(data)):
            self._gathered += data

    def _hold_back(self) -> None:
        if not self.body_complete and self._pending_bytes >= self._server.settings.waiting_body_bytes:
            self._client.pause_reading()

    def on_body_end(self) -> None:
        """The request is complete."""
        self.body_complete = True
        if self._mode == _STREAM:
            if self.request.chunked and self._connection is not None:
                self._connection.write(b"0\r\n\r\n")
        elif self._mode == _COLLECT and self._collect_then is not None:
            self._collect_done(self._collect_then)

    def on_client_gone(self) -> None:
        """The client closed its connection, or was cut off."""
        if self.finished:
            return
        if not self.head_sent:
            self.status = CLIENT_GONE_STATUS
        self._finish(Outcome.CLIENT_GONE)

    def on_client_error(self, error: HttpError) -> None:
        """The rest of the request is malformed, too large or too slow."""
        if self.head_sent:
            self._client.abort()
        else:
            self._leave(Outcome.CLIENT_GONE)
            self.fail(error.status, error.message, error.code)

    def on_client_blocked(self) -> None:
        """The client reads slowly."""
        if self._connection is not None:
            self._connection.pause_reading()

    def on_client_writable(self) -> None:
        """The client reads again."""
        if self._connection is not None:
            self._connection.resume_reading()

    # From the upstream

    def on_upstream_blocked(self) -> None:
        """The upstream reads slowly."""
        if not self.body_complete:
            self._client.pause_reading()

    def on_upstream_writable(self) -> None:
        """The upstream reads again."""
        self._client.resume_reading()

    def on_response_head(self, head: ResponseHead, remaining: int) -> None:
        """The answer begins. `remaining`: bytes of its body, 1 when chunked, -1 until the upstream closes."""
        if head.status == 503 and self._replay is not None and head.get("x-greenthread-not-run") == "true":
            self._run_elsewhere()
            return
        request = self.request
        lines = [head.status_line, *head.lines]
        no_body = request.method == "HEAD" or head.status in (204, 304)
        if head.chunked or (remaining < 0 and not no_body):
            if request.minor:
                if head.status != 204:
                    lines.append(b"Transfer-Encoding: chunked")
                self._chunk_answer = remaining < 0
            else:
                self.decode_response = head.chunked
                self.close = True
        elif head.content_length is not None and head.status != 204:
            lines.append(b"Content-Length: %d" % head.content_length)
        self._make_head(head.status, lines)

    def _make_head(self, status: int, lines: list[bytes]) -> None:
        """Make an answer's head of `lines` and what this proxy adds. It is written with the first of its body."""
        self.status = status
        if self._route is not None:
            for name, value in self._route.response_headers:
                lines.append(f"{name}: {value}".encode("latin-1"))
        if self.response_headers is not None:
            for name, value in self.response_headers:
                lines.append(f"{name}: {value}".encode("latin-1"))
        if self._server.draining or not (self.body_complete or self._client.may_discard()):
            self.close = True
        if self.close:
            lines.append(b"Connection: close")
        elif not self.request.minor:
            lines.append(b"Connection: keep-alive")
        lines.append(b"\r\n")
        self._out = b"\r\n".join(lines)

    def flush(self) -> None:
        """Write the answer's head, if nothing has gone with it yet."""
        if self._out:
            self.head_sent = True
            out, self._out = self._out, b""
            self._client.write(out)

    def on_response_data(self, data: bytes) -> None:
        """A piece of the answer's body, as it goes to the client but for the coding that `_chunk_answer` adds."""
        if self._chunk_answer:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._out:
            self.head_sent = True
            data, self._out = self._out + data, b""
        self._client.write(data)

    def on_response_end(self) -> None:
        """The answer is complete."""
        self._connection = None
        if self._chunk_answer:
            self.on_response_data(b"")
        self.flush()
        self._finish(Outcome.SUCCESS)

    def on_upstream_error(self, why: str) -> None:
        """The upstream broke off."""
        self._connection = None
        logger.warning(
            "upstream %s failed during %s %s: %s", self.upstream, self.request.method, self.request.path, why
        )
        self._leave(Outcome.UPSTREAM_ERROR)
        if not self.head_sent:
            self.fail(502, f"The engine failed while it worked on this request: {why}.", "upstream_error")
            return
        # Only a missing end tells the client; an answer that ends with the connection needs a reset for that.
        self._client.break_off(reset=not self.request.minor)

    def _run_elsewhere(self) -> None:
        """The upstream did not run the request: enter the gate again with what was sent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._pending = self._replay or []
        self._pending_bytes = sum(map(len, self._pending))
        self._replay = []
        self._replay_bytes = 0
        self._leave(Outcome.NOT_RUN)
        self._forward()

    # Answers of our own

    def respond(self, answer: Respond) -> None:
        """Answer here. Ends the exchange."""
        self._drop_body()
        lines = [f"HTTP/1.1 {answer.status} {reason(answer.status)}".encode("ascii"), self._server.date_line()]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in answer.headers]
        body = answer.body
        if answer.status not in (204, 304):
            lines.append(b"Content-Length: %d" % len(body))
        else:
            body = b""
        self._make_head(answer.status, lines)
        if body and self.request.method != "HEAD":
            self._out += body
        self.flush()
        self._finish(Outcome.SUCCESS)

    def fail(
        self, status: int, message: str, code: str | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Answer with an error of the API's shape."""
        if self.finished:
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        body = error_body(self.request.path, status, message, code)
        self.respond(Respond(status, [("Content-Type", "application/json"), *headers], body))

    def _refuse(self, refusal: Refuse) -> None:
        headers = list(refusal.headers)
        if refusal.retry_after is not None:
            headers.append(("Retry-After", str(max(1, ceil(refusal.retry_after)))))
        self.fail(refusal.status, refusal.message, refusal.code, tuple(headers))

    def _broken(self, what: str, *, trace: bool = True) -> None:
        """A fault of ours: log it, tell the client no more than that."""
        logger.error("%s on %s %s", what, self.request.method, self.request.path, exc_info=trace)
        self.fail(500, "The server made a mistake; its log says which.", "internal_error")

    def _drop_body(self) -> None:
        self._mode = _DISCARD
        self._pending = []
        self._pending_bytes = 0
        self._client.resume_reading()

    # The end

    def _leave(self, outcome: Outcome) -> None:
        gate, self._entered = self._entered, None
        if gate is not None:
            try:
                gate.leave(self, outcome)
            except Exception:
                logger.exception("A gate failed on leaving")

    def _finish(self, outcome: Outcome) -> None:
        if self.finished:
            return
        self.finished = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._pending = []
        self._gathered = bytearray()
        self._replay = None
        self._server.collected_bytes -= self._collected
        self._leave(outcome)
        self._server.finished(self)
        self._client.exchange_done(self)
