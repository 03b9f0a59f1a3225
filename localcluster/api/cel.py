"""CEL rules of CRDs (`x-kubernetes-validations`): compiled once, evaluated on each write."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_optional
from google.protobuf import duration_pb2, timestamp_pb2

from .cel_functions import declarations
from .errors import NO_VALUE, Cause, cause
from .schema import Schema, map_key

_T = cel.Type

# --- values ---------------------------------------------------------------------------------------------------------

_RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
_ESCAPES = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))
_GO_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@lru_cache(maxsize=4096)
def escape(name: str) -> str:
    """A property name as rules write it: `namespace` is `__namespace__`."""
    if name in _RESERVED:
        return f"__{name}__"
    for char, word in _ESCAPES:
        name = name.replace(char, word)
    return name


@lru_cache(maxsize=4096)
def _timestamp(text: str) -> timestamp_pb2.Timestamp:
    """The library takes times and durations as protobuf messages only."""
    if len(text) == 10:
        text += "T00:00:00Z"
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(datetime.fromisoformat(text.upper().replace("Z", "+00:00")))
    return message


@lru_cache(maxsize=4096)
def _duration(text: str) -> duration_pb2.Duration:
    sign = -1 if text.startswith("-") else 1
    message = duration_pb2.Duration()
    message.FromNanoseconds(
        sign * round(sum(float(n) * _UNIT_SECONDS[unit] * 1e9 for n, unit in _GO_DURATION_PART.findall(text)))
    )
    return message


def _converter(schema: Schema) -> Callable[[Any], Any] | None:
    """What turns a JSON value into the value rules see; None where they are the same."""
    if schema.type == "number":
        return lambda v: float(v) if isinstance(v, int) and not isinstance(v, bool) else v
    if schema.type == "integer":
        return lambda v: int(v) if isinstance(v, float) else v
    if schema.type == "string":
        if schema.format in ("date-time", "date"):
            return lambda v: None if v is None else _timestamp(v)
        if schema.format == "duration":
            return lambda v: None if v is None else _duration(v)
        return None
    if schema.type == "array" and schema.items is not None:
        each = _converter(schema.items)
        return None if each is None else lambda v: None if v is None else [each(item) for item in v]
    if schema.type == "object":
        if schema.additional is not None:
            value = _converter(schema.additional)
            return None if value is None else lambda v: None if v is None else {k: value(i) for k, i in v.items()}
        changes = {
            key: (escape(key), _converter(child))
            for key, child in schema.properties.items()
            if child.type or child.int_or_string or child.preserve
        }
        if all(name == key and convert is None for key, (name, convert) in changes.items()):
            return None

        def change(v: Any) -> Any:
            if v is None:
                return None
            out = {}
            for key, item in v.items():
                name, convert = changes.get(key, (key, None))
                out[name] = item if convert is None else convert(item)
            return out

        return change
    return None


@cache
def _environment() -> cel.Env:
    return cel.NewEnv(
        variables={"self": _T.DYN, "oldSelf": _T.DYN, "oldSelf_": _T.DYN, "hasOldSelf_": _T.BOOL},
        extensions=[ext_optional.ExtOptional(), ext_bindings.ExtBindings()],
        functions=list(declarations()),
    )


# --- rules ----------------------------------------------------------------------------------------------------------

_REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
_OLD_SELF = re.compile(r"\boldSelf\b")
_LITERAL = re.compile(r"""r?"(?:\\.|[^"\\])*"|r?'(?:\\.|[^'\\])*'""")


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule."""

    text: str
    program: Any
    transition: bool
    optional_old: bool
    message: str
    message_program: Any
    kind: str
    field_path: str


_REMEMBERED = 1024
_UNKNOWN: Any = object()


class NodeRules:
    """The rules of one schema node, and what turns its value into CEL's."""

    def __init__(self, schema: Schema, rules: list[Rule], root: bool) -> None:
        self.rules = rules
        self.wants_old = any(rule.transition and not rule.optional_old for rule in rules)
        self.wants_optional = any(rule.optional_old for rule in rules)
        below = [*schema.properties.values(), schema.additional, schema.items]
        self.timeless = not any(rule.transition for rule in rules) and all(
            child is None or child.rules is None or child.rules.timeless for child in below
        )
        """No rule, here or below, looks at what was before."""
        self.settled: dict[str, None] = {}
        """Values that broke no rule, here and below, when they did not change: most of a large object never does."""
        self.passed: dict[str, None] = {}
        """Of a timeless node: values that broke no rule."""
        self._convert = _converter(schema)
        self._whole = root or schema.embedded

    def convert(self, value: Any) -> Any:
        """A value as rules see it."""
        if value is None:
            return None
        converted = value if self._convert is None else self._convert(value)
        if not self._whole:
            return converted
        metadata = value.get("metadata") or {}
        seen = {key: metadata[key] for key in ("name", "generateName") if key in metadata}
        return {**converted, "apiVersion": value.get("apiVersion"), "kind": value.get("kind"), "metadata": seen}


