"""Label and field selectors."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from .errors import bad_request

_KEY = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?\Z")
_TOKEN = re.compile(r"\s*(notin\b|in\b|!=|==|=|!|>|<|\(|\)|,|[^\s=!<>(),]+)")

_SIGNS = frozenset(("!=", "==", "=", "!", ">", "<", "(", ")"))

Labels = Mapping[str, str]
Test = Callable[[Labels], bool]


def _unable(text: str, why: str) -> Exception:
    return bad_request(f'unable to parse requirement: {why} in the label selector "{text}"')


def label_selector(text: str) -> Test | None:
    """The test that a label selector stands for; None for the empty one. StatusError 400 if it is malformed."""
    if not text.strip():
        return None
    tests = [_requirement(part, text) for part in _requirements(text)]
    return lambda labels: all(test(labels) for test in tests)


def _requirements(text: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    depth = position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            if not text[position:].strip():
                break
            raise _unable(text, f"found {text[position:]!r}")
        word = match.group(1)
        position = match.end()
        depth += (word == "(") - (word == ")")
        if word == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _requirement(tokens: list[str], text: str) -> Test:
    if not tokens:
        raise _unable(text, "found an empty requirement")
    negate = tokens[0] == "!"
    words = tokens[1:] if negate else tokens
    key = words[0] if words else ""
    if not _KEY.match(key):
        raise _unable(text, f"{key!r} is no label key")
    if negate or len(words) == 1:
        if len(words) != 1:
            raise _unable(text, "! takes one key")
        return lambda labels: (key in labels) != negate
    op, rest = words[1], words[2:]
    if op in ("=", "==", "!=") and (not rest or (len(rest) == 1 and rest[0] not in _SIGNS)):
        value = rest[0] if rest else ""
        if op == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if op in ("in", "notin") and len(rest) >= 2 and rest[0] == "(" and rest[-1] == ")":
        values = _values(rest[1:-1], text)
        if op == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if op in (">", "<") and len(rest) == 1 and re.fullmatch(r"-?\d+", rest[0]):
        bound = int(rest[0])

        def compare(labels: Labels) -> bool:
            value = labels.get(key, "")
            return bool(re.fullmatch(r"-?\d+", value)) and (int(value) > bound if op == ">" else int(value) < bound)

        return compare
    raise _unable(text, f"found {' '.join(tokens)!r}")


def _values(words: list[str], text: str) -> set[str]:
    """The values of a set; between two commas is the empty one."""
    values, empty = set(), True
    for word in words:
        if word == ",":
            if empty:
                values.add("")
            empty = True
        elif not empty or word in _SIGNS:
            raise _unable(text, f"found {word!r}")
        else:
            values.add(word)
            empty = False
    return values | {""} if empty else values


Field = Callable[[dict[str, Any]], str]


def field_selector(text: str, fields: Mapping[str, Field]) -> Callable[[dict[str, Any]], bool] | None:
    """The test that a field selector stands for; `fields` says which there are. StatusError 400 for others."""
    if not text.strip():
        return None
    tests: list[tuple[Field, str, bool]] = []
    for part in re.split(r"(?<!\\),", text):
        match = re.match(r"([^=!]+)(!=|==|=)(.*)\Z", part)
        if match is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        key, op, value = match.groups()
        if key not in fields:
            raise bad_request(f"field label not supported: {key}")
        value = value.replace("\\,", ",").replace("\\=", "=").replace("\\\\", "\\")
        tests.append((fields[key], value, op != "!="))
    return lambda obj: all((get(obj) == value) == wanted for get, value, wanted in tests)


def only_name(text: str) -> str:
    """The name, when a field selector asks for one object by its name and nothing else; else ""."""
    match = re.fullmatch(r"metadata\.name==?([^\\,!=]+)", text)
    return match[1] if match else ""


def by_path(path: str) -> Field:
    """Reads a field such as `.spec.node` as text; "" when absent."""
    keys = path.strip(".").split(".")

    def read(obj: dict[str, Any]) -> str:
        value: Any = obj
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return ""
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value)

    return read
