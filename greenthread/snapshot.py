"""The cluster at one moment, joined for people: who is on the GPUs, who waits, and why.

The plugin, the dashboard and ``explain`` read this; none of them joins objects by itself. Pure: objects in, rows out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum

from greenthread import fairness
from greenthread.clock import parse_time
from greenthread.fairness import CannotFit, Decision, Preempt, Wait, Want
from greenthread.gpu import Gpu, Intent, Occupant, PodRef, State
from greenthread.model import Model
from greenthread.names import ANNOTATION_GPUS, ANNOTATION_REPORT, LABEL_MODEL
from greenthread.values import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, TypeVar

    _T = TypeVar("_T")
else:  # `typing` takes longer to import than this module

    class Generic:
        def __class_getitem__(cls, _item):
            return cls

    _T = None


class Shown(StrEnum):
    """States as people see them; each has a glyph and a colour of its own."""

    SERVING = "serving"
    WAKING = "waking"
    DEACTIVATING = "deactivating"
    PENDING = "pending"
    CANNOT_FIT = "cannot fit"
    CONVERTING = "converting"
    STAGING = "staging"
    SLEEPING = "sleeping"
    FAILED = "failed"


#: What a sidecar calls a state in its report, where that differs. A report may be older than the GPU objects.
_REPORTED_AS = {Shown.CANNOT_FIT: "pending", Shown.CONVERTING: "waking"}
#: What a Model with several replicas is called: the first of these that one of them is in.
_RANK = {state: rank for rank, state in enumerate(Shown)}
_WAITS = (Shown.PENDING, Shown.CANNOT_FIT)


@dataclass(frozen=True, slots=True)
class Report:
    """What a sidecar tells about itself now and then; see ``ANNOTATION_REPORT``."""

    state: str = ""
    since: datetime | None = None
    boot_ready: bool = False
    in_flight: int = 0
    queued: int = 0
    #: Requests since the sidecar began.
    requests: int = 0
    #: Seconds.
    last_wake: float | None = None
    error: str = ""

    @classmethod
    def from_pod(cls, pod: Mapping[str, Any]) -> Report | None:
        """None when the pod carries none that can be read."""
        try:
            item = json.loads((pod["metadata"].get("annotations") or {})[ANNOTATION_REPORT])
            return cls(
                state=str(item.get("state", "")),
                since=parse_time(item["since"]) if item.get("since") else None,
                boot_ready=bool(item.get("bootReady")),
                in_flight=int(item.get("inFlight") or 0),
                queued=int(item.get("queued") or 0),
                requests=int(item.get("requests") or 0),
                last_wake=None if item.get("lastWakeSeconds") is None else float(item["lastWakeSeconds"]),
                error=str(item.get("error") or ""),
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class Replica:
    """One pod of a Model."""

    pod: PodRef
    state: Shown
    since: datetime | None
    node: str
    gpus: tuple[int, ...]
    #: Bytes it holds on each GPU.
    vram: int
    report: Report | None
    intent: Intent | None = None
    #: What it wants, and what is decided of that now; None when it wants nothing.
    want: Want | None = None
    decision: Decision | None = None

    @property
    def in_flight(self) -> int | None:
        """Only an engine that is awake answers."""
        if self.report is None:
            return None
        awake = (Shown.SERVING, Shown.DEACTIVATING)
        if self.state not in awake:
            return 0
        return self.report.in_flight if self.report.state in awake else None

    @property
    def queued(self) -> int | None:
        """Only an engine that does not serve lets requests wait."""
        if self.report is None:
            return None
        return 0 if self.state is Shown.SERVING else self.report.queued


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One Model and its replicas; numbers are None when nobody reported them."""

    model: Model
    state: Shown
    since: datetime | None
    replicas: tuple[Replica, ...]
    #: ``node/index`` or ``node/first-last`` of each replica.
    places: tuple[str, ...] = ()

    @property
    def namespace(self) -> str:
        return self.model.namespace

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def pinned(self) -> bool:
        return self.model.spec.fairness.popular

    @property
    def vram(self) -> int:
        """Bytes held on one GPU, the most of any replica."""
        return max((replica.vram for replica in self.replicas), default=0)

    @property
    def in_flight(self) -> int | None:
        """None too while a report is older than the state: what was queued is in flight then, or done."""
        return _sum(replica.in_flight for replica in self.replicas)

    @property
    def queued(self) -> int | None:
        return _sum(replica.queued for replica in self.replicas)

    @property
    def requests(self) -> int | None:
        """Requests since its sidecars began."""
        return _sum(replica.report.requests if replica.report else None for replica in self.replicas)

    @property
    def last_wake(self) -> float | None:
        """Seconds."""
        reports = [r.report.last_wake for r in self.replicas if r.report and r.report.last_wake is not None]
        return reports[-1] if reports else None

    @property
    def error(self) -> str:
        return next((r.report.error for r in self.replicas if r.report and r.report.error), "")


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU and who waits for it, oldest first."""

    gpu: Gpu
    waiting: tuple[Intent, ...]

    @property
    def free(self) -> int:
        return max(self.gpu.room, 0)

    @property
    def short(self) -> int:
        """Bytes the first waiter lacks."""
        return max(self.waiting[0].requested - self.free, 0) if self.waiting else 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    at: datetime
    models: tuple[ModelRow, ...]
    gpus: tuple[GpuRow, ...]
    _by_name: Mapping[tuple[str, str], ModelRow] = field(default_factory=dict, repr=False)
    _by_place: Mapping[_Place, GpuRow] = field(default_factory=dict, repr=False)

    def model(self, namespace: str, name: str) -> ModelRow | None:
        return self._by_name.get((namespace, name))

    def on(self, replica: Replica) -> list[GpuRow]:
        """The GPUs of a replica, as far as they are there."""
        found = (self._by_place.get((replica.node, index)) for index in replica.gpus)
        return [row for row in found if row is not None]

    @property
    def waiting(self) -> int:
        """Models that wait for memory."""
        return sum(row.state in _WAITS for row in self.models)


def build(
    models: Iterable[Mapping[str, Any]],
    gpus: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    now: datetime,
) -> Snapshot:
    """Joins the API's objects. An object that cannot be read is left out rather than hiding all others."""
    return Builder().build(models, gpus, pods, now)


