"""Kubernetes over HTTP/1.1 on plain asyncio. Every claim and watch goes through here, so it is short and quick."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping
from typing import cast
from urllib.parse import unquote, urlencode, urlsplit

from greenthread.http1 import Answer, BadAnswer
from greenthread.http_async import Connection, request_bytes
from greenthread.kube import core
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Response
from greenthread.kube.errors import Unreachable

CONNECT_TIMEOUT = 10.0
"""Seconds to reach the server, with TLS and a proxy."""
KEEP_IDLE, KEEP_SECONDS = 16, 30.0
"""Connections kept for the next request, and how long; API servers close theirs after 90 s."""


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
        self._idle: list[Connection] = []

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
                    answer = connection.begin(method, request, core.MAX_BODY)
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
                answer = connection.begin(method, request, None)
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
        if authorization:
            headers = {**headers, "authorization": authorization}
        return request_bytes(method, f"{self._path}{path}{query}", self._authority, headers, body)

    def _kept(self) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - KEEP_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.lost is None and connection.idle_since > oldest and not connection.unread():
                return connection
            connection.abort()
        return None

    def _keep(self, connection: Connection, answer: Answer) -> None:
        if answer.reusable and connection.lost is None and len(self._idle) < KEEP_IDLE:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            if not self._proxy.hostname:
                name = self._name if self._tls else None
                _, connection = await loop.create_connection(
                    Connection, self._host, self._port, ssl=self._tls, server_hostname=name
                )
                return connection
            wire, connection = await loop.create_connection(Connection, self._proxy.hostname, self._proxy.port or 80)
            try:
                await self._tunnel(connection)
                if self._tls:
                    tls = await loop.start_tls(wire, connection, self._tls, server_hostname=self._name)
                    connection.connection_made(cast(asyncio.Transport, tls))
            except BaseException:
                connection.abort()
                raise
            return connection

    async def _tunnel(self, connection: Connection) -> None:
        """Asks the proxy for a connection to the server."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"CONNECT {host}:{self._port} HTTP/1.1", f"host: {host}:{self._port}"]
        if self._proxy.username:
            word = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            lines.append(f"proxy-authorization: Basic {base64.b64encode(word.encode()).decode()}")
        answer = connection.begin("CONNECT", "\r\n".join([*lines, "\r\n"]).encode(), core.MAX_BODY)
        await connection.progress()
        if not 200 <= answer.status < 300:
            where = f"{self._proxy.hostname}:{self._proxy.port or 80}"
            raise Unreachable(f"the proxy {where} does not let us through to {self._config.server}: {answer.status}")
