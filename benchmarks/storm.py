"""Every model is asked at once: real sidecars, all in this process, on a Kubernetes API in another.

    python -m benchmarks.storm --json [--api embedded|real] [--models 500 --gpus 100]

The models of one GPU do not fit on it together, so those that waited longest make the others give way as soon as these
have answered. An engine is a timer and a ledger of what really is in use: memory beyond a device, or two wakes at once
on one, would be seen there. Each sidecar has its own connections to the API, as in a pod of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks._common import API_KINDS, cpu_seconds, install_crds, open_api
from benchmarks._table import table
from greenthread.gpu import PodRef, State, gpu_name
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig, load_config
from greenthread.kube.core import Response
from greenthread.kube.http import HttpTransport
from greenthread.kube.resources import GPUS, MODELS
from greenthread.names import API_VERSION, DEFAULT_NAMESPACE
from greenthread.units import GIB
from proxy.routes import Outcome
from proxy.terms import NO_TERMS
from sidecar.app import Sidecar
from sidecar.engine import EngineError, Rest
from sidecar.settings import Settings

NAMESPACE = DEFAULT_NAMESPACE
TOTAL = 96 * GIB
GPUS_PER_NODE = 8
#: Of the models of one GPU, how many fit on it at once.
FIT = 3
#: Seconds that an engine takes to wake and to sleep.
WAKE, SLEEP = 0.5, 0.1
#: Models and GPUs of each run when none are given; the last is the one whose figures count.
SIZES = ((50, 10), (200, 40), (500, 100))
FAIRNESS = {"minRuntime": "0s", "maxWaitTime": "0s", "yieldAfter": "1s"}
#: Seconds until a storm counts as stuck.
LIMIT = 120.0


@dataclass(frozen=True)
class Result:
    """One storm. Times in seconds, all of the wall clock but `cpu_*`."""

    models: int
    gpus: int
    served: int
    overcommits: int
    shared_wakes: int
    makespan: float
    ideal: float
    makespan_vs_ideal: float
    writes_per_wake: float
    conflicts_per_wake: float
    requests_per_wake: float
    preemptions: int
    cpu_ms_per_wake: float
    api_cpu_ms_per_wake: float
    start_seconds: float


class Device:
    """What is really in use on one GPU."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.waking: set[str] = set()
        self.overcommits = 0
        self.shared_wakes = 0


class TimedEngine:
    """An engine that takes time and memory. It has booted and sleeps."""

    def __init__(self, device: Device, owner: str, need: int) -> None:
        self._device, self._owner, self._need = device, owner, need

    def configure(self, spec: Any) -> None:
        """Nothing of the spec matters."""

    async def settle(self) -> Rest:
        return Rest.ASLEEP

    async def leftovers_gone(self) -> None:
        """There are none."""

    async def start(self) -> None:
        raise EngineError("these engines have booted")

    async def wake(self) -> None:
        device = self._device
        device.held[self._owner] = self._need
        device.overcommits += sum(device.held.values()) > TOTAL
        device.shared_wakes += bool(device.waking)
        device.waking.add(self._owner)
        await asyncio.sleep(WAKE)
        device.waking.discard(self._owner)

    async def sleep(self) -> None:
        await asyncio.sleep(SLEEP)
        self._device.held.pop(self._owner, None)

    async def kill(self) -> None:
        self._device.held.pop(self._owner, None)

    async def memory(self) -> list[int] | None:
        return [self._need]

    async def left_behind(self) -> int | None:
        return 0

    @property
    def shortfalls(self) -> list[str]:
        return []


class Counting:
    """The transport of a sidecar, with its requests counted by method and kind."""

    def __init__(self, inner: HttpTransport, counts: Counter[str]) -> None:
        self._inner, self._counts = inner, counts
        self.where = inner.where

    async def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> Response:
        self._counts[f"{method} {'gpus' if '/gpus/' in path else 'other'}"] += 1
        return await self._inner.request(method, path, params, headers, body, timeout)

    def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], timeout: float
    ) -> AsyncGenerator[bytes | Response, None]:
        return self._inner.stream(method, path, params, headers, timeout)

    async def close(self) -> None:
        await self._inner.close()


class Exchange:
    """A request that the engine answers at once."""

    terms, waited, status = NO_TERMS, 0.0, 200
    response_lines: Sequence[bytes] | None = None


