"""What a model's engine or sidecar writes, as it is written: through the pod's log subresource."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import ClassVar

from textual.binding import Binding, BindingType

from greenthread.kube.errors import KubeError
from greenthread.snapshot import ModelRow, Replica
from tui.cells import Line, cut
from tui.facts import KeyHint
from tui.text import Piece, TextPage
from tui.view import View
from tui.wakes import Key

CONTAINERS = {"engine": "vllm", "sidecar": "sidecar"}
KEPT = 3000
"""Lines kept."""
AGAIN = 2.0
"""Seconds before a log that ended or was refused is asked for again."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.")
_BAD = re.compile(r"\b(?:ERROR|CRITICAL|FATAL|Traceback|Error)\b|error:")
_WARNS = re.compile(r"\bWARN(?:ING)?\b|warning:")


class Logs(TextPage):
    """Follows the end unless one scrolls up."""

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("t", "the engine's log, the sidecar's log"),
        ("r", "the next replica's"),
        ("f", "follow, or stand still; G goes to the end and follows"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "container", show=False),
        Binding("r", "replica", show=False),
        Binding("f", "follow", show=False),
    ]

    def __init__(self, key: Key, container: str = "engine") -> None:
        super().__init__()
        self.identity = ("logs", key, container)
        self._key, self._container = key, container
        self._number = 0
        self._said: deque[str] = deque(maxlen=KEPT)
        self._state, self._following, self._fresh = "", True, False
        self._reading: tuple[str, str] | None = None

    @property
    def selected(self) -> Key | None:
        return self._key

    def copied(self) -> str:
        words = self.words.lower().split()
        return "".join(f"{line}\n" for line in self._said if all(word in line.lower() for word in words))

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        other = "sidecar" if self._container == "engine" else "engine"
        hints = [
            KeyHint("esc", "back", True, "screen.back"),
            KeyHint("t", other, True, "screen.container"),
            KeyHint("f", "stand still" if self._following else "follow", True, "screen.follow"),
        ]
        if row is not None and len(row.replicas) > 1:
            hints.append(KeyHint("r", "next replica", True, "screen.replica"))
        return [*hints, KeyHint("c", "copy", bool(self._said), "app.copy")]

    def on_mount(self) -> None:
        super().on_mount()
        self.set_interval(0.1, self._paint_fresh)

    def _paint_fresh(self) -> None:
        if self._following and self._text.size.height and not self._text.at_end and not self._fresh:
            self._following = False  # scrolled up
            self.show_keys()
        if self._fresh and self.is_current:
            self._fresh = False
            self.again()

    def title_line(self, view: View, width: int) -> Line:
        line, palette = Line(width), view.palette
        x = line.put(1, "logs › ", palette.dim)
        x = line.put(x, view.name(self._key), palette.strong, bold=True)
        x = line.put(x + 1, f"› {self._container}", palette.text)
        replica = self._replica(view)
        x = line.put(x + 3, cut(replica.pod.name if replica else "no pod", width - x - 20), palette.dim)
        line.put(x + 3, "follows" if self._following else "stands still", palette.dim)
        return line

    def text_lines(self, view: View) -> Sequence[Sequence[Piece]]:
        replica = self._replica(view)
        wanted = (replica.pod.name, self._container) if replica is not None else None
        if wanted is not None and wanted != self._reading:
            self._reading = wanted
            self._said.clear()
            self._following = True
            self.run_worker(self._read(*wanted), group="read", exclusive=True)
        if self._following:
            self.call_after_refresh(self._to_end)
        palette = view.palette

        def painted() -> Iterator[list[Piece]]:
            for text in self._said:
                bad, warns = _BAD.search(text), _WARNS.search(text)
                ink = palette.failed if bad else palette.strong if warns else palette.text
                yield [Piece(text, ink, bool(bad or warns))]
            if self._state:
                yield [Piece(self._state, palette.dim)]

        return list(painted())

    def _to_end(self) -> None:
        if self._following:
            self._text.scroll_end(animate=False, immediate=True)

    def _replica(self, view: View) -> Replica | None:
        row = view.snapshot.model(*self._key)
        if row is None or not row.replicas:
            return None
        return row.replicas[self._number % len(row.replicas)]

    async def _read(self, pod: str, container: str) -> None:
        """Reads until the page is left; asks again when the log ends, since a container may start anew."""
        while True:
            self._said.clear()
            try:
                client = self.dashboard.data.client
                async with aclosing(client.log(self._key[0], pod, CONTAINERS[container], follow=True)) as lines:
                    async for line in lines:
                        self._said.append(_ESCAPES.sub("", line).expandtabs())
                        self._state, self._fresh = "", True
                self._state = "it ended; looking again"
            except KubeError as error:
                self._state = str(error)
            self._fresh = True
            await asyncio.sleep(AGAIN)

    def action_container(self) -> None:
        self._container = "sidecar" if self._container == "engine" else "engine"
        self.identity = ("logs", self._key, self._container)
        self._state = ""
        self.again()

    def action_replica(self) -> None:
        self._number += 1
        self.again()

    def action_follow(self) -> None:
        self._following = not self._following
        self.again()
