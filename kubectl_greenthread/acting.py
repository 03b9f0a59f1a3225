"""Acts on the cluster, which is always a patch of a Model; asks before something running is disturbed."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

from greenthread.clock import SystemClock, format_time
from greenthread.kube.core import Object
from greenthread.kube.resources import MODELS
from greenthread.snapshot import ModelRow, Shown
from greenthread.units import short_duration
from kubectl_greenthread import printing
from kubectl_greenthread.failures import Failure
from kubectl_greenthread.options import Session

BUSY = (Shown.SERVING, Shown.WAKING, Shown.DEACTIVATING)


def wish(annotation: str) -> dict[str, Any]:
    """The patch that asks a Model's sidecars for something, now."""
    return {"metadata": {"annotations": {annotation: format_time(SystemClock().now())}}}


def pinned(popular: bool) -> dict[str, Any]:
    """The patch that pins a Model, or unpins it."""
    return {"spec": {"fairness": {"popular": popular}}}


def patch(session: Session, row: ModelRow, body: dict[str, Any]) -> Object:
    """Patches a Model; with -v says the kubectl command that does the same."""
    if session.verbose:
        words = ["kubectl", *session.kubectl_flags, "patch", MODELS.full_name, row.name, "-n", row.namespace,
                 "--type=merge", "-p", json.dumps(body, separators=(",", ":"))]  # fmt: skip
        click.echo(shlex.join(words), err=True)
    return session.client.patch(MODELS, row.name, body, row.namespace)


def answer(session: Session, models: list[Object], words: list[str]) -> None:
    """The result on stdout: objects if -o asks for them, else words for people."""
    if session.output:
        printing.print_objects(session.output, models)
    else:
        for line in words:
            click.echo(session.terminal.clean(line))


def ask_to_disturb(row: ModelRow, question: str, yes: bool) -> None:
    """Asks before requests in flight are hurried: the default is no, and without a terminal --yes is needed."""
    if yes or row.state not in BUSY or row.in_flight == 0:
        return
    drain = short_duration(row.model.spec.sleep.drain_timeout)
    if row.in_flight is None:
        text = f"{row.name} may have requests in flight (its sidecar has not reported); they get {drain} to finish"
    else:
        several = "s" if row.in_flight > 1 else ""
        text = f"{row.name} has {row.in_flight} request{several} in flight; they get {drain} to finish"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(f"{text}: pass --yes to go on")
    if not click.confirm(f"{text}. {question}", default=False, err=True):
        raise Failure(f"left {row.name} as it is")


def must_have_replicas(row: ModelRow) -> None:
    """A Model without replicas cannot wake."""
    if row.model.spec.replicas == 0:
        raise Failure(f"{row.name} has replicas: 0, so nothing can wake: set spec.replicas to 1 or more")


def is_asleep(row: ModelRow) -> bool:
    """Whether it holds no memory and does not want any."""
    return row.vram == 0 and row.state in (Shown.SLEEPING, Shown.STAGING, Shown.FAILED)
