"""`wake`: models take GPU memory and serve."""

from __future__ import annotations

from greenthread.names import ANNOTATION_WAKE
from greenthread.snapshot import Shown
from kubectl_greenthread import acting
from kubectl_greenthread.options import Session
from kubectl_greenthread.waiting import Waiter, woke


def wake(session: Session, names: tuple[str, ...], wait: bool, timeout: float) -> None:
    """Wake MODELs, as a request would, without one."""
    view = acting.begin(session, names)
    rows = view.rows
    for row in rows:
        acting.must_have_replicas(row)
    sleeping = [row for row in rows if row.state is not Shown.SERVING]
    words = [f"{row.name} serves already, on {', '.join(row.places)}" for row in rows if row.state is Shown.SERVING]
    waiter = (
        Waiter(session, view, [woke(row.name) for row in sleeping])
        if wait and sleeping and session.dry_run == "none"
        else None
    )
    changed = {row.name: acting.patch(session, row, acting.wish(ANNOTATION_WAKE)) for row in sleeping}
    models = [changed.get(model["metadata"]["name"], model) for model in view.models]
    if waiter is None:
        words += [f"asked {row.name} to wake" for row in sleeping]
    acting.answer(session, models, words)
    if waiter is not None:
        waiter.finish(timeout)
