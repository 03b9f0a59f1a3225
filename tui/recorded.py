"""What the dashboard keeps of an object: what it shows, and no secrets. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from greenthread.kube.core import Object
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS
from greenthread.names import ANNOTATION_REPORT, GROUP

_META = (
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "labels",
)  # fmt: skip
_EVENT = (
    "involvedObject", "reason", "message", "type", "eventTime", "firstTimestamp", "lastTimestamp", "count",
    "reportingComponent", "source",
)  # fmt: skip
_SECRET = re.compile(r"(?i)(key|token|secret|passw|credential|auth)")
HIDDEN = "…"
"""Stands for what may be a secret."""
_MEASURED = {"stats", "foreignMemoryBytes", "availableMemoryBytes"}
_TOUCHED = {"lastAccessed"}


def kept(plural: str, obj: Object) -> Object:
    """The part of an object that is shown; parts of it are shared with the object. KeyError without a name."""
    meta = obj["metadata"]
    small: Object = {name: meta[name] for name in _META if name in meta}
    small["name"] = meta["name"]
    found = {name: value for name, value in (meta.get("annotations") or {}).items() if name.startswith(f"{GROUP}/")}
    if found:
        small["annotations"] = found
    fresh: Object = {name: obj[name] for name in ("apiVersion", "kind") if name in obj}
    fresh["metadata"] = small
    if plural == EVENTS.plural:
        return fresh | {name: obj[name] for name in _EVENT if name in obj}
    if plural == PODS.plural:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        fresh["spec"] = {name: spec[name] for name in ("nodeName", "nodeSelector") if name in spec} | {
            "containers": [{"name": item["name"]} for item in spec.get("containers") or () if "name" in item]
        }
        fresh["status"] = {
            name: status[name]
            for name in ("phase", "reason", "message", "startTime", "conditions", "containerStatuses")
            if name in status
        }
        return fresh
    return fresh | {name: obj[name] for name in ("spec", "status") if name in obj}


def recorded(plural: str, obj: Object) -> Object:
    """What goes into the history of an object that is `kept`."""
    if plural == EVENTS.plural:
        return obj
    meta = {name: value for name, value in obj["metadata"].items() if name != "resourceVersion"}
    fresh = {**obj, "metadata": meta}
    spec = obj.get("spec")
    if plural == MODELS.plural and isinstance(spec, dict) and spec.get("extraArgs"):
        fresh["spec"] = {**spec, "extraArgs": _without_secrets(spec["extraArgs"])}
    return fresh


def _without_secrets(args: list[Any]) -> list[Any]:
    """`--api-key=x` and `--api-key x` without x."""
    fresh: list[Any] = []
    hide = False
    for arg in args:
        text = str(arg)
        name, equals, _ = text.partition("=")
        secret = name.startswith("-") and bool(_SECRET.search(name))
        if hide and not text.startswith("-"):
            fresh.append(HIDDEN)
        else:
            fresh.append(f"{name}={HIDDEN}" if secret and equals else arg)
        hide = secret and not equals
    return fresh


def worth_a_stop(plural: str, changes: Any, old: Object, new: Object) -> bool:
    """Whether a change is more than measurements and counters going on."""
    if not isinstance(changes, Mapping):
        return True
    if plural == GPUS.plural:
        status = changes.get("status")
        if changes.keys() - {"status"} or not isinstance(status, Mapping):
            return True
        occupants = status.get("occupants")
        if isinstance(occupants, Mapping) and all(
            isinstance(change, Mapping) and change.keys() <= _TOUCHED for change in occupants.values()
        ):
            return bool(status.keys() - _MEASURED - {"occupants"})
        return bool(status.keys() - _MEASURED)
    if plural == PODS.plural:
        annotations = (changes.get("metadata") or {}).get("annotations")
        if changes.keys() - {"metadata"} or not isinstance(annotations, Mapping):
            return True
        return bool(annotations.keys() - {ANNOTATION_REPORT}) or _reported(old) != _reported(new)
    return True


def _reported(pod: Object) -> tuple[str, str]:
    """State and error of a pod's report."""
    try:
        report = json.loads(pod["metadata"]["annotations"][ANNOTATION_REPORT])
        return str(report.get("state", "")), str(report.get("error", ""))
    except (KeyError, ValueError, TypeError, AttributeError):
        return "", ""
