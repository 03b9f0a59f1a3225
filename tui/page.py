"""What every page has: header, message, body, a line to type a filter or command in, footer with the keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.events import Resize, ScreenResume
from textual.screen import Screen
from textual.widget import Widget

from greenthread.snapshot import ModelRow
from tui import facts
from tui.facts import KeyHint
from tui.prompt import Prompt
from tui.view import View
from tui.wakes import Key
from tui.widgets import Lines, Panel, Table, set_height

if TYPE_CHECKING:
    from tui.app import Dashboard


class Page(Screen[None]):
    """Subclasses give `body` and `draw`; `selected` is what the keys act on."""

    #: Keys of this page alone, for the help: (keys, what they do).
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = ()
    #: What a filter is matched with, for the empty prompt; "": this page has none.
    FILTER: ClassVar[str] = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.next_page(1)", show=False),
        Binding("shift+tab", "app.next_page(-1)", show=False),
        Binding("escape", "back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        #: Tells whether two pages show the same thing.
        self.identity: tuple[object, ...] = (self,)
        #: The filter.
        self.words = ""
        self._view: View | None = None
        self._stale = False
        self._header, self._trouble = Panel("header"), Panel("trouble")
        self._candidates, self._footer = Panel("candidates"), Panel("footer")
        self.prompt = Prompt()
        self._line = Horizontal(Panel("mode"), self.prompt, id="line")

    @property
    def dashboard(self) -> Dashboard:
        return cast("Dashboard", self.app)

    # what a page is

    def body(self) -> Iterable[Widget]:
        """The widgets between header and footer; the first that can have the focus gets it."""
        raise NotImplementedError

    def draw(self, view: View, height: int) -> None:
        """Paints the body, which has `height` rows."""
        raise NotImplementedError

    @property
    def selected(self) -> Key | None:
        """The model that the keys act on."""
        return None

    @property
    def selected_gpu(self) -> str | None:
        """Name of the GPU object that the keys act on where no model is selected."""
        return None

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        """The keys that apply here, for the footer."""
        return self.model_hints(row)

    def acted_on(self, verb: str) -> Key | None:
        """The model that a key acts on: the selected one, if the page does not say otherwise."""
        return self.selected

    def copied(self) -> str:
        """What `c` copies."""
        return self.selected[1] if self.selected else self.selected_gpu or ""

    # what pages share

    def compose(self) -> ComposeResult:
        yield from (self._header, self._trouble, *self.body())
        with Vertical(id="bottom"):
            yield from (self._candidates, self._line, self._footer)

    def on_mount(self) -> None:
        self._candidates.display = self._line.display = False
        self.focus_body()

    def focus_body(self) -> None:
        """Keys go to the body."""
        self.set_focus(next((lines for lines in self.query(Lines) if lines.display), None))

    def model_rows(self, view: View) -> list[ModelRow]:
        """The models of the namespace that is looked at."""
        namespace = self.dashboard.namespace
        return [row for row in view.snapshot.models if namespace in (None, row.namespace)]

    def model_hints(self, row: ModelRow | None) -> list[KeyHint]:
        """`enter` and the keys that act on a model."""
        hints = [KeyHint("enter", "detail", row is not None, "screen.open")]
        if not self.dashboard.readonly:
            hints += facts.action_hints(row if self.dashboard.acts else None)
        return [*hints, KeyHint("l", "logs", row is not None and bool(row.replicas), "app.logs")]

    def show(self, view: View) -> None:
        """Paints what changed."""
        self._view = view
        width, height = self.size
        if not width or not self._footer.is_attached:
            return
        trouble = facts.trouble(width, view)
        set_height(self._trouble, len(trouble))
        self._header.show([facts.header(width, view, self.dashboard.readonly, self.dashboard.namespace)])
        self._trouble.show(trouble)
        taken = 2 + len(trouble) + self._line.display + self._candidates.display
        self.draw(view, max(height - taken, 1))
        self.show_keys()
        stale = view.link.state == "lost"
        if stale != self._stale:
            self._stale = stale
            self.query(".body").set_class(stale, "-stale")

    def again(self) -> None:
        """Paints what was last seen, as after a key."""
        if self._view is not None:
            self.show(self._view)

    def draw_selected(self) -> None:
        """Another row is selected: paints what that changes outside of the table."""
        self.again()

    def show_keys(self) -> None:
        """The footer."""
        view = self._view
        if view is None or not self._footer.is_attached:
            return
        row = view.snapshot.model(*self.selected) if self.selected is not None else None
        typing = self.focused is self.prompt
        hints = self.prompt.hints() if typing else [*self._time(view), *self.hints(view, row), *self.common_hints()]
        line, spots = facts.footer(self.size.width, hints, view)
        self._footer.show([line], spots)

    def _time(self, view: View) -> list[KeyHint]:
        """The keys that lead through time, while it shows a moment that is over."""
        if view.then is None:
            return []
        return [
            KeyHint("[ ]", "step", True, "app.time(-1)"),
            KeyHint("{ }", "1m", True, "app.time(-1, 'minute')"),
            KeyHint("space", "stop" if view.then.speed else "play", True, "app.play"),
            KeyHint("end", "end" if view.then.replay else "now", True, "app.now"),
        ]

    def common_hints(self) -> list[KeyHint]:
        """The keys of every page."""
        hints = [KeyHint("/", "filter", True, "app.filter")] if self.FILTER else []
        if after := self.dashboard.page_after(1):
            hints.append(KeyHint("tab", after, True, "app.next_page(1)"))
        return [
            *hints,
            KeyHint(":", "command", True, "app.command"),
            KeyHint("?", "help", True, "app.help"),
            KeyHint("q", "quit", True, "app.quit"),
        ]

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self.again)

    def on_screen_resume(self, event: ScreenResume) -> None:
        self.dashboard.paint()

    @on(Lines.Resized)
    def _resized(self) -> None:
        self.again()

    @on(Table.Moved)
    def _moved(self) -> None:
        self.draw_selected()

    @on(Table.Opened)
    def _opened(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Enter: the selected model in detail."""
        if self.selected is not None:
            self.dashboard.open_model(self.selected)

    async def action_back(self) -> None:
        """Esc: forgets the filter, else the page before."""
        if self.words:
            self.set_words("")
        else:
            await self.dashboard.action_back()

    # filter and commands

    def ask(self, mode: str, text: str = "") -> None:
        """Opens the line at the bottom: "/" for a filter, ":" for a command."""
        hint = f"words in {self.FILTER}" if mode == "/" else "gpus, models, wake NAME, chat NAME, …"
        self.prompt.past = self.dashboard.past_commands
        self.prompt.open(mode, self.words if mode == "/" else text, hint)
        self._line.display = True
        self.set_focus(self.prompt)
        self._suggest()
        self.again()

    def set_words(self, words: str) -> None:
        """Sets the filter."""
        self.words = words
        self._close_prompt()

    def _close_prompt(self) -> None:
        """A filter stays in sight."""
        self.prompt.open("/", self.words, "")
        self._line.display, self._candidates.display = bool(self.words), False
        self.focus_body()
        self.again()

    def _suggest(self) -> None:
        """The commands that what is typed may become."""
        prompt, view = self.prompt, self._view
        if not prompt.completed:
            prompt.found = self.dashboard.completions(prompt.value) if prompt.mode == ":" else ()
            prompt.chosen = -1
        self._candidates.display = bool(prompt.found) and view is not None
        if view is None:
            return
        self.query_one("#mode", Panel).show([facts.mode(prompt.mode, view)])
        if prompt.found:
            self._candidates.show([facts.candidates(self.size.width, prompt.found, prompt.chosen, view)])

    @on(Prompt.Changed)
    def _typed(self, event: Prompt.Changed) -> None:
        event.stop()
        if self.focused is not self.prompt:
            return
        if self.prompt.mode == "/":
            self.words = event.value.strip()
        self._suggest()
        self.again()

    @on(Prompt.Submitted)
    def _typed_out(self, event: Prompt.Submitted) -> None:
        event.stop()
        mode, text = self.prompt.mode, event.value.strip()
        self._close_prompt()
        if mode == ":" and text:
            self.dashboard.run_command(text)

    @on(Prompt.Left)
    def _left(self) -> None:
        if self.prompt.mode == "/":
            self.words = ""
        self._close_prompt()
