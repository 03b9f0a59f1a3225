"""One pod, from its binding to its deletion: ports, volumes, containers, status."""

from __future__ import annotations

import asyncio
import base64
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from greenthread.clock import Clock, parse_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import ApiError, NotFound, Unreachable
from greenthread.kube.resources import CONFIG_MAPS, PODS, SECRETS
from greenthread.names import ANNOTATION_PORTS
from localcluster.supervisor import container_spec
from localcluster.supervisor.account import Account
from localcluster.supervisor.container import Container, Surroundings
from localcluster.supervisor.container_spec import Command, Object, Place, Refused
from localcluster.supervisor.leftovers import Records
from localcluster.supervisor.ports import Ports
from localcluster.supervisor.settings import Settings
from localcluster.supervisor.status import (
    ContainerView,
    PodView,
    Terminated,
    Waiting,
    phase,
    pod_status,
    will_restart,
)

log = logging.getLogger(__name__)

#: Seconds before a refused or unanswered write is tried again; doubles up to the last.
FIRST_RETRY, LAST_RETRY = 0.2, 10.0
GRACE = 30.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What all pods of a supervisor share."""

    client: AsyncClient
    settings: Settings
    records: Records
    ports: Ports
    clock: Clock
    environment: Mapping[str, str]
    #: Called when a pod's endpoints may have changed.
    endpoints_changed: Callable[[], None]


class PodRunner:
    """Runs one pod (one uid). `update` and `gone` bring news; `run` ends when nothing of the pod is left."""

    def __init__(self, pod: Object, machine: Machine) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self._machine = machine
        self._client = machine.client
        self._folder = machine.settings.state / "pods" / self.uid
        self._status: Object = pod.get("status") or {}
        self._place: Place | None = None
        self._account = self._make_account()
        self._changed = asyncio.Event()
        self._leave = asyncio.Event()
        self._is_gone = False
        self._shutdown = False
        policy = pod["spec"].get("restartPolicy") or "Always"
        self.view = PodView(
            policy=policy,
            init=[_view(spec, {}, policy, machine.clock) for spec in pod["spec"].get("initContainers") or []],
            main=[
                _view(spec, _named(self._status.get("containerStatuses")).get(spec["name"]), policy, machine.clock)
                for spec in pod["spec"]["containers"]
            ],
            started_at=_time(self._status.get("startTime")) or machine.clock.now(),
            address=machine.settings.address,
        )
        around = self._surroundings()
        self._init = [Container(view, around) for view in self.view.init]
        self._main = [Container(view, around) for view in self.view.main]

    @property
    def ports(self) -> Mapping[str, int]:
        """The port of each name; empty until they are allocated."""
        return self._place.ports if self._place else {}

    @property
    def ready(self) -> bool:
        """All containers pass their readiness probes (also while the pod ends)."""
        return all(view.ready for view in self.view.main)

    @property
    def terminating(self) -> bool:
        return self._leave.is_set()

    @property
    def serves(self) -> bool:
        """Belongs into EndpointSlices."""
        return self._place is not None and phase(self.view) in ("Pending", "Running")

    def update(self, pod: Object) -> None:
        """A newer version of the object."""
        hurry = _deletion_grace(pod)
        before = _deletion_grace(self.pod)
        self.pod = pod
        if hurry is None:
            return
        if before is not None and hurry < before:
            asyncio.get_running_loop().call_later(hurry, self.kill)
        self._ask_to_leave()

    def gone(self, pod: Object) -> None:
        """The object was deleted under the running containers."""
        self._is_gone = True
        self.update(pod)
        self._ask_to_leave()

    def shut_down(self) -> None:
        """The supervisor ends: stop the containers and leave the object as it is."""
        self._shutdown = True
        self._ask_to_leave()

    def kill(self) -> None:
        """SIGKILL to every container, now."""
        for container in (*self._init, *self._main):
            container.kill()

    async def run(self) -> None:
        """Returns when nothing of the pod runs any more and (unless the supervisor shuts down) its object may go."""
        if self.pod["metadata"].get("deletionTimestamp"):
            self._leave.set()  # an earlier supervisor's pod: nothing of it runs
        writer = asyncio.create_task(self._write_statuses(), name=f"status of {self._label}")
        life = asyncio.create_task(self._live(), name=f"pod {self._label}")
        leave = asyncio.create_task(self._leave.wait())
        try:
            self._on_change()
            await asyncio.wait([life, leave], return_when=asyncio.FIRST_COMPLETED)
            if not self._leave.is_set():
                life.result()
                await leave
            await self._end(life)
        finally:
            for task in (writer, life, leave):
                task.cancel()
            await asyncio.gather(writer, life, leave, return_exceptions=True)
            self._machine.ports.give_back(self.ports.values())
            self._place = None
            self._machine.endpoints_changed()
        if not self._shutdown:
            await self._delete()
            shutil.rmtree(self._folder, ignore_errors=True)

    # life

    async def _live(self) -> None:
        """Start everything and return when all of it has ended for good."""
        if self._leave.is_set() or self._status.get("phase") in ("Succeeded", "Failed"):
            return
        try:
            self._place = await self._settle()
        except Refused as refused:
            log.warning("%s: %s", self._label, refused)
            self.view.message = str(refused)
            for view in (*self.view.init, *self.view.main):
                view.state = Waiting(refused.reason, str(refused))
            self._on_change()
            return
        for init in self._init:
            await init.run("Never" if self.view.policy == "Never" else "OnFailure")
            if not isinstance(init.view.state, Terminated) or init.view.state.code != 0:
                return
        waiting = [container for container in self._main if not isinstance(container.view.state, Terminated)]
        keeping = asyncio.create_task(self._account.keep()) if self._account is not None else None
        try:
            async with asyncio.TaskGroup() as group:
                for container in waiting:
                    group.create_task(container.run(), name=f"{self._label}/{container.name}")
        finally:
            if keeping is not None:
                keeping.cancel()

    async def _settle(self) -> Place:
        """Give the pod its directories, ports (and write them down) and account. Raises Refused."""
        directories = container_spec.volume_directories(self.pod, self._folder)
        for volume in self.pod["spec"].get("volumes") or []:
            kind = (volume.get("hostPath") or {}).get("type") or ""
            if "emptyDir" in volume or kind == "DirectoryOrCreate":
                try:
                    directories[volume["name"]].mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise Refused(f"volume {volume['name']}: {error}") from error
        before = container_spec.recorded_ports(self.pod)
        ports = {name: self._machine.ports.take(before.get(name)) for name in container_spec.port_names(self.pod)}
        if ports and ports != before:
            body = {"metadata": {"uid": self.uid, "annotations": {ANNOTATION_PORTS: container_spec.ports_text(ports)}}}
            await self._write(partial(self._client.patch, PODS, self.name, body, self.namespace))
        if self._account is None:
            return Place(ports, directories)
        await self._account.obtain()
        return Place(ports, directories, self._account.kubeconfig)

    def _make_account(self) -> Account | None:
        machine = self._machine
        if machine.settings.accounts is None or not self.pod["spec"].get("serviceAccountName"):
            return None
        return Account(self.pod, self._client, machine.clock, machine.settings.accounts, self._folder)

    async def _command(self, spec: Object) -> Command:
        assert self._place is not None
        lookup: dict[tuple[str, str], Mapping[str, str]] = {}
        for kind, name in container_spec.references(spec):
            resource = SECRETS if kind == "Secret" else CONFIG_MAPS
            try:
                found = await self._client.get(resource, name, self.namespace)
            except NotFound:
                continue
            except (ApiError, Unreachable) as error:
                raise Refused(f"{kind} {name} cannot be read: {error}") from error
            data = found.get("data") or {}
            lookup[(kind, name)] = (
                {key: base64.b64decode(value).decode("utf-8", "replace") for key, value in data.items()}
                if kind == "Secret"
                else data
            )
        machine = self._machine
        return container_spec.resolve(self.pod, spec, machine.settings, self._place, machine.environment, lookup)

    # end

    async def _end(self, life: asyncio.Task[None]) -> None:
        self.view.stopping = True
        self._machine.endpoints_changed()
        grace = self._grace()
        await asyncio.gather(*(container.stop(grace) for container in (*self._init, *self._main)))
        # the containers' tasks note how they ended; what still waits for the API server is of no use now
        await asyncio.wait([life], timeout=1.0)

    async def _delete(self) -> None:
        """The kubelet's word that nothing runs any more: the object may go."""
        if not self._is_gone:
            await self._write(partial(self._client.delete, PODS, self.name, self.namespace, self.uid, 0))

    def _grace(self) -> float:
        asked = _deletion_grace(self.pod)
        return asked if asked is not None else float(self.pod["spec"].get("terminationGracePeriodSeconds", GRACE))

    def _ask_to_leave(self) -> None:
        self._leave.set()
        self._machine.endpoints_changed()

    # status

    def _on_change(self) -> None:
        self._changed.set()
        self._machine.endpoints_changed()

    async def _write_statuses(self) -> None:
        """Write the status whenever it differs from what was written last."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._shutdown:
                return
            status = pod_status(self.view, self._status, self._machine.clock.now())
            if status == self._status:
                continue
            body = {"metadata": {"uid": self.uid}, "status": status}
            if not await self._write(partial(self._client.patch, PODS, self.name, body, self.namespace, "status")):
                return
            self._status = status

    async def _write(self, send: Callable[[], Awaitable[Object]]) -> bool:
        """Send until the API server has taken it; False when the pod is gone (or another has its name)."""
        delay = FIRST_RETRY
        while True:
            try:
                await send()
                return True
            except NotFound:
                return False
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError) and await self._is_replaced():
                    return False
                log.warning("%s: a write failed, trying again in %g s: %s", self._label, delay, error)
            await asyncio.sleep(delay)
            delay = min(LAST_RETRY, delay * 2)

    async def _is_replaced(self) -> bool:
        """Whether nobody or another pod has the name now. Servers differ in how they refuse a wrong uid."""
        try:
            return bool((await self._client.get(PODS, self.name, self.namespace))["metadata"]["uid"] != self.uid)
        except NotFound:
            return True
        except (ApiError, Unreachable):
            return False

    # parts

    @property
    def _label(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def log_folder(self) -> Path:
        return self._machine.settings.logs / f"{self.namespace}_{self.name}_{self.uid}"

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            settings=self._machine.settings,
            records=self._machine.records,
            clock=self._machine.clock,
            pod_name=self._label,
            policy=self.view.policy,
            grace=float(self.pod["spec"].get("terminationGracePeriodSeconds", GRACE)),
            logs=self.log_folder,
            command=self._command,
            port=lambda port: container_spec.resolve_port(port, self.pod, self.ports),
            changed=self._on_change,
        )


def _named(statuses: list[Object] | None) -> dict[str, Object]:
    return {status["name"]: status for status in statuses or []}


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None


def _deletion_grace(pod: Object) -> float | None:
    """Seconds that a deletion gives the pod, at least one as kubelets have it; None while it is not being deleted."""
    metadata = pod["metadata"]
    if not metadata.get("deletionTimestamp"):
        return None
    return max(1.0, float(metadata.get("deletionGracePeriodSeconds") or 0))


def _view(spec: Object, before: Object | None, policy: str, clock: Clock) -> ContainerView:
    """A container as it begins: what an earlier supervisor wrote about it decides its restart count and last state."""
    before = before or {}
    restarts = int(before.get("restartCount") or 0)
    state, last = before.get("state") or {}, (before.get("lastState") or {}).get("terminated")
    creating = Waiting("ContainerCreating")
    if "terminated" in state:
        ended = _terminated(state["terminated"], clock)
        if not will_restart(policy, ended.code):
            return ContainerView(spec, ended, None, restarts)
        return ContainerView(spec, creating, ended, restarts + 1)
    if "running" in state:
        since = _time(state["running"].get("startedAt")) or clock.now()
        # whatever ran was killed with that supervisor
        killed = Terminated(137, since, clock.now(), message="the machine's supervisor ended")
        return ContainerView(spec, creating, killed, restarts + 1)
    return ContainerView(spec, creating, _terminated(last, clock) if last else None, restarts)


def _terminated(state: Object, clock: Clock) -> Terminated:
    now = clock.now()
    return Terminated(
        code=int(state.get("exitCode") or 0),
        since=_time(state.get("startedAt")) or now,
        until=_time(state.get("finishedAt")) or now,
        message=state.get("message") or "",
    )
