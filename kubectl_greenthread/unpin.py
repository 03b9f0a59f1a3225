"""`unpin`: models may give way again."""

from __future__ import annotations

import click

from kubectl_greenthread import acting
from kubectl_greenthread.options import Session, names_argument, session_options
from kubectl_greenthread.reading import read_models


@click.command("unpin", short_help="Let models give way again.")
@names_argument
@session_options(["json", "yaml", "name"])
def command(session: Session, names: tuple[str, ...]) -> None:
    """Unpin MODELs: they sleep when idle and may be preempted."""
    view = read_models(session, names)
    words, changed = [], {}
    for row in view.rows:
        if not row.pinned:
            words.append(f"{row.name} is not pinned")
            continue
        changed[row.name] = acting.patch(session, row, acting.pinned(False))
        words.append(f"unpinned {row.name}: it sleeps when idle and may be preempted")
    acting.answer(session, [changed.get(model["metadata"]["name"], model) for model in view.models], words)
