r"""kubectl's JSONPath templates: `{range .items[*]}{.metadata.name}{"\n"}{end}`.

The subset that kubectl documents: fields (`.a`, `['a']`, `\.` inside a name), indices and slices, `*`, `..`, `@`, `$`,
unions, filters `[?(@.x=="y")]`, `range`/`end` and quoted text. A missing field prints nothing, as in `kubectl get`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Step = Callable[[list[Any], Any], Iterable[Any]]

DEEPEST = 100
"""How deep `..` looks, and how deep `range` may be nested."""


class BadPath(ValueError):
    """The template cannot be understood; the message says where."""


def render(template: str, value: Any) -> str:
    """The template's text for this value. Raises BadPath."""
    nodes, rest = _parse(template, 0)
    if rest:
        raise BadPath("{end} without {range}")
    out: list[str] = []
    _write(nodes, value, value, out)
    return "".join(out)


def select(path: str, value: Any) -> list[Any]:
    """The values of one path, with or without braces and the leading dot: `.metadata.name`, `{.items[*]}`."""
    path = path.strip()
    if path.startswith("{"):
        if not path.endswith("}"):
            raise BadPath(f"{path}: the closing brace is missing")
        path = path[1:-1].strip()
    if path and path[0] not in ".[@$":
        path = f".{path}"
    return list(_walk(_steps(path), value, value))


# templates


class _Range:
    def __init__(self, path: list[Step], body: list[Any]) -> None:
        self.path, self.body = path, body


def _parse(text: str, depth: int) -> tuple[list[Any], str | None]:
    """Text, paths and ranges up to the end; for a range's body also what follows its {end} (None: no end seen)."""
    if depth > DEEPEST:
        raise BadPath("too many ranges inside each other")
    nodes: list[Any] = []
    while text:
        brace = text.find("{")
        if brace < 0:
            nodes.append(text)
            break
        if brace:
            nodes.append(text[:brace])
        inner, text = _action(text[brace:])
        if inner == "end":
            if not depth:
                raise BadPath("{end} without {range}")
            return nodes, text
        if inner.startswith("range") and (len(inner) == 5 or inner[5] in " .[@$"):
            body, rest = _parse(text, depth + 1)
            if rest is None:
                raise BadPath("{range} without {end}")
            nodes.append(_Range(_steps(_rooted(inner[5:].strip())), body))
            text = rest
        else:
            nodes += _action_nodes(inner)
    return nodes, None


def _rooted(path: str) -> str:
    return path if not path or path[0] in ".[@$" else f".{path}"


def _action(text: str) -> tuple[str, str]:
    """What is between the braces at the beginning, and the rest."""
    quote = ""
    at = 1
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "}":
            return text[1:at].strip(), text[at + 1 :]
        at += 1
    raise BadPath(f"{text[:40]}: the closing brace is missing")


def _action_nodes(inner: str) -> list[Any]:
    """Of one action: quoted text, or paths one after the other."""
    return [_unquote(word) if word[0] in "'\"" else _steps(_rooted(word)) for word in _words(inner)]