class _Value:
    """A value, and lazily what rules see of it."""

    __slots__ = ("_converted", "raw")

    def __init__(self, raw: Any, converted: Any = _UNKNOWN) -> None:
        self.raw = raw
        self._converted = converted

    def converted(self, node: NodeRules) -> Any:
        if self._converted is _UNKNOWN:
            self._converted = node.convert(self.raw)
        return self._converted

    def property(self, key: str) -> "_Value":
        raw = self.raw.get(key) if isinstance(self.raw, dict) else None
        return _Value(raw, _UNKNOWN if self._converted is _UNKNOWN else (self._converted or {}).get(escape(key)))

    def entry(self, key: str) -> "_Value":
        raw = self.raw.get(key) if isinstance(self.raw, dict) else None
        return _Value(raw, _UNKNOWN if self._converted is _UNKNOWN else (self._converted or {}).get(key))

    def items(self) -> "list[_Value]":
        if not isinstance(self.raw, list):
            return []
        if self._converted is _UNKNOWN:
            return [_Value(item) for item in self.raw]
        return [_Value(*pair) for pair in zip(self.raw, self._converted, strict=True)]


_ABSENT = _Value(None, None)


class _Unusable(Exception):
    """Why an expression cannot be used."""


def _program(expression: str, wanted: Any, otherwise: str) -> Any:
    """Compiles with types where they are known, so that unknown functions and names are refused."""
    environment = _environment()
    try:
        result = environment.compile(expression).return_type()
        program = environment.compile(expression, disable_check=True)
    except RuntimeError as error:
        raise _Unusable(f"compilation failed: {_tidy(error)}") from None
    if result not in (wanted, _T.DYN):
        raise _Unusable(otherwise)
    return program


def _uses_old(expression: str) -> bool:
    return bool(_OLD_SELF.search(_LITERAL.sub("''", expression)))


def _check_rule(raw: dict[str, Any], schema: Schema, path: str, correlatable: bool) -> list[Cause]:
    """What is wrong with a rule, apart from its expressions."""
    found = []
    text, message = raw.get("rule", ""), raw.get("message", "")
    if not text.strip():
        found.append(cause("FieldValueRequired", f"{path}.rule", "rule is not specified"))
    if message and not message.strip():
        found.append(cause("FieldValueInvalid", f"{path}.message", "must be non-empty if specified", message))
    elif "\n" in message.strip():
        found.append(cause("FieldValueInvalid", f"{path}.message", "must not contain line breaks", message))
    elif "\n" in text.strip() and not message:
        found.append(
            cause("FieldValueRequired", f"{path}.message", "message must be specified if rule contains line breaks")
        )
    if raw.get("reason", _REASONS[0]) not in _REASONS:
        listed = ", ".join(f'"{reason}"' for reason in _REASONS)
        found.append(cause("FieldValueNotSupported", f"{path}.reason", f"supported values: {listed}", raw["reason"]))
    if (where := raw.get("fieldPath")) and not _leads_somewhere(schema, where):
        found.append(cause("FieldValueInvalid", f"{path}.fieldPath", "must be a valid path", where))
    uses_old = _uses_old(text)
    if raw.get("optionalOldSelf") is not None and not uses_old:
        detail = "may not be set if oldSelf is not used in rule"
        found.append(cause("FieldValueInvalid", f"{path}.optionalOldSelf", detail, raw["optionalOldSelf"]))
    if uses_old and not correlatable:
        detail = "oldSelf cannot be used on the uncorrelatable portion of the schema"
        found.append(cause("FieldValueInvalid", f"{path}.rule", detail, text))
    return found


