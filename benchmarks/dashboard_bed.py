"""A large cluster that changes all the time, on the embedded API: what the dashboard's benchmark looks at.

A program: it writes a kubeconfig, prints `ready`, and obeys lines on its standard input: a number is how many objects
change per second from then on; it ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvloop
import yaml

from greenthread.clock import SystemClock, format_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.resources import CRDS, EVENTS, GPUS, MODELS, NAMESPACES, PODS
from localcluster.api.certificate import load_certificate
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.server import Server, write_kubeconfig
from localcluster.api.storage import Store

GIB = 2**30
SYSTEM, TEAM = "greenthread-system", "team"
MANIFESTS = Path(__file__).parents[1] / "manifests" / "crds"
CLOCK = SystemClock()


def ago(seconds: float) -> str:
    return format_time(CLOCK.now() - timedelta(seconds=seconds))


class Bed:
    """`models` on `gpus`: on each the first one serves, every fifth GPU has one that waits."""

    def __init__(self, client: AsyncClient, models: int, gpus: int) -> None:
        self.client = client
        self.names = [f"model-{number:04d}" for number in range(models)]
        self.count = gpus
        self.rng = random.Random(1)
        self.made = 0
        self.requests = dict.fromkeys(self.names, 0)
        self.on = {gpu: self.names[gpu::gpus] for gpu in range(gpus)}

    def gpu(self, number: int) -> str:
        return f"node-{number // 8:02d}-{number % 8}"

    def occupants(self, number: int) -> list[dict[str, Any]]:
        return [
            {"namespace": TEAM, "podName": f"{name}-0-5f6c7d8e", "modelName": name,
             "state": "serving" if at == 0 else "sleeping", "reservedMemoryBytes": 60 * GIB if at == 0 else 0,
             "popular": False, "lastAccessed": ago(self.rng.random() * 60), "becameServingAt": ago(100)}
            for at, name in enumerate(self.on[number])
        ]  # fmt: skip

    def report(self, name: str, state: str) -> str:
        told = {"state": state, "since": ago(100), "bootReady": True, "inFlight": self.rng.randrange(4), "queued": 0,
                "requests": self.requests[name], "lastWakeSeconds": 0.7, "error": ""}  # fmt: skip
        return json.dumps(told)

    def stats(self) -> dict[str, int]:
        pick = self.rng.randrange
        return {"usedMemoryBytes": pick(96 * GIB), "freeMemoryBytes": pick(96 * GIB), "utilizationPercent": pick(100),
                "temperatureCelsius": pick(40, 80), "powerWatts": pick(100, 500)}  # fmt: skip

    async def populate(self) -> None:
        for path in sorted(MANIFESTS.glob("*.yaml")):
            await self.client.create(CRDS, yaml.safe_load(path.read_text()))
        for name in (SYSTEM, TEAM):
            await self.client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        kind = {"apiVersion": "greenthread.ai/v1alpha1"}
        for number in range(self.count):
            meta = {"name": self.gpu(number), "namespace": SYSTEM}
            await self.client.create(GPUS, {**kind, "kind": "GPU", "metadata": meta})
            status = {"node": f"node-{number // 8:02d}", "index": number % 8, "uuid": f"GPU-{number}",
                      "product": "NVIDIA H100 80GB HBM3", "totalMemoryBytes": 96 * GIB,
                      "availableMemoryBytes": 36 * GIB, "foreignMemoryBytes": 0, "stats": self.stats(),
                      "preemptionIntents": []}  # fmt: skip
            boots = [
                {**item, "state": "converting"} if item["state"] == "serving" else item
                for item in self.occupants(number)
            ]
            await self.status(number, {**status, "occupants": boots})
            await self.status(number, {"occupants": self.occupants(number)})
            if number % 5 == 0 and len(self.on[number]) > 1:
                await self.status(number, {"preemptionIntents": [self.intent(number)]})
        for number, name in enumerate(self.names):
            await self.model(number, name)

    def intent(self, number: int) -> dict[str, Any]:
        name = self.on[number][1]
        return {"namespace": TEAM, "podName": f"{name}-0-5f6c7d8e", "modelName": name,
                "requestedMemoryBytes": 60 * GIB, "since": ago(1), "victims": []}  # fmt: skip

    async def status(self, number: int, status: dict[str, Any]) -> None:
        await self.client.patch(GPUS, self.gpu(number), {"status": status}, namespace=SYSTEM, subresource="status")

    async def model(self, number: int, name: str) -> None:
        kind = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "Model"}
        meta, since = {"name": name, "namespace": TEAM}, ago(7000)[:19] + "Z"
        await self.client.create(MODELS, {**kind, "metadata": meta, "spec": {"modelName": f"organisation/{name}"}})
        ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "1 of 1 replicas answers",
                 "lastTransitionTime": since}  # fmt: skip
        status = {"phase": "Ready", "lastTransition": ago(48), "servingMemoryPerGPU": 60 * GIB,
                  "conditions": [ready], "url": f"http://gateway/{name}/v1"}  # fmt: skip
        await self.client.patch(MODELS, name, {"status": status}, namespace=TEAM, subresource="status")
        state = "serving" if number < self.count else "sleeping"
        pod = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": f"{name}-0-5f6c7d8e", "namespace": TEAM,
                "labels": {"greenthread.ai/model": name, "app.kubernetes.io/name": "greenthread-model"},
                "annotations": {"greenthread.ai/gpus": str(number % self.count % 8),
                                "greenthread.ai/report": self.report(name, state)},
            },
            "spec": {"nodeName": f"node-{number % self.count // 8:02d}", "containers": [
                {"name": "sidecar", "image": "greenthread/sidecar"}, {"name": "vllm", "image": "vllm/vllm-openai"}]},
        }  # fmt: skip
        await self.client.create(PODS, pod)

    async def change(self) -> None:
        """One object: mostly what is measured and counted, sometimes who is on a GPU and who waits, and Events."""
        number, kind = self.rng.randrange(self.count), self.rng.random()
        name = self.on[number][0]
        if kind < 0.45:
            self.requests[name] += self.rng.randrange(1, 9)
            body = {"metadata": {"annotations": {"greenthread.ai/report": self.report(name, "serving")}}}
            await self.client.patch(PODS, f"{name}-0-5f6c7d8e", body, namespace=TEAM)
        elif kind < 0.85:
            await self.status(number, {"stats": self.stats()})
        elif kind < 0.92:
            await self.status(number, {"occupants": self.occupants(number)})
        elif kind < 0.97:
            intents = [self.intent(number)] if self.rng.random() < 0.2 else []
            await self.status(number, {"preemptionIntents": intents})
        else:
            await self.event(name)

    async def event(self, name: str) -> None:
        self.made += 1
        steps = {"queue": 0.01, "claim": 0.004, "engine": 0.5}
        record = {"kind": "wake", "at": ago(1), "reason": "request", "gpus": "node-00/0", "steps": steps,
                  "total": 0.514 + self.rng.random(), "memory": 0, "waitedFor": "", "victims": [], "forModel": "",
                  "error": ""}  # fmt: skip
        moment = ago(0)[:19] + "Z"
        body = {
            "apiVersion": "v1", "kind": "Event", "reason": "Woke", "message": f"woke in 514ms, number {self.made}",
            "metadata": {"name": f"{name}.{self.made}", "namespace": TEAM,
                         "annotations": {"greenthread.ai/record": json.dumps(record)}},
            "involvedObject": {"kind": "Model", "name": name, "namespace": TEAM,
                               "apiVersion": "greenthread.ai/v1alpha1"},
            "type": "Normal", "firstTimestamp": moment, "lastTimestamp": moment, "count": 1,
        }  # fmt: skip
        await self.client.create(EVENTS, body, namespace=TEAM)


async def main(folder: Path, models: int, gpus: int) -> None:
    token = "benchmark"
    api = Api(Store(":memory:"), token=token)
    client = AsyncClient(InProcess(api, token))
    bed = Bed(client, models, gpus)
    await bed.populate()
    tls, certificate = load_certificate(folder, CLOCK.now())
    server = Server(api)
    port = await server.start(0, tls)
    write_kubeconfig(folder / "kubeconfig", port, token, certificate)
    print("ready", flush=True)
    rate, reader = 0.0, asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    lines = asyncio.create_task(reader.readline())
    loop = asyncio.get_running_loop()
    due, done = loop.time(), 0
    while True:
        if lines.done():
            text = lines.result()
            if not text:
                break
            print(f"made {done}", flush=True)
            rate, due, done = float(text), loop.time(), 0
            lines = asyncio.create_task(reader.readline())
        if not rate:
            await asyncio.wait({lines})
            continue
        if due > loop.time():
            await asyncio.wait({lines}, timeout=due - loop.time())
            continue
        await bed.change()
        done += 1
        # what could not be made in time is not made up for
        due = max(due + 1 / rate, loop.time() - 0.5)
    await server.stop()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
