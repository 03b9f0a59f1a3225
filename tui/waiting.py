"""Who waits for GPU memory, in the order of service, and what stands between each and its memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from greenthread import fairness
from greenthread.fairness import CannotFit, Decision, Obstacle, Preempt, Wait
from greenthread.gpu import Gpu, Intent, Occupant, PodRef, State
from greenthread.snapshot import ModelRow, Replica, Shown, Snapshot
from tui.wakes import Key


@dataclass(frozen=True)
class Waiter:
    """A pod that waits. Bytes on each of its GPUs; `max_wait` in seconds, None when its Model cannot be read.

    `row` and `decision` are None for one whose Model this user may not see.
    """

    pod: PodRef
    model: str
    need: int
    since: datetime | None
    places: tuple[Gpu, ...]
    boot: bool = False
    victims: tuple[PodRef, ...] = ()
    row: ModelRow | None = None
    decision: Decision | None = None

    @property
    def key(self) -> Key:
        return (self.pod.namespace, self.model)

    @property
    def fits_never(self) -> bool:
        """It has written no intent: it must not hold up the younger."""
        return isinstance(self.decision, CannotFit)

    @property
    def max_wait(self) -> float | None:
        return self.row.model.spec.fairness.max_wait_time if self.row is not None else None

    @property
    def obstacle(self) -> Obstacle | None:
        """What stands in the way on the GPU that lacks most."""
        found = self.decision.obstacles if isinstance(self.decision, Wait | Preempt | CannotFit) else ()
        return max(found, key=lambda obstacle: obstacle.short, default=None)

    @property
    def room(self) -> int:
        """Bytes for it on that GPU: what is free; behind others, what they leave of that and of what is coming."""
        obstacle = self.obstacle
        if obstacle is None:
            return 0
        if not obstacle.older:
            return max(obstacle.free, 0)
        return max(obstacle.free + fairness.coming(obstacle.gpu, waiter=self.pod) - obstacle.older, 0)

    @property
    def short(self) -> int:
        """Bytes that it lacks on that GPU."""
        if self.obstacle is not None:
            return max(self.need - self.room, 0) if self.obstacle.short else 0
        return max((self.need - max(gpu.room, 0) for gpu in self.places), default=0) if self.decision is None else 0

    def named(self) -> list[Occupant]:
        """The occupants that it asked to make room."""
        found = {pod: occupant for gpu in self.places for pod in self.victims if (occupant := gpu.occupant(pod))}
        return list(found.values())


def queue(snapshot: Snapshot) -> list[Waiter]:
    """All who wait: in the order of service, who cannot fit last."""
    replicas: dict[PodRef, tuple[ModelRow, Replica]] = {
        replica.pod: (row, replica) for row in snapshot.models for replica in row.replicas
    }
    intents: dict[PodRef, list[tuple[Gpu, Intent]]] = {}
    for gpu in snapshot.gpus:
        for intent in gpu.waiting:
            intents.setdefault(intent.pod, []).append((gpu.gpu, intent))
    found: list[tuple[Any, Waiter]] = []
    for pod, items in intents.items():
        intent = items[0][1]
        row, replica = replicas.get(pod, (None, None))
        waiter = Waiter(
            pod=pod,
            model=intent.model,
            need=intent.requested,
            since=intent.since,
            places=tuple(gpu for gpu, _ in items),
            boot=intent.boot,
            victims=tuple(dict.fromkeys(victim for _, item in items for victim in item.victims)),
            row=row,
            decision=replica.decision if replica is not None else None,
        )
        found.append((intent.age, waiter))
    found.sort(key=lambda item: item[0])
    waiters = [waiter for _, waiter in found]
    for pod, (row, replica) in replicas.items():
        if replica.state is Shown.CANNOT_FIT and pod not in intents:
            places = tuple(
                gpu.gpu for gpu in snapshot.gpus if gpu.gpu.node == replica.node and gpu.gpu.index in replica.gpus
            )
            need = row.model.status.serving_memory_per_gpu or 0
            waiters.append(
                Waiter(pod, row.name, need, replica.since, places, row=row, decision=replica.decision),
            )
    return waiters


def before(waiter: Waiter, waiters: Sequence[Waiter]) -> list[Waiter]:
    """Who asked for one of its GPUs before it, oldest first."""
    own = {gpu.name for gpu in waiter.places}
    at = next((number for number, other in enumerate(waiters) if other.pod == waiter.pod), 0)
    return [
        other for other in waiters[:at] if not other.fits_never and own.intersection(gpu.name for gpu in other.places)
    ]


def leaves_in_order(gpu: Gpu, now: datetime, but: PodRef | None = None) -> list[Occupant]:
    """Who holds memory, by who goes first: on its way, then who may be asked (least used first), last who cannot go."""
    named = {victim for intent in gpu.intents for victim in intent.victims}

    def rank(occupant: Occupant) -> tuple[int, float]:
        used = occupant.last_accessed or occupant.became_serving_at
        if occupant.sidecar_down:
            return (5, 0.0)
        if occupant.state is State.DEACTIVATING:
            return (0, 0.0)
        if occupant.popular:
            return (5, 0.0)
        if occupant.pod in named:
            return (1, 0.0)
        if occupant.state is not State.SERVING:
            return (4, 0.0)
        protected = fairness.protected_for(occupant, now)
        return (3, protected) if protected > 0 else (2, used.timestamp() if used else 0.0)

    return sorted((o for o in gpu.occupants if o.reserved and o.pod != but), key=rank)


@dataclass(frozen=True)
class Link:
    """An occupant between a waiter and its memory. `room`: bytes there once it and those before it left."""

    occupant: Occupant
    room: int
    enough: bool


def chain(waiter: Waiter, now: datetime) -> list[Link]:
    """On the GPU that lacks most: who must leave, in order, until there is room; then those that do not help.

    What is on its way goes to who is before it, if somebody is.
    """
    obstacle = waiter.obstacle
    if obstacle is None or not waiter.short:
        return []
    room, gpu = waiter.room, obstacle.gpu
    named = {victim for intent in gpu.intents for victim in intent.victims}
    links = []
    for occupant in leaves_in_order(gpu, now, waiter.pod):
        if obstacle.older and (occupant.state is State.DEACTIVATING or occupant.pod in named):
            continue
        leaves = not occupant.popular and not occupant.sidecar_down
        if leaves:
            room += occupant.reserved
        enough = room >= waiter.need and leaves
        links.append(Link(occupant, room, enough))
        if enough:
            break
    return links


def wanted_gpus(waiters: Iterable[Waiter]) -> set[str]:
    """Names of the GPUs that somebody waits for."""
    return {gpu.name for waiter in waiters for gpu in waiter.places}
