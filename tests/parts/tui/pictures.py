"""Pictures of the dashboard for the README: `python -m tests.parts.tui.pictures docs/screenshots`.

The cells are those of the real widgets on the story of `world.py`. Text is text, so that it stays sharp and can be
searched; blocks and lines are drawn as shapes, so that they meet whatever the font.
"""

from __future__ import annotations

import asyncio
import sys
from html import escape
from pathlib import Path

from textual.strip import Strip

from tests.parts.tui.looks import strips
from tests.parts.tui.test_looks import charts_are_there, settle, shown
from tests.parts.tui.time_travel import START, travelled
from tests.parts.tui.world import World, ago, report
from tui.app import Dashboard
from tui.detail import Detail

WIDTH, HEIGHT, SIZE = 8.4, 18.0, 14
"""Of a cell, and of its text, in pixels."""
PAD = 12.0
FONT = "'JetBrains Mono','Cascadia Mono','DejaVu Sans Mono',Menlo,Consolas,monospace"
PICTURES = {
    "overview": ("story", "dark", 34, ["j", "j", "j"]),
    "waits": ("waits", "dark", 34, [":waits", "j"]),
    "model": ("past", "dark", 41, [":model llama-3-1-8b"]),
    "light": ("story", "light", 34, ["j", "j", "j"]),
}
"""File → story, theme, rows, keys."""
SESSION = (70, 74, 77, 79, 81, 82.2, 83.1, 83.6, 84.2, 88, 100.3, 104)
"""Moments of a film, seconds after the start of `time_travel`: one asks for room, another makes it."""

_LOWER = {char: number / 8 for number, char in enumerate("▁▂▃▄▅▆▇█", 1)}
_LEFT = {"▎": 0.25, "▍": 0.375}
_LINES = {  # left, right, up, down; thickness, dashes
    "━": ("lr", 2.6, ""), "─": ("lr", 1.2, ""), "╌": ("lr", 1.2, "2.6 1.6"), "├": ("rud", 1.2, ""),
    "┤": ("lud", 1.2, ""), "┼": ("lrud", 1.2, ""), "│": ("ud", 1.2, ""), "╰": ("ru", 1.2, ""),
}  # fmt: skip


def picture(rows: list[Strip], back: str) -> str:
    """The cells as SVG, in a plain frame."""
    columns = max(strip.cell_length for strip in rows)
    width, height = columns * WIDTH + 2 * PAD, len(rows) * HEIGHT + 2 * PAD
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" font-size="{SIZE}" '
        f'font-family="{FONT}">',
        f'<rect width="100%" height="100%" rx="8" fill="{back}"/>',
    ]
    for y, strip in enumerate(rows):
        x = 0
        for text, style, _ in strip:
            fore = style.color.name if style is not None and style.color else "#888888"
            behind = style.bgcolor.name if style is not None and style.bgcolor else back
            if style is not None and style.reverse:
                fore, behind = behind, fore
            if behind != back:
                # half a pixel more on the right: no seam between neighbours
                out.append(_rect(x, y, len(text), 1.0, behind, 0.3))
            out += _cells(text, x, y, fore, bool(style is not None and style.bold))
            x += len(text)
    return "\n".join([*out, "</svg>", ""])


def _rect(x: float, y: float, cells: float, high: float, colour: str, more: float = 0.0) -> str:
    top = PAD + (y + 1 - high) * HEIGHT
    return (
        f'<rect x="{PAD + x * WIDTH:.2f}" y="{top:.2f}" width="{cells * WIDTH + more:.2f}" '
        f'height="{high * HEIGHT + (0.3 if high == 1.0 else 0):.2f}" fill="{colour}"/>'
    )


def _cells(text: str, x: int, y: int, colour: str, bold: bool) -> list[str]:
    """Shapes for what is one, and the words between."""
    out: list[str] = []
    word, start = "", 0
    for at, char in enumerate([*text, ""]):
        if char in _LOWER:  # in one piece as far as it goes: no seams
            run = len(text[at:]) - len(text[at:].lstrip(char))
            again = at > 0 and text[at - 1] == char
            shape = "" if again else _rect(x + at, y, run, _LOWER[char], colour)
        else:
            shape = _shape(char, x + at, y, colour) if char else ""
        if shape is None and char:
            start = at if not word else start
            word += char
            continue
        if word.strip():
            lead = len(word) - len(word.lstrip())
            shown = word.strip()
            weight = ' font-weight="600"' if bold else ""
            out.append(
                f'<text x="{PAD + (x + start + lead) * WIDTH:.2f}" y="{PAD + (y + 0.74) * HEIGHT:.2f}" '
                f'textLength="{len(shown) * WIDTH:.2f}" lengthAdjust="spacingAndGlyphs" fill="{colour}"{weight} '
                f'xml:space="preserve">{escape(shown)}</text>'
            )
        word = ""
        if shape:
            out.append(shape)
    return out


