"""The GPU object: a device, who is on it, who waits for it, and who is waking on it now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from greenthread.clock import format_time, parse_time
from greenthread.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple

    class _Ref(NamedTuple):
        namespace: str
        name: str
else:  # `typing` takes longer to import than this module
    from collections import namedtuple

    _Ref = namedtuple("_Ref", ["namespace", "name"])


class State(StrEnum):
    """States of an occupant on a GPU. ``converting`` is an engine's boot; a sidecar calls it ``waking``."""

    SLEEPING = "sleeping"
    WAKING = "waking"
    CONVERTING = "converting"
    SERVING = "serving"
    DEACTIVATING = "deactivating"


class PodRef(_Ref):
    """A pod; as text, ``namespace/name``."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> PodRef:
        namespace, _, name = text.partition("/")
        return cls(namespace, name)


@dataclass(frozen=True, slots=True)
class Occupant:
    """A pod bound to this GPU. ``reserved`` is bytes, 0 while sleeping."""

    pod: PodRef
    model: str
    state: State
    reserved: int = 0
    popular: bool = False
    last_accessed: datetime | None = None
    became_serving_at: datetime | None = None
    #: End of its minRuntime. Written by its own sidecar, since a waiter cannot read the other Model.
    protected_until: datetime | None = None
    #: Its sidecar is down, so it cannot give way. Written by the node agent; the sidecar's next write takes it away.
    sidecar_down: bool = False

    @classmethod
    def from_object(cls, item: Mapping[str, Any]) -> Occupant:
        return cls(
            pod=PodRef(item["namespace"], item["podName"]),
            model=item.get("modelName", ""),
            state=State(item["state"]),
            reserved=item.get("reservedMemoryBytes", 0),
            popular=item.get("popular", False),
            last_accessed=_time(item.get("lastAccessed")),
            became_serving_at=_time(item.get("becameServingAt")),
            protected_until=_time(item.get("protectedUntil")),
            sidecar_down=item.get("sidecarDown", False),
        )

    def to_object(self) -> dict[str, Any]:
        item: dict[str, Any] = {
            "namespace": self.pod.namespace,
            "podName": self.pod.name,
            "modelName": self.model,
            "state": str(self.state),
            "reservedMemoryBytes": self.reserved,
            "popular": self.popular,
        }
        for key, moment in (
            ("lastAccessed", self.last_accessed),
            ("becameServingAt", self.became_serving_at),
            ("protectedUntil", self.protected_until),
        ):
            if moment is not None:
                item[key] = format_time(moment)
        if self.sidecar_down:
            item["sidecarDown"] = True
        return item


@dataclass(frozen=True, slots=True)
class Intent:
    """A pod that waits for ``requested`` bytes here. ``boot``: it boots an engine and no client waits for it.

    ``preempts``: false when every request that waits asked never to preempt (``X-GreenThread-Preempt: never``).
    """

    pod: PodRef
    model: str
    requested: int
    since: datetime
    victims: tuple[PodRef, ...] = ()
    boot: bool = False
    preempts: bool = True

    @property
    def age(self) -> tuple[bool, bool, datetime, str, str]:
        """Order of service: requests, boots, requests that may not preempt; of each the oldest, names break a tie."""
        return (not self.preempts, self.boot, self.since, self.pod.name, self.pod.namespace)

    @classmethod
    def from_object(cls, item: Mapping[str, Any]) -> Intent:
        return cls(
            pod=PodRef(item["namespace"], item["podName"]),
            model=item.get("modelName", ""),
            requested=item["requestedMemoryBytes"],
            since=parse_time(item["since"]),
            victims=tuple(PodRef.parse(victim) for victim in item.get("victims") or ()),
            boot=item.get("boot", False),
            preempts=item.get("preempts", True),
        )

    def to_object(self) -> dict[str, Any]:
        return {
            "namespace": self.pod.namespace,
            "podName": self.pod.name,
            "modelName": self.model,
            "requestedMemoryBytes": self.requested,
            "since": format_time(self.since),
            "victims": [str(victim) for victim in self.victims],
            "boot": self.boot,
            "preempts": self.preempts,
        }


@dataclass(frozen=True, slots=True)
class WakeLock:
    """Who is waking on this GPU now."""

    holder: PodRef
    acquired_at: datetime

    @classmethod
    def from_object(cls, item: Mapping[str, Any]) -> WakeLock:
        return cls(PodRef.parse(item["holder"]), parse_time(item["acquiredAt"]))

    def to_object(self) -> dict[str, Any]:
        return {"holder": str(self.holder), "acquiredAt": format_time(self.acquired_at)}


@dataclass(frozen=True, slots=True)
class Stats:
    """What NVML measured; bytes, percent, °C, W."""

    used: int = 0
    free: int = 0
    utilization: int = 0
    temperature: int = 0
    power: int = 0

    @classmethod
    def from_object(cls, item: Mapping[str, Any]) -> Stats:
        return cls(
            used=item.get("usedMemoryBytes", 0),
            free=item.get("freeMemoryBytes", 0),
            utilization=item.get("utilizationPercent", 0),
            temperature=item.get("temperatureCelsius", 0),
            power=item.get("powerWatts", 0),
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as the cluster sees it. Memory in bytes."""

    name: str
    node: str
    index: int
    total: int
    foreign: int = 0
    product: str = ""
    uuid: str = ""
    stats: Stats | None = None
    occupants: tuple[Occupant, ...] = ()
    intents: tuple[Intent, ...] = ()
    wake_lock: WakeLock | None = None
    namespace: str = ""
    resource_version: str = ""

    @classmethod
    def from_object(cls, obj: Mapping[str, Any]) -> Gpu:
        """From the API's object; fields that are missing count as empty. KeyError only for a broken entry."""
        meta, status = obj["metadata"], obj.get("status") or {}
        lock = status.get("wakeLock")
        stats = status.get("stats")
        return cls(
            name=meta["name"],
            namespace=meta.get("namespace", ""),
            resource_version=meta.get("resourceVersion", ""),
            node=status.get("node", ""),
            index=status.get("index", 0),
            uuid=status.get("uuid", ""),
            product=status.get("product", ""),
            total=status.get("totalMemoryBytes", 0),
            foreign=status.get("foreignMemoryBytes", 0),
            stats=Stats.from_object(stats) if stats else None,
            occupants=tuple(Occupant.from_object(item) for item in status.get("occupants") or ()),
            intents=tuple(Intent.from_object(item) for item in status.get("preemptionIntents") or ()),
            wake_lock=WakeLock.from_object(lock) if lock else None,
        )

    @property
    def reserved(self) -> int:
        return sum(occupant.reserved for occupant in self.occupants)

    @property
    def room(self) -> int:
        """Bytes that a claim may still take; negative when other programs grew into reservations."""
        return self.total - self.foreign - self.reserved

    def occupant(self, pod: PodRef) -> Occupant | None:
        return next((occupant for occupant in self.occupants if occupant.pod == pod), None)

    def intent(self, pod: PodRef) -> Intent | None:
        return next((intent for intent in self.intents if intent.pod == pod), None)


def gpu_name(node: str, index: int) -> str:
    """Name of the GPU object of a node's device."""
    return f"{node}-{index}"


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None
