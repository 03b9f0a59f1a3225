"""A model's pod as the controller reads it: how far it is, what its sidecar reports, what holds it up. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.pods import HOSTNAME, KNOWN_MEMORY
from greenthread.gpu import PodRef
from greenthread.names import ANNOTATION_GPUS, ANNOTATION_REPORT, ANNOTATION_SERVING_MEMORY, LABEL_ORDINAL


@dataclass(frozen=True, slots=True)
class Report:
    """Of what a pod's sidecar says of itself in the pod's annotation, what the status needs; empty before its first
    word. What it does at the moment is better known from the GPUs."""

    boot_ready: bool = False
    error: str = ""
    #: What its engine does less well than asked for.
    shortfalls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodView:
    """A model's pod as the controller reads it."""

    ref: PodRef
    uid: str
    ordinal: int
    hash8: str
    node: str
    gpus: tuple[int, ...]
    phase: str
    ready: bool
    deleting: bool
    #: Why it will not run without a change ("ImagePullBackOff: …"), or "".
    trouble: str
    report: Report
    #: Bytes on each GPU, measured or handed on; None: not known yet.
    serving_memory: int | None

    @property
    def failed(self) -> bool:
        """It ended, or nobody knows: only a new pod helps."""
        return self.phase in ("Failed", "Unknown", "Succeeded")

    @classmethod
    def from_object(cls, pod: Mapping[str, Any]) -> PodView:
        """From the API's object; fields that are missing or broken count as unknown."""
        meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
        annotations, its_labels = meta.get("annotations") or {}, meta.get("labels") or {}
        ordinal = its_labels.get(LABEL_ORDINAL, "")
        return cls(
            ref=PodRef(meta.get("namespace", ""), meta["name"]),
            uid=meta.get("uid", ""),
            ordinal=int(ordinal) if ordinal.isdecimal() else -1,
            hash8=meta["name"].rpartition("-")[2],
            node=spec.get("nodeName") or (spec.get("nodeSelector") or {}).get(HOSTNAME, ""),
            gpus=tuple(int(part) for part in annotations.get(ANNOTATION_GPUS, "").split(",") if part.isdecimal()),
            phase=status.get("phase", "Pending"),
            ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()),
            deleting=bool(meta.get("deletionTimestamp")),
            trouble=_trouble(status),
            report=_report(annotations.get(ANNOTATION_REPORT, "")),
            serving_memory=_memory(annotations, spec),
        )


#: What a container waits for that time alone does not bring.
_STUCK = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


def _trouble(status: Mapping[str, Any]) -> str:
    if status.get("phase") in ("Failed", "Unknown"):
        return ": ".join(part for part in (status.get("reason") or status["phase"], status.get("message", "")) if part)
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _STUCK:
            return f"container {container.get('name', '')}: {waiting['reason']}" + (
                f": {waiting['message']}" if waiting.get("message") else ""
            )
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"not scheduled: {condition.get('message') or condition.get('reason') or 'no reason given'}"
    return ""


def _report(text: str) -> Report:
    try:
        said = json.loads(text) if text else {}
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    shortfalls = said.get("shortfalls")
    return Report(
        bool(said.get("bootReady")),
        str(said.get("error") or ""),
        tuple(map(str, shortfalls)) if isinstance(shortfalls, list) else (),
    )


def _memory(annotations: Mapping[str, str], spec: Mapping[str, Any]) -> int | None:
    handed_on: Iterable[str] = (
        str(variable.get("value"))
        for container in spec.get("containers") or ()
        for variable in container.get("env") or ()
        if variable.get("name") == KNOWN_MEMORY
    )
    for text in (annotations.get(ANNOTATION_SERVING_MEMORY, ""), *handed_on):
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return None
