"""What a GPU's status should say of its memory, and when that is worth a write. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.agent.nvml import Reading
from controller.agent.settings import Settings
from greenthread.gpu import Gpu, PodRef, State

Object = dict[str, Any]

MIB = 2**20


def used_by_pods(reading: Reading, owners: Mapping[int, PodRef]) -> dict[PodRef, int | None]:
    """Bytes that each pod's processes hold on the device; None when the driver does not tell how many."""
    used: dict[PodRef, int | None] = {}
    for process in reading.processes:
        owner = owners.get(process.pid)
        if owner is not None:
            so_far = used.get(owner, 0)
            used[owner] = None if so_far is None or process.used is None else so_far + process.used
    return used


def foreign_memory(gpu: Gpu, reading: Reading, used: Mapping[PodRef, int | None]) -> int:
    """Bytes in use that are no awake occupant's own: other programs', and what sleeping engines leave.

    An awake occupant whose processes the driver does not show (they are hidden, or have not taken any memory yet) uses
    something between nothing and its reservation. Then the last known value stays, as far as what is measured allows
    it: so an engine's own memory never counts as foreign, and another program's does not vanish while an engine wakes.
    """
    attributed = hidden = 0
    for occupant in gpu.occupants:
        if occupant.state == State.SLEEPING:
            continue
        own = used.get(occupant.pod)
        if own is None:
            hidden += occupant.reserved
        else:
            attributed += own
    most = max(reading.used - attributed, 0)
    least = max(most - hidden, 0)
    return min(max(gpu.foreign, least), most)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The agent's own fields of a GPU's status."""

    fields: Mapping[str, Any]
    foreign: int
    available: int


def wanted_status(node: str, gpu: Gpu, reading: Reading, used: Mapping[PodRef, int | None]) -> Wanted:
    """What the agent's fields should be now."""
    foreign = foreign_memory(gpu, reading, used)
    available = max(reading.total - foreign - gpu.reserved, 0)
    stats: Object = {"usedMemoryBytes": reading.used, "freeMemoryBytes": max(reading.total - reading.used, 0)}
    for key, value in (
        ("utilizationPercent", reading.utilization),
        ("temperatureCelsius", reading.temperature),
        ("powerWatts", reading.power),
    ):
        if value is not None:
            stats[key] = value
    fields = {
        "node": node,
        "index": reading.index,
        "uuid": reading.uuid,
        "product": reading.product,
        "totalMemoryBytes": reading.total,
        "foreignMemoryBytes": foreign,
        "availableMemoryBytes": available,
        "stats": stats,
    }
    return Wanted(fields, foreign, available)


#: A device at rest never shows the same numbers twice; less than this is no change.
_NOISE = {"utilizationPercent": 3, "temperatureCelsius": 2, "powerWatts": 10}


def pause_before_write(status: Mapping[str, Any], wanted: Wanted, settings: Settings) -> float | None:
    """Seconds that must lie between the last write and one of `wanted`; None when nothing really changed."""
    fields = wanted.fields
    if any(status.get(key) != fields[key] for key in ("node", "index", "uuid", "product", "totalMemoryBytes")):
        return settings.write_gap
    old, new = status.get("stats") or {}, fields["stats"]
    moved = max(
        abs(status.get("foreignMemoryBytes", 0) - wanted.foreign),
        abs(status.get("availableMemoryBytes", -1) - wanted.available),
        abs(old.get("usedMemoryBytes", -1) - new["usedMemoryBytes"]),
    )
    if moved > settings.memory_change * fields["totalMemoryBytes"]:
        return settings.write_gap
    if old.keys() != new.keys() or moved >= MIB:
        return settings.write_every
    measured = [(abs(old[key] - new[key]), least) for key, least in _NOISE.items() if key in new]
    return settings.write_every if any(change >= least for change, least in measured) else None


def patch_of(status: Mapping[str, Any], resource_version: str, wanted: Wanted) -> list[Object]:
    """The JSON patch for the agent's fields that differ, on the condition that nobody wrote since they were read."""
    changes = [
        {"op": "add", "path": f"/status/{key}", "value": value}
        for key, value in wanted.fields.items()
        if status.get(key) != value
    ]
    return [unchanged_since(resource_version), *changes]


def unchanged_since(resource_version: str) -> Object:
    """The condition of a JSON patch that the object is still the one that was read."""
    return {"op": "test", "path": "/metadata/resourceVersion", "value": resource_version}
