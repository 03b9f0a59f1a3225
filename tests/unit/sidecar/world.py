"""A small world in one process: the embedded API, GPUs with a ledger, sidecars with engines that take time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from greenthread.clock import format_time
from greenthread.gpu import Gpu, PodRef
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Unreachable
from greenthread.kube.resources import CRDS, EVENTS, GPUS, MODELS, NAMESPACES, PODS
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.storage import Store
from proxy.routes import Outcome, Refuse
from proxy.terms import NO_TERMS, Terms
from sidecar.app import Sidecar
from sidecar.engine import EngineError, EngineLost, Rest
from sidecar.settings import Settings
from tests.crds import crds
from tests.virtual import VirtualClock, VirtualLoop

GIB = 2**30
NAMESPACE = "greenthread-system"


class Ledger:
    """What is really in use on each device: engines allocate here, and too much is an error that is never forgotten."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.held: dict[tuple[str, str], int] = {}
        self.overcommits: list[str] = []
        self.waking: dict[str, str] = {}

    def take(self, gpu: str, owner: str, count: int) -> None:
        used = sum(n for (g, o), n in self.held.items() if g == gpu and o != owner)
        if used + count > self.total:
            self.overcommits.append(f"{owner} took {count} on {gpu} where {used} were used")
            raise EngineError("CUDA out of memory")
        self.held[gpu, owner] = count

    def free(self, owner: str) -> None:
        self.held = {key: n for key, n in self.held.items() if key[1] != owner}


class FakeEngine:
    """Takes ``memory`` on its GPUs; every step takes time. It outlives a sidecar, as a process does."""

    def __init__(self, ledger: Ledger, owner: str, gpus: tuple[str, ...], memory: int) -> None:
        self.ledger, self.owner, self.gpus, self.amount = ledger, owner, gpus, memory
        self.rest = Rest.ABSENT
        self.under_way = ""
        self.boot_time, self.wake_time, self.sleep_time = 3.0, 0.5, 0.1
        self.fail: list[str] = []
        self.lost: list[str] = []
        self.left: int | None = 0
        self.leaks = False
        self.shortfalls: list[str] = []
        self.calls: list[str] = []
        self.on_exit: Any = lambda text: None

    def configure(self, spec: Any) -> None:
        pass

    def _take(self) -> None:
        for gpu in self.gpus:
            self.ledger.take(gpu, self.owner, self.amount)

    async def _step(self, name: str, seconds: float) -> None:
        self.calls.append(name)
        self.under_way = name
        await asyncio.sleep(seconds)
        if name in self.fail:
            self.fail.remove(name)
            raise EngineError(f"{name} failed")
        if name in self.lost:
            self.lost.remove(name)
            raise EngineLost(f"{name}: the engine has to be started afresh")

    async def settle(self) -> Rest:
        if self.under_way in ("wake", "sleep"):
            await self.sleep()
        elif self.under_way == "start":
            await self.kill()
        return self.rest

    async def leftovers_gone(self) -> None:
        pass

    async def start(self) -> None:
        self._take()
        await self._step("start", self.boot_time)
        self.rest, self.under_way = Rest.AWAKE, ""

    async def wake(self) -> None:
        for gpu in self.gpus:
            assert gpu not in self.ledger.waking, f"two wakes at once on {gpu}"
            self.ledger.waking[gpu] = self.owner
        try:
            self._take()
            await self._step("wake", self.wake_time)
        finally:
            for gpu in self.gpus:
                self.ledger.waking.pop(gpu, None)
        self.rest, self.under_way = Rest.AWAKE, ""

    async def sleep(self) -> None:
        await self._step("sleep", self.sleep_time)
        self.ledger.free(self.owner)
        self.rest, self.under_way = Rest.ASLEEP, ""

    async def kill(self) -> None:
        if self.rest is not Rest.ABSENT or self.under_way:
            self.calls.append("kill")
        self.ledger.free(self.owner)
        self.rest, self.under_way = Rest.ABSENT, ""

    async def memory(self) -> list[int] | None:
        return [self.amount for _gpu in self.gpus]

    async def left_behind(self) -> int | None:
        if self.leaks:
            self.leaks = False
            raise EngineLost("asleep, it still holds 5.0G: it leaks")
        return self.left

    def crash(self) -> None:
        self.ledger.free(self.owner)
        self.rest = Rest.ABSENT
        self.on_exit("engine process 7 ended by itself")


class Exchange:
    def __init__(self, terms: Terms = NO_TERMS) -> None:
        self.terms, self.waited, self.status = terms, 0.0, 200
        self.response_lines: Sequence[bytes] | None = None
        self.span: Any = None
        self.finished = False


