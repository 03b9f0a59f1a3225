"""Heads that were seen before: clients and engines send the same one again and again, but for its Content-Length.

What was parsed, and so checked, once is recognized by its exact bytes after that; only the length is read each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

LIMIT = 512  # heads
LONGEST = 2048
"""Bytes of a head that is kept."""

_MARK = b"\r\nContent-Length: "  # and in lower case; with other spellings the length is no different from other fields
_LOW_MARK = _MARK.lower()
_END = b"\r\n\r\n"

_LENGTHS = 4096
_lengths: dict[bytes, int] = {}  # by their digits; of valid ones only


class Seen(Generic[T]):
    """A head that was parsed."""

    __slots__ = ("_after", "_before", "_end", "_split", "length", "parsed")

    def __init__(self, parsed: T, before: bytes, after: bytes, length: int | None) -> None:
        """`before` and `after`: the bytes around the digits of the length, to the empty line at the end. Without
        `after`, `before` is all of the head, and `length` is as it says."""
        self.parsed = parsed
        """What the head says. Shared by all messages that begin with it: never changed."""
        self.length = length
        """The Content-Length of the head as a whole; another one each time when it is read by `match`."""
        self._before, self._after, self._split = before, after, len(before)
        self._end = self._split + 3  # where the digits ended last

    def match(self, data: bytes) -> tuple[int | None, int] | None:
        """Content-Length and size of the head that `data` begins with; None when that is another one, or no whole one.

        What it takes for the same has the same bytes but for the digits: it would be parsed to the same.
        """
        if not data.startswith(self._before):
            return None
        after = self._after
        if not after:
            return self.length, self._split
        end = self._end
        length = _lengths.get(data[self._split : end])
        if length is None or not data.startswith(after, end):
            return self._match_other_length(data)
        return length, end + len(after)

    def _match_other_length(self, data: bytes) -> tuple[int, int] | None:
        """The same where the length may have other digits than the last one, or more."""
        end = data.find(b"\r", self._split, self._split + 19)
        digits = data[self._split : end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return None
        self._end = end
        length = int(digits)
        if len(_lengths) < _LENGTHS:
            _lengths[digits] = length
        return length, end + len(self._after)


class Heads(Generic[T]):
    """The heads seen lately, by everybody. Only valid ones get in; when it is full it begins anew."""

    __slots__ = ("_known", "_parse")

    def __init__(self, parse: Callable[[bytes], tuple[T, int | None]]) -> None:
        """`parse`: head (without its final empty line) → what it says, and its Content-Length."""
        self._parse = parse
        self._known: dict[tuple[bytes, bytes], Seen[T]] = {}

    def read(self, head: bytes) -> tuple[Seen[T], int | None]:
        """What a head (without its final empty line) says, and its Content-Length. Raises what `parse` raises."""
        length: int | None = None
        at = head.find(_MARK)
        if at < 0:
            at = head.find(_LOW_MARK)
        before, after = head + _END, b""
        if at >= 0:
            at += len(_MARK)
            end = head.find(b"\r", at)
            digits = head[at:] if end < 0 else head[at:end]
            if digits.isdigit() and len(digits) <= 18:
                length = int(digits)
                before, after = head[:at], _END if end < 0 else head[end:] + _END
        seen = self._known.get((before, after))
        if seen is not None:
            return seen, length if after else seen.length
        parsed, length = self._parse(head)
        seen = Seen(parsed, before, after, length)
        if len(head) <= LONGEST:
            if len(self._known) >= LIMIT:
                self._known.clear()
            self._known[before, after] = seen
        return seen, length
