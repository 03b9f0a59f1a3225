"""A conversation with a model: its answer as it streams, and before that its wake as it happens."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Input

from greenthread.chat import Kind, Piece
from greenthread.kube.errors import KubeError
from greenthread.snapshot import ModelRow
from greenthread.units import short_duration
from tui import facts
from tui.cells import Line
from tui.facts import KeyHint
from tui.page import Page
from tui.speaker import Speaker
from tui.text import Piece as Words
from tui.text import flow
from tui.theme import Palette
from tui.view import View
from tui.wakes import Key
from tui.widgets import Lines, Panel, set_height

KEPT = 200
"""Messages kept."""
LONGEST = 200_000
"""Characters shown of one answer."""
_MARKS = re.compile(r"(\*\*[^*\n]+\*\*|`[^`\n]+`)")
_WORDS = {"waiting": "waits for its turn"}
"""What the gateway says meanwhile, for people."""


@dataclass
class Said:
    """One message; `after`: what is told of it when it is over."""

    role: str
    text: str = ""
    thinking: str = ""
    after: str = ""
    bad: bool = False


class Conversation(Page):
    """Enter sends, esc stops the answer or leaves. Closing the page ends what is under way."""

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("enter", "send; requests wait while the model wakes"),
        ("esc", "stop the answer; again: back"),
        ("pgup pgdn", "scroll"),
        ("ctrl+n", "begin a new conversation"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("pageup", "scroll(-1)", show=False, priority=True),
        Binding("pagedown", "scroll(1)", show=False, priority=True),
        Binding("ctrl+n", "anew", show=False, priority=True),
    ]

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.identity = ("chat", key)
        self._key = key
        self._said: deque[Said] = deque(maxlen=KEPT)
        self._come: deque[tuple[int, Piece | KubeError | None]] = deque()
        self._speaker: Speaker | None = None
        self._asked = 0
        self._answering = False
        self._began = self._first = 0.0
        self._hint = ""
        self._title, self._wake, self._text = Panel("title"), Panel("wake"), Lines("conversation")
        self._input = Input(id="say-text", compact=True, placeholder="ask something")

    def body(self) -> Iterable[Widget]:
        for part in (self._title, self._text, self._wake):
            part.add_class("body")
        self._text.can_focus = False
        return (self._title, self._text, self._wake, Horizontal(Panel("say-sign"), self._input, id="say"))

    def focus_body(self) -> None:
        self.set_focus(self._input)

    def on_mount(self) -> None:
        super().on_mount()
        self.set_interval(0.05, self._take)

    def on_unmount(self) -> None:
        self._stop()

    @property
    def selected(self) -> Key | None:
        return self._key

    def copied(self) -> str:
        return next((said.text for said in reversed(self._said) if said.role == "assistant"), "")

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        return [
            KeyHint("enter", "send", not self._answering),
            KeyHint("esc", "stop" if self._answering else "back", True, "screen.back"),
            KeyHint("pgup pgdn", "scroll"),
            KeyHint("ctrl+n", "new", bool(self._said), "screen.anew"),
        ]

    def common_hints(self) -> list[KeyHint]:
        return []  # these keys are text here

    def _now(self) -> float:
        return self.dashboard.data.clock.now().timestamp()

    def draw(self, view: View, height: int) -> None:
        width, palette = self.size.width, view.palette
        gap = int(height > 12)
        row = view.snapshot.model(*self._key)
        title = Line(width)
        x = title.put(1, "chat › ", palette.dim)
        if row is None:
            title.put(x, f"{self._key[1]} is not there any more", palette.dim)
        else:
            title.paste(0, facts.summary(row, view, width))
            title.put(1, "chat   › ", palette.dim)
        waits = self._answering and not self._first
        set_height(self._title, 1, gap)
        set_height(self._text, max(height - 2 - 2 * gap - 2 * waits, 1), gap)
        set_height(self._wake, int(waits), 1)
        self._title.show([title])
        self._wake.show(facts.wake_lines(width, 1, view, self._key))
        sign = Line(3, palette.selected)
        sign.put(1, "›", palette.strong, bold=True)
        self.query_one("#say-sign", Panel).show([sign])
        lines = self._lines(view, self._text.room)
        end = self._text.at_end
        self._text.show(len(lines), lines.__getitem__)
        if end:
            self.call_after_refresh(self._text.scroll_end, animate=False, immediate=True)

    def _lines(self, view: View, width: int) -> list[Line]:
        palette = view.palette
        lines: list[Line] = []
        if not self._said:
            row = view.snapshot.model(*self._key)
            lines += flow([Words("Nothing was said yet.", palette.dim)], width, 0)
            if row is not None:
                text = facts.first_words(row, view)
                lines += flow([Words(text, palette.dim)], width, 0) if text else []
            return lines
        for said in self._said:
            you = said.role == "user"
            who = Line(width)
            name = "you" if you else view.name(self._key)
            who.put(1, name, palette.dim if you else palette.strong, bold=True)
            lines.append(who)
            for text in said.thinking.splitlines():
                lines += flow([Words(f"  {text}", palette.dim)], width, 2)
            for pieces in marked(said.text, palette):
                lines += flow([Words("  ", ""), *pieces], width, 2)
            if said.after:
                lines += flow([Words(f"  {said.after}", palette.failed if said.bad else palette.dim)], width, 2)
            lines.append(Line(width))
        if self._answering and not self._first:
            waited = short_duration(self._now() - self._began)
            lines.insert(len(lines) - 1, Line(width))
            lines[-2].put(3, f"{self._hint or 'asked'} {waited}", palette.dim)
        return lines

    @on(Input.Submitted, "#say-text")
    def _sent(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        if not text or self._answering:
            return
        self._input.value = ""
        self._said.append(Said("user", text))
        messages = [{"role": said.role, "content": said.text} for said in self._said if said.text and not said.bad]
        self._said.append(Said("assistant"))
        self._asked += 1
        self._answering, self._began, self._first, self._hint = True, self._now(), 0.0, ""
        # a thread of its own, which ends with the program: a pool's would keep it waiting for an answer
        threading.Thread(target=self._ask, args=(self._asked, messages), daemon=True).start()
        self.again()

    def _ask(self, number: int, messages: Sequence[dict[str, str]]) -> None:
        """In a thread: what comes is taken by `_take`."""
        try:
            if self._speaker is None:
                if self.dashboard.speaker is None:
                    raise KubeError("this dashboard knows no way to the models")
                self._speaker = self.dashboard.speaker(self._key)
            for piece in self._speaker.ask(messages):
                if number != self._asked:
                    return
                self._come.append((number, piece))
            self._come.append((number, None))
        except KubeError as error:
            self._come.append((number, error))

    def _take(self) -> None:
        """Shows what came, many pieces at once."""
        if not self._come:
            if self._answering and self.is_current:
                self.again()
            return
        while self._come:
            number, piece = self._come.popleft()
            if number == self._asked and self._answering:
                self._put(piece)
        if self.is_current:
            self.again()

    def _put(self, piece: Piece | KubeError | None) -> None:
        answer = self._said[-1]
        if isinstance(piece, KubeError):
            answer.after, answer.bad = str(piece), True
            self._answering = False
        elif piece is None:
            self._answering = False
            answer.after = answer.after or "stopped"
        elif piece.kind is Kind.COMMENT:
            self._hint = _WORDS.get(piece.text, piece.text)[:100]
        elif piece.kind is Kind.END:
            answer.after = self._told(piece)
        elif piece.kind in (Kind.TEXT, Kind.THINKING):
            self._first = self._first or self._now()
            if piece.kind is Kind.TEXT and len(answer.text) < LONGEST:
                answer.text += piece.text
            elif len(answer.thinking) < LONGEST:
                answer.thinking += piece.text

    def _told(self, piece: Piece) -> str:
        """first token after 540ms, 112 tokens in 2.1s"""
        now = self._now()
        first = f"first token after {short_duration((self._first or now) - self._began)}"
        count = (piece.usage or {}).get("completion_tokens")
        rest = now - (self._first or now)
        speed = f", {count} tokens in {short_duration(rest)}" if count else ""
        ended = "" if piece.text in ("", "stop") else f", ended by {piece.text}"
        return first + speed + ended

    def _stop(self) -> None:
        if self._answering and self._speaker is not None:
            self._speaker.stop()
        if self._answering:
            self._said[-1].after = "stopped"
        self._answering = False
        self._asked += 1

    async def action_back(self) -> None:
        if self._answering:
            self._stop()
            self.again()
        else:
            await super().action_back()

    def action_anew(self) -> None:
        self._stop()
        self._said.clear()
        self.again()

    def action_scroll(self, by: int) -> None:
        self._text.scroll_page_down(animate=False) if by > 0 else self._text.scroll_page_up(animate=False)


def marked(text: str, palette: Palette) -> list[list[Words]]:
    """Lines of Markdown: headings and **words** bold, `code` and fenced blocks in another colour."""
    lines: list[list[Words]] = []
    code = palette.occupants[3][1]
    fenced = False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            lines.append([Words(line, palette.faint)])
        elif fenced:
            lines.append([Words(line, code)])
        elif line.startswith("#") and line.lstrip("#").startswith(" "):
            lines.append([Words(line.lstrip("# "), palette.strong, True)])
        else:
            pieces = []
            for part in _MARKS.split(line):
                if part.startswith("**") and part.endswith("**") and len(part) > 4:
                    pieces.append(Words(part[2:-2], palette.strong, True))
                elif part.startswith("`") and part.endswith("`") and len(part) > 2:
                    pieces.append(Words(part[1:-1], code))
                elif part:
                    pieces.append(Words(part, palette.text))
            lines.append(pieces)
    return lines
