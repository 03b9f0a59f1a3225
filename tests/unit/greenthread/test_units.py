"""Durations and quantities, as users write them and as they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenthread.clock import format_time, parse_time
from greenthread.units import (
    format_duration,
    human_bytes,
    parse_duration,
    parse_quantity,
    short_bytes,
    short_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("0s", 0), ("0", 0), ("1.5s", 1.5), ("2m0.5s", 120.5)],
)
def test_reads_go_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 m", "5 minutes", "-1s", "1d", "s", "5m ", "１s", "1s\n"])
def test_refuses_other_durations_with_advice(text):
    with pytest.raises(ValueError, match="write it like"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**9))
def test_durations_survive_writing_and_reading(millis):
    assert parse_duration(format_duration(millis / 1000)) == pytest.approx(millis / 1000)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.54, "540ms"), (1.84, "1.8s"), (41, "41s"), (192, "3m12s"), (7440, "2h04m"), (0, "0ms"), (266400, "3d02h")],
)
def test_durations_for_people(seconds, text):
    assert short_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("10Gi", 10 * 2**30), ("80G", 80 * 10**9), ("1.5Gi", 3 * 2**29), ("1024", 1024), ("1e3", 1000), ("100m", 1)],
)
def test_reads_quantities(text, count):
    assert parse_quantity(text) == count


@pytest.mark.parametrize("text", ["", "10 Gi", "10GB", "-1Gi", "ten"])
def test_refuses_other_quantities_with_advice(text):
    with pytest.raises(ValueError, match="write it like"):
        parse_quantity(text)


def test_sizes_for_people():
    assert human_bytes(94_701_000_000) == "88.2 GiB"
    assert short_bytes(94_701_000_000) == "88.2G"
    assert human_bytes(0) == "0 B"


@pytest.mark.parametrize("text", ["2026-11-22T14:03:22Z", "2026-11-22T14:03:22.123456Z", "2026-11-22T15:03:22+01:00"])
def test_times_survive_in_utc(text):
    moment = parse_time(text)
    assert parse_time(format_time(moment)) == moment
    assert moment.hour == 14


@pytest.mark.parametrize("text", ["", "2026-11-22", "2026-11-22T14:03:22", "yesterday", "2026-13-22T14:03:22Z"])
def test_refuses_other_times(text):
    with pytest.raises(ValueError):
        parse_time(text)
