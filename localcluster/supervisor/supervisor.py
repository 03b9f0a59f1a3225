"""The supervisor of one node: registers it, takes its pods, publishes where they listen."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from greenthread.clock import Clock, SystemClock, format_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Object
from greenthread.kube.errors import AlreadyExists, ApiError, Conflict, NotFound, Unreachable
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import ENDPOINT_SLICES, LEASES, NAMESPACES, NODES, PODS, SERVICES, Resource
from localcluster.supervisor import endpoints, leftovers
from localcluster.supervisor.leftovers import Records
from localcluster.supervisor.pod import Machine, PodRunner
from localcluster.supervisor.ports import Ports
from localcluster.supervisor.settings import Settings
from localcluster.supervisor.status import kube_time

log = logging.getLogger(__name__)

#: Log folders of pods that are gone, kept for whoever asks why.
OLD_LOGS = 50
#: Seconds before a failed write is tried again.
RETRY = 1.0
LEASE_NAMESPACE = "kube-node-lease"


class Supervisor:
    """`run` until cancelled: then every container is stopped with its grace, and all objects stay as they are."""

    def __init__(
        self,
        client: AsyncClient,
        settings: Settings,
        clock: Clock | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock or SystemClock()
        self.records = Records(settings.state / "processes")
        self._dirty = asyncio.Event()
        self._machine = Machine(
            client=client,
            settings=settings,
            records=self.records,
            ports=Ports(),
            clock=self._clock,
            environment=os.environ if environment is None else environment,
            endpoints_changed=self._dirty.set,
        )
        self._pods: dict[str, PodRunner] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen = Reflector(client, PODS, on_event=self._on_pod)
        self._services = Reflector(client, SERVICES, on_event=lambda *_: self._dirty.set())
        self._slices = Reflector(
            client, ENDPOINT_SLICES, label_selector=f"{endpoints.LABEL_MANAGED_BY}={endpoints.MANAGED_BY}"
        )

    async def run(self) -> None:
        """Raises RuntimeError when processes of an earlier life do not die."""
        killed = self.records.kill_all()
        if killed:
            log.warning("killed what an earlier run left behind: %s", ", ".join(killed))
        guard = self._start_guard()
        try:
            async with asyncio.TaskGroup() as group:
                for reflector in (self._seen, self._services, self._slices):
                    group.create_task(reflector.run())
                for work in (self._register(), self._publish(), self._clean_folders()):
                    group.create_task(work)
        finally:
            try:
                await self._stop_pods()
            finally:  # cancelled once more: the guard kills what still runs
                assert guard.stdin is not None
                guard.stdin.close()
                guard.wait()

    def kill(self) -> None:
        """Do not wait any longer for containers that are being stopped."""
        for runner in self._pods.values():
            runner.kill()

    async def synced(self) -> None:
        """Returns when the pods of this node are known."""
        await self._seen.synced()

    def _start_guard(self) -> subprocess.Popen[bytes]:
        """A process that outlives us just long enough to kill what we started, should we be killed."""
        command = [sys.executable, "-I", "-S", leftovers.__file__, str(self.records.folder)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    # the node

    async def _register(self) -> None:
        """The Node object, and a Lease that is renewed so that a controller manager believes in it."""
        await self._until_done(self._write_node())
        await self._until_done(self._ensure(NAMESPACES, {"metadata": {"name": LEASE_NAMESPACE}}))
        while True:
            await self._until_done(self._renew())
            await asyncio.sleep(self._settings.lease_seconds)

    async def _write_node(self) -> None:
        name, labels = self._settings.node, self._settings.node_labels()
        node = await self._ensure(NODES, {"metadata": {"name": name, "labels": labels}})
        if any((node["metadata"].get("labels") or {}).get(key) != value for key, value in labels.items()):
            await self._client.patch(NODES, name, {"metadata": {"labels": labels}})
        now = kube_time(self._clock.now())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
        capacity = {"cpu": str(os.cpu_count() or 1), "memory": f"{memory}Ki", "pods": "110"}
        ready = {"type": "Ready", "status": "True", "reason": "SupervisorReady", "message": "runs pods as processes"}
        status = {
            "conditions": [ready | {"lastHeartbeatTime": now, "lastTransitionTime": now}],
            "addresses": [
                {"type": "InternalIP", "address": self._settings.address},
                {"type": "Hostname", "address": name},
            ],
            "capacity": capacity,
            "allocatable": capacity,
        }
        await self._client.patch(NODES, name, {"status": status}, subresource="status")

    async def _renew(self) -> None:
        name = self._settings.node
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": int(self._settings.lease_seconds * 4),
            "renewTime": format_time(self._clock.now()),
        }
        try:
            await self._client.patch(LEASES, name, {"spec": spec}, LEASE_NAMESPACE)
        except NotFound:
            await self._client.create(LEASES, {"metadata": {"name": name}, "spec": spec}, LEASE_NAMESPACE)

    async def _ensure(self, resource: Resource, obj: Object) -> Object:
        try:
            return await self._client.create(resource, obj)
        except AlreadyExists:
            return await self._client.get(resource, obj["metadata"]["name"])

    async def _until_done(self, work: Coroutine[Any, Any, Any]) -> None:
        """One write of the node's; a failure is logged and made good by the next renewal."""
        try:
            await work
        except (ApiError, Unreachable) as error:
            log.warning("node %s: %s", self._settings.node, error)

    # pods

    def _on_pod(self, kind: str, pod: Object) -> None:
        self._dirty.set()
        uid = pod["metadata"]["uid"]
        runner = self._pods.get(uid)
        if runner is not None:
            if kind == "DELETED":
                runner.gone(pod)
            else:
                runner.update(pod)
            return
        for other in self._pods.values():
            # the name was taken by a new pod before we heard that the old one is gone
            if (other.namespace, other.name) == (pod["metadata"]["namespace"], pod["metadata"]["name"]):
                other.gone(other.pod)
        if kind == "DELETED":
            return
        node = pod["spec"].get("nodeName")
        if node == self._settings.node:
            try:
                self._pods[uid] = PodRunner(pod, self._machine)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("pod %s is malformed and does not run: %r", pod["metadata"]["name"], error)
                return
            self._spawn(self._run_pod(self._pods[uid]), f"pod {uid}")
        elif not node and self._fits(pod):
            self._spawn(self._bind(pod), f"binding of {uid}")

    async def _run_pod(self, runner: PodRunner) -> None:
        try:
            await runner.run()
        except Exception:
            log.exception("pod %s/%s: a fault of the supervisor", runner.namespace, runner.name)
        finally:
            del self._pods[runner.uid]
            self._dirty.set()

    def _fits(self, pod: Object) -> bool:
        labels = self._settings.node_labels()
        selector = pod["spec"].get("nodeSelector") or {}
        leaving = pod["metadata"].get("deletionTimestamp")
        return not leaving and all(labels.get(name) == value for name, value in selector.items())

    async def _bind(self, pod: Object) -> None:
        metadata = pod["metadata"]
        binding = Resource("", "v1", f"pods/{metadata['name']}/binding", "Binding")
        body = {
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self._settings.node},
        }
        while True:
            try:
                await self._client.create(binding, body, metadata["namespace"])
                return
            except (NotFound, Conflict):
                return  # it is gone, or somebody else was faster: the watch tells
            except (ApiError, Unreachable) as error:
                log.warning("pod %s/%s cannot be bound: %s", metadata["namespace"], metadata["name"], error)
            await asyncio.sleep(RETRY)

    async def _stop_pods(self) -> None:
        for runner in self._pods.values():
            runner.shut_down()
        for task in self._tasks:
            if not (task.get_name().startswith("pod ")):
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _clean_folders(self) -> None:
        """Remove the folders of pods that do not exist any more, and all but the newest logs of such pods."""
        await self._seen.synced()
        uids = {pod["metadata"]["uid"] for pod in self._seen.objects.values()}
        pods = self._settings.state / "pods"
        for folder in pods.iterdir() if pods.is_dir() else ():
            if folder.name not in uids:
                shutil.rmtree(folder, ignore_errors=True)
        logs = self._settings.logs
        old = [folder for folder in logs.iterdir() if _uid(folder) not in uids] if logs.is_dir() else []
        old.sort(key=lambda folder: folder.stat().st_mtime)
        for folder in old[:-OLD_LOGS]:
            shutil.rmtree(folder, ignore_errors=True)

    # endpoints

    async def _publish(self) -> None:
        """Make the EndpointSlices what they should be, after every change of a pod or a Service."""
        await asyncio.gather(self._seen.synced(), self._services.synced(), self._slices.synced())
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._write_slices()
            except (ApiError, Unreachable) as error:
                if not isinstance(error, Conflict | NotFound):  # a Service or pod that is just going
                    log.warning("endpoints cannot be written, trying again: %s", error)
                await asyncio.sleep(RETRY)
                self._dirty.set()

    async def _write_slices(self) -> None:
        node, address = self._settings.node, self._settings.address
        places = [
            endpoints.PodAddress(runner.pod, runner.ports, runner.ready, runner.terminating)
            for runner in self._pods.values()
            if runner.serves
        ]
        want = endpoints.wanted(places, self._services.objects.values(), node, address)
        for key, actual in list(self._slices.objects.items()):
            if key not in want and endpoints.belongs_to(actual, node):
                try:
                    await self._client.delete(ENDPOINT_SLICES, key[1], key[0], uid=actual["metadata"]["uid"])
                except NotFound:
                    pass
        for key, obj in want.items():
            found = self._slices.objects.get(key)
            if found is None:
                self._slices.update(await self._client.create(ENDPOINT_SLICES, obj))
            elif endpoints.differs(found, obj):
                version = found["metadata"]["resourceVersion"]
                fresh = obj | {"metadata": obj["metadata"] | {"resourceVersion": version}}
                self._slices.update(await self._client.replace(ENDPOINT_SLICES, fresh))


def _uid(folder: Path) -> str:
    return folder.name.rsplit("_", 1)[-1]
