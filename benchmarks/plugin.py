"""How quick the plugin is beside kubectl, both started anew for each answer as a shell does.

    python -m benchmarks.plugin --json [--api real|embedded] [--runs 15] [--kubectl PATH]

`top` against `kubectl get gpus -A` on a small cluster, and against `kubectl get models -A` on one of 1,000 Models and
256 GPUs; completing a model's name against kubectl completing it. Runs are interleaved (ours, kubectl's, ours, …); a
figure is the median of the ratios of neighbours, which a busy machine changes little. Both have what an installed
program has: compiled bytecode, and kubectl its cache of what the API serves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._common import API_KINDS, install_crds, open_api
from benchmarks._table import table
from greenthread.clock import format_time
from greenthread.gpu import gpu_name
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from greenthread.kube.resources import GPUS, MODELS, PODS
from greenthread.names import DEFAULT_NAMESPACE
from greenthread.units import GIB
from tests.testbeds.programs import Missing, find, need

SMALL, LARGE = (6, 2), (1000, 256)
"""Models and GPUs."""
AT_ONCE = 16
"""Objects that are made at once."""
SCRIPTS = Path(sys.executable).parent


@dataclass
class Pair:
    """One of our commands and the one of kubectl that it is measured against."""

    name: str
    ours: Sequence[str]
    theirs: Sequence[str]
    target: float | None = None
    wall: list[tuple[float, float]] = field(default_factory=list)
    """Seconds of ours and theirs."""
    cpu: list[tuple[float, float]] = field(default_factory=list)

    def measure(self, env: Mapping[str, str]) -> None:
        """One more run of each."""
        ours, theirs = run(self.ours, env), run(self.theirs, env)
        self.wall.append((ours[0], theirs[0]))
        self.cpu.append((ours[1], theirs[1]))

    def ratio(self, cpu: bool = False) -> float:
        return statistics.median(ours / theirs for ours, theirs in (self.cpu if cpu else self.wall))

    def row(self) -> list[str]:
        def middle(times: Sequence[tuple[float, float]], at: int) -> str:
            return f"{statistics.median(pair[at] for pair in times) * 1000:.0f}"

        wall = [middle(self.wall, 0), middle(self.wall, 1), f"{self.ratio():.2f}"]
        cpu = [middle(self.cpu, 0), middle(self.cpu, 1), f"{self.ratio(cpu=True):.2f}"]
        return [self.name, *wall, *cpu, f"{self.target:g}" if self.target else "-"]


def run(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Wall and CPU time of one command, seconds. RuntimeError with its output when it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, cpu


async def fill(client: AsyncClient, first: int, last: int, gpus: tuple[int, int]) -> None:
    """Models number `first` to `last` with a pod each, and GPUs of this range, as the product's parts write them."""
    gate = asyncio.Semaphore(AT_ONCE)
    now = format_time(datetime.now(UTC))

    async def gpu(number: int) -> None:
        node, index = f"node-{number // 8:03d}", number % 8
        name = gpu_name(node, index)
        pods = [f"model-{model:04d}-0-aaaa" for model in range(number, last, gpus[1])]
        status = {
            "node": node, "index": index, "uuid": f"GPU-{number}", "product": "NVIDIA H100",
            "totalMemoryBytes": 96 * GIB, "foreignMemoryBytes": 0, "availableMemoryBytes": 56 * GIB,
            "stats": {"usedMemoryBytes": 40 * GIB, "freeMemoryBytes": 56 * GIB, "utilizationPercent": 50,
                      "temperatureCelsius": 50, "powerWatts": 300},
            "occupants": [
                {"namespace": DEFAULT_NAMESPACE, "podName": pod, "modelName": pod[:10], "state": "sleeping",
                 "reservedMemoryBytes": 0, "popular": False, "lastAccessed": now}
                for pod in pods
            ],
        }  # fmt: skip
        async with gate:
            await client.create(GPUS, {"metadata": {"name": name, "namespace": DEFAULT_NAMESPACE}})
            await client.patch(GPUS, name, {"status": status}, DEFAULT_NAMESPACE, "status")

    async def model(number: int) -> None:
        name = f"model-{number:04d}"
        on = number % gpus[1]
        spec = {"modelName": f"organization/{name}-instruct", "extraArgs": ["--max-model-len", "16384"]}
        status = {"phase": "Ready", "servingMemoryPerGPU": 40 * GIB, "replicas": 1, "readyReplicas": 1,
                  "sleepingReplicas": 1, "node": f"node-{on // 8:03d}", "gpus": str(on % 8),
                  "url": f"http://gateway/{name}/v1"}  # fmt: skip
        report = {"state": "sleeping", "since": now, "inFlight": 0, "queued": 0, "requests": number, "bootReady": True}
        labels = {"app.kubernetes.io/name": "greenthread-model", "greenthread.ai/model": name,
                  "app.kubernetes.io/managed-by": "greenthread", "greenthread.ai/ordinal": "0"}  # fmt: skip
        annotations = {"greenthread.ai/gpus": str(on % 8), "greenthread.ai/report": json.dumps(report)}
        env = [{"name": f"VARIABLE_{at}", "value": "a value of the usual length"} for at in range(12)]
        containers = [{"name": part, "image": f"greenthread/{part}", "env": env} for part in ("sidecar", "vllm")]
        pod = {
            "metadata": {"name": f"{name}-0-aaaa", "namespace": DEFAULT_NAMESPACE, "labels": labels,
                         "annotations": annotations},
            "spec": {"containers": containers, "nodeSelector": {"kubernetes.io/hostname": f"node-{on // 8:03d}"}},
        }  # fmt: skip
        async with gate:
            await client.create(MODELS, {"metadata": {"name": name, "namespace": DEFAULT_NAMESPACE}, "spec": spec})
            await client.patch(MODELS, name, {"status": status}, DEFAULT_NAMESPACE, "status")
            await client.create(PODS, pod)

    async with asyncio.TaskGroup() as group:
        for number in range(*gpus):
            group.create_task(gpu(number))
        for number in range(first, last):
            group.create_task(model(number))


