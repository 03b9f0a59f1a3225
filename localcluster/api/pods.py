"""The subresources of pods that a machine without kubelet can answer: log, binding, eviction, proxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import protobuf
from .errors import StatusError, bad_request, conflict, not_found
from .messages import Forward, Log, Request, Response, json_response, parse_json, text_response
from .resources import ResourceType
from .storage import Key, Object

if TYPE_CHECKING:
    from .core import Answer, Api

SUBRESOURCES = ("log", "binding", "eviction", "proxy")
REFUSED = ("exec", "attach", "portforward", "ephemeralcontainers", "resize")


class LogFinder(Protocol):
    """Finds the log file of a container's run; None if there is none (yet)."""

    def __call__(self, namespace: str, pod: str, uid: str, container: str, previous: bool) -> Path | None: ...


def log_folder(root: Path) -> LogFinder:
    """Logs laid out as `<root>/<namespace>_<pod>_<uid>/<container>/<restart>.log`."""

    def find(namespace: str, pod: str, uid: str, container: str, previous: bool) -> Path | None:
        folder = root / f"{namespace}_{pod}_{uid}" / container
        runs = sorted((int(path.stem) for path in folder.glob("*.log") if path.stem.isdigit()), reverse=True)
        wanted = runs[1:2] if previous else runs[:1]
        return folder / f"{wanted[0]}.log" if wanted else None

    return find


def subresource(api: Api, rt: ResourceType, request: Request, key: Key, sub: str, rest: list[str]) -> Answer:
    """Answers `/pods/<name>/<sub>…`."""
    if sub == "proxy":
        return _proxy(api, rt, request, key, rest)
    if rest:
        raise not_found(rt.group, rt.plural, key[1])
    if sub == "log" and request.method == "GET":
        return _log(api, api.must_get(rt, key).obj, request)
    if sub == "binding" and request.method == "POST":
        return _bind(api, rt, request, key)
    if sub == "eviction" and request.method == "POST":
        content = request.headers.get("content-type", "")
        body: Any = {}
        if content.startswith(protobuf.MEDIA):
            body = protobuf.decode(request.body)
        elif request.body.strip():
            body = parse_json(request.body)[0]
        grace = (body.get("deleteOptions") or {}).get("gracePeriodSeconds") if isinstance(body, dict) else None
        api.delete(rt, key, grace=grace if isinstance(grace, int) else None)
        api.collector.run()
        return _success(201)
    raise StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def _success(code: int) -> Response:
    return json_response(code, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})


def _containers(pod: Object) -> list[str]:
    spec = pod["spec"]
    return [c["name"] for c in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]]


def _log(api: Api, pod: Object, request: Request) -> Answer:
    query, meta = request.query, pod["metadata"]
    names = _containers(pod)
    container = query.get("container", "")
    if not container:
        if len(names) > 1:
            raise bad_request(
                f"a container name must be specified for pod {meta['name']}, choose one of: [{' '.join(names)}]"
            )
        container = names[0]
    elif container not in names:
        raise bad_request(f"container {container} is not valid for pod {meta['name']}")
    previous = query.get("previous") in ("true", "1")
    path = api.logs(meta["namespace"], meta["name"], meta["uid"], container, previous) if api.logs else None
    if path is None:
        if previous:
            raise bad_request(f'previous terminated container "{container}" in pod "{meta["name"]}" not found')
        if not pod["spec"].get("nodeName"):
            return text_response(200, "")
        raise bad_request(f'container "{container}" in pod "{meta["name"]}" is waiting to start: ContainerCreating')
    return Log(
        path,
        lambda: _over(api, meta, container, path),
        follow=query.get("follow") in ("true", "1"),
        tail_lines=_number(query, "tailLines"),
        limit_bytes=_number(query, "limitBytes"),
    )


def _over(api: Api, meta: Object, container: str, path: Path) -> bool:
    stored = api.store.get("pods", (meta["namespace"], meta["name"]))
    if stored is None or stored.obj["metadata"]["uid"] != meta["uid"]:
        return True
    status = stored.obj.get("status") or {}
    for entry in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        if entry.get("name") == container:
            ended = "terminated" in (entry.get("state") or {})
            return ended or int(entry.get("restartCount") or 0) > int(path.stem)
    return False


def _number(query: Any, name: str) -> int | None:
    text = query.get(name)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise bad_request(f'{name} "{text}" must be a whole number of at least 0')
    return int(text)


def _bind(api: Api, rt: ResourceType, request: Request, key: Key) -> Response:
    body = parse_json(request.body)[0]
    target = body.get("target") if isinstance(body, dict) else None
    node = target.get("name") if isinstance(target, dict) else None
    if not node or not isinstance(node, str):
        raise bad_request("a Binding needs target.name, the name of a node")
    stored = api.must_get(rt, key)
    if stored.obj["spec"].get("nodeName"):
        raise conflict("", "pods/binding", key[1], f'pod {key[1]} is already assigned to node "{node}"')
    obj = stored.copy()
    obj["spec"]["nodeName"] = node
    conditions = obj.setdefault("status", {}).setdefault("conditions", [])
    conditions[:] = [c for c in conditions if c.get("type") != "PodScheduled"]
    conditions.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": api.now()})
    api.store.put(rt.storage, key, obj)
    return _success(201)


def _proxy(api: Api, rt: ResourceType, request: Request, key: Key, rest: list[str]) -> Forward:
    name, _, port = key[1].partition(":")
    pod = api.must_get(rt, (key[0], name)).obj
    ip = pod.get("status", {}).get("podIP")
    if not ip:
        raise StatusError(503, "ServiceUnavailable", f'address not allowed: pod "{name}" has no IP yet')
    return Forward(ip, _port(pod, port), "/" + request.path.partition("/proxy")[2].lstrip("/"))


def _port(pod: Object, wanted: str) -> int:
    """The real port of a named or numbered container port."""
    name = pod["metadata"]["name"]
    declared = [p for c in pod["spec"].get("containers") or () for p in c.get("ports") or ()]
    try:
        real = json.loads((pod["metadata"].get("annotations") or {}).get("greenthread.ai/ports", "{}"))
    except ValueError:
        real = {}
    for port in declared:
        if not wanted or wanted in (port.get("name"), str(port["containerPort"])):
            return int(real.get(port.get("name"), port["containerPort"]))
    if wanted in real:
        return int(real[wanted])
    if wanted.isdigit() and 0 < int(wanted) < 65536:
        return int(wanted)
    raise StatusError(503, "ServiceUnavailable", f'pod "{name}" has no port {wanted or "at all"}')
