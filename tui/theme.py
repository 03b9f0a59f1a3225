"""Colours and glyphs. Every state differs by shape as well as by colour; amber means "somebody waits", nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from greenthread.snapshot import Shown

GLYPHS = {
    Shown.SERVING: "●",
    Shown.WAKING: "◐",
    Shown.PENDING: "◌",
    Shown.DEACTIVATING: "▼",
    Shown.SLEEPING: "○",
    Shown.CONVERTING: "◇",
    Shown.STAGING: "◇",
    Shown.FAILED: "✕",
    Shown.CANNOT_FIT: "⊘",
}
PINNED = "★"
PLAIN = str.maketrans({
    "●": "*", "◐": "+", "◌": "?", "▼": "v", "○": "o", "◇": "~", "✕": "x", "⊘": "!", "★": "P",
    "▎": "|", "▍": "|", "█": "#", "■": "#", "░": ":", "━": "=", "─": "-", "╌": ".", "├": "|", "┤": "|", "┼": "|",
    "│": "|", "└": "`", "╰": "`", "▁": "_", "▂": "_", "▃": ".", "▄": "-", "▅": "-", "▆": "=", "▇": "=", "▔": "-",
    "–": "-", "—": "-", "…": "~", "›": ">", "▸": ">", "◂": "<", "✓": "+", "·": ".", "°": " ", "≥": ">", "→": ">",
    "←": "<", "↑": "^", "↓": "v", "↗": "^", "’": "'", "“": '"', "”": '"',
})  # fmt: skip
"""The same in ASCII, one cell by one cell; the states' are those of `kubectl greenthread top`."""


@dataclass(frozen=True)
class Palette:
    """One theme. `occupants`: (segment, edge) pairs, told apart by lightness as well as by hue."""

    name: str
    dark: bool
    back: str
    panel: str
    selected: str
    track: str
    text: str
    strong: str
    dim: str
    faint: str
    spark: str
    serving: str
    waking: str
    pending: str
    deactivating: str
    sleeping: str
    preparing: str
    failed: str
    on_segment: str
    number_on_segment: str
    occupants: tuple[tuple[str, str], ...]
    #: Behind the header while a moment that is over is shown, and the text on it.
    past: str = "#e0a02a"
    on_past: str = "#1a1204"

    def state(self, state: Shown) -> str:
        """The colour of a state."""
        return {
            Shown.SERVING: self.serving,
            Shown.WAKING: self.waking,
            Shown.PENDING: self.pending,
            Shown.DEACTIVATING: self.deactivating,
            Shown.SLEEPING: self.sleeping,
            Shown.CONVERTING: self.preparing,
            Shown.STAGING: self.preparing,
            Shown.FAILED: self.failed,
            Shown.CANNOT_FIT: self.failed,
        }[state]


DARK = Palette(
    name="dark", dark=True, back="#0f1317", panel="#161b21", selected="#232c36", track="#1b2128",
    text="#d6dce3", strong="#f2f5f8", dim="#8c97a4", faint="#56616d", spark="#62707e",
    serving="#45c49a", waking="#63b3ef", pending="#f2b134", deactivating="#e79ac6", sleeping="#8c97a4",
    preparing="#ccd5de", failed="#ff7b5e", on_segment="#eef2f6", number_on_segment="#e2e8ee",
    occupants=(
        ("#4f6298", "#8fa6ee"), ("#452455", "#b27fd0"), ("#6b6927", "#c2be55"),
        ("#0a7272", "#4fc0cf"), ("#4e2c11", "#c88a55"), ("#46494c", "#a5aab0"),
    ),
)  # fmt: skip
LIGHT = Palette(
    name="light", dark=False, back="#fbfbf9", panel="#f2f2ee", selected="#e6ecf3", track="#ecece7",
    text="#22292f", strong="#0b0f13", dim="#5a6570", faint="#98a1a9", spark="#8b97a2",
    serving="#00745a", waking="#0a63a8", pending="#9c5c00", deactivating="#7b2d8b", sleeping="#5a6570",
    preparing="#363f48", failed="#a01a1a", on_segment="#12181e", number_on_segment="#2a333b",
    occupants=(
        ("#a0cdfa", "#2f6cab"), ("#b793c0", "#7a4a8a"), ("#a7ad92", "#5f6a35"),
        ("#83a9a4", "#22695f"), ("#f5dbba", "#b07a2a"), ("#b5c6d0", "#4f6675"),
    ),
    past="#e8ab3c",
)  # fmt: skip
HIGH_CONTRAST = replace(
    DARK,
    name="high-contrast", back="#000000", panel="#141414", selected="#003a5c", track="#1f1f1f",
    text="#ffffff", strong="#ffffff", dim="#cfd3d7", faint="#8f959b", spark="#b0b6bc",
    serving="#3dff9e", waking="#67b0ff", pending="#ffc21a", deactivating="#ff9de0", sleeping="#b4b4b4",
    preparing="#ffffff", failed="#ff7a70", on_segment="#ffffff", number_on_segment="#ffffff",
    occupants=(
        ("#375881", "#8fbdf0"), ("#51143d", "#e87cc4"), ("#635644", "#d6bf9c"),
        ("#7918d1", "#c48cff"), ("#8d2a07", "#ff9a6e"), ("#280b76", "#9a86ff"),
    ),
)  # fmt: skip
COLOUR_BLIND = replace(
    DARK,
    name="colour-blind",
    serving="#00f6b5", waking="#56b4e9", pending="#e69f00", deactivating="#c56c91", sleeping="#7087b1",
    preparing="#d5dbe2", failed="#e58152", on_segment="#ffffff", number_on_segment="#ffffff",
    occupants=(
        ("#0072b2", "#6db8e8"), ("#a4557c", "#e7a3c4"), ("#302b08", "#b0a557"),
        ("#00624a", "#3fbd98"), ("#7a3300", "#dd8f4f"), ("#374456", "#93a5bb"),
    ),
)  # fmt: skip
"""After Okabe and Ito, moved apart in lightness until the states differ for every kind of sight."""
THEMES = {theme.name: theme for theme in (DARK, LIGHT, HIGH_CONTRAST, COLOUR_BLIND)}


@lru_cache(maxsize=1024)
def blend(colour: str, towards: str, share: float) -> str:
    """`colour` moved by `share` (0 to 1) towards another; both `#rrggbb`."""
    ours, theirs = (tuple(int(c[at : at + 2], 16) for at in (1, 3, 5)) for c in (colour, towards))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(ours, theirs, strict=True))


class Colours:
    """Which occupant has which colour: the same as long as it holds memory, and again later if nobody took it."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], int] = {}

    def assign(self, holders: list[tuple[str, str]], count: int) -> dict[tuple[str, str], int]:
        """Colour numbers below `count` for the models that hold memory, different ones as far as they go."""
        wanted = {key: self._of[key] for key in holders if key in self._of}
        taken: dict[int, int] = dict.fromkeys(range(count), 0)
        kept: dict[tuple[str, str], int] = {}
        for key in holders:
            number = wanted.get(key)
            if number is not None:
                kept[key] = number
                taken[number] += 1
        for key in holders:
            if key not in kept:
                number = min(taken, key=lambda n: (taken[n], n))
                kept[key] = number
                taken[number] += 1
                # who had it and sleeps gets another one when it comes back
                self._of = {other: n for other, n in self._of.items() if n != number or other in kept}
        self._of.update(kept)
        return kept
