"""A screen as text: its characters, and below them what colour each has, named as the palette names it."""

from __future__ import annotations

import os
import string
from dataclasses import fields
from pathlib import Path

from textual.strip import Strip

from tui.app import Dashboard
from tui.theme import Palette

STORED = Path(__file__).parent / "looks"
UPDATE = "UPDATE_LOOKS"
"""With this environment variable, what is seen is stored instead of compared."""
_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits


def strips(app: Dashboard) -> list[Strip]:
    """What is on the screen, dialogs included."""
    return app.screen._compositor.render_strips()


def seen(app: Dashboard) -> str:
    """The screen; the same for the same cluster at the same moment."""
    names = _names(app.palette)
    legend: dict[str, str] = {}
    texts, inks = [], []
    for strip in strips(app):
        texts.append(f"|{strip.text}|")
        row = ""
        for text, style, _ in strip:
            if style is None:
                look = "plain"
            else:
                ink = style.color.name if style.color else "default"
                back = style.bgcolor.name if style.bgcolor else "default"
                ink = ink if text.strip() else "blank"  # a blank shows only what is behind it
                flags = "".join(f" {flag}" for flag in ("bold", "dim", "reverse", "underline") if getattr(style, flag))
                look = f"{names.get(ink, ink)} on {names.get(back, back)}{flags}"
            letter = legend.setdefault(look, _LETTERS[len(legend)] if len(legend) < len(_LETTERS) else "?")
            row += letter * len(text)
        inks.append(f"|{row}|")
    told = [f"{letter} = {look}" for look, letter in legend.items()]
    return "\n".join([*texts, "", *inks, "", *told, ""])


def _names(palette: Palette) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in fields(palette):
        value = getattr(palette, field.name)
        if isinstance(value, str) and value.startswith("#"):
            found.setdefault(value, field.name)
    for number, (segment, edge) in enumerate(palette.occupants):
        found.setdefault(segment, f"occupant{number}")
        found.setdefault(edge, f"edge{number}")
    return found


def compare(app: Dashboard, name: str) -> None:
    """Fails where a screen looks other than it is stored to look."""
    now = seen(app)
    path = STORED / f"{name}.txt"
    if os.environ.get(UPDATE):
        STORED.mkdir(exist_ok=True)
        path.write_text(now)
        return
    how = f"{UPDATE}=1 .venv/bin/python -m pytest tests/parts/tui stores what is seen; look at the difference with git"
    assert path.exists(), f"{name} was never stored: {how}"
    assert now == path.read_text(), f"{name} looks other than it did: {how}"
