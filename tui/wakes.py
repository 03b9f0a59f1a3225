"""Wakes as they happen: which step a model is at, and how long the steps before it took. Pure: snapshots in.

A sidecar tells of its steps when they are over; until then they follow from how the GPU objects change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from greenthread.clock import parse_time
from greenthread.gpu import State
from greenthread.snapshot import ModelRow, Shown, Snapshot

Key = tuple[str, str]
_BEFORE = (Shown.PENDING, Shown.WAKING, Shown.CONVERTING)
"""States on the way to serving."""
_LINGER = timedelta(seconds=2)
"""For which a finished wake is still shown."""
_NOTHING = timedelta(milliseconds=1)
"""A step that took less is not told."""


@dataclass
class Step:
    """`name`: queue, `<model> drains`, `<model> sleeps`, `<model> makes room` (one of the two), copy or boot.

    `ended` is None while it goes on.
    """

    name: str
    began: datetime
    ended: datetime | None = None
    #: The model that makes room.
    victim: Key | None = None

    def seconds(self, now: datetime) -> float:
        return max(((self.ended or now) - self.began).total_seconds(), 0.0)


@dataclass
class Wake:
    """One model's way from wanting memory to serving."""

    key: Key
    steps: list[Step] = field(default_factory=list)
    done: datetime | None = None

    def step(self, name: str, began: datetime, victim: Key | None = None) -> Step:
        found = next((step for step in self.steps if step.name == name and step.ended is None), None)
        if found is None:
            found = Step(name, began, victim=victim)
            self.steps.append(found)
        return found

    def close(self, moment: datetime, keep: Sequence[str] = ()) -> None:
        for step in self.steps:
            if step.ended is None and step.name not in keep:
                step.ended = max(moment, step.began)


class Wakes:
    """Follows the wakes of every model from one snapshot to the next."""

    def __init__(self) -> None:
        self._wakes: dict[Key, Wake] = {}

    def observe(self, snapshot: Snapshot) -> None:
        """Takes in what is seen now."""
        now = snapshot.at
        seen = set()
        rows = [row for row in snapshot.models if row.state in _BEFORE]
        followed = (snapshot.model(*key) for key in self._wakes)
        rows += [row for row in followed if row is not None and row.state not in _BEFORE]
        for row in rows:
            key = (row.namespace, row.name)
            wake = self._wakes.get(key)
            if wake is not None and wake.done is not None:
                if row.state in _BEFORE or now > wake.done + _LINGER:
                    del self._wakes[key]
                    wake = None
                else:
                    seen.add(key)
                    continue
            if row.state in _BEFORE:
                seen.add(key)
                wake = self._wakes.setdefault(key, Wake(key))
                if row.state is Shown.PENDING:
                    self._pending(wake, row, snapshot)
                else:
                    since = row.since or now
                    wake.close(since, keep=("copy", "boot"))
                    wake.step("copy" if row.state is Shown.WAKING else "boot", since)
            elif row.state is Shown.SERVING and wake is not None:
                seen.add(key)
                wake.done = row.since or now
                wake.close(wake.done)
        for key in self._wakes.keys() - seen:
            del self._wakes[key]

    def _pending(self, wake: Wake, row: ModelRow, snapshot: Snapshot) -> None:
        now = snapshot.at
        wake.step("queue", row.since or now)
        leaving: dict[str, Key] = {}
        for device in (device for replica in row.replicas for device in snapshot.on(replica)):
            for occupant in device.gpu.occupants:
                if occupant.state is State.DEACTIVATING:
                    victim = snapshot.model(occupant.pod.namespace, occupant.model)
                    flying = victim.in_flight if victim is not None else None
                    does = "makes room" if flying is None else "drains" if flying else "sleeps"
                    leaving[f"{occupant.model} {does}"] = (occupant.pod.namespace, occupant.model)
        wake.close(now, keep=("queue", *leaving))
        for name in sorted(leaving):
            wake.step(name, now, leaving[name])

    def tell(self, key: Key, record: Mapping[str, Any]) -> None:
        """A record of `key`: a sleep for a wake that goes on gives the times of its victim's steps."""
        if record.get("kind") != "sleep" or not record.get("forModel"):
            return
        wake = self._wakes.get((key[0], str(record["forModel"]))) or next(
            (wake for wake in self._wakes.values() if wake.key[1] == record["forModel"]), None
        )
        try:
            began = parse_time(str(record["at"]))
            drain, sleep = (timedelta(seconds=float(record["steps"][name])) for name in ("drain", "engine"))
        except (KeyError, TypeError, ValueError):
            return
        if wake is None or not wake.steps or began + drain + sleep < wake.steps[0].began:
            return
        exact = [Step(f"{key[1]} drains", began, began + drain, key)] if drain >= _NOTHING else []
        exact.append(Step(f"{key[1]} sleeps", began + drain, began + drain + sleep, key))
        kept = [step for step in wake.steps if step.victim != key]
        at = next((n for n, step in enumerate(kept) if n and step.began > began), len(kept))
        wake.steps = [*kept[:at], *exact, *kept[at:]]

    def current(self, snapshot: Snapshot) -> list[Wake]:
        """Those that go on or just ended: what copies, boots or gets room first, what only waits last; then by age."""

        def order(wake: Wake) -> tuple[int, float]:
            steps = [step.name for step in wake.steps if step.ended is None]
            rank = 0 if "copy" in steps else 1 if "boot" in steps else 2 if len(steps) > 1 else 3 if wake.done else 4
            return (rank, wake.steps[0].began.timestamp() if wake.steps else 0.0)

        return sorted(self._wakes.values(), key=order)
