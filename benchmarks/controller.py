"""How the controller grows with the number of Models: a real kube-apiserver, the real controller, pods played.

    python -m benchmarks.controller --models 1000 --json

256 GPUs on 32 nodes. A stand-in plays scheduler and kubelet: each pod is bound, and ready. With `--boot SECONDS` it
plays the sidecars as well, with all that they write: running, an entry on the GPU, an engine that boots (one at a time
on a GPU) and is put to sleep, the report, ready. The controller is `python -m controller`; its time and memory are the
kernel's word, its requests the API server's audit log's. Then the controller is restarted, and must find everything as
it should be. Last, the steady state: agents write each GPU's stats every 5 s, each sidecar watches its Model and its
GPU, and nothing else happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._common import cpu_seconds, install_crds
from benchmarks._table import table
from controller.agent.settings import Settings as AgentSettings
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from greenthread.kube.core import Object
from greenthread.kube.errors import Unreachable
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import GPUS, MODELS, NODES, PODS, Key, Resource, key_of
from greenthread.names import (
    ANNOTATION_GPUS,
    ANNOTATION_REPORT,
    ANNOTATION_SERVING_MEMORY,
    API_VERSION,
    DEFAULT_NAMESPACE,
    LABEL_MODEL,
)
from greenthread.units import GIB
from tests.testbeds.kube import RealApi, free_ports

GPU_NODES, GPUS_OF_A_NODE = 32, 8
TOTAL, NEEDED = 80 * GIB, 60 * GIB
#: Requests under way at once, of the people who apply Models and of all kubelets together.
CREATORS, KUBELETS = 8, 16
#: Seconds after which a phase counts as stuck.
STUCK = 900.0
#: Seconds for what is under way to end before something is counted.
QUIET = 3.0
CONTROLLER = "greenthread (controller)"


@dataclass
class Row:
    """One number of Models. Seconds, unless it says otherwise."""

    models: int
    all_ready: float = 0.0
    controller_cpu: float = 0.0
    #: For which the controller could have run, and the machine had no core for it.
    controller_waited: float = 0.0
    stand_in_cpu: float = 0.0
    api_cpu: float = 0.0
    #: The controller's requests, by verb and kind.
    calls: Counter[str] = field(default_factory=Counter)
    rss: float = 0.0  # MB, at most
    resync: float = 0.0
    resync_cpu: float = 0.0
    resync_writes: int = 0
    idle: float = 0.0  # of steady state measured
    idle_controller_cpu: float = 0.0
    idle_api_cpu: float = 0.0
    idle_requests: int = 0
    idle_controller_writes: int = 0

    @property
    def calls_per_model(self) -> float:
        return self.calls.total() / self.models

    def numbers(self) -> dict[str, Any]:
        """Of the JSON object."""
        found = {
            "models": self.models,
            "all_ready_s": self.all_ready,
            "api_calls_per_model": self.calls_per_model,
            "controller_cpu_ms_per_model": 1000 * self.controller_cpu / self.models,
            "apiserver_cpu_ms_per_model": 1000 * self.api_cpu / self.models,
            "stand_in_cpu_ms_per_model": 1000 * self.stand_in_cpu / self.models,
            "controller_waited_for_cpu_s": self.controller_waited,
            "rss_mb": self.rss,
            "resync_after_restart_s": self.resync,
            "resync_cpu_s": self.resync_cpu,
            "resync_writes": self.resync_writes,
        }
        if self.idle:
            found |= {
                "steady_requests_per_s": self.idle_requests / self.idle,
                "steady_apiserver_cores": self.idle_api_cpu / self.idle,
                "steady_controller_cores": self.idle_controller_cpu / self.idle,
                "steady_controller_writes": self.idle_controller_writes,
            }
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


class Machines:
    """Scheduler, kubelets and sidecars of all nodes: does for each pod what they would write."""

    def __init__(self, client: AsyncClient, boot: float) -> None:
        self._client, self._boot = client, boot
        self._seen: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {}  # by GPU: one engine boots at a time
        self._entries: Counter[str] = Counter()
        self._writing = asyncio.Semaphore(KUBELETS)
        self._tasks: set[asyncio.Task[None]] = set()
        self.pods = Reflector(client, PODS, DEFAULT_NAMESPACE, LABEL_MODEL, on_event=self._on_pod)

    def _on_pod(self, kind: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if kind == "DELETED" or uid in self._seen:
            return
        self._seen.add(uid)
        task = asyncio.create_task(self._run(pod))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"a pod is stuck: {error!r}", file=sys.stderr)

    async def _run(self, pod: Object) -> None:
        meta = pod["metadata"]
        name, node = meta["name"], pod["spec"]["nodeSelector"]["kubernetes.io/hostname"]
        gpu = f"{node}-{meta['annotations'][ANNOTATION_GPUS]}"
        binding = Resource("", "v1", f"pods/{name}/binding", "Binding")
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        await self._write(
            lambda: self._client.create(binding, {"metadata": {"name": name}, "target": target}, DEFAULT_NAMESPACE)
        )
        if not self._boot:
            await self._status(pod, ready=True)
            return
        await self._status(pod, ready=False)
        async with self._turns.setdefault(gpu, asyncio.Lock()):
            entry = {
                "namespace": DEFAULT_NAMESPACE,
                "podName": name,
                "modelName": meta["labels"][LABEL_MODEL],
                "state": "converting",
                "reservedMemoryBytes": NEEDED,
            }
            number = self._entries[gpu]
            self._entries[gpu] += 1
            await self._gpu(gpu, [{"op": "add", "path": "/status/occupants/-", "value": entry}])
            await asyncio.sleep(self._boot)
            path = f"/status/occupants/{number}"
            await self._gpu(gpu, [{"op": "replace", "path": f"{path}/state", "value": "deactivating"}])
            asleep = [
                {"op": "replace", "path": f"{path}/state", "value": "sleeping"},
                {"op": "replace", "path": f"{path}/reservedMemoryBytes", "value": 0},
            ]
            await self._gpu(gpu, asleep)
        report = json.dumps({"state": "sleeping", "bootReady": True})
        annotations = {ANNOTATION_REPORT: report, ANNOTATION_SERVING_MEMORY: str(NEEDED)}
        body = {"metadata": {"annotations": annotations}}
        await self._write(lambda: self._client.patch(PODS, name, body, DEFAULT_NAMESPACE))
        await self._status(pod, ready=True)

    async def _status(self, pod: Object, ready: bool) -> None:
        conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}]
        status = {"phase": "Running", "conditions": conditions}
        name = pod["metadata"]["name"]
        await self._write(lambda: self._client.patch(PODS, name, {"status": status}, DEFAULT_NAMESPACE, "status"))

    async def _gpu(self, name: str, patch: list[Object]) -> None:
        await self._write(lambda: self._client.patch(GPUS, name, patch, DEFAULT_NAMESPACE, "status"))

    async def _write(self, send: Callable[[], Awaitable[Object]]) -> None:
        async with self._writing:
            while True:
                try:
                    await send()
                    return
                except Unreachable:  # an API server as loaded as this one may drop a connection
                    await asyncio.sleep(0.2)


class Controller:
    """`python -m controller` as a process."""

    def __init__(self, api: RealApi) -> None:
        self._api = api
        [self.port] = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = api.folder / "controller.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        env = os.environ | {
            "KUBECONFIG": str(self._api.kubeconfig),
            "METRICS_PORT": str(self.port),
            "GREENTHREAD_ROUTE_GATEWAY": "",
            "POD_NAME": f"controller-{time.monotonic_ns()}",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "controller"], env=env, stderr=log)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def waited(self) -> float:
        """Seconds for which it could have run and had no core."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    def rss(self) -> float:
        """The most memory that it ever held, MB."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    async def settled(self, models: int) -> bool:
        """Whether each Model has had its turn, and none waits for one."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = (await reader.read()).decode()
        finally:
            writer.close()
        turns = sum(float(n) for n in re.findall(r"^gthread_controller_reconciles_total\{.*\} (\S+)$", text, re.M))
        waiting = re.search(r"^gthread_controller_queue_depth (\S+)$", text, re.M)
        return turns >= models and waiting is not None and float(waiting[1]) == 0


