"""The CRD that the conformance tests use: a little of everything a schema can say."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

GROUP = "conformance.greenthread.ai"
KIND = "Widget"
CRD_NAME = f"widgets.{GROUP}"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
BASE = f"/apis/{GROUP}/v1"

SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 100},
        "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
        "name": {"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^[a-z]+$"},
        "ratio": {"type": "number", "exclusiveMinimum": True, "minimum": 0},
        "step": {"type": "integer", "multipleOf": 5},
        "on": {"type": "boolean"},
        "maybe": {"type": "string", "nullable": True},
        "port": {"x-kubernetes-int-or-string": True},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 3}, "maxProperties": 2},
        "nested": {
            "type": "object",
            "default": {},
            "properties": {"depth": {"type": "integer", "default": 3}, "note": {"type": "string"}},
        },
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "maxItems": 3},
        "parts": {
            "type": "array",
            "maxItems": 8,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["namespace", "id"],
            "items": {
                "type": "object",
                "required": ["namespace", "id"],
                "properties": {
                    "namespace": {"type": "string", "maxLength": 63},
                    "id": {"type": "string", "maxLength": 63},
                    "count": {"type": "integer", "default": 1, "minimum": 0, "maximum": 1000},
                    "state": {"type": "string", "maxLength": 20},
                },
                "x-kubernetes-validations": [
                    {"rule": "self.count >= oldSelf.count", "message": "count may not fall"},
                    {
                        "rule": "!has(self.state) || self.state != 'bad'",
                        "message": "bad is no state",
                        "fieldPath": ".state",
                        "reason": "FieldValueForbidden",
                    },
                ],
            },
        },
        "list": {"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 10}},
        "when": {"type": "string", "format": "date-time"},
        "wait": {"type": "string", "maxLength": 20},
        "memory": {"type": "string", "maxLength": 20},
        "frozen": {
            "type": "string",
            "maxLength": 20,
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "frozen may not change"}],
        },
        "low": {"type": "integer"},
        "high": {"type": "integer"},
    },
    "x-kubernetes-validations": [
        {
            "rule": "!has(self.low) || !has(self.high) || self.low <= self.high",
            "messageExpression": "'low %d is above high %d'.format([self.low, self.high])",
        },
        {
            "rule": "!has(self.wait) || "
            "(self.wait.matches('^([0-9]+(s|m|h))+$') && duration(self.wait) > duration('0s'))",
            "message": "wait must be like 30s or 1h30m",
            "fieldPath": ".wait",
        },
        {
            "rule": "!has(self.memory) || "
            "isQuantity(self.memory) && quantity(self.memory).isGreaterThan(quantity('1Gi'))",
            "message": "memory must be more than 1Gi",
            "fieldPath": ".memory",
        },
        {"rule": "!has(self.list) || self.list.all(x, x.size() < 5)"},
        {
            "rule": "!has(self.parts) || self.parts.map(p, p.count).sum() <= 10",
            "message": "too many parts",
            "fieldPath": ".parts",
        },
    ],
}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": SPEC,
        "status": {
            "type": "object",
            "properties": {
                "phase": {"type": "string", "maxLength": 20},
                "count": {"type": "integer", "maximum": 1000, "minimum": -1000},
            },
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.count) || self.count <= 10 || (oldSelf.hasValue() && self.count < "
                    "oldSelf.value().count)",
                    "message": "count must be at most 10, or fall",
                    "optionalOldSelf": True,
                }
            ],
        },
    },
    "x-kubernetes-validations": [{"rule": "self.metadata.name != 'forbidden'", "message": "not this name"}],
}

CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": CRD_NAME},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {
            "plural": "widgets",
            "kind": KIND,
            "shortNames": ["wd"],
            "categories": ["things"],
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": SCHEMA},
                "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "description": "How large"},
                    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
                    {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
            }
        ],
    },
}


def widget(name: str, /, **spec: Any) -> dict[str, Any]:
    """A Widget; `size` is 1 unless given."""
    return {"apiVersion": f"{GROUP}/v1", "kind": KIND, "metadata": {"name": name}, "spec": {"size": 1, **spec}}


def crd(plural: str, kind: str, schema: dict[str, Any], **version: Any) -> dict[str, Any]:
    """A CRD of one version with this schema."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, **version}
            ],
        },
    }
