"""The pure decisions of the claim protocol (docs/protocol.md): who wakes, who waits, who gives way, who is preempted.

Every function takes a snapshot of the GPUs concerned and the time, and returns a decision with its reason. Carrying it
out is the sidecar's business; explaining it to people is everybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from greenthread.gpu import Gpu, Intent, Occupant, PodRef, State
from greenthread.units import short_bytes, short_duration
from greenthread.values import dataclass, field


@dataclass(frozen=True, slots=True)
class Want:
    """A pod that wants ``need`` bytes on each of its GPUs.

    ``lock``: it needs the wake lock (a wake does, an engine's boot does not). ``max_wait``: seconds after ``since`` at
    which it may preempt, if ``preempts``; who may not stands behind who may, so that nobody has to go for it.
    """

    pod: PodRef
    model: str
    need: int
    since: datetime
    max_wait: float
    boot: bool = False
    lock: bool = True
    preempts: bool = True

    @property
    def age(self) -> tuple[bool, bool, datetime, str, str]:
        return (not self.preempts, self.boot, self.since, self.pod.name, self.pod.namespace)

    @property
    def barrier(self) -> datetime:
        """From when on it may preempt."""
        return self.since + timedelta(seconds=self.max_wait)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What one GPU lacks for a want. Bytes; ``older`` is what older waiters were promised."""

    gpu: Gpu
    need: int
    free: int
    older: int
    #: Who else holds memory there.
    blockers: tuple[Occupant, ...]
    older_models: tuple[str, ...] = ()
    lock_holder: str = ""

    @property
    def short(self) -> int:
        return max(self.need + self.older - self.free, 0)

    def text(self, now: datetime) -> str:
        """One clause for people, with numbers."""
        where = f"{self.gpu.node}/{self.gpu.index}"
        if not self.short:
            return f"waits while {self.lock_holder} wakes on {where}"
        free = f"{short_bytes(max(self.free, 0))} is free"
        if self.older:
            free += f" and {short_bytes(self.older)} is for {', '.join(self.older_models)}, who asked before"
        text = f"needs {short_bytes(self.need)} on {where}, where {free}: {short_bytes(self.short)} short"
        if self.blockers:
            text += "; " + ", ".join(
                f"{b.model} ({short_bytes(b.reserved)}) {why_it_stays(b, self.gpu, now)}" for b in self.blockers
            )
        if self.gpu.foreign and self.short > 0:
            text += f"; other programs use {short_bytes(self.gpu.foreign)}"
        return text


@dataclass(frozen=True, slots=True)
class Fits:
    """It may claim now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It waits for an event, or until ``until`` when the passing of time alone may change the decision."""

    obstacles: tuple[Obstacle, ...]
    until: datetime | None = None
    #: Models whose memory is on its way.
    coming: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preempt:
    """These should go to sleep; oldest ``lastAccessed`` first."""

    victims: tuple[Occupant, ...]
    obstacles: tuple[Obstacle, ...] = field(default=())
    #: When the passing of time alone may change who they are.
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class CannotFit:
    """Not even if every model that may be preempted slept; it must not hold up the younger."""

    obstacles: tuple[Obstacle, ...]


Decision = Fits | Wait | Preempt | CannotFit


def decide(want: Want, gpus: Sequence[Gpu], now: datetime) -> Decision:
    """What ``want`` does on its ``gpus`` at ``now``. ``gpus`` are all of its GPUs, ascending by index."""
    obstacles = tuple(obstacle for gpu in gpus if (obstacle := _obstacle(want, gpu)) is not None)
    if not obstacles:
        return Fits()
    if any(want.need > _most_room(want, gpu) for gpu in gpus):
        return CannotFit(tuple(o for o in obstacles if o.short))
    if not want.preempts:
        return Wait(obstacles, coming=_coming_models(gpus, want.pod))
    if now < want.barrier and any(o.short for o in obstacles):
        return Wait(obstacles, until=want.barrier, coming=_coming_models(gpus, want.pod))
    named = _named(gpus)
    if all(_room(want, gpu) + coming(gpu, named, want.pod) >= want.need + _older(want, gpu) for gpu in gpus):
        return Wait(obstacles, coming=_coming_models(gpus, want.pod))
    candidates, later = _candidates(want.pod, gpus, named, now)
    victims = _victims(want, gpus, named, candidates)
    if victims:
        return Preempt(victims, obstacles, later)
    return Wait(obstacles, until=later, coming=_coming_models(gpus, want.pod))


def fits(want: Want, gpu: Gpu) -> bool:
    """Whether ``want`` may claim this GPU: the lock is free if it takes one, and there is room for it and the older."""
    return _room(want, gpu) >= want.need + _older(want, gpu) and not _locked(want, gpu)


def somebody_older(want: Want, gpu: Gpu) -> bool:
    """Whether a claim of ``want`` here would pass somebody who waits longer."""
    return any(intent.pod != want.pod and intent.age < want.age for intent in gpu.intents)


def coming(gpu: Gpu, named: Iterable[PodRef] | None = None, waiter: PodRef | None = None) -> int:
    """Bytes on their way: occupants deactivating, or named as victims and still free to obey; not without a sidecar."""
    names = frozenset(_named([gpu])) if named is None else named
    return sum(o.reserved for o in gpu.occupants if o.pod != waiter and _leaves(o, names))


def gives_way(pod: PodRef, gpus: Sequence[Gpu]) -> Intent | None:
    """The oldest waiter that lacks room on a GPU of ``pod`` even with what is coming; None: nobody needs it to go.

    Who waits and may not preempt asks nobody to go.

    Whether the pod is idle, past its minRuntime and not popular is for its own sidecar to know.
    """
    named = _named(gpus)
    waiters = []
    for gpu in gpus:
        mine = gpu.occupant(pod)
        if mine is None or mine.reserved == 0:
            continue
        for intent in gpu.intents:
            if intent.pod == pod or not intent.preempts:
                continue
            older = sum(i.requested for i in gpu.intents if i.age < intent.age and i.pod != pod)
            if gpu.room + coming(gpu, named, pod) < intent.requested + older:
                waiters.append(intent)
    return min(waiters, key=lambda intent: intent.age, default=None)


def named_by(pod: PodRef, gpus: Sequence[Gpu]) -> Intent | None:
    """The oldest waiter that named ``pod`` its victim, or None."""
    intents = (intent for gpu in gpus for intent in gpu.intents if pod in intent.victims)
    return min(intents, key=lambda intent: intent.age, default=None)


def explain(decision: Decision, now: datetime) -> str:
    """The reason of a decision as a sentence for people, without the model's name in front."""
    if isinstance(decision, Fits):
        return "there is room"
    text = "; ".join(obstacle.text(now) for obstacle in decision.obstacles)
    if isinstance(decision, CannotFit):
        return f"cannot fit: {text}"
    if isinstance(decision, Preempt):
        return f"{text}; {', '.join(v.model for v in decision.victims)} must make room"
    if decision.coming:
        text += f"; {', '.join(decision.coming)} makes room now"
    if decision.until is not None:
        text += f"; decides again in {short_duration((decision.until - now).total_seconds())}"
    return text


def protected_for(occupant: Occupant, now: datetime) -> float:
    """Seconds for which it may still not be preempted; 0 when it may."""
    if occupant.protected_until is None:
        return 0.0
    return max((occupant.protected_until - now).total_seconds(), 0.0)


def _room(want: Want, gpu: Gpu) -> int:
    """Room with what the pod itself already holds."""
    mine = gpu.occupant(want.pod)
    return gpu.room + (mine.reserved if mine else 0)


def _older(want: Want, gpu: Gpu) -> int:
    return sum(intent.requested for intent in gpu.intents if intent.pod != want.pod and intent.age < want.age)


def _locked(want: Want, gpu: Gpu) -> bool:
    return want.lock and gpu.wake_lock is not None and gpu.wake_lock.holder != want.pod


def _most_room(want: Want, gpu: Gpu) -> int:
    """Room if every occupant that can be preempted slept."""
    return gpu.total - gpu.foreign - sum(o.reserved for o in gpu.occupants if o.popular and o.pod != want.pod)


def _obstacle(want: Want, gpu: Gpu) -> Obstacle | None:
    if fits(want, gpu):
        return None
    free, older = _room(want, gpu), _older(want, gpu)
    lock = gpu.wake_lock
    blockers = tuple(o for o in gpu.occupants if o.reserved and o.pod != want.pod)
    waiting = [i.model for i in sorted(gpu.intents, key=lambda i: i.age) if i.pod != want.pod and i.age < want.age]
    holder = ""
    if lock is not None and _locked(want, gpu):
        occupant = gpu.occupant(lock.holder)
        holder = occupant.model if occupant else str(lock.holder)
    return Obstacle(gpu, want.need, free, older, blockers, tuple(waiting), holder)


def why_it_stays(occupant: Occupant, gpu: Gpu, now: datetime) -> str:
    """Why an occupant stands in the way at ``now``, for people."""
    if occupant.sidecar_down:
        return "cannot make room: its sidecar is down"
    if occupant.state == State.DEACTIVATING:
        return "is making room"
    if occupant.popular:
        return "is pinned"
    if occupant.state == State.CONVERTING:
        return "is booting"
    if occupant.state == State.WAKING:
        return "is waking"
    if any(occupant.pod in intent.victims for intent in gpu.intents):
        return "is asked to make room"
    protected = protected_for(occupant, now)
    if protected:
        return f"must serve {short_duration(protected)} more"
    return "is serving"


def _named(gpus: Sequence[Gpu]) -> frozenset[PodRef]:
    return frozenset(victim for gpu in gpus for intent in gpu.intents for victim in intent.victims)


def _leaves(occupant: Occupant, named: Iterable[PodRef]) -> bool:
    if occupant.sidecar_down:  # it leaves when it is back, and nobody knows when
        return False
    if occupant.state == State.DEACTIVATING:
        return True
    return occupant.state == State.SERVING and not occupant.popular and occupant.pod in named


def _coming_models(gpus: Sequence[Gpu], waiter: PodRef) -> tuple[str, ...]:
    named = _named(gpus)
    models = (o.model for gpu in gpus for o in gpu.occupants if o.pod != waiter and o.reserved and _leaves(o, named))
    return tuple(dict.fromkeys(models))


def _candidates(
    waiter: PodRef, gpus: Sequence[Gpu], named: frozenset[PodRef], now: datetime
) -> tuple[list[Occupant], datetime | None]:
    """Who may be preempted now, oldest lastAccessed first; and when the next one may."""
    eligible: dict[PodRef, Occupant] = {}
    later: datetime | None = None
    for gpu in gpus:
        for occupant in gpu.occupants:
            if occupant.state != State.SERVING or occupant.popular or occupant.pod == waiter or occupant.pod in named:
                continue
            if occupant.sidecar_down:
                continue
            if protected_for(occupant, now) > 0:
                end = occupant.protected_until
                later = end if later is None or (end is not None and end < later) else later
            else:
                eligible.setdefault(occupant.pod, occupant)
    return sorted(eligible.values(), key=_last_used), later


def _last_used(occupant: Occupant) -> tuple[float, str, str]:
    used = occupant.last_accessed or occupant.became_serving_at
    return (used.timestamp() if used else 0.0, occupant.pod.name, occupant.pod.namespace)


def _victims(
    want: Want, gpus: Sequence[Gpu], named: frozenset[PodRef], candidates: Sequence[Occupant]
) -> tuple[Occupant, ...]:
    """The oldest candidates that together make room on every GPU, less those that are not needed; () if none do."""
    missing = {
        gpu.name: want.need + _older(want, gpu) - _room(want, gpu) - coming(gpu, named, want.pod) for gpu in gpus
    }
    holds = {
        candidate.pod: {gpu.name: mine.reserved for gpu in gpus if (mine := gpu.occupant(candidate.pod)) is not None}
        for candidate in candidates
    }

    def enough(chosen: Sequence[Occupant]) -> bool:
        return all(
            sum(holds[victim.pod].get(name, 0) for victim in chosen) >= short
            for name, short in missing.items()
            if short > 0
        )

    chosen: list[Occupant] = []
    for candidate in candidates:
        if enough(chosen):
            break
        chosen.append(candidate)
    if not enough(chosen):
        return ()
    for candidate in reversed(tuple(chosen)):
        without = [victim for victim in chosen if victim is not candidate]
        if enough(without):
            chosen = without
    return tuple(chosen)
