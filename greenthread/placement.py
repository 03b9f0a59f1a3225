"""Where a replica lives: one node and neighbouring GPUs of it, as a pure function with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from greenthread.units import GIB, human_bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """One GPU as placement sees it.

    ``load``: bytes that others are expected to use when awake (pods that live here, foreign memory). ``replicas``: pods
    of the same model that live here. ``fault``: why it cannot be used now, or "".
    """

    node: str
    index: int
    total: int
    load: int = 0
    replicas: int = 0
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """``indices`` are neighbours, in ascending order."""

    node: str
    indices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.node}/{','.join(map(str, self.indices))}"


@dataclass(frozen=True, slots=True)
class Impossible:
    """Nowhere, and why: one clause for people."""

    reason: str


def place(
    slots: Iterable[Slot], size: int, need: int | None = None, excluded: Mapping[str, str] | None = None
) -> Placement | Impossible:
    """The best ``size`` neighbouring GPUs of one node.

    ``need``: bytes on each GPU if they are known; ``excluded``: nodes that may not be used, with the reason ("is
    cordoned"). Models share GPUs in turns, so memory that others use is a preference and never a bar. In this order:
    GPUs without a replica of the same model, the least loaded (to the GiB), a block aligned to its size (so that blocks
    of GPUs stay whole for big models), then node and index.
    """
    excluded = excluded or {}
    every = sorted(slots, key=lambda slot: (slot.node, slot.index))
    if not every:
        return Impossible("there are no GPU objects: is the node agent running on the GPU nodes?")
    allowed = [slot for slot in every if slot.node not in excluded]
    if not allowed:
        nodes = sorted({slot.node for slot in every})
        return Impossible("no node can be used: " + _listed(f"{node} {excluded[node]}" for node in nodes))
    healthy = [slot for slot in allowed if not slot.fault]
    fitting = [slot for slot in healthy if need is None or need <= slot.total]
    windows = list(_windows(fitting, size))
    if not windows:
        return Impossible(_why(allowed, healthy, fitting, size, need, excluded))
    best = min(windows, key=lambda window: _cost(window, size))
    return Placement(best[0].node, tuple(slot.index for slot in best))


def _windows(slots: list[Slot], size: int) -> Iterable[list[Slot]]:
    """Every run of ``size`` neighbours; ``slots`` are ordered by node and index."""
    for start in range(len(slots) - size + 1):
        window = slots[start : start + size]
        if window[-1].node == window[0].node and window[-1].index - window[0].index == size - 1:
            yield window


def _cost(window: list[Slot], size: int) -> tuple[int, int, int, bool, str, int]:
    loads = [round(slot.load / GIB) for slot in window]
    first = window[0]
    replicas = max(slot.replicas for slot in window)
    return (replicas, max(loads), sum(loads), first.index % size != 0, first.node, first.index)


def _why(
    allowed: list[Slot],
    healthy: list[Slot],
    fitting: list[Slot],
    size: int,
    need: int | None,
    excluded: Mapping[str, str],
) -> str:
    if healthy and not fitting and need is not None:
        largest = max(slot.total for slot in healthy)
        text = f"needs {human_bytes(need)} on each GPU, and the largest has {human_bytes(largest)}"
    else:
        runs: dict[str, int] = {}
        for length in range(1, size):
            for window in _windows(fitting, length):
                runs[window[0].node] = length
        best = _listed(f"{node} has {runs[node]}" for node in sorted(runs, key=lambda node: (-runs[node], node)))
        what = "a working GPU" if size == 1 else f"{size} neighbouring GPUs on one node"
        text = f"needs {what}; " + (best or "none works")
    faults = _listed(f"{slot.node}/{slot.index}: {slot.fault}" for slot in allowed if slot.fault)
    if faults:
        text += f" (not usable: {faults})"
    if excluded:
        text += "; not considered: " + _listed(f"{node} {excluded[node]}" for node in sorted(excluded))
    return text


def _listed(parts: Iterable[str], most: int = 5) -> str:
    every = list(parts)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