def ideal(models: int) -> float:
    """Seconds in which a scheduler that knows all would serve the models of one GPU.

    It wakes one at a time, as the link to the host allows, and puts a model to sleep while the next ones wake.
    """
    ends: list[float] = []
    for number in range(models):
        begin = ends[-1] if ends else 0.0
        if number >= FIT:
            begin = max(begin, ends[number - FIT] + SLEEP)
        ends.append(begin + WAKE)
    return ends[-1]


async def register(client: AsyncClient, models: int, gpus: int) -> None:
    """The GPU and Model objects."""
    for number in range(gpus):
        node, index = place(number)
        name = gpu_name(node, index)
        await client.create(GPUS, {"metadata": {"name": name, "namespace": NAMESPACE}})
        status = {
            "node": node, "index": index, "uuid": f"GPU-{number}", "product": "Timer", "totalMemoryBytes": TOTAL,
            "availableMemoryBytes": TOTAL, "foreignMemoryBytes": 0, "occupants": [], "preemptionIntents": [],
        }  # fmt: skip
        await client.patch(GPUS, name, {"status": status}, NAMESPACE, "status")
    for number in range(models):
        spec = {"modelName": f"storm/m{number}", "fairness": FAIRNESS, "sleep": {"idleTimeout": "0s"}}
        meta = {"name": f"m{number}", "namespace": NAMESPACE}
        await client.create(MODELS, {"apiVersion": API_VERSION, "kind": "Model", "metadata": meta, "spec": spec})


def place(gpu: int) -> tuple[str, int]:
    """Node and index of a GPU."""
    return f"node{gpu // GPUS_PER_NODE}", gpu % GPUS_PER_NODE


