"""What happened, kept and told: records in ``/status``, Events on the Model, the report on the pod."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greenthread.clock import Clock, format_time
from greenthread.gpu import PodRef
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import ApiError, Unreachable
from greenthread.kube.resources import EVENTS, PODS
from greenthread.names import ANNOTATION_RECORD, ANNOTATION_REPORT, ANNOTATION_SERVING_MEMORY, API_VERSION
from greenthread.units import short_bytes, short_duration

log = logging.getLogger(__name__)

#: Records kept for /status, Events that may wait to be written.
_KEEP = 50
#: Of the report on the pod, in seconds: how often counters are looked at; how long a change of state waits for the
#: next one, since they come in a row; and the least between two writes.
_REPORT_EVERY, _REPORT_AFTER, _REPORT_GAP = 5.0, 0.3, 1.0


@dataclass
class Record:
    """One wake, boot or sleep: why, how long each step took (seconds), who was in the way."""

    kind: str
    at: str
    reason: str
    gpus: str
    steps: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    #: What stood in the way at first, in words; "" when nothing did.
    waited_for: str = ""
    victims: list[str] = field(default_factory=list)
    #: For a sleep: the model that needed the memory.
    for_model: str = ""
    #: Bytes on each GPU that were taken or freed.
    memory: int = 0
    #: Of a sleep: bytes that the engine still holds on a GPU, by NVML; None: that cannot be seen.
    left: int | None = None
    error: str = ""

    def to_object(self) -> dict[str, Any]:
        """As JSON: keys as in other objects of the product, seconds to the tenth of a millisecond."""
        return {
            "kind": self.kind,
            "at": self.at,
            "reason": self.reason,
            "gpus": self.gpus,
            "steps": {name: round(seconds, 4) for name, seconds in self.steps.items()},
            "total": round(self.total, 4),
            "waitedFor": self.waited_for,
            "victims": self.victims,
            "forModel": self.for_model,
            "memory": self.memory,
            "left": self.left,
            "error": self.error,
        }

    def text(self) -> str:
        """One sentence for people: ``woke in 540ms on node-a/0 (queue 12ms, claim 4ms, engine 524ms)``."""
        steps = ", ".join(f"{name} {short_duration(seconds)}" for name, seconds in self.steps.items())
        if self.kind == "crash":
            return f"the engine died on {self.gpus} ({self.error}); {short_bytes(self.memory)} freed, it boots again"
        verb = {"wake": "woke", "boot": "booted", "sleep": "slept"}[self.kind]
        if self.error:
            return f"{self.kind} failed on {self.gpus} after {short_duration(self.total)}: {self.error}"
        text = f"{verb} in {short_duration(self.total)} on {self.gpus}" + (f" ({steps})" if steps else "")
        if self.kind == "sleep":
            text += f", {self.reason}, freed {short_bytes(self.memory)}"
            if self.left is not None:
                text += f", left {short_bytes(self.left) if self.left else 'nothing'}"
        elif self.victims:
            text += f", after {', '.join(self.victims)} made room"
        return text


class Recorder:
    """Keeps records and writes Events and the pod's report in the background: never on the path of a wake."""

    def __init__(self, client: AsyncClient, pod: PodRef, pod_uid: str, model: str, clock: Clock) -> None:
        self._client, self._pod, self._uid, self._model, self._clock = client, pod, pod_uid, model, clock
        self.records: deque[Record] = deque(maxlen=_KEEP)
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEEP)
        self._pending = asyncio.Event()
        self._report_due = asyncio.Event()
        self._annotations: dict[str, str] = {}
        self._reported: dict[str, str] = {}
        self._sequence = 0
        #: Uid of the Model, for the Events' involvedObject.
        self.model_uid = ""
        #: The report as of now.
        self.report: Callable[[], dict[str, Any]] = dict
        #: Called with each Event's reason, and with each record, where there are traces.
        self.on_event: Callable[[str], None] | None = None
        self.on_record: Callable[[Record], None] | None = None

    def now(self) -> str:
        return format_time(self._clock.now())

    def add(self, record: Record, reason: str, warning: bool = False) -> None:
        """Keeps a record and tells it as an Event with this reason (CamelCase)."""
        self.records.append(record)
        if self.on_record is not None:
            self.on_record(record)
        self.event(reason, record.text(), warning, {ANNOTATION_RECORD: json.dumps(record.to_object())})

    def event(
        self, reason: str, message: str, warning: bool = False, annotations: dict[str, str] | None = None
    ) -> None:
        """An Event on the Model. The oldest unwritten ones are dropped when the API server stays away."""
        log.info("%s: %s", reason, message)
        if self.on_event is not None:
            self.on_event(reason)
        self._sequence += 1
        now = self.now()
        self._events.append(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {
                    "name": f"{self._model}.{int(self._clock.now().timestamp() * 1000):x}{self._sequence:x}",
                    "namespace": self._pod.namespace,
                    "annotations": annotations or {},
                },
                "involvedObject": {
                    "apiVersion": API_VERSION,
                    "kind": "Model",
                    "name": self._model,
                    "namespace": self._pod.namespace,
                    "uid": self.model_uid,
                },
                "reason": reason,
                "message": message[:1000],
                "type": "Warning" if warning else "Normal",
                "source": {"component": "greenthread-sidecar", "host": self._pod.name},
                "reportingComponent": "greenthread.ai/sidecar",
                "reportingInstance": self._pod.name,
                "firstTimestamp": now[:19] + "Z",
                "lastTimestamp": now[:19] + "Z",
                "count": 1,
            }
        )
        self._pending.set()

    def serving_memory(self, count: int) -> None:
        """Tells the controller what was measured, bytes on each GPU."""
        self._annotations[ANNOTATION_SERVING_MEMORY] = str(count)
        self._report_due.set()

    def changed(self) -> None:
        """The report is no longer what it was."""
        self._report_due.set()

    async def run(self) -> None:
        """Writes until cancelled."""
        self._report_due.set()  # what an earlier life of this sidecar said last may no longer be so
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_events())
            group.create_task(self._write_reports())

    async def flush(self, timeout: float) -> None:
        """Writes what is left, at most ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._events:
                    await self._write_event(self._events.popleft())
        except TimeoutError:
            log.warning("%d events were not written", len(self._events))

    async def _write_events(self) -> None:
        while True:
            await self._pending.wait()
            self._pending.clear()
            while self._events:
                await self._write_event(self._events.popleft())

    async def _write_event(self, event: dict[str, Any]) -> None:
        try:
            await self._client.create(EVENTS, event, namespace=self._pod.namespace)
        except (ApiError, Unreachable) as error:
            log.warning("event %s was not written: %s", event["reason"], error)

    async def _write_reports(self) -> None:
        while True:
            try:
                # Counters change without notice: look at them now and then, write only what changed.
                async with asyncio.timeout(_REPORT_EVERY):
                    await self._report_due.wait()
            except TimeoutError:
                pass
            self._report_due.clear()
            await asyncio.sleep(_REPORT_AFTER)
            wanted = {**self._annotations, ANNOTATION_REPORT: json.dumps(self.report(), separators=(",", ":"))}
            if wanted == self._reported:
                continue
            body = {"metadata": {"annotations": wanted, **({"uid": self._uid} if self._uid else {})}}
            pause = _REPORT_GAP - _REPORT_AFTER
            try:
                await self._client.patch(PODS, self._pod.name, body, namespace=self._pod.namespace)
                self._reported = wanted
            except (ApiError, Unreachable) as error:
                log.warning("the report was not written: %s", error)
                self._report_due.set()
                pause = _REPORT_EVERY
            await asyncio.sleep(pause)
