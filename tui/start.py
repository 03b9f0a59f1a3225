"""`live` and `dashboard` as commands: options, the way to the cluster, and the terminal that is needed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig, load_config
from tui.app import Dashboard, Measured
from tui.data import ClusterData
from tui.history import History
from tui.speaker import Speaker
from tui.theme import THEMES
from tui.wakes import Key

if TYPE_CHECKING:
    from tui.measures import Chart


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--history",
            "memory",
            metavar="SIZE",
            default="64Mi",
            show_default=True,
            callback=_size,
            help="Memory for the past; the oldest is forgotten first.",
        ),
        click.option("--replay", metavar="FILE", help="Show a recording; no cluster is needed."),
        click.option("--record", metavar="FILE", help="Also write the past to FILE, compressed if it ends in .gz."),
        click.option("--readonly", is_flag=True, help="Show only; the keys that act are off."),
        click.option("--theme", type=click.Choice(list(THEMES)), default="dark", show_default=True, help="Colours."),
        click.option("--ascii", "ascii_only", is_flag=True, help="Only ASCII signs (the default without UTF-8)."),
        click.option("--user", metavar="NAME", help="User of the kubeconfig to act as."),
        click.option("--cluster", metavar="NAME", help="Cluster of the kubeconfig to speak to."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig to use."),
        click.option("--kubeconfig", metavar="FILE", help="Kubeconfig file to use instead of $KUBECONFIG."),
        click.option("-A", "--all-namespaces", is_flag=True, help="Models of all namespaces (the default)."),
        click.option("-n", "--namespace", metavar="NAME", help="Only the models of this namespace."),
    ):
        function = option(function)
    return function


def _size(_: click.Context, option: click.Parameter, text: str) -> int:
    """Bytes of a size such as 64Mi."""
    found = re.fullmatch(r"(\d{1,9})(Ki|Mi|Gi)?B?", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no size such as 64Mi or 1Gi")
    return max(int(found[1]) * {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}.get(found[2], 1), 2**20)


def only_ascii(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal cannot show more: by its locale, or because it is one of the plain ones."""
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    return "utf" not in locale.lower() or environ.get("TERM", "") in ("dumb", "linux", "vt100", "vt220")


def _run(
    namespace: str | None,
    all_namespaces: bool,
    kubeconfig: str | None,
    context: str | None,
    cluster: str | None,
    user: str | None,
    theme: str,
    readonly: bool,
    ascii_only: bool,
    record: str | None,
    replay: str | None,
    memory: int,
) -> int:
    """Until the user quits. KubeError when the kubeconfig cannot be used."""
    if record and replay:
        raise click.UsageError("--record and --replay exclude each other: a recording is not recorded again")
    if not _is_terminal():
        raise click.ClickException("this needs a terminal; `top` prints the same once")
    ascii_only = ascii_only or only_ascii()
    history, recorder = History(memory), None
    if replay:
        from tui.replay import open_recording

        recording = open_recording(Path(replay), history)
        app = Dashboard(recording, recording.context, theme, readonly=True, ascii_only=ascii_only, replay=True)
    else:
        config = load_config(kubeconfig, context, cluster, user)
        if record:
            from tui.replay import go_on_recording

            recorder = go_on_recording(Path(record), history)
        given = {"kubeconfig": kubeconfig, "context": context, "cluster": cluster, "user": user}
        data = ClusterData(
            AsyncClient(config), None if all_namespaces else namespace, namespace or config.namespace,
            history=history, recorder=recorder, context=config.context or config.server,
        )  # fmt: skip
        flags = [f"--{name}={value}" for name, value in given.items() if value]
        app = Dashboard(
            data, data.context, theme, readonly, flags, ascii_only=ascii_only, speaker=partial(_speaker, config),
            measured=_measured(config),
        )  # fmt: skip
    app.run()
    if app.failure is not None:
        raise app.failure
    return app.return_code or 0


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()  # Textual paints on stderr


def _measured(config: ClusterConfig) -> Measured:
    """Charts by Prometheus, which is looked for when they are first shown."""
    found: list[Measured] = []

    def ask(since: float, until: float, memory: float) -> list[Chart]:
        from tui.prometheus import Measured as Asking

        if not found:
            found.append(Asking(config))
        return found[0](since, until, memory)

    return ask


def _speaker(config: ClusterConfig, key: Key) -> Speaker:
    """The way to a model: blocking, for a thread."""
    from greenthread.chat import Chat
    from greenthread.kube.blocking import Client
    from greenthread.reach import find_gateway

    client = Client(config)
    return Chat(client, find_gateway(client), *key)


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
