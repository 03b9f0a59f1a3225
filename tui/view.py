"""What the panels paint from: the cluster at one moment, and how it is to look."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cached_property

from greenthread.gpu import PodRef
from greenthread.snapshot import ModelRow, Shown, Snapshot
from greenthread.units import short_duration
from tui.cells import Line
from tui.data import Link
from tui.known import Known, fill_of
from tui.theme import GLYPHS, Palette
from tui.then import Moment
from tui.wakes import Key

NONE = "–"
"""Stands for unknown or none."""


@dataclass(frozen=True)
class View:
    """`colours`: number of the occupant colour of each model that holds memory."""

    snapshot: Snapshot
    data: Known
    link: Link
    palette: Palette
    colours: dict[Key, int] = field(default_factory=dict)
    context: str = ""
    zone: tzinfo | None = None
    #: The moment that is shown, if it is over.
    then: Moment | None = None

    @property
    def now(self) -> datetime:
        return self.snapshot.at

    @cached_property
    def several_namespaces(self) -> bool:
        return len({row.namespace for row in self.snapshot.models}) > 1

    def time(self, moment: datetime) -> str:
        """Time of day where the user is."""
        return moment.astimezone(self.zone).strftime("%H:%M:%S")

    def name(self, key: Key) -> str:
        """A model's name, with its namespace where there are several."""
        return f"{key[0]}/{key[1]}" if self.several_namespaces else key[1]

    @cached_property
    def stuck(self) -> dict[tuple[str, int], ModelRow]:
        """By node and index of a GPU: a model that wants it and could not fit even if all that may leave it left."""
        return {
            (replica.node, index): row
            for row in self.snapshot.models
            if row.state is Shown.CANNOT_FIT
            for replica in row.replicas
            if replica.state is Shown.CANNOT_FIT
            for index in replica.gpus
        }

    def row_of_pod(self, pod: PodRef, model: str) -> ModelRow | None:
        return self.snapshot.model(pod.namespace, model)

    def occupant_colours(self, key: Key) -> tuple[str, str]:
        """Segment and edge."""
        return self.palette.occupants[self.colours.get(key, 0) % len(self.palette.occupants)]

    def fill(self, row: ModelRow) -> float | None:
        return fill_of(self.data, key_of_row(row), self.snapshot)

    def state_text(self, row: ModelRow) -> str:
        """The state's word, for a wake with how far it is."""
        filled = self.fill(row)
        return f"{row.state} {filled * 100:.0f}%" if filled is not None else str(row.state)


def key_of_row(row: ModelRow) -> Key:
    return (row.namespace, row.name)


def holders(snapshot: Snapshot) -> list[Key]:
    """Models that hold memory, in the order of the GPUs."""
    keys = ((o.pod.namespace, o.model) for gpu in snapshot.gpus for o in gpu.gpu.occupants if o.reserved)
    return list(dict.fromkeys(keys))


def put_state(line: Line, x: int, row: ModelRow, view: View, bold: bool = False) -> int:
    """Glyph and word of a state, in its colour."""
    colour = view.palette.state(row.state)
    return line.put(x, f"{GLYPHS[row.state]} {view.state_text(row)}", colour, bold)


def put_with_names(line: Line, x: int, text: str, names: set[str], view: View) -> int:
    """A sentence in which the names of models stand out."""
    for part in re.split(r"([\s,;:()]+)", text):
        strong = part in names
        x = line.put(x, part, view.palette.strong if strong else view.palette.text, bold=strong)
    return x


def ago(view: View, moment: datetime | None) -> str:
    return short_duration((view.now - moment).total_seconds()) if moment else NONE
