"""The node agent: looks at the devices, keeps their GPU objects true, and cleans up after pods that are gone.

All writes to GPU objects are in `GpuWriter`; what to write is decided in `memory` and `cleanup`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from controller.agent.cleanup import Life, clean, sidecar_life, stands_in_the_way
from controller.agent.memory import Wanted, patch_of, pause_before_write, used_by_pods, wanted_status
from controller.agent.nvml import DriverError, Fault, Reading
from controller.agent.processes import Owners
from controller.agent.settings import Settings
from controller.metrics import AgentMetrics
from controller.pods import SIDECAR
from greenthread.gpu import Gpu, PodRef, gpu_name
from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Object
from greenthread.kube.errors import AlreadyExists, Conflict, Invalid, KubeError, NotFound
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import GPUS, NODES, PODS, key_of
from greenthread.names import ANNOTATION_FAULT, LABEL_MODEL, LABEL_NODE

log = logging.getLogger(__name__)

T = TypeVar("T")


def node_label(node: str) -> str:
    """A node's name as a label's value, which has at most 63 characters."""
    return node[:63].rstrip("-.")


class GpuWriter:
    """Writes this node's GPU objects. Every write rests on the version that was read; refused means: look again."""

    def __init__(self, client: AsyncClient, gpus: Reflector, settings: Settings, metrics: AgentMetrics) -> None:
        self._client, self._gpus, self._settings, self._metrics = client, gpus, settings, metrics
        self._no_node = False

    async def create(self, index: int, status: Mapping[str, Any]) -> None:
        """Makes the object of a device, and its status as a whole."""
        name = gpu_name(self._settings.node, index)
        try:
            node = await self._client.get(NODES, self._settings.node)
        except NotFound:
            # an object without its node as owner would stay for ever when the machine goes
            if not self._no_node:
                log.warning("there is no Node %s: its GPU objects are not made until there is", self._settings.node)
            self._no_node = True
            return
        self._no_node = False
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._settings.node, "uid": node["metadata"]["uid"]}
        meta: Object = {"name": name, "namespace": self._settings.namespace, "labels": self._labels()}
        meta["ownerReferences"] = [owner]
        try:
            obj = await self._client.create(GPUS, {"metadata": meta})
            log.info("made GPU %s", name)
        except AlreadyExists:
            # not ours to see yet: without our label, or the watch is late
            body: Object = {"metadata": {"labels": self._labels()}}
            obj = await self._client.patch(GPUS, name, body, self._settings.namespace)
        if not obj.get("status"):
            body = {
                "metadata": {"resourceVersion": obj["metadata"]["resourceVersion"]},
                "status": {**status, "occupants": [], "preemptionIntents": []},
            }
            obj = await self._client.patch(GPUS, name, body, self._settings.namespace, subresource="status")
        self._gpus.update(obj)

    async def patch(self, name: str, patch: list[Object]) -> bool:
        """Writes to the status; False when somebody wrote in between, or a rule forbids it."""
        try:
            written = await self._client.patch(GPUS, name, patch, self._settings.namespace, subresource="status")
        except (Invalid, Conflict) as error:
            log.debug("GPU %s: not written: %s", name, error)
            self._metrics.writes.labels("refused").inc()
            return False
        except NotFound:
            return False  # the watch will tell
        self._metrics.writes.labels("written").inc()
        self._gpus.update(written)
        return True

    async def fault(self, obj: Object, reason: str) -> None:
        """Says on the object why its device cannot be used, or (with "") that it can."""
        self._metrics.faults.labels(obj["metadata"]["name"]).set(int(bool(reason)))
        present = (obj["metadata"].get("annotations") or {}).get(ANNOTATION_FAULT, "")
        if present == reason[:500]:
            return
        name = obj["metadata"]["name"]
        log.log(logging.ERROR if reason else logging.INFO, "GPU %s: %s", name, reason or "works again")
        body = {"metadata": {"annotations": {ANNOTATION_FAULT: reason[:500] or None}}}
        written = await self._client.patch(GPUS, name, body, self._settings.namespace)
        self._gpus.update(written)

    def _labels(self) -> dict[str, str]:
        return {LABEL_NODE: node_label(self._settings.node)}


STALE = 15.0
"""Seconds without a look after which an agent is not ready."""


class InThread(Protocol):
    """As `asyncio.to_thread`."""

    async def __call__(self, function: Callable[..., T], /, *arguments: Any) -> T: ...


