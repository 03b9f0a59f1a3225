"""The drill: mixed load on eight Models and two GPUs while every part is killed, stopped and restarted in turn."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from greenthread.gpu import Gpu, State
from greenthread.kube.errors import ApiError, Unreachable
from greenthread.kube.resources import GPUS, PODS
from greenthread.names import LABEL_MODEL
from greenthread.units import short_bytes
from localcluster.parts import LABEL_PART
from tests.drill.faults import Fault, Faults
from tests.drill.load import SECRET, Load, Request
from tests.drill.processes import MIB, Life, Sampler
from tests.end_to_end.cluster import ONE, Cluster
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.kube import RealApi

#: Two of the small ones fit on a GPU, `wide` takes a share of both, `big` one alone.
SMALL = ["ada", "bob", "cleo", "dan", "eve", "fay"]
WIDE, BIG = "wide", "big"
MODELS = [*SMALL, WIDE, BIG]

#: What clients, sidecars and the gateway bear in one drill, seconds.
QUEUE, PATIENCE = 20.0, 60.0
#: What a long-lived process may grow by over the drill, after its warm-up: bytes, and file descriptors.
MORE_MEMORY, MORE_FILES = 16 * MIB, 20
#: Seconds after which a process has all that it needs, and for how long it must then be measured.
WARM_UP, LEAST = 15.0, 25.0


@dataclass
class Result:
    """What happened, and what of it must not have."""

    seconds: float = 0.0
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    lost: list[Request] = field(default_factory=list)
    """Broken, and no fault explains it."""
    overcommits: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    """Parts that were not back to truth at the end."""
    grown: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    """Logs with what clients sent."""

    @property
    def mistakes(self) -> list[str]:
        """One line for each; none: the drill was passed."""
        lost = [f"request lost: {_told(request, 0)}" for request in self.lost]
        return [*self.overcommits, *self.twice, *lost, *self.untrue, *self.grown, *self.leaked]


class Drill:
    """One drill on one API server."""

    def __init__(
        self,
        api: EmbeddedApi | RealApi,
        seconds: float,
        seed: int,
        clients: int = 6,
        direct: int = 2,
        logs: Path | None = None,
    ) -> None:
        """`seconds`: how long `clients` ask the gateway, and `direct` the sidecars. `logs`: where to copy all logs."""
        self._api, self._seconds, self._rng = api, seconds, random.Random(seed)
        self._clients, self._direct = clients, direct
        self._overcommits: set[str] = set()
        self._logs = logs

    def run(self) -> Result:
        """Takes `seconds`, and as much as it takes to start, to come to rest and to look."""
        env = {"QUEUE_TIMEOUT_SECONDS": str(QUEUE), "HOLD_TIMEOUT": f"{QUEUE:g}s"}
        with Cluster(self._api, {ONE: 2}, part_env=env) as cluster:
            try:
                return self._run(cluster)
            except BaseException:
                print(cluster.picture(), file=sys.stderr)
                raise
            finally:
                if self._logs is not None:
                    shutil.copytree(cluster.logs, self._logs, dirs_exist_ok=True)

    def _run(self, cluster: Cluster) -> Result:
        for name in SMALL:
            cluster.apply(name)
        cluster.apply(WIDE, tensorParallelSize=2)
        cluster.apply(BIG, gpuMemoryUtilization="0.90")
        cluster.ready(*MODELS)
        result = Result()
        faults = Faults(cluster, MODELS, self._rng)
        began = time.monotonic()
        load = Load(cluster.gateway, cluster.sidecar, MODELS, self._clients, self._direct, PATIENCE, self._rng)
        pause = max(self._seconds / faults.kinds / max(round(self._seconds / 60), 1) - 3.0, 0.5)
        with Sampler(lambda: self._pids(cluster)) as sampler:
            with load:
                # for that long, and each thing at least once
                while time.monotonic() < began + self._seconds or len(faults.done) < faults.kinds:
                    time.sleep(pause)
                    faults.next()
                    self._look_for_overcommits(cluster)
            result.seconds = time.monotonic() - began
            result.untrue = back_to_truth(cluster)
        result.requests, result.faults = load.requests, faults.done
        result.lost = [r for r in result.requests if r.outcome != "answered" and _unexplained(r, faults.done)]
        result.overcommits = sorted(self._overcommits | overcommits(cluster))
        result.twice = ran_twice(cluster)
        result.lives = sampler.long_lived(WARM_UP, LEAST)
        result.grown = [text for life in result.lives for text in _growth(life)]
        result.leaked = leaked(cluster)
        return result

    def _look_for_overcommits(self, cluster: Cluster) -> None:
        """Of every version of the GPU objects since the last look."""
        seen = (Gpu.from_object(obj) for obj in cluster.view.history(GPUS) if obj.get("status"))
        self._overcommits |= {f"{gpu.name} was over-committed: {gpu}" for gpu in seen if gpu.reserved > gpu.total}
        cluster.view.forget()

    @staticmethod
    def _pids(cluster: Cluster) -> dict[str, int]:
        found: dict[str, int] = {}
        for pod in cluster.view.objects(PODS):
            labels = pod["metadata"].get("labels") or {}
            container = "sidecar" if LABEL_MODEL in labels else labels.get(LABEL_PART, "")
            pid = cluster.pid(pod, container)
            if pid is not None:
                name = labels.get(LABEL_MODEL) or pod["metadata"]["name"].removeprefix("greenthread-")
                found[f"{container} {name}" if container == "sidecar" else name] = pid
        return found


def _unexplained(request: Request, faults: list[Fault]) -> bool:
    if request.outcome == "refused":
        return False
    return not any(fault.explains(request.model, request.direct, request.began, request.ended) for fault in faults)


def overcommits(cluster: Cluster) -> set[str]:
    """By the simulated GPUs' own ledger: an engine that was refused memory had been let in wrongly."""
    return {f"{node}: {refusal}" for node, ledger in cluster.ledgers.items() for refusal in ledger.refusals()}