def _words(inner: str) -> Iterator[str]:
    """Split at blanks outside quotes and brackets."""
    word, quote, deep = "", "", 0
    skip = False
    for char in inner:
        if skip:
            skip = False
        elif char == "\\":
            skip = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[(":
            deep += 1
        elif char in "])":
            deep -= 1
        elif char in " \t\n" and not deep:
            if word:
                yield word
            word = ""
            continue
        word += char
    if word:
        yield word


def _unquote(text: str) -> str:
    body = text[1:-1] if len(text) > 1 and text[-1] == text[0] else text[1:]
    if text[0] == '"':
        try:
            return str(json.loads(f'"{body}"'))
        except ValueError:
            raise BadPath(f"{text} is no quoted text") from None
    return body.replace("\\n", "\n").replace("\\t", "\t").replace("\\'", "'")


def _write(nodes: list[Any], value: Any, root: Any, out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, _Range):
            for item in _walk(node.path, value, root):
                _write(node.body, item, root, out)
        else:
            out.append(" ".join(text_of(item) for item in _walk(node, value, root)))


def text_of(value: Any) -> str:
    """A value as kubectl prints it: text plain, lists and mappings as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        text = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        # as Go writes JSON
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    if value is None:
        return ""
    return json.dumps(value)


# paths


def _walk(steps: list[Step], value: Any, root: Any) -> Iterable[Any]:
    values: list[Any] = [value]
    for step in steps:
        values = list(step(values, root))
    return values


def _steps(path: str) -> list[Step]:
    steps: list[Step] = []
    at = 0
    while at < len(path):
        char = path[at]
        if char == "$":
            steps.append(lambda _values, root: [root])
            at += 1
        elif char == "@":
            at += 1
        elif path.startswith("..", at):
            steps.append(_every)
            at += 2
            if at < len(path) and path[at] not in ".[":
                name, at = _name(path, at)
                steps.append(_field(name))
        elif char == ".":
            if at + 1 < len(path) and path[at + 1] not in "[$@":
                name, at = _name(path, at + 1)
                if name:
                    steps.append(_field(name))
            else:
                at += 1
        elif char == "[":
            inside, at = _bracket(path, at)
            steps.append(_subscript(inside))
        else:
            raise BadPath(f"{path}: a path goes on with . or [, not {path[at:]!r}")
    return steps


def _name(path: str, at: int) -> tuple[str, int]:
    name = ""
    while at < len(path) and path[at] not in ".[ \t":
        if path[at] == "\\" and at + 1 < len(path):
            at += 1
        name += path[at]
        at += 1
    return name, at


def _bracket(path: str, at: int) -> tuple[str, int]:
    """What is between the brackets that begin at `at`, and where they end."""
    deep, quote = 0, ""
    for end in range(at, len(path)):
        char = path[end]
        if quote:
            quote = "" if char == quote and path[end - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char == "[":
            deep += 1
        elif char == "]":
            deep -= 1
            if not deep:
                return path[at + 1 : end].strip(), end + 1
    raise BadPath(f"{path}: the closing bracket is missing")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value[key] for key in sorted(value)]
    return list(value) if isinstance(value, list) else []


def _every(values: list[Any], _root: Any) -> Iterable[Any]:
    """`..`: each value and all below it."""
    level, found = values, list(values)
    for _ in range(DEEPEST):
        level = [child for value in level for child in _children(value)]
        if not level:
            break
        found += level
    return found


def _field(name: str) -> Step:
    if name == "*":
        return lambda values, _root: [child for value in values for child in _children(value)]
    return lambda values, _root: [value[name] for value in values if isinstance(value, dict) and name in value]


def _subscript(inside: str) -> Step:
    if inside.startswith("?(") and inside.endswith(")"):
        test = _filter(inside[2:-1].strip())
        return lambda values, root: [child for value in values for child in _children(value) if test(child, root)]
    parts = _commas(inside)
    if len(parts) > 1:
        several = [_subscript(part) for part in parts]
        return lambda values, root: [found for step in several for found in step(values, root)]
    if inside == "*":
        return _field("*")
    if inside[:1] in ("'", '"'):
        # as in kubectl, a dot in the quotes separates names too, unless it is escaped
        steps = _steps(f".{inside[1:-1]}")
        return lambda values, root: [found for value in values for found in _walk(steps, value, root)]
    return _slice(inside)


def _commas(inside: str) -> list[str]:
    parts, quote = [""], ""
    for char in inside:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == ",":
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts]


def _slice(inside: str) -> Step:
    numbers = [part.strip() for part in inside.split(":")]
    try:
        bounds = [int(part) if part else None for part in numbers]
    except ValueError:
        raise BadPath(f"[{inside}] is no index, slice, quoted name or filter") from None
    if len(bounds) > 3 or not inside:
        raise BadPath(f"[{inside}] is no index, slice, quoted name or filter")
    if len(bounds) == 1:
        [index] = bounds
        assert index is not None

        def item(values: list[Any], _root: Any) -> Iterable[Any]:
            lists = [value for value in values if isinstance(value, list)]
            if any(not -len(each) <= index < len(each) for each in lists):
                raise BadPath(f"there is no item [{index}]")
            return [each[index] for each in lists]

        return item
    if len(bounds) == 3 and bounds[2] is not None and bounds[2] < 1:
        raise BadPath(f"[{inside}]: the step must be above 0")
    span = slice(*bounds)
    return lambda values, _root: [found for value in values if isinstance(value, list) for found in value[span]]


# filters

_OPERATORS = ("==", "!=", "<=", ">=", "<", ">")


def _filter(text: str) -> Callable[[Any, Any], bool]:
    left, operator, right = _comparison(text)
    if not operator:
        steps = _steps(_rooted(left))
        return lambda item, root: bool(_walk(steps, item, root))
    one, other = _operand(left), _operand(right)

    def test(item: Any, root: Any) -> bool:
        lefts, rights = one(item, root), other(item, root)
        if not lefts or not rights:
            return False
        return _compare(lefts[0], operator, rights[0])

    return test


def _comparison(text: str) -> tuple[str, str, str]:
    """Left, operator, right; an empty operator when it only asks whether something is there."""
    quote, deep = "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[(":
            deep += 1
        elif char in "])":
            deep -= 1
        elif not deep:
            operator = next((each for each in _OPERATORS if text.startswith(each, at)), "")
            if operator:
                return text[:at].strip(), operator, text[at + len(operator) :].strip()
    return text, "", ""


def _operand(text: str) -> Callable[[Any, Any], list[Any]]:
    if not text:
        raise BadPath("a filter compares with something: [?(@.name=='x')]")
    if text[0] in "'\"":
        literal = _unquote(text)
        return lambda _item, _root: [literal]
    if text[0] in "@$.":
        steps = _steps(text)
        return lambda item, root: list(_walk(steps, item, root))
    try:
        number = json.loads(text)
    except ValueError:
        raise BadPath(f"{text} is neither a path, a number nor quoted text") from None
    return lambda _item, _root: [number]


def _compare(left: Any, operator: str, right: Any) -> bool:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    if operator == "==":
        return bool(left == right and isinstance(left, bool) == isinstance(right, bool))
    if operator == "!=":
        return not _compare(left, "==", right)
    if not (is_number(left) and is_number(right)) and not (isinstance(left, str) and isinstance(right, str)):
        return False
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operator])
