"""The cluster as the dashboard knows it: kept true by watches, with a little history. Knows no widget."""

from __future__ import annotations

import asyncio
import bisect
import functools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from greenthread.clock import Clock, SystemClock, parse_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Object, Patch
from greenthread.kube.errors import ApiError, Forbidden
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS, Resource, key_of
from greenthread.names import ANNOTATION_RECORD, DEFAULT_NAMESPACE, LABEL_MODEL
from greenthread.snapshot import Report, Shown, Snapshot, build
from tui.wakes import Key, Wakes

SAMPLE = 5.0
"""Seconds between two samples of the history."""
SAMPLES = 240
EVENTS_KEPT = 500
RECORDS_KEPT = 30
"""Records kept of each model."""
REPORTS = 5.3
"""Seconds: a sidecar whose counters move reports them at least this often."""


@dataclass(frozen=True, slots=True)
class Told:
    """An Event on a Model; `record` is the wake's or sleep's, in JSON's types, if it carries one."""

    at: datetime
    key: Key
    reason: str
    message: str
    warning: bool
    record: Mapping[str, Any] | None = None
    order: tuple[float, int] = (0.0, 0)
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """How the connection to the cluster is. `age`: seconds since the server last said anything; None: never."""

    state: Literal["connecting", "live", "lost"]
    age: float | None
    #: Why it is lost, for people.
    trouble: str = ""
    #: What this user may not read, for people.
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class _Counter:
    """Requests of one pod as last reported."""

    requests: int
    at: float
    rate: float | None = None


