"""What a part is: cases that are measured one after the other, and kept as soon as they are."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """`torch`: runs in the Python that has it, not in ours. `seconds`: its deadline."""

    letter: str
    module: str
    title: str
    torch: bool
    seconds: float


PARTS = {
    part.letter: part
    for part in (
        Part("a", "link", "pinned copies between host and device", True, 45),
        Part("b", "memory", "the memory path alone", True, 220),
        Part("c", "checkpoint", "the driver's checkpoint of a process", True, 130),
        Part("d", "disk", "a wake from disk", True, 70),
        Part("e", "engine", "vllm serve: sleep, wake, first token", False, 300),
        Part("f", "swap", "two models swapped by requests under greenthread up", False, 300),
    )
}


class Skip(Exception):
    """This machine lacks what the part needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a person may say."""

    #: Keeps models and scratch files.
    work: Path
    #: Folder on the disk that is measured.
    disk: Path
    #: Bytes of host memory to use; None: what the system says is available.
    host_memory: int | None = None
    #: Divides all sizes: 1 on a GPU, more where the rest is tried out.
    shrink: int = 1


@dataclass(slots=True)
class Clock:
    """Until the part's deadline."""

    deadline: float
    now: Callable[[], float] = time.monotonic

    def left(self) -> float:
        return self.deadline - self.now()


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `about`: seconds that it takes at most, as a rule; it is not begun when less are left."""

    name: str
    about: float
    measure: Callable[[], Row]


@dataclass
class Board:
    """The results of one part, kept in a file."""

    path: Path
    letter: str
    cases: dict[str, Row] = field(default_factory=dict)
    notes: Row = field(default_factory=dict)

    def load(self) -> None:
        """What an earlier run measured; what failed or was cut there is to be measured again."""
        old = read(self.path)
        self.cases = {name: row for name, row in old.get("cases", {}).items() if not row.keys() & {"error", "cut"}}

    def run(self, cases: list[Case], clock: Clock) -> None:
        """Measures what is missing, in this order, as long as there is time."""
        cut = False
        for case in cases:
            if case.name in self.cases:
                continue
            if clock.left() < case.about:
                cut = True
                continue  # a later one may be short enough
            print(f"{self.letter}: {case.name}", file=sys.stderr, flush=True)
            began = clock.now()
            try:
                row = case.measure()
            except Skip:
                raise
            except Exception as error:
                traceback.print_exc()  # into the part's log
                row = {"error": f"{type(error).__name__}: {error}"}
            self.cases[case.name] = row | {"took_s": round(clock.now() - began, 1)}
            cut = cut or bool(row.get("cut"))
            self.keep({"cut": True})
        self.keep({"cut": True} if cut else {"done": True})

    def keep(self, state: Row) -> None:
        write(self.path, {"part": self.letter, **self.notes, "cases": self.cases, **state})


def read(path: Path) -> Row:
    """A part's file; empty where there is none."""
    try:
        found: Row = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def write(path: Path, result: Row) -> None:
    """At once or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
