"""Reads the YAML that kubeconfig files are written in, so that the plugin needs no library for it.

Understood: block mappings and sequences, plain, quoted and literal (`|`) scalars, comments, JSON in one line.
Everything else (anchors, tags, folded scalars, several documents, …) is refused, never guessed: `Unsupported`. What is
accepted means what YAML 1.1 says, except that dates stay text, as they do in JSON.
"""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 40


class Unsupported(ValueError):
    """The text is not in the part of YAML that this reader knows; it may still be good YAML."""


_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+][0-9]+)?$")
# what YAML 1.1 reads as some other number (octal, hexadecimal, 1_000, base 60, .5, .inf) or as a merge key
_ODD = re.compile(r"[-+]?(0[0-7_xbXB]|[0-9][0-9_]*_|[0-9]+:[0-5]?[0-9]|\.[0-9_]|\.(inf|Inf|INF|nan|NaN|NAN)$)|<<$|=$")
_WORDS: dict[str, bool | None] = dict.fromkeys(["", "~", "null", "Null", "NULL"])
for _true, _false in [("true", "false"), ("yes", "no"), ("on", "off")]:
    for _style in (str.lower, str.capitalize, str.upper):
        _WORDS[_style(_true)], _WORDS[_style(_false)] = True, False
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b",
    " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_HEX = {"x": 2, "u": 4, "U": 8}
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_KEY_END = re.compile(r":(?= |$)")


