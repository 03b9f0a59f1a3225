"""`unpin`: models may give way again."""

from __future__ import annotations

from kubectl_greenthread import acting
from kubectl_greenthread.options import Session


def unpin(session: Session, names: tuple[str, ...]) -> None:
    """Unpin MODELs: they sleep when idle and may be preempted."""
    view = acting.begin(session, names)
    words, changed = [], {}
    for row in view.rows:
        if not row.pinned:
            words.append(f"{row.name} is not pinned")
            continue
        changed[row.name] = acting.patch(session, row, acting.pinned(False))
        words.append(f"unpinned {row.name}: it sleeps when idle and may be preempted")
    acting.answer(session, [changed.get(model["metadata"]["name"], model) for model in view.models], words)
