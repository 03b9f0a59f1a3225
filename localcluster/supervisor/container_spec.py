"""From a Pod's container to a command: environment, volumes and ports as one machine has them. No effects."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenthread.names import ANNOTATION_PORTS
from localcluster.supervisor.settings import Settings

Object = dict[str, Any]
Lookup = Mapping[tuple[str, str], Mapping[str, str]]
"""Contents by (kind, name): `("Secret", "hf-token") -> {"token": "..."}`, decoded."""

MAX_ENVIRONMENT = 1024 * 1024


class Refused(Exception):
    """This container cannot be started as it is written. `reason` is Kubernetes' word, the message is for people."""

    def __init__(self, message: str, reason: str = "CreateContainerConfigError") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Command:
    """What is executed."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str


@dataclass(frozen=True, slots=True)
class Place:
    """What the machine gave a pod: a port for each name, a directory for each volume, an account."""

    ports: Mapping[str, int]
    volumes: Mapping[str, Path]
    #: How the pod speaks to the API server, where that is its own.
    kubeconfig: Path | None = None


def references(container: Object) -> set[tuple[str, str]]:
    """The Secrets and ConfigMaps that a container's environment is read from, as (kind, name)."""
    found = set()
    for variable in container.get("env") or []:
        source = variable.get("valueFrom") or {}
        for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if field in source:
                found.add((kind, source[field].get("name", "")))
    return found


def port_names(pod: Object) -> list[str]:
    """The named ports of a pod's containers, each once."""
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
    return list(dict.fromkeys(port["name"] for port in ports if port.get("name")))


def recorded_ports(pod: Object) -> dict[str, int]:
    """The ports that an earlier supervisor gave the pod, `{}` when it did not or they cannot be read."""
    try:
        ports = json.loads((pod["metadata"].get("annotations") or {}).get(ANNOTATION_PORTS, "{}"))
        return {str(name): int(port) for name, port in ports.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def ports_text(ports: Mapping[str, int]) -> str:
    """The annotation for these ports."""
    return json.dumps(ports)


def resolve_port(port: int | str, pod: Object, ports: Mapping[str, int]) -> int | None:
    """The number on this machine of a probe's or Service's port: a name, or the number that a named port declares."""
    if isinstance(port, str) and not port.isdecimal():
        return ports.get(port)
    number = int(port)
    for container in pod["spec"]["containers"]:
        for declared in container.get("ports") or []:
            if declared.get("containerPort") == number and declared.get("name") in ports:
                return ports[declared["name"]]
    return number


def volume_directories(pod: Object, folder: Path) -> dict[str, Path]:
    """The directory of each volume; `folder` is the pod's own. Raises Refused for kinds unknown here."""
    found: dict[str, Path] = {}
    for volume in pod["spec"].get("volumes") or []:
        name = volume["name"]
        if "emptyDir" in volume:
            found[name] = folder / "volumes" / name
        elif "hostPath" in volume:
            found[name] = Path(volume["hostPath"]["path"])
        else:
            kind = next((key for key in volume if key != "name"), "this kind")
            raise Refused(f"volume {name}: {kind} is not supported on one machine; use emptyDir or hostPath")
    return found


def resolve(
    pod: Object, container: Object, settings: Settings, place: Place, inherited: Mapping[str, str], lookup: Lookup
) -> Command:
    """The command of a container.

    `inherited` is the environment of the supervisor; `lookup` holds what `references` named, as far as it exists.
    Raises Refused.
    """
    _refuse_unsupported(container)
    image_name = container.get("image", "")
    image = settings.image(image_name)
    if image is None and not container.get("command"):
        known = ", ".join(settings.images) or "none"
        raise Refused(f"no image {image_name!r} on this machine (known: {known})", "ErrImageNeverPull")
    mounts = {
        mount["mountPath"]: str(place.volumes[mount["name"]] / mount.get("subPath", ""))
        for mount in container.get("volumeMounts") or []
        if mount["name"] in place.volumes
    }
    port_variables = {name.upper().replace("-", "_") + "_PORT": str(number) for name, number in place.ports.items()}
    own: dict[str, str] = {}
    for variable in container.get("env") or []:
        name = variable["name"]
        value = port_variables.get(name) or _value(variable, pod, settings, lookup, own)
        if value is not None:
            own[name] = mounts.get(value, value)
    env = dict(inherited) | dict(image.env if image else {})
    if place.kubeconfig is not None:
        env["KUBECONFIG"] = str(place.kubeconfig)
    env |= own
    if sum(len(name) + len(value) for name, value in env.items()) > MAX_ENVIRONMENT:
        raise Refused(f"the environment of {container['name']} is larger than {MAX_ENVIRONMENT} bytes")
    command = container.get("command") or (list(image.entrypoint) if image else [])
    words = [*command, *(container.get("args") or [])]
    if not words:
        raise Refused(f"image {image_name!r} has no entrypoint and the container names no command")
    cwd = container.get("workingDir") or "/"
    return Command(
        argv=tuple(expand(word, own) for word in words),
        env=env,
        cwd=mounts.get(cwd, cwd),
    )


_REFERENCE = re.compile(r"\$(\$|\([^()$]*\))")


def expand(text: str, env: Mapping[str, str]) -> str:
    """Kubernetes' `$(NAME)`; `$$(NAME)` is a literal `$(NAME)`, an unknown name stays as written."""

    def one(match: re.Match[str]) -> str:
        inside = match.group(1)
        return "$" if inside == "$" else env.get(inside[1:-1], match.group(0))

    return _REFERENCE.sub(one, text)


def _refuse_unsupported(container: Object) -> None:
    name = container["name"]
    if container.get("envFrom"):
        raise Refused(f"container {name}: envFrom is not supported on one machine; name each variable in env")
    if container.get("restartPolicy"):
        raise Refused(f"init container {name}: restartPolicy is not supported on one machine")


def _value(variable: Object, pod: Object, settings: Settings, lookup: Lookup, earlier: Mapping[str, str]) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value") or "", earlier)
    if "fieldRef" in source:
        return field_value(source["fieldRef"].get("fieldPath", ""), pod, settings)
    for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if field in source:
            reference = source[field]
            content = lookup.get((kind, reference.get("name", "")))
            if content is not None and reference.get("key") in content:
                return content[reference["key"]]
            if reference.get("optional"):
                return None
            missing = f"key {reference.get('key')!r}" if content is not None else "it"
            name = f"{kind} {reference.get('name')!r}"
            raise Refused(f"variable {variable['name']} is read from {name}, but {missing} does not exist")
    raise Refused(f"variable {variable['name']}: {next(iter(source))} is not supported on one machine")


_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


def field_value(path: str, pod: Object, settings: Settings) -> str:
    """A field of the downward API. Raises Refused for one that does not exist."""
    metadata, spec = pod["metadata"], pod["spec"]
    in_map = _MAP_FIELD.fullmatch(path)
    if in_map:
        return str((metadata.get(in_map.group(1)) or {}).get(in_map.group(2), ""))
    fields = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata.get("uid", ""),
        "spec.nodeName": settings.node,
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.podIP": settings.address,
        "status.podIPs": settings.address,
        "status.hostIP": settings.address,
        "status.hostIPs": settings.address,
    }
    if path not in fields:
        raise Refused(f"fieldPath {path!r} is not supported; known: {', '.join(fields)}, metadata.labels['x']")
    return str(fields[path])
