"""Names, labels and the other metadata of all objects: what is valid."""

import re
from typing import Any

from .errors import Cause, StatusError, bad_request, cause
from .storage import Object

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?\Z")
_LABEL_1035 = re.compile(r"[a-z](?:[-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*\Z")
_QUALIFIED = re.compile(r"(?:[A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
_LABEL_VALUE = re.compile(r"(?:(?:[A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")
ANNOTATIONS_LIMIT = 256 * 1024

_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_LABEL_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def dns_subdomain(name: str) -> str | None:
    """What is wrong with a name that must be a DNS subdomain; None if nothing."""
    if len(name) > 253:
        return "must be no more than 253 characters"
    return None if _SUBDOMAIN.match(name) else _SUBDOMAIN_TEXT


def dns_label(name: str) -> str | None:
    """What is wrong with a name that must be a DNS label; None if nothing."""
    if len(name) > 63:
        return "must be no more than 63 bytes"
    return None if _LABEL.match(name) else _LABEL_TEXT


def dns_label_1035(name: str) -> str | None:
    """What is wrong with a name that must be a DNS label that starts with a letter; None if nothing."""
    if len(name) > 63:
        return "must be no more than 63 bytes"
    return None if _LABEL_1035.match(name) else _LABEL_1035_TEXT


def qualified_name(name: str) -> list[str]:
    """What is wrong with a label key, annotation key or finalizer."""
    prefix, slash, last = name.rpartition("/")
    found = []
    if slash and not prefix:
        found.append("prefix part must be non-empty")
    elif slash and (wrong := dns_subdomain(prefix)):
        found.append("prefix part " + wrong)
    if not last:
        found.append("name part must be non-empty")
    elif len(last) > 63:
        found.append("name part must be no more than 63 bytes")
    if not _QUALIFIED.match(last):
        found.append(_QUALIFIED_TEXT)
    return found


def label_value(value: str) -> str | None:
    """What is wrong with the value of a label; None if nothing."""
    if len(value) > 63:
        return "must be no more than 63 bytes"
    return None if _LABEL_VALUE.match(value) else _VALUE_TEXT


_SHAPES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "generateName": str,
    "namespace": str,
    "uid": str,
    "resourceVersion": str,
    "creationTimestamp": str,
    "deletionTimestamp": str,
    "selfLink": str,
    "generation": int,
    "deletionGracePeriodSeconds": int,
    "labels": dict,
    "annotations": dict,
    "finalizers": list,
    "ownerReferences": list,
    "managedFields": list,
}
_WORDS: dict[Any, str] = {str: "string", int: "int64", dict: "map[string]string", list: "[]string"}


def shape(obj: Object, kind: str) -> list[str]:
    """Checks the types of the metadata and drops nulls; returns unknown fields. StatusError 400 for a wrong type."""
    metadata = obj.setdefault("metadata", {})
    if metadata is None:
        metadata = obj["metadata"] = {}
    if not isinstance(metadata, dict):
        raise _wrong(kind, "", metadata, "")
    unknown = []
    for key in list(metadata):
        value = metadata[key]
        if key not in _SHAPES:
            unknown.append(f"metadata.{key}")
            del metadata[key]
        elif value is None:
            del metadata[key]
        elif not isinstance(value, _SHAPES[key]) or isinstance(value, bool):
            raise _wrong(kind, key, value, _WORDS[_SHAPES[key]])
    for key in ("labels", "annotations"):
        for name, value in list(metadata.get(key, {}).items()):
            if value is None:
                metadata[key][name] = ""
            elif not isinstance(value, str):
                raise _wrong(kind, key, value, "string")
        if key in metadata and not metadata[key]:
            del metadata[key]
    for name in metadata.get("finalizers", []):
        if not isinstance(name, str):
            raise _wrong(kind, "finalizers", name, "string")
    for owner in metadata.get("ownerReferences", []):
        if not isinstance(owner, dict):
            raise _wrong(kind, "ownerReferences", owner, "v1.OwnerReference")
    for key in ("finalizers", "ownerReferences"):
        if key in metadata and not metadata[key]:
            del metadata[key]
    return unknown


def _wrong(kind: str, path: str, value: Any, wanted: str) -> StatusError:
    names = {str: "string", bool: "bool", int: "number", float: "number", dict: "object", list: "array"}
    got = names.get(type(value), "null")
    where = f"struct field ObjectMeta.{path} of type {wanted}" if path else "value of type v1.ObjectMeta"
    name = kind.partition(" ")[0]
    return bad_request(f"{kind} cannot be handled as a {name}: json: cannot unmarshal {got} into Go {where}")


_STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")


def check(obj: Object, name_problem: str | None, *, core: bool) -> list[Cause]:
    """What is wrong with the metadata of an object whose shape is right. `core`: a built-in kind."""
    metadata = obj["metadata"]
    found: list[Cause] = []
    name = metadata.get("name", "")
    if not name:
        found.append(cause("FieldValueRequired", "metadata.name", "name or generateName is required"))
    elif name_problem:
        found.append(cause("FieldValueInvalid", "metadata.name", name_problem, name))
    for key, value in metadata.get("labels", {}).items():
        found += [cause("FieldValueInvalid", "metadata.labels", wrong, key) for wrong in qualified_name(key)]
        if wrong := label_value(value):
            found.append(cause("FieldValueInvalid", "metadata.labels", wrong, value))
    size = 0
    for key, value in metadata.get("annotations", {}).items():
        size += len(key.encode()) + len(value.encode())
        for wrong in qualified_name(key.lower()):
            found.append(cause("FieldValueInvalid", "metadata.annotations", wrong, key))
    if size > ANNOTATIONS_LIMIT:
        found.append(
            cause("FieldValueTooLong", "metadata.annotations", f"may not be more than {ANNOTATIONS_LIMIT} bytes")
        )
    for index, finalizer in enumerate(metadata.get("finalizers", [])):
        for wrong in qualified_name(finalizer):
            found.append(cause("FieldValueInvalid", "metadata.finalizers", wrong, finalizer))
        if core and "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
            text = "name is neither a standard finalizer name nor is it fully qualified"
            found.append(cause("FieldValueInvalid", f"metadata.finalizers[{index}]", text, finalizer))
    controllers = 0
    for owner in metadata.get("ownerReferences", []):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key) or not isinstance(owner[key], str):
                found.append(
                    cause(
                        "FieldValueInvalid",
                        f"metadata.ownerReferences.{key}",
                        f"{'version' if key == 'apiVersion' else key} must not be empty",
                        owner.get(key, ""),
                    )
                )
        controllers += owner.get("controller") is True
    if controllers > 1:
        found.append(
            cause(
                "FieldValueInvalid",
                "metadata.ownerReferences",
                "Only one reference can have Controller set to true",
                metadata["ownerReferences"],
            )
        )
    return found
