"""One request and its answer: follows the owner's route, and carries the bytes between client and upstream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from proxy.answer import AS_IS, Answering, header_lines
from proxy.endpoints import STREAMED_PATHS
from proxy.errors import HttpError
from proxy.heartbeat import Heartbeat, asks_for_stream, chunk
from proxy.http1 import RequestHead
from proxy.routes import Forward, Gate, Handle, Later, Outcome, ReadBody, Refuse, Respond, Route, Upstream
from proxy.terms import NO_TERMS, parse_terms

if TYPE_CHECKING:
    from proxy.client import ClientConnection
    from proxy.server import ProxyServer
    from proxy.upstream import UpstreamConnection

logger = logging.getLogger(__name__)

# What becomes of the request's body as it arrives.
_HOLD, _COLLECT, _STREAM, _DISCARD = range(4)

_NOTHING: list[bytes] = []  # shared by all: never changed

_PIECE_COST = 64  # bytes of memory that a piece of a body takes beside its own

CLIENT_GONE_STATUS = 499  # in metrics only: nobody reads it


class Exchange(Answering):
    """One request on its way through the proxy.

    For routers and gates: `request`, `terms`, `started` (loop time), `waited` (seconds at gates until now), `upstream`
    (a gate may set it), `response_lines` (header lines, a gate may set them), `status` (of the answer; 0 while there is
    none), `tag` (of the Forward), `state` (the gate's own), `first` and `last` (of the answer, at its end).
    """

    __slots__ = (
        "_collect_limit",
        "_collect_then",
        "_collected",
        "_entered",
        "_gathered",
        "_mode",
        "_pending",
        "_pending_bytes",
        "_replay_bytes",
        "_task",
        "chunked",
        "content_length",
        "started",
        "state",
        "terms",
        "waited",
    )

    def __init__(
        self, server: ProxyServer, client: ClientConnection, request: RequestHead, content_length: int | None
    ) -> None:
        self.request = request
        self.content_length = content_length  # of the request's body; None when it is chunked, or there is none
        self.chunked = request.chunked
        self.started = server.loop.time()
        self.upstream = None
        self.terms = NO_TERMS
        self.waited = 0.0
        self.response_lines = None
        self.status = 0
        self.state: Any = None
        self.head_sent = False
        self.finished = False
        self.close = not request.keep_alive
        self.body_complete = True
        self.decode_response = False
        self.first = None
        self.last = None
        self._answer_mode = AS_IS
        self._out = b""
        self._server = server
        self._client = client
        self._route = None
        self._mode = _HOLD
        self._pending: list[bytes] = _NOTHING
        self._pending_bytes = 0
        self._replay = None
        self._replay_bytes = 0
        self._collected = 0
        self._gathered: bytearray | None = None  # a body that comes in tiny pieces must not cost more than its size
        self._collect_limit = 0
        self._collect_then: ReadBody | None = None
        self._connection = None
        self._entered: Gate | None = None
        self._task: asyncio.Task[None] | None = None
        self._heartbeat = None
        server.in_flight += 1

    @property
    def tag(self) -> Any:
        """What the Forward carries for its owner; None for a request that was answered here."""
        return self._route.tag if self._route is not None else None

    @property
    def api_path(self) -> str | None:
        """The path for the upstream, of a few; None for a request that was answered here."""
        return self._route.path if self._route is not None else None

    @property
    def request_sent(self) -> bool:
        """True when the whole request has been written to the upstream."""
        return self.body_complete and self._mode == _STREAM

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

    async def _passed(self, wait: Callable[[Exchange], Awaitable[None]]) -> bool:
        """Whether the wait ended well; if not, the client has its answer."""
        began = self._server.loop.time()
        try:
            await wait(self)
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
        if await self._passed(route.wait):
            self._task = None
            if not self.finished:
                self._ask_router()

    async def _enter(self, gate: Gate) -> None:
        if not await self._passed(gate.enter):
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

    def _run_elsewhere(self) -> None:
        """The upstream did not run the request: enter the gate again with what was sent."""
        self._answer_mode = AS_IS
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
    return b"\r\n".join(lines) + b"\r\n" + header_lines(route.request_headers)
