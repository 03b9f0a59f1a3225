"""Memory of every GPU over time, around a moment of a history. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from greenthread.kube.core import Object
from greenthread.kube.resources import GPUS
from tui.history import History, advance
from tui.wakes import Key

BEFORE, AFTER = 80.0, 40.0
"""Seconds in sight before the moment and after it."""
CHANGES = 2048
"""Changes looked at, at most, on either side; where more happens the time in sight is shorter."""


class Held(NamedTuple):
    """What a GPU's memory held from a time on. Bytes."""

    at: float
    total: int
    foreign: int
    models: tuple[tuple[Key, int], ...]


@dataclass(frozen=True)
class Tracks:
    """By name of the GPU; oldest first."""

    since: float
    until: float
    moment: float
    of: Mapping[str, Sequence[Held]] = field(default_factory=dict)

    def at(self, gpu: str, moment: float) -> Held | None:
        """What it held at a time."""
        track = self.of.get(gpu, ())
        number = bisect.bisect_right(track, moment, key=lambda held: held.at) - 1
        return track[number] if number >= 0 else None


def tracks(history: History, moment: float) -> Tracks:
    """What all GPUs held around a moment. NoRecording from a broken recording."""
    since = max(moment - BEFORE, history.back(moment, CHANGES), history.began)
    if not history.is_one(since, moment):
        since = moment
    after = list(islice(history.lines(moment, moment + AFTER), CHANGES))
    until = after[-1]["t"] if len(after) == CHANGES else min(moment + AFTER, history.ended)
    until = max(until, moment)
    if not history.is_one(moment, until):
        until = moment
    state = history.state(since)
    found: dict[str, list[Held]] = {}
    for key, obj in state[GPUS.plural].items():
        found[key[1]] = [held(obj, since)]
    for line in history.lines(since, until):
        if line["k"] == GPUS.plural:
            change = advance(state, line)
            new = held(change.new, change.at) if change.new is not None else Held(change.at, 0, 0, ())
            track = found.setdefault(change.key[1], [])
            if not track or new[1:] != track[-1][1:]:
                track.append(new)
    return Tracks(since, until, moment, found)


def held(gpu: Object, at: float) -> Held:
    """What a GPU object says that its memory holds."""
    status: Mapping[str, Any] = gpu.get("status") or {}
    models = tuple(
        ((str(item.get("namespace", "")), str(item.get("modelName", ""))), int(item["reservedMemoryBytes"]))
        for item in status.get("occupants") or ()
        if item.get("reservedMemoryBytes")
    )
    return Held(at, int(status.get("totalMemoryBytes") or 0), int(status.get("foreignMemoryBytes") or 0), models)
