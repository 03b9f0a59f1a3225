"""One container: started, probed, restarted with backoff, stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenthread.clock import Clock
from localcluster.supervisor import probes
from localcluster.supervisor.container_spec import Command, Refused
from localcluster.supervisor.leftovers import Records
from localcluster.supervisor.process import Log, Process, StartError, tail
from localcluster.supervisor.settings import Settings
from localcluster.supervisor.status import ContainerView, Running, Terminated, Waiting, will_restart

Object = dict[str, Any]
log = logging.getLogger(__name__)

#: Seconds that a container gets after a preStop hook has used up its grace, as kubelets have it.
AFTER_HOOK = 2.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container needs of its pod and machine."""

    settings: Settings
    records: Records
    clock: Clock
    #: `namespace/pod`, for people.
    pod_name: str
    policy: str
    #: Seconds between SIGTERM and SIGKILL, the pod's terminationGracePeriodSeconds.
    grace: float
    logs: Path
    #: Makes the command anew for each start; raises Refused.
    command: Callable[[Object], Awaitable[Command]]
    #: The number of a port on this machine, None when the pod has no such name.
    port: Callable[[int | str], int | None]
    #: Called after each change of the view.
    changed: Callable[[], None]


class Container:
    """The only writer of its `view`."""

    def __init__(self, view: ContainerView, around: Surroundings) -> None:
        self.view = view
        self.name: str = view.spec["name"]
        self._around = around
        self._stopping = asyncio.Event()
        self._process: Process | None = None
        self._command: Command | None = None
        self._why = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self, policy: str | None = None) -> None:
        """Live until the restart policy (the pod's, unless given) or `stop` ends it."""
        policy = policy or self._around.policy
        settings = self._around.settings
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping.is_set():
            began = loop.time()
            try:
                code = await self._live()
            except (Refused, StartError) as error:
                reason = error.reason if isinstance(error, Refused) else "RunContainerError"
                log.warning("%s: %s", self._label, error)
                self._wait(reason, str(error))
            else:
                if not will_restart(policy, code) or self._stopping.is_set():
                    return
                if loop.time() - began >= settings.backoff_reset:
                    failures = 0
            delay = min(settings.backoff_max, settings.backoff * 2.0 ** min(failures, 30))
            failures += 1
            ended = self.view.state if isinstance(self.view.state, Terminated) else None
            # as kubelets tell it: who ended once has ended and starts again, twice is a loop
            if ended is not None and failures > 1:
                self._end_counts(ended)
                self._wait("CrashLoopBackOff", f"starts again after {delay:g} s")
            try:
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            except TimeoutError:
                if ended is not None and failures == 1:
                    self._end_counts(ended)

    async def stop(self, grace: float) -> None:
        """End it: preStop hook, SIGTERM, and SIGKILL when `grace` seconds are over. Returns when nothing runs."""
        self._stopping.set()
        self._stop_probes()
        process = self._process
        if process is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        hook = ((self.view.spec.get("lifecycle") or {}).get("preStop")) or {}
        if hook and process.running:
            await self._run_hook(hook, grace)
            deadline = max(deadline, loop.time() + AFTER_HOOK)
        process.signal(signal.SIGTERM)
        await self._end_by(process, deadline - loop.time())
        log.info("%s stopped after %.1f s (grace %g s)", self._label, loop.time() - deadline + grace, grace)

    def kill(self) -> None:
        """SIGKILL, now."""
        if self._process is not None:
            self._process.kill()

    # probes.Target

    def port(self, port: int | str) -> int:
        number = self._around.port(port)
        if number is None:
            raise probes.Unhealthy(f"the pod has no port named {port!r}")
        return number

    async def execute(self, argv: list[str]) -> int:
        if self._command is None or not argv:
            raise probes.Unhealthy("there is nothing to execute")
        try:
            process = Process.start(
                argv, self._command.env, self._around.records, f"{self._label}: {argv[0]}", cwd=self._command.cwd
            )
        except StartError as error:
            raise probes.Unhealthy(str(error)) from error
        try:
            return await process.wait()
        finally:
            process.kill()

    # one life

    @property
    def _label(self) -> str:
        return f"{self._around.pod_name}/{self.name}"

    async def _live(self) -> int:
        """Start it and wait for its end; the exit status. Raises Refused, StartError."""
        around, view = self._around, self.view
        self._command = await around.command(view.spec)
        if self._stopping.is_set():
            return 0
        folder = around.logs / self.name
        output = Log(folder / f"{view.restarts}.log")
        for old in folder.glob(f"{view.restarts - 2}.log*"):  # as in Kubernetes, this life's and the one before
            old.unlink()
        try:
            process = Process.start(
                self._command.argv, self._command.env, around.records, self._label, cwd=self._command.cwd, log=output
            )
        except StartError:
            output.close()
            raise
        self._process, self._why = process, ""
        since = around.clock.now()
        view.state = Running(since, process.pid)
        self._begin_probes()
        around.changed()
        try:
            code = await process.wait()
        finally:
            self._stop_probes()
            self._process = None
        message = self._why
        if not message and code and view.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            message = tail(output.path)
        view.state = Terminated(code, since, around.clock.now(), process.pid, message)
        view.ready = view.started = False
        if code and not self._stopping.is_set():
            log.warning("%s ended with status %d; its log is %s", self._label, code, output.path)
        around.changed()
        return code

    def _end_counts(self, ended: Terminated) -> None:
        self.view.last = ended
        self.view.restarts += 1

    def _wait(self, reason: str, message: str) -> None:
        self.view.state = Waiting(reason, message)
        self._around.changed()

    def _begin_probes(self) -> None:
        self.view.ready = self.view.started = False
        if self.view.spec.get("startupProbe"):
            self._probe("startup")
        else:
            self._on_started()

    def _on_started(self) -> None:
        self.view.started = True
        if self.view.spec.get("livenessProbe"):
            self._probe("liveness")
        if self.view.spec.get("readinessProbe"):
            self._probe("readiness")
        else:
            self.view.ready = True
        self._around.changed()

    def _probe(self, kind: str) -> None:
        probe = self.view.spec[f"{kind}Probe"]
        address = self._around.settings.address
        self._tasks[kind] = asyncio.create_task(
            probes.watch(
                probe, self, address, lambda healthy, message: self._on_verdict(kind, probe, healthy, message)
            ),
            name=f"{self._label} {kind} probe",
        )

    def _on_verdict(self, kind: str, probe: Object, healthy: bool, message: str) -> None:
        if kind == "readiness":
            if self.view.ready != healthy:
                self.view.ready = healthy
                self._around.changed()
        elif not healthy:
            self._why = f"{kind} probe failed: {message}"
            log.warning("%s is stopped: %s", self._label, self._why)
            self._stop_probes()
            grace = float(probe.get("terminationGracePeriodSeconds") or self._around.grace)
            if self._process is not None:
                self._process.signal(signal.SIGTERM)
                self._tasks["end"] = asyncio.create_task(self._end_by(self._process, grace))
        elif kind == "startup":
            self._tasks.pop("startup").cancel()
            self._on_started()

    def _stop_probes(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    @staticmethod
    async def _end_by(process: Process, seconds: float) -> None:
        ended = asyncio.create_task(process.wait())
        await asyncio.wait([ended], timeout=max(0.0, seconds))
        process.kill()
        await ended

    async def _run_hook(self, hook: Object, grace: float) -> None:
        try:
            if "sleep" in hook:
                await asyncio.sleep(min(grace, float(hook["sleep"].get("seconds") or 0)))
            else:
                await probes.check(hook, self, self._around.settings.address, grace)
        except probes.Unhealthy as error:
            log.warning("%s: preStop hook failed: %s", self._label, error)
