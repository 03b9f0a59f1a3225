"""Shows an answer as it comes: Markdown on a terminal, the text itself elsewhere."""

from __future__ import annotations

import re
import sys

from kubectl_greenthread.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Shower(Protocol):
        """Takes an answer's parts in order."""

        def text(self, part: str) -> None: ...
        def thinking(self, part: str) -> None: ...
        def end(self) -> None: ...
else:
    Shower = object

# what could move the cursor or change the terminal; line ends and tabs may stay
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shower(terminal: Terminal) -> Shower:
    """The best that this terminal and what is installed can do."""
    if terminal.height is None or not terminal.color:
        return Plain(terminal)
    try:
        return Markdown(terminal)
    except ImportError:
        return Plain(terminal)


class Plain:
    """The text as it comes. What a model thinks first goes to stderr, and only where a person looks."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._person = terminal.height is not None
        self._last = "\n"
        self._thinks = False

    def text(self, part: str) -> None:
        if self._thinks:
            self._thinks = False
            sys.stderr.write("\n")
            sys.stderr.flush()
        sys.stdout.write(self._clean(part))
        sys.stdout.flush()
        self._last = part[-1:]

    def thinking(self, part: str) -> None:
        if self._person and sys.stderr.isatty():
            self._thinks = True
            sys.stderr.write(self._terminal.paint(_CONTROL.sub("", part), "dim"))
            sys.stderr.flush()

    def end(self) -> None:
        if self._last != "\n":
            sys.stdout.write("\n")
        sys.stdout.flush()

    def _clean(self, part: str) -> str:
        if self._person:
            part = _CONTROL.sub("", part)
        encoding = sys.stdout.encoding or "utf-8"
        return part.encode(encoding, "replace").decode(encoding)


class Markdown:
    """Paragraph by paragraph: those that are whole are printed for good, the last one is painted over as it grows."""

    def __init__(self, terminal: Terminal) -> None:
        """ImportError without `rich`."""
        from rich.console import Console
        from rich.live import Live
        from rich.markdown import Markdown as Rendered

        self._console = Console(width=terminal.width, highlight=False)
        self._rendered: Any = Rendered
        self._live = Live(console=self._console, refresh_per_second=12, transient=True, vertical_overflow="crop")
        self._live.start()
        self._text = ""
        self._thoughts = ""
        self._first = True

    def text(self, part: str) -> None:
        self._finish_thoughts()
        self._text += _CONTROL.sub("", part)
        done, self._text = split_blocks(self._text)
        if done.strip():
            self._print(done)
        self._live.update(self._rendered(self._text) if self._text.strip() else "")

    def thinking(self, part: str) -> None:
        from rich.text import Text

        self._thoughts += _CONTROL.sub("", part)
        *whole, self._thoughts = self._thoughts.split("\n")
        for line in whole:
            self._live.console.print(Text(line, style="dim italic"))
        self._live.update(Text(self._thoughts, style="dim italic"))

    def _finish_thoughts(self) -> None:
        if self._thoughts:
            from rich.text import Text

            self._live.console.print(Text(self._thoughts, style="dim italic"))
            self._thoughts = ""

    def _print(self, text: str) -> None:
        if not self._first:
            self._live.console.print()
        self._first = False
        self._live.console.print(self._rendered(text))

    def end(self) -> None:
        self._finish_thoughts()
        self._live.update("")
        self._live.stop()
        if self._text.strip():
            if not self._first:
                self._console.print()
            self._console.print(self._rendered(self._text))


def split_blocks(text: str) -> tuple[str, str]:
    """What is whole (up to the last empty line outside of a block of code) and what may still grow."""
    end, fence, at = 0, "", 0
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        mark = stripped[:3]
        if fence:
            if mark == fence and not stripped.strip(fence[0]):
                fence = ""
        elif mark in ("```", "~~~"):
            fence = mark
        elif not stripped and line.endswith("\n"):
            end = at + len(line)
        at += len(line)
    return text[:end], text[end:]
