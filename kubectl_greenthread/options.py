"""Options that verbs share, with kubectl's names, and the session they lead to."""

from __future__ import annotations

import os
from functools import cached_property

from kubectl_greenthread.arguments import Option
from kubectl_greenthread.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from greenthread.kube.blocking import Client
    from greenthread.kube.config import ClusterConfig


class Session:
    """One command line's cluster, namespace and way of printing. Nothing is read or opened before it is used."""

    def __init__(
        self,
        terminal: Terminal,
        output: tuple[str, str] = ("", ""),
        headers: bool = True,
        verbose: bool = False,
        readonly: bool = False,
        all_namespaces: bool = False,
        namespace: str | None = None,
        selector: str = "",
        field_selector: str = "",
        sort_by: str = "",
        dry_run: str = "none",
        kubeconfig: str | None = None,
        context: str | None = None,
        cluster: str | None = None,
        user: str | None = None,
    ) -> None:
        """`output`: kubectl's format and, for some, its template."""
        self.terminal, self.headers, self.verbose, self.readonly = terminal, headers, verbose, readonly
        self.output, self.template = output
        self.all_namespaces, self.namespace_option = all_namespaces, namespace
        self.selector, self.field_selector, self.sort_by = selector, field_selector, sort_by
        self.dry_run = dry_run
        self.kubeconfig, self.context, self.cluster, self.user = kubeconfig, context, cluster, user

    @cached_property
    def config(self) -> ClusterConfig:
        from greenthread.kube.config import load_config

        return load_config(self.kubeconfig, self.context, self.cluster, self.user)

    @cached_property
    def client(self) -> Client:
        from greenthread.kube.blocking import Client

        return Client(self.config)

    @property
    def namespace(self) -> str:
        """The one namespace that names are looked up in."""
        return self.namespace_option or self.config.namespace

    @property
    def scope(self) -> str | None:
        """The namespace that collections are read from; None: all."""
        return None if self.all_namespaces else self.namespace

    @property
    def kubectl_flags(self) -> list[str]:
        """The options that make kubectl speak to the same cluster."""
        given = (("kubeconfig", self.kubeconfig), ("context", self.context), ("cluster", self.cluster),
                 ("user", self.user))  # fmt: skip
        return [f"--{name}={value}" for name, value in given if value]


def session_of(values: dict[str, Any]) -> Session:
    """Takes what a session is made of out of a verb's values."""
    plain = {name: values.pop(name) for name in _SESSION if name in values}
    values.pop("help", None)
    return Session(
        Terminal.of_stdout(values.pop("color", "auto")),
        output=values.pop("output", None) or ("", ""),
        headers=not values.pop("no_headers", False),
        **plain,
    )


_SESSION = ("verbose", "readonly", "all_namespaces", "namespace", "selector", "field_selector", "sort_by", "dry_run",
            "kubeconfig", "context", "cluster", "user")  # fmt: skip


def seconds(text: str) -> float:
    """Seconds, written like Kubernetes writes them: 30s, 5m."""
    from greenthread.units import parse_duration

    return parse_duration(text)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def number(text: str) -> float:
    """A temperature."""
    value = float(text)
    if not 0 <= value <= 2:
        raise ValueError(f"{text} is not between 0 and 2")
    return value


CONNECTION = (
    Option("-n --namespace", "NAME", "Namespace; the context's if not given.", complete="namespaces"),
    Option("--kubeconfig", "FILE", "Kubeconfig file to use instead of $KUBECONFIG.", complete="files"),
    Option("--context", "NAME", "Context of the kubeconfig to use.", complete="contexts"),
    Option("--cluster", "NAME", "Cluster of the kubeconfig to speak to.", complete="clusters"),
    Option("--user", "NAME", "User of the kubeconfig to act as.", complete="users"),
)
COMMON = (
    Option("--color", "WHEN", "Colours: auto, always or never; auto is on a terminal, unless NO_COLOR is set.",
           default="auto", choices=("auto", "always", "never")),
    Option("--readonly", help="Refuse whatever would change the cluster (also: GREENTHREAD_READONLY=1).",
           default=os.environ.get("GREENTHREAD_READONLY", "") not in ("", "0", "false")),
    Option("-v --verbose", help="Also print the kubectl commands that do the same."),
    Option("-h --help", help="Print this."),
)  # fmt: skip
GLOBAL = (*CONNECTION, *COMMON)
"""Options that every verb takes, before or after its name."""

ALL_NAMESPACES = Option("-A --all-namespaces", help="Of all namespaces.")
NO_HEADERS = Option("--no-headers", help="No header lines.")
WATCH = Option("-w --watch", help="Go on showing changes until Ctrl-C.", name="watch")
SELECTION = (
    Option("-l --selector", "QUERY", "Only Models with these labels: team=nlp,tier!=test.", default=""),
    Option("--field-selector", "QUERY", "Only Models with these fields: metadata.name=x.", default=""),
)
WAIT = (
    Option("--wait", help="Wait until it is done, and show how it goes."),
    Option("--timeout", "DURATION", "With --wait: how long, at most; 5m if not given.", default=300.0, convert=seconds),
)
DRY_RUN = Option("--dry-run", "HOW", "client: only say what would be sent; server: let the API server check it.",
                 default="none", choices=("none", "client", "server"))  # fmt: skip
YES = Option("-y --yes", help="Do not ask before something running is disturbed.")

KINDS = ("json", "yaml", "name", "wide", "jsonpath", "custom-columns")
"""What -o may be; a verb may have less."""


def output_option(*kinds: str) -> Option:
    """-o with these formats."""

    def convert(text: str) -> tuple[str, str]:
        kind, equals, template = text.partition("=")
        if kind.startswith(("go-template", "template")):
            raise ValueError(f"{kind} is not supported: use -o jsonpath='{{.metadata.name}}', or -o json and jq")
        if kind not in kinds:
            raise ValueError(f"{kind!r} is none of {', '.join(kinds)}")
        if kind not in ("jsonpath", "custom-columns"):
            if equals:
                raise ValueError(f"{kind} takes no template")
            return kind, ""
        if not template:
            example = "{.metadata.name}" if kind == "jsonpath" else "NAME:.metadata.name"
            raise ValueError(f"{kind} needs a template: -o {kind}='{example}'")
        return kind, template

    shown = [f"{kind}=…" if kind in ("jsonpath", "custom-columns") else kind for kind in kinds]
    return Option("-o --output", "FORMAT", f"How to print the result: {', '.join(shown)}.", convert=convert,
                  suggest=[text.replace("…", "") for text in shown])  # fmt: skip


ACT_OUTPUT = output_option("json", "yaml", "name", "jsonpath", "custom-columns")
DATA_OUTPUT = output_option("json", "yaml", "name", "jsonpath")
READ_OUTPUT = output_option(*KINDS)
