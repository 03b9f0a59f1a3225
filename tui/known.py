"""What is known of the cluster at one moment, from the changes heard until then. Knows no widget and no network."""

from __future__ import annotations

import bisect
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from greenthread.clock import Clock, parse_time
from greenthread.kube.core import Object
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS, key_of
from greenthread.names import ANNOTATION_RECORD
from greenthread.snapshot import Builder, Report, Shown, Snapshot
from tui.series import Seen
from tui.wakes import Key, Wakes

SAMPLE = 5.0
"""Seconds between two samples of what is measured."""
SAMPLES = 24
"""Samples kept of each GPU and model, for sparklines."""
EVENTS_KEPT = 500
RECORDS_KEPT = 30
"""Records kept of each model."""
ALL_RECORDS = 1000
"""Records kept of all models; of each the newest in any case."""
REPORTS = 5.3
"""Seconds: a sidecar whose counters move reports them at least this often."""
KINDS = (MODELS.plural, GPUS.plural, PODS.plural, EVENTS.plural)
State = dict[str, dict[Key, Object]]
"""Objects by plural of their kind."""


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


@dataclass(slots=True)
class _Counter:
    """Requests of one pod as last reported."""

    requests: int
    at: float
    rate: float | None = None


class Known:
    """Fed by `hear`, and by `sample` every `SAMPLE` seconds; all else only reads."""

    def __init__(self, clock: Clock, seconds: Callable[[], float], namespace: str | None = None) -> None:
        """`seconds`: a time that never goes back, of any origin; `namespace`: of the Models, None for all."""
        self.clock = clock
        self.namespace = namespace
        """The namespace shown, None for all."""
        self.wakes = Wakes()
        self.seen = Seen()
        """What was measured of the whole cluster."""
        self._seconds = seconds
        self._objects: State = {kind: {} for kind in KINDS}
        self._builder = Builder()
        self._snapshot: Snapshot | None = None
        self._dirty = True
        self._events: list[Told] = []
        self._records: dict[Key, deque[Told]] = {}
        self._counters: dict[Key, _Counter] = {}
        self._utilization: dict[str, deque[float | None]] = {}
        self._rates: dict[Key, deque[float | None]] = {}

    def hear(self, plural: str, kind: str, obj: Object) -> None:
        """A change: ADDED, MODIFIED or DELETED. The object is kept, and must not be altered any more."""
        key = key_of(obj)
        if plural == EVENTS.plural:
            if kind != "DELETED":  # it goes because it is old: it happened all the same
                put(self._objects[plural], plural, key, obj)
                self._tell(obj)
            return
        if kind == "DELETED":
            self._objects[plural].pop(key, None)
        else:
            put(self._objects[plural], plural, key, obj)
        if plural == PODS.plural:
            self._count(kind, key, obj)
        self._dirty = True

    def become(self, state: State) -> None:
        """Knows these objects, and nothing of how they came to be."""
        self._objects = {kind: dict(state[kind]) for kind in KINDS}
        self._dirty = True
        self.wakes, self.seen = Wakes(), Seen()
        self._events, self._records, self._utilization, self._rates = [], {}, {}, {}
        told = (read_event(obj) for obj in state[EVENTS.plural].values())
        for event in sorted((event for event in told if event is not None), key=lambda event: event.order):
            self._keep(event)
        at = self._seconds()
        self._counters = {
            (replica.pod.namespace, replica.pod.name): _Counter(replica.report.requests, at)
            for row in self.snapshot().models
            for replica in row.replicas
            if replica.report is not None
        }

    def state(self) -> State:
        """Everything that is there; of Events the newest."""
        return {kind: dict(objects) for kind, objects in self._objects.items()}

    def object(self, plural: str, key: Key) -> Object | None:
        """A Model, GPU or pod as last heard of."""
        return self._objects[plural].get(key)

    def snapshot(self) -> Snapshot:
        """The cluster now."""
        now = self.clock.now()
        if self._dirty or self._snapshot is None or self._snapshot.waiting:
            models, gpus, pods = (self._objects[kind].values() for kind in KINDS[:3])
            self._snapshot = self._builder.build(models, gpus, pods, now)
            self._dirty = False
        else:
            self._snapshot = replace(self._snapshot, at=now)
        self.wakes.observe(self._snapshot)
        return self._snapshot

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
        row = self._snapshot.model(*key) if self._snapshot else None
        now, found, total = self._seconds(), False, 0.0
        for replica in row.replicas if row else ():
            counter = self._counters.get(replica.pod)
            if counter is None:
                continue
            if now - counter.at > 2 * REPORTS:
                found = True  # it would have told
            elif counter.rate is not None:
                found, total = True, total + counter.rate
        return total if found else None

    def sample(self) -> None:
        """Measures, `SAMPLE` seconds after the last time."""
        snapshot = self.snapshot()
        use: dict[str, float | None] = {
            gpu.gpu.name: gpu.gpu.stats.utilization if gpu.gpu.stats else None for gpu in snapshot.gpus
        }
        rates = {key: self.rate(key) for key in ((row.namespace, row.name) for row in snapshot.models)}
        self._utilization = _append(self._utilization, use)
        self._rates = _append(self._rates, rates)
        self._records = {key: kept for key, kept in self._records.items() if key in rates}
        self._forget()
        self.seen.add(snapshot, sum(rate for rate in rates.values() if rate is not None))

    def is_old(self, obj: Object) -> bool:
        """Whether an Event is older than all that are kept."""
        told = read_event(obj) if len(self._events) >= EVENTS_KEPT else None
        return told is not None and told.order < self._events[0].order

    def _forget(self) -> None:
        """The oldest records of a large cluster."""
        if sum(map(len, self._records.values())) > ALL_RECORDS:
            orders = sorted(told.order for kept in self._records.values() for told in kept)
            least = orders[-ALL_RECORDS]
            for kept in self._records.values():
                while len(kept) > 1 and kept[0].order < least:
                    kept.popleft()

    def _tell(self, obj: Object) -> None:
        told = read_event(obj)
        if told is None:
            return
        if any(old.uid == told.uid for old in reversed(self._events)):
            self._events = [old for old in self._events if old.uid != told.uid]
        self._keep(told)

    def _keep(self, told: Told) -> None:
        bisect.insort(self._events, told, key=lambda event: event.order)
        del self._events[:-EVENTS_KEPT]
        self.seen.tell(told.uid, told.at, told.reason, told.record)
        if told.record is not None:
            self.wakes.tell(told.key, told.record)
            kept = self._records.get(told.key, ())
            known = sorted([*(old for old in kept if old.uid != told.uid), told], key=lambda event: event.order)
            self._records[told.key] = deque(known, maxlen=RECORDS_KEPT)

    def _count(self, kind: str, key: Key, pod: Object) -> None:
        report = Report.from_pod(pod)
        if kind == "DELETED" or report is None:
            self._counters.pop(key, None)
            return
        now = self._seconds()
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


