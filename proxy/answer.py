"""What a client is told: an upstream's answer as it comes, a stream that waits, or an answer of our own."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from greenthread.units import format_duration
from proxy.errors import error_body, reason
from proxy.heartbeat import BEAT, MAX_ERROR, NOT_RUN, Heartbeat, chunk, error_event, event_of_answer
from proxy.http1 import RequestHead, ResponseHead
from proxy.routes import Forward, Headers, Outcome, Refuse, Respond, Upstream

if TYPE_CHECKING:
    from proxy.client import ClientConnection
    from proxy.server import ProxyServer
    from proxy.upstream import UpstreamConnection

logger = logging.getLogger(__name__)

# How the answer's body goes to the client: as it comes; with the chunked coding added; not at all, since it is to
# become an error event; as it comes, but it may still say that the request was not run; not at all, for it said so.
AS_IS, _CODED, _TO_EVENT, _WATCHED, _NOT_RUN = range(5)

_SUCCESS = Outcome.SUCCESS

_KEPT_PIECES, _KEPT_BYTES = 8, 4096
"""Of an answer whose ends are kept: the last pieces, and the bytes of each."""


class Answering:
    """The half of an exchange that speaks to its client. `Exchange` is the other, and sets what is declared here: one
    call for each request."""

    __slots__ = (
        "_answer_mode",
        "_client",
        "_connection",
        "_heartbeat",
        "_out",
        "_replay",
        "_route",
        "_server",
        "body_complete",
        "close",
        "decode_response",
        "finished",
        "first",
        "head_sent",
        "last",
        "request",
        "response_lines",
        "status",
        "upstream",
    )

    request: RequestHead
    response_lines: Sequence[bytes] | None
    status: int
    upstream: Upstream | None
    body_complete: bool
    finished: bool
    close: bool
    """The connection ends with this exchange."""
    head_sent: bool
    """The client has seen the beginning of an answer."""
    decode_response: bool
    """The client takes no chunked coding."""
    first: bytes | None
    """Where the route keeps the ends of answers: the first piece of this one's body, with its framing. None: there is
    no answer that can be read."""
    last: deque[bytes] | None
    """The last pieces of the same, the end of each; None: the first is all."""
    _answer_mode: int
    _out: bytes
    """The answer's head, until something goes with it."""
    _client: ClientConnection
    _connection: UpstreamConnection | None
    _heartbeat: Heartbeat | None
    _replay: list[bytes] | None
    """The request's body as far as it was sent, while it may still be sent elsewhere."""
    _route: Forward | None
    _server: ProxyServer

    def may_stream(self) -> bool | None:
        """Whether a heartbeat may begin; None: not yet."""
        raise NotImplementedError

    def _run_elsewhere(self) -> None:
        """The upstream did not run the request."""
        raise NotImplementedError

    def _drop_body(self) -> None:
        """What is still to come of the request's body concerns nobody."""
        raise NotImplementedError

    def _leave(self, outcome: Outcome) -> None:
        """Leave the gate, if it was entered."""
        raise NotImplementedError

    def _finish(self, outcome: Outcome) -> None:
        """The exchange is over."""
        raise NotImplementedError

    def add_response_header(self, name: str, value: str) -> None:
        """Add a field to the answer's head; of no effect once that is sent."""
        self.response_lines = [*(self.response_lines or ()), f"{name}: {value}".encode("latin-1")]

    # From the upstream

    def on_response_head(self, head: ResponseHead, length: int | None, remaining: int) -> None:
        """The answer begins. `length`: its Content-Length. `remaining`: bytes to come; 1 when chunked, -1 until the
        upstream closes."""
        if self._replay is not None:
            if head.status == 503 and head.get("x-greenthread-not-run") == "true":
                self._run_elsewhere()
                return
            if head.heartbeat:
                self._answer_mode = _WATCHED
        if head.readable and self._route is not None and self._route.keep_ends:
            self.first, self.last = b"", None
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
            text += header_lines(self._route.response_headers)
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
        if self.first is not None:
            if self.last is not None:
                self.last.append(data if len(data) <= _KEPT_BYTES else data[-_KEPT_BYTES:])
            elif self.first:
                self.last = deque((self.first[-_KEPT_BYTES:], data[-_KEPT_BYTES:]), _KEPT_PIECES)
                self.first = self.first[:_KEPT_BYTES]
            else:
                self.first = data
        if self._out:
            self.head_sent = True
            data, self._out = self._out + data, b""
        self._client.write(data)

    def on_response_end(self) -> None:
        """The answer is complete."""
        self._connection = None
        if self._answer_mode == AS_IS:
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

    # A stream that began before its answer

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
                self._answer_mode = AS_IS  # it runs
                if self.first:
                    self.first, self.last = b"", None  # the answer begins here
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
        self._make_head(answer.status, start + header_lines(answer.headers), framing)
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


def header_lines(headers: Headers) -> bytes:
    return b"".join([f"{name}: {value}\r\n".encode("latin-1") for name, value in headers])
