"""What charts are drawn from: samples, percentiles, counts, and where their scales end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenthread.snapshot import build
from tui.measures import BUCKETS, RANGES, Chart, buckets, ceiling, charts, percentile, pieces
from tui.plot import curve
from tui.series import SAMPLES_KEPT, WAKES_KEPT, Seen

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
GIB = 2**30
EMPTY = build([], [], [], NOW)


def seen(minutes: int = 10) -> Seen:
    """A request a second and a wake of 1 s every 30 s, of which each fifth takes 9 s."""
    found = Seen()
    gpu = {
        "metadata": {"name": "n-0"},
        "status": {"node": "n", "index": 0, "totalMemoryBytes": 100 * GIB, "foreignMemoryBytes": 10 * GIB,
                   "stats": {"utilizationPercent": 40},
                   "occupants": [{"namespace": "p", "podName": "m-0", "modelName": "m", "state": "serving",
                                  "reservedMemoryBytes": 60 * GIB}]},
    }  # fmt: skip
    for at in range(-minutes * 60, 1, 5):
        found.add(build([], [gpu], [], NOW + timedelta(seconds=at)), 1.0)
    for number, at in enumerate(range(-minutes * 60, 0, 30)):
        record = {"kind": "wake", "total": 9.0 if number % 5 == 0 else 1.0}
        found.tell(f"w{number}", NOW + timedelta(seconds=at), "Woke", record)
    found.tell("x", NOW - timedelta(seconds=10), "Preempted", {"kind": "sleep", "total": 1.0})
    return found


def of(name: str, found: list[Chart]) -> Chart:
    return next(chart for chart in found if chart.title == name)


@pytest.mark.parametrize("span", RANGES)
def test_charts_of_every_range(span: str) -> None:
    until = NOW.timestamp()
    found = charts(seen(), until - RANGES[span], until)
    memory = {curve.name: curve.points[-1][1] for curve in of("GPU MEMORY", found).curves}
    assert memory == {"models": pytest.approx(60), "other programs": pytest.approx(10)}
    assert of("GPU USE", found).curves[0].points[-1][1] == 40
    assert {value for _, value in of("REQUESTS", found).curves[0].points} == {1.0}
    assert sum(value for _, value in of("PREEMPTIONS", found).curves[0].points) == 1
    p50, p99 = of("WAKE LATENCY", found).curves
    assert {value for _, value in p99.points} <= {1.0, 9.0}
    if span in ("6h", "24h"):
        assert p50.points[-1][1] == 1.0
        assert p99.points[-1][1] == 9.0
    for chart in found:
        for each in chart.curves:
            assert all(until - RANGES[span] <= at <= until for at, _ in each.points)
            assert len(each.points) <= 300


def test_nothing_seen_is_nothing_drawn() -> None:
    until = NOW.timestamp()
    for chart in charts(Seen(), until - 300, until):
        assert not any(each.points for each in chart.curves)


def test_what_was_seen_is_bounded() -> None:
    found = Seen()
    for number in range(WAKES_KEPT + 3000):
        found.tell(str(number), NOW, "Preempted", None)
        found.tell(str(number), NOW, "Preempted", None)  # a list tells again what a watch told
    assert WAKES_KEPT <= len(found.preemptions(0, NOW.timestamp() + 1)) <= WAKES_KEPT + 1000
    for number in range(SAMPLES_KEPT + 2000):
        found.add(build([], [], [], NOW + timedelta(seconds=5 * number)), 0.0)
    assert SAMPLES_KEPT <= len(found.samples("requests", 0, 1e12)) <= SAMPLES_KEPT + 720


def test_what_was_seen_before_comes_before() -> None:
    before, after = Seen(), Seen()
    for at in (0, 5, 10, 15):
        before.add(build([], [], [], NOW + timedelta(seconds=at)), at)
    for at in (12, 17):
        after.add(build([], [], [], NOW + timedelta(seconds=at)), at)
    for each in (before, after):  # an Event that is still there is told again
        each.tell("a", NOW, "Preempted", None)
        each.tell("b", NOW, "Woke", {"kind": "wake", "total": 1.0})
    before.tell("c", NOW - timedelta(seconds=9), "Woke", {"kind": "wake", "total": 2.0})
    after.follow(before)
    assert [took for _, took in after.wakes(0, 1e12)] == [2.0, 1.0]
    assert [value for _, value in after.samples("requests", 0, 1e12)] == [0, 5, 10, 12, 17]
    assert len(after.preemptions(0, 1e12)) == 1


def test_percentiles_and_buckets() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert buckets([(0, 1.0), (1, 3.0), (25, 5.0)], 0, 10, max) == [(5, 3.0), (25, 5.0)]
    assert pieces([(0, 1.0), (5, 1.0), (30, 1.0)], 15) == [[(0, 1.0), (5, 1.0)], [(30, 1.0)]]
    assert BUCKETS == 60


@given(st.floats(1e-6, 1e9))
def test_a_scale_ends_above_what_it_shows_and_not_far(value: float) -> None:
    assert value * 0.999 <= ceiling(value) <= value * 2.6


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=20), st.integers(2, 80), st.integers(2, 12))
def test_a_curve_has_the_size_it_was_given(points: list[tuple[float, float]], width: int, height: int) -> None:
    rows = curve([sorted(points)], width, height, (0, 100), (0, 50))
    assert len(rows) == height
    assert all(len(row) == width for row in rows)
    assert all(sign == " " or 0x2800 <= ord(sign) < 0x2900 for row in rows for sign in row)
    assert not points or any(row.strip() for row in rows)
