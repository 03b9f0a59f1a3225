"""A cluster for the plugin: the embedded API on a port, filled with GPUs, Models and pods as their writers fill it."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from greenthread.clock import format_time
from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.kube.errors import NoSuchKind
from greenthread.kube.resources import CRDS, EVENTS, GPUS, MODELS, NAMESPACES, PODS
from localcluster.api.core import Api
from localcluster.api.server import Server
from localcluster.api.storage import Store
from tests.crds import crds

GIB = 2**30
SYSTEM = "greenthread-system"


def ago(seconds: float) -> str:
    return format_time(datetime.now(UTC) - timedelta(seconds=seconds))


class ApiThread:
    """The embedded API, in memory, on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self.port = 0

        async def start() -> None:
            self._server = Server(Api(Store()))
            self.port = await self._server.start()
            started.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Cluster:
    """What the parts of the product write, written by hand."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.client = Client(load_config(kubeconfig=kubeconfig))

    def install_crds(self) -> None:
        for crd in crds():
            self.client.create(CRDS, crd)
        for resource in (MODELS, GPUS):
            for _ in range(1000):
                try:
                    self.client.list(resource)
                    break
                except NoSuchKind:
                    continue
        for name in (SYSTEM, "prod"):
            self.client.create(NAMESPACES, {"metadata": {"name": name}})

    def clear(self) -> None:
        for resource in (MODELS, GPUS, PODS, EVENTS):
            for item in self.client.list(resource).items:
                meta = item["metadata"]
                self.client.delete(resource, meta["name"], meta["namespace"], grace_seconds=0)

    def gpu(self, index: int, total: float = 96, foreign: float = 0, node: str = "node-a") -> None:
        name = f"{node}-{index}"
        stats = {"usedMemoryBytes": 70 * GIB, "freeMemoryBytes": 26 * GIB, "utilizationPercent": 83,
                 "temperatureCelsius": 64, "powerWatts": 412}  # fmt: skip
        status = {"node": node, "index": index, "uuid": f"GPU-{index}", "product": "NVIDIA H100",
                  "totalMemoryBytes": int(total * GIB), "availableMemoryBytes": 0,
                  "foreignMemoryBytes": int(foreign * GIB), "stats": stats}  # fmt: skip
        self.client.create(GPUS, {"metadata": {"name": name, "namespace": SYSTEM}})
        self.client.patch(GPUS, name, {"status": status}, SYSTEM, "status")

    def model(
        self,
        name: str,
        gpus: str = "0",
        memory: float = 40,
        namespace: str = "default",
        report: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """A Model with one replica, asleep on its GPUs."""
        indices = [int(index) for index in gpus.split(",")]
        body = {"modelName": f"org/{name}", "tensorParallelSize": len(indices), **spec}
        self.client.create(MODELS, {"metadata": {"name": name, "namespace": namespace}, "spec": body})
        status = {"phase": "Ready", "servingMemoryPerGPU": int(memory * GIB), "replicas": 1, "readyReplicas": 1,
                  "node": "node-a", "gpus": gpus, "url": f"http://gateway/{name}/v1"}  # fmt: skip
        self.client.patch(MODELS, name, {"status": status}, namespace, "status")
        labels = {"app.kubernetes.io/name": "greenthread-model", "greenthread.ai/model": name}
        meta = {"name": f"{name}-0-abcd", "namespace": namespace, "labels": labels,
                "annotations": {"greenthread.ai/gpus": gpus}}  # fmt: skip
        spec_of_pod = {
            "containers": [{"name": "sidecar", "image": "sidecar"}],
            "nodeSelector": {"kubernetes.io/hostname": "node-a"},
        }
        self.client.create(PODS, {"metadata": meta, "spec": spec_of_pod})
        self.report(name, namespace=namespace, **(report or {}))
        for index in indices:
            self._entry(index, name, "sleeping", 0, namespace=namespace, popular=False)

    def report(self, name: str, namespace: str = "default", **report: Any) -> None:
        """The sidecar's report on its pod."""
        text = json.dumps({"state": "sleeping", "since": ago(7200), "inFlight": 0, "queued": 0} | report)
        patch = {"metadata": {"annotations": {"greenthread.ai/report": text}}}
        self.client.patch(PODS, f"{name}-0-abcd", patch, namespace)

    def occupy(self, name: str, state: str, gib: float = 0, gpus: str = "0", **fields: Any) -> None:
        """Moves an occupant, with the lock taken and given back as the protocol wants it."""
        for index in gpus.split(","):
            self._occupy(int(index), name, state, gib, **fields)

    def _occupy(self, index: int, name: str, state: str, gib: float, namespace: str = "default", **fields: Any) -> None:
        steps = {"serving": ["waking", "serving"], "deactivating": ["waking", "serving", "deactivating"]}
        now = next(
            occupant["state"] for occupant in self._status(index)["occupants"]
            if (occupant["namespace"], occupant["podName"]) == (namespace, f"{name}-0-abcd")
        )  # fmt: skip
        path = steps.get(state, [state])
        for step in path[path.index(now) + 1 :] if now in path else path:
            self._entry(index, name, step, gib, namespace=namespace, **fields)

    def _status(self, index: int) -> dict[str, Any]:
        status = self.client.get(GPUS, f"node-a-{index}", SYSTEM)["status"]
        return {"occupants": [], "preemptionIntents": []} | status

    def _entry(self, index: int, name: str, state: str, gib: float, namespace: str, **fields: Any) -> None:
        pod = f"{name}-0-abcd"
        status = self._status(index)
        occupants = [o for o in status["occupants"] if (o["namespace"], o["podName"]) != (namespace, pod)]
        old = next((o for o in status["occupants"] if (o["namespace"], o["podName"]) == (namespace, pod)), {})
        entry = {**old, "namespace": namespace, "podName": pod, "modelName": name, "state": state,
                 "reservedMemoryBytes": int(gib * GIB), **fields}  # fmt: skip
        patch: dict[str, Any] = {"occupants": [*occupants, entry]}
        if state == "waking":
            patch["wakeLock"] = {"holder": f"{namespace}/{pod}", "acquiredAt": ago(0)}
        elif (status.get("wakeLock") or {}).get("holder") == f"{namespace}/{pod}":
            patch["wakeLock"] = None
        self.client.patch(GPUS, f"node-a-{index}", {"status": patch}, SYSTEM, "status")

    def wait_for_room(self, name: str, gib: float, since: float, gpus: str = "0", namespace: str = "default") -> None:
        """An intent on each GPU."""
        for index in gpus.split(","):
            intent = {"namespace": namespace, "podName": f"{name}-0-abcd", "modelName": name,
                      "requestedMemoryBytes": int(gib * GIB), "since": ago(since)}  # fmt: skip
            others = self._status(int(index))["preemptionIntents"]
            patch = {"status": {"preemptionIntents": [*others, intent]}}
            self.client.patch(GPUS, f"node-a-{index}", patch, SYSTEM, "status")

    def event(self, name: str, reason: str, message: str, kind: str = "Normal", namespace: str = "default") -> None:
        """An Event on a Model, as its sidecar writes it."""
        now = datetime.now(UTC)
        obj = {
            "metadata": {"name": f"{name}.{now.timestamp():.6f}".replace(".", "-"), "namespace": namespace},
            "involvedObject": {"apiVersion": "greenthread.ai/v1alpha1", "kind": "Model", "name": name,
                               "namespace": namespace},
            "reason": reason, "message": message, "type": kind, "count": 1,
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        self.client.create(EVENTS, obj, namespace)

    def screens(self) -> None:
        """The moment that the README's picture of `top` shows."""
        self.gpu(0, foreign=2)
        self.gpu(1)
        serving = {"state": "serving", "inFlight": 4, "lastWakeSeconds": 0.612, "requests": 812}
        self.model("gpt-oss-20b", "1", 88.2, report=serving, fairness={"popular": True})
        self.model("llama-3-1-8b", memory=62, report=serving | {"inFlight": 1, "lastWakeSeconds": 0.54})
        self.model("kimi-vl-a3b", memory=9.2, report={"state": "waking", "since": ago(0.4), "queued": 2})
        self.model("qwen-3-4b-thinking", report={"state": "pending", "queued": 5, "lastWakeSeconds": 0.701})
        self.model("llama-3-1-70b", "0,1", 80, report={"lastWakeSeconds": 2.1})
        self.occupy("gpt-oss-20b", "serving", 88.2, "1", popular=True, becameServingAt=ago(192), lastAccessed=ago(1))
        now = {"becameServingAt": ago(2), "lastAccessed": ago(0), "protectedUntil": ago(-8)}
        self.occupy("llama-3-1-8b", "serving", 62, **now)
        self.occupy("kimi-vl-a3b", "waking", 9.2)
        self.wait_for_room("qwen-3-4b-thinking", 40, since=1.8)


def write_kubeconfig(path: Path, server: str) -> Path:
    config = {
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "contexts": [{"name": "here", "context": {"cluster": "here"}}],
        "current-context": "here",
    }
    path.write_text(json.dumps(config))
    return path
