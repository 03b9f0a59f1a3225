"""Options that verbs share, with kubectl's names, and the session they lead to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import click

from greenthread.kube.blocking import Client
from greenthread.kube.config import ClusterConfig, load_config
from greenthread.units import parse_duration
from kubectl_greenthread.terminal import Terminal

Command = TypeVar("Command", bound=Callable[..., Any])

CONNECTION = ("namespace", "kubeconfig", "context", "cluster", "user")


@dataclass(frozen=True)
class Session:
    """One command line's cluster, namespace and way of printing. Nothing is read or opened before it is used."""

    terminal: Terminal
    output: str = ""
    headers: bool = True
    verbose: bool = False
    all_namespaces: bool = False
    namespace_option: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    cluster: str | None = None
    user: str | None = None

    @cached_property
    def config(self) -> ClusterConfig:
        return load_config(self.kubeconfig, self.context, self.cluster, self.user)

    @cached_property
    def client(self) -> Client:
        return Client(self.config)

    @property
    def namespace(self) -> str:
        return self.namespace_option or self.config.namespace

    @property
    def kubectl_flags(self) -> list[str]:
        """The options that make kubectl speak to the same cluster."""
        given = (("kubeconfig", self.kubeconfig), ("context", self.context), ("cluster", self.cluster),
                 ("user", self.user))  # fmt: skip
        return [f"--{name}={value}" for name, value in given if value]


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, written like Kubernetes writes them: 30s, 5m."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def connection_options(function: Command) -> Command:
    """-n, --kubeconfig, --context, --cluster, --user, as kubectl has them."""
    for option in (
        click.option("--user", metavar="NAME", help="User of the kubeconfig to act as."),
        click.option("--cluster", metavar="NAME", help="Cluster of the kubeconfig to speak to."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig to use."),
        click.option("--kubeconfig", metavar="FILE", help="Kubeconfig file to use instead of $KUBECONFIG."),
        click.option("-n", "--namespace", metavar="NAME", help="Namespace; the context's if not given."),
    ):
        function = option(function)
    return function


def set_defaults(ctx: click.Context, given: dict[str, Any], verbs: Sequence[str]) -> None:
    """Options before the verb count for it too, as with kubectl."""
    defaults = {name: value for name, value in given.items() if value is not None}
    ctx.default_map = dict.fromkeys(verbs, defaults)


def session_options(outputs: Sequence[str], *, all_namespaces: bool = False) -> Callable[[Command], Command]:
    """Gives a verb kubectl's options and, as its first argument, the Session they mean."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            connection = {name: given.pop(name) for name in CONNECTION}
            connection["namespace_option"] = connection.pop("namespace")
            session = Session(
                terminal=Terminal.of_stdout(given.pop("color")),
                output=given.pop("output") or "",
                headers=not given.pop("no_headers", False),
                verbose=given.pop("verbose"),
                all_namespaces=given.pop("all_namespaces", False),
                **connection,
            )
            return function(session, **given)

        wrapped: Any = command
        for option in reversed(_options(outputs, all_namespaces)):
            wrapped = option(wrapped)
        return wrapped  # type: ignore[no-any-return]

    return decorate


def _options(outputs: Sequence[str], all_namespaces: bool) -> list[Callable[[Any], Any]]:
    options: list[Callable[[Any], Any]] = [connection_options]
    if all_namespaces:
        options.append(click.option("-A", "--all-namespaces", is_flag=True, help="Models of all namespaces."))
    options.append(click.option("-o", "--output", type=click.Choice(outputs), help="How to print the result."))
    if "wide" in outputs:
        options.append(click.option("--no-headers", is_flag=True, help="No header lines."))
    options += [
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            show_default=True,
            help="Colours; auto: on a terminal, unless NO_COLOR is set.",
        ),
        click.option("-v", "--verbose", is_flag=True, help="Also print the kubectl commands that do the same."),
    ]
    return options


def wait_options(function: Command) -> Command:
    """--wait and --timeout."""
    function = click.option(
        "--timeout",
        type=Duration(),
        default="5m",
        show_default=True,
        metavar="DURATION",
        help="With --wait: how long, at most.",
    )(function)
    return click.option("--wait", is_flag=True, help="Wait until it is done, and say how it goes.")(function)


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask before something running is disturbed.")
names_argument = click.argument("names", metavar="MODEL...", nargs=-1, required=True)
