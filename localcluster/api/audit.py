"""The audit log: a line for each request that comes in, as kube-apiserver writes it at level Metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from greenthread.clock import Clock, format_time

from .messages import Request

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class AuditLog:
    """Appends to a file. Nothing of a body or a token is in it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """OSError when the file cannot be written."""
        self._file = path.open("a", buffering=1)
        self._clock = clock

    def received(self, request: Request) -> None:
        """A request came in."""
        reference = object_reference(request.path)
        event = {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "stage": "RequestReceived",
            "requestURI": request.path,
            "verb": verb(request, reference),
            "userAgent": request.headers.get("user-agent", ""),
            "objectRef": reference,
            "requestReceivedTimestamp": format_time(self._clock.now()),
        }
        self._file.write(json.dumps(event) + "\n")

    def close(self) -> None:
        self._file.close()


def object_reference(path: str) -> dict[str, str]:
    """What a path names: resource, namespace, name and subresource; empty for a path that is no object's."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"]:
        group, rest = "", parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return {}
    found = {"apiGroup": group} if group else {}
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        found["namespace"], rest = rest[1], rest[2:]
    return found | dict(zip(("resource", "name", "subresource"), rest, strict=False))


def verb(request: Request, reference: dict[str, Any]) -> str:
    """Kubernetes' word for what is done."""
    if request.method != "GET":
        return _VERBS.get(request.method, request.method.lower())
    if request.query.get("watch") in ("true", "1"):
        return "watch"
    return "get" if "name" in reference or not reference else "list"
