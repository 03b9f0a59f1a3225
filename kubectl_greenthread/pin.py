"""`pin`: models stay on their GPUs."""

from __future__ import annotations

import click

from greenthread.snapshot import Shown
from kubectl_greenthread import acting
from kubectl_greenthread.options import Session, names_argument, session_options
from kubectl_greenthread.reading import read_models


@click.command("pin", short_help="Keep models on their GPUs: they are never preempted.")
@names_argument
@session_options(["json", "yaml", "name"])
def command(session: Session, names: tuple[str, ...]) -> None:
    """Pin MODELs: once awake they stay on their GPUs, idle or not, and are never preempted."""
    view = read_models(session, names)
    words, changed = [], {}
    for row in view.rows:
        if row.pinned:
            words.append(f"{row.name} is pinned already")
            continue
        changed[row.name] = acting.patch(session, row, acting.pinned(True))
        then = "it stays on its GPU" if row.state is Shown.SERVING else "once awake it stays on its GPU"
        words.append(f"pinned {row.name}: {then} and is never preempted")
    acting.answer(session, [changed.get(model["metadata"]["name"], model) for model in view.models], words)
