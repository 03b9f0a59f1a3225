"""CEL rules of CRDs (`x-kubernetes-validations`): compiled once, evaluated on each write."""

import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation, localcontext
from functools import cache
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_math, ext_optional, ext_strings
from google.protobuf import duration_pb2, timestamp_pb2

from .errors import NO_VALUE, Cause, cause
from .schema import Schema, correlate, regex, same

_T = cel.Type
_ANY_LIST = _T.List(_T.DYN)
_RECORD = _T.Map(_T.STRING, _T.DYN)
"""Kubernetes' own CEL types (quantity, URL, IP) are maps here, with one key that names the type."""

# --- values ---------------------------------------------------------------------------------------------------------

_RESERVED = frozenset(
    "true false null in as break const continue else for function if import let loop package namespace return var void"
    " while".split()
)
_ESCAPES = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))
_GO_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def escape(name: str) -> str:
    """A property name as rules write it: `namespace` is `__namespace__`."""
    if name in _RESERVED:
        return f"__{name}__"
    for char, word in _ESCAPES:
        name = name.replace(char, word)
    return name


def _timestamp(text: str) -> timestamp_pb2.Timestamp:
    """The library takes times and durations as protobuf messages only."""
    if len(text) == 10:
        text += "T00:00:00Z"
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(datetime.fromisoformat(text.upper().replace("Z", "+00:00")))
    return message


def _duration(text: str) -> duration_pb2.Duration:
    sign = -1 if text.startswith("-") else 1
    message = duration_pb2.Duration()
    message.FromNanoseconds(
        sign * round(sum(float(n) * _UNIT_SECONDS[unit] * 1e9 for n, unit in _GO_DURATION_PART.findall(text)))
    )
    return message


def _converter(schema: Schema, seen: dict[int, Any] | None = None) -> Callable[[Any], Any] | None:
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


# --- Kubernetes' CEL libraries --------------------------------------------------------------------------------------

_SUFFIX = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?)\Z")