class Builder:
    """Builds one snapshot after the other, and reads and joins anew only what changed since the last one.

    An object that changed is another object: they are known by identity and must not be altered in place.
    """

    def __init__(self) -> None:
        self._seen_models: _Seen[Model] = _Seen(Model.from_object)
        self._seen_gpus: _Seen[Gpu] = _Seen(Gpu.from_object)
        self._seen_pods: _Seen[_Pod] = _Seen(_Pod.from_object)
        self._models: dict[_Name, Model] = {}
        self._pods: dict[PodRef, _Pod] = {}
        self._pods_of: dict[_Name, dict[PodRef, _Pod]] = {}
        #: Each GPU's row, and each pod's entries on GPUs.
        self._gpus: dict[_Name, GpuRow] = {}
        self._on: dict[PodRef, dict[_Name, tuple[Gpu, Occupant]]] = {}
        self._places: dict[_Place, GpuRow] = {}
        self._rows: dict[_Name, ModelRow] = {}
        self._order: list[_Name] = []
        #: Models for which something is decided, or would be if their GPUs were other; and when that was looked at.
        self._deciding: set[_Name] = set()
        self._at: datetime | None = None
        self._in_order: tuple[ModelRow, ...] = ()
        self._devices: tuple[GpuRow, ...] = ()

    def build(
        self,
        models: Iterable[Mapping[str, Any]],
        gpus: Iterable[Mapping[str, Any]],
        pods: Iterable[Mapping[str, Any]],
        now: datetime,
    ) -> Snapshot:
        """As the function of this name."""
        touched = self._take_models(models) | self._take_pods(pods)
        pods_concerned, changed = self._take_gpus(gpus)
        touched |= {self._pods[ref].model for ref in pods_concerned if ref in self._pods}
        back = self._at is not None and now < self._at
        touched |= {key for key in self._deciding if back or _may_be_another(self._rows[key], changed, now)}
        self._at = now
        for key in touched:
            model = self._models.get(key)
            self._deciding.discard(key)
            if model is None:
                self._rows.pop(key, None)
            else:
                own = sorted(self._pods_of.get(key, {}).items())
                replicas = tuple(_replica(model, pod, self._entries(ref), self._places, now) for ref, pod in own)
                self._rows[key] = _row(model, replicas)
                if any(map(_decides, replicas)):
                    self._deciding.add(key)
        if len(self._order) != len(self._rows) or not touched <= self._rows.keys():
            self._order = sorted(self._rows)
        if touched:
            self._in_order = tuple([self._rows[key] for key in self._order])
        return Snapshot(now, self._in_order, self._devices, self._rows.copy(), self._places)

    def _take_models(self, models: Iterable[Mapping[str, Any]]) -> set[_Name]:
        gone, come = self._seen_models.take(models)
        for model in gone:
            self._models.pop((model.namespace, model.name), None)
        for model in come:
            self._models[model.namespace, model.name] = model
        return {(model.namespace, model.name) for model in (*gone, *come)}

    def _take_pods(self, pods: Iterable[Mapping[str, Any]]) -> set[_Name]:
        gone, come = self._seen_pods.take(pods)
        for pod in gone:
            self._pods.pop(pod.ref, None)
            self._pods_of.get(pod.model, {}).pop(pod.ref, None)
        for pod in come:
            self._pods[pod.ref] = pod
            self._pods_of.setdefault(pod.model, {})[pod.ref] = pod
        return {pod.model for pod in (*gone, *come)}

    def _take_gpus(self, gpus: Iterable[Mapping[str, Any]]) -> tuple[set[PodRef], set[_Place]]:
        """The pods whose standing on a GPU changed, and all GPUs that are other than they were."""
        gone, come = self._seen_gpus.take(gpus)
        if not gone and not come:
            return set(), set()
        before, after = ({(gpu.namespace, gpu.name): gpu for gpu in gpus} for gpus in (gone, come))
        refs: set[PodRef] = set()
        for key, gpu in before.items():
            for occupant in gpu.occupants:
                self._on.get(occupant.pod, {}).pop(key, None)
            if key not in after:
                del self._gpus[key]
        for key, gpu in after.items():
            for occupant in gpu.occupants:
                self._on.setdefault(occupant.pod, {})[key] = (gpu, occupant)
            self._gpus[key] = GpuRow(gpu, tuple(sorted(gpu.intents, key=lambda intent: intent.age)))
            old = before.get(key)
            if old is not None and (old.node, old.index) == (gpu.node, gpu.index):
                refs |= _concerned(old, gpu) | _concerned(gpu, old)
            else:
                refs.update(self._pods)
        if before.keys() - after.keys():
            refs.update(self._pods)
        self._on = {ref: entries for ref, entries in self._on.items() if entries}
        self._devices = tuple(
            row
            for _, row in sorted(self._gpus.items(), key=lambda item: (item[1].gpu.node, item[1].gpu.index, item[0]))
        )
        self._places = {(row.gpu.node, row.gpu.index): row for row in self._devices}
        return refs, {(gpu.node, gpu.index) for gpu in (*gone, *come)}

    def _entries(self, pod: PodRef) -> list[tuple[Gpu, Occupant]]:
        """Its entries on GPUs, by place."""
        return sorted(self._on.get(pod, {}).values(), key=lambda entry: (entry[0].node, entry[0].index, entry[0].name))


