"""Reads the few requests that kubectl sends as protobuf: `create namespace|secret|configmap|serviceaccount|service`,
`auth can-i`, evictions."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from .errors import StatusError

MAGIC = b"k8s\x00"
MEDIA = "application/vnd.kubernetes.protobuf"

Kind = Any
"""How a field is read: "string", "int", "bool", "bytes", a table of fields, or ("list", Kind) or ("map", Kind)."""

_TEXTS = ("list", "string")
_LABELS = ("map", "string")
_TIME = "time"
_OWNER = {1: ("kind", "string"), 3: ("name", "string"), 4: ("uid", "string"), 5: ("apiVersion", "string"),
          6: ("controller", "bool"), 7: ("blockOwnerDeletion", "bool")}  # fmt: skip
_META = {
    1: ("name", "string"), 2: ("generateName", "string"), 3: ("namespace", "string"), 4: ("selfLink", "string"),
    5: ("uid", "string"), 6: ("resourceVersion", "string"), 7: ("generation", "int"), 8: ("creationTimestamp", _TIME),
    9: ("deletionTimestamp", _TIME), 10: ("deletionGracePeriodSeconds", "int"), 11: ("labels", _LABELS),
    12: ("annotations", _LABELS), 13: ("ownerReferences", ("list", _OWNER)), 14: ("finalizers", _TEXTS),
}  # fmt: skip
_REFERENCE = {1: ("kind", "string"), 2: ("namespace", "string"), 3: ("name", "string"), 4: ("uid", "string"),
              5: ("apiVersion", "string"), 6: ("resourceVersion", "string"), 7: ("fieldPath", "string")}  # fmt: skip
_NAMED = {1: ("name", "string")}
_PORT = {1: ("name", "string"), 2: ("protocol", "string"), 3: ("port", "int"), 4: ("targetPort", "int-or-string"),
         5: ("nodePort", "int"), 6: ("appProtocol", "string")}  # fmt: skip
_SERVICE = {
    1: ("ports", ("list", _PORT)), 2: ("selector", _LABELS), 3: ("clusterIP", "string"), 4: ("type", "string"),
    5: ("externalIPs", _TEXTS), 7: ("sessionAffinity", "string"), 8: ("loadBalancerIP", "string"),
    9: ("loadBalancerSourceRanges", _TEXTS), 10: ("externalName", "string"), 11: ("externalTrafficPolicy", "string"),
    12: ("healthCheckNodePort", "int"), 13: ("publishNotReadyAddresses", "bool"), 17: ("ipFamilyPolicy", "string"),
    18: ("clusterIPs", _TEXTS), 19: ("ipFamilies", _TEXTS), 22: ("internalTrafficPolicy", "string"),
}  # fmt: skip
_RESOURCE = {1: ("namespace", "string"), 2: ("verb", "string"), 3: ("group", "string"), 4: ("version", "string"),
             5: ("resource", "string"), 6: ("subresource", "string"), 7: ("name", "string")}  # fmt: skip
_PATH = {1: ("path", "string"), 2: ("verb", "string")}
_ACCESS = {1: ("resourceAttributes", _RESOURCE), 2: ("nonResourceAttributes", _PATH)}
_PRECONDITIONS = {1: ("uid", "string"), 2: ("resourceVersion", "string")}
_DELETE = {1: ("gracePeriodSeconds", "int"), 2: ("preconditions", _PRECONDITIONS), 3: ("orphanDependents", "bool"),
           4: ("propagationPolicy", "string"), 5: ("dryRun", _TEXTS)}  # fmt: skip
_KINDS: dict[str, dict[int, tuple[str, Kind]]] = {
    "v1/Namespace": {1: ("metadata", _META), 2: ("spec", {1: ("finalizers", _TEXTS)}), 3: ("status", "skip")},
    "v1/Secret": {
        1: ("metadata", _META), 2: ("data", ("map", "bytes")), 3: ("type", "string"), 4: ("stringData", _LABELS),
        5: ("immutable", "bool"),
    },
    "v1/ConfigMap": {
        1: ("metadata", _META), 2: ("data", _LABELS), 3: ("binaryData", ("map", "bytes")), 4: ("immutable", "bool"),
    },
    "v1/ServiceAccount": {
        1: ("metadata", _META), 2: ("secrets", ("list", _REFERENCE)), 3: ("imagePullSecrets", ("list", _NAMED)),
        4: ("automountServiceAccountToken", "bool"),
    },
    "v1/Service": {1: ("metadata", _META), 2: ("spec", _SERVICE), 3: ("status", "skip")},
    "authorization.k8s.io/v1/SelfSubjectAccessReview": {
        1: ("metadata", _META), 2: ("spec", _ACCESS), 3: ("status", "skip"),
    },
    "authorization.k8s.io/v1/SelfSubjectRulesReview": {
        1: ("metadata", _META), 2: ("spec", {1: ("namespace", "string")}), 3: ("status", "skip"),
    },
    "authentication.k8s.io/v1/SelfSubjectReview": {1: ("metadata", _META), 2: ("status", "skip")},
    "policy/v1/Eviction": {1: ("metadata", _META), 2: ("deleteOptions", _DELETE)},
}  # fmt: skip


_ENVELOPE = {1: ("type", {1: ("apiVersion", "string"), 2: ("kind", "string")}), 2: ("raw", "raw"),
             3: ("contentEncoding", "string"), 4: ("contentType", "string")}  # fmt: skip


class _Malformed(ValueError):
    pass


def decode(body: bytes) -> dict[str, Any]:
    """The object in a request. StatusError 400 if it is malformed, 415 for kinds that are not understood."""
    try:
        if not body.startswith(MAGIC):
            raise _Malformed("it does not begin as Kubernetes' protobuf does")
        envelope = _message(body[len(MAGIC) :], _ENVELOPE)
        kind = envelope.get("type", {})
        name = f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}"
        if name not in _KINDS:
            raise _unknown(name)
        obj = _message(envelope.get("raw", b""), _KINDS[name])
    except (_Malformed, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise StatusError(400, "BadRequest", f"the body is not valid protobuf: {error}") from None
    return {**kind, **obj}


def _unknown(what: str) -> StatusError:
    message = f"this local API does not read {what} as protobuf: send application/json"
    return StatusError(415, "UnsupportedMediaType", message)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value & (2**64 - 1), position
        if shift > 63:
            raise _Malformed("a number is too long")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        value: Any
        if wire == 0:
            value, position = _varint(data, position)
        elif wire == 2:
            length, position = _varint(data, position)
            value = data[position : position + length]
            if len(value) != length:
                raise _Malformed("it ends too early")
            position += length
        else:
            raise _Malformed(f"wire type {wire} is not expected")
        yield number, value


def _message(data: bytes, table: dict[int, tuple[str, Kind]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for number, value in _fields(data):
        if number not in table:
            if table is _META and number == 17:  # managedFields
                continue
            raise _unknown(f"field {number} of this kind")
        name, kind = table[number]
        if kind == "skip":
            continue
        if isinstance(kind, tuple) and kind[0] == "list":
            out.setdefault(name, []).append(_value(value, kind[1]))
        elif isinstance(kind, tuple):
            pair = dict(_fields(value))
            out.setdefault(name, {})[_value(pair.get(1, b""), "string")] = _value(pair.get(2, b""), kind[1])
        else:
            found = _value(value, kind)
            if found not in ("", None):  # Go writes empty strings, and times that are not set
                out[name] = found
    return out


def _value(value: Any, kind: Kind) -> Any:
    if kind in ("int", "bool"):
        if not isinstance(value, int):
            raise _Malformed("a number is expected")
        return bool(value) if kind == "bool" else value - 2**64 if value >= 2**63 else value
    if not isinstance(value, bytes):
        raise _Malformed("bytes are expected")
    if kind == "string":
        return value.decode()
    if kind == "bytes":
        return base64.b64encode(value).decode()
    if kind == "raw":
        return value
    if kind == "time":
        seconds = dict(_fields(value)).get(1)
        if seconds is None:
            return None
        return datetime.fromtimestamp(_value(seconds, "int"), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if kind == "int-or-string":
        found = dict(_fields(value))
        return _value(found.get(3, b""), "string") if found.get(1) else _value(found.get(2, 0), "int")
    return _message(value, kind)
