"""`sleep`: models finish what is in flight and free their GPU memory."""

from __future__ import annotations

import click

from greenthread.names import ANNOTATION_SLEEP
from kubectl_greenthread import acting
from kubectl_greenthread.options import Session, names_argument, session_options, wait_options, yes_option
from kubectl_greenthread.reading import read_models
from kubectl_greenthread.waiting import Waiter, slept


@click.command("sleep", short_help="Put models to sleep; they free their GPU memory.")
@names_argument
@yes_option
@wait_options
@session_options(["json", "yaml", "name"])
def command(session: Session, names: tuple[str, ...], yes: bool, wait: bool, timeout: float) -> None:
    """Put MODELs to sleep: requests in flight get the model's drainTimeout to finish; the next request wakes it."""
    view = read_models(session, names)
    rows = view.rows
    awake = [row for row in rows if not acting.is_asleep(row)]
    words = [f"{row.name} sleeps already: it holds no GPU memory" for row in rows if acting.is_asleep(row)]
    for row in awake:
        acting.ask_to_disturb(row, "Put it to sleep?", yes)
    waiter = Waiter(session, view, [slept(row.name) for row in awake]) if wait and awake else None
    changed = {row.name: acting.patch(session, row, acting.wish(ANNOTATION_SLEEP)) for row in awake}
    models = [changed.get(model["metadata"]["name"], model) for model in view.models]
    if waiter is None:
        words += [f"asked {row.name} to sleep" for row in awake]
    acting.answer(session, models, words)
    if waiter is not None:
        waiter.finish(timeout)
