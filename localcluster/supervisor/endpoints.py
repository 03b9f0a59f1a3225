"""EndpointSlices: one for each pod and Service that selects it, with the ports as this machine allocated them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from greenthread.kube.resources import Key, key_of
from localcluster.supervisor.container_spec import resolve_port

Object = dict[str, Any]

LABEL_SERVICE = "kubernetes.io/service-name"
LABEL_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGED_BY = "supervisor.greenthread.ai"


@dataclass(frozen=True, slots=True)
class PodAddress:
    """A pod as a Service sees it."""

    pod: Object
    ports: Mapping[str, int]
    ready: bool
    terminating: bool


def wanted(pods: Iterable[PodAddress], services: Iterable[Object], node: str, address: str) -> dict[Key, Object]:
    """All EndpointSlices that should exist for the pods of this node."""
    services = list(services)
    slices = (_slice(pod, service, node, address) for pod in pods for service in services if _selects(service, pod.pod))
    return {key_of(found): found for found in slices}


def differs(actual: Object, want: Object) -> bool:
    """Whether an existing slice must be replaced."""
    return any(actual.get(key) != want[key] for key in ("endpoints", "ports")) or (
        actual["metadata"].get("labels") != want["metadata"]["labels"]
    )


def belongs_to(found: Object, node: str) -> bool:
    """Whether a slice was written for a pod of this node."""
    return any(endpoint.get("nodeName") == node for endpoint in found.get("endpoints") or [])


def _selects(service: Object, pod: Object) -> bool:
    selector = service["spec"].get("selector") or {}
    if not selector or service["metadata"]["namespace"] != pod["metadata"]["namespace"]:
        return False
    labels = pod["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, value in selector.items())


def _slice(place: PodAddress, service: Object, node: str, address: str) -> Object:
    pod = place.pod["metadata"]
    listens_anyway = bool(service["spec"].get("publishNotReadyAddresses"))
    ports = []
    for port in service["spec"].get("ports") or []:
        number = resolve_port(port.get("targetPort") or port["port"], place.pod, place.ports)
        if number is not None:
            ports.append({"name": port.get("name") or "", "port": number, "protocol": port.get("protocol") or "TCP"})
    return {
        "metadata": {
            "name": f"{service['metadata']['name']}-{pod['name']}",
            "namespace": pod["namespace"],
            "labels": {LABEL_SERVICE: service["metadata"]["name"], LABEL_MANAGED_BY: MANAGED_BY},
            # goes with the pod even when this machine is never seen again
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod["name"], "uid": pod["uid"]}],
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {
                    "ready": listens_anyway or (place.ready and not place.terminating),
                    "serving": place.ready,
                    "terminating": place.terminating,
                },
                "targetRef": {"kind": "Pod", "namespace": pod["namespace"], "name": pod["name"], "uid": pod["uid"]},
                "nodeName": node,
            }
        ],
        "ports": ports,
    }
