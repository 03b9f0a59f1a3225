"""The path of a request: the real gateway, the real front door of a sidecar, and an engine that is played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from greenthread.clock import SystemClock
from proxy import ProxyServer, Settings
from sidecar.door import Door
from sidecar.frontdoor import FrontDoor
from sidecar.metrics import Metrics, SidecarState
from tests.parts.gateway.world import World, world
from tests.unit.proxy.harness import Script, Upstream, answer_ok

MODEL = "llama"


@dataclass
class Path:
    """A model `llama`, reached through the gateway or at its sidecar."""

    gateway: World
    door: Door
    engine: Upstream
    sidecar: ProxyServer
    sidecar_port: int

    @property
    def gateway_port(self) -> int:
        return self.gateway.port

    def ports(self) -> dict[str, tuple[int, str]]:
        """Port, and what stands before the API's paths there."""
        return {
            "the sidecar": (self.sidecar_port, ""),
            "the gateway, by model": (self.gateway_port, f"/{MODEL}"),
            "the gateway, by namespace": (self.gateway_port, f"/greenthread-system/{MODEL}"),
            "the gateway": (self.gateway_port, ""),
        }


@asynccontextmanager
async def path(
    script: Script = answer_ok, awake: bool = True, heartbeat: float = 10.0, timeout: float = 60.0
) -> AsyncIterator[Path]:
    """`awake`: the door is open. `heartbeat`, `timeout`: seconds, at the door and at the gateway."""
    engine = Upstream(script)
    listener = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.port = listener.sockets[0].getsockname()[1]
    metrics = Metrics([0])
    door = Door(SystemClock(), metrics, 100, timeout)
    door.reason = lambda: "llama needs 20.0G on n/0, where 1.0G is free"
    if awake:
        door.entered(SidecarState.SERVING)
        door.open()
    front = FrontDoor(
        door,
        metrics,
        ("127.0.0.1", engine.port),
        status=lambda: {"model": MODEL},
        models=list,
        state=lambda: (SidecarState.SERVING, True),
    )
    sidecar = ProxyServer(front, Settings(heartbeat=heartbeat))
    port = await sidecar.start()
    async with world(heartbeat=heartbeat, hold_timeout=timeout) as gateway:
        await gateway.model(MODEL, "meta/Llama-3")
        await gateway.slice(MODEL, f"{MODEL}-0", port)
        yield Path(gateway, door, engine, sidecar, port)
    await sidecar.stop(grace=1)
    listener.close()
