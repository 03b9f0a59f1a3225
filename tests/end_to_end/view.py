"""What the cluster's objects are, kept true by watches in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS, Resource
from greenthread.names import DEFAULT_NAMESPACE

Object = dict[str, Any]

WATCHED = (MODELS, GPUS, PODS, EVENTS)


class View:
    """Copies of all Models, GPUs, Pods and Events; `version` grows with every change of any of them."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._changed = threading.Condition()
        self._objects: dict[Resource, dict[tuple[str, str], Object]] = {resource: {} for resource in WATCHED}
        self._history: dict[Resource, list[Object]] = {resource: [] for resource in WATCHED}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.version = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(5)

    async def _run(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            async with AsyncClient(self._config) as client, asyncio.TaskGroup() as group:
                for resource in WATCHED:
                    group.create_task(self._follow(client, resource))
        except asyncio.CancelledError:
            pass

    async def _follow(self, client: AsyncClient, resource: Resource) -> None:
        def on_event(kind: str, obj: Object) -> None:
            key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
            with self._changed:
                if kind == "DELETED":
                    self._objects[resource].pop(key, None)
                else:
                    self._objects[resource][key] = obj
                    self._history[resource].append(obj)
                self.version += 1
                self._changed.notify_all()

        await Reflector(client, resource, on_event=on_event).run()

    def objects(self, resource: Resource) -> list[Object]:
        """All of a kind, by namespace and name."""
        with self._changed:
            return [obj for _, obj in sorted(self._objects[resource].items())]

    def get(self, resource: Resource, name: str, namespace: str = DEFAULT_NAMESPACE) -> Object | None:
        with self._changed:
            return self._objects[resource].get((namespace, name))

    def history(self, resource: Resource) -> list[Object]:
        """Every version that was seen since `forget`, oldest first, with the present one of each object before them."""
        with self._changed:
            return list(self._history[resource])

    def forget(self) -> None:
        """Histories begin anew."""
        with self._changed:
            for resource in WATCHED:
                self._history[resource] = list(self._objects[resource].values())

    def wait(self, version: int, seconds: float) -> None:
        """Until something changed since `version`, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != version, seconds)
