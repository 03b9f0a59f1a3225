"""`wake`: models take GPU memory and serve."""

from __future__ import annotations

import click

from greenthread.names import ANNOTATION_WAKE
from greenthread.snapshot import Shown
from kubectl_greenthread import acting
from kubectl_greenthread.options import Session, names_argument, session_options, wait_options
from kubectl_greenthread.reading import read_models
from kubectl_greenthread.waiting import Waiter, woke


@click.command("wake", short_help="Wake models.")
@names_argument
@wait_options
@session_options(["json", "yaml", "name"])
def command(session: Session, names: tuple[str, ...], wait: bool, timeout: float) -> None:
    """Wake MODELs, as a request would, without one."""
    view = read_models(session, names)
    rows = view.rows
    for row in rows:
        acting.must_have_replicas(row)
    sleeping = [row for row in rows if row.state is not Shown.SERVING]
    words = [f"{row.name} serves already, on {', '.join(row.places)}" for row in rows if row.state is Shown.SERVING]
    waiter = Waiter(session, view, [woke(row.name) for row in sleeping]) if wait and sleeping else None
    changed = {row.name: acting.patch(session, row, acting.wish(ANNOTATION_WAKE)) for row in sleeping}
    models = [changed.get(model["metadata"]["name"], model) for model in view.models]
    if waiter is None:
        words += [f"asked {row.name} to wake" for row in sleeping]
    acting.answer(session, models, words)
    if waiter is not None:
        waiter.finish(timeout)
