"""A gateway on the embedded API, with sidecars that are played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.app import Gateway
from gateway.settings import Settings
from greenthread.kube.aio import AsyncClient
from greenthread.kube.resources import CRDS, ENDPOINT_SLICES, GPUS, MODELS, NAMESPACES
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.storage import Store
from tests.crds import crds
from tests.unit.proxy.harness import Answer, Client, Upstream

SYSTEM = "greenthread-system"


@dataclass
class Sidecar:
    """A pod's front door, played: answers with its own name, or as told."""

    name: str
    upstream: Upstream
    listener: asyncio.Server
    reply: Callable[[bytes, bytes], bytes]

    @property
    def requests(self) -> list[tuple[bytes, bytes]]:
        return self.upstream.requests

    def stop(self) -> None:
        self.listener.close()


def reply_json(value: Any, status: str = "200 OK", extra: str = "") -> bytes:
    body = json.dumps(value).encode()
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode()
        + body
    )


async def play(name: str) -> Sidecar:
    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await upstream.read_request(reader)
            writer.write(sidecar.reply(head, body))

    upstream = Upstream(script)
    listener = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = listener.sockets[0].getsockname()[1]
    sidecar = Sidecar(name, upstream, listener, lambda head, body: reply_json({"pod": name}))
    return sidecar


class Ticking:
    """A clock that stands still between advances."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


@dataclass
class World:
    """What a test needs: objects to write, sidecars to play, and the gateway to ask."""

    client: AsyncClient
    gateway: Gateway
    clock: Ticking
    port: int
    sidecars: list[Sidecar] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    events: int = 0

    async def model(self, name: str, hf: str = "", namespace: str = SYSTEM, **spec: Any) -> None:
        await self.client.create(MODELS, model_object(name, hf, namespace, **spec))
        await self.until(lambda: (namespace, name) in self.gateway.directory.models)

    async def status(self, name: str, **status: Any) -> None:
        await self.client.patch(MODELS, name, {"status": status}, namespace=SYSTEM, subresource="status")

    async def sidecar(self, model: str, pod: str = "", namespace: str = SYSTEM, **conditions: bool) -> Sidecar:
        """A pod of a model, with its EndpointSlice."""
        pod = pod or f"{model}-0"
        sidecar = await play(pod)
        self.sidecars.append(sidecar)
        await self.slice(model, pod, sidecar.upstream.port, namespace, **conditions)
        return sidecar

    async def slice(self, model: str, pod: str, port: int, namespace: str = SYSTEM, **conditions: bool) -> None:
        found = slice_object(model, pod, port, namespace, **conditions)
        before = self.events
        await self.client.create(ENDPOINT_SLICES, found)
        await self.until(lambda: self.events > before)

    async def remove_slice(self, model: str, pod: str = "") -> None:
        before = self.events
        await self.client.delete(ENDPOINT_SLICES, f"{model}-{pod or model + '-0'}", SYSTEM)
        await self.until(lambda: self.events > before)

    async def serving(self, *pods: str) -> None:
        """The pods that serve on the one GPU, from now on."""
        if self.gateway.directory._serving:
            await self.client.delete(GPUS, "n-0", SYSTEM)
        body = {
            "apiVersion": "greenthread.ai/v1alpha1",
            "kind": "GPU",
            "metadata": {"name": "n-0", "namespace": SYSTEM},
        }
        if pods:
            await self.client.create(GPUS, body)
        occupants: list[dict[str, Any]] = []
        for pod in pods:
            lock = {"holder": f"{SYSTEM}/{pod}", "acquiredAt": "2026-01-01T00:00:00Z"}
            occupant = {"namespace": SYSTEM, "podName": pod, "modelName": "m", "reservedMemoryBytes": 1}
            for state, held in (("waking", lock), ("serving", None)):
                now = [*occupants, {**occupant, "state": state}]
                status = {"node": "n", "index": 0, "totalMemoryBytes": 100, "occupants": now, "wakeLock": held}
                await self.client.patch(GPUS, "n-0", {"status": status}, namespace=SYSTEM, subresource="status")
            occupants.append({**occupant, "state": "serving"})
        want = frozenset((SYSTEM, pod) for pod in pods)
        await self.until(lambda: self.gateway.directory._serving == want)

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        return await (await self.connect()).ask(data, method)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def post(self, path: str, value: Any) -> Answer:
        return await self.ask(request(path, value))

    async def get(self, path: str) -> Answer:
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 (what is waited for has no event)
                await asyncio.sleep(0)


def request(path: str, value: Any, content_type: str = "application/json") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def model_object(name: str, hf: str = "", namespace: str = SYSTEM, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    body = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "Model", "metadata": metadata}
    return {**body, "spec": {"modelName": hf or f"test/{name}", **spec}}


def slice_object(model: str, pod: str, port: int, namespace: str = SYSTEM, **conditions: bool) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{model}-{pod}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": model},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["127.0.0.1"],
                "conditions": {"ready": True, "serving": True, "terminating": False, **conditions},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod},
            }
        ],
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }


async def install(client: AsyncClient) -> None:
    for crd in crds():
        await client.create(CRDS, crd)
    for name in (SYSTEM, "other"):
        await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    clock = Ticking()
    api = Api(Store(":memory:"), clock=clock)
    client = AsyncClient(InProcess(api))
    await install(client)
    gateway = Gateway(Settings(port=0, grace=1.0, **options), client)
    port = await gateway.start()
    made = World(client, gateway, clock, port)
    slice_event = gateway.directory.slice_event

    def count(kind: str, obj: Any) -> None:
        slice_event(kind, obj)
        made.events += 1

    gateway._reflectors["endpointslices"]._on_event = count
    await gateway.ready()
    try:
        async with asyncio.timeout(60):  # a signal (pytest-timeout) does not get through uvloop
            yield made
    finally:
        for connection in made.clients:
            connection.close()
        await gateway.stop()
        for sidecar in made.sidecars:
            sidecar.stop()
