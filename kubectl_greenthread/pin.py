"""`pin`: models stay on their GPUs."""

from __future__ import annotations

from greenthread.snapshot import Shown
from kubectl_greenthread import acting
from kubectl_greenthread.options import Session


def pin(session: Session, names: tuple[str, ...]) -> None:
    """Pin MODELs: once awake they stay on their GPUs, idle or not, and are never preempted."""
    view = acting.begin(session, names)
    words, changed = [], {}
    for row in view.rows:
        if row.pinned:
            words.append(f"{row.name} is pinned already")
            continue
        changed[row.name] = acting.patch(session, row, acting.pinned(True))
        then = "it stays on its GPU" if row.state is Shown.SERVING else "once awake it stays on its GPU"
        words.append(f"pinned {row.name}: {then} and is never preempted")
    acting.answer(session, [changed.get(model["metadata"]["name"], model) for model in view.models], words)
