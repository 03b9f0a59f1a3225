"""Every theme can be read, and its states and occupants told apart, by every kind of sight."""

from __future__ import annotations

import itertools
import math

import pytest

from greenthread.snapshot import Shown
from tui.theme import GLYPHS, PLAIN, THEMES, Palette

SIGHTS = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
palettes = pytest.mark.parametrize("palette", THEMES.values(), ids=list(THEMES))


def linear(colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        red, green, blue = linear(colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, sight: str) -> tuple[float, float, float]:
    """CIE L*a*b* of a colour as it is seen."""
    parts = linear(colour)
    red, green, blue = (
        min(max(sum(weight * part for weight, part in zip(row, parts, strict=True)), 0.0), 1.0) for row in SIGHTS[sight]
    )

    def curve(value: float) -> float:
        return value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116

    x = curve((0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505)
    y = curve(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    z = curve((0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089)
    return (116 * y - 16, 500 * (x - y), 200 * (y - z))


def nearest(colours: list[str]) -> float:
    """The least difference (CIE76) of any two, for any sight."""
    return min(
        math.dist(lab(one, sight), lab(other, sight))
        for one, other in itertools.combinations(colours, 2)
        for sight in SIGHTS
    )


@palettes
def test_states_can_be_read_and_told_apart_by_every_sight(palette: Palette) -> None:
    colours = list(dict.fromkeys(palette.state(state) for state in Shown))
    assert all(contrast(colour, palette.back) >= 4.5 for colour in colours)
    assert nearest(colours) >= 10


@palettes
def test_occupants_can_be_told_apart_and_the_text_on_them_read(palette: Palette) -> None:
    assert nearest([segment for segment, _ in palette.occupants]) >= 13
    for segment, _ in palette.occupants:
        assert contrast(palette.on_segment, segment) >= 5
        assert contrast(palette.number_on_segment, segment) >= 4.5


@palettes
def test_text_can_be_read_wherever_it_stands(palette: Palette) -> None:
    least = 7 if palette.name == "high-contrast" else 4.5
    for back in (palette.back, palette.panel, palette.selected):
        assert contrast(palette.text, back) >= least
        assert contrast(palette.dim, back) >= 4.5
    assert contrast(palette.on_past, palette.past) >= least


def test_states_also_differ_by_shape_in_unicode_and_in_ascii() -> None:
    shapes = [GLYPHS[state] for state in Shown if state is not Shown.STAGING]  # as converting: not ready yet
    assert len(set(shapes)) == len(shapes)
    plain = [PLAIN[ord(shape)] for shape in shapes]
    assert len(set(plain)) == len(plain)
    assert all(len(text) == 1 and text.isascii() for text in PLAIN.values())
