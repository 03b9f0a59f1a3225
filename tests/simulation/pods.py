"""The pods and their kubelet: sidecars that are restarted when they die, engine containers that live on."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from greenthread.clock import format_time
from greenthread.gpu import PodRef
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Conflict, NotFound
from greenthread.kube.resources import ENDPOINT_SLICES, PODS
from localcluster.api.messages import Request
from localcluster.api.storage import dumps
from proxy.server import ProxyServer
from sidecar.app import Sidecar
from sidecar.engine.vllm import VllmEngine
from sidecar.settings import Settings
from tests.simulation.clients import EngineConnection
from tests.simulation.loop import Listener, Process, SimLoop, context_of
from tests.simulation.machine import ControlLine, EngineHost, Memory
from tests.simulation.network import Network

if TYPE_CHECKING:
    from tests.simulation.world import World

NAMESPACE = "greenthread-system"
NODE = "n"

#: Seconds that a pod gets to stop.
_GRACE = 20.0
#: Seconds between two looks of the kubelet at what has no news: readiness, restarts that are due.
_LOOK = 0.2


class SimPod:
    """One pod. Its sidecar comes and goes; its engine host stays until the pod is gone."""

    def __init__(self, world: World, obj: dict[str, Any], need: int, number: int) -> None:
        meta = obj["metadata"]
        self.world, self.uid = world, meta["uid"]
        self.ref = PodRef(meta["namespace"], meta["name"])
        self.model = meta["labels"]["greenthread.ai/model"]
        devices = tuple(int(i) for i in meta["annotations"]["greenthread.ai/gpus"].split(","))
        env = {e["name"]: e.get("value", "") for e in obj["spec"]["containers"][0]["env"]}
        memory = env.get("SERVING_MEMORY_PER_GPU", "")
        self.run_dir = world.tmp / meta["uid"]
        self.run_dir.mkdir()
        self.settings = Settings(
            pod=self.ref, pod_uid=self.uid, model=self.model, node=NODE, gpu_indices=devices, namespace=NAMESPACE,
            run_dir=str(self.run_dir), host="127.0.0.1", port=10_000 + number, engine_port=20_000 + number,
            serving_memory=int(memory) if memory else None,
            queue_timeout=20.0, boot_timeout=10.0, wake_timeout=4.0, sleep_timeout=2.0, boot_backoff=(0.5, 6.0),
        )  # fmt: skip
        self.host = EngineHost(world.machine, self.ref, devices, need)
        self.host.on_break = lambda: world.broke(self.model)
        self.host.on_cut = self._cut
        self.sidecar: Sidecar | None = None
        self.process = Process("none")
        self.server: ProxyServer | None = None
        self.network: Network | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        self.restart_at: float | None = 0.0
        self.kill_at = math.inf
        self.ready = self.running = False
        # for the checks
        self.serving_since: datetime | None = None
        self.wished = False

    def _cut(self) -> None:
        """Requests in flight may be cut off when drainTimeout is over, and not before."""
        self.world.broke(self.model)
        if self.sidecar is None or not self.sidecar.metrics.barrier_timeouts._value.get():
            self.world.checks.violated(f"the engine of {self.ref.name} is put to sleep over requests in flight")

    def listen(self, loop: SimLoop) -> None:
        """The engine's own port."""
        process = Process(f"engine {self.ref.name}")
        listener = Listener(
            loop, self.settings.engine_port, lambda: EngineConnection(self.host), process, context_of(process)
        )
        listener.accepts = lambda: self.host.booted
        loop.add_listener(listener)

    def start(self) -> None:
        """The sidecar's container starts."""
        self.process = Process(f"sidecar {self.ref.name}")
        context = context_of(self.process)
        self.task = asyncio.get_running_loop().create_task(context.run(self._sidecar), context=context)

    async def _sidecar(self) -> None:
        """As `python -m sidecar`, in its own process."""
        world = self.world
        self.network = Network(world.api, world.rng, world.weather)
        self.network.on_fuse = self.kill
        self.sidecar = sidecar = Sidecar(self.settings, AsyncClient(self.network), world.clock)
        memory: Any = Memory(world.machine, self.settings.gpu_indices)
        process: Any = self.host
        self.host.on_exit = lambda text: sidecar.lifecycle.engine_died(text)
        engine = VllmEngine(
            self.settings,
            self.host.on_exit,
            process=process,
            memory=memory,
            ask=ControlLine(self.host, self.process).ask,
        )
        sidecar.attach(engine)
        world.checks.follow(self)
        engine.open()
        self.server = ProxyServer(sidecar.front_door())
        self.server.hangups.close()  # there are no file descriptors to watch
        await self.server.start(self.settings.host, self.settings.port)
        if self.stopping:
            sidecar.lifecycle.stop()
        try:
            await sidecar.run()
        finally:
            if not self.process.dead:
                await self.server.stop(grace=5.0)
                await engine.close()

    def kill(self, after: float | None = None) -> None:
        """SIGKILL to the sidecar; its kubelet starts it anew."""
        if self.task is None or self.network is None:
            return
        self.world.note(f"kill sidecar {self.ref.name}")
        self.world.broke(self.model)
        self.world.checks.forget(self)
        self.network.kill()
        self.process.kill()
        self.host.close()
        if self.server is not None and self.server._sweeper is not None:
            self.server._sweeper.cancel()
        self.sidecar, self.task = None, None
        if after is None:  # a kubelet restarts at once, and waits when it happens again and again
            after = self.world.rng.uniform(0.02, self.world.rng.choice([0.2, 4.0]))
        self.restart_at = asyncio.get_running_loop().time() + after


