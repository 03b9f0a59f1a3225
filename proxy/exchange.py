"""One request and its answer: follows the owner's route, and carries the bytes between client and upstream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from greenthread.units import format_duration
from proxy.endpoints import STREAMED_PATHS
from proxy.errors import HttpError, error_body, reason
from proxy.heartbeat import BEAT, MAX_ERROR, NOT_RUN, Heartbeat, asks_for_stream, chunk, error_event, event_of_answer
from proxy.http1 import RequestHead, ResponseHead
from proxy.routes import Forward, Gate, Handle, Headers, Later, Outcome, ReadBody, Refuse, Respond, Route, Upstream
from proxy.terms import NO_TERMS, parse_terms

if TYPE_CHECKING:
    from proxy.client import ClientConnection
    from proxy.server import ProxyServer
    from proxy.upstream import UpstreamConnection

logger = logging.getLogger(__name__)

# What becomes of the request's body as it arrives.
_HOLD, _COLLECT, _STREAM, _DISCARD = range(4)

# How the answer's body goes to the client: as it comes; with the chunked coding added; not at all, since it is to
# become an error event; as it comes, but it may still say that the request was not run; not at all, for it said so.
_AS_IS, _CODED, _TO_EVENT, _WATCHED, _NOT_RUN = range(5)

_NOTHING: list[bytes] = []  # shared by all: never changed

_PIECE_COST = 64  # bytes of memory that a piece of a body takes beside its own

_SUCCESS = Outcome.SUCCESS

CLIENT_GONE_STATUS = 499  # in metrics only: nobody reads it


class Exchange:
    """One request on its way through the proxy.

    For routers and gates: `request`, `terms`, `started` (loop time), `waited` (seconds at gates until now), `upstream`
    (a gate may set it), `response_lines` (header lines, a gate may set them), `status` (of the answer; 0 while there is
    none), `tag` (of the Forward), `state` (the gate's own).
    """

    __slots__ = (
        "_answer_mode",
        "_client",
        "_collect_limit",
        "_collect_then",
        "_collected",
        "_connection",
        "_entered",
        "_gathered",
        "_heartbeat",
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
        "chunked",
        "close",
        "content_length",
        "decode_response",
        "finished",
        "head_sent",
        "request",
        "response_lines",
        "started",
        "state",
        "status",
        "terms",
        "upstream",
        "waited",
    )

    def __init__(
        self, server: ProxyServer, client: ClientConnection, request: RequestHead, content_length: int | None
    ) -> None:
        self.request = request
        self.content_length = content_length  # of the request's body; None when it is chunked, or there is none
        self.chunked = request.chunked
        self.started = server.loop.time()
        self.upstream: Upstream | None = None
        self.terms = NO_TERMS
        self.waited = 0.0
        self.response_lines: Sequence[bytes] | None = None
        self.status = 0
        self.state: Any = None
        self.head_sent = False  # the client has seen the beginning of an answer
        self.finished = False
        self.close = not request.keep_alive  # the connection ends with this exchange
        self.body_complete = True
        self.decode_response = False  # the client takes no chunked coding
        self._answer_mode = _AS_IS
        self._out = b""  # the answer's head, until something goes with it
        self._server = server
        self._client = client
        self._route: Forward | None = None
        self._mode = _HOLD
        self._pending: list[bytes] = _NOTHING
        self._pending_bytes = 0
        self._replay: list[bytes] | None = None
        self._replay_bytes = 0
        self._collected = 0
        self._gathered: bytearray | None = None  # a body that comes in tiny pieces must not cost more than its size
        self._collect_limit = 0
        self._collect_then: ReadBody | None = None
        self._connection: UpstreamConnection | None = None
        self._entered: Gate | None = None
        self._task: asyncio.Task[None] | None = None
        self._heartbeat: Heartbeat | None = None
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
        self.response_lines = [*(self.response_lines or ()), f"{name}: {value}".encode("latin-1")]

    # The route

    def start(self, body: list[bytes], size: int) -> None:
        """Route the request. `body` is what of its body has arrived, `size` bytes."""
        self._pending = body
        self._pending_bytes = size
        if self.request.path == "*":  # about the server, not a resource (RFC 9110 §9.3.7)
            self.respond(Respond(204, [("Allow", "GET, HEAD, POST, OPTIONS")]))
            return
        if self.request.terms is not None:
            try:
                self.terms = parse_terms(self.request.terms)
            except HttpError as error:
                self.fail(error.status, error.message, error.code)
                return
        self._ask_router()

    def _ask_router(self) -> None:
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
        elif isinstance(route, Later):
            self._hold_back()
            self._run(self._later(route))
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
        if (self.content_length or 0) > self._collect_limit:
            self._too_large()
            return
        if not self._count_collected(sum(map(len, self._pending))):
            return
        if self.body_complete:
            self._collect_done(route)
        else:
            self._gathered = bytearray().join(self._pending)
            self._pending = _NOTHING
            self._client.send_continue()
            self._client.resume_reading()

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
        body = bytes(self._gathered) if self._gathered is not None else b"".join(self._pending)
        self._gathered = None
        self._pending = [body] if body else _NOTHING
        self._pending_bytes = len(body)
        self.content_length = len(body)
        self.chunked = False
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
            self._schedule_heartbeat()
            self._run(self._enter(gate))

    async def _passed(self, wait: Awaitable[None]) -> bool:
        """Whether the wait ended well; if not, the client has its answer."""
        began = self._server.loop.time()
        try:
            await wait
            return True
        except Refuse as refusal:
            self._task = None
            self._refuse(refusal)
        except Exception:
            self._task = None
            self._broken("The gate failed")
        finally:
            self.waited += self._server.loop.time() - began
        return False

    async def _later(self, route: Later) -> None:
        if await self._passed(route.wait(self)):
            self._task = None
            if not self.finished:
                self._ask_router()

    async def _enter(self, gate: Gate) -> None:
        if not await self._passed(gate.enter(self)):
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
        built = request.forwarded
        if built is None or built[0] is not route:
            built = request.forwarded = (route, _forwarded_lines(request, route))
        head = built[1]
        if request.terms is not None:
            head += b"".join([line + b"\r\n" for line in self.terms.lines(self.waited)])
        if self.content_length is not None:
            head = b"%bContent-Length: %d\r\n\r\n" % (head, self.content_length)
        elif self.chunked:
            head += b"Transfer-Encoding: chunked\r\n\r\n"
        else:
            head += b"\r\n"
        self._mode = _STREAM
        pending = self._pending
        if pending:
            self._pending = _NOTHING
            self._pending_bytes = 0
            body = pending[0] if len(pending) == 1 else b"".join(pending)
            if self._replay is not None:
                self._remember(body)
            head += self._frame(body) if self.chunked else body
        if self.chunked and self.body_complete:
            head += b"0\r\n\r\n"
        connection.start(self, head)
        if not self.body_complete:
            self._client.send_continue()
            if connection.writable:
                self._client.resume_reading()

    def _frame(self, body: bytes) -> bytes:
        return chunk(body) if self.chunked else body

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
            if self._pending:
                self._pending.append(data)
            else:
                self._pending = [data]
            self._pending_bytes += len(data) + _PIECE_COST
            self._hold_back()
        elif mode == _COLLECT and self._count_collected(len(data)) and self._gathered is not None:
            self._gathered += data

    def _hold_back(self) -> None:
        if self.body_complete or (self._heartbeat is not None and self._heartbeat.reserved):
            return
        if self._pending_bytes >= self._server.settings.waiting_body_bytes:
            self._client.pause_reading()

    def on_body_end(self) -> None:
        """The request is complete."""
        self.body_complete = True
        if self._mode == _STREAM:
            if self.chunked and self._connection is not None:
                self._connection.write(b"0\r\n\r\n")
        elif self._mode == _COLLECT and self._collect_then is not None:
            self._collect_done(self._collect_then)

    def on_client_gone(self) -> None:
        """The client closed its connection, or was cut off."""
        if self.finished:
            return
        if not self.head_sent or not self.status:
            self.status = CLIENT_GONE_STATUS
        self._finish(Outcome.CLIENT_GONE)

    def on_client_error(self, error: HttpError) -> None:
        """The rest of the request is malformed, too large or too slow."""
        if self.head_sent and self.status:
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

    def on_response_head(self, head: ResponseHead, length: int | None, remaining: int) -> None:
        """The answer begins. `length`: its Content-Length. `remaining`: bytes to come; 1 when chunked, -1 until the
        upstream closes."""
        if self._replay is not None:
            if head.status == 503 and head.get("x-greenthread-not-run") == "true":
                self._run_elsewhere()
                return
            if head.heartbeat:
                self._answer_mode = _WATCHED
        if self._heartbeat is not None and self._heartbeat.begun:
            self._continue_stream(head)
            return
        framing = b""
        if length is not None:
            if head.status != 204:
                framing = b"Content-Length: %d\r\n" % length
        elif head.chunked or remaining < 0:
            if self.request.minor:
                if head.status != 204:
                    framing = b"Transfer-Encoding: chunked\r\n"
                if remaining < 0:
                    self._answer_mode = _CODED
            else:
                self.decode_response = head.chunked
                self.close = True
        self._make_head(head.status, head.text, framing)

    def _make_head(self, status: int, text: bytes, framing: bytes = b"") -> None:
        """Make an answer's head of `text` (lines) and what is added here. It is written with the first of its body."""
        self.status = status
        if self._route is not None and self._route.response_headers:
            text += _lines(self._route.response_headers)
        if self.response_lines is not None:
            text += b"\r\n".join(self.response_lines) + b"\r\n"
        if self._server.draining or not (self.body_complete or self._client.may_discard()):
            self.close = True
        if self.close:
            self._out = b"%b%bConnection: close\r\n\r\n" % (text, framing)
        elif self.request.minor:
            self._out = b"%b%b\r\n" % (text, framing)
        else:
            self._out = b"%b%bConnection: keep-alive\r\n\r\n" % (text, framing)

    def flush(self) -> None:
        """Write the answer's head, if nothing has gone with it yet."""
        if self._out:
            self.head_sent = True
            out, self._out = self._out, b""
            self._client.write(out)

    def on_response_data(self, data: bytes) -> None:
        """A piece of the answer's body, as it goes to the client but for what `_answer_mode` says."""
        if self._answer_mode:
            if self._answer_mode == _CODED:
                data = chunk(data)
            elif self._answer_mode == _TO_EVENT:
                self._gather_error(data)
                return
            elif self._answer_mode == _NOT_RUN or self._says_not_run(data):
                return
        if self._out:
            self.head_sent = True
            data, self._out = self._out + data, b""
        self._client.write(data)

    def on_response_end(self) -> None:
        """The answer is complete."""
        self._connection = None
        if self._answer_mode == _AS_IS:
            pass
        elif self._answer_mode == _CODED:
            self.on_response_data(b"")
        elif self._answer_mode == _TO_EVENT and self._heartbeat is not None:
            answer = bytes(self._heartbeat.answer)
            self._end_stream(self.status, event_of_answer(self.request.path, self.status, answer))
            return
        elif self._answer_mode == _NOT_RUN:
            self._run_elsewhere()
            return
        self.flush()
        self._finish(_SUCCESS)

    def on_upstream_error(self, why: str) -> None:
        """The upstream broke off."""
        self._connection = None
        if self._answer_mode == _NOT_RUN:
            self._run_elsewhere()
            return
        logger.warning(
            "upstream %s failed during %s %s: %s", self.upstream, self.request.method, self.request.path, why
        )
        self._leave(Outcome.UPSTREAM_ERROR)
        if not self.head_sent or not self.status or self._answer_mode == _TO_EVENT:
            self.status = 0
            self.fail(502, f"The engine failed while it worked on this request: {why}.", "upstream_error")
            return
        # Only a missing end tells the client; an answer that ends with the connection needs a reset for that.
        self._client.break_off(reset=not self.request.minor)

    def _run_elsewhere(self) -> None:
        """The upstream did not run the request: enter the gate again with what was sent."""
        self._answer_mode = _AS_IS
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        self._pending = self._replay or []
        self._pending_bytes = sum(map(len, self._pending))
        self._replay = []
        self._replay_bytes = 0
        self._leave(Outcome.NOT_RUN)
        self._forward()

    # The heartbeat of a stream that waits

    def _schedule_heartbeat(self) -> None:
        settings, route = self._server.settings, self._route
        if self._heartbeat is None:
            streamed = route is not None and route.path in STREAMED_PATHS and self.request.minor
            if not streamed or not settings.heartbeat or not self.terms.heartbeat:
                return
            self._heartbeat = Heartbeat(self, self._server.loop, settings.heartbeat)
        self._heartbeat.schedule()

    def may_stream(self) -> bool | None:
        """Whether a heartbeat may begin: this is a streaming request, and it waits. None: its body must come first."""
        if self.finished or self._mode != _HOLD or self._entered is not None:
            return False
        if self.body_complete:
            return asks_for_stream(b"".join(self._pending))
        self._read_on()
        return None

    def _read_on(self) -> None:
        """Read the whole body although the request waits, if there is room for it."""
        length, server, heartbeat = self.content_length, self._server, self._heartbeat
        if heartbeat is None or heartbeat.reserved or length is None or length > server.settings.heartbeat_body_bytes:
            return
        if server.collected_bytes + length <= server.settings.max_collected_bytes:
            server.collected_bytes += length
            heartbeat.reserved = length
            self._client.resume_reading()

    def begin_stream(self) -> None:
        """Send the head of a stream, before it is known how the request ends."""
        lines = [
            b"HTTP/1.1 200 OK",
            self._server.date_line(),
            b"Content-Type: text/event-stream; charset=utf-8",
            b"Cache-Control: no-cache",
            b"X-Accel-Buffering: no",
            b"X-GreenThread-Heartbeat: " + format_duration(self._server.settings.heartbeat).encode("ascii"),
            b"",
        ]
        self._make_head(200, b"\r\n".join(lines), b"Transfer-Encoding: chunked\r\n")
        self.status = 0  # the answer itself is still to come

    def beat(self) -> None:
        """Send a comment."""
        out, self._out = self._out + BEAT, b""
        self.head_sent = True
        self._client.write(out)

    def _continue_stream(self, head: ResponseHead) -> None:
        """The answer to a request whose stream has begun already: goes on in it, or becomes its error event."""
        assert self._heartbeat is not None
        self._heartbeat.stop()
        self.status = head.status
        kind = (head.get("content-type") or "").partition(";")[0].strip().lower()
        if head.status != 200 or kind != "text/event-stream" or head.get("content-encoding") is not None:
            self._answer_mode = _TO_EVENT
            self.decode_response = head.chunked
        elif not head.chunked:
            self._answer_mode = _CODED

    def _gather_error(self, data: bytes) -> None:
        if self._heartbeat is not None and len(self._heartbeat.answer) + len(data) <= MAX_ERROR:
            self._heartbeat.answer += data

    def _says_not_run(self, data: bytes) -> bool:
        """True when the upstream says in its stream that it did not run the request: at its end that goes elsewhere."""
        beats, found, _ = data.partition(NOT_RUN)
        if not found or beats.replace(BEAT, b""):
            if data.replace(BEAT, b""):
                self._answer_mode = _AS_IS  # it runs
            return False
        self._answer_mode = _NOT_RUN
        self.status = 0
        if self._out or beats:
            self.head_sent = True
            self._client.write(self._out + beats)
            self._out = b""
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self, self._server.loop, self._server.settings.heartbeat or 10.0)
        self._heartbeat.begun = True
        self._heartbeat.schedule()
        return True

    def _end_stream(self, status: int, event: bytes, before: bytes = b"") -> None:
        """End a stream that has begun by an event. `status`: what it would have been, for metrics."""
        self._drop_body()
        self.status = status
        self._client.write(self._out + before + chunk(event) + b"0\r\n\r\n")
        self._out = b""
        self._finish(_SUCCESS)

    # Answers of our own

    def respond(self, answer: Respond) -> None:
        """Answer here. Ends the exchange."""
        self._drop_body()
        start = b"HTTP/1.1 %d %b\r\n%b\r\n" % (
            answer.status,
            reason(answer.status).encode("ascii"),
            self._server.date_line(),
        )
        body, framing = answer.body, b""
        if answer.status not in (204, 304):
            framing = b"Content-Length: %d\r\n" % len(body)
        else:
            body = b""
        self._make_head(answer.status, start + _lines(answer.headers), framing)
        if body and self.request.method != "HEAD":
            self._out += body
        self.flush()
        self._finish(_SUCCESS)

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
        if self._heartbeat is not None and self._heartbeat.begun:
            not_run = ("X-GreenThread-Not-Run", "true") in headers
            self._end_stream(status, error_event(self.request.path, body), NOT_RUN if not_run else b"")
            return
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
        self._pending = _NOTHING
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
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._pending = _NOTHING
        self._replay = None
        if self._collected:
            self._gathered = None
            self._server.collected_bytes -= self._collected
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._server.collected_bytes -= self._heartbeat.reserved
        if self._entered is not None:
            self._leave(outcome)
        self._server.finished(self)
        self._client.exchange_done(self)


def _forwarded_lines(request: RequestHead, route: Forward) -> bytes:
    """The head for the upstream but for what may differ between two requests with this head: the body's framing, and
    what is left of its terms."""
    target = f"{route.path}?{request.query}" if request.query else route.path
    lines = [f"{request.method} {target} HTTP/1.1".encode("ascii"), b"Host: " + request.host, *request.lines]
    lines.append(b"Via: 1.1 greenthread" if request.minor else b"Via: 1.0 greenthread")
    return b"\r\n".join(lines) + b"\r\n" + _lines(route.request_headers)


def _lines(headers: Headers) -> bytes:
    return b"".join([f"{name}: {value}\r\n".encode("latin-1") for name, value in headers])