_PATH_STEP = re.compile(r"\.([A-Za-z_][\w]*)|\['([^']+)'\]")


def _leads_somewhere(schema: Schema, path: str) -> bool:
    position = 0
    node: Schema | None = schema
    while position < len(path):
        match = _PATH_STEP.match(path, position)
        if match is None or node is None:
            return False
        node = node.value(match.group(1) or match.group(2))
        position = match.end()
    return node is not None


def _compile_rule(
    raw: dict[str, Any], schema: Schema, path: str, correlatable: bool, found: list[Cause]
) -> Rule | None:
    wrong = _check_rule(raw, schema, path, correlatable)
    found += wrong
    if wrong:
        return None
    text, optional, expression = raw["rule"], bool(raw.get("optionalOldSelf")), raw.get("messageExpression", "")

    def wrap(source: str) -> str:
        if not optional:
            return source
        return f"cel.bind(oldSelf, hasOldSelf_ ? optional.of(oldSelf_) : optional.none(), ({source}))"

    shown = {
        "Rule": text,
        "Message": raw.get("message", ""),
        "MessageExpression": expression,
        "Reason": raw.get("reason"),
        "FieldPath": raw.get("fieldPath", ""),
        "OptionalOldSelf": raw.get("optionalOldSelf"),
    }
    field = "rule"
    try:
        program = _program(wrap(text), _T.BOOL, "cel expression must evaluate to a bool")
        field = "messageExpression"
        message_program = (
            _program(wrap(expression), _T.STRING, "messageExpression must evaluate to a string") if expression else None
        )
    except _Unusable as error:
        detail = str(error)
        if field == "messageExpression" and detail.startswith("compilation"):
            detail = f"{field} {detail}"
        value = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
        found.append(Cause("FieldValueInvalid", f"{path}.{field}", f"Invalid value: {value}: {detail}"))
        return None
    return Rule(
        text=text,
        program=program,
        transition=_uses_old(text),
        optional_old=optional,
        message=(raw.get("message") or f"failed rule: {text}").strip(),
        message_program=message_program,
        kind=raw.get("reason") or "FieldValueInvalid",
        field_path=raw.get("fieldPath", ""),
    )


def _tidy(error: Exception) -> str:
    return str(error).replace("INVALID_ARGUMENT: ", "").removesuffix(" [INVALID_ARGUMENT]")


def compile_rules(schema: Schema, path: str, *, root: bool = True) -> list[Cause]:
    """Compiles the rules of a whole schema into `Schema.rules`; returns what is wrong with them."""
    found: list[Cause] = []
    _compile_node(schema, path, root, True, found)
    return found


def _compile_node(schema: Schema, path: str, root: bool, correlatable: bool, found: list[Cause]) -> bool:
    rules = []
    for index, raw in enumerate(schema.raw.get("x-kubernetes-validations") or ()):
        rule = _compile_rule(raw, schema, f"{path}.x-kubernetes-validations[{index}]", correlatable, found)
        if rule is not None:
            rules.append(rule)
    below = False
    for key, child in schema.properties.items():
        below = _compile_node(child, f"{path}.properties[{key}]", False, correlatable, found) or below
    if schema.additional is not None:
        below = _compile_node(schema.additional, f"{path}.additionalProperties", False, correlatable, found) or below
    if schema.items is not None:
        matched = correlatable and schema.list_type == "map"
        below = _compile_node(schema.items, f"{path}.items", False, matched, found) or below
    if rules or below:
        schema.rules = NodeRules(schema, rules, root)
    return bool(rules or below)


