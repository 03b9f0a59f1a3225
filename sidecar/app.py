"""One sidecar, put together from its parts."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from greenthread.clock import Clock, SystemClock, format_time
from greenthread.gpu import PodRef
from greenthread.kube.aio import AsyncClient
from greenthread.model import Model
from greenthread.names import ANNOTATION_PREEMPT, ANNOTATION_WAKE
from sidecar.claims import Claims
from sidecar.door import Door
from sidecar.engine import Engine
from sidecar.frontdoor import FrontDoor
from sidecar.lifecycle import Lifecycle
from sidecar.metrics import Metrics
from sidecar.records import Recorder
from sidecar.settings import Settings
from sidecar.wishes import Wishes


class Sidecar:
    """Everything but the socket and the engine, which are given: so many can live in one process."""

    def __init__(
        self, settings: Settings, client: AsyncClient, clock: Clock | None = None, record_pod: bool = True
    ) -> None:
        """``record_pod``: write Events and the pod's report."""
        clock = clock or SystemClock()
        self.settings, self._record_pod = settings, record_pod
        self.metrics = Metrics(settings.gpu_indices)
        self.door = Door(clock, self.metrics, settings.queue_limit, settings.queue_timeout)
        self.metrics.follow(lambda: self.door.waiting, lambda: self.door.in_flight)
        self.recorder = Recorder(client, settings.pod, settings.pod_uid, settings.model, clock)
        self.recorder.report = self.report
        self.claims = Claims(
            client,
            settings.namespace,
            settings.gpu_names,
            settings.pod,
            settings.model,
            clock,
            on_change=lambda: self.lifecycle.poke(),
            on_conflict=self.metrics.cas_conflicts.inc,
        )
        self._wishes = Wishes(
            client,
            PodRef(settings.pod.namespace, settings.model),
            settings.run_dir,
            clock,
            on_model=self._on_model,
            on_wish=self._on_wish,
        )
        self._clock = clock
        self._model: Model | None = None
        self.lifecycle: Lifecycle

    def attach(self, engine: Engine) -> None:
        """Gives the sidecar its engine; before ``run``."""
        self._engine = engine
        self.lifecycle = Lifecycle(
            self.settings, self.claims, engine, self.door, self.metrics, self.recorder, self._clock
        )

    def front_door(self) -> FrontDoor:
        """The router for this sidecar's port."""
        return FrontDoor(
            self.door,
            self.metrics,
            ("127.0.0.1", self.settings.engine_port),
            status=self.status,
            models=self.models,
            state=lambda: (self.lifecycle.state, self.lifecycle.healthy),
        )

    async def run(self) -> None:
        """Runs until ``lifecycle.stop`` has been carried out."""
        watchers = [asyncio.create_task(self.claims.run()), asyncio.create_task(self._wishes.run())]
        if self._record_pod:
            watchers.append(asyncio.create_task(self.recorder.run()))
        owner = asyncio.create_task(self._own())
        try:
            await asyncio.wait({owner, *watchers}, return_when=asyncio.FIRST_COMPLETED)
            for task in (owner, *watchers):
                if task.done():
                    task.result()  # a watcher only ends by an error
            await owner
        finally:
            for task in (owner, *watchers):
                task.cancel()
            await asyncio.gather(owner, *watchers, return_exceptions=True)
        if self._record_pod:
            await self.recorder.flush(2.0)

    async def _own(self) -> None:
        await self._wishes.known()
        await self.lifecycle.run()

    def _on_model(self, model: Model) -> None:
        self._model = model
        self.recorder.model_uid = model.uid
        self.lifecycle.configure(model.spec)

    def _on_wish(self, name: str, at: datetime) -> None:
        if name == ANNOTATION_WAKE:
            self.lifecycle.wish_wake(at)
        else:
            self.lifecycle.wish_sleep(preempt=name == ANNOTATION_PREEMPT)

    # -- what others see --------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The report on the pod: small, and stable while nothing happens."""
        lifecycle = self.lifecycle
        return {
            "state": str(lifecycle.state),
            "since": format_time(lifecycle.since),
            "bootReady": lifecycle.boot_ready,
            "inFlight": self.door.in_flight,
            "queued": self.door.waiting,
            "requests": int(self.door.finished),
            "lastWakeSeconds": None if lifecycle.last_wake is None else round(lifecycle.last_wake, 3),
            "error": lifecycle.error,
            **({"shortfalls": shortfalls} if (shortfalls := self._engine.shortfalls) else {}),
        }

    def status(self) -> dict[str, Any]:
        """``GET /status``."""
        lifecycle = self.lifecycle
        return {
            "model": self.settings.model,
            "state": str(lifecycle.state),
            "bootReady": lifecycle.boot_ready,
            "queue": {"inFlight": self.door.in_flight, "barriered": self.door.waiting},
            "since": format_time(lifecycle.since),
            "pod": str(self.settings.pod),
            "gpus": list(self.settings.gpu_names),
            "why": lifecycle.explain(),
            "error": lifecycle.error,
            "lastWakeSeconds": lifecycle.last_wake,
            "shortfalls": self._engine.shortfalls,
            "records": [record.to_object() for record in self.recorder.records],
        }

    def models(self) -> list[dict[str, Any]]:
        """``GET /v1/models``, answered without waking: the names under which the engine serves."""
        created = int(self._model.created_at.timestamp()) if self._model and self._model.created_at else 0
        root = self._model.spec.model_name if self._model else self.settings.model
        return [
            {"id": name, "object": "model", "created": created, "owned_by": "greenthread", "root": root, "parent": None}
            for name in dict.fromkeys((root, self.settings.model))
        ]
