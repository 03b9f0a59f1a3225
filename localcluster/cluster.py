"""A whole cluster on one machine: the API, the supervisor, and the product's own programs as Pods."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from greenthread.kube.errors import AlreadyExists, NotFound
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import NAMESPACES, PODS
from greenthread.names import DEFAULT_NAMESPACE
from localcluster import manifests, parts
from localcluster.gpus import ledger
from localcluster.parts import Simulation
from localcluster.state import ClusterError, Folder, Remembered, remember
from localcluster.supervisor.leftovers import Records
from localcluster.supervisor.process import Log, Process, StartError
from localcluster.supervisor.settings import Settings
from localcluster.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)

Object = dict[str, Any]
#: Seconds before the first restart of a container; kubelets, which serve strangers, begin with 10.
BACKOFF = 0.2
#: Seconds the API may take to stop, and how often it may die before it was ready.
API_GRACE, API_ATTEMPTS = 5.0, 5
#: Starts of one of our own programs after which a person is told.
TROUBLE = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked of `greenthread up`."""

    folder: Folder
    api_port: int | None = None
    gateway_port: int | None = None
    simulation: Simulation | None = None
    #: Files and folders to apply at the start.
    apply: Sequence[Path] = ()


class Cluster:
    """`run` until cancelled: then everything it started is stopped, children first, and all objects are kept."""

    def __init__(self, options: Options, tell: Callable[[str], None]) -> None:
        """`tell` gets lines for people."""
        self._options = options
        self._folder = options.folder
        self._tell = tell
        self._api_ready = asyncio.Event()
        self._supervisor: Supervisor | None = None
        self.remembered: Remembered

    @property
    def gateway_url(self) -> str:
        return f"http://{parts.ADDRESS}:{self.remembered.gateway_port}"

    async def run(self, ready: Callable[[], None]) -> None:
        """`ready` is called once everything answers. Raises ClusterError."""
        # read before anything is started, so that a mistake costs nothing
        wanted = [obj for path in self._options.apply for obj in manifests.read(path)]
        with self._folder.locked():
            self._stop_leftovers()
            self.remembered = remember(self._folder, self._options.api_port, self._options.gateway_port)
            self._make_gpus()
            async with self._api() as api, AsyncClient(load_config(self._folder.kubeconfig)) as client:
                await self._prepare(client)
                for obj in wanted:
                    await manifests.apply(client, obj, DEFAULT_NAMESPACE)
                self._supervisor = Supervisor(client, self._settings())
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._supervisor.run())
                    group.create_task(_watch(api))
                    await self._parts_ready(client)
                    ready()

    def hurry(self) -> None:
        """While it stops: do not wait for programs to end well."""
        if self._supervisor is not None:
            self._supervisor.kill()

    def _settings(self) -> Settings:
        return Settings(
            node=self.remembered.node,
            state=self._folder.pods,
            logs=self._folder.logs,
            images=parts.images(self._folder, self._options.simulation),
            backoff=BACKOFF,
        )

    def _stop_leftovers(self) -> None:
        """What an earlier run left because it was killed: before the API comes up, or it would serve them again."""
        try:
            for folder in (self._folder.pods / "processes", self._folder.processes):
                killed = Records(folder).kill_all()
                if killed:
                    self._tell(f"an earlier run was killed; stopped what it left: {', '.join(killed)}")
        except OSError as error:
            raise ClusterError(f"the state folder {self._folder.path} cannot be used: {error}") from error
        except RuntimeError as error:
            raise ClusterError(str(error)) from error

    def _make_gpus(self) -> None:
        simulation = self._options.simulation
        if simulation is None:
            return
        for file in self._folder.path.glob(f"{self._folder.ledger.name}*"):
            file.unlink()  # its processes are gone, and so is their memory
        try:
            ledger.create(self._folder.ledger, simulation.gpus, simulation.memory).close()
        except (ledger.LedgerError, OSError) as error:
            raise ClusterError(f"the simulated GPUs cannot be made: {error}") from error

    # the API

    @asynccontextmanager
    async def _api(self) -> AsyncIterator[asyncio.Task[None]]:
        """The API as a child process, started again whenever it dies. The task ends when that is no use any more."""
        keeping = asyncio.create_task(self._keep_api())
        ready = asyncio.create_task(self._api_ready.wait())
        try:
            await asyncio.wait([keeping, ready], return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
            self._write_kubeconfig()
            yield keeping
        finally:
            ready.cancel()
            keeping.cancel()
            await asyncio.gather(keeping, ready, return_exceptions=True)

    async def _keep_api(self) -> None:
        output = _Output(self._folder.logs / "api.log", self._api_ready)
        records = Records(self._folder.processes)
        command = [sys.executable, "-P", "-m", "localcluster.api", "--state-dir", str(self._folder.api)]
        command += ["--port", str(self.remembered.api_port)]
        command += ["--log-dir", str(self._folder.logs)]
        failures = 0
        while failures < API_ATTEMPTS:
            output.begin()
            try:
                process = Process.start(command, os.environ, records, "the API", log=output)
            except StartError as error:
                raise ClusterError(f"the API cannot be started: {error}") from error
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.signal(signal.SIGTERM)
                ended = asyncio.create_task(process.wait())
                await asyncio.wait([ended], timeout=API_GRACE)
                process.kill()
                await ended
                raise
            if not self._api_ready.is_set():
                raise ClusterError(output.last_error() or f"the API ended with status {code}; see {output.path}")
            failures = 0 if output.was_ready else failures + 1
            self._tell(f"the API ended with status {code}; starting it again (its log is {output.path})")
            await asyncio.sleep(BACKOFF * 2.0**failures)
        raise ClusterError(f"the API does not start any more: {output.last_error()}; see {output.path}")

    def _write_kubeconfig(self) -> None:
        """The API's, with our namespace as the default: port, token and certificate stay over restarts."""
        config = json.loads((self._folder.api / "kubeconfig").read_text())
        config["contexts"][0]["context"]["namespace"] = DEFAULT_NAMESPACE
        file = self._folder.kubeconfig
        file.touch(0o600)
        file.write_text(json.dumps(config, indent=2) + "\n")

    # what is in it

    async def _prepare(self, client: AsyncClient) -> None:
        """CRDs, namespace, and our own programs as this start wants them. The supervisor does not run yet."""
        for obj in manifests.read(manifests.packaged("crds")):
            await manifests.apply(client, obj, DEFAULT_NAMESPACE)
        try:
            await client.create(NAMESPACES, {"metadata": {"name": DEFAULT_NAMESPACE}})
        except AlreadyExists:
            pass
        for pod in parts.system_pods(self.remembered):
            try:
                await client.delete(PODS, pod["metadata"]["name"], DEFAULT_NAMESPACE, grace_seconds=0)
            except NotFound:
                pass
            await client.create(PODS, pod)

    async def _parts_ready(self, client: AsyncClient) -> None:
        """Wait until controller, agent and gateway are ready; tell when one of them does not come up."""
        wanted = {pod["metadata"]["name"] for pod in parts.system_pods(self.remembered)}
        changed, told = asyncio.Event(), set[str]()
        pods = Reflector(
            client,
            PODS,
            DEFAULT_NAMESPACE,
            label_selector="app.kubernetes.io/name=greenthread",
            on_event=lambda *_: changed.set(),
        )
        watching = asyncio.create_task(pods.run())
        try:
            while True:
                await changed.wait()
                changed.clear()
                missing = wanted - {name for (_, name), pod in pods.objects.items() if _is_ready(pod)}
                if not missing:
                    return
                for name in missing - told:
                    pod = pods.objects.get((DEFAULT_NAMESPACE, name), {})
                    if _restarts(pod) >= TROUBLE:
                        told.add(name)
                        self._tell(f"{name} does not come up: {_why(pod)}; its logs are in {self._folder.logs}")
        finally:
            watching.cancel()


async def _watch(task: asyncio.Task[None]) -> None:
    """Fails when the task does, without owning it."""
    await asyncio.shield(task)


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _containers(pod: Object) -> list[Object]:
    return (pod.get("status") or {}).get("containerStatuses") or []


def _restarts(pod: Object) -> int:
    return max((container["restartCount"] for container in _containers(pod)), default=0)


def _why(pod: Object) -> str:
    for container in _containers(pod):
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if ended:
            return ended.get("message") or f"it ended with status {ended.get('exitCode')}"
    return "it is not ready"


class _Output(Log):
    """The API's log; notices the line that says it is ready."""

    def __init__(self, path: Path, ready: asyncio.Event) -> None:
        super().__init__(path)
        self._ready = ready
        self._text = ""
        self.was_ready = False

    def begin(self) -> None:
        """A new process writes from here on."""
        self._text, self.was_ready = "", False
        self.reopen()

    def write(self, data: bytes) -> None:
        super().write(data)
        self._text = (self._text + data.decode("utf-8", "replace"))[-4096:]
        if not self.was_ready and "ready: " in self._text:
            self.was_ready = True
            self._ready.set()

    def last_error(self) -> str:
        """What it complained about, without its `error: `."""
        errors = [line for line in self._text.splitlines() if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ") if errors else ""
