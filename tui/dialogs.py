"""Dialogs: confirm what disturbs something running, and help."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button

from tui import commands
from tui.actions import Action
from tui.cells import Line, cut, wrap
from tui.facts import KeyHint, footer
from tui.page import Page
from tui.pages import PAGES
from tui.theme import PINNED
from tui.travel import KEYS
from tui.view import View, put_state
from tui.widgets import Lines, Panel

ACTING = (
    ("w", "wake it"),
    ("s", "put it to sleep: requests in flight finish first"),
    ("p", "pin it, or unpin it: a pinned model is never preempted"),
    ("x", "preempt it: it makes room for whoever waits"),
)
MEANING = (
    ("● ◐", "serving; waking: its memory is claimed, the engine takes it"),
    ("◌ ▼", "pending: waits for memory; deactivating: makes room"),
    ("○ ◇", "sleeping: no GPU memory; staging, converting: not ready yet"),
    ("✕ ⊘ ★", "failed; cannot fit even if all that may leave left; pinned"),
    ("░", "memory of other programs"),
    ("━ ╌", "what is free for who waits, what is short, on the scale of the bar above"),
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
        colour = self._view.palette.deactivating
        box.styles.border_left = ("wide", colour) if getattr(self.app, "glyphs", None) is None else ("ascii", colour)
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
    """The keys of the page under it and of all pages, the commands, and what the signs mean."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss", show=False)]

    def __init__(self, page: Page) -> None:
        super().__init__()
        self._page = page

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Lines("help")

    def on_mount(self) -> None:
        self.query_one(Lines).focus()
        self.call_after_refresh(self._paint)

    def on_resize(self) -> None:
        self.call_after_refresh(self._paint)

    def _paint(self) -> None:
        panel = self.query_one(Lines)
        width = min(self.size.width, 112) - 6
        lines = help_lines(self._page, width)
        panel.styles.height = min(len(lines), self.size.height - 2)
        panel.show(len(lines), lines.__getitem__)

    async def action_dismiss(self, result: None = None) -> None:
        self.dismiss(None)


def help_lines(page: Page, width: int) -> list[Line]:
    """What can be done on a page."""
    dashboard, palette = page.dashboard, page.dashboard.palette
    keys = [*page.KEYS, *((("/", f"filter by words in {page.FILTER}; esc forgets it"),) if page.FILTER else ())]
    tabs = " → ".join(PAGES)
    general = [
        ("enter d", "the selected one in detail; esc comes back"),
        *(ACTING if dashboard.acts else ()),
        ("l y c", "logs, YAML, copy the name (or what is shown)"),
        *((("a", "ask it something: a chat"),) if dashboard.acts else ()),
        ("tab", f"the next page: {tabs}"),
        (" ".join(entry.key for entry in PAGES.values() if entry.key),
         "straight to " + ", ".join(entry.name for entry in PAGES.values() if entry.key)),
        ("0 1-9", "models of all namespaces, of one (the most used first)"),
        (":", "a command; tab completes it"),
        ("? q", "this help; quit"),
    ]  # fmt: skip
    parts = [
        (f"Keys of {page.identity[0]}", keys),
        ("Keys everywhere", general),
        ("Time", KEYS),
        ("Commands", [(f":{c.usage}", c.what) for c in commands.commands(dashboard.acts).values()]),
        ("Signs", MEANING),
    ]
    lines: list[Line] = []
    for title, rows in parts:
        if not rows:
            continue
        if lines:
            lines.append(Line(width))
        lines.append(Line(width))
        lines[-1].put(0, title, palette.strong, bold=True)
        left = min(max(len(key) for key, _ in rows) + 3, width // 3)
        for key, text in rows:
            for number, part in enumerate(wrap(text, max(width - left, 8), 3)):
                line = Line(width)
                if number == 0:
                    line.put(0, cut(key, left - 1), palette.text, bold=True)
                line.put(left, part, palette.dim)
                lines.append(line)
    return lines
