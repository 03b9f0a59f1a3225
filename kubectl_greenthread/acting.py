"""Acts on the cluster, which is always a patch of a Model; asks before something running is disturbed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from greenthread.clock import SystemClock, format_time
from greenthread.kube.errors import Forbidden
from greenthread.kube.resources import MODELS
from greenthread.snapshot import ModelRow, Shown
from greenthread.units import short_duration
from kubectl_greenthread.failures import Failure, NotAllowed
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out, print_objects, tell
from kubectl_greenthread.reading import View, read_models

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from greenthread.kube.core import Object

BUSY = (Shown.SERVING, Shown.WAKING, Shown.DEACTIVATING)


def begin(session: Session, names: Sequence[str]) -> View:
    """The Models that a verb is to change. NotAllowed with --readonly."""
    if session.readonly:
        raise NotAllowed("--readonly is on: nothing is changed")
    return read_models(session, names)


def wish(annotation: str) -> dict[str, Any]:
    """The patch that asks a Model's sidecars for something, now."""
    return {"metadata": {"annotations": {annotation: format_time(SystemClock().now())}}}


def pinned(popular: bool) -> dict[str, Any]:
    """The patch that pins a Model, or unpins it."""
    return {"spec": {"fairness": {"popular": popular}}}


def patch(session: Session, row: ModelRow, body: dict[str, Any]) -> Object:
    """Patches a Model (with --dry-run only seemingly); with -v says the kubectl command that does the same."""
    if session.verbose:
        import shlex

        words = ["kubectl", *session.kubectl_flags, "patch", MODELS.full_name, row.name, "-n", row.namespace,
                 "--type=merge", "-p", json.dumps(body, separators=(",", ":"))]  # fmt: skip
        if session.dry_run != "none":
            words.append(f"--dry-run={session.dry_run}")
        tell(shlex.join(words))
    if session.dry_run == "client":
        merged: Object = _merged(session.client.get(MODELS, row.name, row.namespace), body)
        return merged
    try:
        return session.client.patch(MODELS, row.name, body, row.namespace, dry_run=session.dry_run == "server")
    except Forbidden as error:
        raise NotAllowed(
            f"{error} (it lacks the verb `patch` on `{MODELS.full_name}` in namespace {row.namespace})"
        ) from None


def _merged(obj: Any, change: Any) -> Any:
    """A JSON merge patch, done here."""
    if not isinstance(change, dict):
        return change
    old = obj if isinstance(obj, dict) else {}
    new = {**old, **{key: _merged(old.get(key), value) for key, value in change.items()}}
    return {key: value for key, value in new.items() if value is not None}


def answer(session: Session, models: list[Object], words: list[str]) -> None:
    """The result on stdout: objects if -o asks for them, else words for people."""
    if session.output:
        print_objects(session, models)
        return
    seeming = {"client": " (dry run)", "server": " (server dry run)"}.get(session.dry_run, "")
    for line in words:
        out(session.terminal.clean(line) + seeming)


def ask_to_disturb(session: Session, row: ModelRow, question: str, yes: bool) -> None:
    """Asks before requests in flight are hurried: the default is no, and without a terminal --yes is needed."""
    if yes or session.dry_run != "none" or row.state not in BUSY or row.in_flight == 0:
        return
    drain = short_duration(row.model.spec.sleep.drain_timeout)
    if row.in_flight is None:
        text = f"{row.name} may have requests in flight (its sidecar has not reported); they get {drain} to finish"
    else:
        several = "s" if row.in_flight > 1 else ""
        text = f"{row.name} has {row.in_flight} request{several} in flight; they get {drain} to finish"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(f"{text}: pass --yes to go on")
    if not confirmed(f"{text}. {question}"):
        raise Failure(f"left {row.name} as it is")


def confirmed(question: str) -> bool:
    """Whether the person at the terminal says yes; the default is no. KeyboardInterrupt is theirs too."""
    sys.stdout.flush()
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def must_have_replicas(row: ModelRow) -> None:
    """A Model without replicas cannot wake."""
    if row.model.spec.replicas == 0:
        raise Failure(f"{row.name} has replicas: 0, so nothing can wake: set spec.replicas to 1 or more")


def is_asleep(row: ModelRow) -> bool:
    """Whether it holds no memory and does not want any."""
    return row.vram == 0 and row.state in (Shown.SLEEPING, Shown.STAGING, Shown.FAILED)
