"""What is done to the parts while clients ask: killed, stopped and continued, restarted; and when each was back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from greenthread.kube.resources import PODS
from localcluster.parts import LABEL_PART
from tests.end_to_end.cluster import Cluster, Object
from tests.testbeds.kube import APISERVER, ETCD, RealApi

#: Seconds that a part may take to be back.
BACK = 60.0
#: Requests around a kill that may have met the dead, seconds: one that was on its way, and one that came before the
#: death was known.
BEFORE, AFTER = 0.1, 1.0


@dataclass
class Fault:
    """One thing that was done. Times are of the monotonic clock."""

    what: str
    part: str
    """`sidecar`, `engine`, `agent`, `controller`, `gateway`, `kube-apiserver` or `etcd`."""
    model: str
    began: float
    ended: float = 0.0
    """When it was over: the part was continued, or back."""
    killed: bool = False

    def carried(self, model: str, direct: bool) -> bool:
        """Whether the part is on the way of a model's requests."""
        if self.part == "gateway":
            return not direct
        return self.part in ("sidecar", "engine") and self.model == model

    def explains(self, model: str, direct: bool, began: float, ended: float) -> bool:
        """Whether a request that lived from `began` to `ended` may have broken because of it."""
        if not self.carried(model, direct):
            return False
        # a gateway that is down, or a sidecar asked past the gateway, cannot even be connected to
        down = self.part == "gateway" or (self.part == "sidecar" and direct) or not self.killed
        over = self.ended if down and self.ended else self.began
        return began <= over + AFTER and ended >= self.began - BEFORE


class Faults:
    """`next()` does one thing after the other; each kind comes in turn, who it hits is drawn."""

    def __init__(self, cluster: Cluster, models: list[str], rng: random.Random) -> None:
        self._cluster, self._models, self._rng = cluster, models, rng
        self.done: list[Fault] = []
        self._kinds: list[Callable[[], None]] = [
            lambda: self._kill("sidecar"),
            lambda: self._kill("engine"),
            lambda: self._kill("gateway"),
            lambda: self._pause("sidecar", 2.0),
            lambda: self._kill("controller"),
            lambda: self._api("kill", ETCD, 2.0),
            lambda: self._kill("agent"),
            lambda: self._pause("engine", 2.0),
            lambda: self._api("kill", APISERVER, 2.0),
            lambda: self._pause("gateway", 1.0),
            lambda: self._pause("agent", 3.0),
            lambda: self._api("stop", APISERVER, 3.0),
            lambda: self._pause("controller", 3.0),
        ]
        self._next = 0

    @property
    def kinds(self) -> int:
        """How many different things there are to do."""
        return len(self._kinds)

    def next(self) -> None:
        """Does the next thing, and returns when the part is back."""
        kind = self._kinds[self._next % len(self._kinds)]
        self._next += 1
        kind()

    # what is done

    def _kill(self, part: str) -> None:
        pid, model, back = self._target(part)
        with self._recorded(f"kill {part}", part, model, killed=True):
            os.kill(pid, signal.SIGKILL)
            self._cluster.until(back, f"the {part} of {model or 'the cluster'} is back", BACK)

    def _pause(self, part: str, seconds: float) -> None:
        pid, model, _ = self._target(part)
        with self._recorded(f"stop {part} {seconds:g} s", part, model):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # somebody lost patience with it

    def _api(self, how: str, program: str, seconds: float) -> None:
        api = self._cluster.api
        with self._recorded(f"{how} {program} {seconds:g} s", program, ""):
            if not isinstance(api, RealApi):  # the embedded one is one program with its storage
                api.kill()
                time.sleep(seconds)
                api.start()
            elif how == "kill":
                api.kill(program)
                time.sleep(seconds)
                api.start(program)
            else:
                api.signal(program, signal.SIGSTOP)
                time.sleep(seconds)
                api.signal(program, signal.SIGCONT)
                api.wait_ready()

    @contextmanager
    def _recorded(self, what: str, part: str, model: str, killed: bool = False) -> Iterator[None]:
        fault = Fault(what, part, model, time.monotonic(), killed=killed)
        self.done.append(fault)
        try:
            yield
        finally:
            fault.ended = time.monotonic()

    # whom it hits

    def _target(self, part: str) -> tuple[int, str, Callable[[], bool]]:
        """Pid, model ("" for a part of the cluster), and how to see that its successor is there."""
        if part == "engine":
            return self._engine()
        if part == "sidecar":
            model = self._rng.choice(self._models)
            pod = self._cluster.pods_of(model)[0]
            pid = self._running(pod, "sidecar")
            return (
                pid,
                model,
                lambda: self._replaced(pod, "sidecar", pid) and self._answers(self._cluster.sidecar(model)),
            )
        name = self._cluster.leader() if part == "controller" else ""
        pod = next(p for p in self._pods(part) if name in ("", p["metadata"]["name"]))
        pid = self._running(pod, part)
        if part == "gateway":
            return pid, "", lambda: self._replaced(pod, part, pid) and self._answers(self._cluster.gateway)
        return pid, "", lambda: self._replaced(pod, part, pid)

    def _engine(self) -> tuple[int, str, Callable[[], bool]]:
        found = {model: pids for model in self._models if (pids := self._cluster.engine_pids(model))}
        model = self._rng.choice(sorted(found))
        pid = min(found[model])
        return pid, model, lambda: bool(self._cluster.engine_pids(model) - {pid})

    def _pods(self, part: str) -> list[Object]:
        return [
            pod
            for pod in self._cluster.view.objects(PODS)
            if (pod["metadata"].get("labels") or {}).get(LABEL_PART) == part
        ]

    def _running(self, pod: Object, container: str) -> int:
        """Its pid, once the objects say that it runs."""
        name = pod["metadata"]["name"]
        return (
            self._cluster.until(
                lambda: self._cluster.pid(self._cluster.view.get(PODS, name) or {}, container), f"{name} runs", BACK
            )
            or 0
        )

    def _replaced(self, pod: Object, container: str, pid: int) -> bool:
        now = self._cluster.view.get(PODS, pod["metadata"]["name"])
        found = self._cluster.pid(now, container) if now else None
        return found not in (None, pid)

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False
