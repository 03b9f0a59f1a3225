"""Dialogs: confirm what disturbs something running, and help."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from tui.actions import Action
from tui.cells import Line, wrap
from tui.facts import KeyHint, footer
from tui.theme import PINNED
from tui.view import View, put_state
from tui.widgets import Panel

HELP = (
    ("j k ↑ ↓", "the next, the previous model; g G the first, the last"),
    ("enter", "all of the selected model; esc comes back"),
    ("w", "wake it"),
    ("s", "put it to sleep: requests in flight finish first"),
    ("p", "pin it, or unpin it: a pinned model is never preempted"),
    ("x", "preempt it: it makes room for whoever waits"),
    ("/", "filter models by words in name, state, GPU; esc clears it"),
    ("tab", "from GPUs to models and back; the mouse works too"),
    ("? q", "this help; quit"),
)
MEANING = (
    "● serving  ◐ waking  ◌ pending: waits for memory  ▼ deactivating: makes room  ○ sleeping: no GPU memory",
    "◇ converting, staging: not ready yet  ✕ failed  ⊘ cannot fit  ★ pinned  ░ other programs",
    "━ what is free for who waits, ╌ what is short, on the scale of the bar above",
)


class Confirm(ModalScreen[bool]):
    """Cancel has the focus; `y` is the only key that says yes at once."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n,q", "answer(False)", show=False),
        Binding("y", "answer(True)", show=False),
        Binding("left,right,h,l", "app.focus_next", show=False),
        Binding("c", "copy", show=False),
    ]

    def __init__(self, action: Action, view: View) -> None:
        super().__init__()
        self._action, self._view = action, view

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Panel("question")
            with Horizontal(id="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button(self._action.verb.capitalize(), id="yes", compact=True)
        yield Panel("keys")

    def on_mount(self) -> None:
        box = self.query_one("#box")
        box.styles.border_left = ("wide", self._view.palette.deactivating)
        self.query_one("#cancel").focus()
        self.call_after_refresh(self._paint)

    def on_resize(self) -> None:
        self.call_after_refresh(self._paint)

    def _paint(self) -> None:
        action, palette = self._action, self._view.palette
        panel = self.query_one("#question", Panel)
        width = panel.size.width
        title = Line(width)
        title.put(0, action.question, palette.strong, bold=True)
        at = width - len(self._view.state_text(action.row)) - 2 - (len(PINNED) + 10 if action.row.pinned else 0)
        if at > len(action.question) + 2:
            x = put_state(title, at, action.row, self._view)
            if action.row.pinned:
                title.put(x + 3, f"{PINNED} pinned", palette.text)
        lines = [title, Line(width)]
        for name, text in (*action.facts, ("", ""), ("Same as", action.command)):
            for number, part in enumerate(wrap(text, max(width - 13, 8), 3)):
                line = Line(width)
                line.put(0, name if number == 0 else "", palette.dim)
                line.put(13, part, palette.text)
                lines.append(line)
        panel.styles.height = len(lines)
        panel.show(lines)
        hints = [
            KeyHint("enter", "cancel", action="screen.answer(False)"),
            KeyHint("y", action.verb, action="screen.answer(True)"),
            KeyHint("← →", "choose", action="app.focus_next"),
            KeyHint("c", "copy the command", action="screen.copy"),
            KeyHint("esc", "cancel", action="screen.answer(False)"),
        ]
        line, spots = footer(self.size.width, hints, self._view)
        self.query_one("#keys", Panel).show([line], spots)

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._action.command)
        self.notify("copied")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class Help(ModalScreen[None]):
    """The keys and what the signs mean."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss", show=False)]

    def compose(self) -> ComposeResult:
        keys = "\n".join(f"[b]{key:<9}[/b] {text}" for key, text in HELP)
        with Vertical(id="box"):
            yield Static("[b]Keys[/b]\n\n" + keys + "\n\n[b]Signs[/b]\n\n" + "\n".join(MEANING))

    async def action_dismiss(self, result: None = None) -> None:
        self.dismiss(None)