class Audit:
    """The API server's log of requests, from a moment on."""

    def __init__(self, api: RealApi) -> None:
        self._log = api.audit_log
        self._from = self._log.stat().st_size if self._log.exists() else 0

    def requests(self) -> list[tuple[str, str]]:
        """(user agent, `verb kind`) of each request."""
        with self._log.open("rb") as log:
            log.seek(self._from)
            events = [json.loads(line) for line in log if b'"stage":"RequestReceived"' in line and line.endswith(b"\n")]
        return [(event.get("userAgent", ""), _what(event)) for event in events]

    def controllers(self) -> Counter[str]:
        """The controller's own, less its Lease and its watches."""
        own = (what for agent, what in self.requests() if agent == CONTROLLER)
        return Counter(what for what in own if not what.startswith("watch ") and not what.endswith(" leases"))


def _what(event: Object) -> str:
    reference = event.get("objectRef") or {}
    kind = "/".join(filter(None, (reference.get("resource", ""), reference.get("subresource", ""))))
    return f"{event['verb']} {kind or event['requestURI']}"


async def measure(count: int, boot: float, idle: float) -> Row:
    """One fresh cluster with `count` Models."""
    row = Row(count)
    with RealApi(audit=True) as api:
        controller = Controller(api)
        async with AsyncClient(load_config(api.kubeconfig)) as client:
            await install_crds(client)
            await make_devices(client)
            controller.start()
            try:
                async with asyncio.TaskGroup() as group:
                    machines = Machines(client, boot)
                    ready = Phases(client)
                    tasks = [group.create_task(machines.pods.run()), group.create_task(ready.models.run())]
                    await asyncio.gather(machines.pods.synced(), ready.models.synced())
                    await _until(lambda: controller.settled(0), "the controller leads")
                    await create(row, api, controller, client, ready)
                    await restart(row, api, controller)
                    if idle:
                        await steady(row, api, controller, client, machines, idle)
                    for task in tasks:
                        task.cancel()
            finally:
                controller.stop()
    return row


