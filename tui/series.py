"""What was measured of the whole cluster, for charts: a day at most, in a few megabytes."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from greenthread.snapshot import Snapshot

MEASURES = ("requests", "in_flight", "queued", "waiting", "awake", "use", "use_most", "memory", "foreign")
"""Requests per second; requests in flight and in queues; models that wait and that hold memory; utilization in percent,
mean and most of all GPUs; memory held by models and by other programs in percent of all."""
Point = tuple[float, float]
"""Seconds since 1970, and a value."""
SAMPLES_KEPT = 17_280
"""A day of one every 5 s."""
WAKES_KEPT = 50_000
"""Wakes, and preemptions, at most."""
RECENT = 1000
"""Events that are known again."""


class Seen:
    """Samples and the wakes and preemptions that were told, each with its time in seconds since 1970."""

    def __init__(self) -> None:
        self._times = array("d")
        self._values = {measure: array("f") for measure in MEASURES}
        self._wakes: tuple[array[float], array[float]] = (array("d"), array("f"))
        self._preemptions = array("d")
        self._recent: dict[str, None] = {}

    def add(self, snapshot: Snapshot, requests: float) -> None:
        """A sample; `requests`: per second, of all models."""
        devices = [row.gpu for row in snapshot.gpus]
        use = [gpu.stats.utilization for gpu in devices if gpu.stats is not None]
        total = sum(gpu.total for gpu in devices) or 1
        now = {
            "requests": requests,
            "in_flight": sum(row.in_flight or 0 for row in snapshot.models),
            "queued": sum(row.queued or 0 for row in snapshot.models),
            "waiting": snapshot.waiting,
            "awake": sum(row.vram > 0 for row in snapshot.models),
            "use": sum(use) / len(use) if use else 0.0,
            "use_most": max(use, default=0),
            "memory": 100 * sum(gpu.reserved for gpu in devices) / total,
            "foreign": 100 * sum(gpu.foreign for gpu in devices) / total,
        }
        self._times.append(snapshot.at.timestamp())
        for measure, values in self._values.items():
            values.append(now[measure])
        if len(self._times) > SAMPLES_KEPT + 720:  # an hour at a time: cutting the front is slow
            del self._times[:720]
            for values in self._values.values():
                del values[:720]

    def tell(self, uid: str, at: datetime, reason: str, record: Mapping[str, Any] | None) -> None:
        """An Event on a Model: what is a wake or a preemption is kept."""
        if uid in self._recent:
            return  # a list tells again what a watch told
        self._recent[uid] = None
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        total = (record or {}).get("total")
        if reason == "Preempted":
            self._preemptions.append(at.timestamp())
        elif (
            (record or {}).get("kind") == "wake" and not (record or {}).get("error") and isinstance(total, int | float)
        ):
            self._wakes[0].append(at.timestamp())
            self._wakes[1].append(float(total))
        for kept in (*self._wakes, self._preemptions):
            if len(kept) > WAKES_KEPT + 1000:
                del kept[:1000]

    def samples(self, measure: str, since: float, until: float) -> list[Point]:
        """Of one of `MEASURES`, oldest first."""
        first, last = bisect.bisect_left(self._times, since), bisect.bisect_right(self._times, until)
        return list(zip(self._times[first:last], self._values[measure][first:last], strict=True))

    def wakes(self, since: float, until: float) -> list[Point]:
        """Each with the seconds that it took, oldest first."""
        return sorted((at, took) for at, took in zip(*self._wakes, strict=True) if since <= at <= until)

    def preemptions(self, since: float, until: float) -> list[float]:
        """Their times, oldest first."""
        return sorted(at for at in self._preemptions if since <= at <= until)

    def follow(self, before: Seen) -> None:
        """Takes in what was seen before; what both were told of counts once."""
        count = bisect.bisect_left(before._times, self._times[0]) if self._times else len(before._times)
        self._times = before._times[:count] + self._times
        self._values = {name: before._values[name][:count] + values for name, values in self._values.items()}
        wakes = sorted({*zip(*before._wakes, strict=True), *zip(*self._wakes, strict=True)})
        self._wakes = (array("d", (at for at, _ in wakes)), array("f", (took for _, took in wakes)))
        self._preemptions = array("d", sorted({*before._preemptions, *self._preemptions}))

    @property
    def latest(self) -> float | None:
        """Time of the last sample."""
        return self._times[-1] if self._times else None

    @property
    def began(self) -> float | None:
        """Time of the first sample."""
        return self._times[0] if self._times else None