def ran_twice(cluster: Cluster) -> list[str]:
    """Requests that engines began more than once."""
    counts = Counter(record.request_id for ledger in cluster.ledgers.values() for record in ledger.requests())
    return [f"ran {count} times: {name}" for name, count in counts.items() if count > 1 and name.startswith("test-")]


def leaked(cluster: Cluster) -> list[str]:
    """Logs of our parts (not the engine's) that have what clients sent."""
    files = [file for file in cluster.logs.glob("**/*.log") if file.parent.name != "vllm"]
    assert files
    return [
        f"{file.parent.parent.name} logs what clients sent"
        for file in files
        if SECRET in file.read_text("utf-8", "replace")
    ]


def back_to_truth(cluster: Cluster) -> list[str]:
    """What is not as it should be, once everything had time to come to rest and every Model was asked again."""
    wrong = []
    try:
        cluster.until(cluster._parts_ready, "all parts are ready", 60)
        cluster.ready(*MODELS, seconds=60)
    except AssertionError as error:
        wrong.append(str(error))
    for name in MODELS:
        wrong += _answers_again(cluster, name)
    try:
        cluster.until(lambda: not _disagreements(cluster), "objects, gauges, sidecars and GPUs agree", 30)
    except AssertionError:
        wrong += _disagreements(cluster)
    return wrong


def _answers_again(cluster: Cluster, name: str) -> list[str]:
    try:
        answer = cluster.chat(name)
    except httpx.HTTPError as error:
        return [f"{name} does not answer: {error}"]
    return [] if answer.status == 200 else [f"{name} answers {answer.status}: {answer.text[:300]}"]


def _disagreements(cluster: Cluster) -> list[str]:
    """Where GPU objects, sidecars, their gauges, the ledger and the pods do not say the same."""
    wrong = []
    try:
        cluster.kube.list(GPUS)
    except (ApiError, Unreachable) as error:
        return [f"the API does not answer: {error}"]
    used = {index: cluster.ledgers[ONE].used_bytes(index) for index in range(2)}
    for gpu in cluster.gpus():
        if gpu.intents or gpu.wake_lock:
            wrong.append(f"{gpu.name} has intents {gpu.intents} and lock {gpu.wake_lock}")
        if gpu.foreign or used[gpu.index] != gpu.reserved:
            wrong.append(
                f"{gpu.name}: {short_bytes(used[gpu.index])} used, {short_bytes(gpu.reserved)} reserved, "
                f"{short_bytes(gpu.foreign)} foreign"
            )
        if len(gpu.occupants) != len({occupant.model for occupant in gpu.occupants}):
            wrong.append(f"{gpu.name} has an occupant twice: {gpu.occupants}")
    for name in MODELS:
        said = cluster.status(name).get("state", "")
        states = [str(state) for state in cluster.states(name)]
        if states != [said] or said not in (State.SLEEPING, State.SERVING):
            wrong.append(f"{name} says it is {said or 'nothing'}, the GPU objects say {states}")
        gauge = _gauge(cluster, name)
        if gauge != {said}:
            wrong.append(f"{name} says it is {said}, its gauge says {gauge}")
        if cluster.condition(name, "Ready") != "True":
            wrong.append(f"{name} is not Ready")
    return wrong