def parse_quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number; ValueError if it is none."""
    match = _QUANTITY.match(text)
    if not match:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    number, exponent, suffix = match.groups()
    try:
        with localcontext() as context:
            context.prec = 60
            return Decimal(number + exponent) if exponent else Decimal(number) * _SUFFIX[suffix or ""]
    except InvalidOperation as error:
        raise ValueError("unable to parse quantity") from error


def _quantity(value: Decimal) -> dict[str, str]:
    return {"quantity": str(value.normalize())}


def _of(value: dict[str, Any]) -> Decimal:
    return Decimal(value["quantity"])


def _as_quantity(value: Any) -> Decimal:
    return Decimal(value) if isinstance(value, int) else _of(value)


def _is_quantity(text: str) -> bool:
    try:
        parse_quantity(text)
    except ValueError:
        return False
    return True


def _compare(a: Any, b: Any) -> int:
    return (_of(a) > _of(b)) - (_of(a) < _of(b))


def _exact(value: dict[str, Any]) -> int:
    number = _of(value)
    if number != number.to_integral_value() or abs(number) >= 2**63:
        raise ValueError("cannot convert value to integer")
    return int(number)


def _sum(items: list[Any]) -> Any:
    total: Any = items[0] if items else 0
    for item in items[1:]:
        total = total + item
    if isinstance(total, int) and not isinstance(total, bool) and not -(2**63) <= total < 2**63:
        raise ValueError("integer overflow")
    return total


def _least(items: list[Any]) -> Any:
    if not items:
        raise ValueError("min called on empty list")
    return min(items)


def _greatest(items: list[Any]) -> Any:
    if not items:
        raise ValueError("max called on empty list")
    return max(items)


def _index(items: list[Any], wanted: Any) -> int:
    return next((i for i, item in enumerate(items) if same_value(item, wanted)), -1)


def _last_index(items: list[Any], wanted: Any) -> int:
    return next((len(items) - 1 - i for i, item in enumerate(reversed(items)) if same_value(item, wanted)), -1)


def same_value(a: Any, b: Any) -> bool:
    """Equality in CEL: true is not 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _find(text: str, pattern: str) -> str:
    match = regex(pattern).search(text)
    return match.group(0) if match else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match.group(0) for match in regex(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _url(text: str) -> dict[str, str]:
    if not _is_url(text):
        raise ValueError("URL parse error during conversion from string")
    return {"url": text}


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    if any(c.isspace() or ord(c) < 32 for c in text):
        return False
    return bool(parts.scheme) or text.startswith("/")


def _split(value: dict[str, str]) -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(value["url"])


def _port(value: dict[str, str]) -> str:
    port = _split(value).port
    return "" if port is None else str(port)


def _queries(value: dict[str, str]) -> dict[str, list[str]]:
    return urllib.parse.parse_qs(_split(value).query, keep_blank_values=True)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text and not text.lower().startswith("::ffff:")


def _is_cidr(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def _ip(text: str) -> dict[str, str]:
    if not _is_ip(text):
        raise ValueError(f"IP Address {text!r} parse error during conversion from string")
    return {"ip": str(ipaddress.ip_address(text))}


def _functions() -> Iterator[cel.FunctionDecl]:
    table: dict[str, list[tuple[list[Any], Any, bool, Callable[..., Any]]]] = {}

    def add(name: str, parameters: list[Any], result: Any, impl: Callable[..., Any], member: bool = True) -> None:
        table.setdefault(name, []).append((parameters, result, member, impl))

    text, whole, yes = _T.STRING, _T.INT, _T.BOOL
    add("quantity", [text], _RECORD, lambda s: _quantity(parse_quantity(s)), member=False)
    add("isQuantity", [text], yes, _is_quantity, member=False)
    add("sign", [_RECORD], whole, lambda q: (_of(q) > 0) - (_of(q) < 0), member=False)
    add("isInteger", [_RECORD], yes, lambda q: _of(q) == _of(q).to_integral_value() and abs(_of(q)) < 2**63)
    add("asInteger", [_RECORD], whole, _exact)
    add("asApproximateFloat", [_RECORD], _T.DOUBLE, lambda q: float(_of(q)))
    add("compareTo", [_RECORD, _RECORD], whole, _compare)
    add("isGreaterThan", [_RECORD, _RECORD], yes, lambda a, b: _compare(a, b) > 0)
    add("isLessThan", [_RECORD, _RECORD], yes, lambda a, b: _compare(a, b) < 0)
    add("add", [_RECORD, _T.DYN], _RECORD, lambda a, b: _quantity(_of(a) + _as_quantity(b)))
    add("sub", [_RECORD, _T.DYN], _RECORD, lambda a, b: _quantity(_of(a) - _as_quantity(b)))
    add("sum", [_ANY_LIST], _T.DYN, _sum)
    add("min", [_ANY_LIST], _T.DYN, _least)
    add("max", [_ANY_LIST], _T.DYN, _greatest)
    add("isSorted", [_ANY_LIST], yes, lambda items: all(a <= b for a, b in zip(items, items[1:], strict=False)))
    add("find", [text, text], text, _find)
    add("findAll", [text, text], _T.List(text), _find_all)
    add("findAll", [text, text, whole], _T.List(text), _find_all)
    add("url", [text], _RECORD, _url, member=False)
    add("isURL", [text], yes, _is_url, member=False)
    add("getScheme", [_RECORD], text, lambda u: _split(u).scheme)
    add("getHost", [_RECORD], text, lambda u: _split(u).netloc.rpartition("@")[2])
    add("getHostname", [_RECORD], text, lambda u: _split(u).hostname or "")
    add("getPort", [_RECORD], text, _port)
    add("getEscapedPath", [_RECORD], text, lambda u: _split(u).path)
    add("getQuery", [_RECORD], _T.Map(text, _T.List(text)), _queries)
    add("ip", [text], _RECORD, _ip, member=False)
    add("isIP", [text], yes, _is_ip, member=False)
    add("isCIDR", [text], yes, _is_cidr, member=False)
    add("family", [_RECORD], whole, lambda i: ipaddress.ip_address(i["ip"]).version)
    add("isLoopback", [_RECORD], yes, lambda i: ipaddress.ip_address(i["ip"]).is_loopback)
    for name, overloads in table.items():
        yield cel.FunctionDecl(
            name,
            [
                cel.Overload(f"k8s_{name}_{i}", return_type=result, parameters=parameters, is_member=member, impl=impl)
                for i, (parameters, result, member, impl) in enumerate(overloads)
            ],
        )


@cache
def _environment() -> cel.Env:
    return cel.NewEnv(
        variables={"self": _T.DYN, "oldSelf": _T.DYN, "oldSelf_": _T.DYN, "hasOldSelf_": _T.BOOL},
        extensions=[
            ext_optional.ExtOptional(),
            ext_strings.ExtStrings(),
            ext_math.ExtMath(),
            ext_bindings.ExtBindings(),
        ],
        functions=list(_functions()),
    )


# --- rules ----------------------------------------------------------------------------------------------------------

_REASONS = {
    "": "FieldValueInvalid",
    "FieldValueInvalid": "FieldValueInvalid",
    "FieldValueForbidden": "FieldValueForbidden",
    "FieldValueRequired": "FieldValueRequired",
    "FieldValueDuplicate": "FieldValueDuplicate",
}
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


class NodeRules:
    """The rules of one schema node, and what turns its value into CEL's."""

    def __init__(self, schema: Schema, rules: list[Rule], root: bool) -> None:
        self.rules = rules
        self._convert = _converter(schema)
        self._whole = root or schema.embedded

    def convert(self, value: Any) -> Any:
        if value is None:
            return None
        converted = value if self._convert is None else self._convert(value)
        if not self._whole:
            return converted
        metadata = value.get("metadata") or {}
        seen = {key: metadata[key] for key in ("name", "generateName") if key in metadata}
        return {**converted, "apiVersion": value.get("apiVersion"), "kind": value.get("kind"), "metadata": seen}


def _program(expression: str) -> Any:
    """Compiles with types where they are known, so that unknown functions and names are refused."""
    environment = _environment()
    environment.compile(expression)
    return environment.compile(expression, disable_check=True)


def _uses_old(expression: str) -> bool:
    return bool(_OLD_SELF.search(_LITERAL.sub("''", expression)))


def _compile_rule(raw: dict[str, Any], path: str, correlatable: bool, found: list[Cause]) -> Rule | None:
    text = raw.get("rule", "")
    if not text.strip():
        found.append(cause("FieldValueRequired", f"{path}.rule", "rule is not specified"))
        return None
    optional = bool(raw.get("optionalOldSelf"))
    transition = _uses_old(text)

    def wrap(expression: str) -> str:
        if not optional:
            return expression
        return f"cel.bind(oldSelf, hasOldSelf_ ? optional.of(oldSelf_) : optional.none(), ({expression}))"

    if transition and not correlatable:
        found.append(
            cause(
                "FieldValueInvalid",
                f"{path}.rule",
                "oldSelf cannot be used on the uncorrelatable portion of the schema",
                text,
            )
        )
        return None
    try:
        program = _program(wrap(text))
    except RuntimeError as error:
        found.append(cause("FieldValueInvalid", f"{path}.rule", f"compilation failed: {_tidy(error)}", raw))
        return None
    message_program = None
    if expression := raw.get("messageExpression"):
        try:
            message_program = _program(wrap(expression))
        except RuntimeError as error:
            found.append(
                cause(
                    "FieldValueInvalid",
                    f"{path}.messageExpression",
                    f"messageExpression compilation failed: {_tidy(error)}",
                    raw,
                )
            )
            return None
    message = raw.get("message", "")
    if message and "\n" in message:
        found.append(cause("FieldValueInvalid", f"{path}.message", "message must not contain line breaks", message))
    if not message and "\n" in text and not expression:
        found.append(
            cause("FieldValueRequired", f"{path}.message", "message must be specified if rule contains line breaks")
        )
    reason = raw.get("reason", "")
    if reason not in _REASONS:
        found.append(
            cause("FieldValueNotSupported", f"{path}.reason", f"supported values: {', '.join(_REASONS)}", reason)
        )
        return None
    return Rule(
        text=text,
        program=program,
        transition=transition,
        optional_old=optional,
        message=message or f"failed rule: {' '.join(text.split())}",
        message_program=message_program,
        kind=_REASONS[reason],
        field_path=raw.get("fieldPath", ""),
    )


def _tidy(error: Exception) -> str:
    return str(error).replace("INVALID_ARGUMENT: ", "").removesuffix(" [INVALID_ARGUMENT]")


def compile_rules(schema: Schema, path: str, *, root: bool = True) -> list[Cause]:
    """Compiles the rules of a whole schema into `Schema.rules`; returns what is wrong with them, by field of the CRD."""
    found: list[Cause] = []
    _compile_node(schema, path, root, True, found)
    return found


def _compile_node(schema: Schema, path: str, root: bool, correlatable: bool, found: list[Cause]) -> bool:
    rules = []
    for index, raw in enumerate(schema.raw.get("x-kubernetes-validations") or ()):
        rule = _compile_rule(raw, f"{path}.x-kubernetes-validations[{index}]", correlatable, found)
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
    _validate(schema, value, old, path, found)
    return found


def _validate(schema: Schema, value: Any, old: Any, path: str, found: list[Cause]) -> None:
    node: NodeRules | None = schema.rules
    if node is None or value is None:
        return
    unchanged = old is not None and value == old
    if node.rules:
        _evaluate(schema, node, value, old, unchanged, path, found)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for key, item in value.items():
            child = schema.properties.get(key)
            if child is not None:
                if child.rules is not None:
                    _validate(child, item, before.get(key), f"{path}.{key}" if path else key, found)
            elif schema.additional is not None:
                _validate(schema.additional, item, before.get(key), f"{path}[{key}]", found)
    elif isinstance(value, list) and schema.items is not None and schema.items.rules is not None:
        match = correlate(schema, old)
        for index, item in enumerate(value):
            _validate(schema.items, item, match(item), f"{path}[{index}]", found)


def _evaluate(
    schema: Schema, node: NodeRules, value: Any, old: Any, unchanged: bool, path: str, found: list[Cause]
) -> None:
    activation = None
    for rule in node.rules:
        if rule.transition:
            if old is None and not rule.optional_old:
                continue
        elif unchanged:
            continue
        if activation is None:
            before = node.convert(old)
            data = {"self": node.convert(value), "oldSelf": before, "oldSelf_": before, "hasOldSelf_": old is not None}
            activation = _environment().Activation(data)
        result = rule.program.eval(activation)
        kind = result.type()
        if kind == _T.BOOL:
            if result.value():
                continue
            detail = _message(rule, activation)
        elif kind == _T.ERROR:
            detail = f"rule evaluation error: {result.value() or result}"
        else:
            detail = f"rule evaluation error: the rule gave {kind.name()} instead of a bool"
        if unchanged and rule.optional_old and same(value, old):
            continue
        where = path + _relative(rule.field_path) if rule.field_path else path
        where = where.removeprefix(".") or "<nil>"
        if rule.kind == "FieldValueRequired" or rule.kind == "FieldValueForbidden":
            found.append(cause(rule.kind, where, detail))
        else:
            found.append(cause(rule.kind, where, detail, NO_VALUE if isinstance(value, dict | list) else value))


def _relative(field_path: str) -> str:
    return re.sub(r"\['([^']*)'\]", r".\1", field_path)


def _message(rule: Rule, activation: Any) -> str:
    if rule.message_program is not None:
        result = rule.message_program.eval(activation)
        if result.type() == _T.STRING:
            text = str(result.value()).strip()
            if text and "\n" not in text:
                return text
    return rule.message