class Network(InProcess):
    """The way to the API server, which can be cut."""

    away = False

    async def request(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise Unreachable("the Kubernetes API server does not answer")
        return await super().request(*args, **options)


class World:
    """``await world.model(...)`` makes a Model with one running sidecar."""

    def __init__(self, tmp: Path, gpus: int = 1, total: int = 100 * GIB) -> None:
        self.tmp, self.total = tmp, total
        self.clock = VirtualClock()
        self.api = Api(Store(":memory:"), clock=self.clock, rng=random.Random(1))
        self.transport = Network(self.api)
        self.client = AsyncClient(self.transport)
        self.ledger = Ledger(total)
        self.gpu_count = gpus
        self.sidecars: dict[str, Sidecar] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> World:
        for crd in crds():
            await self.client.create(CRDS, crd)
        await self.client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for index in range(self.gpu_count):
            await self.register_gpu(index)
        return self

    async def register_gpu(self, index: int) -> None:
        name = f"n-{index}"
        meta = {"name": name, "namespace": NAMESPACE}
        kind = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "GPU"}
        await self.client.create(GPUS, {**kind, "metadata": meta})
        status = {
            "node": "n", "index": index, "uuid": f"GPU-{index}", "product": "Test", "totalMemoryBytes": self.total,
            "availableMemoryBytes": self.total, "foreignMemoryBytes": 0, "occupants": [], "preemptionIntents": [],
        }  # fmt: skip
        await self.client.patch(GPUS, name, {"status": status}, namespace=NAMESPACE, subresource="status")

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def model(
        self, name: str, memory: int, gpus: tuple[int, ...] = (0,), booted: bool = True, **spec: Any
    ) -> Sidecar:
        """``booted``: wait until its first boot is over."""
        obj = {
            "apiVersion": "greenthread.ai/v1alpha1",
            "kind": "Model",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"modelName": f"test/{name}", "tensorParallelSize": len(gpus), **spec},
        }
        await self.client.create(MODELS, obj)
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-0", "namespace": NAMESPACE},
            "spec": {"containers": [{"name": "sidecar", "image": "x"}]},
        }
        await self.client.create(PODS, pod)
        names = tuple(f"n-{index}" for index in gpus)
        self.engines[name] = FakeEngine(self.ledger, name, names, memory)
        sidecar = self.start(name, gpus)
        if booted:
            await self.until(lambda: sidecar.lifecycle.boot_ready and sidecar.lifecycle.state == "sleeping")
        return sidecar

    def start(self, name: str, gpus: tuple[int, ...] = (0,)) -> Sidecar:
        """(Re)starts the sidecar of a model."""
        settings = Settings(
            pod=PodRef(NAMESPACE, f"{name}-0"), pod_uid="", model=name, node="n", gpu_indices=gpus,
            run_dir=str(self.tmp / name), namespace=NAMESPACE,
        )  # fmt: skip
        Path(settings.run_dir).mkdir(exist_ok=True)
        sidecar = Sidecar(settings, self.client, self.clock)
        engine = self.engines[name]
        sidecar.attach(engine)
        engine.on_exit = sidecar.lifecycle.engine_died
        self.sidecars[name] = sidecar
        self.tasks[name] = asyncio.create_task(sidecar.run())
        return sidecar

    async def kill(self, name: str) -> None:
        """SIGKILL: nothing of the sidecar runs any more, the engine stays."""
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)

    async def until(self, condition: Any, timeout: float = 60.0) -> None:
        """Lets time pass until the condition holds; asserts that nothing crashed and no memory was over-committed."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        end, turns = loop.time() + timeout, 0
        while not condition():
            for name, task in self.tasks.items():
                if task.done() and not task.cancelled():
                    task.result()
                    raise AssertionError(f"the sidecar of {name} ended")
            assert loop.time() < end, "it did not happen in time"
            turns = 0 if (pause := loop.next_event()) else turns + 1
            await asyncio.sleep(pause if turns < 100 else 0.001)  # two that wait here would be busy for ever
        assert not self.ledger.overcommits

    async def request(self, name: str, seconds: float = 0.2, exchange: Exchange | None = None) -> str:
        """One request through the door; "ok", or the refusal's message."""
        door = self.sidecars[name].door
        exchange = exchange or Exchange()
        if not door.try_enter(exchange):
            try:
                await door.enter(exchange)
            except Refuse as refusal:
                return refusal.message if refusal.retry_after else "refused without Retry-After"
        assert self.engines[name].rest is Rest.AWAKE, "a request reached an engine that does not serve"
        try:
            await asyncio.sleep(seconds)
        finally:
            door.leave(exchange, Outcome.SUCCESS)
        return "ok"

    async def gpu(self, index: int = 0) -> Gpu:
        return Gpu.from_object(await self.client.get(GPUS, f"n-{index}", namespace=NAMESPACE))

    async def events(self, name: str) -> list[str]:
        found = await self.client.list(EVENTS, namespace=NAMESPACE, field_selector=f"involvedObject.name={name}")
        return [event["reason"] for event in found.items]

    async def annotate(self, name: str, annotation: str, seconds_ago: float = 0.0) -> None:
        moment = format_time(self.clock.now() - timedelta(seconds=seconds_ago))
        await self.client.patch(MODELS, name, {"metadata": {"annotations": {annotation: moment}}}, namespace=NAMESPACE)

    async def report(self, name: str) -> dict[str, Any]:
        pod = await self.client.get(PODS, f"{name}-0", namespace=NAMESPACE)
        return dict(json.loads(pod["metadata"]["annotations"]["greenthread.ai/report"]))