def _gauge(cluster: Cluster, name: str) -> set[str]:
    """States for which `gthread_sidecar_state` is 1."""
    try:
        text = cluster.http.get(f"{cluster.sidecar(name)}/metrics").text
    except httpx.HTTPError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith("gthread_sidecar_state{")]
    return {line.split('"')[1] for line in lines if float(line.rpartition(" ")[2]) == 1.0}


def _growth(life: Life) -> list[str]:
    grown = []
    if life.growth > MORE_MEMORY:
        grown.append(f"{life.part} (pid {life.pid}) grew by {life.growth / MIB:.1f} MiB")
    if life.more_files > MORE_FILES:
        grown.append(f"{life.part} (pid {life.pid}) has {life.more_files:.0f} more file descriptors")
    return grown


def _told(request: Request, start: float) -> str:
    way = "its sidecar" if request.direct else "the gateway"
    stream = ", streaming" if request.streaming else ""
    return (
        f"{request.id} at {request.began - start:.1f} s for {request.seconds:.2f} s: {request.kind} of {request.model} "
        f"by {way}{stream}: {request.outcome} {request.why}{request.timing}"
    )


def report(result: Result) -> str:
    """All of it as tables for a person."""
    start = result.requests[0].began if result.requests else 0.0
    lines = ["", f"{'AT':>7}  {'DONE':<30} {'MODEL':<6} {'OVER AFTER':>10} {'BROKEN':>7}"]
    broken = [request for request in result.requests if request.outcome in ("broken", "unconnected")]
    for fault in result.faults:
        hit = sum(fault.explains(r.model, r.direct, r.began, r.ended) for r in broken)
        over = f"{fault.ended - fault.began:.2f} s"
        lines.append(f"{fault.began - start:6.1f}s  {fault.what:<30} {fault.model:<6} {over:>10} {hit:>7}")
    lines += [
        "",
        f"{'REQUESTS':<32} {'ALL':>6} {'ANSWERED':>9} {'REFUSED':>8} {'BROKEN':>7} {'NO HOST':>8} {'SLOWEST':>8}",
    ]
    kinds = sorted({(r.kind, r.streaming, r.direct) for r in result.requests})
    for kind, streaming, direct in kinds:
        of = [r for r in result.requests if (r.kind, r.streaming, r.direct) == (kind, streaming, direct)]
        name = f"{kind}{', stream' if streaming else ''}{', direct' if direct else ''}"
        counts = Counter(r.outcome for r in of)
        told = f"{counts['answered']:>9} {counts['refused']:>8} {counts['broken']:>7} {counts['unconnected']:>8}"
        lines.append(f"{name:<32} {len(of):>6} {told} {max(r.seconds for r in of):7.1f}s")
    reasons = Counter(_short(r.why) for r in result.requests if r.outcome == "refused")
    lines += (
        ["", "REFUSED BECAUSE", *(f"{count:>5}  {why}" for why, count in reasons.most_common(8))] if reasons else []
    )
    slow = sorted((r for r in result.requests if r.outcome != "unconnected"), key=lambda r: -r.seconds)[:5]
    lines += ["", "SLOWEST", *(f"  {_told(request, start)}" for request in slow)]
    lines += ["", f"{'LIVED LONG':<24} {'MEASURED':>9} {'MEMORY':>10} {'GREW':>10} {'FILES':>6} {'MORE':>5}"]
    for life in result.lives:
        grew = f"{life.growth / MIB:+.1f} MiB"
        memory = f"{life.memory[-1] / MIB:.1f} MiB"
        lines.append(
            f"{life.part:<24} {life.span:7.0f} s {memory:>10} {grew:>10} {life.files[-1]:>6} {life.more_files:>+5.0f}"
        )
    rate = len(result.requests) / result.seconds if result.seconds else 0
    lines += [
        "",
        f"{result.seconds:.0f} s, {len(result.requests)} requests ({rate:.0f}/s), {len(result.faults)} faults: "
        f"{len(result.overcommits)} over-commits, {len(result.twice)} ran twice, "
        f"{len(broken) - len(result.lost)} broken with the part that carried them, "
        f"{len(result.lost)} lost outside, {len(result.untrue)} untrue at the end, {len(result.grown)} grown, "
        f"{len(result.leaked)} logs with what clients sent",
    ]
    lines += [f"  MISTAKE: {_told(request, start)}" for request in result.lost[:20]]
    rest = [*result.overcommits, *result.twice, *result.untrue, *result.grown, *result.leaked]
    return "\n".join([*lines, *(f"  MISTAKE: {mistake}" for mistake in rest[:20])])


def _short(why: str) -> str:
    return why if len(why) <= 150 else why[:147] + "..."
