from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenthread.kube.aio import AsyncClient
from greenthread.kube.blocking import Client
from greenthread.kube.config import ClusterConfig

from .scripted import Answer, Asked, Server


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """serve(reply) starts a scripted server; all are closed at the end."""
    servers: list[Server] = []

    def start(reply: Callable[[Asked], Answer], tls: Any = None) -> Server:
        servers.append(Server(reply, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Both:
    """Either client behind blocking methods, so that one test states what both promise."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def connect(self, server: str, timeout: float = 5.0, **settings: Any) -> Any:
        config = ClusterConfig(server=server, **settings)
        return Client(config, timeout) if self.kind == "blocking" else _Blocked(AsyncClient(config, timeout))


class _Blocked:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            if inspect.isasyncgen(made):
                return self._iterate(made)
            return self._runner.run(made)

        return call

    def _iterate(self, made: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(anext(made))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(made.aclose())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["blocking", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """connect(url, timeout=…, **settings of ClusterConfig) gives a client; each test runs with both."""
    clients: list[Any] = []

    def make(server: str, **settings: Any) -> Any:
        clients.append(Both(request.param).connect(server, **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
