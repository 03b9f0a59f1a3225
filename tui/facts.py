"""Header, footer, and what is told in words: why and next, the wake that goes on, events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from greenthread.outlook import next_step, why
from greenthread.snapshot import ModelRow, Shown, place
from greenthread.units import short_duration
from tui import then
from tui.cells import Line, cut, wrap
from tui.data import Told
from tui.theme import GLYPHS
from tui.view import View, key_of_row, put_state, put_with_names
from tui.wakes import Key, Wake

STATE_OF = {
    "Woke": Shown.SERVING,
    "Waiting": Shown.PENDING,
    "Preempting": Shown.PENDING,
    "Slept": Shown.SLEEPING,
    "GaveWay": Shown.SLEEPING,
    "Preempted": Shown.SLEEPING,
    "Booted": Shown.CONVERTING,
    "EngineDied": Shown.FAILED,
}
"""The state that an Event tells of, by its reason."""


class KeyHint(NamedTuple):
    """A key of the footer. Not `on`: it does not apply to the selected row and is faint, not gone."""

    key: str
    word: str
    on: bool = True
    action: str = ""


def header(width: int, view: View, readonly: bool, namespace: str | None = None) -> Line:
    """Where we are, how much there is, who waits, and whether this is true now."""
    palette, snapshot, link = view.palette, view.snapshot, view.link
    line = Line(width, palette.panel)
    x = line.put(1, "Green", palette.serving, bold=True)
    x = line.put(x, "Thread", palette.strong, bold=True)
    where = namespace or view.data.namespace or "all namespaces"
    if view.then is not None:
        return then.header(width, view, view.then, where)
    right = line.end(width - 1, view.time(view.now), palette.strong)
    match link.state:
        case "live":
            age = "" if link.age is None else f" {link.age:.1f}s" if link.age < 9.95 else f" {short_duration(link.age)}"
            text, colour, glyph = f"live{age}", palette.dim, palette.serving
        case "lost":
            age = f" {short_duration(link.age)}" if link.age is not None else ""
            text, colour, glyph = f"lost{age}", palette.failed, palette.failed
        case _:
            text, colour, glyph = "connecting", palette.dim, palette.dim
    # the age changes its width: the glyph stands still
    at = right - 4 - max(len(text), 10)
    line.put(at, "✕" if link.state == "lost" else "●" if link.state == "live" else "◌", glyph)
    line.put(at + 2, text, colour)
    x = line.put(x + 2, cut(view.context, max(width // 4, 12)), palette.text)
    at -= 2
    if snapshot.waiting:
        text = f"{GLYPHS[Shown.PENDING]} {snapshot.waiting} waiting"
        at = line.end(at - 2, text, palette.pending, bold=True)
    counts = f"{_several(len(snapshot.models), 'model')}  {_several(len(snapshot.gpus), 'GPU')}"
    if at - x > len(counts) + len(where) + 6:
        at = line.end(at - 2, counts, palette.dim)
    if at - x > 6:
        x = line.put(x + 2, cut(where, at - x - 4), palette.dim)
    if readonly and at - x > 14:
        line.put(x + 2, "read-only", palette.dim)
    return line


def trouble(width: int, view: View) -> list[Line]:
    """What went wrong with the connection, and what may not be read."""
    palette, link = view.palette, view.link
    lines: list[Line] = []
    if link.state == "lost":
        said = link.trouble if link.trouble.endswith(("?", "!", ".")) else f"{link.trouble}."
        text = f"✕ no connection: {said} Trying again."
        if link.age is not None:
            then = view.time(view.now - timedelta(seconds=link.age))
            text = f"✕ connection lost: {said} Trying again; this is the cluster of {then}."
        for part in wrap(text, width - 2, 3):
            lines.append(Line(width))
            lines[-1].put(1, part, palette.failed)
    for text in link.missing[:2]:
        lines.append(Line(width))
        lines[-1].put(1, cut(f"not shown: {text}", width - 2), palette.dim)
    return lines


def mode(sign: str, view: View) -> Line:
    """What is typed beside it: `/` a filter, `:` a command."""
    line = Line(2, view.palette.selected)
    line.put(1, sign, view.palette.strong, bold=True)
    return line


def candidates(width: int, found: Sequence[str], chosen: int, view: View) -> Line:
    """What a command may become, in one line; the chosen one stands out and is in sight."""
    palette = view.palette
    line = Line(width, palette.panel)
    words = [text.strip() for text in found]
    first = 0
    while chosen > first and sum(len(word) + 3 for word in words[first : chosen + 1]) > width - 4:
        first += 1
    x = line.put(1, "… " if first else "", palette.dim)
    for number, word in enumerate(words[first:], first):
        if x + len(word) + 3 > width:
            line.put(x, "…", palette.dim)
            break
        if number == chosen:
            line.fill(x - 1, x + len(word) + 1, palette.selected)
        x = line.put(x, word, palette.strong if number == chosen else palette.dim, bold=number == chosen) + 2
    return line


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def footer(width: int, hints: Sequence[KeyHint], view: View) -> tuple[Line, list[tuple[int, int, str]]]:
    """The keys, and where each stands with its action. What does not fit is left out, faint ones first."""
    palette = view.palette
    shown = list(hints)

    def needed() -> int:
        return sum(len(hint.key) + 1 + len(hint.word) + 2 for hint in shown)

    while needed() > width and any(not hint.on for hint in shown):
        shown.remove(next(hint for hint in reversed(shown) if not hint.on))
    while needed() > width and len(shown) > 2:
        shown.pop(-3)  # help and quit stay
    line, x, spots = Line(width, palette.panel), 1, []
    for hint in shown:
        start = x
        x = line.put(x, hint.key, palette.strong if hint.on else palette.faint, bold=hint.on)
        x = line.put(x + 1, hint.word, palette.dim if hint.on else palette.faint)
        spots.append((start, x, hint.action))
        x += 2
    return line, spots


def reasons(width: int, height: int, row: ModelRow | None, view: View) -> list[Line]:
    """WHY and NEXT of the selected model in `height` rows; NEXT is always the last."""
    palette = view.palette
    lines = [Line(width) for _ in range(height)]
    if row is None:
        lines[0].put(3, "no model is selected", palette.dim)
        return lines
    colour = palette.state(row.state)
    left = 10 if width >= 100 else 9
    room = width - left - 1
    names = {other.name for other in view.snapshot.models}
    for line in lines:
        line.put(1, "▎", colour)
    lines[0].put(3, "WHY", colour, bold=True)
    for line, text in zip(lines, wrap(_sentence(why(row, view.snapshot)), room, max(height - 1, 1)), strict=False):
        put_with_names(line, left, text, names, view)
    moment, text = next_step(row, view.snapshot)
    told = view.then.past.later(1, key_of_row(row)) if view.then is not None else ()
    if told:
        moment, text = told[0].at, then.happened(told[0], view)
    if text and height > 1:
        x = left
        lines[-1].put(3, "THEN" if told else "NEXT", colour, bold=True)
        if moment is not None:
            seconds = (moment - view.now).total_seconds()
            x = lines[-1].put(x, view.time(moment), palette.strong, bold=True) + 2
            if not told:
                text = f"in {short_duration(seconds)}: {text}" if seconds > 0 else f"now: {text}"
        put_with_names(lines[-1], x, cut(_sentence(text), room - (x - left)), names, view)
    return lines


def _sentence(text: str) -> str:
    return text if text.endswith((".", "…")) or not text else f"{text}."


def wake_lines(width: int, height: int, view: View, only: Key | None = None) -> list[Line]:
    """The wakes that go on (of one model), with their steps and times; else the last one that was told."""
    palette, snapshot = view.palette, view.snapshot
    going = [
        wake
        for wake in view.data.wakes.current(snapshot)
        if snapshot.model(*wake.key) is not None and only in (None, wake.key)
    ]
    lines = [Line(width) for _ in range(height)]
    left = 10 if width >= 100 else 9
    if not going:
        line = lines[0]
        line.put(3, "WAKE", palette.dim)
        wakes = (t for t in reversed(view.data.events) if t.record and t.record.get("kind") == "wake")
        last = next((told for told in wakes if only in (None, told.key)), None)
        if last is None:
            line.put(left, "nothing wakes", palette.dim)
        else:
            x = line.put(left, view.name(last.key), palette.dim, bold=True)
            told = f"{view.time(last.at)}  "
            line.put(x + 2, cut(told + last.message, width - x - 3), palette.dim)
        return lines
    shown = going[:height]
    names = max(len(view.name(wake.key)) for wake in shown)
    for number, (line, wake) in enumerate(zip(lines, shown, strict=False)):
        row = snapshot.model(*wake.key)
        assert row is not None
        colour = palette.state(row.state)
        line.put(1, "▎", colour)
        line.put(3, "WAKE" if number == 0 else "", colour, bold=True)
        line.put(left, cut(view.name(wake.key), 30), palette.strong, bold=True)
        more = len(going) - len(shown) if number == len(shown) - 1 else 0
        _wake(line, left + min(names, 30) + 2, more, wake, row, view)
    return lines


def _wake(line: Line, x: int, more: int, wake: Wake, row: ModelRow, view: View) -> None:
    palette = view.palette
    right = line.width - 1
    if more:
        right = line.end(right, f"+{more}", palette.dim) - 2
    if wake.done is not None:
        total = (wake.done - wake.steps[0].began).total_seconds() if wake.steps else 0.0
        right = line.end(right, f"serves after {short_duration(total)}", palette.serving, bold=True) - 2
    x = _steps(line, x, right, wake, view)
    if row.state in (Shown.WAKING, Shown.CONVERTING):
        _progress(line, x, right, row, view)


def _steps(line: Line, x: int, right: int, wake: Wake, view: View) -> int:
    """✓ queue 2ms  ✓ llama makes room 612ms  ◐ copy 0.4s: as many of the last steps as fit."""
    palette = view.palette
    row = view.snapshot.model(*wake.key)
    assert row is not None
    texts = [
        f"{'✓' if step.ended else GLYPHS[row.state]} {step.name} {short_duration(step.seconds(view.now))}"
        for step in wake.steps
    ]
    going = any(step.ended is None for step in wake.steps)
    reserve = 34 if row.state in (Shown.WAKING, Shown.CONVERTING) and view.fill(row) is not None and going else 0
    while len(texts) > 1 and x + sum(len(text) + 2 for text in texts) + reserve > right:
        texts.pop(0)
    for step, text in zip(wake.steps[-len(texts) :] if texts else [], texts, strict=True):
        if x + len(text) > right:
            break
        glyph, words = text[0], text[1:]
        line.put(x, glyph, palette.state(row.state) if step.ended is None else palette.dim)
        name = len(words.rsplit(" ", 1)[0])
        ink = palette.state(row.state) if step.ended is None else palette.dim
        line.put(x + 1, words[:name], ink, bold=step.ended is None)
        line.put(x + 1 + name, words[name:], palette.text if step.ended is None else palette.dim)
        x += len(text) + 2
    return x


def _progress(line: Line, x: int, right: int, row: ModelRow, view: View) -> None:
    """━━━━━━──── 63%   ~1.1s to go"""
    palette, filled = view.palette, view.fill(row)
    if filled is None or row.since is None:
        if x + 12 <= right:
            line.end(right, "its first: no time known", palette.dim) if right - x > 26 else None
        return
    kind = view.data.expected(key_of_row(row), "wake" if row.state is Shown.WAKING else "boot") or 0.0
    left = kind - (view.now - row.since).total_seconds()
    to_go = f"~{short_duration(left)} to go" if left > 0 else "longer than last time"
    end = right
    if right - x > len(to_go) + 16:
        end = line.end(right, to_go, palette.text) - 3
    end = line.end(end, f"{filled * 100:3.0f}%", palette.text) - 1
    cells = end - x
    if cells < 4:
        return
    done = round(cells * filled)
    line.put(x, "━" * done, palette.state(row.state))
    line.put(x + done, "─" * (cells - done), palette.faint)


def events(
    width: int,
    height: int,
    view: View,
    only: ModelRow | None = None,
    title: bool = True,
    namespace: str | None = None,
) -> list[Line]:
    """The newest Events on Models (of one namespace), newest first."""
    palette = view.palette
    told = view.data.events
    if namespace is not None:
        told = [event for event in told if event.key[0] == namespace]
    if only is not None:
        told = [event for event in told if event.key == key_of_row(only)]
    lines = [Line(width) for _ in range(height)]
    left = (10 if width >= 100 else 9) if title else 1
    if title and lines:
        lines[0].put(3, "EVENTS" if left > 9 else "EVENT", palette.dim)
        if not told:
            lines[0].put(left, "none yet", palette.dim)
    later = view.then.past.later(1, None if only is None else key_of_row(only)) if view.then and height > 2 else ()
    shown = [*later, *reversed(told[-height:])][:height]
    names = max((len(view.name(event.key)) for event in shown), default=0)
    gap = min(names, 30 if width >= 100 else 24) if height > 1 else 0
    for line, event in zip(lines, shown, strict=False):
        _event(line, left, event, view, gap, only is None, event in later)
    return lines


def _event(line: Line, x: int, event: Told, view: View, gap: int, named: bool, later: bool) -> None:
    """`later`: it happened after the moment that is shown."""
    palette = view.palette
    state = Shown.FAILED if event.warning else STATE_OF.get(event.reason)
    dim = palette.faint if later else palette.dim
    right = line.end(line.width - 1, "later", dim) - 2 if later else line.width - 1
    x = line.put(x, view.time(event.at), dim) + 2
    line.put(x, GLYPHS[state] if state else "·", palette.state(state) if state and not later else dim)
    x += 2
    if named:
        name = cut(view.name(event.key), gap or 30)
        line.put(x, name, dim if later else palette.text)
        x += (gap or len(name)) + 2
    line.put(x, cut(event.message, right - x), dim)


def first_words(row: ModelRow, view: View) -> str:
    """What a request would meet now, for who is about to make one."""
    if row.state is Shown.SERVING:
        return f"{row.name} serves: it answers at once."
    if row.state is Shown.SLEEPING:
        return f"{row.name} sleeps: {_sentence(next_step(row, view.snapshot)[1])}"
    return _sentence(why(row, view.snapshot))


def summary(row: ModelRow, view: View, width: int) -> Line:
    """`models › llama-3-1-8b   ● serving for 2.0s   meta-llama/…`"""
    palette = view.palette
    line = Line(width)
    x = line.put(1, "models › ", palette.dim)
    x = line.put(x, view.name(key_of_row(row)), palette.strong, bold=True) + 3
    x = put_state(line, x, row, view, bold=True)
    if row.since is not None:
        x = line.put(x, f" for {short_duration((view.now - row.since).total_seconds())}", palette.text)
    line.put(x + 3, cut(row.model.spec.model_name, width - x - 4), palette.dim)
    return line


def where(row: ModelRow) -> str:
    return ", ".join(place(replica.node, replica.gpus) for replica in row.replicas if replica.gpus)


def action_hints(row: ModelRow | None) -> list[KeyHint]:
    """The keys that act on a model; faint where they do not apply."""
    from tui.actions import ACTION_KEYS, why_not

    return [
        KeyHint(
            key,
            "unpin" if verb == "pin" and row is not None and row.pinned else verb,
            row is not None and not why_not(verb, row),
            f"app.act('{verb}')",
        )
        for key, verb in ACTION_KEYS.items()
    ]
