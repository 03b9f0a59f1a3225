"""What changed in the cluster, and when: kept in little memory, so that any moment can be looked at again.

History is lines of JSON, the same in memory and in a recording. A line is one of

    {"greenthread-recording": 1, "t": …, …}                        a program begins to look; what was before is void
    {"t": …, "all": {plural: {"namespace/name": object}}}          everything, so that nobody must read from the start
    {"t": …, "k": plural, "n": "namespace/name", "o": object}      it came, or is another now
    {"t": …, "k": plural, "n": "namespace/name", "p": changes}     it changed, see `tui.patches`
    {"t": …, "k": plural, "n": "namespace/name"}                   it is gone

`t` is in seconds since 1970 and never goes back. `"q": 1` marks what is not worth a stop: measurements and counters.
"""

from __future__ import annotations

import bisect
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from greenthread.kube.core import Object
from greenthread.kube.resources import EVENTS, key_of
from tui.known import KINDS, State, put
from tui.patches import CannotTell, apply, difference
from tui.recorded import recorded, worth_a_stop
from tui.wakes import Key

VERSION = 1
MOST_BYTES = 64 * 2**20
MOST_CHANGES = 2_000_000
BLOCK = 256
"""Changes compressed together."""
SEGMENT = 4096
"""Changes after which everything is told once more."""
CHECKPOINT = 512
"""Changes between two states that are remembered while a part of history is looked at."""
_LEVEL = 3

Line = Mapping[str, Any]


class NoRecording(ValueError):
    """The line is none of a recording, or of one that a newer version made; says which."""


@dataclass(frozen=True, slots=True)
class Change:
    """`new` is None for what is gone."""

    at: float
    plural: str
    key: Key
    new: Object | None


