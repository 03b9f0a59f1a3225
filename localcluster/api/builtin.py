"""The built-in kinds: what is filled in, what is checked, what `kubectl get` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import printing, rules
from .crds import CRDS, default_names
from .metadata import dns_label
from .openapi import schema_of
from .resources import ResourceType
from .selectors import Field, by_path

if TYPE_CHECKING:
    from .core import Api

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def _type(group: str, version: str, plural: str, kind: str, **more: Any) -> ResourceType:
    storage = more.pop("storage", f"{plural}.{group}" if group else plural)
    return ResourceType(
        group=group,
        version=version,
        plural=plural,
        singular=kind.lower(),
        kind=kind,
        storage=storage,
        schema=schema_of(group, version, kind),
        **more,
    )


_EVENT_FIELDS: dict[str, Field] = {
    **{
        f"involvedObject.{name}": by_path(f"involvedObject.{name}")
        for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    },
    "reason": by_path("reason"),
    "reportingComponent": lambda obj: str(
        obj.get("reportingComponent") or (obj.get("source") or {}).get("component", "")
    ),
    "source": lambda obj: str((obj.get("source") or {}).get("component") or obj.get("reportingComponent") or ""),
    "type": by_path("type"),
}


def builtin_types() -> list[ResourceType]:
    """All of them."""
    created: Callable[..., ResourceType] = _type
    review: dict[str, Any] = {"verbs": ("create",), "namespaced": False, "counts_generation": False}
    plain: dict[str, Any] = {"counts_generation": False}
    return [
        created(
            "", "v1", "namespaces", "Namespace", namespaced=False, short_names=("ns",), status=True,
            status_writes_metadata=True, counts_generation=False, prepare=rules.namespace, name_rule=dns_label,
            columns=printing.NAMESPACES, fields={"status.phase": by_path("status.phase")},
            verbs=("create", "delete", "get", "list", "patch", "update", "watch"), returns_deleted=True,
        ),
        created(
            "", "v1", "pods", "Pod", short_names=("po",), categories=("all",), status=True,
            status_writes_metadata=True, subresources=("log", "binding", "eviction", "proxy"),
            prepare=rules.pod, check=rules.check_pod, columns=printing.PODS, graceful=True, returns_deleted=True,
            fields={
                f: by_path(f)
                for f in (
                    "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
                    "status.phase", "status.podIP", "status.nominatedNodeName",
                )
            },
        ),
        created(
            "", "v1", "services", "Service", short_names=("svc",), categories=("all",), status=True,
            status_writes_metadata=True, counts_generation=False, prepare=rules.service, check=rules.check_service,
            columns=printing.SERVICES, name_rule=dns_label, returns_deleted=True,
            fields={"spec.clusterIP": by_path("spec.clusterIP"), "spec.type": by_path("spec.type")},
        ),
        created("", "v1", "endpoints", "Endpoints", short_names=("ep",), columns=printing.ENDPOINTS, **plain),
        created(
            "", "v1", "events", "Event", short_names=("ev",), columns=printing.EVENTS, fields=_EVENT_FIELDS,
            prepare=rules.event, check=rules.check_event, **plain,
        ),
        created(
            "events.k8s.io", "v1", "events", "Event", short_names=("ev",), columns=printing.EVENTS, storage="events",
            stored_as="v1", to_stored=rules.event_to_core, from_stored=rules.event_from_core,
            fields={
                **{
                    f"regarding.{name}": by_path(f"regarding.{name}")
                    for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
                },
                "reason": by_path("reason"), "type": by_path("type"),
                "reportingController": by_path("reportingController"),
            },
            check=rules.check_new_event, **plain,
        ),
        created(
            "", "v1", "secrets", "Secret", prepare=rules.secret, check=rules.check_secret, columns=printing.SECRETS,
            fields={"type": by_path("type")}, **plain,
        ),
        created(
            "", "v1", "configmaps", "ConfigMap", short_names=("cm",), check=rules.check_config_map,
            columns=printing.CONFIG_MAPS, **plain,
        ),
        created(
            "", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",), columns=printing.SERVICE_ACCOUNTS,
            returns_deleted=True, **plain,
        ),
        created(
            "", "v1", "nodes", "Node", namespaced=False, short_names=("no",), status=True, status_writes_metadata=True,
            counts_generation=False, columns=printing.NODES, prepare=rules.node,
            fields={"spec.unschedulable": lambda obj: str(bool(obj.get("spec", {}).get("unschedulable"))).lower()},
        ),
        created(
            "discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", columns=printing.ENDPOINT_SLICES,
            prepare=rules.endpoint_slice, check=rules.check_endpoint_slice,
        ),
        created(
            "coordination.k8s.io", "v1", "leases", "Lease", columns=printing.LEASES, check=rules.check_lease, **plain
        ),
        created(
            "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False,
            short_names=("crd", "crds"), categories=("api-extensions",), status=True, storage=CRDS,
            columns=printing.CRDS, prepare=default_names,
        ),
        created("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", **review),
        created("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", **review),
        created("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", **review),
    ]  # fmt: skip


def fill_store(api: Api, namespace: str = "") -> None:
    """Makes what every cluster has: its namespaces, and the default service account in each."""
    if not namespace:
        rt = api.type_of("", "v1", "namespaces")
        assert rt is not None
        for name in NAMESPACES:
            if api.store.get("namespaces", ("", name)) is None:
                api.create(rt, "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return
    found = api.store.get("namespaces", ("", namespace))
    accounts = api.type_of("", "v1", "serviceaccounts")
    assert accounts is not None
    if found is None or found.obj["metadata"].get("deletionTimestamp"):
        return
    if api.store.get("serviceaccounts", (namespace, "default")) is None:
        api.create(accounts, namespace, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})