class ClusterData:
    """Four watches joined. `run()` keeps it going; everything else may be called from the same loop at any time."""

    def __init__(
        self,
        client: AsyncClient,
        namespace: str | None = None,
        fallback_namespace: str = "default",
        clock: Clock | None = None,
    ) -> None:
        """`namespace`: of the Models, None for all; who may not read all sees `fallback_namespace`."""
        self.client = client
        self.clock: Clock = clock or SystemClock()
        self.wakes = Wakes()
        #: The namespace shown, None for all.
        self.namespace = namespace
        self._fallback = fallback_namespace
        self._reflectors: dict[str, Reflector] = {}
        self._changed: set[str] = set()
        self._snapshot: Snapshot | None = None
        self._dirty = True
        self._events: list[Told] = []
        self._records: dict[Key, deque[Told]] = {}
        self._counters: dict[Key, _Counter] = {}
        self._utilization: dict[str, deque[float | None]] = {}
        self._rates: dict[Key, deque[float | None]] = {}

    async def run(self) -> None:
        """Follows the cluster until cancelled."""
        models = [self.namespace] if self.namespace else [None, self._fallback]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(MODELS, models))
            group.create_task(self._follow(GPUS, [None, DEFAULT_NAMESPACE]))
            group.create_task(self._follow(PODS, models, label_selector=LABEL_MODEL))
            group.create_task(self._follow(EVENTS, models, field_selector="involvedObject.kind=Model"))
            group.create_task(self._sample())

    def snapshot(self) -> Snapshot:
        """The cluster now."""
        now = self.clock.now()
        if self._dirty or self._snapshot is None or self._snapshot.waiting:
            self._snapshot = build(self._objects(MODELS), self._objects(GPUS), self._objects(PODS), now)
            self._dirty = False
        else:
            self._snapshot = replace(self._snapshot, at=now)
        self.wakes.observe(self._snapshot)
        return self._snapshot

    def take_changes(self) -> set[str]:
        """Plurals of the kinds that changed since the last call, and "history"."""
        changed, self._changed = self._changed, set()
        return changed

    @property
    def link(self) -> Link:
        """The connection. Lost: no watch gets through; one alone that is refused leaves its kind out."""
        now = asyncio.get_running_loop().time()
        watched = self._reflectors
        readable = [r for r in watched.values() if not isinstance(r.error, Forbidden)]
        troubles = [r.error for r in readable if r.error is not None]
        contacts = [r.last_contact for r in readable if r.last_contact is not None]
        age = now - max(contacts) if contacts else None
        if troubles and len(troubles) == len(readable):
            return Link("lost", age, str(troubles[0]))
        # after an interruption a quiet watch is only known to be well when it next says something
        missing = tuple(f"{kind}: {r.error}" for kind, r in watched.items() if isinstance(r.error, ApiError))
        return Link("live" if contacts or missing else "connecting", age, "", missing)

    @property
    def events(self) -> Sequence[Told]:
        """Events on Models, oldest first."""
        return self._events

    def records(self, key: Key) -> list[Told]:
        """A model's Events that carry a record, newest first."""
        return list(reversed(self._records.get(key, ())))

    def expected(self, key: Key, kind: Literal["wake", "boot"]) -> float | None:
        """Seconds that its engine took for the last one that succeeded."""
        for told in self.records(key):
            record = told.record or {}
            if record.get("kind") == kind and not record.get("error"):
                with suppress(KeyError, TypeError, ValueError):
                    return float(record["steps"]["engine"])
        return None

    def utilization(self, gpu: str) -> Sequence[float | None]:
        """Percent, a sample every `SAMPLE` seconds, newest last."""
        return list(self._utilization.get(gpu, ()))

    def rates(self, key: Key) -> Sequence[float | None]:
        """Requests per second of a model, a sample every `SAMPLE` seconds, newest last."""
        return list(self._rates.get(key, ()))

    def rate(self, key: Key) -> float | None:
        """Requests per second now; None when nobody reported yet."""
        now = asyncio.get_running_loop().time()
        snapshot = self._snapshot
        row = snapshot.model(*key) if snapshot else None
        rates = []
        for replica in row.replicas if row else ():
            counter = self._counters.get((replica.pod.namespace, replica.pod.name))
            if counter is None:
                continue
            if now - counter.at > 2 * REPORTS:
                rates.append(0.0)  # it would have told
            elif counter.rate is not None:
                rates.append(counter.rate)
        return sum(rates) if rates else None

    async def patch_model(self, key: Key, body: Patch) -> None:
        """Changes a Model; raises as `AsyncClient.patch` does."""
        answer = await self.client.patch(MODELS, key[1], body, namespace=key[0])
        if self._reflectors[MODELS.plural].update(answer):
            self._mark(MODELS)

    def _objects(self, resource: Resource) -> list[Object]:
        reflector = self._reflectors.get(resource.plural)
        return list(reflector.objects.values()) if reflector else []

    async def _follow(
        self, resource: Resource, scopes: Sequence[str | None], label_selector: str = "", field_selector: str = ""
    ) -> None:
        """Watches the widest scope that this user may read."""
        for scope in scopes:
            reflector = Reflector(
                self.client, resource, scope, label_selector, field_selector, functools.partial(self._heard, resource)
            )
            self._reflectors[resource.plural] = reflector
            task = asyncio.create_task(reflector.run())
            try:
                if scope is None and await self._refused(reflector):
                    if resource is MODELS:
                        self.namespace = scopes[-1]
                    continue
                await task
            finally:
                task.cancel()

    async def _refused(self, reflector: Reflector) -> bool:
        """Waits for the first list; True if this user may not make it."""
        while reflector.last_contact is None:
            if isinstance(reflector.error, Forbidden):
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await reflector.synced()
        return False

    def _mark(self, resource: Resource) -> None:
        self._changed.add(resource.plural)
        if resource is not EVENTS:
            self._dirty = True

    def _heard(self, resource: Resource, kind: str, obj: Object) -> None:
        self._mark(resource)
        if resource is EVENTS and kind != "DELETED":
            self._tell(obj)
        elif resource is PODS:
            self._count(kind, obj)

    def _tell(self, obj: Object) -> None:
        told = read_event(obj)
        if told is None:
            return
        if any(old.uid == told.uid for old in reversed(self._events)):
            self._events = [old for old in self._events if old.uid != told.uid]
        bisect.insort(self._events, told, key=lambda event: event.order)
        del self._events[:-EVENTS_KEPT]
        if told.record is not None:
            kept = self._records.get(told.key, deque(maxlen=RECORDS_KEPT))
            known = sorted([*(old for old in kept if old.uid != told.uid), told], key=lambda event: event.order)
            self._records[told.key] = deque(known, maxlen=RECORDS_KEPT)

    def _count(self, kind: str, pod: Object) -> None:
        key = key_of(pod)
        report = Report.from_pod(pod)
        if kind == "DELETED" or report is None:
            self._counters.pop(key, None)
            return
        now = asyncio.get_running_loop().time()
        known = self._counters.get(key)
        if known is None:
            self._counters[key] = _Counter(report.requests, now)
        elif report.requests != known.requests:
            # the sidecar was silent before: what is new came since its last moment of silence
            passed = min(now - known.at, REPORTS)
            rate = max(report.requests - known.requests, 0) / max(passed, 1.0)
            self._counters[key] = _Counter(report.requests, now, rate)
        elif now - known.at > REPORTS:
            self._counters[key] = _Counter(report.requests, now, 0.0)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE)
            snapshot = self.snapshot()
            use: dict[str, float | None] = {
                gpu.gpu.name: gpu.gpu.stats.utilization if gpu.gpu.stats else None for gpu in snapshot.gpus
            }
            rates = {key: self.rate(key) for key in ((row.namespace, row.name) for row in snapshot.models)}
            self._utilization = _append(self._utilization, use)
            self._rates = _append(self._rates, rates)
            self._records = {key: kept for key, kept in self._records.items() if key in rates}
            self._changed.add("history")


