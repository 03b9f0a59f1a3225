"""The API without a socket: a transport for `greenthread.kube.aio.AsyncClient` that calls the core directly.

Benchmarks with hundreds of sidecars, the simulator and unit tests use it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from greenthread.kube.core import Response as ClientResponse

from .core import Api
from .errors import StatusError
from .messages import Request, Response, status_response
from .watches import Watch


class InProcess:
    """One client's way to an `Api` of the same process and loop. A call gives the loop a turn, as a network would."""

    def __init__(self, api: Api, token: str | None = None) -> None:
        self._api = api
        self._authorization = {"authorization": f"Bearer {token}"} if token else {}
        #: Requests made, by method and plural: "PATCH gpus"; "WATCH gpus" for watches.
        self.requests: dict[str, int] = {}

    @property
    def where(self) -> str:
        return "this process"

    async def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> ClientResponse:
        await asyncio.sleep(0)
        self._count(method, path)
        answer = self._api.handle(Request(method, path, params, {**headers, **self._authorization}, body or b""))
        assert isinstance(answer, Response), "only plain requests are made by request()"
        return _plain(answer)

    async def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], timeout: float
    ) -> AsyncGenerator[bytes | ClientResponse, None]:
        await asyncio.sleep(0)
        self._count("WATCH", path)
        answer = self._api.handle(Request(method, path, params, {**headers, **self._authorization}))
        if not isinstance(answer, Watch):
            assert isinstance(answer, Response)
            yield _plain(answer)
            return
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        try:
            answer.start(lines.put_nowait)
        except StatusError as error:
            yield _plain(status_response(error))
            return
        try:
            while (line := await lines.get()) is not None:
                yield line.rstrip(b"\n")
        finally:
            answer.stop()

    async def close(self) -> None:
        """Nothing is held."""

    def _count(self, method: str, path: str) -> None:
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        kind = f"{method} {parts[2] if len(parts) > 2 and parts[0] == 'namespaces' else parts[0]}"
        self.requests[kind] = self.requests.get(kind, 0) + 1


def _plain(answer: Response) -> ClientResponse:
    return ClientResponse(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.body)
