"""Signs of life for a streaming request that waits: SSE comments, so that no proxy between cuts the connection.

A comment is a line that begins with a colon; every SSE parser skips it (HTML standard, section 9.2.6). Once the first
is sent, the answer is a 200: what goes wrong after that is told by an error event.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

from proxy.errors import error_body, is_anthropic

if TYPE_CHECKING:
    from proxy.answer import Answering

_STREAM = re.compile(rb'"stream"\s*:\s*true')
MAX_ERROR = 64 * 1024  # bytes of an upstream's error that are made into an event


def chunk(data: bytes) -> bytes:
    """`data` in the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


BEAT = chunk(b": waking\n\n")
NOT_RUN = chunk(b": not run\n\n")
"""The pod goes away and has not run the request: a gateway may send it elsewhere, on the same stream."""


def asks_for_stream(body: bytes) -> bool:
    """True for a JSON object with `"stream": true`."""
    if _STREAM.search(body) is None:  # most are not, and need no parsing
        return False
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("stream") is True


def error_event(path: str, body: bytes) -> bytes:
    """An error in JSON as the event that makes SDKs raise, in the shape of the API that `path` belongs to."""
    kind = b"event: error\n" if is_anthropic(path) else b""
    return kind + b"data: " + body + b"\n\n"


def event_of_answer(path: str, status: int, body: bytes) -> bytes:
    """The event for an upstream's answer that is no stream: its own error if it sent one, else the status."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and value.get("error"):
        return error_event(path, json.dumps(value).encode())
    if status < 400:
        return error_event(path, error_body(path, 502, "The engine did not answer with a stream.", "upstream_error"))
    return error_event(path, error_body(path, status, f"The engine answered with status {status}.", "upstream_error"))


class Heartbeat:
    """The heartbeat of one exchange, from when it first waits."""

    __slots__ = ("_exchange", "_interval", "_loop", "_timer", "answer", "begun", "reserved")

    def __init__(self, exchange: Answering, loop: asyncio.AbstractEventLoop, interval: float) -> None:
        """`interval`: seconds."""
        self._exchange, self._loop, self._interval = exchange, loop, interval
        self._timer: asyncio.TimerHandle | None = None
        self.begun = False
        """The head of a stream has been sent."""
        self.reserved = 0
        """Bytes of the server's budget for bodies that this one may take."""
        self.answer = bytearray()
        """Of an upstream that does not answer with a stream."""

    def schedule(self) -> None:
        """Beat after the next silence, if that is not on its way already."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._tick)

    def stop(self) -> None:
        """The wait is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        interval = self._interval
        if not self.begun:
            may = self._exchange.may_stream()
            if may is False:
                return
            if may is None:  # the rest of the body says
                interval = min(interval, 1.0)
            else:
                self.begun = True
                self._exchange.begin_stream()
        if self.begun:
            self._exchange.beat()
        self._timer = self._loop.call_later(interval, self._tick)
