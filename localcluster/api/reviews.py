"""Self-subject reviews: whoever holds the token may do everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import bad_request
from .resources import ResourceType
from .storage import Object

if TYPE_CHECKING:
    from .core import Api

USER = "greenthread-admin"


def review(api: Api, rt: ResourceType, body: Object) -> Object:
    """The answered review."""
    spec = body.get("spec")
    if not isinstance(spec, dict):
        spec = {}
    status: dict[str, Any]
    if rt.kind == "SelfSubjectAccessReview":
        if not isinstance(spec.get("resourceAttributes") or spec.get("nonResourceAttributes"), dict):
            raise bad_request("spec.resourceAttributes or spec.nonResourceAttributes must be specified")
        status = {"allowed": True, "reason": "the holder of the local token may do everything"}
    elif rt.kind == "SelfSubjectRulesReview":
        status = {
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": False,
        }
    else:
        status = {"userInfo": {"username": USER, "groups": ["system:masters", "system:authenticated"]}}
    return {
        "apiVersion": rt.api_version,
        "kind": rt.kind,
        "metadata": {"creationTimestamp": None},
        "spec": spec,
        "status": status,
    }
