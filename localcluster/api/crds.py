"""CustomResourceDefinitions: checked when they come, and turned into resources of the API."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import cel
from .errors import Cause, cause, invalid
from .metadata import dns_label_1035, dns_subdomain
from .resources import Column, ResourceType
from .schema import Schema, SchemaError, apply_defaults, compile_schema, prune, regex, validate
from .selectors import by_path
from .storage import Object
from .tables import jsonpath

if TYPE_CHECKING:
    from .core import Api

CRDS = "customresourcedefinitions.apiextensions.k8s.io"
_GROUP = "apiextensions.k8s.io"
_KIND = "CustomResourceDefinition"
_TYPES = ("object", "array", "string", "integer", "number", "boolean")


class CustomTypes:
    """The resources that CRDs define."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def load(self) -> None:
        """Serves what the CRDs of the store define."""
        for stored in self._api.store.all(CRDS).values():
            self._serve(stored.obj)

    def admit(self, crd: Object, old: Object | None) -> None:
        """StatusError 422 if the CRD cannot be served. Sets its conditions."""
        name = crd["metadata"]["name"]
        found = _check(crd, old)
        if not found:
            for index, version in enumerate(crd["spec"]["versions"]):
                found += _compile(version, _schema_path(crd, index))[1]
        if found:
            raise invalid(_GROUP, _KIND, name, found)
        crd["status"] = self._status(crd, old)

    def _status(self, crd: Object, old: Object | None) -> Object:
        names = crd["spec"]["names"]
        taken = self._taken(crd)
        since = self._api.now()
        if old is not None:
            since = old["status"]["conditions"][0]["lastTransitionTime"]
        accepted: Object = {
            "type": "NamesAccepted", "status": "True", "lastTransitionTime": since, "reason": "NoConflicts",
            "message": "no conflicts found",
        }  # fmt: skip
        established: Object = {
            "type": "Established", "status": "True", "lastTransitionTime": since, "reason": "InitialNamesAccepted",
            "message": "the initial names have been accepted",
        }  # fmt: skip
        if taken:
            accepted.update(status="False", reason="NameConflict", message=taken)
            established.update(status="False", reason="NotAccepted", message="not all names are accepted")
        return {
            "conditions": [accepted, established],
            "acceptedNames": {} if taken else names,
            "storedVersions": [v["name"] for v in crd["spec"]["versions"] if v["storage"]],
        }

    def _taken(self, crd: Object) -> str:
        group, names = crd["spec"]["group"], crd["spec"]["names"]
        for stored in self._api.store.all(CRDS).values():
            other = stored.obj
            if other["metadata"]["name"] == crd["metadata"]["name"] or other["spec"]["group"] != group:
                continue
            theirs = other["spec"]["names"]
            words = {theirs["plural"], theirs["singular"], *theirs.get("shortNames", ())}
            for word in (names["plural"], names["singular"], *names.get("shortNames", ())):
                if word in words:
                    return f'"{word}" is already in use'
            if {names["kind"], names["listKind"]} & {theirs["kind"], theirs["listKind"]}:
                return f'"{names["kind"]}" is already in use'
        return ""

    def changed(self, crd: Object) -> None:
        """Serves a CRD that was written."""
        self._serve(crd)

    def removed(self, crd: Object) -> None:
        """Serves a CRD no more: its objects go, and the watches on them end."""
        storage = crd["metadata"]["name"]
        self._withdraw(storage)
        for key in list(self._api.store.all(storage)):
            self._api.store.remove(storage, key)
        self._api.store.drop_history(storage)
        self._api.end_watches(storage)

    def _withdraw(self, storage: str) -> None:
        for version, kinds in list(self._api.types.items()):
            for plural in [p for p, rt in kinds.items() if rt.storage == storage]:
                del kinds[plural]
            if not kinds:
                del self._api.types[version]

    def _serve(self, crd: Object) -> None:
        self._withdraw(crd["metadata"]["name"])
        if not any(c["type"] == "Established" and c["status"] == "True" for c in crd["status"]["conditions"]):
            return
        for version in crd["spec"]["versions"]:
            if version["served"]:
                rt = _resource(crd, version)
                self._api.types.setdefault((rt.group, rt.version), {})[rt.plural] = rt


