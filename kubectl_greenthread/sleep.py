"""`sleep`: models finish what is in flight and free their GPU memory."""

from __future__ import annotations

from greenthread.names import ANNOTATION_SLEEP
from kubectl_greenthread import acting
from kubectl_greenthread.options import Session
from kubectl_greenthread.waiting import Waiter, slept


def sleep(session: Session, names: tuple[str, ...], yes: bool, wait: bool, timeout: float) -> None:
    """Put MODELs to sleep: requests in flight get the model's drainTimeout to finish; the next request wakes it."""
    view = acting.begin(session, names)
    rows = view.rows
    awake = [row for row in rows if not acting.is_asleep(row)]
    words = [f"{row.name} sleeps already: it holds no GPU memory" for row in rows if acting.is_asleep(row)]
    for row in awake:
        acting.ask_to_disturb(session, row, "Put it to sleep?", yes)
    waiter = (
        Waiter(session, view, [slept(row.name) for row in awake])
        if wait and awake and session.dry_run == "none"
        else None
    )
    changed = {row.name: acting.patch(session, row, acting.wish(ANNOTATION_SLEEP)) for row in awake}
    models = [changed.get(model["metadata"]["name"], model) for model in view.models]
    if waiter is None:
        words += [f"asked {row.name} to sleep" for row in awake]
    acting.answer(session, models, words)
    if waiter is not None:
        waiter.finish(timeout)