def place(node: str, gpus: Sequence[int]) -> str:
    """``node-a/0`` or ``node-a/0-1``."""
    return f"{node}/{gpus[0]}-{gpus[-1]}" if len(gpus) > 1 else f"{node}/{gpus[0]}" if gpus else node


_Name = tuple[str, str]
"""Namespace and name."""
_Place = tuple[str, int]
"""Node and index of a GPU."""


class _Seen(Generic[_T]):
    """Objects that were read, each with what was read from it."""

    def __init__(self, read: Callable[[Mapping[str, Any]], _T]) -> None:
        self._read = read
        self._known: dict[int, tuple[Mapping[str, Any], _T | None]] = {}

    def take(self, objects: Iterable[Mapping[str, Any]]) -> tuple[list[_T], list[_T]]:
        """What is gone and what has come since the last call; what changed is in both."""
        before, now = self._known, {}
        come: list[_T] = []
        for obj in objects:
            entry = before.pop(id(obj), None)
            if entry is None:
                entry = (obj, _read(self._read, obj))
                if entry[1] is not None:
                    come.append(entry[1])
            now[id(obj)] = entry
        self._known = now
        return [read for _, read in before.values() if read is not None], come


@dataclass(frozen=True, slots=True)
class _Pod:
    """What a Model's pod tells."""

    ref: PodRef
    model: _Name
    node: str
    gpus: tuple[int, ...]
    report: Report | None
    failed: bool

    @classmethod
    def from_object(cls, obj: Mapping[str, Any]) -> _Pod:
        """KeyError for a pod of no Model."""
        meta, spec = obj["metadata"], obj.get("spec") or {}
        namespace = meta.get("namespace") or ""
        annotated = (meta.get("annotations") or {}).get(ANNOTATION_GPUS) or ""
        return cls(
            ref=PodRef(namespace, meta["name"]),
            model=(namespace, (meta.get("labels") or {})[LABEL_MODEL]),
            node=str(spec.get("nodeName") or (spec.get("nodeSelector") or {}).get("kubernetes.io/hostname") or ""),
            gpus=tuple(int(index) for index in annotated.split(",") if index.strip().isdigit()),
            report=Report.from_pod(obj),
            failed=(obj.get("status") or {}).get("phase") == "Failed",
        )


