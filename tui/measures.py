"""What the charts show, from what the dashboard saw itself or from Prometheus. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tui.series import Point, Seen

RANGES = {"5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400}
"""Seconds that the charts go back."""
BUCKETS = 60
"""Parts of a range over which percentiles are taken and preemptions counted."""


@dataclass(frozen=True)
class Curve:
    """`colour`: the name of one of the palette's. Points are in order of time; a gap ends a piece."""

    name: str
    colour: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """`unit`: "s", "%", "/s" or "" for a count. `top`: the least that the scale reaches to."""

    title: str
    unit: str
    curves: Sequence[Curve]
    top: float = 0.0
    #: Seconds between two points after which they are not joined.
    gap: float = 15.0


def charts(seen: Seen, since: float, until: float) -> list[Chart]:
    """All charts of a range, from what the dashboard saw itself."""
    width = (until - since) / BUCKETS
    thin = max(int((until - since) / 5 / 240), 1)

    def of(measure: str, name: str, colour: str) -> Curve:
        return Curve(name, colour, _thinned(seen.samples(measure, since, until), thin))

    wakes = seen.wakes(since, until)
    gap = max(15.0, 3.0 * 5 * thin)
    return [
        Chart("WAKE LATENCY", "s", [
            Curve("p50", "waking", buckets(wakes, since, width, lambda took: percentile(took, 0.5))),
            Curve("p99", "deactivating", buckets(wakes, since, width, lambda took: percentile(took, 0.99))),
        ], gap=3 * width),
        Chart("REQUESTS", "/s", [of("requests", "all models", "serving")], gap=gap),
        Chart("QUEUE", "", [of("in_flight", "in flight", "serving"), of("queued", "queued", "pending")], gap=gap),
        Chart("PREEMPTIONS", "", [Curve(f"each {_span(width)}", "deactivating", _counts(
            seen.preemptions(since, until), since, until, width, seen.began))], top=1, gap=1.5 * width),
        Chart("GPU USE", "%", [of("use", "mean", "waking"), of("use_most", "busiest", "text")], top=100, gap=gap),
        Chart("GPU MEMORY", "%", [of("memory", "models", "serving"), of("foreign", "other programs", "dim")],
              top=100, gap=gap),
    ]  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def buckets(
    points: Sequence[Point], since: float, width: float, value: Callable[[Sequence[float]], float]
) -> list[Point]:
    """One point for each part of the time that has any: in its middle, `value` of them."""
    found: dict[int, list[float]] = {}
    for at, each in points:
        found.setdefault(int((at - since) / width), []).append(each)
    return [(since + (number + 0.5) * width, value(values)) for number, values in sorted(found.items())]


def pieces(points: Sequence[Point], gap: float) -> list[list[Point]]:
    """Cut where nothing was known for longer than `gap` seconds."""
    found: list[list[Point]] = []
    for point in points:
        if not found or point[0] - found[-1][-1][0] > gap:
            found.append([])
        found[-1].append(point)
    return found


def ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 5 and 10, by powers of ten: where a scale ends."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= value * 0.9999)


def _counts(times: Sequence[float], since: float, until: float, width: float, began: float | None) -> list[Point]:
    """How many there were in each part of the time that was seen."""
    if began is None:
        return []
    counts = [0] * BUCKETS
    for at in times:
        counts[min(int((at - since) / width), BUCKETS - 1)] += 1
    middles = ((since + (number + 0.5) * width, float(count)) for number, count in enumerate(counts))
    return [point for point in middles if point[0] + width / 2 > began]


def _thinned(points: Sequence[Point], of: int) -> list[Point]:
    """Means of so many points each."""
    if of == 1:
        return list(points)
    groups = (points[at : at + of] for at in range(0, len(points), of))
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _span(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 60 else f"{seconds / 60:.0f}m"