async def make_devices(client: AsyncClient) -> None:
    """The nodes and their GPUs, as their agents register them."""

    async def one(node: str) -> None:
        labels = {"kubernetes.io/hostname": node, "nvidia.com/gpu.present": "true"}
        await client.create(NODES, {"metadata": {"name": node, "labels": labels}})
        for index in range(GPUS_OF_A_NODE):
            name = f"{node}-{index}"
            labels = {"greenthread.ai/node": node}
            await client.create(GPUS, {"metadata": {"name": name, "labels": labels}}, DEFAULT_NAMESPACE)
            status = {"node": node, "index": index, "totalMemoryBytes": TOTAL, "product": "NVIDIA H100 80GB HBM3"}
            await client.patch(GPUS, name, {"status": status}, DEFAULT_NAMESPACE, "status")

    await asyncio.gather(*(one(f"node-{number:02}") for number in range(GPU_NODES)))


class Phases:
    """Which Models are Ready."""

    def __init__(self, client: AsyncClient) -> None:
        self.ready: set[Key] = set()
        self.changed = asyncio.Event()
        self.models = Reflector(client, MODELS, on_event=self._on_model)

    def _on_model(self, kind: str, model: Object) -> None:
        if kind != "DELETED" and (model.get("status") or {}).get("phase") == "Ready":
            self.ready.add(key_of(model))
        else:
            self.ready.discard(key_of(model))
        self.changed.set()


async def create(row: Row, api: RealApi, controller: Controller, client: AsyncClient, phases: Phases) -> None:
    """Applies all Models at once, and waits until the last is Ready."""
    audit, api_cpu, own_cpu = Audit(api), cpu_seconds(api.pids), cpu_seconds([controller.pid])
    gate = asyncio.Semaphore(CREATORS)

    async def one(number: int) -> None:
        spec = {"modelName": f"bench/model-{number}", "gpuMemoryUtilization": "0.75"}
        model = {"apiVersion": API_VERSION, "kind": "Model", "metadata": {"name": f"model-{number:05}"}, "spec": spec}
        async with gate:
            await client.create(MODELS, model, DEFAULT_NAMESPACE)

    waited, mine = controller.waited(), time.process_time()
    began = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(row.models)))
    async with asyncio.timeout(STUCK):
        while len(phases.ready) < row.models:
            phases.changed.clear()
            await phases.changed.wait()
    row.all_ready = time.monotonic() - began
    row.controller_waited, row.stand_in_cpu = controller.waited() - waited, time.process_time() - mine
    await asyncio.sleep(QUIET)
    row.controller_cpu = cpu_seconds([controller.pid]) - own_cpu
    row.api_cpu = cpu_seconds(api.pids) - api_cpu
    row.calls = audit.controllers()
    row.rss = controller.rss()


