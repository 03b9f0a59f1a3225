"""The Service and the HTTPRoute of a Model, and its addresses. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controller.pods import labels, owner_reference
from controller.settings import Settings
from greenthread.kube.resources import HTTP_ROUTES
from greenthread.model import Model
from greenthread.names import LABEL_MODEL, LABEL_NAME, POD_APP_NAME

Object = dict[str, Any]


def service(model: Model) -> Object:
    """One stable name for the model's sidecars."""
    return {
        "metadata": _metadata(model),
        "spec": {
            "type": "ClusterIP",
            "selector": {LABEL_NAME: POD_APP_NAME, LABEL_MODEL: model.name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
        },
    }


def service_changes(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> Object:
    """The merge patch for a Service of ours that differs in what we set; empty when it does not."""
    patch: Object = {}
    have = present.get("spec") or {}
    if have.get("selector") != wanted["spec"]["selector"]:
        # a merge patch adds to a mapping: what is too much must be named
        stale = {key: None for key in have.get("selector") or {} if key not in wanted["spec"]["selector"]}
        patch["spec"] = {"selector": wanted["spec"]["selector"] | stale}
    fields = ("name", "port", "protocol", "targetPort")
    ours = [{key: port.get(key) for key in fields} for port in have.get("ports") or ()]
    if ours != wanted["spec"]["ports"]:
        patch.setdefault("spec", {})["ports"] = wanted["spec"]["ports"]
    its_labels = present["metadata"].get("labels") or {}
    if any(its_labels.get(key) != value for key, value in wanted["metadata"]["labels"].items()):
        patch["metadata"] = {"labels": wanted["metadata"]["labels"]}
    return patch


def route(model: Model, settings: Settings, has_short_address: bool) -> Object:
    """The way from the Gateway: ``/<namespace>/<model>`` and, for the oldest of that name, ``/<model>``.

    ``/v1`` and ``/v2`` under these and no more: a sidecar's other paths, its metrics among them, are not for clients.
    """
    namespace, _, name = settings.route_gateway.partition("/")
    prefixes = [f"/{model.namespace}/{model.name}"] + ([f"/{model.name}"] if has_short_address else [])
    return {
        "apiVersion": HTTP_ROUTES.api_version,
        "kind": HTTP_ROUTES.kind,
        "metadata": _metadata(model),
        "spec": {
            "parentRefs": [{"name": name, "namespace": namespace}],
            "rules": [
                {
                    # one match each: the Gateway API wants no more where a prefix is replaced
                    "matches": [{"path": {"type": "PathPrefix", "value": f"{prefix}{api}"}}],
                    "filters": [{"type": "URLRewrite", "urlRewrite": {"path": _replaced_by(api)}}],
                    "backendRefs": [{"name": model.name, "port": 80}],
                    "timeouts": {"request": settings.route_timeout},
                }
                for prefix in prefixes
                for api in ("/v1", "/v2")
            ],
        },
    }


def _replaced_by(prefix: str) -> Object:
    return {"type": "ReplacePrefixMatch", "replacePrefixMatch": prefix}


def is_owned(obj: Mapping[str, Any], model: Model) -> bool:
    return any(owner.get("uid") == model.uid for owner in obj["metadata"].get("ownerReferences") or ())


def short_address_owner(models: Iterable[Model]) -> Model:
    """Of Models of one name the one whose address is ``/<name>``: the oldest."""
    return min(models, key=lambda model: (str(model.created_at or "9"), model.namespace))


def url(model: Model, gateway_url: str, has_short_address: bool) -> str:
    """Where its API is: behind the gateway, and without one ("") at its own Service."""
    if not gateway_url:
        return f"http://{model.name}.{model.namespace}.svc/v1"
    path = model.name if has_short_address else f"{model.namespace}/{model.name}"
    return f"{gateway_url}/{path}/v1"


def _metadata(model: Model) -> Object:
    return {
        "name": model.name,
        "namespace": model.namespace,
        "labels": labels(model),
        "ownerReferences": [owner_reference(model)],
    }