def default_names(crd: Object, old: Object | None, now: str) -> None:
    """Fills in what a CRD may leave out, and the finalizer that gives its objects time to end."""
    if old is None:
        crd["metadata"].setdefault("finalizers", []).append("customresourcecleanup.apiextensions.k8s.io")
    spec = crd.get("spec")
    names = spec.get("names") if isinstance(spec, dict) else None
    if spec and isinstance(names, dict) and isinstance(names.get("kind"), str):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")
        spec.setdefault("conversion", {"strategy": "None"})


def _resource(crd: Object, version: Object) -> ResourceType:
    spec, names = crd["spec"], crd["spec"]["names"]
    stored = next(v["name"] for v in spec["versions"] if v["storage"])
    subresources = version.get("subresources") or {}
    schema = _compile(version, "")[0]
    columns = tuple(
        Column(
            name=column["name"],
            read=jsonpath(column["jsonPath"]),
            type=column["type"],
            priority=int(column.get("priority", 0)),
            format=column.get("format", ""),
            description=column.get("description", ""),
        )
        for column in version.get("additionalPrinterColumns") or ()
    )
    return ResourceType(
        group=spec["group"],
        version=version["name"],
        plural=names["plural"],
        singular=names["singular"],
        kind=names["kind"],
        namespaced=spec["scope"] == "Namespaced",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        storage=crd["metadata"]["name"],
        stored_as="" if version["name"] == stored else f"{spec['group']}/{stored}",
        to_stored=lambda obj: {**obj, "apiVersion": f"{spec['group']}/{stored}"},
        status="status" in subresources,
        schema=schema,
        raw_schema=(version.get("schema") or {}).get("openAPIV3Schema"),
        custom=True,
        columns=columns,
        fields={
            field["jsonPath"].lstrip("."): by_path(field["jsonPath"]) for field in version.get("selectableFields") or ()
        },
        unconditional_update=False,
        deprecation=version.get("deprecationWarning", "") if version.get("deprecated") else "",
    )


def _schema_path(crd: Object, index: int) -> str:
    """How kube-apiserver names the place of a schema: what all versions share is at the top."""
    if len(crd["spec"]["versions"]) == 1:
        return "spec.validation.openAPIV3Schema"
    return f"spec.versions[{index}].schema.openAPIV3Schema"


def _compile(version: Object, path: str) -> tuple[Schema | None, list[Cause]]:
    raw = (version.get("schema") or {}).get("openAPIV3Schema")
    if raw is None:
        return None, []
    schema, found = _compiled(json.dumps(raw), path)
    return schema, list(found)


@lru_cache(maxsize=16)
def _compiled(text: str, path: str) -> tuple[Schema | None, list[Cause]]:
    """Kept, for a process that has many an `Api` one after the other (tests, the simulation)."""
    try:
        schema = compile_schema(json.loads(text))
    except SchemaError as error:
        return None, [cause("FieldValueInvalid", path, str(error))]
    found = cel.compile_rules(schema, path)
    if not found:
        found = _check_defaults(schema, path)
    return schema, found


def _check_defaults(schema: Schema, path: str) -> list[Cause]:
    found = []
    for key, child in schema.properties.items():
        here = f"{path}.properties[{key}]"
        if "default" in child.raw:
            value = child.raw["default"]
            unknown: list[str] = []
            trial = copy.deepcopy(value)
            prune(child, trial, "", unknown)
            apply_defaults(child, trial)
            if unknown:
                found.append(cause("FieldValueInvalid", f"{here}.default", "must not have unknown fields", value))
            found += [replace(problem, field=f"{here}.default") for problem in validate(child, trial)]
            found += cel.validate(child, trial, None, f"{here}.default")
        found += _check_defaults(child, here)
    for name, below in (("items", schema.items), ("additionalProperties", schema.additional)):
        if below is not None:
            found += _check_defaults(below, f"{path}.{name}")
    return found


