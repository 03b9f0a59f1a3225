"""Writes plain data as YAML the way kubectl does, without a library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# text that no YAML reader takes for anything else; all other text is quoted
_PLAIN = re.compile(
    r"[A-Za-z/](?:[A-Za-z0-9_./@+=,;()-]|:(?=[A-Za-z0-9/])| (?=[A-Za-z0-9_./@+=,;()-]))*"
    r"|[0-9]+(?:ms|s|m|h|Ki|Mi|Gi|Ti)",
    re.ASCII,
)
_WORDS = frozenset(["true", "false", "yes", "no", "on", "off", "null", "y", "n"])
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff"
_ESCAPED = re.compile(f"[{_UNPRINTABLE}]")
# a literal block keeps these lines as they are
_BLOCK_LINE = re.compile(rf"(?:[^\s{_UNPRINTABLE}][^{_UNPRINTABLE}]*)?")


def write_yaml(value: Any) -> str:
    """One document, keys sorted as kubectl sorts them, with a final line end."""
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: Any, indent: int) -> Iterator[str]:
    pad = " " * indent
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _entry(f"{pad}{_scalar(str(key))}:", value[key], indent, indent + 2)
    elif isinstance(value, list | tuple) and value:
        for item in value:
            if isinstance(item, dict | list | tuple) and item:
                first, *rest = _lines(item, indent + 2)
                yield f"{pad}- {first[indent + 2 :]}"
                yield from rest
            else:
                yield from _entry(f"{pad}-", item, indent, indent)
    else:
        yield from _entry("", value, indent, indent)


def _entry(head: str, value: Any, indent: int, deeper: int) -> Iterator[str]:
    """`head value`, in one line or several."""
    if isinstance(value, dict) and value:
        yield head
        yield from _lines(value, deeper)
    elif isinstance(value, list | tuple) and value:
        yield head
        yield from _lines(value, indent)  # kubectl does not indent the items of a mapping's list
    elif isinstance(value, str) and head and _fits_block(value):
        yield f"{head} |" + ("" if value.endswith("\n") else "-")
        for line in value.removesuffix("\n").split("\n"):
            yield " " * (indent + 2) + line if line else ""
    else:
        yield f"{head} {_scalar(value)}".lstrip(" ") if not head else f"{head} {_scalar(value)}"


def _fits_block(text: str) -> bool:
    lines = text.removesuffix("\n").split("\n")
    return len(lines) > 1 and bool(lines[0]) and bool(lines[-1]) and all(_BLOCK_LINE.fullmatch(line) for line in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        return _ESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", json.dumps(value, ensure_ascii=False))
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        return repr(value).replace("e", ".0e")  # YAML 1.1 takes 1e+16 for text
    return json.dumps(value)