async def _make(kubeconfig: Path, size: tuple[int, int], before: tuple[int, int] = (0, 0)) -> None:
    async with AsyncClient(load_config(kubeconfig)) as client:
        if before == (0, 0):
            await install_crds(client)
        await fill(client, before[0], size[0], (before[1], size[1]))


def measure(pairs: Sequence[Pair], env: Mapping[str, str], runs: int) -> None:
    """All pairs in turn, after one run that fills the caches."""
    for pair in pairs:
        run(pair.ours, env)
        run(pair.theirs, env)
    for _ in range(runs):
        for pair in pairs:
            pair.measure(env)


def breakdown(env: Mapping[str, str], runs: int) -> dict[str, float]:
    """Where our time goes: CPU milliseconds of the interpreter alone, with TLS, and with all that `top` imports."""
    steps = {
        "interpreter": "pass",
        "interpreter_and_tls": "import ssl",
        "all_imports": "import ssl, json, kubectl_greenthread.main, kubectl_greenthread.top, greenthread.kube.blocking",
    }
    found = {}
    for name, code in steps.items():
        command = [sys.executable, "-c", code]
        run(command, env)
        found[name] = round(statistics.median(run(command, env)[1] for _ in range(runs)) * 1000, 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--api", choices=API_KINDS, help="default: the real one if it is on this machine")
    parser.add_argument("--runs", type=int, default=15, help="of each command")
    parser.add_argument("--kubectl", help="the kubectl to compare with")
    parser.add_argument("--small", action="store_true", help="without the large cluster")
    given = parser.parse_args()
    kind = given.api or ("real" if find("kube-apiserver") and find("etcd") else "embedded")
    try:
        kubectl = given.kubectl or str(need("kubectl"))
        results, ours = _measured(kind, kubectl, given.runs, given.small)
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    for line in table([["ms", "ours", "kubectl", "ratio", "CPU ours", "CPU kubectl", "ratio", "at most"],
                       *(pair.row() for pair in results)]):  # fmt: skip
        print(line)
    print("CPU ms of ours:", ", ".join(f"{name} {took}" for name, took in ours.items()))
    if given.json:
        figures: dict[str, Any] = {"api": kind, "runs": given.runs, "breakdown_cpu_ms": ours}
        for pair in results:
            figures[pair.name] = round(pair.ratio(), 3)
            figures[f"{pair.name}_cpu"] = round(pair.ratio(cpu=True), 3)
        print(json.dumps(figures))
    return 0


def _measured(kind: str, kubectl: str, runs: int, small: bool) -> tuple[list[Pair], dict[str, float]]:
    top, completer = str(SCRIPTS / "greenthread"), str(SCRIPTS / "kubectl_complete-greenthread")
    with open_api(kind) as (api, _), tempfile.TemporaryDirectory(prefix="greenthread-bench-") as folder:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env |= {
            "KUBECONFIG": str(api.kubeconfig), "PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "HOME": folder,
            "PATH": os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", os.defpath)]),
        }  # fmt: skip
        asyncio.run(_make(api.kubeconfig, SMALL))
        get_gpus = [kubectl, "get", "gpus", "-A"]
        pairs = [
            Pair("top_vs_kubectl_get", [top, "top", "-A"], get_gpus, 1.3),
            Pair("kubectl_greenthread_top_vs_kubectl_get", [kubectl, "greenthread", "top", "-A"], get_gpus),
            Pair(
                "complete_ms_vs_kubectl",
                [completer, "status", "-n", DEFAULT_NAMESPACE, ""],
                [kubectl, "__complete", "get", "models.greenthread.ai", "-n", DEFAULT_NAMESPACE, ""],
                1.3,
            ),
        ]
        measure(pairs, env, runs)
        ours = breakdown(env, runs)
        if not small:
            asyncio.run(_make(api.kubeconfig, LARGE, SMALL))
            large = Pair("top_1000_vs_kubectl_get", [top, "top", "-A"], [kubectl, "get", "models", "-A"], 2.0)
            measure([large], env, max(runs // 2, 3))
            pairs.append(large)
        return pairs, ours


if __name__ == "__main__":
    sys.exit(main())
