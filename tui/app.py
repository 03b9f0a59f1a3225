"""The terminal program: what it shows, what keys and commands do, when it paints."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.actions import SkipAction
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme
from textual.widgets import Input

from greenthread.kube.errors import KubeError
from greenthread.snapshot import ModelRow, Shown, Snapshot
from tui import commands
from tui.actions import ACTION_KEYS, Action, action, why_not
from tui.data import ClusterData, Link
from tui.known import Known
from tui.page import Page
from tui.pages import FIRST, PAGES
from tui.speaker import Speaker
from tui.theme import PLAIN, THEMES, Colours, Palette
from tui.then import Moment
from tui.travel import Travel
from tui.view import View, holders
from tui.wakes import Key

if TYPE_CHECKING:
    from tui.measures import Chart

Measured = Callable[[float, float, float], "list[Chart]"]
"""Charts from a time to a time (seconds since 1970), with the bytes of all GPUs."""
TENTHS = timedelta(seconds=10)
FEW_GPUS = 32
"""As many at most have a colour for each model around a moment that is over, not only for those of that moment."""
FRAME = 0.1
"""Seconds between two looks at whether something is to be painted."""
SETTLED = 5.0
"""Seconds after the start when the cluster is known."""
_MOVING = (Shown.WAKING, Shown.CONVERTING, Shown.PENDING, Shown.DEACTIVATING)


class Dashboard(App[None]):
    """Paints what changed, at most every `FRAME`; while nothing moves, once a second."""

    CSS_PATH = Path(__file__).with_name("app.tcss")
    ENABLE_COMMAND_PALETTE = False
    TITLE = "GreenThread"
    BINDINGS: ClassVar[list[BindingType]] = [
        # first of all, so that keys that come with them in one go are typed into the line that they open
        Binding("slash", "filter", show=False, priority=True),
        Binding("colon", "command", show=False, priority=True),
        Binding("question_mark", "help", show=False),
        Binding("q,ctrl+c,ctrl+q", "quit", show=False, priority=False),
        *(Binding(key, f"act('{verb}')", show=False) for key, verb in ACTION_KEYS.items()),
        *(Binding(str(number), f"namespace({number})", show=False) for number in range(10)),
        *(Binding(entry.key, f"page('{entry.name}')", show=False) for entry in PAGES.values() if entry.key),
        Binding("d", "describe", show=False),
        Binding("l", "logs", show=False),
        Binding("y", "yaml", show=False),
        Binding("a", "chat", show=False),
        Binding("c", "copy", show=False),
        Binding("left_square_bracket", "time(-1)", show=False),
        Binding("right_square_bracket", "time(1)", show=False),
        Binding("left_curly_bracket", "time(-1, 'minute')", show=False),
        Binding("right_curly_bracket", "time(1, 'minute')", show=False),
        Binding("left_parenthesis", "time(-1, 'wake')", show=False),
        Binding("right_parenthesis", "time(1, 'wake')", show=False),
        Binding("space", "play", show=False),
        Binding("plus", "faster(1)", show=False),
        Binding("minus", "faster(-1)", show=False),
        Binding("end", "now", show=False, priority=True),
    ]

    def __init__(
        self,
        data: ClusterData,
        context: str = "",
        theme: str = "dark",
        readonly: bool = False,
        kubectl_flags: Sequence[str] = (),
        zone: tzinfo | None = None,
        ascii_only: bool = False,
        replay: bool = False,
        speaker: Callable[[Key], Speaker] | None = None,
        measured: Measured | None = None,
    ) -> None:
        """`kubectl_flags`: what makes the shown commands speak to the same cluster; `zone`: of times, None: local;

        `speaker`: finds the way to a model, for a chat; it may take its time, and raise KubeError.
        `measured`: the charts of a time, by Prometheus, as `tui.prometheus.Measured`; it may do the same.
        """
        self.palette = THEMES[theme]  # the style sheet asks for it at once
        super().__init__()
        self.data, self.readonly, self.speaker, self.measured = data, readonly, speaker, measured
        self.travel = Travel(data, only_past=replay)
        #: Only models of this namespace are shown; None: all.
        self.namespace: str | None = None
        #: What replaces signs that the terminal lacks; None: it has them.
        self.glyphs = PLAIN if ascii_only else None
        self.failure: BaseException | None = None
        self.past_commands: list[str] = []
        self._cluster, self._flags, self._zone = context, kubectl_flags, zone
        self._colours = Colours()
        self._second = 0
        self._not_before = 0.0
        self._moving = False
        for palette in THEMES.values():
            self.register_theme(_textual_theme(palette))
        self.theme = f"greenthread-{theme}"

    @property
    def acts(self) -> bool:
        """Whether the keys that change something work."""
        return not self.readonly and self.travel.past is None

    @property
    def known(self) -> Known:
        """The cluster at the moment that is shown."""
        return self.travel.past.known if self.travel.past is not None else self.data

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return _variables(self.palette)

    def get_default_screen(self) -> Screen[Any]:
        return PAGES[FIRST].make()

    def on_mount(self) -> None:
        # what is there from the start stays: to look through it for garbage, again and again, takes 100 ms
        self.set_timer(SETTLED, _freeze)
        self.run_worker(self._follow(), name="cluster")
        self.set_interval(FRAME, self._frame)

    async def _follow(self) -> None:
        """A fault of ours ends the program with its reason, never with half a screen."""
        try:
            await self.data.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.failure = error
            self.exit(return_code=1)
        finally:
            await self.data.client.close()

    # painting

    def _frame(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if began < self._not_before:
            return
        if self.data.notice:
            self.notify(self.data.notice, severity="error", timeout=30, markup=False)
            self.data.notice = ""
        second = int(self.data.clock.now().timestamp())
        changed = bool(self.data.take_changes()) and self.travel.past is None
        if self.travel.tick() or changed or self._moving or second != self._second:
            self._second = second
            self.paint()
            # keys come first: a large cluster that changes all the time takes a third of the time at most
            self._not_before = loop.time() + 2 * (loop.time() - began)

    def paint(self) -> None:
        """Shows the cluster as it is now on the page in sight."""
        page = self.page
        if page is not None:
            view = self.view()
            live = view.then is None and view.link.state == "live"
            self._moving = live and any(_moves(row, view) for row in view.snapshot.models)
            page.show(view)

    def view(self) -> View:
        travel, known = self.travel, self.known
        snapshot = known.snapshot()
        return View(
            snapshot=snapshot,
            data=known,
            link=self.data.link if travel.past is None else Link("live", None),
            then=None
            if travel.past is None
            else Moment(travel.past, travel.now, travel.only_past, travel.speed if travel.going else 0.0),
            palette=self.palette,
            colours=self._colours.assign(self._shown_holders(snapshot), len(self.palette.occupants)),
            context=self._cluster,
            zone=self._zone,
        )

    def _shown_holders(self, snapshot: Snapshot) -> list[Key]:
        """The models that hold memory, and around a moment that is over those that did then."""
        found = holders(snapshot)
        if self.travel.past is not None and len(snapshot.gpus) <= FEW_GPUS:
            tracks = self.travel.past.tracks().of.values()
            found += (key for track in tracks for held in track for key, _ in held.models)
        return list(dict.fromkeys(found))

    # time

    def action_time(self, by: int, to: str = "change") -> None:
        """To the next (1) or last (-1) change, minute or wake."""
        if said := self.travel.step(by, to):
            self.notify(said, markup=False)
        self.paint()

    def action_now(self) -> None:
        """Back to now."""
        if self.travel.past is None or isinstance(self.focused, Input):
            raise SkipAction
        self.travel.leave()
        self.paint()

    def action_play(self) -> None:
        """Lets the past go on, or stops it."""
        self.travel.toggle()
        self.paint()

    def action_faster(self, by: int) -> None:
        """Lets the past go on faster (1) or slower (-1)."""
        if self.travel.past is not None:
            self.travel.faster(by)
            self.paint()

    # pages

    @property
    def page(self) -> Page | None:
        """The page in sight, maybe under a dialog."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, Page)), None)

    def goto(self, page: Page) -> None:
        """Opens a page; one that is open already, under others, comes up again."""
        depths = [at for at, screen in enumerate(self.screen_stack)
                  if isinstance(screen, Page) and screen.identity == page.identity]  # fmt: skip
        if not depths:
            self.push_screen(page)
            return
        while len(self.screen_stack) > depths[-1] + 1:
            self.pop_screen()

    def page_after(self, by: int) -> str:
        """The page that `tab` leads to."""
        names = list(PAGES)
        page = self.page
        name = str(page.identity[0]) if page is not None else FIRST
        return names[(names.index(name) + by) % len(names)] if name in names else FIRST

    def action_next_page(self, by: int) -> None:
        self.action_page(self.page_after(by))

    def action_page(self, name: str) -> None:
        self.goto(PAGES[name].make())

    def action_sort_models(self, title: str) -> None:
        """The models by a column, on a page of their own: the first page keeps its order, so that nothing jumps."""
        from tui.models import Models

        self.action_page("models")
        page = self.page
        if isinstance(page, Models):
            page.action_sort(title)

    async def action_back(self) -> None:
        if len(self.screen_stack) > 1:
            await self.pop_screen()

    def open_model(self, key: Key) -> None:
        """All of one model."""
        from tui.detail import Detail

        self.goto(Detail(key))

    def open_gpu(self, name: str) -> None:
        """All of one GPU."""
        from tui.gpus import OneGpu

        self.goto(OneGpu(name))

    def open_logs(self, key: Key, container: str = "engine") -> None:
        """What a model's engine or sidecar writes."""
        from tui.logs import Logs

        self.goto(Logs(key, container))

    def open_yaml(self, kind: str, key: Key) -> None:
        """A Model or GPU ("model", "gpu") as the API has it."""
        from tui.objects import Yaml

        self.goto(Yaml(kind, key))

    def open_chat(self, key: Key) -> None:
        """A conversation with a model."""
        from tui.chat import Conversation

        if self.acts:
            self.goto(Conversation(key))
        else:
            self.notify("to ask a model something would wake it: actions are off here", severity="warning")

    def action_chat(self) -> None:
        if self.page is not None and self.page.selected is not None:
            self.open_chat(self.page.selected)

    def action_logs(self) -> None:
        if self.page is not None and self.page.selected is not None:
            self.open_logs(self.page.selected)

    def action_yaml(self) -> None:
        page = self.page
        if page is not None and page.selected is not None:
            self.open_yaml("model", page.selected)
        elif page is not None and page.selected_gpu is not None:
            self.open_yaml("gpu", ("", page.selected_gpu))

    def action_describe(self) -> None:
        if self.page is not None:
            self.page.action_open()

    def action_help(self) -> None:
        if self.page is not None:
            from tui.dialogs import Help

            self.push_screen(Help(self.page))

    def action_filter(self) -> None:
        page = self._page_for_prompt()
        if not page.FILTER:
            raise SkipAction
        page.ask("/")

    def action_command(self) -> None:
        self._page_for_prompt().ask(":")

    def _page_for_prompt(self) -> Page:
        """The page in sight, unless these keys are text just now."""
        if not isinstance(self.screen, Page) or isinstance(self.focused, Input):
            raise SkipAction
        return self.screen

    def action_copy(self) -> None:
        text = self.page.copied() if self.page is not None else ""
        if text:
            self.copy_to_clipboard(text)
            lines = text.count("\n")
            self.notify(f"{lines} lines" if lines else text, title="copied", markup=False)

    # namespaces and colours

    def namespaces(self) -> list[str]:
        """Of the models, the most used first."""
        return [name for name, _ in sorted(Counter(row.namespace for row in self.known.snapshot().models).items(),
                                           key=lambda item: (-item[1], item[0]))]  # fmt: skip

    def action_namespace(self, number: int) -> None:
        known = self.namespaces()
        if number > len(known):
            self.notify(f"there is no namespace {number}: 0 shows all, 1-{len(known)} one of them", severity="warning")
            return
        self.show_namespace(known[number - 1] if number else None)

    def show_namespace(self, name: str | None) -> None:
        """Only the models of one namespace; None: all."""
        self.namespace = name
        self.paint()

    def show_theme(self, name: str) -> None:
        """Other colours, at once."""
        self.palette = THEMES[name]
        self.theme = f"greenthread-{name}"
        self.paint()

    # commands

    def completions(self, text: str) -> list[str]:
        """Commands that `text` may become."""
        return commands.complete(text, self.acts, self._names())

    def _names(self) -> dict[str, list[str]]:
        snapshot = self.known.snapshot()
        models = [(row.namespace, row.name) for row in snapshot.models if self.namespace in (None, row.namespace)]
        several = len({namespace for namespace, _ in models}) > 1
        names = [f"{namespace}/{name}" if several else name for namespace, name in models]
        gpus = [row.gpu.name for row in snapshot.gpus]
        return {
            "model": names,
            "gpu": gpus,
            "object": [*names, *(f"gpu/{name}" for name in gpus)],
            "container": list(commands.CONTAINERS),
            "namespace": ["all", *self.namespaces()],
            "theme": list(THEMES),
        }

    def run_command(self, text: str) -> None:
        """Does what was typed after `:`."""
        self.past_commands = [*(old for old in self.past_commands if old != text), text][-50:]
        try:
            name, given = commands.read(text, self.acts)
            self._command(name, given)
        except commands.Unclear as error:
            self.notify(str(error), severity="warning", markup=False)

    def _command(self, name: str, given: list[str]) -> None:
        page, names = self.page, self._names()
        match name:
            case _ if name in PAGES:
                self.action_page(name)
            case "quit":
                self.exit()
            case "help":
                self.action_help()
            case "filter":
                if page is not None:
                    page.set_words(" ".join(given))
            case "theme":
                self.show_theme(commands.pick("theme", given[0], names["theme"]))
            case "ns" if self.known.namespace and given[0] != self.known.namespace:
                only = self.known.namespace
                raise commands.Unclear(f"only namespace {only} is watched: start with -A, or with -n {given[0]}")
            case "ns":
                wanted = commands.pick("namespace", given[0], names["namespace"])
                self.show_namespace(None if wanted == "all" else wanted)
            case "gpu":
                self.open_gpu(commands.pick("GPU", given[0], names["gpu"]))
            case "model":
                self.open_model(self._model(given))
            case "logs":
                self.open_logs(self._model(given), commands.pick("container", given[1], names["container"])
                               if len(given) > 1 else "engine")  # fmt: skip
            case "chat":
                self.open_chat(self._model(given))
            case "yaml" if given and given[0].removeprefix("gpu/") in names["gpu"]:
                self.open_yaml("gpu", ("", given[0].removeprefix("gpu/")))
            case "yaml" if not given and page is not None and page.selected is None and page.selected_gpu:
                self.open_yaml("gpu", ("", page.selected_gpu))
            case "yaml":
                self.open_yaml("model", self._model(given))
            case _:
                self.act(name, self._model(given))

    def _model(self, given: Sequence[str]) -> Key:
        """The model that a command means: the named, else the selected one. Raises Unclear."""
        page = self.page
        if not given:
            if page is None or page.selected is None:
                raise commands.Unclear("no model is selected: name one")
            return page.selected
        keys = {}
        for row in self.known.snapshot().models:
            keys[f"{row.namespace}/{row.name}"] = (row.namespace, row.name)
        if self.namespace is not None and f"{self.namespace}/{given[0]}" in keys:
            return (self.namespace, given[0])
        return keys[commands.pick("model", given[0], list(keys))]

    # acting

    def action_act(self, verb: str) -> None:
        """Acts on the selected model; asks first where something running is disturbed."""
        page = self.screen
        if self.acts and isinstance(page, Page) and (key := page.acted_on(verb)) is not None:
            self.act(verb, key)

    def act(self, verb: str, key: Key) -> None:
        """Does `verb` (of `tui.actions`) to a model, or asks first; "pin" unpins a pinned one."""
        view = self.view()
        row = view.snapshot.model(*key)
        if row is None:
            return
        if verb == "pin" and row.pinned:
            verb = "unpin"
        if refusal := why_not(verb, row):
            self.notify(refusal, severity="warning", markup=False)
            return
        wanted = action(verb, row, view, self._flags)
        if not wanted.question:
            self.run_worker(self._carry_out(wanted))
            return

        def answered(yes: bool | None) -> None:
            if yes:
                # the time of a wish is that of the answer
                self.run_worker(self._carry_out(action(verb, _newest(self, row), self.view(), self._flags)))

        from tui.dialogs import Confirm

        self.push_screen(Confirm(wanted, view), answered)

    async def _carry_out(self, wanted: Action) -> None:
        try:
            await self.data.patch_model((wanted.row.namespace, wanted.row.name), wanted.body)
        except KubeError as error:
            self.notify(str(error), title=f"{wanted.row.name} was left as it is", severity="error", markup=False)
            return
        self.notify(wanted.command, title=wanted.done, markup=False)
        self.paint()


def _moves(row: ModelRow, view: View) -> bool:
    """Whether its numbers change many times a second: older times are told in whole seconds."""
    return row.state in _MOVING and (row.since is None or view.now - row.since < TENTHS)


def _newest(app: Dashboard, row: ModelRow) -> ModelRow:
    return app.data.snapshot().model(row.namespace, row.name) or row


def _freeze() -> None:
    gc.collect()
    gc.freeze()


def _variables(palette: Palette) -> dict[str, str]:
    return {
        f"gt-{name}": getattr(palette, name) for name in ("back", "panel", "selected", "text", "strong", "dim", "faint")
    }


def _textual_theme(palette: Palette) -> Theme:
    return Theme(
        name=f"greenthread-{palette.name}",
        primary=palette.serving,
        secondary=palette.waking,
        warning=palette.strong,  # amber means that somebody waits
        error=palette.failed,
        success=palette.serving,
        foreground=palette.text,
        background=palette.back,
        surface=palette.panel,
        panel=palette.panel,
        dark=palette.dark,
        variables=_variables(palette),
    )
