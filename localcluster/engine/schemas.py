"""A value that a JSON schema allows: what the simulated engine answers when a structure is asked for."""

from __future__ import annotations

from typing import Any

_FORMATS = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "ipv4": "192.0.2.1",
    "hostname": "example.com",
}
_DEPTH = 32
_ITEMS = 64


def example(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A valid value for ordinary schemas: types, enum, const, $ref, anyOf/oneOf/allOf, bounds, required properties.

    Not for `pattern`, `not` or conditions. ValueError when the schema nests without end.
    """
    root = schema if root is None else root
    if depth > _DEPTH:
        raise ValueError("the schema nests too deeply")
    if not isinstance(schema, dict):
        return {}
    if "$ref" in schema:
        return example(_resolve(str(schema["$ref"]), root), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return example(schema[key][0], root, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            part = _resolve(str(part["$ref"]), root) if isinstance(part, dict) and "$ref" in part else part
            merged["properties"] = {**merged.get("properties", {}), **part.get("properties", {})}
            merged["required"] = [*merged.get("required", []), *part.get("required", [])]
            merged.setdefault("type", part.get("type", "object"))
        return example(merged, root, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    kind = kind or ("object" if "properties" in schema else "array" if "items" in schema else "object")
    if kind == "object":
        properties = schema.get("properties", {})
        # Required ones and, near the top, the optional ones too; a recursive schema ends where they are optional.
        wanted = [*properties] if depth < 3 else schema.get("required", [])
        required = [name for name in schema.get("required", []) if name not in properties]
        return {name: example(properties.get(name, {}), root, depth + 1) for name in [*wanted, *required]}
    if kind == "array":
        most = min(int(schema.get("maxItems", _ITEMS)), _ITEMS)
        found = [example(part, root, depth + 1) for part in schema.get("prefixItems", [])]
        least = int(schema.get("minItems", 0 if found else 1))
        more = range(len(found), min(least, most))
        return found[:most] + [example(schema.get("items", {"type": "string"}), root, depth + 1) for _ in more]
    if kind == "string":
        text = _FORMATS.get(str(schema.get("format")), "example")
        text += "x" * max(int(schema.get("minLength", 0)) - len(text), 0)
        return text[: int(schema["maxLength"])] if "maxLength" in schema else text
    if kind in ("integer", "number"):
        return _number(schema, kind == "integer")
    return {"boolean": True, "null": None}.get(str(kind), "example")


def _number(schema: dict[str, Any], whole: bool) -> float | int:
    step = schema.get("multipleOf", 1 if whole else 0.5)
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    value = low if low is not None else min(1, high) if high is not None else 1
    if step and value % step:
        value = (value // step + 1) * step
    return int(value) if whole else value


def _resolve(reference: str, root: Any) -> Any:
    found = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
    return found
