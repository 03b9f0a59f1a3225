"""How a wake or a sleep goes on: a bar that moves on a terminal, plain lines elsewhere. On stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from greenthread.snapshot import ModelRow, Shown, Snapshot
from greenthread.units import short_bytes, short_duration
from kubectl_greenthread import printing
from kubectl_greenthread.terminal import Terminal

FRAME = 0.1
"""Seconds between two paintings on a terminal."""
BAR = 24
"""Cells of a bar."""


class Painter:
    """Lines that are painted over on a terminal; `live` is False where there is none, and then nothing is painted."""

    def __init__(self, terminal: Terminal) -> None:
        stream = sys.stderr
        self.live = stream.isatty() and terminal.height is not None
        self._lines = 0

    def paint(self, lines: Sequence[str]) -> None:
        """Shows these lines in place of the last ones."""
        if not self.live:
            return
        sys.stdout.flush()
        up = f"\x1b[{self._lines}A" if self._lines else ""
        sys.stderr.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stderr.flush()
        self._lines = len(lines)

    def clear(self) -> None:
        """Leaves no trace."""
        if self._lines:
            self.paint(())


def fraction(row: ModelRow, snapshot: Snapshot, took: Mapping[str, float]) -> float | None:
    """How far a model's step is, from how long it took last time (`took`: seconds by step); None when nobody knows."""
    if row.since is None:
        return None
    gone = (snapshot.at - row.since).total_seconds()
    usual = {Shown.WAKING: took.get("engine"), Shown.CONVERTING: took.get("boot")}.get(row.state)
    if row.state is Shown.DEACTIVATING:
        drain = row.model.spec.sleep.drain_timeout
        usual = drain if row.in_flight else took.get("sleep")
    # it is not done before it is done
    return min(gone / usual, 0.99) if usual else None


def line(terminal: Terminal, row: ModelRow, snapshot: Snapshot, took: Mapping[str, float]) -> str:
    """One line for a model that is on its way: its state, a bar, and what happens now."""
    state = printing.state_cell_of(terminal, row.state)
    since = short_duration((snapshot.at - row.since).total_seconds()) if row.since else ""
    done = fraction(row, snapshot, took)
    parts = [terminal.paint(row.name, "bold"), f"{terminal.paint(state.text, state.style)} {since:>5}"]
    if done is not None:
        bar = terminal.bar([(done, "full", str(row.state))], BAR)
        parts.append(f"{bar} {done * 100:3.0f}%")
    text = _words(row, snapshot)
    room = (terminal.width or 80) - len(row.name) - len(state.text) - len(since.rjust(5)) - 5
    room -= BAR + 7 if done is not None else 0
    if room > 8:
        parts.append(terminal.cut(terminal.clean(text), room))
    return "  ".join(parts)


def _words(row: ModelRow, snapshot: Snapshot) -> str:
    where = ", ".join(row.places)
    match row.state:
        case Shown.PENDING | Shown.CANNOT_FIT:
            return printing.note(row, snapshot.at)
        case Shown.WAKING:
            return f"copies {short_bytes(row.vram)} to {where}"
        case Shown.CONVERTING:
            return f"boots on {where}"
        case Shown.DEACTIVATING:
            if row.in_flight:
                several = "s" if row.in_flight > 1 else ""
                return f"drains: {row.in_flight} request{several} in flight"
            return f"frees {short_bytes(row.vram)} on {where}"
        case Shown.SERVING:
            return f"serves on {where}"
        case Shown.SLEEPING:
            return "asleep"
    return printing.note(row, snapshot.at)
