"""A made-up cluster on the embedded API in this process, at one moment: the story of two GPUs and eight models."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from greenthread.clock import format_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Unreachable
from greenthread.kube.resources import CRDS, EVENTS, GPUS, MODELS, NAMESPACES, PODS
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.storage import Store
from tests.crds import crds
from tui.app import Dashboard
from tui.data import ClusterData

GIB = 2**30
SYSTEM = "greenthread-system"
NOW = datetime(2026, 11, 22, 14, 3, 22, tzinfo=UTC)


LOG = (
    "\x1b[1;36m(EngineCore pid=71)\x1b[0m INFO 11-22 14:01:02 vLLM API server version 0.32.0",
    "(EngineCore pid=71) INFO 11-22 14:01:03 Loading weights took 3.41 seconds, of which 2.96 were spent reading them",
    "(EngineCore pid=71) WARNING 11-22 14:01:05 CUDA graphs are captured again",
    "(EngineCore pid=71) ERROR 11-22 14:02:11 request 4711 was cut off",
    "Traceback (most recent call last):",
    '  File "engine.py", line 12, in step',
    "(EngineCore pid=71) INFO 11-22 14:03:19 It took 0.524 seconds to wake up",
)
"""What every container wrote."""


class StandingClock:
    """Time stands still unless it is moved."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> datetime:
        return self.moment


