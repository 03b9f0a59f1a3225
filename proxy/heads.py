"""Heads that were seen before: clients and engines send the same one again and again, but for its Content-Length.

What was parsed, and so checked, once is looked up by its exact bytes after that; only the length is read each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_LIMIT = 512  # heads
_LONGEST = 2048  # bytes of a head that is kept
_MARK = b"\r\nContent-Length: "  # and in lower case; with other spellings a head is parsed each time
_LOW_MARK = _MARK.lower()


class Heads(Generic[T]):
    """Parsed heads by their bytes. Only valid ones get in; when it is full it begins anew."""

    __slots__ = ("_known", "_parse")

    def __init__(self, parse: Callable[[bytes], tuple[T, int | None]]) -> None:
        """`parse`: head (without its final empty line) → what it says, never changed after, and its Content-Length."""
        self._parse = parse
        self._known: dict[bytes, T] = {}

    def read(self, head: bytes) -> tuple[T, int | None]:
        """What `parse` gives for this head. Raises what `parse` raises."""
        length: int | None = None
        at = head.find(_MARK)
        if at < 0:
            at = head.find(_LOW_MARK)
        if at < 0:
            key = head
        else:
            at += 18  # the mark's length
            end = head.find(b"\r\n", at)
            digits = head[at:] if end < 0 else head[at:end]
            if not digits.isdigit() or len(digits) > 18:
                return self._parse(head)
            length = int(digits)
            # Without the digits: two heads of one key differ in them only, for the mark says where they were.
            key = head[:at] if end < 0 else head[:at] + head[end:]
        known = self._known.get(key)
        if known is not None:
            return known, length
        known, length = self._parse(head)
        if len(key) <= _LONGEST:
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[key] = known
        return known, length
