"""The client for programs that serve: asynchronous, on httpx."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol

import httpx

from greenthread.kube import core
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Object, ObjectList, Patch, Request, Response, WatchEvent
from greenthread.kube.errors import Gone, Unreachable, error_from_answer
from greenthread.kube.resources import Resource

# it would write a line for every request into the logs of programs that log at INFO
logging.getLogger("httpx").setLevel(logging.WARNING)

CONNECT_TIMEOUT = 10.0
"""Seconds to reach the server."""


class Transport(Protocol):
    """What carries requests; a simulator may stand in for HTTP. `headers` and `params` in, plain data out.

    Both raise `Unreachable` when there is no whole answer. `timeout` in seconds: of `request` for everything, of
    `stream` the longest silence.
    """

    @property
    def where(self) -> str:
        """Where the credentials come from, for messages."""
        ...

    async def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> Response: ...

    def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], timeout: float
    ) -> AsyncGenerator[bytes | Response, None]:
        """The lines of an answer with status 200; any other answer comes whole, as the only item."""
        ...

    async def close(self) -> None: ...


class HttpTransport:
    """Kubernetes over HTTP/1.1: a connection a watch, as many as are wanted."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        if hasattr(socket, "TCP_KEEPIDLE"):
            # a peer that vanished is noticed after half a minute, whatever the server's bookmarks do
            options += [
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            ]
        proxy = config.proxy()
        transport = httpx.AsyncHTTPTransport(
            verify=config.ssl_context() if config.server.startswith("https:") else False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=30),
            proxy=httpx.Proxy(proxy) if proxy else None,
            trust_env=False,
            socket_options=options,
        )
        self._http = httpx.AsyncClient(base_url=config.server, transport=transport, trust_env=False)
        self._extensions = {"sni_hostname": config.tls_server_name} if config.tls_server_name else {}

    @property
    def where(self) -> str:
        return self._config.where

    async def _signed(self, headers: Mapping[str, str]) -> dict[str, str]:
        # a login may run a program or ask a server; everything else is at most one small file
        if self._config.login is not None:
            authorization = await asyncio.to_thread(self._config.authorization)
        else:
            authorization = self._config.authorization()
        return {**headers, "authorization": authorization} if authorization else dict(headers)

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
                request = self._http.build_request(
                    method,
                    path,
                    params=dict(params) or None,
                    headers=await self._signed(headers),
                    content=body,
                    timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
                    extensions=self._extensions,
                )
                answer = await self._http.send(request, stream=True)
                try:
                    return await _whole(answer)
                finally:
                    await answer.aclose()
        except (httpx.HTTPError, TimeoutError) as error:
            raise core.no_answer(self._config.server, _cause(error)) from error

    async def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], timeout: float
    ) -> AsyncGenerator[bytes | Response, None]:
        request = self._http.build_request(
            method,
            path,
            params=dict(params),
            headers=await self._signed(headers),
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
            extensions=self._extensions,
        )
        try:
            answer = await self._http.send(request, stream=True)
            try:
                if answer.status_code != 200:
                    yield await _whole(answer)
                    return
                lines = core.Lines()
                async for data in answer.aiter_raw():
                    for line in lines.feed(data):
                        yield line
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            raise core.no_answer(self._config.server, _cause(error)) from error

    async def close(self) -> None:
        await self._http.aclose()


async def _whole(answer: httpx.Response) -> Response:
    parts, size = [], 0
    async for data in answer.aiter_raw():
        size += len(data)
        if size > core.MAX_BODY:
            raise Unreachable(f"the API server's answer is larger than {core.MAX_BODY} bytes")
        parts.append(data)
    return Response(answer.status_code, dict(answer.headers), b"".join(parts))


def _cause(error: BaseException) -> BaseException:
    """httpx wraps what the socket said; the deepest error says most, but a timeout is a timeout."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return error
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return error


class AsyncClient:
    """One API server. Every method raises the errors of `greenthread.kube.errors`; writes are sent once."""

    def __init__(self, target: ClusterConfig | Transport, timeout: float = core.REQUEST_TIMEOUT) -> None:
        self._transport: Transport = HttpTransport(target) if isinstance(target, ClusterConfig) else target
        self._timeout = timeout

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        return await self._ask(core.get_request(resource, name, namespace))

    async def list(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        pages = core.Pages(resource, namespace, label_selector, field_selector)
        while True:
            try:
                if pages.add(await self._ask(pages.request())):
                    return pages.result()
            except Gone as error:
                pages.start_again(error)

    async def create(
        self, resource: Resource, obj: Object, namespace: str | None = None, dry_run: bool = False
    ) -> Object:
        return await self._ask(core.create_request(resource, obj, namespace, dry_run))

    async def replace(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        return await self._ask(core.replace_request(resource, obj, subresource))

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Patch,
        namespace: str | None = None,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """A list is sent as a JSON patch, a mapping as a merge patch."""
        return await self._ask(core.patch_request(resource, name, body, namespace, subresource, dry_run))

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str | None = None,
    ) -> Object:
        return await self._ask(core.delete_request(resource, name, namespace, uid, grace_seconds, propagation))

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> AsyncGenerator[WatchEvent, None]:
        """One watch, until the server ends it; `Unreachable` after 90 s of silence. `Reflector` keeps one going."""
        request = core.watch_request(resource, namespace, label_selector, field_selector, resource_version)
        lines = self._transport.stream(
            request.method, request.path, request.params, request.headers(None), core.WATCH_SILENCE
        )
        async with aclosing(lines):
            async for line in lines:
                if isinstance(line, Response):
                    raise error_from_answer(
                        line.status, line.headers, line.body, request.verb, resource, self._transport.where
                    )
                yield core.decode_line(line)

    async def _ask(self, request: Request) -> Object:
        response = await self._transport.request(
            request.method, request.path, request.params, request.headers(None), request.body, self._timeout
        )
        return core.decode(request, response, self._transport.where)
