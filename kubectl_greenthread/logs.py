"""`logs`: what a model's containers print."""

from __future__ import annotations

import sys

from greenthread.kube.core import Response, raise_for
from greenthread.kube.errors import ApiError, KubeError
from greenthread.kube.resources import PODS
from greenthread.names import LABEL_MODEL
from kubectl_greenthread.failures import Failure
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import tell
from kubectl_greenthread.reading import bare_name, read_models

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greenthread.kube.core import Object

CONTAINERS = {"engine": "vllm", "sidecar": "sidecar"}
"""A container's name in the pod, by what people call it."""
SILENCE = 24 * 3600.0
"""Seconds for which followed logs may be silent."""


def logs(
    session: Session,
    name: str,
    container: str,
    follow: bool,
    tail: int | None,
    since: float | None,
    previous: bool,
    timestamps: bool,
) -> None:
    """Print the logs of MODEL's engine or sidecar; of several replicas all, each line with its pod in front."""
    pods = _pods(session, bare_name(name))
    params = {"container": CONTAINERS[container]}
    if follow:
        params["follow"] = "true"
    if tail is not None:
        params["tailLines"] = str(tail)
    if since is not None:
        params["sinceSeconds"] = str(max(round(since), 1))
    if previous:
        params["previous"] = "true"
    if timestamps:
        params["timestamps"] = "true"
    if session.verbose:
        for pod in pods:
            flags = "".join([" -f" if follow else "", f" --tail={tail}" if tail is not None else ""])
            tell(f"kubectl logs -n {session.namespace} {pod['metadata']['name']} -c {params['container']}{flags}")
    prefixes = [f"[{pod['metadata']['name']}] " if len(pods) > 1 else "" for pod in pods]
    if follow and len(pods) > 1:
        _together(session, pods, params, prefixes)
        return
    for pod, prefix in zip(pods, prefixes, strict=True):
        _print(session, pod, params, prefix)


def _pods(session: Session, name: str) -> list[Object]:
    found = session.client.list(PODS, session.namespace, f"{LABEL_MODEL}={name}").items
    if not found:
        row = read_models(session, [name]).row(name)  # NoSuchModel, if that is why
        wanted = row.model.spec.replicas
        raise Failure(
            f"{name} has no pods"
            + (": its replicas are 0" if not wanted else "; its phase is " + row.model.status.phase)
        )
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def _print(session: Session, pod: Object, params: dict[str, str], prefix: str) -> None:
    meta = pod["metadata"]
    path = PODS.path(meta["namespace"], meta["name"], "log")
    silence = SILENCE if params.get("follow") else 30.0
    with session.client.open("GET", path, params, {"accept": "*/*"}, timeout=silence) as stream:
        if stream.status != 200:
            raise_for(Response(stream.status, stream.headers, stream.read_all()), "get", PODS, session.config.where)
        begun = True
        while data := stream.read():
            if prefix:
                data, begun = _prefixed(data, prefix.encode(), begun)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _prefixed(data: bytes, prefix: bytes, begun: bool) -> tuple[bytes, bool]:
    """With the prefix at each line's beginning; and whether the next byte begins a line."""
    ends = data.endswith(b"\n")
    body = data[:-1] if ends else data
    text = body.replace(b"\n", b"\n" + prefix) + (b"\n" if ends else b"")
    return (prefix if begun else b"") + text, ends


def _together(session: Session, pods: list[Object], params: dict[str, str], prefixes: list[str]) -> None:
    import threading

    errors: list[KubeError] = []

    def run(pod: Object, prefix: str) -> None:
        try:
            _print(session, pod, params, prefix)
        except KubeError as error:
            errors.append(error)

    session.client  # noqa: B018 made before the threads use it
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in zip(pods, prefixes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(errors) == len(pods):
        raise errors[0]
    for error in errors:
        tell(f"warning: {error.message if isinstance(error, ApiError) else error}")
