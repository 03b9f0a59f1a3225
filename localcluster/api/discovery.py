"""What clients ask before they do anything: health, version, groups, resources."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from .messages import Request, Response, json_response, text_response
from .resources import ResourceType

if TYPE_CHECKING:
    from .core import Api

HEALTH = ("healthz", "livez", "readyz")
VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2+greenthread",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}
_STATUS_VERBS = ["get", "patch", "update"]
_SUBRESOURCES: dict[str, tuple[str, str, str, list[str]]] = {
    "log": ("", "v1", "Pod", ["get"]),
    "binding": ("", "v1", "Binding", ["create"]),
    "eviction": ("policy", "v1", "Eviction", ["create"]),
    "proxy": ("", "v1", "PodProxyOptions", ["create", "delete", "get", "patch", "update"]),
}


def open_answer(parts: list[str], request: Request) -> Response | None:
    """Answers that need no token; None for other paths."""
    if parts and parts[0] in HEALTH and request.method == "GET":
        return text_response(200, "ok")
    if parts == ["version"] and request.method == "GET":
        return json_response(200, VERSION)
    return None


def answer(api: Api, parts: list[str], request: Request) -> Response | None:
    """Discovery documents; None for other paths."""
    if request.method != "GET":
        return None
    if not parts:
        groups = sorted({f"/apis/{g}/{v}" for g, v in api.types if g} | {f"/apis/{g}" for g, _ in api.types if g})
        return json_response(
            200, {"paths": ["/api", "/api/v1", "/apis", *groups, "/healthz", "/openapi/v3", "/version"]}
        )
    if parts[0] == "openapi":
        from .openapi import document

        return document(api, parts[1:], request)
    if parts == ["api"]:
        if _aggregated(request):
            return _aggregate(api, request, core=True)
        return json_response(200, {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
    if parts == ["apis"]:
        if _aggregated(request):
            return _aggregate(api, request, core=False)
        groups_list = [_group(api, name) for name in _groups(api)]
        return json_response(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups_list})
    if parts == ["api", "v1"]:
        return json_response(200, _resources(api, "", "v1"))
    if parts[0] == "apis" and len(parts) == 2 and parts[1] in _groups(api):
        return json_response(200, {"kind": "APIGroup", "apiVersion": "v1", **_group(api, parts[1])})
    if parts[0] == "apis" and len(parts) == 3 and (parts[1], parts[2]) in api.types:
        return json_response(200, _resources(api, parts[1], parts[2]))
    return None


def _groups(api: Api) -> list[str]:
    return list(dict.fromkeys(group for group, _ in api.types if group))


_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?\Z")


def _rank(version: str) -> tuple[int, ...]:
    """Sorts versions as Kubernetes prefers them: v2, v1, v1beta1, v1alpha1, then the others by name."""
    match = _VERSION.match(version)
    if match is None:
        return (1, *(ord(char) for char in version))
    major, kind, minor = match.groups()
    return (0, {None: 0, "beta": 1, "alpha": 2}[kind], -int(major), -int(minor or 0))


def _versions(api: Api, group: str) -> list[str]:
    return sorted((version for found, version in api.types if found == group), key=_rank)


def _group(api: Api, group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{v}", "version": v} for v in _versions(api, group)]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def _resources(api: Api, group: str, version: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for rt in sorted(api.types[(group, version)].values(), key=lambda rt: rt.plural):
        entry: dict[str, Any] = {
            "name": rt.plural,
            "singularName": rt.singular,
            "namespaced": rt.namespaced,
            "kind": rt.kind,
            "verbs": list(rt.verbs),
            "storageVersionHash": hashlib.sha256(rt.storage.encode()).hexdigest()[:10],
        }
        if rt.short_names:
            entry["shortNames"] = list(rt.short_names)
        if rt.categories:
            entry["categories"] = list(rt.categories)
        found.append(entry)
        for name, (sub_group, sub_version, kind, verbs) in _subresources(rt):
            entry = {
                "name": f"{rt.plural}/{name}",
                "singularName": "",
                "namespaced": rt.namespaced,
                "kind": kind,
                "verbs": verbs,
            }
            if sub_group != rt.group:
                entry.update(group=sub_group, version=sub_version)
            found.append(entry)
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": found,
    }


def _subresources(rt: ResourceType) -> list[tuple[str, tuple[str, str, str, list[str]]]]:
    found = [(name, _SUBRESOURCES[name]) for name in rt.subresources]
    if rt.status:
        found.append(("status", (rt.group, rt.version, rt.kind, _STATUS_VERBS)))
    return sorted(found)


def _aggregated(request: Request) -> str:
    """The version of aggregated discovery that the client asks for first; "" for none."""
    for choice in request.headers.get("accept", "").split(","):
        parameters = dict(p.strip().partition("=")[::2] for p in choice.split(";")[1:])
        if parameters.get("as") == "APIGroupDiscoveryList" and parameters.get("v") in ("v2", "v2beta1"):
            return parameters["v"]
        if choice.split(";")[0].strip() == "application/json" and "as" not in parameters:
            return ""
    return ""


def _aggregate(api: Api, request: Request, *, core: bool) -> Response:
    version = _aggregated(request)
    items = []
    for group in [""] if core else _groups(api):
        versions = []
        for name in _versions(api, group):
            resources = []
            for rt in sorted(api.types[(group, name)].values(), key=lambda rt: rt.plural):
                entry: dict[str, Any] = {
                    "resource": rt.plural,
                    "responseKind": {"group": rt.group, "version": rt.version, "kind": rt.kind},
                    "scope": "Namespaced" if rt.namespaced else "Cluster",
                    "singularResource": rt.singular,
                    "verbs": list(rt.verbs),
                }
                if rt.short_names:
                    entry["shortNames"] = list(rt.short_names)
                if rt.categories:
                    entry["categories"] = list(rt.categories)
                subs = [
                    {
                        "subresource": sub,
                        "responseKind": {"group": sub_group, "version": sub_version, "kind": kind},
                        "verbs": verbs,
                    }
                    for sub, (sub_group, sub_version, kind, verbs) in _subresources(rt)
                ]
                if subs:
                    entry["subresources"] = subs
                resources.append(entry)
            versions.append({"version": name, "resources": resources, "freshness": "Current"})
        items.append({"metadata": {"name": group, "creationTimestamp": None}, "versions": versions})
    body = {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }
    media = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
    return json_response(200, body, {"Content-Type": media})