class Source(Protocol):
    """What an agent looks at: `Devices`, or a stand-in."""

    def read(self) -> list[Reading | Fault]: ...


class Agent:
    """`run()` works until cancelled."""

    def __init__(
        self,
        client: AsyncClient,
        settings: Settings,
        devices: Source,
        owners: Owners | None = None,
        in_thread: InThread = asyncio.to_thread,
        rng: random.Random | None = None,
        metrics: AgentMetrics | None = None,
    ) -> None:
        """``in_thread``: runs a blocking call off the loop; a simulator runs it in place. ``rng``: for pauses."""
        self._client, self._settings, self._devices = client, settings, devices
        self._owners = owners or Owners()
        self._in_thread = in_thread
        self._news = asyncio.Event()
        label = f"{LABEL_NODE}={node_label(settings.node)}"
        self._gpus = Reflector(client, GPUS, settings.namespace, label_selector=label, on_event=self._on_gpu, rng=rng)
        self._pods = Reflector(
            client,
            PODS,
            label_selector=LABEL_MODEL,
            field_selector=f"spec.nodeName={settings.node}",
            on_event=self._on_pod,
            rng=rng,
        )
        self.metrics = metrics or AgentMetrics()
        self._writer = GpuWriter(client, self._gpus, settings, self.metrics)
        self._written_at: dict[str, float] = {}
        self._down_since: dict[PodRef, float] = {}
        #: Pods whose GPUs were told in this look that their sidecar is down.
        self._told: set[PodRef] = set()
        self._driver_fault = ""
        #: Of the running loop: when a look last succeeded; None: not yet.
        self.last_look: float | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._gpus.run())
            tasks.create_task(self._pods.run())
            await self._gpus.synced()
            await self._pods.synced()
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    done = await self.look()
                    self.metrics.looks.labels("done" if done else "no driver").inc()
                    if done:
                        self.last_look = asyncio.get_running_loop().time()
                except KubeError as error:
                    log.warning("GPU objects cannot be written: %s", error)
                    self.metrics.looks.labels("failed").inc()
                    await asyncio.sleep(self._settings.look_every)
                self.metrics.duration.observe(asyncio.get_running_loop().time() - began)
                await asyncio.sleep(self._settings.look_gap)
                try:
                    async with asyncio.timeout(self._settings.look_every):
                        await self._news.wait()
                except TimeoutError:
                    pass

    def unready(self) -> str:
        """What is wrong when the GPU objects are not kept true now, or ""."""
        if self.last_look is None:
            return "no look at the devices yet"
        age = asyncio.get_running_loop().time() - self.last_look
        return "" if age < STALE else f"the last look at the devices was {age:.0f} s ago"

    async def look(self) -> bool:
        """One look at the devices, and what is to be written after it; False: no driver answers. Raises KubeError."""
        self._news.clear()
        # Objects first, devices second, and writes on the condition of the objects: so an occupant's state is the one
        # that it had while its memory was read.
        objects = dict(self._gpus.objects)
        readings = await self._read()
        if readings is None:
            return False
        for reading in readings:
            name = gpu_name(self._settings.node, reading.index)
            obj = objects.get((self._settings.namespace, name))
            if isinstance(reading, Fault):
                if obj is not None:
                    await self._writer.fault(obj, reading.reason)
                else:
                    log.error("device %d: %s", reading.index, reading.reason)
                continue
            if obj is None or not obj.get("status"):
                empty = Gpu(name, self._settings.node, reading.index, reading.total, reading.used)
                wanted = wanted_status(self._settings.node, empty, reading, {})
                await self._writer.create(reading.index, wanted.fields)
                continue
            await self._writer.fault(obj, "")
            await self._update(obj, reading)
        await self._missing(len(readings))
        for pod in self._told:
            # If its new sidecar takes the word back before the kubelet says that it runs, it counts as up for a while.
            self._down_since.pop(pod, None)
        self._told.clear()
        return True

    async def _read(self) -> list[Reading | Fault] | None:
        """The devices as they are now; None when the driver does not answer, which the objects then say."""
        try:
            readings = await self._in_thread(self._devices.read)
        except DriverError as error:
            if str(error) != self._driver_fault:
                log.error("%s; trying again every %.0f s", error, self._settings.retry_every)
                self._driver_fault = str(error)
            for obj in list(self._gpus.objects.values()):
                await self._writer.fault(obj, str(error))
            await asyncio.sleep(self._settings.retry_every)
            return None
        if self._driver_fault:
            log.info("NVML answers again")
            self._driver_fault = ""
        return readings

    async def _missing(self, count: int) -> None:
        for obj in list(self._gpus.objects.values()):
            if (obj.get("status") or {}).get("index", 0) >= count:
                await self._writer.fault(obj, f"NVML lists {count} devices, and this one is not among them")

    async def _update(self, obj: Object, reading: Reading) -> None:
        gpu = Gpu.from_object(obj)
        owners = await self._in_thread(self._owners.of, frozenset(process.pid for process in reading.processes))
        used = used_by_pods(reading, owners)
        if await self._clean(gpu, reading.index):
            return  # the object has changed: the next look decides anew
        wanted = wanted_status(self._settings.node, gpu, reading, used)
        self.metrics.foreign.labels(gpu.name).set(wanted.foreign)
        if self._due(gpu.name, pause_before_write(obj["status"], wanted, self._settings)):
            await self._write(gpu, obj, wanted)

    def _due(self, name: str, pause: float | None) -> bool:
        if pause is None:
            return False
        now = asyncio.get_running_loop().time()
        wait = self._written_at.get(name, -pause) + pause - now
        if wait <= 0:
            return True
        if wait < self._settings.look_every:
            asyncio.get_running_loop().call_later(wait, self._news.set)
        return False

    async def _write(self, gpu: Gpu, obj: Object, wanted: Wanted) -> None:
        if await self._writer.patch(gpu.name, patch_of(obj["status"], gpu.resource_version, wanted)):
            self._written_at[gpu.name] = asyncio.get_running_loop().time()
        # refused: somebody wrote in between, and the watch that tells it is the reason for the next look

    # after the dead

    async def _clean(self, gpu: Gpu, index: int) -> bool:
        """Takes away what pods have left that are gone; True when something was written."""
        named = {occupant.pod for occupant in gpu.occupants} | {intent.pod for intent in gpu.intents}
        if gpu.wake_lock is not None:
            named.add(gpu.wake_lock.holder)
        seen = {pod: self._life(self._pods.objects.get(pod), index) for pod in named}
        for pod, life in seen.items():
            if life is not Life.DOWN:
                self._down_since.pop(pod, None)
        # a sidecar that is down loses its intents, and is said to be down where it holds memory
        suspects = [
            pod
            for pod, life in seen.items()
            if life is Life.GONE or (life is Life.DOWN and (gpu.intent(pod) or stands_in_the_way(gpu.occupant(pod))))
        ]
        if not suspects:
            return False
        # The copy of the watch may be old: the API's own word, then the device's, then a write that rests on both.
        lives = {pod: await self._surely(pod, index) for pod in suspects}
        try:
            readings = await self._in_thread(self._devices.read)
        except DriverError:
            return False  # the next look says it
        reading = next((reading for reading in readings if reading.index == index), None)
        if not isinstance(reading, Reading):
            return False
        owners = await self._in_thread(self._owners.of, frozenset(process.pid for process in reading.processes))
        cleaning = clean(gpu, lives, frozenset(owners.values()))
        if cleaning is None:
            return False
        if await self._writer.patch(gpu.name, cleaning.patch):
            log.info("GPU %s: %s", gpu.name, cleaning.what)
            self.metrics.cleaned.inc()
            self._news.set()
            self._told.update(pod for pod, life in lives.items() if life is Life.DOWN)
        return True

    async def _surely(self, pod: PodRef, index: int) -> Life:
        try:
            life = self._life(await self._client.get(PODS, pod.name, pod.namespace), index)
        except NotFound:
            life = Life.GONE
        now = asyncio.get_running_loop().time()
        if life is Life.DOWN:
            since = self._down_since.setdefault(pod, now)
            if now < since + self._settings.down_for:
                return Life.UP
        return life

    def _life(self, pod: Object | None, index: int) -> Life:
        return sidecar_life(pod, SIDECAR, self._settings.node, index)

    # news

    def _on_gpu(self, kind: str, obj: Object) -> None:
        self._news.set()

    def _on_pod(self, kind: str, obj: Object) -> None:
        self._owners.learn(obj["metadata"].get("uid", ""), PodRef(*key_of(obj)))
        self._news.set()
