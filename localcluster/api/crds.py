"""CustomResourceDefinitions: checked when they come, and turned into resources of the API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from . import cel
from .errors import Cause, cause, invalid
from .resources import Column, ResourceType
from .schema import Schema, SchemaError, apply_defaults, compile_schema, prune, validate
from .selectors import by_path
from .storage import Object
from .tables import jsonpath

if TYPE_CHECKING:
    from .core import Api

CRDS = "customresourcedefinitions.apiextensions.k8s.io"
_GROUP = "apiextensions.k8s.io"
_KIND = "CustomResourceDefinition"
_TYPES = ("object", "array", "string", "integer", "number", "boolean")
_VERSION = re.compile(r"[a-z](?:[-a-z0-9]*[a-z0-9])?\Z")


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
                found += _compile(version, f"spec.versions[{index}].schema.openAPIV3Schema")[1]
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
    """Fills in the names that a CRD may leave out."""
    spec = crd.get("spec")
    names = spec.get("names") if isinstance(spec, dict) else None
    if isinstance(names, dict) and isinstance(names.get("kind"), str):
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


def _compile(version: Object, path: str) -> tuple[Schema | None, list[Cause]]:
    raw = (version.get("schema") or {}).get("openAPIV3Schema")
    if raw is None:
        return None, []
    try:
        schema = compile_schema(raw)
    except SchemaError as error:
        return None, [cause("FieldValueInvalid", f"{path}.{error.args[0]}", str(error.args[1]))]
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
            import copy

            trial = copy.deepcopy(value)
            prune(child, trial, "", unknown)
            apply_defaults(child, trial)
            if unknown:
                found.append(cause("FieldValueInvalid", f"{here}.default", "must not have unknown fields", value))
            found += validate(child, trial, f"{here}.default")
            found += cel.validate(child, trial, None, f"{here}.default")
        found += _check_defaults(child, here)
    for name, below in (("items", schema.items), ("additionalProperties", schema.additional)):
        if below is not None:
            found += _check_defaults(below, f"{path}.{name}")
    return found


def _check(crd: Object, old: Object | None) -> list[Cause]:
    found: list[Cause] = []
    spec = crd.get("spec") or {}
    names = spec.get("names") or {}
    group = spec.get("group")
    if not group:
        found.append(cause("FieldValueRequired", "spec.group"))
    if spec.get("scope") not in ("Namespaced", "Cluster"):
        found.append(
            cause("FieldValueNotSupported", "spec.scope", 'supported values: "Cluster", "Namespaced"', spec.get("scope", ""))
        )
    for key in ("plural", "kind"):
        if not names.get(key):
            found.append(cause("FieldValueRequired", f"spec.names.{key}"))
    wanted = f"{names.get('plural')}.{group}"
    if crd["metadata"]["name"] != wanted:
        found.append(
            cause(
                "FieldValueInvalid", "metadata.name",
                'must be spec.names.plural+"."+spec.group', crd["metadata"]["name"],
            )
        )  # fmt: skip
    if (spec.get("conversion") or {}).get("strategy", "None") != "None":
        found.append(
            cause("FieldValueNotSupported", "spec.conversion.strategy", 'this local API supports only "None"', "Webhook")
        )
    versions = spec.get("versions") or []
    if sum(bool(v.get("storage")) for v in versions) != 1:
        found.append(
            cause("FieldValueInvalid", "spec.versions", "must have exactly one version marked as storage version", versions)
        )
    seen = set()
    for index, version in enumerate(versions):
        here = f"spec.versions[{index}]"
        if not _VERSION.match(str(version.get("name", ""))):
            found.append(cause("FieldValueInvalid", f"{here}.name", "must be a DNS-1035 label", version.get("name")))
        if version.get("name") in seen:
            found.append(cause("FieldValueDuplicate", f"{here}.name", value=version.get("name")))
        seen.add(version.get("name"))
        raw = (version.get("schema") or {}).get("openAPIV3Schema")
        if not isinstance(raw, dict):
            found.append(cause("FieldValueRequired", f"{here}.schema.openAPIV3Schema", "schemas are required"))
        else:
            root = f"{here}.schema.openAPIV3Schema"
            if raw.get("type") != "object":
                found.append(cause("FieldValueInvalid", f"{root}.type", "must be object at the root", raw.get("type", "")))
            found += _structural(raw, root)
        for place, column in enumerate(version.get("additionalPrinterColumns") or ()):
            try:
                jsonpath(column.get("jsonPath", ""))
            except ValueError as error:
                found.append(
                    cause("FieldValueInvalid", f"{here}.additionalPrinterColumns[{place}].jsonPath", str(error),
                          column.get("jsonPath"))
                )  # fmt: skip
        if "scale" in (version.get("subresources") or {}):
            found.append(
                cause("FieldValueForbidden", f"{here}.subresources.scale", "the scale subresource is not supported by this local API")
            )
    if old is not None:
        for key in ("group", "scope"):
            if old["spec"][key] != spec.get(key):
                found.append(cause("FieldValueInvalid", f"spec.{key}", "field is immutable", spec.get(key)))
    return found


def _structural(raw: Any, path: str) -> list[Cause]:
    """What keeps a schema from being structural."""
    found: list[Cause] = []
    if not isinstance(raw, dict):
        return [cause("FieldValueInvalid", path, "must be an object", raw)]
    kind = raw.get("type", "")
    free = raw.get("x-kubernetes-int-or-string") or raw.get("x-kubernetes-preserve-unknown-fields")
    if not kind and not free:
        found.append(cause("FieldValueRequired", f"{path}.type", "must not be empty for specified object fields"))
    elif kind and kind not in _TYPES:
        listed = ", ".join(f'"{t}"' for t in sorted(_TYPES))
        found.append(cause("FieldValueNotSupported", f"{path}.type", f"supported values: {listed}", kind))
    if raw.get("properties") and raw.get("additionalProperties") is not None:
        found.append(cause("FieldValueForbidden", f"{path}.additionalProperties", "mutually exclusive with properties"))
    if raw.get("uniqueItems"):
        found.append(
            cause("FieldValueForbidden", f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic")
        )
    for word in ("$ref", "definitions", "patternProperties", "dependencies"):
        if raw.get(word):
            found.append(cause("FieldValueForbidden", f"{path}.{word}", f"{word} is not supported"))
    if kind == "array" and not isinstance(raw.get("items"), dict):
        found.append(cause("FieldValueRequired", f"{path}.items", "must be specified"))
    list_type = raw.get("x-kubernetes-list-type")
    if list_type not in (None, "atomic", "set", "map"):
        found.append(
            cause("FieldValueNotSupported", f"{path}.x-kubernetes-list-type", 'supported values: "atomic", "map", "set"', list_type)
        )
    if list_type == "map" and not raw.get("x-kubernetes-list-map-keys"):
        found.append(
            cause("FieldValueRequired", f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
        )
    for key, child in (raw.get("properties") or {}).items():
        found += _structural(child, f"{path}.properties[{key}]")
    if isinstance(raw.get("additionalProperties"), dict):
        found += _structural(raw["additionalProperties"], f"{path}.additionalProperties")
    if isinstance(raw.get("items"), dict):
        found += _structural(raw["items"], f"{path}.items")
    return found