def put(known: dict[Key, Object], plural: str, key: Key, obj: Object) -> None:
    """Takes in an object; of Events only the newest are kept."""
    known[key] = obj
    if plural == EVENTS.plural and len(known) > EVENTS_KEPT:
        del known[next(iter(known))]


def _append(kept: Mapping[Any, deque[float | None]], now: Mapping[Any, float | None]) -> dict[Any, deque[float | None]]:
    """The histories with one more sample; those of what is gone are forgotten."""
    fresh: dict[Any, deque[float | None]] = {}
    for key, value in now.items():
        fresh[key] = kept.get(key) or deque(maxlen=SAMPLES)
        fresh[key].append(value)
    return fresh


def read_event(obj: Mapping[str, Any]) -> Told | None:
    """An Event object in short; None for one that says nothing of a Model, or not when."""
    meta, about = obj.get("metadata") or {}, obj.get("involvedObject") or {}
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


def fill_of(known: Known, key: Key, snapshot: Snapshot) -> float | None:
    """How far a wake or boot is, 0 to 1, from the time its last one took; None when there was none yet."""
    row = snapshot.model(*key)
    if row is None or row.state not in (Shown.WAKING, Shown.CONVERTING) or row.since is None:
        return None
    took = known.expected(key, "wake" if row.state is Shown.WAKING else "boot")
    return min((snapshot.at - row.since).total_seconds() / took, 0.99) if took else None
