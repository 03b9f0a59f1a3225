"""The client for programs that serve: asynchronous."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol

from greenthread.kube import core
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Object, ObjectList, Patch, Request, Response, WatchEvent
from greenthread.kube.errors import Gone, error_from_answer
from greenthread.kube.http import HttpTransport
from greenthread.kube.resources import Resource


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


class AsyncClient:
    """One API server. Every method raises the errors of `greenthread.kube.errors`; writes are sent once."""

    def __init__(self, target: ClusterConfig | Transport, timeout: float = core.REQUEST_TIMEOUT) -> None:
        self._transport: Transport = HttpTransport(target) if isinstance(target, ClusterConfig) else target
        self._timeout = timeout
        #: Answers so far, by method, plural of the resource, and status (0: there was none).
        self.answers: dict[tuple[str, str, int], int] = {}

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

    async def log(
        self, namespace: str, pod: str, container: str, follow: bool = False, tail: int = 500
    ) -> AsyncGenerator[str, None]:
        """The lines of a container's log, from the last `tail` on; with `follow` until the container ends.

        Empty lines are left out. `Unreachable` when following meets an hour of silence.
        """
        request = core.log_request(namespace, pod, container, follow, tail)
        accept = {**request.headers(None), "accept": "*/*"}  # it is no object
        lines = self._transport.stream(request.method, request.path, request.params, accept, core.LOG_SILENCE)
        async with aclosing(lines):
            async for line in lines:
                if isinstance(line, Response):
                    raise error_from_answer(
                        line.status, line.headers, line.body, request.verb, request.resource, self._transport.where
                    )
                yield line.decode("utf-8", "replace")

    async def _ask(self, request: Request) -> Object:
        status = 0
        try:
            response = await self._transport.request(
                request.method, request.path, request.params, request.headers(None), request.body, self._timeout
            )
            status = response.status
        finally:
            key = (request.method, request.resource.plural, status)
            self.answers[key] = self.answers.get(key, 0) + 1
        return core.decode(request, response, self._transport.where)
