"""The schemas of the built-in kinds, and the OpenAPI documents that clients read."""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import StatusError
from .messages import Request, Response, json_response, text_response
from .resources import ResourceType
from .schema import Schema, compile_schema
from .storage import dumps

if TYPE_CHECKING:
    from .core import Api

SCHEMAS = Path(__file__).with_name("schemas.json.gz")
"""Made by schemas_from_cluster.py."""
_REF = "#/components/schemas/"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_GVK = "x-kubernetes-group-version-kind"
_TEXTS = {
    "apiVersion": "APIVersion defines the versioned schema of this representation of an object. Servers should convert "
    "recognized schemas to the latest internal value, and may reject unrecognized values.",
    "kind": "Kind is a string value representing the REST resource this object represents. Cannot be updated. In "
    "CamelCase.",
    "metadata": "Standard object's metadata.",
}
_EMPTY_V2 = b"\x0a\x032.0"
"""An OpenAPI 2.0 document without definitions, in protobuf: kubectl reads it before it says that a kind is unknown."""
_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")


@cache
def _schemas() -> dict[str, Any]:
    if not SCHEMAS.exists():
        return {}
    loaded: dict[str, Any] = json.loads(gzip.decompress(SCHEMAS.read_bytes()))
    return loaded


@cache
def _names() -> dict[tuple[str, str, str], str]:
    found = {}
    for name, schema in _schemas().items():
        kinds = schema.get(_GVK, ())
        if len(kinds) == 1:
            found[(kinds[0]["group"], kinds[0]["version"], kinds[0]["kind"])] = name
    return found


@cache
def schema_of(group: str, version: str, kind: str) -> Schema | None:
    """The compiled schema of a built-in kind; None if it has none."""
    name = _names().get((group, version, kind))
    return None if name is None else compile_schema({"$ref": _REF + name}, _schemas())


def document(api: Api, parts: list[str], request: Request) -> Response:
    """Answers `/openapi/…`."""
    if parts == ["v2"]:
        return Response(200, {"Content-Type": "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"}, _EMPTY_V2)
    if parts[:1] != ["v3"]:
        raise StatusError(404, "NotFound", "only /openapi/v3 is served")
    where = "/".join(parts[1:])
    places = {f"apis/{g}/{v}" if g else f"api/{v}": (g, v) for g, v in api.types}
    if not where:
        paths = {}
        for place, group_version in places.items():
            digest = hashlib.sha256(_group_version(api, *group_version)).hexdigest()[:32].upper()
            paths[place] = {"serverRelativeURL": f"/openapi/v3/{place}?hash={digest}"}
        return json_response(200, {"paths": paths})
    if where not in places:
        return text_response(404, "404 page not found\n")
    body = _group_version(api, *places[where])
    return json_response(200, body, {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"'})


def _group_version(api: Api, group: str, version: str) -> bytes:
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for rt in api.types[(group, version)].values():
        name = _component(rt)
        if rt.custom:
            schemas[name] = _custom_schema(rt)
            _close(schemas, [_META + "ObjectMeta"])
        elif name in _schemas():
            _close(schemas, [name])
        else:
            continue
        schemas[name + "List"] = _list_schema(rt, name)
        _close(schemas, [_META + "ListMeta"])
        paths |= _paths(rt, name)
    info = {"title": "Kubernetes", "version": "v1.36"}
    return dumps({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}})


def _component(rt: ResourceType) -> str:
    if not rt.custom:
        return _names().get((rt.group, rt.version, rt.kind), "")
    return ".".join([*reversed(rt.group.split(".")), rt.version, rt.kind])


def _close(schemas: dict[str, Any], names: list[str]) -> None:
    """Adds schemas of the built-in kinds with everything they refer to."""
    while names:
        name = names.pop()
        if name not in schemas and name in _schemas():
            schemas[name] = _schemas()[name]
            names += _all_refs(schemas[name])


def _all_refs(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].removeprefix(_REF)] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in _all_refs(value)]
    return [ref for value in node for ref in _all_refs(value)] if isinstance(node, list) else []


def _custom_schema(rt: ResourceType) -> dict[str, Any]:
    raw = dict(rt.raw_schema or {"type": "object", "x-kubernetes-preserve-unknown-fields": True})
    metadata = {"description": _TEXTS["metadata"], "allOf": [{"$ref": f"{_REF}{_META}ObjectMeta"}]}
    own = {key: value for key, value in raw.get("properties", {}).items() if key not in _TEXTS}
    raw["properties"] = {
        "apiVersion": {"type": "string", "description": _TEXTS["apiVersion"]},
        "kind": {"type": "string", "description": _TEXTS["kind"]},
        "metadata": metadata,
        **own,
    }
    raw[_GVK] = [_gvk(rt)]
    return raw


def _list_schema(rt: ResourceType, name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["items"],
        "description": f"{rt.kind}List is a list of {rt.kind}",
        "properties": {
            "apiVersion": {"type": "string", "description": _TEXTS["apiVersion"]},
            "kind": {"type": "string", "description": _TEXTS["kind"]},
            "metadata": {"allOf": [{"$ref": f"{_REF}{_META}ListMeta"}]},
            "items": {"type": "array", "items": {"allOf": [{"$ref": _REF + name}]}},
        },
        _GVK: [{**_gvk(rt), "kind": rt.list_kind}],
    }


def _gvk(rt: ResourceType) -> dict[str, str]:
    return {"group": rt.group, "version": rt.version, "kind": rt.kind}


def _paths(rt: ResourceType, name: str) -> dict[str, Any]:
    base = f"/apis/{rt.group}/{rt.version}" if rt.group else f"/api/{rt.version}"
    answer = {"200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": _REF + name}}}}}
    written = [{"name": p, "in": "query", "schema": {"type": "string", "uniqueItems": True}} for p in _PARAMETERS]

    def operation(action: str, *, write: bool = False, body: bool = False) -> dict[str, Any]:
        out: dict[str, Any] = {"responses": answer, "x-kubernetes-action": action, _GVK: _gvk(rt)}
        if write:
            out["parameters"] = written
        if body:
            out["requestBody"] = {"required": True, "content": {"*/*": {"schema": {"$ref": _REF + name}}}}
        return out

    create = operation("post", write=True, body=True)
    if "list" not in rt.verbs and "get" not in rt.verbs:
        return {f"{base}/{rt.plural}": {"post": create}}
    listing = operation("list")
    listed = {"$ref": f"{_REF}{name}List"}
    listing["responses"] = {"200": {"description": "OK", "content": {"application/json": {"schema": listed}}}}
    one = {
        "get": operation("get"),
        "put": operation("put", write=True, body=True),
        "patch": operation("patch", write=True, body=True),
        "delete": operation("delete"),
    }
    home = f"{base}/namespaces/{{namespace}}/{rt.plural}" if rt.namespaced else f"{base}/{rt.plural}"
    paths: dict[str, Any] = {home: {"get": listing, "post": create}, f"{home}/{{name}}": one}
    if rt.namespaced:
        paths[f"{base}/{rt.plural}"] = {"get": listing}
    if rt.status:
        paths[f"{home}/{{name}}/status"] = {key: one[key] for key in ("get", "put", "patch")}
    return paths
