"""OpenAPI v3 schemas: pruning, defaults and validation, with the messages of kube-apiserver."""

import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any

import re2

from .errors import Cause, cause

Raw = dict[str, Any]
_MISSING: Any = object()
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z")
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)\Z")
_GO_DURATION = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+\Z")
_LOOSE_DURATION = re.compile(
    r"\s*(?:\d+\s*(?:ns|nanos?|nanoseconds?|us|µs|micros?|microseconds?|ms|millis?|milliseconds?|s|secs?|seconds?"
    r"|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|wks?|weeks?)\s*)+\Z"
)
_UUID = re.compile(r"(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\Z")


class SchemaError(ValueError):
    """A schema that cannot be used; the message says why."""


def _is_time(text: str) -> bool:
    if not _DATE_TIME.match(text):
        return False
    try:
        datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except ValueError:
        return False
    return True


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return len(text) == 10


FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": _is_time,
    "datetime": _is_time,
    "date": _is_date,
    "byte": lambda text: bool(_BASE64.match(text)),
    "duration": lambda text: bool(_GO_DURATION.match(text) or _LOOSE_DURATION.match(text) or text == "0"),
    "uuid": lambda text: bool(_UUID.match(text)),
}


def type_name(value: Any) -> str:
    """The JSON type of a value, in OpenAPI's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if _whole(value) else "number"
    return "object" if isinstance(value, dict) else "array"


def _whole(value: float) -> bool:
    return value.is_integer() and -(2.0**63) <= value < 2.0**63


def same(a: Any, b: Any) -> bool:
    """Equality that keeps true apart from 1."""
    return bool(a == b) and json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def unchanged(value: Any, old: Any) -> bool:
    """`same` for large values: quick, but false where only the order of keys differs."""
    return bool(value == old) and repr(value) == repr(old)


def regex(pattern: str) -> Any:
    """A compiled RE2 pattern, as Go would read it; SchemaError if it is none."""
    try:
        options = re2.Options()
        options.log_errors = False
        return re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise SchemaError(f"must be a valid regular expression, but isn't: error parsing regexp: {why}") from error


class Schema:
    """One node of a compiled schema."""

    def __init__(self) -> None:
        self.raw: Raw = {}
        self.name = ""
        """Of a built-in schema, e.g. `io.k8s.api.core.v1.PodSpec`."""
        self.type = ""
        self.nullable = False
        self.properties: dict[str, Schema] = {}
        self.additional: Schema | None = None
        self.open = False
        """Any property may be there (additionalProperties: true)."""
        self.items: Schema | None = None
        self.preserve = False
        self.embedded = False
        self.int_or_string = False
        self.required: tuple[str, ...] = ()
        self.default: Any = _MISSING
        self.default_raw = b""
        self.list_type = "atomic"
        self.list_keys: tuple[str, ...] = ()
        self.checks: list[Callable[[Any, str], Cause | None]] = []
        self.format = ""
        self.all_of: list[Schema] = []
        self.any_of: list[Schema] = []
        self.one_of: list[Schema] = []
        self.not_: Schema | None = None
        self.has_defaults = False
        self.rules: Any = None
        """Set by cel.compile_rules."""

    def value(self, given: Any) -> "Schema | None":
        """The schema of one property; None if it is not known."""
        return self.properties.get(given) or self.additional

    def children(self) -> Iterator["Schema"]:
        yield from self.properties.values()
        if self.additional is not None:
            yield self.additional
        if self.items is not None:
            yield self.items


def compile_schema(raw: Raw, refs: dict[str, Raw] | None = None) -> Schema:
    """Compiles an OpenAPI v3 schema of a CRD, or, with `refs`, of a built-in kind.

    `refs` are the `#/components/schemas/…` it may point to. What they require is not checked by schema: as in
    kube-apiserver, `decode` checks the types of built-in kinds, and code checks the rest.
    """
    done: dict[str, Schema] = {}

    def build(node: Raw, path: str) -> Schema:
        ref = node.get("$ref")
        extra = node
        if ref is None and refs is not None and len(node.get("allOf") or ()) == 1:
            ref = node["allOf"][0].get("$ref")
        if ref is not None:
            if refs is None:
                raise SchemaError(f"{path}: $ref is not supported")
            name = ref.rsplit("/", 1)[1]
            if "default" in extra:
                schema = Schema()
                schema.name = name
                fill(schema, {**refs[name], "default": extra["default"]}, path)
                return schema
            if name not in done:
                done[name] = Schema()
                done[name].name = name
                fill(done[name], refs[name], path)
            return done[name]
        schema = Schema()
        fill(schema, node, path)
        return schema

    def fill(schema: Schema, node: Raw, path: str) -> None:
        schema.raw = node
        schema.type = node.get("type", "")
        schema.nullable = bool(node.get("nullable"))
        schema.preserve = bool(node.get("x-kubernetes-preserve-unknown-fields"))
        schema.embedded = bool(node.get("x-kubernetes-embedded-resource"))
        schema.int_or_string = bool(node.get("x-kubernetes-int-or-string")) or node.get("format") == "int-or-string"
        if schema.int_or_string:
            schema.type = ""
        schema.required = tuple(node.get("required") or ())
        schema.list_type = node.get("x-kubernetes-list-type", "atomic")
        schema.list_keys = tuple(node.get("x-kubernetes-list-map-keys") or ())
        schema.format = node.get("format", "")
        for key, child in (node.get("properties") or {}).items():
            schema.properties[key] = build(child, f"{path}.properties[{key}]")
        additional = node.get("additionalProperties")
        if isinstance(additional, dict):
            schema.additional = build(additional, f"{path}.additionalProperties")
        elif additional is True:
            schema.open = True
        if isinstance(node.get("items"), dict):
            schema.items = build(node["items"], f"{path}.items")
        schema.all_of = [build(child, f"{path}.allOf") for child in node.get("allOf") or ()]
        schema.any_of = [build(child, f"{path}.anyOf") for child in node.get("anyOf") or ()]
        schema.one_of = [build(child, f"{path}.oneOf") for child in node.get("oneOf") or ()]
        if node.get("not"):
            schema.not_ = build(node["not"], f"{path}.not")
        if schema.int_or_string:
            wanted = ({"type": "integer"}, {"type": "string"})
            if tuple({"type": s.raw.get("type")} for s in schema.any_of) == wanted:
                schema.any_of = []
        if "default" in node:
            schema.default = node["default"]
            schema.default_raw = json.dumps(node["default"]).encode()
        if refs is None:
            schema.checks = list(_checks(node))
            return
        schema.required, schema.list_type, schema.int_or_string = (), "atomic", False
        if node.get("format") == "int-or-string" or schema.name.endswith("resource.Quantity"):
            schema.type = ""
        bare = not schema.properties and schema.additional is None and not schema.open
        schema.preserve = bare and schema.type in ("", "object")

    root = build(raw, "openAPIV3Schema")
    _mark_defaults(root, {})
    return root


_GO_TYPES = {"string": "string", "boolean": "bool", "integer": "int64", "number": "float64"}
_JSON_TYPES = {str: "string", bool: "bool", int: "number", float: "number", dict: "object", list: "array"}


def _go_type(schema: Schema) -> str:
    if schema.type == "array" and schema.items is not None:
        return "[]" + _go_type(schema.items)
    if schema.name:
        return ".".join(schema.name.split(".")[-2:])
    if schema.additional is not None:
        return "map[string]" + _go_type(schema.additional)
    if schema.type == "integer" and schema.format:
        return schema.format
    return _GO_TYPES.get(schema.type, "map[string]interface {}")


def decode(schema: Schema, value: Any, path: str = "", owner: str = "") -> str | None:
    """Drops the nulls of a built-in object in place; says which field has the wrong type, or None if all is well."""
    if isinstance(value, dict) and not schema.preserve and schema.type in ("object", ""):
        for key in [key for key, item in value.items() if item is None]:
            del value[key]
        name = schema.name.rpartition(".")[2] or owner
        for key, item in value.items():
            child = schema.properties.get(key) or schema.additional
            if child is not None:
                here = f"{path}.{key}" if path else key
                problem = decode(child, item, here if key in schema.properties else path, name)
                if problem is not None:
                    return problem
        return None
    if isinstance(value, list) and schema.type == "array":
        for item in value:
            problem = None if schema.items is None else decode(schema.items, item, path, owner)
            if problem is not None:
                return problem
        return None
    if schema.preserve or value is None:
        return None
    if not _type_fits(schema, value) or (schema.type == "integer" and isinstance(value, float)):
        got = _JSON_TYPES[type(value)]
        if got == "number":
            got += f" {json.dumps(value)}" if schema.type == "integer" else ""
        return f"json: cannot unmarshal {got} into Go struct field {owner}.{path} of type {_go_type(schema)}"
    if isinstance(value, str) and schema.format in ("date-time", "byte") and not FORMATS[schema.format](value):
        if schema.format == "byte":
            return "illegal base64 data at input byte 0"
        return f'parsing time {json.dumps(value)} as "2006-01-02T15:04:05Z07:00": cannot parse it'
    return None


def _mark_defaults(schema: Schema, seen: dict[int, bool]) -> bool:
    if id(schema) in seen:
        return schema.has_defaults
    seen[id(schema)] = True
    found = False
    for child in schema.children():
        found = _mark_defaults(child, seen) or child.default is not _MISSING or found
    schema.has_defaults = found
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checks(node: Raw) -> Iterator[Callable[[Any, str], Cause | None]]:
    """The checks of single values that a node asks for; each assumes that the type is right or ignores the value."""

    def invalid(test: Callable[[Any], bool], detail: str) -> Callable[[Any, str], Cause | None]:
        return lambda v, p: None if test(v) else cause("FieldValueInvalid", p, f"{p} in body {detail}", v)

    if (low := node.get("minimum")) is not None:
        if node.get("exclusiveMinimum"):
            yield invalid(lambda v: not _number(v) or v > low, f"should be greater than {_plain(low)}")
        else:
            yield invalid(lambda v: not _number(v) or v >= low, f"should be greater than or equal to {_plain(low)}")
    if (high := node.get("maximum")) is not None:
        if node.get("exclusiveMaximum"):
            yield invalid(lambda v: not _number(v) or v < high, f"should be less than {_plain(high)}")
        else:
            yield invalid(lambda v: not _number(v) or v <= high, f"should be less than or equal to {_plain(high)}")
    if (step := node.get("multipleOf")) is not None:
        yield invalid(
            lambda v: not _number(v) or math.isclose(v / step, round(v / step)),
            f"should be a multiple of {_plain(step)}",
        )
    if (least := node.get("minLength")) is not None:
        yield invalid(lambda v: not isinstance(v, str) or len(v) >= least, f"should be at least {least} chars long")
    if (longest := node.get("maxLength")) is not None:
        yield (
            lambda v, p: (
                cause("FieldValueTooLong", p, f"may not be more than {longest} bytes")
                if isinstance(v, str) and len(v) > longest
                else None
            )
        )
    if pattern := node.get("pattern"):
        search = regex(pattern).search
        yield invalid(lambda v: not isinstance(v, str) or search(v) is not None, f"should match '{pattern}'")
    if (fewest := node.get("minItems")) is not None:
        yield invalid(lambda v: not isinstance(v, list) or len(v) >= fewest, f"should have at least {fewest} items")
    if (most := node.get("maxItems")) is not None:
        yield (
            lambda v, p: (
                cause("FieldValueTooMany", p, f"must have at most {most} items", len(v))
                if isinstance(v, list) and len(v) > most
                else None
            )
        )
    if (fewest_keys := node.get("minProperties")) is not None:
        yield invalid(
            lambda v: not isinstance(v, dict) or len(v) >= fewest_keys, f"should have at least {fewest_keys} properties"
        )
    if (most_keys := node.get("maxProperties")) is not None:
        yield (
            lambda v, p: (
                cause("FieldValueTooMany", p, f"must have at most {most_keys} items", len(v))
                if isinstance(v, dict) and len(v) > most_keys
                else None
            )
        )
    if (allowed := node.get("enum")) is not None:
        listed = ", ".join(json.dumps(a, ensure_ascii=False) for a in allowed)
        yield (
            lambda v, p: (
                None
                if any(v == a and isinstance(v, bool) == isinstance(a, bool) for a in allowed)
                else cause("FieldValueNotSupported", p, f"supported values: {listed}", v)
            )
        )
    name = node.get("format", "")
    if name in FORMATS:
        fits = FORMATS[name]
        yield (
            lambda v, p: (
                cause("FieldValueTypeInvalid", p, f"{p} in body must be of type {name}: {json.dumps(v)}", v)
                if isinstance(v, str) and not fits(v)
                else None
            )
        )
    if name in ("int32", "int64"):
        bound = 2**31 if name == "int32" else 2**63
        yield (
            lambda v, p: (
                cause("FieldValueInvalid", p, f"{p} in body must be of type {name}: {json.dumps(v)}", v)
                if _number(v) and not -bound <= v < bound
                else None
            )
        )


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(number)


def prune(schema: Schema, value: Any, path: str = "", unknown: list[str] | None = None, *, root: bool = False) -> None:
    """Removes in place the fields that the schema does not know; their paths are appended to `unknown`."""
    if isinstance(value, dict):
        known = schema.properties
        whole = root or schema.embedded
        doomed = []
        for key, item in value.items():
            if whole and key in ("apiVersion", "kind", "metadata"):
                continue
            child = known.get(key) or schema.additional
            if child is not None:
                if isinstance(item, dict | list):
                    prune(child, item, f"{path}.{key}" if path else key, unknown)
            elif not schema.preserve and not schema.open:
                doomed.append(key)
        for key in doomed:
            del value[key]
            if unknown is not None:
                unknown.append(f"{path}.{key}" if path else key)
    elif isinstance(value, list) and schema.items is not None:
        for index, item in enumerate(value):
            if isinstance(item, dict | list):
                prune(schema.items, item, f"{path}[{index}]", unknown)


def apply_defaults(schema: Schema, value: Any) -> None:
    """Fills absent fields in place; null counts as absent where a default exists and null is not allowed."""
    if isinstance(value, dict):
        for key, child in schema.properties.items():
            if child.default is not _MISSING and (key not in value or (value[key] is None and not child.nullable)):
                value[key] = json.loads(child.default_raw)
        if schema.has_defaults:
            for key, item in value.items():
                child_or_none = schema.properties.get(key) or schema.additional
                if child_or_none is not None and isinstance(item, dict | list):
                    apply_defaults(child_or_none, item)
    elif isinstance(value, list) and schema.items is not None:
        for item in value:
            if isinstance(item, dict | list):
                apply_defaults(schema.items, item)


def drop_nulls(schema: Schema, value: Any) -> None:
    """Removes in place the nulls that no default replaced and that the schema does not allow."""
    if isinstance(value, dict):
        for key, item in list(value.items()):
            child = schema.properties.get(key) or schema.additional
            if child is not None and item is None and not child.nullable:
                del value[key]
            elif child is not None and isinstance(item, dict | list):
                drop_nulls(child, item)
    elif isinstance(value, list) and schema.items is not None:
        for item in value:
            drop_nulls(schema.items, item)


def map_key(schema: Schema, item: Any) -> tuple[Any, ...]:
    """The key of an item of a list of type map."""
    if not isinstance(item, dict):
        return (json.dumps(item),)
    key = tuple([item.get(key) for key in schema.list_keys])
    try:
        hash(key)
    except TypeError:  # a part of the wrong type, which is refused elsewhere
        return (json.dumps(key),)
    return key


def correlate(schema: Schema, old: Any) -> Callable[[Any], Any]:
    """The old item that belongs to a new one, in a list of type map; None where there is none."""
    if schema.list_type != "map" or not isinstance(old, list):
        return lambda item: None
    index = {map_key(schema, item): item for item in old}
    return lambda item: index.get(map_key(schema, item))


def validate(schema: Schema, value: Any, path: str = "", old: Any = None, *, root: bool = False) -> list[Cause]:
    """What is wrong with `value`. What was already wrong in the same place of `old`, unchanged, is let pass."""
    found: list[Cause] = []
    _validate(schema, value, path, old, root, found)
    return found


def _type_fits(schema: Schema, value: Any) -> bool:
    if schema.int_or_string:
        return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
    wanted = schema.type
    if wanted == "string":
        return isinstance(value, str)
    if wanted == "object":
        return isinstance(value, dict)
    if wanted == "array":
        return isinstance(value, list)
    if wanted == "boolean":
        return isinstance(value, bool)
    if wanted == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and _whole(value))
    if wanted == "number":
        return _number(value)
    return True


def _validate(schema: Schema, value: Any, path: str, old: Any, root: bool, found: list[Cause]) -> None:
    if old is not None and isinstance(value, dict | list) and unchanged(value, old):
        return
    start = len(found)
    if value is None:
        if schema.nullable or (not schema.type and not schema.int_or_string):
            return
        found.append(_wrong_type(schema, value, path))
    elif not _type_fits(schema, value):
        found.append(_wrong_type(schema, value, path))
        if schema.type == "integer" and isinstance(value, float):
            text = f"Checked value must be of type integer (default format) in {path}"
            found.append(cause("FieldValueInvalid", "<nil>", text, ""))
        found += [problem for check in schema.checks if (problem := check(value, path)) is not None]
    else:
        for check in schema.checks:
            problem = check(value, path)
            if problem is not None:
                found.append(problem)
        if isinstance(value, dict):
            _validate_object(schema, value, path, old, root, found)
        elif isinstance(value, list):
            _validate_list(schema, value, path, old, found)
        if schema.all_of or schema.any_of or schema.one_of or schema.not_:
            _validate_combined(schema, value, path, found)
    if len(found) > start and old is not None and same(value, old):
        del found[start:]


def _wrong_type(schema: Schema, value: Any, path: str) -> Cause:
    wanted = "integer,string" if schema.int_or_string else schema.type
    got = type_name(value)
    return cause("FieldValueTypeInvalid", path, f'{path} in body must be of type {wanted}: "{got}"', got)


def _validate_object(
    schema: Schema, value: dict[str, Any], path: str, old: Any, root: bool, found: list[Cause]
) -> None:
    prefix = f"{path}." if path else ""
    found += [cause("FieldValueRequired", prefix + key) for key in schema.required if key not in value]
    before = old if isinstance(old, dict) else {}
    whole = root or schema.embedded
    for key, item in value.items():
        if whole and key in ("apiVersion", "kind"):
            continue
        child = schema.properties.get(key) or schema.additional
        if child is not None:
            _validate(child, item, prefix + key, before.get(key), False, found)
    if schema.embedded:
        for key in ("apiVersion", "kind"):
            if not value.get(key):
                found.append(cause("FieldValueRequired", prefix + key, "must not be empty"))


def _validate_list(schema: Schema, value: list[Any], path: str, old: Any, found: list[Cause]) -> None:
    if schema.list_type == "map" or schema.list_type == "set":
        seen = set()
        for index, item in enumerate(value):
            if schema.list_type == "map" and not isinstance(item, dict):
                text = "must be an object for an array of list-type map"
                found.append(cause("FieldValueInvalid", f"{path}[{index}]", text, item))
                continue
            key: Any = map_key(schema, item) if schema.list_type == "map" else json.dumps(item, sort_keys=True)
            if key in seen:
                shown = item
                if schema.list_type == "map":
                    shown = {name: item[name] for name in schema.list_keys if name in item}
                found.append(cause("FieldValueDuplicate", f"{path}[{index}]", value=shown))
            seen.add(key)
    if schema.items is None:
        return
    match = correlate(schema, old)
    for index, item in enumerate(value):
        _validate(schema.items, item, f"{path}[{index}]", match(item), False, found)


def _validate_combined(schema: Schema, value: Any, path: str, found: list[Cause]) -> None:
    for child in schema.all_of:
        _validate(child, value, path, None, False, found)

    def fits(child: Schema) -> bool:
        problems: list[Cause] = []
        _validate(child, value, path, None, False, problems)
        return not problems

    if schema.any_of and not any(fits(child) for child in schema.any_of):
        found.append(cause("FieldValueInvalid", path, f'"{path}" must validate at least one schema (anyOf)', value))
        for child in schema.any_of:
            _validate(child, value, path, None, False, found)
    if schema.one_of:
        fitting = sum(fits(child) for child in schema.one_of)
        if fitting != 1:
            text = f'"{path}" must validate one and only one schema (oneOf).'
            text += f" Found {'none valid' if not fitting else f'{fitting} valid alternatives'}"
            found.append(cause("FieldValueInvalid", path, text, value))
    if schema.not_ is not None and fits(schema.not_):
        found.append(cause("FieldValueInvalid", path, f'"{path}" must not validate the schema (not)', value))