def validate(schema: Schema, value: Any, old: Any = None, path: str = "") -> list[Cause]:
    """The rules that `value` breaks. `old` is the value before, None on create."""
    found: list[Cause] = []
    _validate(schema, _Value(value), _ABSENT if old is None else _Value(old), path, found)
    return found


def _validate(schema: Schema, value: _Value, old: _Value, path: str, found: list[Cause]) -> None:
    node: NodeRules | None = schema.rules
    raw = value.raw
    if node is None or raw is None:
        return
    same_as_before = old.raw is not None and raw == old.raw
    mark = repr(raw) if same_as_before or node.timeless else ""
    if mark and (mark in node.passed or (same_as_before and mark in node.settled)):
        return
    same_as_before = same_as_before and mark == repr(old.raw)
    before = len(found)
    if node.rules:
        _evaluate(node, value, old, same_as_before, path, found)
    if isinstance(raw, dict):
        for key in raw:
            child = schema.properties.get(key)
            if child is not None:
                if child.rules is not None:
                    here = f"{path}.{key}" if path else key
                    _validate(child, value.property(key), old.property(key), here, found)
            elif schema.additional is not None and schema.additional.rules is not None:
                _validate(schema.additional, value.entry(key), old.entry(key), f"{path}[{key}]", found)
    elif isinstance(raw, list) and schema.items is not None and schema.items.rules is not None:
        match = {map_key(schema, item.raw): item for item in old.items()} if schema.list_type == "map" else {}
        for index, item in enumerate(value.items()):
            partner = match.get(map_key(schema, item.raw), _ABSENT) if match else _ABSENT
            _validate(schema.items, item, partner, f"{path}[{index}]", found)
    if len(found) == before:
        if same_as_before:
            _remember(node.settled, mark)
        elif node.timeless:
            _remember(node.passed, mark)


def _remember(values: dict[str, None], mark: str) -> None:
    if len(values) >= _REMEMBERED:
        del values[next(iter(values))]
    values[mark] = None


def _evaluate(node: NodeRules, value: _Value, old: _Value, same_as_before: bool, path: str, found: list[Cause]) -> None:
    activation = None
    for rule in node.rules:
        if rule.transition:
            if old.raw is None and not rule.optional_old:
                continue
        elif same_as_before:
            continue
        if activation is None:
            data = {"self": value.converted(node)}
            if node.wants_old and old.raw is not None:
                data["oldSelf"] = old.converted(node)
            if node.wants_optional:
                data |= {"oldSelf_": old.converted(node), "hasOldSelf_": old.raw is not None}
            activation = _environment().Activation(data)
        try:
            result = rule.program.eval(activation)
            kind = result.type()
        except RuntimeError as error:
            found.append(cause("FieldValueInvalid", path or "<nil>", f"rule evaluation error: {_tidy(error)}"))
            continue
        if kind == _T.BOOL:
            if result.value():
                continue
            detail = _message(rule, activation)
        elif kind == _T.ERROR:
            detail = f"rule evaluation error: {result.value() or result}"
        else:
            detail = f"rule evaluation error: the rule gave {kind.name()} instead of a bool"
        if same_as_before and rule.optional_old:
            continue
        where = path + _relative(rule.field_path) if rule.field_path else path
        where = where.removeprefix(".") or "<nil>"
        if rule.kind == "FieldValueRequired" or rule.kind == "FieldValueForbidden":
            found.append(cause(rule.kind, where, detail))
        else:
            found.append(cause(rule.kind, where, detail, NO_VALUE if isinstance(value.raw, dict | list) else value.raw))


def _relative(field_path: str) -> str:
    return re.sub(r"\['([^']*)'\]", r".\1", field_path)


def _message(rule: Rule, activation: Any) -> str:
    if rule.message_program is not None:
        try:
            result = rule.message_program.eval(activation)
        except RuntimeError:
            return rule.message  # as in kube-apiserver: a message that cannot be made is replaced by the fixed one
        if result.type() == _T.STRING:
            text = str(result.value()).strip()
            if text and "\n" not in text:
                return text
    return rule.message
