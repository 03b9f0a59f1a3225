"""Which pods of a Model are to be made and which are to go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from controller.pod_view import PodView


@dataclass(frozen=True, slots=True)
class Removal:
    pod: PodView
    #: Why, for people: it completes "deleted pod x: …".
    reason: str
    #: It broke, rather than being unwanted; its successor is made with backoff.
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """``create``: ordinals without a pod of the present template. ``waiting``: those whose old pod must go first."""

    create: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    delete: tuple[Removal, ...] = ()


def plan(replicas: int, hash8: str, pods: Iterable[PodView], lost_nodes: Collection[str] = ()) -> Plan:
    """One pod of template ``hash8`` for each ordinal below ``replicas``.

    A ready pod of an older template stays until its successor is ready, so that no request is lost. A pod that is
    ending counts for nothing, but its name is taken until it is gone.
    """
    create: list[int] = []
    waiting: list[int] = []
    delete: list[Removal] = []
    by_ordinal: dict[int, list[PodView]] = {}
    for pod in pods:
        by_ordinal.setdefault(pod.ordinal, []).append(pod)

    for ordinal in sorted(by_ordinal.keys() - set(range(replicas))):
        delete += [Removal(pod, f"{_replicas(replicas)} wanted") for pod in by_ordinal[ordinal] if not pod.deleting]

    for ordinal in range(replicas):
        mine = by_ordinal.get(ordinal, [])
        current = next((pod for pod in mine if pod.hash8 == hash8), None)
        old = [pod for pod in mine if pod.hash8 != hash8 and not pod.deleting]
        if current is None:
            create.append(ordinal)
        elif current.deleting:
            waiting.append(ordinal)
        elif reason := _broken(current, lost_nodes):
            delete.append(Removal(current, reason, broken=True))
            waiting.append(ordinal)
        working = current if current and current.ready and ordinal not in waiting else None
        for pod in old:
            if working:
                delete.append(Removal(pod, f"{working.ref.name} has taken over"))
            elif not pod.ready or _broken(pod, lost_nodes):
                delete.append(Removal(pod, "the spec has changed before it was ready"))
    return Plan(tuple(create), tuple(waiting), tuple(delete))


def _broken(pod: PodView, lost_nodes: Collection[str]) -> str:
    if pod.failed:
        return pod.trouble or f"its phase is {pod.phase}"
    if pod.node in lost_nodes:
        return f"its node {pod.node} is gone"
    return ""


def _replicas(count: int) -> str:
    return "no replica is" if count == 0 else "1 replica is" if count == 1 else f"{count} replicas are"


def known_memory(pods: Sequence[PodView], hash8: str, in_status: int | None, status_is_current: bool) -> int | None:
    """Bytes on each GPU that pods of template ``hash8`` are known to use, or None.

    What an older status says counts only if it speaks of the present spec and no pod of another template is there.
    """
    measured = [pod.serving_memory for pod in pods if pod.hash8 == hash8 and pod.serving_memory]
    if measured:
        return max(measured)
    if status_is_current and all(pod.hash8 == hash8 for pod in pods):
        return in_status
    return None
