"""The controller without its framework: news in, reconciles out. kopf feeds it in a cluster, a simulator elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from controller.events import Recorder
from controller.metrics import ControllerMetrics
from controller.queue import KeyedQueue
from controller.reconcile import Reconciler
from controller.settings import Settings
from controller.store import Store
from greenthread.clock import Clock
from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Object
from greenthread.kube.errors import Conflict, KubeError
from greenthread.kube.resources import GPUS, MODELS, PODS, SERVICES, Key, Resource
from greenthread.names import LABEL_MANAGED_BY, LABEL_MODEL, MANAGED_BY

log = logging.getLogger(__name__)

#: What is watched, and the labels that the server selects by.
WATCHED: dict[Resource, str] = {
    MODELS: "",
    GPUS: "",
    PODS: LABEL_MODEL,
    SERVICES: f"{LABEL_MANAGED_BY}={MANAGED_BY}",
}
#: Seconds between the news that a watch began anew and the list that finds what vanished meanwhile.
AUDIT_DELAY = 1.0
#: Seconds from a change of an engine's state to the status that shows it. A wake is two or more such changes within
#: a tenth of a second: they become one write, which comes when the wake no longer needs the cores. Shorter than
#: anybody notices.
SETTLE = 0.15


class Controller:
    """`observe()` takes the news in; `run()` works until it is cancelled."""

    def __init__(
        self,
        client: AsyncClient,
        settings: Settings,
        clock: Clock,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self._client, self._settings = client, settings
        self.metrics = metrics or ControllerMetrics()
        self.queue: KeyedQueue[Key] = KeyedQueue()
        self.store = Store(self.queue.add, lambda key: self.queue.add_after(key, SETTLE))
        self._recorder = Recorder(client, clock, settings.identity)
        self._reconciler = Reconciler(client, self.store, settings, clock, self._recorder)
        self._audits: dict[Resource, asyncio.Event] = {resource: asyncio.Event() for resource in WATCHED}
        self._primed = False
        self.metrics.follow(lambda: Counter(model.status.phase for model in self.store.models()))

    def observe(self, resource: Resource, kind: str | None, obj: Object) -> None:
        """News of a watch: ADDED, MODIFIED, DELETED, or None for an object of a list that begins a watch."""
        if kind == "DELETED":
            self.store.remove(resource, obj)
        else:
            self.store.put(resource, obj)
        if kind is None and self._primed:
            # A watch began anew, and what was deleted in the gap is in neither list nor watch.
            self._audits[resource].set()

    async def prime(self) -> None:
        """Lists everything: nothing is decided on half of the truth. Raises KubeError."""
        for resource in WATCHED:
            await self._list(resource)
        self._primed = True

    async def run(self) -> None:
        """Works until cancelled. Call `prime` before."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._recorder.run())
            for resource in WATCHED:
                tasks.create_task(self._audit(resource))
            for _ in range(self._settings.workers):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            key = await self.queue.get()
            began, result = loop.time(), "done"
            try:
                again = await self._reconciler.reconcile(key)
            except Conflict:
                result = "conflict"  # the watch brings what we have not seen yet
                self.queue.failed(key)
            except KubeError as error:
                result = "refused"
                pause = self.queue.failed(key)
                log.warning("model %s/%s: %s (again in %.1f s)", *key, error, pause)
            except Exception:
                # a fault in one Model's handling must not stop the others'
                result = "fault"
                pause = self.queue.failed(key)
                log.exception("model %s/%s: a fault of the controller (again in %.1f s)", *key, pause)
            else:
                self.queue.succeeded(key)
                if again is not None:
                    self.queue.add_after(key, again)
            finally:
                self.queue.done(key)
            self.metrics.reconciles.labels(result).inc()
            self.metrics.duration.observe(loop.time() - began)
            self.metrics.queue.set(len(self.queue))

    async def _audit(self, resource: Resource) -> None:
        asked = self._audits[resource]
        while True:
            try:
                async with asyncio.timeout(self._settings.audit_every):
                    await asked.wait()
                await asyncio.sleep(AUDIT_DELAY)
            except TimeoutError:
                pass
            asked.clear()
            try:
                await self._list(resource)
            except KubeError as error:
                log.warning("%s cannot be listed: %s", resource.full_name, error)

    async def _list(self, resource: Resource) -> None:
        self.store.replace_all(resource, await self._client.list(resource, label_selector=WATCHED[resource]))