def _shape(char: str, x: int, y: int, colour: str) -> str | None:
    """A block or line as SVG; None for what is text."""
    if char in _LEFT:
        return _rect(x, y, _LEFT[char], 1.0, colour)
    if char == "■":
        place = f'x="{PAD + x * WIDTH:.2f}" y="{PAD + (y + 0.28) * HEIGHT:.2f}"'
        return f'<rect {place} width="{WIDTH}" height="{HEIGHT * 0.46:.2f}" fill="{colour}"/>'
    if char == "░":
        dots = [
            f'<rect x="{PAD + (x + dx) * WIDTH:.2f}" y="{PAD + (y + dy) * HEIGHT:.2f}" width="1.3" height="1.3"/>'
            for dy in (0.02, 0.18, 0.35, 0.52, 0.68, 0.85)
            for dx in (0.08, 0.4, 0.72)
        ]
        return f'<g fill="{colour}">{"".join(dots)}</g>'
    if "\u2800" <= char <= "\u28ff":
        dots = [
            f'<circle cx="{PAD + (x + 0.27 + 0.46 * column) * WIDTH:.2f}" '
            f'cy="{PAD + (y + 0.14 + 0.24 * row) * HEIGHT:.2f}" r="1"/>'
            for column, bits in enumerate(((0, 1, 2, 6), (3, 4, 5, 7)))
            for row, bit in enumerate(bits)
            if ord(char) >> bit & 1
        ]
        return f'<g fill="{colour}">{"".join(dots)}</g>'
    if char in _LINES:
        ways, thick, dashes = _LINES[char]
        middle, centre = PAD + (x + 0.5) * WIDTH, PAD + (y + 0.5) * HEIGHT
        ends = {
            "l": (PAD + x * WIDTH, centre), "r": (PAD + (x + 1) * WIDTH, centre),
            "u": (middle, PAD + y * HEIGHT), "d": (middle, PAD + (y + 1) * HEIGHT),
        }  # fmt: skip
        path = "".join(f"M{middle:.2f} {centre:.2f}L{ends[way][0]:.2f} {ends[way][1]:.2f}" for way in ways)
        if ways == "lr":
            path = f"M{ends['l'][0]:.2f} {centre:.2f}H{ends['r'][0]:.2f}"
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        return f'<path d="{path}" stroke="{colour}" stroke-width="{thick}"{dashed}/>'
    return None


def of(app: Dashboard) -> str:
    """The screen as it is now."""
    return picture(strips(app), app.palette.back)


async def traffic(world: World, app: Dashboard) -> None:
    """A minute of use, in an instant: what the sparklines show."""
    flying = {
        "gpt-oss-20b": (4, 0.612),
        "llama-3-1-8b": (1, 0.540),
        "kimi-vl-a3b": (0, 3.0),
        "whisper-large-v3": (0, 0.318),
    }
    told = {name: report("serving", 192, inFlight=count, wake=wake) for name, (count, wake) in flying.items()}
    told["kimi-vl-a3b"] |= {"state": "waking", "since": ago(1.9), "queued": 2}
    told["whisper-large-v3"] |= {"state": "sleeping", "since": ago(2.5)}
    told["llama-3-1-8b"] |= {"since": ago(2)}
    for step, use in enumerate((30, 34, 38, 46, 55, 68, 74, 80, 79, 78, 80, 83)):
        for index, percent, watts, heat in ((0, use, 412, 64), (1, 8 + step % 3 * 2, 140, 51)):
            stats = {"utilizationPercent": percent, "temperatureCelsius": heat, "powerWatts": watts}
            await world.patch_gpu(f"node-a-{index}", stats=stats)
        for name, more in (("gpt-oss-20b", use // 7), ("llama-3-1-8b", step % 3 // 2)):
            told[name]["requests"] += more
            await world.report(name, told[name])
        await asyncio.sleep(0.01)
        app.data.sample()


def film(frames: list[str], seconds: float) -> str:
    """Pictures of one size, each shown for so long, over and over, as one SVG."""
    head, _, _ = frames[0].partition("\n")
    total = seconds * len(frames)
    share = 100 / len(frames)
    style = (
        f"<style>.f~.f{{visibility:hidden}}.f{{animation:f {total:.1f}s steps(1) infinite}}"
        f"@keyframes f{{0%{{visibility:visible}}{share:.3f}%{{visibility:hidden}}}}</style>"
    )
    out = [head, style]
    for number, frame in enumerate(frames):
        inner = frame.partition("\n")[2].rpartition("</svg>")[0]
        out.append(f'<g class="f" style="animation-delay:{number * seconds:.1f}s">{inner}</g>')
    return "\n".join([*out, "</svg>", ""])


async def main(folder: Path) -> None:
    for name, (story, theme, rows, keys) in PICTURES.items():
        async with shown(story, theme=theme) as (world, app, pilot):
            if story != "waits":
                await traffic(world, app)
            await pilot.resize_terminal(120, rows)
            for key in keys:
                if key.startswith(":"):
                    app.run_command(key[1:])
                else:
                    await pilot.press(key)
                await pilot.pause()
            if isinstance(app.page, Detail):
                await charts_are_there(app, pilot)
            await settle(app, pilot)
            (folder / f"{name}.svg").write_text(of(app))
    async with travelled() as (app, pilot):
        await pilot.press("j", "j", "j")
        await settle(app, pilot)
        (folder / "time-travel.svg").write_text(of(app))
        frames = []
        for second in SESSION:
            app.travel._at(START.timestamp() + second)
            app.paint()
            await settle(app, pilot)
            frames.append(of(app))
        (folder / "session.svg").write_text(film(frames, 1.2))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