class Kubelet:
    """Runs the pods and writes their status and addresses. Its own connection is good: it is not what is tested."""

    def __init__(self, world: World) -> None:
        self._world, self._client = world, world.client
        self._number = 0

    async def run(self) -> None:
        world = self._world
        while True:
            now = asyncio.get_running_loop().time()
            for (namespace, _name), stored in list(world.api.store.all("pods").items()):
                if namespace == NAMESPACE:
                    await self._care(stored.obj, now)
            there = {stored.obj["metadata"]["uid"] for stored in world.api.store.all("pods").values()}
            for pod in [pod for uid, pod in world.pods.items() if uid not in there]:
                await self._forced(pod, now)
            await asyncio.sleep(_LOOK)

    async def _forced(self, pod: SimPod, now: float) -> None:
        """Its object was deleted by force: its sidecar dies at once, its engine's process somewhat later."""
        if not pod.stopping:
            pod.stopping, pod.kill_at = True, now + self._world.rng.uniform(0.0, 3.0)
            pod.kill(after=math.inf)
            self._world.broke(pod.model)
            pod.restart_at = None
        if now >= pod.kill_at:
            self._end(pod)

    async def _care(self, obj: dict[str, Any], now: float) -> None:
        world, uid = self._world, obj["metadata"]["uid"]
        pod = world.pods.get(uid)
        if pod is None:
            pod = await self._admit(obj)
        if obj["metadata"].get("deletionTimestamp") and not pod.stopping:
            pod.stopping, pod.kill_at = True, now + _GRACE
            world.note(f"pod {pod.ref.name} is to stop")
            if pod.sidecar:
                pod.sidecar.lifecycle.stop()
            await self._address(pod)
        if pod.task is not None and pod.task.done():
            error = None if pod.task.cancelled() else pod.task.exception()
            if error is not None:
                world.checks.violated(f"the sidecar of {pod.ref.name} ended with {error!r}")
            pod.task = None
            world.checks.forget(pod)
            if pod.stopping:
                pod.restart_at = math.inf
        if pod.stopping and (pod.restart_at == math.inf or now >= pod.kill_at):
            await self._remove(pod)
            return
        if pod.task is None and pod.restart_at is not None and now >= pod.restart_at:
            pod.restart_at = None
            pod.start()
        ready = bool(pod.sidecar and pod.sidecar.lifecycle.healthy)
        running = pod.task is not None
        if ready != pod.ready or running != pod.running:
            pod.ready, pod.running = ready, running
            await self._status(pod)
            await self._address(pod)

    async def _admit(self, obj: dict[str, Any]) -> SimPod:
        world = self._world
        self._number += 1
        model = obj["metadata"]["labels"]["greenthread.ai/model"]
        pod = SimPod(world, obj, world.needs[model], self._number)
        world.pods[pod.uid] = pod
        world.hosts.append(pod.host)
        pod.listen(world.loop)
        world.loop.breaks[pod.settings.port] = lambda: world.weather.broken_connection
        world.models_of_ports[pod.settings.port] = model
        binding = {"metadata": {"name": pod.ref.name}, "target": {"kind": "Node", "name": NODE}}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod.ref.name}/binding"
        world.api.handle(Request("POST", path, {}, {"content-type": "application/json"}, dumps(binding)))
        await self._status(pod)
        await self._client.create(ENDPOINT_SLICES, self._slice(pod), NAMESPACE)  # its owner's end is its end
        world.note(f"pod {pod.ref.name} starts")
        return pod

    async def _remove(self, pod: SimPod) -> None:
        world = self._world
        pod.kill(after=math.inf)
        pod.host.end()
        world.broke(pod.model)
        await self._client.delete(PODS, pod.ref.name, NAMESPACE, uid=pod.uid, grace_seconds=0)
        self._end(pod)

    def _end(self, pod: SimPod) -> None:
        world = self._world
        pod.host.end()
        world.loop.forget(pod.settings.engine_port)
        world.loop.forget(pod.settings.port)
        world.pods.pop(pod.uid)
        world.note(f"pod {pod.ref.name} is gone")

    async def _status(self, pod: SimPod) -> None:
        moment = format_time(self._world.clock.now())[:19] + "Z"
        state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        if pod.running:
            state = {"running": {"startedAt": moment}}
        elif pod.network is not None:
            state = {"terminated": {"exitCode": 137, "reason": "Error"}}
        fixed = {"name": "sidecar", "restartCount": 0, "image": "x", "imageID": ""}
        status = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(pod.ready), "lastTransitionTime": moment}],
            "containerStatuses": [{**fixed, "ready": pod.ready, "state": state}],
        }
        body = {"metadata": {"uid": pod.uid}, "status": status}
        with suppress(NotFound, Conflict):  # deleted by force meanwhile
            await self._client.patch(PODS, pod.ref.name, body, NAMESPACE, subresource="status")

    async def _address(self, pod: SimPod) -> None:
        body = self._slice(pod)
        with suppress(NotFound):  # the pod has gone meanwhile
            await self._client.patch(ENDPOINT_SLICES, pod.uid, {"endpoints": body["endpoints"]}, NAMESPACE)

    @staticmethod
    def _slice(pod: SimPod) -> dict[str, Any]:
        return {
            "metadata": {
                "name": pod.uid,
                "namespace": NAMESPACE,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.ref.name, "uid": pod.uid}],
                "labels": {"kubernetes.io/service-name": pod.model},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": pod.settings.port, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": ["127.0.0.1"],
                    "conditions": {
                        "ready": pod.ready and not pod.stopping,
                        "serving": pod.ready,
                        "terminating": pod.stopping,
                    },
                    "targetRef": {"kind": "Pod", "name": pod.ref.name, "namespace": NAMESPACE},
                }
            ],
        }
