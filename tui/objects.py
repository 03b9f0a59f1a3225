"""A Model or GPU as the API has it, in YAML."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from greenthread.kube.errors import KubeError
from greenthread.kube.resources import GPUS, MODELS, key_of, resource_version
from greenthread.kube.write_yaml import write_yaml
from greenthread.names import DEFAULT_NAMESPACE
from greenthread.snapshot import ModelRow
from tui.cells import Line, cut
from tui.facts import KeyHint
from tui.text import Piece, TextPage
from tui.theme import Palette
from tui.view import View
from tui.wakes import Key

AGAIN = 1.0
"""Seconds between two readings of an object that changes."""
_LINE = re.compile(r"(?P<lead> *(?:- )*)(?P<key>[^\s\"'][^:]*|\"[^\"]*\"):(?P<value> .*)?")
_ITEM = re.compile(r"(?P<lead> *(?:- )+)(?P<value>.*)")
_LITERAL = re.compile(r"[\d.+-]+(?:e[+-]?\d+)?|true|false|null|\{\}|\[\]")


class Yaml(TextPage):
    """Read from the API server when it is opened and when it changes."""

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (("c", "copy the whole object"),)

    def __init__(self, kind: str, key: Key) -> None:
        """`kind`: "model" or "gpu"."""
        super().__init__()
        self.identity = ("yaml", kind, key)
        self._kind, self._key = kind, key
        self._yaml, self._trouble_text, self._version = "", "", ""
        self._read_at = float("-inf")
        self._lines: list[list[Piece]] = []
        self._painted: tuple[str, str, str] | None = None

    @property
    def selected(self) -> Key | None:
        return self._key if self._kind == "model" else None

    @property
    def selected_gpu(self) -> str | None:
        return self._key[1] if self._kind == "gpu" else None

    def copied(self) -> str:
        return self._yaml

    def hints(self, view: View, row: ModelRow | None) -> list[KeyHint]:
        return [KeyHint("esc", "back", True, "screen.back"), KeyHint("c", "copy", bool(self._yaml), "app.copy")]

    def title_line(self, view: View, width: int) -> Line:
        line, palette = Line(width), view.palette
        x = line.put(1, "yaml › ", palette.dim)
        name = self._key[1] if self._kind == "gpu" else view.name(self._key)
        x = line.put(x, name, palette.strong, bold=True) + 3
        line.put(x, cut(self._trouble_text, width - x - 1), palette.failed)
        return line

    def text_lines(self, view: View) -> Sequence[Sequence[Piece]]:
        if view.data is not self.dashboard.data:  # a moment that is over
            self._take(view.data.object(*self._there(view)))
        else:
            self._follow(view)
        wanted = (view.palette.name, self._yaml, self._trouble_text)
        if self._painted != wanted:
            self._painted = wanted
            self._lines = [highlighted(line, view.palette) for line in self._yaml.splitlines()]
        return self._lines

    def _there(self, view: View) -> tuple[str, Key]:
        if self._kind == "model":
            return MODELS.plural, self._key
        gpu = next((row.gpu for row in view.snapshot.gpus if row.gpu.name == self._key[1]), None)
        return GPUS.plural, (gpu.namespace if gpu is not None else DEFAULT_NAMESPACE, self._key[1])

    def _follow(self, view: View) -> None:
        """Reads it again when the watch has a newer one."""
        plural, key = self._there(view)
        known = view.data.object(plural, key)
        version = resource_version(known) if known is not None else "gone"
        now = asyncio.get_running_loop().time()
        if version != self._version and now >= self._read_at + AGAIN:
            self._version, self._read_at = version, now
            self.run_worker(self._read(plural, key), group="read", exclusive=True)

    async def _read(self, plural: str, key: Key) -> None:
        resource = MODELS if plural == MODELS.plural else GPUS
        try:
            obj = await self.dashboard.data.client.get(resource, key[1], key[0])
            assert key_of(obj) == key
            self._trouble_text = ""
            self._take({"apiVersion": resource.api_version, "kind": resource.kind} | obj)
        except KubeError as error:
            self._trouble_text = str(error)
        self.again()

    def _take(self, obj: dict[str, Any] | None) -> None:
        if obj is None:
            self._yaml = ""
            return
        meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
        self._yaml = write_yaml(obj | {"metadata": meta})


def highlighted(line: str, palette: Palette) -> list[Piece]:
    """One line of YAML: keys, values, numbers apart."""
    key_ink, literal = palette.occupants[0][1], palette.occupants[3][1]
    found = _LINE.fullmatch(line)
    if found is None:
        found = _ITEM.fullmatch(line)
        if found is None:
            return [Piece(line, palette.text)]
        pieces = [Piece(found["lead"], palette.dim)]
    else:
        pieces = [Piece(found["lead"], palette.dim), Piece(found["key"], key_ink), Piece(":", palette.dim)]
    value = found["value"] or ""
    plain = value.strip()
    ink = literal if _LITERAL.fullmatch(plain) else palette.dim if plain in ("|", "|-") else palette.text
    return [*pieces, Piece(value, ink)]
