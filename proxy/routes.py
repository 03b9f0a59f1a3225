"""What the owner of a proxy decides for each request: a `Router` gives a `Route`, a `Gate` says when."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from proxy.errors import error_body
from proxy.http1 import RequestHead

if TYPE_CHECKING:
    from proxy.exchange import Exchange

Upstream = tuple[str, int]
"""Host (an IP address) and port."""

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer here and now. `headers` must carry Content-Type when there is a body; framing is added."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    @staticmethod
    def json(value: Any, status: int = 200, headers: Headers = ()) -> Respond:
        """A JSON answer."""
        return Respond(status, [("Content-Type", "application/json"), *headers], json.dumps(value).encode())

    @staticmethod
    def error(
        request: RequestHead, status: int, message: str, code: str | None = None, headers: Headers = ()
    ) -> Respond:
        """An error in the shape of the API that `request` speaks."""
        body = error_body(request.path, status, message, code)
        return Respond(status, [("Content-Type", "application/json"), *headers], body)


@dataclass(frozen=True, slots=True)
class Handle:
    """Answer by a coroutine function; cancelled when the client leaves. The request's body is not read."""

    function: Callable[[RequestHead], Awaitable[Respond]]


@dataclass(frozen=True, slots=True)
class ReadBody:
    """Read the whole body first (more than `limit` bytes: 413), then ask `then` for the route: a Forward sends it."""

    limit: int
    then: Callable[[RequestHead, bytes], Route]


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request on and stream the answer back."""

    path: str
    """The path for the upstream, a constant of the owner's table. The request's query is appended."""
    upstream: Upstream | None = None
    """Where to; None: the gate sets `exchange.upstream`."""
    gate: Gate | None = None
    request_headers: Headers = ()
    """Added to what goes to the upstream."""
    response_headers: Headers = ()
    """Added to what goes to the client."""
    retry: bool = False
    """Enter the gate again when the upstream cannot be connected to, or says by `X-GreenThread-Not-Run: true` that the
    request was not run (and its body is still held). The gate ends this by refusing."""
    tag: Any = None
    """The owner's own, for its metrics."""
    keep_ends: bool = False
    """Keep the first piece and the last ones of a successful answer that is not encoded, for its metrics."""


@dataclass(frozen=True, slots=True)
class Later:
    """Wait, then ask the router again. What `wait` raises is that of `Gate.enter`, and so is its cancellation."""

    wait: Callable[[Exchange], Awaitable[None]]


Route = Respond | Handle | ReadBody | Forward | Later


class Router(Protocol):
    """The owner's table of paths."""

    def route(self, request: RequestHead) -> Route:
        """The route of a request; compares `request.path` exactly. Must not block."""
        ...


class Outcome(Enum):
    """How a request that entered a gate ended."""

    SUCCESS = "success"
    """The upstream answered to the end (`exchange.status` says what)."""
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    """The upstream broke off, or answered what is not HTTP."""
    UNREACHABLE = "unreachable"
    """No connection to the upstream: nothing was sent."""
    NOT_RUN = "not_run"
    """The upstream said that it did not run the request (`X-GreenThread-Not-Run`)."""


class Refuse(Exception):
    """Raised by `Gate.enter`: the request is answered with an error.

    status: HTTP status. message: for a person. retry_after: seconds for Retry-After. code: for a program.
    """

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: float | None = None,
        code: str | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.code = code
        self.headers = headers


class Gate(Protocol):
    """Decides when a request may go to the upstream."""

    def try_enter(self, exchange: Exchange) -> bool:
        """True: it may go now (the fast path). Must not let a request pass those that wait."""
        ...

    async def enter(self, exchange: Exchange) -> None:
        """Return when the request may go; raise `Refuse` when it may not.

        Cancelled when the client leaves. When it raises, whatever it raises, the request has not entered.
        """
        ...

    def leave(self, exchange: Exchange, outcome: Outcome) -> None:
        """Called once after each entry, when the request is over."""
        ...
