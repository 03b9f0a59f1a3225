"""`-w`: shows what changes until Ctrl-C; a whole screen anew on a terminal, changed rows elsewhere, as kubectl does."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence

from kubectl_greenthread.feed import Feed, Scope
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out, print_objects, tell
from kubectl_greenthread.terminal import Cell, Column

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greenthread.kube.core import Object
    from greenthread.kube.resources import Key

FRAME = 0.2
"""Seconds between two looks, at least."""
TICK = 1.0
"""Seconds after which a screen is painted anew although nothing changed: durations grow."""

_DURATION = re.compile(r"\b\d+(\.\d+)?(ms|s|m|h|d)\w*")
"""Durations as we write them: they change all the time."""

Rows = Sequence[tuple[object, Sequence[Cell]]]
"""Rows by a key that tells which they are."""


def watch_objects(session: Session, scope: Scope, wanted: Callable[[Object], bool] = lambda obj: True) -> None:
    """Objects as they are, and again whenever one changes."""
    with Feed(session, [scope]) as feed:
        shown: dict[Key, Object] = {}
        while True:
            now = feed.objects[scope]
            changed = [obj for key, obj in now.items() if shown.get(key) is not obj and wanted(obj)]
            shown = dict(now)
            if changed:
                for obj in changed:
                    print_objects(session, [obj], single=True)
                sys.stdout.flush()
            _next(feed, TICK)


def watch_rows(
    session: Session, scopes: Sequence[Scope], columns: Sequence[Column], rows: Callable[[Feed], Rows]
) -> None:
    """A table, and then every row that has changed in more than the passing of time."""
    with Feed(session, scopes) as feed:
        shown: dict[object, list[str]] = {}
        layout = None
        trouble = ""
        while True:
            found = rows(feed)
            changed = []
            for key, cells in found:
                text = [_DURATION.sub("", cell.text) for cell in cells]
                if shown.get(key) != text:
                    shown[key] = text
                    changed.append(cells)
            if changed:
                first = layout is None
                if layout is None:
                    layout = session.terminal.fit(columns, changed, session.headers)
                for line in session.terminal.lines(columns, changed, layout, first and session.headers):
                    out(line)
                sys.stdout.flush()
            if feed.trouble and feed.trouble != trouble:
                tell(f"warning: {session.terminal.clean(feed.trouble)}; trying again")
            trouble = feed.trouble
            _next(feed, TICK)


def watch_screen(session: Session, scopes: Sequence[Scope], paint: Callable[[Feed], str]) -> None:
    """The whole picture, again and again on one screen, which the terminal gets back at the end."""
    # the alternate screen, without the cursor; every line is painted over rather than cleared, so nothing flickers
    out("\x1b[?1049h\x1b[?25l", end="")
    try:
        with Feed(session, scopes) as feed:
            while True:
                terminal = session.terminal.measured()
                session.terminal = terminal
                lines = paint(feed).split("\n")
                if feed.trouble:
                    lines.insert(0, terminal.paint(terminal.clean(f"{feed.trouble}; trying again"), "failed"))
                if terminal.height is not None:
                    lines = lines[: terminal.height - 1]
                out("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", end="")
                sys.stdout.flush()
                _next(feed, TICK)
    finally:
        out("\x1b[?25h\x1b[?1049l", end="")
        sys.stdout.flush()


def _next(feed: Feed, timeout: float) -> None:
    """Waits for a change, and takes in all that come within a frame of it."""
    if not feed.next(timeout):
        return
    end = time.monotonic() + FRAME
    while (left := end - time.monotonic()) > 0:
        feed.next(left)
