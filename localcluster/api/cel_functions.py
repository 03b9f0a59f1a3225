"""The functions that rules of CRDs may call beyond CEL's own: strings, lists, regular expressions, quantities, URLs.

Kubernetes' own types (quantity, URL, IP) are maps here, with one key that names the type. What is missing of
Kubernetes' libraries (semver, sets, cidr, named formats, sort) is refused when the CRD is created.
"""

import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation, localcontext
from itertools import pairwise
from typing import Any

from cel_expr_python import cel
from google.protobuf import duration_pb2, timestamp_pb2

from .schema import regex

_T = cel.Type
_LIST = _T.List(_T.DYN)
_RECORD = _T.Map(_T.STRING, _T.DYN)

# --- quantities -----------------------------------------------------------------------------------------------------

_SUFFIX = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,3})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?)\Z")


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


def _number(value: Any) -> Decimal:
    return Decimal(value) if isinstance(value, int) else Decimal(value["quantity"])


def _compare(a: Any, b: Any) -> int:
    return (_number(a) > _number(b)) - (_number(a) < _number(b))


def _is_whole(value: Any) -> bool:
    number = _number(value)
    return number == number.to_integral_value() and abs(number) < 2**63


def _exact(value: Any) -> int:
    if not _is_whole(value):
        raise ValueError("cannot convert value to integer")
    return int(_number(value))


