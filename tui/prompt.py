"""The line at the bottom where a filter or a command is typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

from tui.facts import KeyHint


class Prompt(Input):
    """`/words` filters while it is typed; `:command` runs at enter, `tab` completes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", show=False),
        Binding("tab", "complete(1)", show=False),
        Binding("shift+tab", "complete(-1)", show=False),
        Binding("up", "earlier(1)", show=False),
        Binding("down", "earlier(-1)", show=False),
    ]

    class Left(Message):
        """It was left without a result."""

    def __init__(self) -> None:
        super().__init__(id="prompt", compact=True)
        #: "/" or ":".
        self.mode = "/"
        #: What a command may become, and the number of the one that `tab` put in; -1: none.
        self.found: Sequence[str] = ()
        self.chosen = -1
        #: Commands that were run, oldest first; every page's prompt knows them.
        self.past: Sequence[str] = ()
        self._past = 0

    def open(self, mode: str, text: str, placeholder: str) -> None:
        """Begins with `text`."""
        self.mode, self.chosen, self.found, self._past = mode, -1, (), 0
        self.placeholder = placeholder
        self.value = text
        self.cursor_position = len(text)

    @property
    def completed(self) -> bool:
        """Whether it holds what `tab` put in."""
        return self.chosen >= 0 and self.value == self.found[self.chosen]

    def hints(self) -> list[KeyHint]:
        """The keys that apply while it is typed in."""
        if self.mode == "/":
            return [KeyHint("enter", "keep"), KeyHint("esc", "no filter", True, "screen.back")]
        return [KeyHint("enter", "run"), KeyHint("tab", "complete"), KeyHint("↑", "earlier"), KeyHint("esc", "leave")]

    def action_leave(self) -> None:
        self.post_message(self.Left())

    def action_complete(self, by: int) -> None:
        if self.mode != ":" or not self.found:
            return
        self.chosen = (self.chosen + by) % len(self.found) if self.completed or by > 0 else len(self.found) - 1
        self._become(self.found[self.chosen])

    def action_earlier(self, by: int) -> None:
        if self.mode != ":":
            return
        self._past = min(max(self._past + by, 0), len(self.past))
        self._become(self.past[-self._past] if self._past else "")

    def _become(self, text: str) -> None:
        self.value = text
        self.cursor_position = len(text)
