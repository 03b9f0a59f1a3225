"""`preempt`: a model gives its GPU memory to others."""

from __future__ import annotations

from greenthread.names import ANNOTATION_PREEMPT, ANNOTATION_WAKE
from greenthread.snapshot import ModelRow, Shown
from kubectl_greenthread import acting
from kubectl_greenthread.failures import Failure
from kubectl_greenthread.options import Session
from kubectl_greenthread.reading import bare_name
from kubectl_greenthread.waiting import Waiter, slept, woke


def preempt(session: Session, name: str, other: str | None, yes: bool, wait: bool, timeout: float) -> None:
    """Make MODEL give its GPU memory to whoever waits, or to the model of --for; its minRuntime does not count."""
    view = acting.begin(session, [name, *([other] if other else [])])
    victim = view.row(bare_name(name))
    waker = view.row(bare_name(other)) if other else None
    if victim.pinned:
        raise Failure(f"{victim.name} is pinned and never preempted: unpin it first (`unpin {victim.name}`)")
    if waker is not None:
        acting.must_have_replicas(waker)
        _must_meet(victim, waker)
    asleep = acting.is_asleep(victim)
    if not asleep:
        acting.ask_to_disturb(session, victim, f"Preempt it{f' for {waker.name}' if waker else ''}?", yes)
    goals = [] if asleep else [slept(victim.name)]
    if waker is not None and waker.state is not Shown.SERVING:
        goals.append(woke(waker.name))
    waiter = Waiter(session, view, goals) if wait and goals and session.dry_run == "none" else None
    models, words = list(view.models), []
    # the waker first: it then stands in line already when the memory becomes free
    if waker is not None and waker.state is not Shown.SERVING:
        models[-1] = acting.patch(session, waker, acting.wish(ANNOTATION_WAKE))
        words.append(f"asked {waker.name} to wake")
    elif waker is not None:
        words.append(f"{waker.name} serves already, on {', '.join(waker.places)}")
    if asleep:
        words.append(f"{victim.name} sleeps already: it holds no GPU memory")
    else:
        models[0] = acting.patch(session, victim, acting.wish(ANNOTATION_PREEMPT))
        words.append(f"asked {victim.name} to make room")
    acting.answer(session, models, words if waiter is None else [])
    if waiter is not None:
        waiter.finish(timeout)


def _must_meet(victim: ModelRow, waker: ModelRow) -> None:
    """Memory on one GPU is of no use to a model that is bound to another."""
    if victim.name == waker.name:
        raise Failure(f"{victim.name} cannot make room for itself: name another model with --for")
    ours = {(replica.node, index) for replica in victim.replicas for index in replica.gpus}
    theirs = {(replica.node, index) for replica in waker.replicas for index in replica.gpus}
    if ours and theirs and not ours & theirs:
        raise Failure(
            f"{victim.name} is on {', '.join(victim.places)} and {waker.name} on {', '.join(waker.places)}: "
            "preempting the one makes no room for the other"
        )