def _check(crd: Object, old: Object | None) -> list[Cause]:
    """What is wrong with a CRD, apart from its CEL rules."""
    spec = crd["spec"]
    names, group = spec.get("names") or {}, spec.get("group", "")
    found = _check_names(names)
    if not group:
        found.append(cause("FieldValueRequired", "spec.group"))
    elif "." not in group:
        found.append(cause("FieldValueInvalid", "spec.group", "should be a domain with at least one dot", group))
    elif wrong := dns_subdomain(group):
        found.append(cause("FieldValueInvalid", "spec.group", wrong, group))
    if spec.get("scope") not in ("Namespaced", "Cluster"):
        listed = 'supported values: "Cluster", "Namespaced"'
        found.append(cause("FieldValueNotSupported", "spec.scope", listed, spec.get("scope", "")))
    name = crd["metadata"]["name"]
    if name != f"{names.get('plural')}.{group}":
        found.append(cause("FieldValueInvalid", "metadata.name", 'must be spec.names.plural+"."+spec.group', name))
    if (spec.get("conversion") or {}).get("strategy", "None") != "None":
        detail = 'this local API supports only "None"'
        found.append(
            cause("FieldValueNotSupported", "spec.conversion.strategy", detail, spec["conversion"]["strategy"])
        )
    versions = spec.get("versions") or []
    if sum(bool(v.get("storage")) for v in versions) != 1:
        detail = "must have exactly one version marked as storage version"
        found.append(cause("FieldValueInvalid", "spec.versions", detail, versions))
    seen = set()
    for index, version in enumerate(versions):
        here = f"spec.versions[{index}]"
        word = str(version.get("name", ""))
        if wrong := dns_label_1035(word):
            found.append(cause("FieldValueInvalid", f"{here}.name", wrong, word))
        if word in seen:
            found.append(cause("FieldValueDuplicate", f"{here}.name", value=word))
        seen.add(word)
        found += _check_version(version, here, "spec" if len(versions) == 1 else here, _schema_path(crd, index))
    if old is not None:
        for key in ("group", "scope"):
            if old["spec"][key] != spec.get(key):
                found.append(cause("FieldValueInvalid", f"spec.{key}", "field is immutable", spec.get(key)))
    return found


def _check_names(names: Object) -> list[Cause]:
    found = []
    for key in ("plural", "singular", "kind", "listKind"):
        word, here = names.get(key, ""), f"spec.names.{key}"
        if not word:
            found.append(cause("FieldValueRequired", here))
        elif wrong := dns_label_1035(word.lower() if "ind" in key else word):
            prefix = "may have mixed case, but should otherwise match: " if "ind" in key else ""
            found.append(cause("FieldValueInvalid", here, prefix + wrong, word))
    for index, word in enumerate(names.get("shortNames") or ()):
        if wrong := dns_label_1035(word):
            found.append(cause("FieldValueInvalid", f"spec.names.shortNames[{index}]", wrong, word))
    return found


_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")


def _check_version(version: Object, here: str, place: str, schema_path: str) -> list[Cause]:
    found: list[Cause] = []
    raw = (version.get("schema") or {}).get("openAPIV3Schema")
    if not isinstance(raw, dict):
        found.append(cause("FieldValueRequired", f"{here}.schema.openAPIV3Schema"))
        raw = {}
    else:
        if raw.get("type") != "object":
            found.append(
                cause("FieldValueInvalid", f"{schema_path}.type", "must be object at the root", raw.get("type", ""))
            )
        found += _structural(raw, schema_path, whole=True)
    for index, column in enumerate(version.get("additionalPrinterColumns") or ()):
        spot = f"{place}.additionalPrinterColumns[{index}]"
        if not column.get("name"):
            found.append(cause("FieldValueRequired", f"{spot}.name"))
        if column.get("type") not in _COLUMN_TYPES:
            detail = f"must be one of {','.join(_COLUMN_TYPES)}"
            found.append(cause("FieldValueInvalid", f"{spot}.type", detail, column.get("type", "")))
        path = column.get("jsonPath", "")
        try:
            if not path.startswith("."):
                raise ValueError("must be a simple json path starting with .")
            jsonpath(path)
        except ValueError as error:
            found.append(cause("FieldValueInvalid", f"{spot}.JSONPath", str(error), path))
    for index, chosen in enumerate(version.get("selectableFields") or ()):
        path = chosen.get("jsonPath", "")
        if not _selectable(raw, path):
            detail = "is an invalid path: does not refer to a valid field"
            found.append(cause("FieldValueInvalid", f"{place}.selectableFields[{index}].jsonPath", detail, path))
    if "scale" in (version.get("subresources") or {}):
        detail = "the scale subresource is not supported by this local API"
        found.append(cause("FieldValueForbidden", f"{place}.subresources.scale", detail))
    return found


