"""The proxy as a server: listens, keeps the time limits, stops gracefully."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

from proxy.client import ClientConnection
from proxy.exchange import Exchange
from proxy.hangup import Hangups
from proxy.heads import Heads
from proxy.http1 import RequestHead, parse_request_head
from proxy.routes import Router
from proxy.settings import Settings
from proxy.tracing import Tracing
from proxy.upstream import Pool

logger = logging.getLogger(__name__)


Exchanges = Callable[["ProxyServer", ClientConnection, RequestHead, int | None], Exchange]
"""What makes an exchange."""


@dataclass(slots=True)
class Counters:
    """Plain numbers for metrics, since start."""

    connections: int = 0
    """Client connections accepted."""
    requests: int = 0
    """Requests finished, however."""
    refused: int = 0
    """Requests that could not be read (malformed, too large a head, too slow, too many connections)."""


class ProxyServer:
    """Serves HTTP/1.1 by the routes of `router`.

    on_finish: called with each finished exchange (for metrics); must be quick and must not raise. tracing: makes spans
    of the POSTs among them; None: nobody does.
    """

    def __init__(
        self,
        router: Router,
        settings: Settings | None = None,
        on_finish: Callable[[Exchange], None] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.router = router
        self.exchange: Exchanges = Exchange if tracing is None else tracing.exchange
        self.settings = settings or Settings()
        self.counters = Counters()
        self.connections: set[ClientConnection] = set()
        self.in_flight = 0
        self.collected_bytes = 0
        self.draining = False
        self.loop = asyncio.get_running_loop()
        self.pool = Pool(self.loop, self.settings)
        self.request_heads: Heads[RequestHead] = Heads(
            lambda head: parse_request_head(head, self.settings.max_header_fields)
        )
        self.hangups = Hangups(self.loop)
        self._on_finish = on_finish
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        self._date = b""
        self._date_second = 0

    @staticmethod
    def _raise_file_limit() -> None:
        """Each request needs two file descriptors; the usual soft limit of 1024 is far below `max_connections`."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            except (ValueError, OSError) as error:  # macOS has a limit below the one it names
                logger.warning("the limit of open files stays at %d: %s", soft, error)

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, reuse_port: bool = False) -> int:
        """Listen; returns the port (a free one for port 0). Raises OSError when the address is taken."""
        self._raise_file_limit()
        self._listener = await self.loop.create_server(
            lambda: ClientConnection(self), host, port, backlog=4096, reuse_port=reuse_port or None
        )
        self._sweep()
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self, grace: float = 30.0) -> None:
        """Stop accepting, let what is in flight finish for at most `grace` seconds, then cut it off."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.close_when_idle(self.loop.time())
        if self.connections:
            self._empty = asyncio.Event()
            try:
                async with asyncio.timeout(grace):
                    await self._empty.wait()
            except TimeoutError:
                logger.warning("%d connections cut off after %g s of grace", len(self.connections), grace)
                for connection in list(self.connections):
                    connection.abort()
                await self._empty.wait()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.pool.close()
        self.hangups.close()

    # from the connections

    def finished(self, exchange: Exchange) -> None:
        """An exchange is over."""
        self.in_flight -= 1
        self.counters.requests += 1
        if self._on_finish is not None:
            self._on_finish(exchange)

    def connection_closed(self) -> None:
        """A client connection has ended."""
        if self._empty is not None and not self.connections:
            self._empty.set()

    def date_line(self) -> bytes:
        """The Date field, formatted once a second."""
        now = int(time.time())
        if now != self._date_second:
            self._date_second = now
            self._date = b"Date: " + email.utils.formatdate(now, usegmt=True).encode("ascii")
        return self._date

    def _sweep(self) -> None:
        self.sweep(self.loop.time())
        self._sweeper = self.loop.call_later(self.settings.sweep_interval, self._sweep)

    def sweep(self, now: float) -> None:
        """Act on the limits of time that have passed by `now` (loop time)."""
        for connection in list(self.connections):
            connection.check(now)
        self.pool.sweep(now)
