"""The terminal program: `live` and `dashboard`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from datetime import tzinfo
from typing import Any, ClassVar

import click
from textual.app import App
from textual.binding import Binding, BindingType
from textual.theme import Theme

from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from greenthread.kube.errors import KubeError
from greenthread.snapshot import ModelRow, Shown
from tui.actions import Action, action, why_not
from tui.data import ClusterData
from tui.detail import Detail
from tui.dialogs import Confirm, Help
from tui.overview import Overview
from tui.theme import THEMES, Colours, Palette
from tui.view import View, holders

FRAME = 0.1
"""Seconds between two looks at whether something is to be painted."""
_MOVING = (Shown.WAKING, Shown.CONVERTING, Shown.PENDING, Shown.DEACTIVATING)


class Dashboard(App[None]):
    """Paints what changed, at most every `FRAME`; while nothing moves, once a second."""

    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    TITLE = "GreenThread"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c,ctrl+q", "quit", show=False, priority=False),
        Binding("question_mark", "help", show=False),
    ]

    def __init__(
        self,
        data: ClusterData,
        context: str = "",
        theme: str = "dark",
        readonly: bool = False,
        kubectl_flags: Sequence[str] = (),
        zone: tzinfo | None = None,
    ) -> None:
        """`kubectl_flags`: what makes the shown commands speak to the same cluster; `zone`: of times, None: local."""
        self.palette = THEMES[theme]  # the style sheet asks for it at once
        super().__init__()
        self.data, self.readonly = data, readonly
        self.failure: BaseException | None = None
        self._cluster, self._flags, self._zone = context, kubectl_flags, zone
        self._colours = Colours()
        self._second = 0
        self._not_before = 0.0
        self._moving = False
        self.register_theme(_textual_theme(self.palette))
        self.theme = f"greenthread-{theme}"

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return _variables(self.palette)

    def on_mount(self) -> None:
        self.push_screen(Overview(self.readonly))
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

    def _frame(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if began < self._not_before:
            return
        second = int(self.data.clock.now().timestamp())
        if self.data.take_changes() or self._moving or second != self._second:
            self._second = second
            self.paint()
            # keys come first: a large cluster that changes all the time takes a third of the time at most
            self._not_before = loop.time() + 2 * (loop.time() - began)

    def paint(self) -> None:
        """Shows the cluster as it is now on the screens in sight."""
        view = self.view()
        self._moving = any(row.state in _MOVING for row in view.snapshot.models) and view.link.state == "live"
        for screen in reversed(self.screen_stack):
            if isinstance(screen, Overview | Detail):
                screen.show(view)
                break

    def view(self) -> View:
        snapshot = self.data.snapshot()
        return View(
            snapshot=snapshot,
            data=self.data,
            link=self.data.link,
            palette=self.palette,
            colours=self._colours.assign(holders(snapshot), len(self.palette.occupants)),
            context=self._cluster,
            zone=self._zone,
        )

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_act(self, verb: str) -> None:
        """Acts on the selected model; asks first where something running is disturbed."""
        screen = self.screen
        if self.readonly or not isinstance(screen, Overview | Detail) or screen.selected is None:
            return
        view = self.view()
        row = view.snapshot.model(*screen.selected)
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

        self.push_screen(Confirm(wanted, view), answered)

    async def _carry_out(self, wanted: Action) -> None:
        try:
            await self.data.patch_model((wanted.row.namespace, wanted.row.name), wanted.body)
        except KubeError as error:
            self.notify(str(error), title=f"{wanted.row.name} was left as it is", severity="error", markup=False)
            return
        self.notify(wanted.command, title=wanted.done, markup=False)
        self.paint()


def _newest(app: Dashboard, row: ModelRow) -> ModelRow:
    return app.data.snapshot().model(row.namespace, row.name) or row


def _variables(palette: Palette) -> dict[str, str]:
    return {
        f"gt-{name}": getattr(palette, name) for name in ("back", "panel", "selected", "text", "strong", "dim", "faint")
    }


def _textual_theme(palette: Palette) -> Theme:
    return Theme(
        name=f"greenthread-{palette.name}",
        primary=palette.serving,
        secondary=palette.waking,
        warning=palette.pending,
        error=palette.failed,
        success=palette.serving,
        foreground=palette.text,
        background=palette.back,
        surface=palette.panel,
        panel=palette.panel,
        dark=palette.dark,
        variables=_variables(palette),
    )


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--readonly", is_flag=True, help="Show only; the keys that act are off."),
        click.option("--theme", type=click.Choice(list(THEMES)), default="dark", show_default=True, help="Colours."),
        click.option("--user", metavar="NAME", help="User of the kubeconfig to act as."),
        click.option("--cluster", metavar="NAME", help="Cluster of the kubeconfig to speak to."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig to use."),
        click.option("--kubeconfig", metavar="FILE", help="Kubeconfig file to use instead of $KUBECONFIG."),
        click.option("-A", "--all-namespaces", is_flag=True, help="Models of all namespaces (the default)."),
        click.option("-n", "--namespace", metavar="NAME", help="Only the models of this namespace."),
    ):
        function = option(function)
    return function


def _run(
    namespace: str | None,
    all_namespaces: bool,
    kubeconfig: str | None,
    context: str | None,
    cluster: str | None,
    user: str | None,
    theme: str,
    readonly: bool,
) -> int:
    """Until the user quits. KubeError when the kubeconfig cannot be used."""
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):  # Textual paints on stderr
        raise click.ClickException("this needs a terminal; `top` prints the same once")
    config = load_config(kubeconfig, context, cluster, user)
    given = {"kubeconfig": kubeconfig, "context": context, "cluster": cluster, "user": user}
    data = ClusterData(AsyncClient(config), None if all_namespaces else namespace, namespace or config.namespace)
    app = Dashboard(
        data,
        config.context or config.server,
        theme,
        readonly,
        [f"--{name}={value}" for name, value in given.items() if value],
    )
    app.run()
    if app.failure is not None:
        raise app.failure
    return app.return_code or 0


@click.command("live", short_help="Watch GPUs and models in the terminal.")
@_options
def live(**given: Any) -> int:
    """Watch who is on the GPUs, who waits, and why; `?` shows the keys, `q` quits."""
    return _run(**given)


@click.command("dashboard", short_help="Open the dashboard.")
@_options
def dashboard(**given: Any) -> int:
    """Watch who is on the GPUs, who waits, and why; act on models. `?` shows the keys, `q` quits."""
    return _run(**given)