@dataclass
class Segment:
    """Everything at one moment, and the changes from there on. `fresh`: what was before is void."""

    began: float
    everything: bytes
    fresh: bool
    blocks: list[bytes] = field(default_factory=list)
    tail: list[bytes] = field(default_factory=list)
    changes: int = 0
    #: Changes that are worth a stop.
    stops: int = 0
    ended: float = -math.inf

    @property
    def size(self) -> int:
        return len(self.everything) + sum(map(len, self.blocks)) + sum(map(len, self.tail))

    def lines(self, start: int = 0) -> Iterator[bytes]:
        """Its changes from number `start` on."""
        for number in range(start // BLOCK, len(self.blocks)):
            yield from zlib.decompress(self.blocks[number]).split(b"\n")[max(start - number * BLOCK, 0) :]
        yield from self.tail[max(start - len(self.blocks) * BLOCK, 0) :]

    def pack(self) -> None:
        """Compresses what is not compressed yet."""
        if self.tail:
            self.blocks.append(zlib.compress(b"\n".join(self.tail), _LEVEL))
            self.tail.clear()


class History:
    """Bounded by bytes and by changes: the oldest are forgotten first."""

    def __init__(self, most_bytes: int = MOST_BYTES, most_changes: int = MOST_CHANGES) -> None:
        self.most_bytes, self.most_changes = most_bytes, most_changes
        self.segments: list[Segment] = []
        self.write: Callable[[bytes], None] = _nowhere
        """Gets every line that is made, without an end of line."""
        self._state = nothing()
        self._last = -math.inf
        self._packed = 0  # bytes of all segments but the last
        self._packed_changes = 0
        self._void = True
        self._opened: list[_Opened] = []

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._packed + (self.segments[-1].size if self.segments else 0)

    @property
    def changes(self) -> int:
        """Changes kept."""
        return self._packed_changes + (self.segments[-1].changes if self.segments else 0)

    @property
    def began(self) -> float:
        """Time of the oldest moment that is known; `inf` while nothing is."""
        return self.segments[0].began if self.segments else math.inf

    @property
    def ended(self) -> float:
        """Time of the newest."""
        return max((self.segments[-1].began, self.segments[-1].ended)) if self.segments else -math.inf

    def begin(self, at: float, state: State, **about: Any) -> None:
        """A program begins to look, and this is there; `about` is told to who opens the recording."""
        at = self._time(at)
        self._state = {kind: {key: recorded(kind, obj) for key, obj in state[kind].items()} for kind in KINDS}
        self.write(_line({"greenthread-recording": VERSION, "t": at, **about}))
        self._tell_everything(at, fresh=True)

    def hear(self, plural: str, kind: str, obj: Object, at: float, quiet: bool = False) -> None:
        """A change of an object that is `kept`: ADDED, MODIFIED or DELETED. Needs `begin` before."""
        known, key = self._state[plural], key_of(obj)
        old = known.get(key)
        told: dict[str, Any] = {}
        if kind == "DELETED":
            if old is None or plural == EVENTS.plural:
                return  # an Event goes because it is old: it happened all the same
            del known[key]
        else:
            new = recorded(plural, obj)
            told["o"] = new
            if old is not None:
                try:
                    changes = difference(old, new)
                    if changes is None:
                        return
                    quiet = quiet or not worth_a_stop(plural, changes, old, new)
                    told = {"p": changes}
                except CannotTell:
                    pass
            put(known, plural, key, new)
        if quiet:
            told["q"] = 1
        at = self._time(at)
        line = _line({"t": at, "k": plural, "n": "/".join(key), **told})
        self.write(line)
        self._keep(line, at, quiet)
        if self.segments[-1].changes >= SEGMENT:
            self._tell_everything(at, fresh=False)

    def read(self, line: bytes) -> Line | None:
        """Takes in a line of a recording; returns what it tells of who recorded, if it does. NoRecording."""
        try:
            found = json.loads(line)
            if "greenthread-recording" in found:
                if found["greenthread-recording"] != VERSION:
                    raise NoRecording(f"it has format {found['greenthread-recording']}, this program reads {VERSION}")
                self._void = True
                return found  # type: ignore[no-any-return]
            at = self._time(float(found["t"]))
            if "all" in found:
                self._add(Segment(at, zlib.compress(line, _LEVEL), self._void))
                self._void = False
            elif self.segments and found["k"] in KINDS and "/" in found["n"]:
                self._keep(line, at, "q" in found)
            else:
                raise NoRecording("a change of nothing")
        except NoRecording:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NoRecording("it is no recording of this program") from None
        return None

    def _time(self, at: float) -> float:
        self._last = max(round(at, 3), self._last)
        return self._last

    def _tell_everything(self, at: float, fresh: bool) -> None:
        names = {kind: {"/".join(key): obj for key, obj in self._state[kind].items()} for kind in KINDS}
        line = _line({"t": at, "all": names})
        self.write(line)
        self._add(Segment(at, zlib.compress(line, _LEVEL), fresh))

    def _add(self, segment: Segment) -> None:
        if self.segments:
            last = self.segments[-1]
            last.pack()
            self._packed += last.size
            self._packed_changes += last.changes
        self.segments.append(segment)
        while len(self.segments) > 2 and (self.size > self.most_bytes or self.changes > self.most_changes):
            gone = self.segments.pop(0)
            self._packed -= gone.size
            self._packed_changes -= gone.changes

    def _keep(self, line: bytes, at: float, quiet: bool) -> None:
        segment = self.segments[-1]
        segment.tail.append(line)
        segment.changes += 1
        segment.stops += not quiet
        segment.ended = at
        if len(segment.tail) >= BLOCK:
            segment.pack()

    # looking

    def state(self, at: float) -> State:
        """Everything at a moment."""
        number = self._number(at)
        if number < 0:
            return nothing()
        opened = self._open(self.segments[number])
        return opened.state(opened.before(at))

    def lines(self, after: float, until: float) -> Iterator[Line]:
        """The changes in (after, until]."""
        for number in range(max(self._number(after), 0), max(self._number(until), 0) + 1):
            if number < len(self.segments):
                opened = self._open(self.segments[number])
                yield from opened.lines[opened.before(after) : opened.before(until)]

    def stop(self, at: float, by: int, wakes: bool = False) -> float | None:
        """Time of the next moment after `at` (`by` 1), or of the last before it (-1), at which something happened.

        `wakes`: at which a wake was told.
        """
        number = max(self._number(at), 0)
        while 0 <= number < len(self.segments):
            segment = self.segments[number]
            if segment.stops:
                opened = self._open(segment)
                stops = opened.wakes if wakes else opened.stops
                found = bisect.bisect_right(stops, at) if by > 0 else bisect.bisect_left(stops, at) - 1
                if 0 <= found < len(stops):
                    return stops[found]
            number += by
        return None

    def back(self, at: float, changes: int) -> float:
        """Time from which on there are so many changes until `at`; that of the oldest if there are fewer."""
        for number in range(self._number(at), -1, -1):
            opened = self._open(self.segments[number])
            there = opened.before(at)
            if there > changes:
                return float(opened.lines[there - changes - 1]["t"])
            changes -= there
        return self.began

    def is_one(self, after: float, until: float) -> bool:
        """Whether a state goes over into the other by changes alone."""
        first, last = self._number(after), self._number(until)
        return first >= 0 and not any(segment.fresh for segment in self.segments[first + 1 : last + 1])

    def close(self) -> None:
        """Nobody looks any more: frees what was unpacked for that."""
        self._opened = []

    def _number(self, at: float) -> int:
        return bisect.bisect_right(self.segments, at, key=lambda segment: segment.began) - 1

    def _open(self, segment: Segment) -> _Opened:
        for opened in self._opened:
            if opened.segment is segment:
                opened.grow()
                return opened
        self._opened = [*self._opened[-3:], _Opened(segment)]
        return self._opened[-1]


class _Opened:
    """A segment that is looked at."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.lines: list[Line] = []
        self.stops: list[float] = []
        self.wakes: list[float] = []
        self._times: list[float] = []
        told = json.loads(zlib.decompress(segment.everything))["all"]
        base = {kind: {_key(name): obj for name, obj in (told.get(kind) or {}).items()} for kind in KINDS}
        self._checkpoints = [base]
        self.grow()

    def grow(self) -> None:
        """Takes in what was added since."""
        for line in self.segment.lines(len(self.lines)):
            found = json.loads(line)
            # a clock that was set back between two programs
            at = found["t"] = max(found["t"], self._times[-1] if self._times else self.segment.began)
            self.lines.append(found)
            self._times.append(at)
            if "q" not in found and (not self.stops or at > self.stops[-1]):
                self.stops.append(at)
            if found["k"] == EVENTS.plural and (found.get("o") or {}).get("reason") == "Woke":
                self.wakes.append(at)

    def before(self, at: float) -> int:
        """Number of its changes until `at`, with those at that moment."""
        return bisect.bisect_right(self._times, at)

    def state(self, number: int) -> State:
        """After so many of its changes."""
        nearest = min(number // CHECKPOINT, len(self._checkpoints) - 1)
        state = _copy(self._checkpoints[nearest])
        for at in range(nearest * CHECKPOINT, number):
            advance(state, self.lines[at])
            if (at + 1) % CHECKPOINT == 0:
                self._checkpoints.append(_copy(state))
        return state


def nothing() -> State:
    return {kind: {} for kind in KINDS}


def advance(state: State, line: Line) -> Change:
    """Carries out one change; NoRecording if it does not fit."""
    plural, key, known = line["k"], _key(line["n"]), state[line["k"]]
    if "p" in line:
        try:
            new = apply(known.get(key, {}), line["p"])
        except (ValueError, IndexError, TypeError):
            raise NoRecording(f"what it tells of {plural} {line['n']} does not fit together") from None
    elif "o" in line:
        new = line["o"]
    else:
        known.pop(key, None)
        return Change(line["t"], plural, key, None)
    put(known, plural, key, new)
    return Change(line["t"], plural, key, new)


def _key(name: str) -> Key:
    namespace, _, rest = name.partition("/")
    return namespace, rest


def _copy(state: State) -> State:
    return {kind: dict(objects) for kind, objects in state.items()}


def _line(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _nowhere(line: bytes) -> None:
    """Nobody records."""