class Network(InProcess):
    """The way to the API server, which can be cut: then what is under way ends, too."""

    def __init__(self, api: Api) -> None:
        super().__init__(api)
        self._cut = asyncio.Event()

    @property
    def away(self) -> bool:
        return self._cut.is_set()

    def cut(self) -> None:
        self._cut.set()

    def mend(self) -> None:
        self._cut.clear()

    async def request(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise Unreachable("the API server at https://prod-eu:6443 does not answer: connection refused")
        return await super().request(*args, **options)

    async def stream(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("/log"):
            for text in LOG:
                yield text.encode()
            await self._cut.wait()  # it is followed
            return
        lines = super().stream(method, path, *args, **options)
        cut = asyncio.ensure_future(self._cut.wait())
        line: asyncio.Future[Any] = asyncio.ensure_future(anext(lines, None))
        try:
            while True:
                await asyncio.wait({line, cut}, return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    raise Unreachable("the API server at https://prod-eu:6443 does not answer: connection refused")
                if line.result() is None:
                    return
                yield line.result()
                line = asyncio.ensure_future(anext(lines, None))
        finally:
            for task in (line, cut):
                task.cancel()
            await asyncio.gather(line, cut, return_exceptions=True)


def ago(seconds: float) -> str:
    return format_time(NOW - timedelta(seconds=seconds))


class World:
    """`async with World() as world`; then `world.app()`."""

    def __init__(self) -> None:
        self.clock = StandingClock()
        self.api = Api(Store(":memory:"), clock=self.clock, rng=random.Random(1))
        self.network = Network(self.api)
        #: For the world itself: it is never cut.
        self.client = AsyncClient(InProcess(self.api))
        self._events = 0

    async def __aenter__(self) -> World:
        for crd in crds():
            await self.client.create(CRDS, crd)
        for name in (SYSTEM, "prod"):
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await self.client.create(NAMESPACES, namespace)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    def app(self, **options: Any) -> Dashboard:
        data = ClusterData(AsyncClient(self.network), clock=self.clock)
        return Dashboard(data, **{"context": "prod-eu", "zone": UTC, **options})

    async def gpu(self, index: int, occupants: list[dict[str, Any]], node: str = "node-a", **status: Any) -> None:
        name = f"{node}-{index}"
        kind = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "GPU"}
        await self.client.create(GPUS, {**kind, "metadata": {"name": name, "namespace": SYSTEM}})
        full = {
            "node": node, "index": index, "uuid": f"GPU-{index}", "product": "NVIDIA H100 80GB HBM3",
            "totalMemoryBytes": 96 * GIB, "availableMemoryBytes": 96 * GIB, "foreignMemoryBytes": 0,
            "occupants": occupants, "preemptionIntents": [], **status,
        }  # fmt: skip
        # who is new is not serving yet: the CRD knows the order of states
        for states in ({"serving": "converting", "deactivating": "converting"}, {"deactivating": "serving"}, {}):
            step = [{**item, "state": states.get(item["state"], item["state"])} for item in occupants]
            await self.patch_gpu(name, **{**full, "occupants": step})

    async def patch_gpu(self, name: str, **status: Any) -> None:
        await self.client.patch(GPUS, name, {"status": status}, namespace=SYSTEM, subresource="status")

    async def model(
        self,
        name: str,
        gpus: str = "0",
        need: float = 40,
        report: dict[str, Any] | None = None,
        pod: bool = True,
        namespace: str = "prod",
        **spec: Any,
    ) -> None:
        meta = {"name": name, "namespace": namespace}
        kind = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "Model"}
        await self.client.create(MODELS, {**kind, "metadata": meta, "spec": {"modelName": f"test/{name}", **spec}})
        conditions = [
            {"type": "Ready", "status": "True", "reason": "Ready", "message": "1 of 1 replicas answers",
             "lastTransitionTime": ago(7000)[:19] + "Z"}
        ]  # fmt: skip
        status: dict[str, Any] = {"phase": "Ready" if pod else "Staging", "lastTransition": ago(48)}
        if pod:
            status |= {"servingMemoryPerGPU": int(need * GIB), "conditions": conditions, "url": f"http://gt/{name}/v1"}
        await self.client.patch(MODELS, name, {"status": status}, namespace=namespace, subresource="status")
        if not pod:
            return
        annotations = {"greenthread.ai/gpus": gpus}
        if report is not None:
            annotations["greenthread.ai/report"] = json.dumps(report)
        labels = {"greenthread.ai/model": name, "app.kubernetes.io/name": "greenthread-model"}
        body = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"{name}-0", "namespace": namespace, "labels": labels, "annotations": annotations},
            "spec": {"nodeName": "node-a", "containers": [{"name": "sidecar", "image": "x"}]},
        }  # fmt: skip
        await self.client.create(PODS, body)

    async def event(
        self, name: str, reason: str, message: str, seconds_ago: float, record: dict[str, Any] | None = None
    ) -> None:
        self._events += 1
        moment = ago(seconds_ago)[:19] + "Z"
        annotations = {"greenthread.ai/record": json.dumps(record)} if record else {}
        body = {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": f"{name}.{self._events}", "namespace": "prod", "annotations": annotations},
            "involvedObject": {"kind": "Model", "name": name, "namespace": "prod",
                               "apiVersion": "greenthread.ai/v1alpha1"},
            "reason": reason, "message": message, "type": "Normal",
            "firstTimestamp": moment, "lastTimestamp": moment, "count": 1,
        }  # fmt: skip
        await self.client.create(EVENTS, body, namespace="prod")

    async def story(self) -> None:
        """14:03:22: qwen waits for llama's memory, kimi wakes beside it, gpt-oss is pinned."""
        stats = {"utilizationPercent": 83, "temperatureCelsius": 64, "powerWatts": 412}
        await self.gpu(
            0,
            [
                occupant("llama-3-1-8b", "serving", 62, becameServingAt=ago(2), protectedUntil=ago(-8)),
                occupant("kimi-vl-a3b", "waking", 9.2),
                occupant("qwen-3-4b-thinking", "sleeping"),
                occupant("llama-3-1-70b", "sleeping"),
                occupant("mistral-small-24b", "sleeping"),
            ],
            stats=stats,
            wakeLock={"holder": "prod/kimi-vl-a3b-0", "acquiredAt": ago(1.9)},
            preemptionIntents=[intent("qwen-3-4b-thinking", 62, 1.8)],
        )
        await self.gpu(
            1,
            [
                occupant("gpt-oss-20b", "serving", 88.2, popular=True, becameServingAt=ago(192)),
                occupant("llama-3-1-70b", "sleeping"),
                occupant("whisper-large-v3", "sleeping"),
            ],
            stats={"utilizationPercent": 12, "temperatureCelsius": 51, "powerWatts": 140},
            foreignMemoryBytes=int(1.4 * GIB),
        )
        await self.model("gpt-oss-20b", "1", 88.2, report("serving", 192, inFlight=4, requests=900, wake=0.612),
                         fairness={"popular": True})  # fmt: skip
        await self.model("llama-3-1-8b", "0", 62, report("serving", 2, inFlight=1, requests=40, wake=0.540))
        await self.model("kimi-vl-a3b", "0", 9.2, report("waking", 1.9, queued=2, requests=12, wake=3.0))
        await self.model("qwen-3-4b-thinking", "0", 62, report("pending", 1.8, queued=5, requests=7, wake=0.701))
        await self.model("llama-3-1-70b", "0,1", 60, report("sleeping", 7440, requests=3, wake=2.1),
                         tensorParallelSize=2)  # fmt: skip
        await self.model("mistral-small-24b", "0", 50, report("sleeping", 400, requests=3, wake=0.870))
        await self.model("whisper-large-v3", "1", 3.1, report("sleeping", 2.5, requests=30, wake=0.318))
        await self.model("qwen3-coder-30b", pod=False)
        await self.event("kimi-vl-a3b", "Woke", "woke in 3.0s on node-a/0 (queue 2ms, claim 4ms, engine 3.0s)", 400,
                         record("wake", 400, queue=0.002, claim=0.004, engine=3.0))  # fmt: skip
        await self.event("whisper-large-v3", "Slept", "slept in 92ms on node-a/1, idle for 5m, freed 3.1G", 3)
        await self.event("llama-3-1-8b", "Woke",
                         "woke in 540ms on node-a/0 (queue 12ms, claim 4ms, engine 524ms)", 2,
                         record("wake", 2.5, queue=0.012, claim=0.004, engine=0.524))  # fmt: skip
        await self.event("qwen-3-4b-thinking", "Waiting",
                         "asks for room: needs 62.0G on node-a/0, where 24.8G is free: 37.2G short", 1.8)  # fmt: skip

    async def past(self) -> None:
        """The story, after a quarter of an hour in which llama-3-1-8b woke and slept."""
        await self.story()
        for began, queue, victim in (
            (780, 0.004, ""),
            (632, 5.69, "kimi-vl-a3b"),
            (310, 0.003, ""),
            (98, 5.7, "mistral-small-24b"),
        ):
            woke = record("wake", began, queue=queue, claim=0.005, engine=0.53 if began != 780 else 2.36)
            if victim:
                slept = record("sleep", began - 5, drain=0.612, engine=0.094)
                slept |= {"forModel": "llama-3-1-8b"}
                await self.event(victim, "Preempted", "slept in 706ms, preempted for llama-3-1-8b", began - 5.7, slept)
                woke |= {"victims": [victim], "waitedFor": "needs 62.0G on node-a/0"}
            total = sum(woke["steps"].values())
            await self.event("llama-3-1-8b", "Woke", f"woke in {total:.2f}s on node-a/0", began - total, woke)
            slept = record("sleep", began - 70, drain=0.0, engine=0.09)
            await self.event("llama-3-1-8b", "Slept", "slept in 90ms on node-a/0, idle, freed 62.0G", began - 70, slept)

    async def rest(self) -> None:
        """After the past: nobody waits any more."""
        await self.past()
        await self.patch_gpu("node-a-0", preemptionIntents=[])
        await self.report("qwen-3-4b-thinking", report("sleeping", 1, requests=7, wake=0.701))

    async def waits(self) -> None:
        """8 s later: llama drains for qwen, mistral waits behind it, llama-3-1-70b cannot fit, whisper wakes."""
        await self.story()
        longer = {"spec": {"fairness": {"minRuntime": "15s"}}}
        await self.client.patch(MODELS, "kimi-vl-a3b", longer, namespace="prod")
        await self.patch_gpu(
            "node-a-0",
            wakeLock=None,
            occupants=[
                occupant("llama-3-1-8b", "serving", 62, becameServingAt=ago(10), protectedUntil=ago(0)),
                occupant("kimi-vl-a3b", "serving", 9.2, becameServingAt=ago(7), protectedUntil=ago(-8)),
                *(occupant(n, "sleeping") for n in ("qwen-3-4b-thinking", "llama-3-1-70b", "mistral-small-24b")),
            ],
        )
        await self.patch_gpu(
            "node-a-0",
            occupants=[
                occupant("llama-3-1-8b", "deactivating", 62, becameServingAt=ago(10), protectedUntil=ago(0)),
                occupant("kimi-vl-a3b", "serving", 9.2, becameServingAt=ago(7), protectedUntil=ago(-8)),
                *(occupant(n, "sleeping") for n in ("qwen-3-4b-thinking", "llama-3-1-70b", "mistral-small-24b")),
            ],
            preemptionIntents=[
                intent("qwen-3-4b-thinking", 62, 9.9, "llama-3-1-8b"),
                intent("mistral-small-24b", 30, 3.2),
            ],
        )
        await self.patch_gpu(
            "node-a-1",
            foreignMemoryBytes=int(1.4 * GIB),
            wakeLock={"holder": "prod/whisper-large-v3-0", "acquiredAt": ago(0.2)},
            occupants=[
                occupant("gpt-oss-20b", "serving", 88.2, popular=True, becameServingAt=ago(192)),
                occupant("whisper-large-v3", "waking", 3.1),
                occupant("llama-3-1-70b", "sleeping"),
            ],
        )
        for name, told in {
            "llama-3-1-8b": report("deactivating", 0.1, inFlight=1, requests=41, wake=0.540),
            "kimi-vl-a3b": report("serving", 7, requests=14, wake=3.0),
            "qwen-3-4b-thinking": report("pending", 9.9, queued=7, requests=7, wake=0.701),
            "mistral-small-24b": report("pending", 3.2, queued=1, requests=3, wake=0.870),
            "llama-3-1-70b": report("pending", 4.3, queued=1, requests=3, wake=2.1),
            "whisper-large-v3": report("waking", 0.2, queued=1, requests=30, wake=0.318),
        }.items():
            await self.report(name, told)

    async def report(self, name: str, told: dict[str, Any], namespace: str = "prod") -> None:
        body = {"metadata": {"annotations": {"greenthread.ai/report": json.dumps(told)}}}
        await self.client.patch(PODS, f"{name}-0", body, namespace=namespace)


def occupant(name: str, state: str, gib: float = 0, **fields: Any) -> dict[str, Any]:
    return {"namespace": "prod", "podName": f"{name}-0", "modelName": name, "state": state,
            "reservedMemoryBytes": int(gib * GIB), "popular": False, **fields}  # fmt: skip


def intent(name: str, gib: float, since: float, *victims: str) -> dict[str, Any]:
    return {"namespace": "prod", "podName": f"{name}-0", "modelName": name, "requestedMemoryBytes": int(gib * GIB),
            "since": ago(since), "victims": [f"prod/{victim}-0" for victim in victims]}  # fmt: skip


def report(state: str, since: float, wake: float | None = None, **fields: Any) -> dict[str, Any]:
    return {"state": state, "since": ago(since), "bootReady": True, "inFlight": 0, "queued": 0, "requests": 0,
            "lastWakeSeconds": wake, "error": "", **fields}  # fmt: skip


def record(kind: str, since: float, **steps: float) -> dict[str, Any]:
    return {"kind": kind, "at": ago(since), "reason": "request", "gpus": "node-a/0", "steps": steps, "memory": 0,
            "total": sum(steps.values()), "waitedFor": "", "victims": [], "forModel": "", "error": ""}  # fmt: skip