def _append(kept: Mapping[Any, deque[float | None]], now: Mapping[Any, float | None]) -> dict[Any, deque[float | None]]:
    """The histories with one more sample; those of what is gone are forgotten."""
    fresh: dict[Any, deque[float | None]] = {}
    for key, value in now.items():
        fresh[key] = kept.get(key) or deque(maxlen=SAMPLES)
        fresh[key].append(value)
    return fresh


def read_event(obj: Mapping[str, Any]) -> Told | None:
    """An Event object in short; None for one that says nothing of a Model, or not when."""
    meta, about = obj["metadata"], obj.get("involvedObject") or {}
    if about.get("kind") != "Model" or not about.get("name"):
        return None
    record = None
    with suppress(ValueError, TypeError):
        found = json.loads((meta.get("annotations") or {}).get(ANNOTATION_RECORD) or "null")
        record = found if isinstance(found, dict) else None
    for text in (obj.get("eventTime"), obj.get("lastTimestamp"), meta.get("creationTimestamp")):
        with suppress(ValueError):
            at = parse_time(str(text))
            version = str(meta.get("resourceVersion", ""))
            return Told(
                at=at,
                key=(str(about.get("namespace") or meta.get("namespace", "")), str(about["name"])),
                reason=str(obj.get("reason") or ""),
                message=str(obj.get("message") or ""),
                warning=obj.get("type") == "Warning",
                record=record,
                order=(at.timestamp(), int(version) if version.isdecimal() else 0),
                uid=str(meta.get("uid") or meta.get("name")),
            )
    return None


def fill_of(data: ClusterData, key: Key, snapshot: Snapshot) -> float | None:
    """How far a wake or boot is, 0 to 1, from the time its last one took; None when there was none yet."""
    row = snapshot.model(*key)
    if row is None or row.state not in (Shown.WAKING, Shown.CONVERTING) or row.since is None:
        return None
    took = data.expected(key, "wake" if row.state is Shown.WAKING else "boot")
    return min((snapshot.at - row.since).total_seconds() / took, 0.99) if took else None