class Storm:
    """The sidecars of one run."""

    def __init__(self, config: ClusterConfig, models: int, gpus: int, folder: Path) -> None:
        self.devices = [Device() for _ in range(gpus)]
        self.counts: Counter[str] = Counter()
        self.sidecars: list[Sidecar] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.clients: list[AsyncClient] = []
        for number in range(models):
            node, index = place(number % gpus)
            run_dir = folder / f"m{number}"
            run_dir.mkdir()
            settings = Settings(
                pod=PodRef(NAMESPACE, f"m{number}-0"), pod_uid="", model=f"m{number}", node=node, gpu_indices=(index,),
                run_dir=str(run_dir), namespace=NAMESPACE, serving_memory=TOTAL // FIT,
            )  # fmt: skip
            client = AsyncClient(Counting(HttpTransport(config), self.counts))
            sidecar = Sidecar(settings, client, record_pod=False)
            sidecar.attach(TimedEngine(self.devices[number % gpus], f"m{number}", TOTAL // FIT))
            self.clients.append(client)
            self.sidecars.append(sidecar)

    async def start(self) -> None:
        """Returns when every sidecar is at rest and its entry written."""
        # not all at once: an API server has a limit on what it answers at a time
        for first in range(0, len(self.sidecars), 25):
            some = self.sidecars[first : first + 25]
            self.tasks += [asyncio.create_task(sidecar.run()) for sidecar in some]
            while not all(map(_at_rest, some)):  # noqa: ASYNC110 before the clock starts
                await asyncio.sleep(0.01)

    async def ask(self, sidecar: Sidecar) -> float:
        """One request; the time at which it was let in."""
        door, exchange = sidecar.door, Exchange()
        await door.enter(exchange)
        at = time.monotonic()
        door.leave(exchange, Outcome.SUCCESS)
        return at

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for client in self.clients:
            await client.close()


def _at_rest(sidecar: Sidecar) -> bool:
    entries = [gpu.occupant(sidecar.settings.pod) for gpu in sidecar.claims.gpus()]
    return sidecar.lifecycle.boot_ready and all(e is not None and e.state is State.SLEEPING for e in entries)


async def run(config: ClusterConfig, pids: list[int], models: int, gpus: int) -> Result:
    """One storm on a fresh API."""
    async with AsyncClient(config) as client:
        await install_crds(client)
        await register(client, models, gpus)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="greenthread-storm-") as folder:
        storm = Storm(config, models, gpus, Path(folder))
        try:
            await storm.start()
            start_seconds = time.monotonic() - began
            await asyncio.sleep(1.0)
            gc.collect()
            storm.counts.clear()
            conflicts = -sum(_value(sidecar.metrics.cas_conflicts) for sidecar in storm.sidecars)
            cpu, api_cpu = time.process_time(), cpu_seconds(pids)
            asked = time.monotonic()
            async with asyncio.timeout(LIMIT):
                answers = await asyncio.gather(*map(storm.ask, storm.sidecars), return_exceptions=True)
            served = [answer for answer in answers if isinstance(answer, float)]
            # the writes that end the last wakes belong to them
            await asyncio.sleep(1.0)
            cpu, api_cpu = time.process_time() - cpu, cpu_seconds(pids) - api_cpu
            conflicts += sum(_value(sidecar.metrics.cas_conflicts) for sidecar in storm.sidecars)
        finally:
            await storm.stop()
    makespan, best = max(served) - asked, max(ideal(_models_on(gpu, models, gpus)) for gpu in range(gpus))
    return Result(
        models=models,
        gpus=gpus,
        served=len(served),
        overcommits=sum(device.overcommits for device in storm.devices),
        shared_wakes=sum(device.shared_wakes for device in storm.devices),
        makespan=round(makespan, 3),
        ideal=best,
        makespan_vs_ideal=round(makespan / best, 3),
        writes_per_wake=round(storm.counts["PATCH gpus"] / models, 2),
        conflicts_per_wake=round(conflicts / models, 2),
        requests_per_wake=round(storm.counts.total() / models, 2),
        preemptions=int(sum(_value(sidecar.metrics.preempted) for sidecar in storm.sidecars)),
        cpu_ms_per_wake=round(1000 * cpu / models, 2),
        api_cpu_ms_per_wake=round(1000 * api_cpu / models, 2),
        start_seconds=round(start_seconds, 1),
    )


def _models_on(gpu: int, models: int, gpus: int) -> int:
    return len(range(gpu, models, gpus))


def _value(counter: Any) -> float:
    return float(counter._value.get())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--api", choices=API_KINDS, default="embedded", help="which Kubernetes API (default: embedded)")
    parser.add_argument("--models", type=int, help="one run with so many models (default: three sizes)")
    parser.add_argument("--gpus", type=int, help="and so many GPUs")
    given = parser.parse_args()
    if (given.models is None) != (given.gpus is None):
        parser.error("--models and --gpus belong together")
    logging.basicConfig(level=logging.ERROR)
    results = []
    for models, gpus in SIZES if given.models is None else ((given.models, given.gpus),):
        with open_api(given.api) as (api, pids):
            results.append(uvloop.run(run(load_config(api.kubeconfig), pids, models, gpus)))
        print(f"{models} models on {gpus} GPUs: {results[-1].makespan:.2f} s", file=sys.stderr)
    print(text(results, given.api))
    if given.json:
        print(json.dumps(asdict(results[-1]) | {"api": given.api, "sizes": [asdict(result) for result in results]}))
    return 0


def text(results: list[Result], api: str) -> str:
    """The table for people."""
    rows = [["", *(f"{r.models} models, {r.gpus} GPUs" for r in results)]]
    for label, value in (
        ("served", lambda r: f"{r.served}"),
        ("over-commits", lambda r: f"{r.overcommits}"),
        ("wakes that shared a GPU's link", lambda r: f"{r.shared_wakes}"),
        ("makespan", lambda r: f"{r.makespan:.2f} s"),
        ("  ideal", lambda r: f"{r.ideal:.2f} s"),
        ("  makespan / ideal", lambda r: f"{r.makespan_vs_ideal:.2f}"),
        ("models that gave way", lambda r: f"{r.preemptions}"),
        ("writes of GPU objects per wake", lambda r: f"{r.writes_per_wake:.2f}"),
        ("  refused, per wake", lambda r: f"{r.conflicts_per_wake:.2f}"),
        ("all requests per wake", lambda r: f"{r.requests_per_wake:.2f}"),
        ("CPU per wake: all sidecars", lambda r: f"{r.cpu_ms_per_wake:.1f} ms"),
        ("CPU per wake: API server", lambda r: f"{r.api_cpu_ms_per_wake:.1f} ms"),
    ):
        rows.append([label, *map(value, results)])
    return "\n".join(
        [
            f"Storm: every model asked at once, on the {api} API. {FIT} models fit on a GPU; an engine wakes",
            f"in {WAKE} s and sleeps in {SLEEP} s. Ideal: on each GPU one wake after the other, as the link to the",
            "host allows, each sleep beside the next wakes, and no time for anything else.",
            "",
            *table(rows),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