def _succeeds(parse: Callable[[str], Any]) -> Callable[[str], bool]:
    def test(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return test


# --- lists ----------------------------------------------------------------------------------------------------------


def _sum(items: list[Any]) -> Any:
    total: Any = items[0] if items else 0
    for item in items[1:]:
        total = total + item
    if isinstance(total, int) and not -(2**63) <= total < 2**63:
        raise ValueError("integer overflow")
    return _given_back(total)


def _given_back(value: Any) -> Any:
    """Times and durations go back to CEL as protobuf messages only."""
    if isinstance(value, timedelta):
        duration = duration_pb2.Duration()
        duration.FromTimedelta(value)
        return duration
    if isinstance(value, datetime):
        timestamp = timestamp_pb2.Timestamp()
        timestamp.FromDatetime(value)
        return timestamp
    return value


def _of_some(name: str, choose: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def chosen(items: list[Any]) -> Any:
        if not items:
            raise ValueError(f"{name} called on empty list")
        return _given_back(choose(items))

    return chosen


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _index(where: Any, wanted: Any) -> int:
    if isinstance(where, str):
        return where.find(wanted)
    return next((i for i, item in enumerate(where) if _same(item, wanted)), -1)


def _last_index(where: Any, wanted: Any) -> int:
    if isinstance(where, str):
        return where.rfind(wanted)
    return next((i for i in reversed(range(len(where))) if _same(where[i], wanted)), -1)


# --- strings --------------------------------------------------------------------------------------------------------

_SPACES = (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
_WHITE = "".join(map(chr, _SPACES))
_ASCII_UP = {ord(c): c.upper() for c in "abcdefghijklmnopqrstuvwxyz"}
_ASCII_DOWN = {ord(c): c.lower() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_VERB = re.compile(r"%(%|(?:\.(\d+))?([sdfebxXo])|)")


def _within(text: str, position: int) -> int:
    if not 0 <= position <= len(text):
        raise ValueError(f"index out of range: {position}")
    return position


def _substring(text: str, start: int, end: int | None = None) -> str:
    stop = len(text) if end is None else _within(text, end)
    if _within(text, start) > stop:
        raise ValueError(f"invalid substring range. start: {start}, end: {stop}")
    return text[start:stop]


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if separator == "":
        parts = list(text)
        return parts if limit < 0 or len(parts) <= limit else [*parts[: limit - 1], "".join(parts[limit - 1 :])]
    return text.split(separator, limit - 1 if limit > 0 else -1)


def _shown(value: Any) -> str:
    """A value as %s prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}s"
    if isinstance(value, datetime):
        text = value.strftime("%Y-%m-%dT%H:%M:%S")
        return text + (f".{value.microsecond:06d}".rstrip("0") if value.microsecond else "") + "Z"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_shown(k)}: {_shown(value[k])}" for k in sorted(value, key=str)) + "}"
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _format(template: str, values: list[Any]) -> str:
    left = iter(values)

    def one(match: re.Match[str]) -> str:
        whole, precision, verb = match.groups()
        if whole == "%":
            return "%"
        if not verb:
            raise ValueError("could not parse formatting clause: unrecognized formatting clause")
        try:
            value = next(left)
        except StopIteration:
            raise ValueError(f"index {len(values)} out of range") from None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if verb == "s":
            return _shown(value)
        if verb == "d" and number:
            return _shown(value)
        if verb in "fe" and number:
            return f"{float(value):.{precision or 6}{verb}}"
        if verb == "b" and isinstance(value, int):
            return f"{value:b}"
        if verb in "xXo" and isinstance(value, int) and number:
            return f"{value:{verb}}"
        if verb in "xX" and isinstance(value, str):
            digits = value.encode().hex()
            return digits.upper() if verb == "X" else digits
        raise ValueError(f"error during formatting: %{verb} cannot show a {type(value).__name__}")

    return _VERB.sub(one, template)


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match.group(0) for match in regex(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _find(text: str, pattern: str) -> str:
    match = regex(pattern).search(text)
    return str(match.group(0)) if match else ""


# --- addresses ------------------------------------------------------------------------------------------------------


def _parse_url(text: str) -> dict[str, str]:
    parts = urllib.parse.urlsplit(text)
    _ = parts.port  # ValueError if it is none
    if any(c.isspace() or ord(c) < 32 for c in text) or not (parts.scheme or text.startswith("/")):
        raise ValueError("URL parse error during conversion from string")
    return {"url": text}


def _parts(value: dict[str, str]) -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(value["url"])


def _port(value: dict[str, str]) -> str:
    port = _parts(value).port
    return "" if port is None else str(port)


def _parse_ip(text: str) -> dict[str, str]:
    if "%" in text or text.lower().startswith("::ffff:"):
        raise ValueError(f"IP Address {text!r} parse error during conversion from string")
    return {"ip": str(ipaddress.ip_address(text))}


def _parse_cidr(text: str) -> None:
    if "/" not in text:
        raise ValueError("no prefix length")
    ipaddress.ip_network(text, strict=False)


def _ip(value: dict[str, str]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(value["ip"])


# --- all of them ----------------------------------------------------------------------------------------------------


def declarations() -> Iterator[cel.FunctionDecl]:
    """The functions, as the CEL environment wants them."""
    text, whole, yes, dyn = _T.STRING, _T.INT, _T.BOOL, _T.DYN
    texts = _T.List(text)
    table: dict[str, list[tuple[list[Any], Any, bool, Callable[..., Any]]]] = {}

    def method(name: str, parameters: list[Any], result: Any, impl: Callable[..., Any]) -> None:
        table.setdefault(name, []).append((parameters, result, True, impl))

    def function(name: str, parameters: list[Any], result: Any, impl: Callable[..., Any]) -> None:
        table.setdefault(name, []).append((parameters, result, False, impl))

    method("charAt", [text, whole], text, lambda s, i: s[_within(s, i) : i + 1])
    method("indexOf", [text, text], whole, _index)
    method("indexOf", [text, text, whole], whole, lambda s, t, i: s.find(t, _within(s, i)))
    method("lastIndexOf", [text, text], whole, _last_index)
    method("lastIndexOf", [text, text, whole], whole, lambda s, t, i: s.rfind(t, 0, _within(s, i) + len(t)))
    method("join", [_LIST], text, "".join)
    method("join", [_LIST, text], text, lambda items, separator: separator.join(items))
    method("lowerAscii", [text], text, lambda s: s.translate(_ASCII_DOWN))
    method("upperAscii", [text], text, lambda s: s.translate(_ASCII_UP))
    method("replace", [text, text, text], text, lambda s, old, new: s.replace(old, new))
    method("replace", [text, text, text, whole], text, lambda s, old, new, n: s.replace(old, new, n))
    method("split", [text, text], texts, _split)
    method("split", [text, text, whole], texts, _split)
    method("substring", [text, whole], text, _substring)
    method("substring", [text, whole, whole], text, _substring)
    method("trim", [text], text, lambda s: s.strip(_WHITE))
    method("format", [text, _LIST], text, _format)
    method("find", [text, text], text, _find)
    method("findAll", [text, text], texts, _find_all)
    method("findAll", [text, text, whole], texts, _find_all)

    method("sum", [_LIST], dyn, _sum)
    method("min", [_LIST], dyn, _of_some("min", min))
    method("max", [_LIST], dyn, _of_some("max", max))
    method("isSorted", [_LIST], yes, lambda items: all(a <= b for a, b in pairwise(items)))
    for kind in (text, whole, _T.UINT, _T.DOUBLE, yes, _LIST, _RECORD):  # beside other overloads DYN takes nothing
        method("indexOf", [_LIST, kind], whole, _index)
        method("lastIndexOf", [_LIST, kind], whole, _last_index)

    function("quantity", [text], _RECORD, lambda s: _quantity(parse_quantity(s)))
    function("isQuantity", [text], yes, _succeeds(parse_quantity))
    function("sign", [_RECORD], whole, lambda q: _compare(q, 0))
    method("isInteger", [_RECORD], yes, _is_whole)
    method("asInteger", [_RECORD], whole, _exact)
    method("asApproximateFloat", [_RECORD], _T.DOUBLE, lambda q: float(_number(q)))
    method("compareTo", [_RECORD, _RECORD], whole, _compare)
    method("isGreaterThan", [_RECORD, _RECORD], yes, lambda a, b: _compare(a, b) > 0)
    method("isLessThan", [_RECORD, _RECORD], yes, lambda a, b: _compare(a, b) < 0)
    for other in (_RECORD, whole):
        method("add", [_RECORD, other], _RECORD, lambda a, b: _quantity(_number(a) + _number(b)))
        method("sub", [_RECORD, other], _RECORD, lambda a, b: _quantity(_number(a) - _number(b)))

    function("url", [text], _RECORD, _parse_url)
    function("isURL", [text], yes, _succeeds(_parse_url))
    method("getScheme", [_RECORD], text, lambda u: _parts(u).scheme)
    method("getHost", [_RECORD], text, lambda u: _parts(u).netloc.rpartition("@")[2])
    method("getHostname", [_RECORD], text, lambda u: _parts(u).hostname or "")
    method("getPort", [_RECORD], text, _port)
    method("getEscapedPath", [_RECORD], text, lambda u: _parts(u).path)
    method("getQuery", [_RECORD], _T.Map(text, texts),
           lambda u: urllib.parse.parse_qs(_parts(u).query, keep_blank_values=True))  # fmt: skip
    function("ip", [text], _RECORD, _parse_ip)
    function("isIP", [text], yes, _succeeds(_parse_ip))
    function("isCIDR", [text], yes, _succeeds(_parse_cidr))
    method("family", [_RECORD], whole, lambda value: _ip(value).version)
    method("isLoopback", [_RECORD], yes, lambda value: _ip(value).is_loopback)

    for name, overloads in table.items():
        yield cel.FunctionDecl(
            name,
            [
                cel.Overload(f"k8s_{name}_{i}", return_type=result, parameters=parameters, is_member=member, impl=impl)
                for i, (parameters, result, member, impl) in enumerate(overloads)
            ],
        )