async def restart(row: Row, api: RealApi, controller: Controller) -> None:
    """Another controller takes over: how long until it has looked at every Model, and whether it left them alone."""
    controller.stop()
    audit, began = Audit(api), time.monotonic()
    controller.start()
    await _until(lambda: controller.settled(row.models), "the new controller has looked at every Model")
    row.resync, row.resync_cpu = time.monotonic() - began, cpu_seconds([controller.pid])
    await asyncio.sleep(QUIET)
    row.resync_writes = sum(n for what, n in audit.controllers().items() if not what.startswith(("list", "get")))
    row.rss = max(row.rss, controller.rss())


async def steady(
    row: Row, api: RealApi, controller: Controller, client: AsyncClient, machines: Machines, seconds: float
) -> None:
    """Nobody asks any model: stats are written, and everybody watches."""
    every = AgentSettings("").write_every
    async with asyncio.TaskGroup() as group:
        watching = []
        for pod in machines.pods.objects.values():
            gpu = f"{pod['spec']['nodeName']}-{pod['metadata']['annotations'][ANNOTATION_GPUS]}"
            model = pod["metadata"]["labels"][LABEL_MODEL]
            for resource, name in ((GPUS, gpu), (MODELS, model)):
                watching.append(Reflector(client, resource, DEFAULT_NAMESPACE, "", f"metadata.name={name}"))
        tasks = []
        for number, reflector in enumerate(watching):
            tasks.append(group.create_task(reflector.run()))
            if number % 50 == 49:  # a thousand TLS handshakes at once would be another benchmark
                await asyncio.gather(*(each.synced() for each in watching[: number + 1]))
        await asyncio.gather(*(each.synced() for each in watching))

        async def agent(node: int) -> None:
            await asyncio.sleep(every * node / GPU_NODES)
            while True:
                due = time.monotonic() + every
                for index in range(GPUS_OF_A_NODE):
                    stats = {"usedMemoryBytes": 0, "freeMemoryBytes": TOTAL, "powerWatts": time.monotonic_ns() % 700}
                    body = {"status": {"stats": stats}}
                    await client.patch(GPUS, f"node-{node:02}-{index}", body, DEFAULT_NAMESPACE, "status")
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        tasks += [group.create_task(agent(node)) for node in range(GPU_NODES)]
        await asyncio.sleep(every + QUIET)
        audit, api_cpu, own_cpu = Audit(api), cpu_seconds(api.pids), cpu_seconds([controller.pid])
        began = time.monotonic()
        await asyncio.sleep(seconds)
        row.idle = time.monotonic() - began
        row.idle_api_cpu = cpu_seconds(api.pids) - api_cpu
        row.idle_controller_cpu = cpu_seconds([controller.pid]) - own_cpu
        row.idle_requests = len(audit.requests())
        row.idle_controller_writes = audit.controllers().total()
        for task in tasks:
            task.cancel()


async def _until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + STUCK
    while not await holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"it did not come true within {STUCK:g} s that {what}")
        await asyncio.sleep(0.1)


def text(rows: list[Row]) -> str:
    """The tables for people."""
    numbers = [row.numbers() for row in rows]
    names = list(dict.fromkeys(name for each in numbers for name in each))
    lines = table([[name, *(f"{each.get(name, '-')}" for each in numbers)] for name in names])
    last = rows[-1]
    lines += ["", f"The controller's requests for {last.models} Models, by kind:"]
    lines += [f"  {count / last.models:6.2f} per Model  {what}" for what, count in last.calls.most_common()]
    return "\n".join(lines)


def main() -> int:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description=about)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--models", type=int, default=1000, help="Models (default: 1000)")
    parser.add_argument("--beside", default="100,300", help="further numbers of Models (default: 100,300)")
    parser.add_argument("--boot", type=float, default=0.0, help="play sidecars, with boots of so many seconds")
    parser.add_argument("--steady", type=float, default=20.0, help="seconds of the steady state (0: none; default: 20)")
    given = parser.parse_args()
    beside = sorted(int(part) for part in given.beside.split(",") if part)
    rows = []
    for count in [*(count for count in beside if count < given.models), given.models]:
        rows.append(asyncio.run(measure(count, given.boot, given.steady)))
        print(json.dumps(rows[-1].numbers()), file=sys.stderr)
    print(text(rows))
    if given.json:
        print(json.dumps(rows[-1].numbers() | {"beside": [row.numbers() for row in rows[:-1]]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
