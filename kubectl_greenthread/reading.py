"""Reads the cluster: Models, GPUs and their pods as one snapshot, and Events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from greenthread.clock import SystemClock, parse_time
from greenthread.kube.core import Object
from greenthread.kube.errors import Forbidden, NoSuchKind, NotFound
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS
from greenthread.names import DEFAULT_NAMESPACE, LABEL_MODEL, LABEL_NAME, POD_APP_NAME
from greenthread.snapshot import ModelRow, Snapshot, build
from kubectl_greenthread.failures import NoSuchModel
from kubectl_greenthread.options import Session

PREFIXES = ("model", "models", "mdl", "model.greenthread.ai", "models.greenthread.ai")


@dataclass(frozen=True)
class View:
    """A snapshot, its Models, the namespace that GPUs were read from (None: all), and what could not be read."""

    snapshot: Snapshot
    models: Sequence[Object]
    gpu_namespace: str | None
    missing: Sequence[str]

    @property
    def rows(self) -> list[ModelRow]:
        """The rows of the Models, in the order they were read."""
        return [self.row(model["metadata"]["name"]) for model in self.models]

    def row(self, name: str) -> ModelRow:
        """The row of a Model that was read by its name."""
        row = next((row for row in self.snapshot.models if row.name == name), None)
        if row is None:
            raise NoSuchModel(
                f"the model {name} has a spec that cannot be read: see `kubectl get model {name} -o yaml`"
            )
        return row


def bare_name(name: str) -> str:
    """`models/NAME` and the like as `NAME`."""
    kind, slash, rest = name.partition("/")
    return rest if slash and kind.lower() in PREFIXES else name


def read_all(session: Session) -> View:
    """Models and pods of the session's namespace, or of all with -A; all GPUs."""
    namespace = session.scope
    models = session.client.list(MODELS, namespace, session.selector, session.field_selector).items
    return _view(session, models, namespace, f"{LABEL_NAME}={POD_APP_NAME}")


def read_models(session: Session, names: Sequence[str]) -> View:
    """The named Models of the session's namespace, their pods, and all GPUs; NoSuchModel, with near names."""
    wanted = list(dict.fromkeys(bare_name(name) for name in names))
    models = [_get(session, name) for name in wanted]
    return _view(session, models, session.namespace, f"{LABEL_MODEL} in ({','.join(wanted)})")


def _view(session: Session, models: Sequence[Object], namespace: str | None, pods_of: str) -> View:
    missing: list[str] = []
    gpus, gpu_namespace = list_gpus(session, missing)
    pods: Sequence[Object] = ()
    try:
        pods = session.client.list(PODS, namespace, label_selector=pods_of).items
    except Forbidden as error:
        missing.append(f"requests in flight, queues and replicas are not shown: {error}")
    return View(build(models, gpus, pods, SystemClock().now()), models, gpu_namespace, missing)


def list_gpus(session: Session, missing: list[str]) -> tuple[Sequence[Object], str | None]:
    """All GPU objects; who may not list them everywhere sees those of the usual installation, with its namespace."""
    try:
        return session.client.list(GPUS).items, None
    except Forbidden as error:
        try:
            return session.client.list(GPUS, DEFAULT_NAMESPACE).items, DEFAULT_NAMESPACE
        except Forbidden:
            missing.append(f"GPUs are not shown: {error}")
            return (), None


def _get(session: Session, name: str) -> Object:
    try:
        return session.client.get(MODELS, name, session.namespace)
    except NoSuchKind:
        raise
    except (NotFound, ValueError):
        raise NoSuchModel(_no_such_model(session, name)) from None


def _no_such_model(session: Session, name: str) -> str:
    import difflib

    message = f"there is no model {name} in namespace {session.namespace}"
    try:
        models = session.client.list(MODELS).items
    except Forbidden:
        try:
            models = session.client.list(MODELS, session.namespace).items
        except Forbidden:
            return message
    keys = [(model["metadata"]["namespace"], model["metadata"]["name"]) for model in models]
    elsewhere = sorted(namespace for namespace, other in keys if other == name)
    if elsewhere:
        return f"{message}; there is one in {', '.join(elsewhere)}: pass -n {elsewhere[0]}"
    here = sorted(other for namespace, other in keys if namespace == session.namespace)
    near = difflib.get_close_matches(name, here, n=3, cutoff=0.5)
    near += [other for other in here if name and name in other and other not in near]
    if near:
        return f"{message}; did you mean {' or '.join(near[:3])}?"
    if here:
        return f"{message}; it has {', '.join(here[:10])}{', …' if len(here) > 10 else ''}"
    return f"{message}, which has no models" + ("" if not keys else "; -A shows those of other namespaces")


@dataclass(frozen=True)
class Told:
    """An Event on a Model."""

    at: datetime | None
    reason: str
    message: str
    warning: bool


def events_selector(name: str) -> str:
    """The field selector for the Events on one Model."""
    return f"involvedObject.kind=Model,involvedObject.name={name}"


def read_events(session: Session, name: str, missing: list[str]) -> list[Told]:
    """The Events on a Model, oldest first."""
    try:
        items = session.client.list(EVENTS, session.namespace, field_selector=events_selector(name)).items
    except Forbidden as error:
        missing.append(f"events are not shown: {error}")
        return []
    return [told(item) for item in sorted(items, key=_order)]


def told(event: Object) -> Told:
    """An Event object in short."""
    return Told(
        _moment(event), str(event.get("reason") or ""), str(event.get("message") or ""), event.get("type") == "Warning"
    )


def _moment(event: Object) -> datetime | None:
    for text in (event.get("eventTime"), event.get("lastTimestamp"), event["metadata"].get("creationTimestamp")):
        try:
            return parse_time(str(text))
        except ValueError:
            continue
    return None


def _order(event: Object) -> tuple[Any, ...]:
    moment, version = _moment(event), str(event["metadata"].get("resourceVersion", ""))
    return (moment.timestamp() if moment else 0.0, int(version) if version.isdecimal() else 0)
