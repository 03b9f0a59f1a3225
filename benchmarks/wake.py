"""What a wake and a preemption cost beside the engine's own time: real processes, simulated engines.

    python -m benchmarks.wake --json [--api embedded|real]

A client asks a sidecar whose model sleeps; its clock runs from the request's first byte to the answer's first byte. Of
that, the engine's part is taken away: the wake (and the victim's sleep) as the engines themselves measure it, and the
answer as it comes from an engine that is awake.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

from benchmarks._common import API_KINDS, open_api
from benchmarks._table import table
from greenthread.gpu import Gpu, PodRef, State
from greenthread.kube.resources import GPUS
from tests.end_to_end.cluster import FAST_ENGINE, TWO, Cluster
from tests.testbeds.kube import GARBAGE_COLLECTION

#: A model alone on a GPU with room; two that are too large to be awake together; one on both GPUs of the other node.
SMALL, FIRST, SECOND, GANG = "small", "first", "second", "gang"
#: Only a waiter's word makes these give way, and at once.
FAIRNESS = {"minRuntime": "0s", "maxWaitTime": "0s", "yieldAfter": "0s"}
ENGINE = FAST_ENGINE | {"GREENTHREAD_SIM_LINK_GBPS": "400", "GREENTHREAD_SIM_SLEEP_SECONDS": "0.05"}
#: Seconds between a model's rest and the next request, so that Events and reports of before are written.
QUIET = 1.0
#: Requests that keep the product's own parts alive, and are no part of a claim: who, what for.
EXPECTED = {
    "watch": "watches",
    "leases": "leases of leaders",
    "stats": "stats of the GPUs, by the node agent",
    "kubelet": "what a kubelet does: the supervisor",
    "cluster": "the API server's own controllers",
}


@dataclass
class Sample:
    """One wake. Seconds."""

    answered: float
    engine_wake: float
    engine_sleep: float
    drain: float
    direct: float
    steps: dict[str, float]
    writes: int
    victim_writes: int
    conflicts: int

    @property
    def overhead(self) -> float:
        """Of the client's time, all that is not the engines'."""
        return self.answered - self.engine_wake - self.engine_sleep - self.drain - self.direct

    @property
    def until_engine(self) -> float:
        """From the wish (a victim is named at once) to the call that wakes the engine."""
        return self.steps["queue"] + self.steps["claim"] - self.engine_sleep - self.drain


class OneOfEach(Cluster):
    """A cluster without the spare controller, which would read along on cores that this machine does not have."""

    def _system_pods(self) -> list[dict[str, Any]]:
        return [pod for pod in super()._system_pods() if not pod["metadata"]["name"].endswith("-spare")]


class Bench:
    """One cluster, and the client's side of it."""

    def __init__(self, cluster: Cluster, client: Executor) -> None:
        """`client`: a process of its own, since this one has watches to read meanwhile."""
        self.cluster, self._client = cluster, client

    def _timed(self, url: str, model: str) -> float:
        return self._client.submit(ask, url, model).result()

    def set_up(self) -> None:
        fast: dict[str, Any] = {"fairness": FAIRNESS, "staging": {"pinned": True}}
        self.cluster.apply(SMALL, gpuMemoryUtilization="0.30", **fast)
        self.cluster.apply(GANG, TWO, gpuMemoryUtilization="0.45", tensorParallelSize=2, **fast)
        self.cluster.apply(FIRST, gpuMemoryUtilization="0.85", **fast)
        self.cluster.apply(SECOND, gpuMemoryUtilization="0.85", **fast)
        self.cluster.ready(SMALL, GANG, FIRST, SECOND, seconds=120)

    def direct(self, model: str, count: int = 20) -> float:
        """Median seconds of an answer by the engine itself, awake."""
        self.cluster.wake(model)
        return median(self._timed(self.cluster.engine(model), model) for _ in range(count))

    def fits(self, model: str, samples: int) -> list[Sample]:
        """Wakes into free memory."""
        direct = self.direct(model)
        found = []
        for _ in range(samples):
            self.cluster.sleep(model)
            found.append(self._sample(model, None, direct))
        self.cluster.sleep(model)
        return found

    def preempts(self, samples: int) -> list[Sample]:
        """Wakes that take the memory of the other model."""
        direct = self.direct(FIRST)
        self.cluster.sleep(FIRST)
        self.cluster.wake(SECOND)
        pairs = [(FIRST, SECOND), (SECOND, FIRST)]
        found = [self._sample(*pairs[number % 2], direct) for number in range(samples)]
        self.cluster.sleep(FIRST, SECOND)
        return found

    def _sample(self, model: str, victim: str | None, direct: float) -> Sample:
        cluster = self.cluster
        time.sleep(QUIET)
        cluster.begin()
        waker = self._engine_seconds(model, "wake")
        other = self._engine_seconds(victim, "sleep") if victim else 0.0
        conflicts = self._conflicts(model) + (self._conflicts(victim) if victim else 0)
        answered = self._timed(cluster.sidecar(model), model)
        cluster.until(lambda: self._settled(model, victim), "the wake is published")
        writes = writers(cluster.view.history(GPUS))
        record = cluster.status(model)["records"][-1]
        assert record["kind"] == "wake", record
        slept = cluster.status(victim)["records"][-1] if victim else {"steps": {"drain": 0.0}}
        return Sample(
            answered=answered,
            engine_wake=self._engine_seconds(model, "wake") - waker,
            engine_sleep=self._engine_seconds(victim, "sleep") - other if victim else 0.0,
            drain=slept["steps"]["drain"],
            direct=direct,
            steps=record["steps"],
            writes=writes[self._pod(model)],
            victim_writes=writes[self._pod(victim)] if victim else 0,
            conflicts=self._conflicts(model) + (self._conflicts(victim) if victim else 0) - conflicts,
        )

    def _settled(self, model: str, victim: str | None) -> bool:
        states, locked = self.cluster.states(model), any(gpu.wake_lock for gpu in self.cluster.gpus())
        return states == [State.SERVING] and not locked and (not victim or self.cluster.reserved(victim) == 0)

    def _pod(self, model: str) -> str:
        return str(self.cluster.pods_of(model)[0]["metadata"]["name"])

    def _engine_seconds(self, model: str, operation: str) -> float:
        """Time that the model's engine has spent in all its wakes (or sleeps), by its own clock."""
        return self._metric(
            self.cluster.engine(model), f'vllm:sleep_mode_operation_duration_seconds_sum{{operation="{operation}"}}'
        )

    def _conflicts(self, model: str) -> int:
        return int(self._metric(self.cluster.sidecar(model), "gthread_sidecar_gpu_cas_conflicts_total"))

    def _metric(self, url: str, name: str) -> float:
        text = self.cluster.http.get(f"{url}/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def idle(self, seconds: float) -> Counter[tuple[str, str]]:
        """What is asked of the API server while nobody asks a model: (who, what) by count. One model serves."""
        self.cluster.wake(SMALL)
        time.sleep(5.0)
        log = self.cluster.api.audit_log
        begin = log.stat().st_size
        time.sleep(seconds)
        with log.open("rb") as file:
            file.seek(begin)
            events = [json.loads(line) for line in file.read().splitlines()]
        found: Counter[tuple[str, str]] = Counter()
        for event in events:
            if event["stage"] == "RequestReceived":
                reference = event.get("objectRef") or {}
                kind = "/".join(filter(None, (reference.get("resource", ""), reference.get("subresource", ""))))
                found[event.get("userAgent", ""), f"{event['verb']} {kind or event['requestURI']}"] += 1
        return found


def ask(url: str, model: str) -> float:
    """Seconds from a request's first byte to the first byte of its answer, over a connection that is there already."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.connect()
    try:
        began = time.monotonic()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        seconds = time.monotonic() - began
        text = answer.read()
        assert answer.status == 200, text
        return seconds
    finally:
        connection.close()


def writers(history: list[dict[str, Any]]) -> Counter[str]:
    """Writes of the GPU objects' entries, by the pod whose entries each changed. Agents' writes are not counted."""
    found: Counter[str] = Counter()
    seen: dict[str, Gpu] = {}
    for obj in history:
        gpu = Gpu.from_object(obj)
        before = seen.get(gpu.name)
        seen[gpu.name] = gpu
        if before is None:
            continue
        author = _changed({o.pod: o for o in before.occupants}, {o.pod: o for o in gpu.occupants})
        author = author or _changed({i.pod: i for i in before.intents}, {i.pod: i for i in gpu.intents})
        if author is not None:
            found[author.name] += 1
    return found


def _changed(before: dict[PodRef, Any], after: dict[PodRef, Any]) -> PodRef | None:
    return next((pod for pod in {**before, **after} if before.get(pod) != after.get(pod)), None)


def part(agent: str, what: str) -> str:
    """Which of `EXPECTED` a request is, or who made it and what it is."""
    if what.startswith("watch "):
        return "watch"
    if what.endswith(" leases"):
        return "leases"
    if agent == "greenthread (controller.agent)" and what == "patch gpus/status":
        return "stats"
    if agent == "greenthread (localcluster.supervisor)":
        return "kubelet"
    if not agent.startswith("greenthread"):
        return "cluster"
    return f"{agent}: {what}"


@dataclass
class Row:
    """One kind of wake."""

    name: str
    samples: list[Sample]
    gpus: int = 1

    def spread(self, value: Callable[[Sample], float]) -> tuple[float, float]:
        """Median and 99th percentile, in milliseconds."""
        values = [1000 * value(sample) for sample in self.samples]
        return median(values), quantiles(values, n=100, method="inclusive")[98]

    def mean(self, value: Callable[[Sample], float]) -> float:
        return sum(map(value, self.samples)) / len(self.samples)


STEPS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("overhead", lambda s: s.overhead),
    ("  queue (less drain and sleep)", lambda s: s.steps["queue"] - s.engine_sleep - s.drain),
    ("  claim", lambda s: s.steps["claim"]),
    ("  the call of the engine", lambda s: s.steps["engine"] - s.engine_wake),
    ("  door, proxy, client", lambda s: s.answered - s.direct - sum(s.steps.values())),
    ("intent to engine start", lambda s: s.until_engine),
)


@dataclass
class Result:
    """All rows and the idle minute."""

    rows: list[Row]
    idle: Counter[tuple[str, str]]
    idle_seconds: float
    api: str
    unexpected: Counter[str] = field(default_factory=Counter)

    def numbers(self) -> dict[str, Any]:
        """The JSON object."""
        fits, preempts, gang = self.rows
        wake, preempt, two = (row.spread(lambda s: s.overhead) for row in self.rows)
        until = preempts.spread(lambda s: s.until_engine)
        numbers = {
            "api": self.api,
            "wake_overhead_p50_ms": wake[0],
            "wake_overhead_p99_ms": wake[1],
            "preempt_overhead_p50_ms": until[0],
            "preempt_overhead_p99_ms": until[1],
            "preempting_wake_overhead_p50_ms": preempt[0],
            "tp2_wake_overhead_p50_ms": two[0],
            "tp2_wake_overhead_p99_ms": two[1],
            "writes_per_wake": fits.mean(lambda s: s.writes + s.conflicts),
            "tp2_writes_per_wake_per_gpu": gang.mean(lambda s: s.writes + s.conflicts) / 2,
            "writes_per_preempting_wake": preempts.mean(lambda s: s.writes + s.conflicts),
            "victims_writes_per_preempting_wake": preempts.mean(lambda s: s.victim_writes),
            "idle_seconds": self.idle_seconds,
            "idle_requests": sum(self.unexpected_requests().values()),
            "idle_requests_all": self.idle.total(),
            "samples": {row.name: len(row.samples) for row in self.rows},
        }
        return {name: round(value, 2) if isinstance(value, float) else value for name, value in numbers.items()}

    def unexpected_requests(self) -> Counter[str]:
        """Requests of the idle time that are none of `EXPECTED`."""
        found: Counter[str] = Counter()
        for (agent, what), count in self.idle.items():
            if (kind := part(agent, what)) not in EXPECTED:
                found[kind] += count
        return found

    def text(self) -> str:
        """The tables for people."""
        rows = [["milliseconds: median, 99th percentile", *(row.name for row in self.rows)]]
        for label, value in STEPS:
            rows.append([label, *("{:.1f}  {:5.1f}".format(*row.spread(value)) for row in self.rows)])
        for label, number in (
            ("(the engine's wake)", lambda s: 1000 * s.engine_wake),
            ("(the victim's drain and sleep)", lambda s: 1000 * (s.drain + s.engine_sleep)),
            ("(the answer of an engine awake)", lambda s: 1000 * s.direct),
        ):
            rows.append([label, *(f"{row.mean(number):.1f}       " for row in self.rows)])
        rows.append(
            [
                "writes of a GPU object by who wakes",
                *(f"{row.mean(_writes) / row.gpus:.2f}       " for row in self.rows),
            ]
        )
        rows.append(["  refused", *(f"{row.mean(lambda s: s.conflicts):.2f}       " for row in self.rows)])
        rows.append(["  by its victim", *(f"{row.mean(lambda s: s.victim_writes):.2f}       " for row in self.rows)])
        counts: Counter[str] = Counter()
        for (agent, what), count in self.idle.items():
            counts[EXPECTED.get(part(agent, what), part(agent, what))] += count
        unexpected = self.unexpected_requests()
        lines = [f"Wake: {len(self.rows[0].samples)} samples on the {self.api} API.", "", *table(rows), ""]
        lines.append(f"Requests to the API in {self.idle_seconds:g} idle seconds: {unexpected.total()} beside")
        lines += [f"  {count:4d}  {kind}" for kind, count in counts.most_common() if kind not in unexpected]
        lines += [f"  {count:4d}  UNEXPECTED {kind}" for kind, count in unexpected.items()]
        return "\n".join(lines)


def _writes(sample: Sample) -> float:
    return sample.writes + sample.conflicts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wake", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--api", choices=API_KINDS, default="embedded", help="which Kubernetes API (default: embedded)")
    parser.add_argument("--samples", type=int, default=50, help="wakes of each kind (default: 50)")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds in which nobody asks (default: 60)")
    given = parser.parse_args()
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as client,
        open_api(given.api, GARBAGE_COLLECTION, audit=True) as (api, _),
        OneOfEach(api, engine_env=ENGINE) as cluster,
    ):
        bench = Bench(cluster, client)
        bench.set_up()
        fits = Row("fits", bench.fits(SMALL, given.samples))
        preempts = Row("preempts", bench.preempts(given.samples))
        gang = Row("fits, 2 GPUs", bench.fits(GANG, given.samples), gpus=2)
        result = Result([fits, preempts, gang], bench.idle(given.idle), given.idle, given.api)
        cluster.check()
    print(result.text())
    if given.json:
        print(json.dumps(result.numbers()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