def _decides(replica: Replica) -> bool:
    """Whether its state hangs on what others do on its GPUs."""
    return replica.decision is not None or (replica.report is not None and replica.report.state == "pending")


def _may_be_another(row: ModelRow, changed: Container[_Place], now: datetime) -> bool:
    """Whether what was decided for it may be decided otherwise: one of its GPUs changed, or time alone may do it."""
    return any(
        any((replica.node, index) in changed for index in replica.gpus) or _hangs_on_time(replica, now)
        for replica in row.replicas
        if _decides(replica)
    )


def _hangs_on_time(replica: Replica, now: datetime) -> bool:
    if isinstance(replica.decision, Wait | Preempt) and replica.decision.until is not None:
        return replica.decision.until <= now
    # who does not say since when it wants memory wants it from now on
    return replica.intent is None and (replica.report is None or replica.report.since is None)


def _concerned(gpu: Gpu, other: Gpu) -> set[PodRef]:
    """The pods of entries of the one that are not in the other."""
    refs = {item.pod for item in gpu.occupants if item not in other.occupants}
    refs |= {item.pod for item in gpu.intents if item not in other.intents}
    if gpu.wake_lock is not None and gpu.wake_lock != other.wake_lock:
        refs.add(gpu.wake_lock.holder)
    return refs


def _replica(
    model: Model,
    pod: _Pod,
    entries: Sequence[tuple[Gpu, Occupant]],
    places: Mapping[tuple[str, int], GpuRow],
    now: datetime,
) -> Replica:
    ref, report, gpus = pod.ref, pod.report, pod.gpus
    node = entries[0][0].node if entries else pod.node
    devices = [places[(node, index)].gpu for index in gpus if (node, index) in places]
    occupant = entries[0][1] if entries else None
    intent = next((found for gpu in devices if (found := gpu.intent(ref)) is not None), None)
    vram = max((entry.reserved for _gpu, entry in entries), default=0)
    want: Want | None = None
    decision: Decision | None = None
    if pod.failed:
        state = Shown.FAILED
    elif occupant is None:
        state = Shown.STAGING
    elif occupant.state is not State.SLEEPING:
        state = Shown(str(occupant.state))
    elif intent is not None:
        state = Shown.PENDING
    elif report is not None and report.state == "pending":
        state = Shown.CANNOT_FIT
    else:
        state = Shown.SLEEPING
    if state in (Shown.PENDING, Shown.CANNOT_FIT) and devices:
        need = intent.requested if intent else (model.status.serving_memory_per_gpu or 0)
        since = intent.since if intent else (report.since if report and report.since else now)
        boot = bool(intent and intent.boot)
        max_wait, preempts = model.spec.fairness.max_wait_time, intent is None or intent.preempts
        want = Want(ref, model.name, need, since, max_wait, boot=boot, lock=not boot, preempts=preempts)
        decision = fairness.decide(want, devices, now)
        if intent is None and not isinstance(decision, CannotFit):
            state, want, decision = Shown.SLEEPING, None, None  # the report is older than the GPU objects
    since_shown = None
    if state is Shown.SERVING and occupant is not None:
        since_shown = occupant.became_serving_at
    elif intent is not None:
        since_shown = intent.since
    elif report is not None and report.state == _REPORTED_AS.get(state, str(state)):
        since_shown = report.since
    elif state is Shown.WAKING:
        locks = (gpu.wake_lock for gpu in devices if gpu.wake_lock is not None)
        since_shown = next((lock.acquired_at for lock in locks if lock.holder == ref), None)
    return Replica(ref, state, since_shown, node, gpus, vram, report, intent, want, decision)


def _row(model: Model, replicas: tuple[Replica, ...]) -> ModelRow:
    if not replicas:
        state = Shown.FAILED if model.status.phase == "Failed" else Shown.STAGING
        if model.spec.replicas == 0:
            state = Shown.SLEEPING
        return ModelRow(model, state, model.status.last_transition, replicas)
    first = min(replicas, key=lambda replica: _RANK[replica.state])
    since = first.since
    if since is None and first.state in (Shown.STAGING, Shown.FAILED):
        since = model.status.last_transition
    places = tuple(place(replica.node, replica.gpus) for replica in replicas if replica.gpus)
    return ModelRow(model, first.state, since, replicas, places)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """The sum of those that are known; None when none is."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _read(read: Callable[[Mapping[str, Any]], _T], obj: Mapping[str, Any]) -> _T | None:
    try:
        return read(obj)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
