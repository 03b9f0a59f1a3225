"""A controller without kopf, on the embedded API in this process, with a stand-in for the kubelet; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from controller.core import WATCHED, Controller
from controller.settings import PodSettings, Settings
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import NotFound
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS, Resource
from localcluster.api.core import Api
from tests.virtual import VirtualClock

from .builders import NAMESPACE, client_of, new_cluster

SETTINGS = Settings(pods=PodSettings(), identity="one", gateway_url="http://gw")


class World:
    def __init__(self, api: Api, client: AsyncClient, settings: Settings = SETTINGS) -> None:
        self.api, self.client = api, client
        self.line = client_of(api)
        self.controller = Controller(self.line, settings, VirtualClock())
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.controller.prime()
        for resource, selector in WATCHED.items():
            reflector = Reflector(self.line, resource, label_selector=selector, on_event=self._news(resource))
            self.tasks.append(asyncio.create_task(reflector.run()))
            await reflector.synced()
        self.tasks.append(asyncio.create_task(self.controller.run()))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        self.tasks.clear()

    def _news(self, resource: Resource) -> Any:
        return lambda kind, obj: self.controller.observe(resource, kind, obj)

    async def settle(self, seconds: float = 0.5) -> None:
        """Lets everybody finish; virtual seconds."""
        await asyncio.sleep(seconds)

    async def pods(self, name: str = "m", namespace: str = "team") -> list[dict[str, Any]]:
        found = await self.client.list(PODS, namespace, label_selector=f"greenthread.ai/model={name}")
        return sorted(found.items, key=lambda pod: str(pod["metadata"]["name"]))

    async def pod_names(self, name: str = "m", namespace: str = "team") -> list[str]:
        return [pod["metadata"]["name"] for pod in await self.pods(name, namespace)]

    async def model(self, name: str = "m", namespace: str = "team") -> dict[str, Any]:
        return await self.client.get(MODELS, name, namespace)

    async def condition(self, kind: str = "Ready", name: str = "m", namespace: str = "team") -> tuple[str, str, str]:
        status = (await self.model(name, namespace))["status"]
        found = next(c for c in status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"], found["message"]

    async def events(self, namespace: str = "team") -> list[str]:
        found = await self.client.list(EVENTS, namespace)
        return [f"{event['reason']}: {event['message']}" for event in found.items]

    # the kubelet's part

    async def bind(self, pod: dict[str, Any]) -> None:
        """To the node of its selector, as the scheduler does."""
        if pod["spec"].get("nodeName"):
            return
        meta = pod["metadata"]
        target = {"target": {"kind": "Node", "name": pod["spec"]["nodeSelector"]["kubernetes.io/hostname"]}}
        binding = Resource("", "v1", f"pods/{meta['name']}/binding", "Binding")
        await self.client.create(binding, {"metadata": {"name": meta["name"]}} | target, meta["namespace"])

    async def run_pods(self, ready: bool = True, name: str = "m", **status: Any) -> None:
        """Every pod of the model runs; `ready`: its boot is over."""
        for pod in await self.pods(name):
            if pod["metadata"].get("deletionTimestamp"):
                continue
            await self.bind(pod)
            condition = {"type": "Ready", "status": "True" if ready else "False"}
            await self.set_status(pod, phase="Running", conditions=[condition], **status)
        await self.settle()

    async def set_status(self, pod: dict[str, Any], **status: Any) -> None:
        meta = pod["metadata"]
        await self.client.patch(PODS, meta["name"], {"status": status}, meta["namespace"], subresource="status")

    async def end_pods(self, name: str = "m") -> None:
        """Pods that were asked to end have ended."""
        for pod in await self.pods(name):
            if pod["metadata"].get("deletionTimestamp"):
                try:
                    await self.client.delete(
                        PODS, pod["metadata"]["name"], pod["metadata"]["namespace"], grace_seconds=0
                    )
                except NotFound:
                    continue
        await self.settle()

    async def occupy(self, pod: dict[str, Any], gpu: str, state: str, reserved: int, settle: float = 0.5) -> None:
        """As the pod's sidecar would; then `settle` virtual seconds pass."""
        obj = await self.client.get(GPUS, gpu, NAMESPACE)
        meta = pod["metadata"]
        mine = {
            "namespace": meta["namespace"],
            "podName": meta["name"],
            "modelName": meta["labels"]["greenthread.ai/model"],
            "state": state,
            "reservedMemoryBytes": reserved,
        }
        others = [entry for entry in obj["status"]["occupants"] if entry["podName"] != meta["name"]]
        lock = {"holder": f"{meta['namespace']}/{meta['name']}", "acquiredAt": "2026-11-22T14:00:00Z"}
        holds = state in ("converting", "waking")
        body = {"status": {"occupants": [*others, mine], "wakeLock": lock if holds else None}}
        await self.client.patch(GPUS, gpu, body, NAMESPACE, subresource="status")
        await self.settle(settle)


@asynccontextmanager
async def world(nodes: dict[str, int] | None = None, settings: Settings = SETTINGS) -> AsyncIterator[World]:
    api, client = await new_cluster(nodes)
    here = World(api, client, settings)
    await here.start()
    try:
        yield here
    finally:
        await here.stop()
