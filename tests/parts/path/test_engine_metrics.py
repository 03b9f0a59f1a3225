"""The engine's metrics: it listens on loopback, so Prometheus reads them through the sidecar's port."""

from __future__ import annotations

import asyncio

import pytest

from tests.parts.path.world import path


async def ask(port: int, target: str, method: str = "GET") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("awake", [True, False])
async def test_they_are_read_whatever_the_model_does_and_wake_nothing(awake: bool) -> None:
    async with path(awake=awake) as p:
        assert (await ask(p.sidecar_port, "/metrics?target=engine")).startswith(b"HTTP/1.1 200")
        [(head, _)] = p.engine.requests
        assert head.startswith(b"GET /metrics?target=engine HTTP/1.1")
        assert p.door.waiting == 0
        assert p.door.finished == 0


@pytest.mark.parametrize("target", ["/metrics", "/metrics?target=", "/metrics?target=engine&x=/sleep", "/metrics?a"])
async def test_any_other_query_is_the_sidecars_own(target: str) -> None:
    async with path() as p:
        assert b"gthread_sidecar_state" in await ask(p.sidecar_port, target)
        assert p.engine.requests == []


async def test_they_are_not_posted_to_and_not_public() -> None:
    async with path() as p:
        assert (await ask(p.sidecar_port, "/metrics?target=engine", "POST")).startswith(b"HTTP/1.1 405")
        for prefix in ("/llama", "/greenthread-system/llama", ""):
            await ask(p.gateway_port, f"{prefix}/metrics?target=engine")
        assert p.engine.requests == []
