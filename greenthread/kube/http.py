"""Kubernetes over HTTP/1.1 on plain asyncio. Every claim and watch goes through here, so it is short and quick."""

from __future__ import annotations

import asyncio
import base64
import math
import select
import socket
from collections.abc import AsyncGenerator, Mapping
from typing import cast
from urllib.parse import unquote, urlencode, urlsplit

from greenthread.http1 import MAX_HEAD as MAX_HEAD
from greenthread.http1 import Answer, BadAnswer
from greenthread.kube import core
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Response
from greenthread.kube.errors import Unreachable

CONNECT_TIMEOUT = 10.0
"""Seconds to reach the server, with TLS and a proxy."""
KEEP_IDLE, KEEP_SECONDS = 16, 30.0
"""Connections kept for the next request, and how long; API servers close theirs after 90 s."""
AHEAD = 1024 * 1024
"""Bytes of a stream that may wait for their reader before the server is held up."""


class _Connection(asyncio.Protocol):
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

    def begin(self, method: str, request: bytes, whole: bool) -> Answer:
        """Sends a request. `whole`: `progress` returns only when all of its answer is there."""
        if self.lost is not None:
            raise self.lost
        self._answer, self._whole = Answer(method, core.MAX_BODY if whole else math.inf), whole
        self._wire.write(request)
        return self._answer

    async def progress(self) -> None:
        """Returns when something came, or all of it; raises what ended the connection before."""
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


class HttpTransport:
    """What carries an `AsyncClient`'s requests; see `greenthread.kube.aio.Transport`. A connection a watch."""

    def __init__(self, config: ClusterConfig) -> None:
        """Raises ConfigError for certificates or a proxy that cannot be used."""
        self._config = config
        server, self._proxy = urlsplit(config.server), urlsplit(config.proxy())
        self._tls = config.ssl_context() if server.scheme == "https" else None
        self._host, self._port = server.hostname or "", server.port or (443 if self._tls else 80)
        self._name = config.tls_server_name or self._host
        self._path = server.path.rstrip("/")
        self._authority = server.netloc.rpartition("@")[2]
        self._idle: list[_Connection] = []

    @property
    def where(self) -> str:
        return self._config.where

    async def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> Response:
        try:
            async with asyncio.timeout(timeout):
                request = await self._written(method, path, params, headers, body)
                while True:
                    kept = self._kept()
                    connection = kept or await self._connect()
                    answer = connection.begin(method, request, whole=True)
                    try:
                        await connection.progress()
                    except OSError:
                        # closed while the request was on its way: who only reads may ask again, a write may have run
                        if kept is None or method != "GET" or answer.begun:
                            raise
                        continue
                    except BaseException:
                        connection.abort()
                        raise
                    self._keep(connection, answer)
                    return Response(answer.status, answer.headers, answer.take())
        except OSError as error:
            raise core.no_answer(self._config.server, error) from error

    async def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], timeout: float
    ) -> AsyncGenerator[bytes | Response, None]:
        try:
            request = await self._written(method, path, params, headers, None)
            connection = await self._connect()
            try:
                answer = connection.begin(method, request, whole=False)
                lines, body = core.Lines(), bytearray()
                while not (answer.done and not answer.waiting):
                    async with asyncio.timeout(timeout):
                        await connection.progress()
                    data = answer.take()
                    if answer.status == 200:
                        for line in lines.feed(data):
                            yield line
                    elif len(body) <= core.MAX_BODY:
                        body += data
                    else:
                        raise BadAnswer(f"the answer is larger than {core.MAX_BODY} bytes")
                if answer.status != 200:
                    yield Response(answer.status, answer.headers, bytes(body))
            finally:
                connection.abort()
        except OSError as error:
            raise core.no_answer(self._config.server, error) from error

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _written(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        # a login may run a program or ask a server; everything else is at most one small file
        if self._config.login is not None:
            authorization = await asyncio.to_thread(self._config.authorization)
        else:
            authorization = self._config.authorization()
        query = f"?{urlencode(params)}" if params else ""
        lines = [f"{method} {self._path}{path}{query} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if authorization:
            lines.append(f"authorization: {authorization}")
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + (body or b"")

    def _kept(self) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - KEEP_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.lost is None and connection.idle_since > oldest and not connection.unread():
                return connection
            connection.abort()
        return None

    def _keep(self, connection: _Connection, answer: Answer) -> None:
        if answer.reusable and connection.lost is None and len(self._idle) < KEEP_IDLE:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            if not self._proxy.hostname:
                name = self._name if self._tls else None
                _, connection = await loop.create_connection(
                    _Connection, self._host, self._port, ssl=self._tls, server_hostname=name
                )
                return connection
            wire, connection = await loop.create_connection(_Connection, self._proxy.hostname, self._proxy.port or 80)
            try:
                await self._tunnel(connection)
                if self._tls:
                    tls = await loop.start_tls(wire, connection, self._tls, server_hostname=self._name)
                    connection.connection_made(cast(asyncio.Transport, tls))
            except BaseException:
                connection.abort()
                raise
            return connection

    async def _tunnel(self, connection: _Connection) -> None:
        """Asks the proxy for a connection to the server."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"CONNECT {host}:{self._port} HTTP/1.1", f"host: {host}:{self._port}"]
        if self._proxy.username:
            word = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            lines.append(f"proxy-authorization: Basic {base64.b64encode(word.encode()).decode()}")
        answer = connection.begin("CONNECT", "\r\n".join([*lines, "\r\n"]).encode(), whole=True)
        await connection.progress()
        if not 200 <= answer.status < 300:
            where = f"{self._proxy.hostname}:{self._proxy.port or 80}"
            raise Unreachable(f"the proxy {where} does not let us through to {self._config.server}: {answer.status}")