def load(text: str) -> Any:
    """The value of one YAML document; raises Unsupported, with the line, for anything beyond the subset."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if found := _FORBIDDEN.search(text):
        raise Unsupported(f"unexpected character {found.group()!r}")
    return _Reader(text).document()


class _Reader:
    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._at = 0
        self._depth = 0

    def document(self) -> Any:
        if self._peek() is not None and self._lines[self._at].rstrip(" ") == "---":
            self._at += 1
        found = self._peek()
        value = None if found is None else self._node(found[0])
        if self._peek() is not None and self._lines[self._at].rstrip(" ") == "...":
            self._at += 1
        if self._peek() is not None:
            raise self._unsupported("this does not belong to what is above it")
        return value

    def _unsupported(self, why: str) -> Unsupported:
        return Unsupported(f"line {self._at + 1}: {why}")

    def _peek(self) -> tuple[int, str] | None:
        """Indent and text of the next line that says something."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            content = line.lstrip(" ")
            if content and not content.startswith("#"):
                if "\t" in line:
                    raise self._unsupported("a tab")
                return len(line) - len(content), content.rstrip(" ")
            self._at += 1
        return None

    def _node(self, indent: int) -> Any:
        """The mapping, sequence or scalar that starts at the next line, which is indented by `indent`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._unsupported("nested too deeply")
        content = self._lines[self._at][indent:].rstrip(" ")
        if _is_item(content):
            value: Any = self._sequence(indent)
        elif self._split_key(content) is not None:
            value = self._mapping(indent)
        else:
            raise self._unsupported("a scalar on a line of its own")
        self._depth -= 1
        return value

    def _sequence(self, indent: int) -> list[Any]:
        items = []
        while (found := self._peek()) is not None and found[0] == indent and _is_item(found[1]):
            rest = found[1][1:].lstrip(" ")
            if rest and not rest.startswith("#") and (_is_item(rest) or self._split_key(rest) is not None):
                # `- key: value`: the item starts on this line; read it as if the dash were blank
                inner = indent + len(found[1]) - len(rest)
                self._lines[self._at] = " " * inner + rest
                items.append(self._node(inner))
            else:
                items.append(self._value(rest, indent, in_mapping=False))
        return items

    def _mapping(self, indent: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while (found := self._peek()) is not None and found[0] == indent and not _is_item(found[1]):
            split = self._split_key(found[1])
            if split is None:
                break
            key, rest = split
            if key in entries:
                raise self._unsupported(f"the key {key} a second time")
            entries[key] = self._value(rest, indent, in_mapping=True)
        return entries

    def _split_key(self, content: str) -> tuple[str, str] | None:
        """`key: rest` as (key, rest), or None if the line is no mapping entry."""
        if content[0] in "\"'":
            key, after = self._quoted(content)
            if not after.startswith(":") or after[1:2] not in ("", " "):
                return None
            return key, after[1:].strip(" ")
        found = _KEY_END.search(content)
        comment = content.find(" #")
        if found is None or 0 <= comment < found.start():
            return None
        name = content[: found.start()].rstrip(" ")
        value = self._plain(name)
        if not isinstance(value, str):
            raise self._unsupported("a key that is not text")
        return value, content[found.end() :].strip(" ")

    def _value(self, rest: str, indent: int, *, in_mapping: bool) -> Any:
        """What stands after `key:` or `-` of a node at `indent`; moves past it."""
        if not rest or rest.startswith("#"):
            self._at += 1
            found = self._peek()
            if found is None or found[0] < indent:
                return None
            if found[0] > indent:
                if _is_item(found[1]) or self._split_key(found[1]) is not None:
                    return self._node(found[0])
                raise self._unsupported("a scalar on a line of its own")
            return self._sequence(indent) if in_mapping and _is_item(found[1]) else None
        if rest[0] == "|":
            return self._literal(rest, indent)
        if rest[0] in "\"'":
            value, after = self._quoted(rest)
            if after.strip(" ") and not re.match(" +#", after):
                raise self._unsupported("text after a quoted value")
            return self._end_of_value(value, indent)
        if rest[0] in "{[":
            try:
                return self._end_of_value(json.loads(rest, parse_constant=_refuse, object_pairs_hook=_object), indent)
            except ValueError:
                raise self._unsupported("a flow collection that is not JSON") from None
        return self._plain_lines(rest, indent)

    def _end_of_value(self, value: Any, indent: int) -> Any:
        self._at += 1
        found = self._peek()
        if found is not None and found[0] > indent:
            raise self._unsupported("a deeper line after a finished value")
        return value

    def _plain_lines(self, first: str, indent: int) -> Any:
        """A plain scalar, which may go on over deeper lines."""
        text, _, comment = first.partition(" #")
        text = text.rstrip(" ")
        if _KEY_END.search(text):
            raise self._unsupported("a second `: ` in one line; quote the value")
        value = self._plain(text)
        parts = [text]
        self._at += 1
        while self._at < len(self._lines):
            line = self._lines[self._at]
            content = line.strip(" ")
            if not content or content.startswith("#"):
                if (found := self._peek()) is not None and found[0] > indent:
                    raise self._unsupported("a blank line or comment inside a value")
                break
            if len(line) - len(line.lstrip(" ")) <= indent:
                break
            if comment or " #" in content or "\t" in content or _KEY_END.search(content):
                raise self._unsupported("not the continuation of the value above")
            parts.append(content)
            self._at += 1
        return value if len(parts) == 1 else " ".join(parts)

    def _plain_text(self, text: str) -> str:
        if text[:1] in set(",[]{}#&*!|>'\"%@`") or (text[:1] in set("-?:") and text[1:2] in ("", " ")):
            raise self._unsupported(f"`{text[:1]}` at the start of a value; quote it")
        if text.startswith(("---", "...")):
            raise self._unsupported("a document marker")
        return text

    def _plain(self, text: str) -> Any:
        if text in _WORDS:
            return _WORDS[text]
        if _INT.match(text):
            return int(text) if len(text) < 20 else _refuse(text)
        if _ODD.match(text):
            raise self._unsupported(f"the number {text}; quote it if it is text")
        if _FLOAT.match(text):
            return float(text)
        return self._plain_text(text)

    def _quoted(self, text: str) -> tuple[str, str]:
        """A quoted scalar at the start of `text`, and what follows it."""
        if text[0] == "'":
            found = re.match(r"'((?:[^']|'')*)'", text)
            if found is None:
                raise self._unsupported("a quote that does not end on its line")
            return found.group(1).replace("''", "'"), text[found.end() :]
        out, at = [], 1
        while at < len(text) and text[at] != '"':
            if text[at] != "\\":
                out.append(text[at])
                at += 1
                continue
            escape = text[at + 1 : at + 2]
            if escape in _HEX:
                digits = text[at + 2 : at + 2 + _HEX[escape]]
                if not re.fullmatch(rf"[0-9A-Fa-f]{{{_HEX[escape]}}}", digits) or int(digits, 16) > 0x10FFFF:
                    raise self._unsupported("a broken escape in a quoted value")
                out.append(chr(int(digits, 16)))
                at += 2 + len(digits)
            elif escape and escape in _ESCAPES:
                out.append(_ESCAPES[escape])
                at += 2
            else:
                raise self._unsupported("a broken escape in a quoted value")
        if at >= len(text):
            raise self._unsupported("a quote that does not end on its line")
        return "".join(out), text[at + 1 :]

    def _literal(self, header: str, indent: int) -> str:
        """A literal block (`|`, `|-`, `|+`, with an indentation digit or without)."""
        found = re.fullmatch(r"\|([1-9]?)([-+]?)|\|([-+])([1-9])", header.partition(" #")[0].rstrip(" "))
        if found is None:
            raise self._unsupported("this kind of block scalar")
        digit, chomp = found.group(1) or found.group(4) or "", found.group(2) or found.group(3) or ""
        self._at += 1
        width = indent + int(digit) if digit else 0
        lines: list[str] = []
        last = 0
        while self._at < len(self._lines):
            line = self._lines[self._at]
            lead = len(line) - len(line.lstrip(" "))
            if not line.strip(" "):
                if (not width and lead) or (width and lead > width):
                    raise self._unsupported("a line of blanks in a block scalar")
                lines.append("")
            else:
                width = width or lead
                if lead < width or lead <= indent:
                    break
                lines.append(line[width:])
                last = self._at
            self._at += 1
        while lines and not lines[-1]:
            lines.pop()
            if chomp == "+":
                raise self._unsupported("a block scalar that keeps its blank lines")
        if not lines:
            return ""
        unfinished = last == len(self._lines) - 1  # the text ends without a line end
        return "\n".join(lines) + ("" if chomp == "-" or unfinished else "\n")


def _is_item(content: str) -> bool:
    return content == "-" or content.startswith("- ")


def _refuse(text: str) -> Any:
    raise Unsupported(f"the number {text}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise Unsupported("a key a second time")
    return dict(pairs)
