"""Reads the cluster: Models, GPUs and their pods as one snapshot, and Events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from greenthread.clock import SystemClock, parse_time
from greenthread.kube.core import Object, ObjectList
from greenthread.kube.errors import ApiError, Forbidden, NoSuchKind, NotFound
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS, Resource
from greenthread.names import DEFAULT_NAMESPACE, LABEL_MODEL, LABEL_NAME, POD_APP_NAME
from greenthread.snapshot import ModelRow, Snapshot, build
from greenthread.values import dataclass
from kubectl_greenthread.arguments import Usage
from kubectl_greenthread.failures import NoSuchModel
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import sorted_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PREFIXES = ("model", "models", "mdl", "model.greenthread.ai", "models.greenthread.ai",
            "gpu", "gpus", "gpu.greenthread.ai", "gpus.greenthread.ai")  # fmt: skip
MODEL_PODS = f"{LABEL_NAME}={POD_APP_NAME}"
"""The label selector of all pods of Models."""


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


def read_all(session: Session, names: Sequence[str] = ()) -> View:
    """Models and pods of the session's namespace, or of all with -A, that match its selectors; all GPUs.

    `names`: only these Models; NoSuchModel, with near names, when one of them is not there.
    """
    scope = session.scope
    if names and scope is None:
        raise Usage("a name and -A do not go together: a name is of one namespace")
    if names and not session.selector and not session.field_selector:
        return read_models(session, names)
    models = (MODELS, scope, session.selector, session.field_selector)
    found, gpus, pods = session.client.lists([models, (GPUS, None, "", ""), (PODS, scope, MODEL_PODS, "")])
    if isinstance(found, ApiError):
        raise found
    wanted = {bare_name(name) for name in names}
    items = [item for item in found.items if not wanted or item["metadata"]["name"] in wanted]
    return _view(session, items, gpus, pods)


def read_models(session: Session, names: Sequence[str]) -> View:
    """The named Models of the session's namespace, their pods, and all GPUs; NoSuchModel, with near names."""
    wanted = list(dict.fromkeys(bare_name(name) for name in names))
    models = [_get(session, name) for name in wanted]
    pods_of = f"{LABEL_MODEL} in ({','.join(wanted)})"
    gpus, pods = session.client.lists([(GPUS, None, "", ""), (PODS, session.namespace, pods_of, "")])
    return _view(session, models, gpus, pods)


def read_objects(session: Session, resource: Resource, names: Sequence[str] = ()) -> list[Object]:
    """Objects of the session's scope as they are, in the order of --sort-by."""
    scope = session.scope if resource is MODELS else (session.namespace_option if not session.all_namespaces else None)
    found = session.client.list(resource, scope, session.selector, session.field_selector).items
    wanted = {bare_name(name) for name in names}
    missing = wanted - {item["metadata"]["name"] for item in found}
    if missing and resource is MODELS:
        raise NoSuchModel(_no_such_model(session, min(missing)))
    if missing:
        have = ", ".join(sorted(item["metadata"]["name"] for item in found)[:10]) or "none"
        raise NoSuchModel(f"there is no {resource.kind} {min(missing)}; there is {have}")
    return sorted_by(session, [item for item in found if not wanted or item["metadata"]["name"] in wanted])


def _view(session: Session, models: Sequence[Object], gpus: ObjectList | ApiError, pods: ObjectList | ApiError) -> View:
    missing: list[str] = []
    namespace: str | None = None
    devices: Sequence[Object] = ()
    if isinstance(gpus, ObjectList):
        devices = gpus.items
    else:
        devices, namespace = _gpus_of_the_installation(session, gpus, missing)
    if not isinstance(pods, ObjectList):
        _only_forbidden(pods)
        missing.append(f"requests in flight, queues and replicas are not shown: {pods}")
    of_models = pods.items if isinstance(pods, ObjectList) else ()
    return View(build(models, devices, of_models, SystemClock().now()), models, namespace, missing)


def list_gpus(session: Session, missing: list[str]) -> tuple[Sequence[Object], str | None]:
    """All GPU objects; who may not list them everywhere sees those of the usual installation, with its namespace."""
    try:
        return session.client.list(GPUS).items, None
    except Forbidden as error:
        return _gpus_of_the_installation(session, error, missing)


def _gpus_of_the_installation(
    session: Session, error: ApiError, missing: list[str]
) -> tuple[Sequence[Object], str | None]:
    _only_forbidden(error)
    try:
        return session.client.list(GPUS, DEFAULT_NAMESPACE).items, DEFAULT_NAMESPACE
    except Forbidden:
        missing.append(f"GPUs are not shown: {error}")
        return (), None


def _only_forbidden(error: ApiError) -> None:
    """What may not be read is left out; whatever else goes wrong is wrong."""
    if not isinstance(error, Forbidden):
        raise error


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

    namespace: str
    model: str
    at: datetime | None
    reason: str
    message: str
    warning: bool


def events_selector(name: str = "") -> str:
    """The field selector for the Events on one Model, or on all."""
    return "involvedObject.kind=Model" + (f",involvedObject.name={name}" if name else "")


def read_events(session: Session, name: str, missing: list[str]) -> list[Told]:
    """The Events on a Model, oldest first."""
    try:
        items = session.client.list(EVENTS, session.namespace, field_selector=events_selector(name)).items
    except Forbidden as error:
        missing.append(f"events are not shown: {error}")
        return []
    return [told(item) for item in in_order(items)]


def in_order(events: Iterable[Object]) -> list[Object]:
    """Events, oldest first."""
    return sorted(events, key=_order)


def told(event: Object) -> Told:
    """An Event object in short."""
    involved = event.get("involvedObject") or {}
    return Told(
        str(involved.get("namespace") or ""),
        str(involved.get("name") or ""),
        _moment(event),
        str(event.get("reason") or ""),
        str(event.get("message") or ""),
        event.get("type") == "Warning",
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