def _selectable(raw: Object, path: str) -> bool:
    node: Any = raw
    for key in path.removeprefix(".").split("."):
        node = (node.get("properties") or {}).get(key) if isinstance(node, dict) else None
    return isinstance(node, dict) and node.get("type") in ("string", "boolean", "integer") and path.startswith(".")


def _structural(raw: Any, path: str, *, whole: bool = False) -> list[Cause]:
    """What keeps a schema from being structural. `whole`: it describes a whole object, with metadata."""
    found: list[Cause] = []
    if not isinstance(raw, dict):
        return [cause("FieldValueInvalid", path, "must be an object", raw)]
    if raw.get("$ref"):
        return [cause("FieldValueForbidden", f"{path}.$ref", "$ref is not supported")]
    kind = raw.get("type", "")
    free = raw.get("x-kubernetes-int-or-string") or raw.get("x-kubernetes-preserve-unknown-fields")
    if not kind and not free:
        found.append(cause("FieldValueRequired", f"{path}.type", "must not be empty for specified object fields"))
    elif kind and kind not in _TYPES:
        listed = ", ".join(f'"{t}"' for t in sorted(_TYPES))
        found.append(cause("FieldValueNotSupported", f"{path}.type", f"supported values: {listed}", kind))
    properties, additional = raw.get("properties") or {}, raw.get("additionalProperties")
    if properties and additional is not None:
        detail = "additionalProperties and properties are mutual exclusive"
        found.append(cause("FieldValueForbidden", f"{path}.additionalProperties", detail))
    if raw.get("uniqueItems"):
        detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        found.append(cause("FieldValueForbidden", f"{path}.uniqueItems", detail))
    found += [
        cause("FieldValueForbidden", f"{path}.{word}", f"{word} is not supported")
        for word in ("definitions", "patternProperties", "dependencies")
        if raw.get(word)
    ]
    if (pattern := raw.get("pattern")) is not None:
        try:
            regex(pattern)
        except SchemaError as error:
            found.append(cause("FieldValueInvalid", f"{path}.pattern", str(error), pattern))
    if kind == "array" and not isinstance(raw.get("items"), dict):
        found.append(cause("FieldValueRequired", f"{path}.items", "must be specified"))
    found += _list_type(raw, path)
    if (whole or raw.get("x-kubernetes-embedded-resource")) and "metadata" in properties:
        allowed = set(properties["metadata"].get("properties") or ()) <= {"name", "generateName"}
        if not allowed or properties["metadata"].get("additionalProperties"):
            detail = "must not specify anything other than name and generateName, but metadata is implicitly specified"
            found.append(cause("FieldValueForbidden", f"{path}.properties[metadata]", detail))
    for key, child in properties.items():
        if not (whole and key == "metadata"):
            found += _structural(child, f"{path}.properties[{key}]")
    if isinstance(additional, dict):
        found += _structural(additional, f"{path}.additionalProperties")
    if isinstance(raw.get("items"), dict):
        found += _structural(raw["items"], f"{path}.items")
    return found


def _list_type(raw: Object, path: str) -> list[Cause]:
    found = []
    list_type, keys = raw.get("x-kubernetes-list-type"), raw.get("x-kubernetes-list-map-keys") or []
    if list_type not in (None, "atomic", "set", "map"):
        listed = 'supported values: "atomic", "map", "set"'
        found.append(cause("FieldValueNotSupported", f"{path}.x-kubernetes-list-type", listed, list_type))
    if list_type != "map":
        return found
    here = f"{path}.x-kubernetes-list-map-keys"
    if not keys:
        found.append(cause("FieldValueRequired", here, "must not be empty if x-kubernetes-list-type is map"))
    items = raw.get("items")
    if not isinstance(items, dict):
        return found
    if items.get("type") != "object":
        detail = "must be object if parent array's x-kubernetes-list-type is map"
        return [*found, cause("FieldValueInvalid", f"{path}.items.type", detail, items.get("type", ""))]
    properties = items.get("properties") or {}
    if any(key not in properties for key in keys):
        found.append(cause("FieldValueInvalid", here, "entries must all be names of item properties", keys))
    for key in keys:
        if key in properties and key not in items.get("required", ()) and "default" not in properties[key]:
            detail = (
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            )
            found.append(cause("FieldValueRequired", f"{path}.items.properties[{key}].default", detail))
    return found
