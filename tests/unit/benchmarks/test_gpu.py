"""How a part keeps its time and its results, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import report
from benchmarks.gpu.checkpoint import ASLEEP
from benchmarks.gpu.make_model import SHAPES
from benchmarks.gpu.memory import sizes
from benchmarks.gpu.part import Board, Case, Clock, read
from benchmarks.gpu.stats import drift, most, rate, spread


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def case(self, name: str, about: float, **row: Any) -> Case:
        def measure() -> dict[str, Any]:
            self.now += about
            return row

        return Case(name, about, measure)


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_case_that_does_not_fit_waits_for_the_next_run(tmp_path: Path, time: Time) -> None:
    path = tmp_path / "b.json"
    cases = [time.case("small", 10), time.case("large", 100), time.case("other", 15)]
    Board(path, "b").run(cases, Clock(30, time))
    kept = read(path)
    assert list(kept["cases"]) == ["small", "other"]
    assert kept["cut"] is True
    assert "done" not in kept
    board = Board(path, "b")
    board.load()
    board.run(cases, Clock(time.now + 200, time))
    assert list(read(path)["cases"]) == ["small", "other", "large"]
    assert read(path)["done"] is True
    assert time.now == 125  # none was measured twice


def test_a_case_is_kept_though_the_next_one_kills_the_process(tmp_path: Path, time: Time) -> None:
    def die() -> dict[str, Any]:
        raise SystemExit(9)

    with pytest.raises(SystemExit):
        Board(tmp_path / "b.json", "b").run([time.case("one", 1, ms=5), Case("two", 1, die)], Clock(30, time))
    kept = read(tmp_path / "b.json")
    assert kept["cases"]["one"]["ms"] == 5
    assert kept["cut"] is True


def test_a_failed_case_is_told_and_measured_again(tmp_path: Path, time: Time) -> None:
    path = tmp_path / "b.json"

    def fail() -> dict[str, Any]:
        raise RuntimeError("no luck")

    Board(path, "b").run([Case("one", 1, fail), time.case("two", 1)], Clock(30, time))
    assert read(path)["cases"]["one"]["error"] == "RuntimeError: no luck"
    board = Board(path, "b")
    board.load()
    assert list(board.cases) == ["two"]


def test_a_part_that_was_cut_in_the_middle_of_a_case_is_not_done(tmp_path: Path, time: Time) -> None:
    Board(tmp_path / "b.json", "b").run([time.case("one", 1, cut=True)], Clock(30, time))
    assert read(tmp_path / "b.json")["cut"] is True
    board = Board(tmp_path / "b.json", "b")
    board.load()
    assert not board.cases


def test_numbers() -> None:
    assert spread([]) == {"n": 0}
    assert spread([0.002]) == {"p50_ms": 2.0, "p99_ms": 2.0, "n": 1}
    assert spread([0.001 * n for n in range(1, 102)]) == {"p50_ms": 51.0, "p99_ms": 100.0, "n": 101}
    assert rate(13e9, 0.25) == 52.0


def test_whom_nvml_did_not_see_awake_it_does_not_prove_asleep() -> None:
    assert most([0, 5, 3], 100) == 5
    assert most([0, 0], 0) is None
    assert most([0, 0], None) is None
    assert most([None, None], 100) is None


def test_drift_is_of_the_last_quarter_over_the_second_one() -> None:
    assert drift([1.0] * 7) is None
    assert drift([9.0] * 25 + [1.0] * 75) == 0.0  # warming up is none
    assert drift([1.0] * 75 + [1.2] * 25) == 0.2
    assert drift([0.0] * 8) == 0.0


def test_allocations_are_as_an_engine_makes_them() -> None:
    found = sizes(14 * 10**9)
    assert sum(found) == 14 * 10**9
    assert found == sizes(14 * 10**9)
    usual = [size for size in found if 20e6 <= size <= 500e6]
    assert 0.75 < len(usual) / len(found) < 1
    assert max(found) <= 500e6


@pytest.mark.parametrize(("name", "gigabytes"), [("1B", 1.96), ("8B", 15.7), ("20B-class", 13.1)])
def test_models_are_of_the_size_that_they_are_called_by(name: str, gigabytes: float) -> None:
    assert SHAPES[name].bytes / 1e9 == pytest.approx(gigabytes, abs=0.1)


PARTS: dict[str, Any] = {
    "a": {"cases": {"ceiling": {"h2d_gb_s": 54.0}, "ceiling, host memory of the driver": {"h2d_gb_s": 55.0}}},
    "b": {
        "cases": {
            "13 GB": {"wake_gb_s": 52.0, "wake": {"p50_ms": 250.0}, "sleep": {"n": 9, "p99_ms": 20.0}},
            "80 GB": {"wake_gb_s": 50.0, "sleep": {"n": 9, "p99_ms": 51.0}, "same_content": True},
            "14 GB, pages of 4 KiB": {"wake_gb_s": 1.0, "sleep": {"n": 9, "p99_ms": 900.0}},
        }
    },
    "c": {"cases": {ASLEEP: {"asleep_bytes": 0, "replays_right": True}, "0 GB": {"asleep_bytes": 7}}},
    "d": {"cases": {"raw": {"read_gb_s": 10.0}, "wake": {"wake_gb_s": 8.0}}},
    "e": {
        "cases": {
            "1B, ours": {"asleep_bytes": 0, "drift": {"wake": 0.01, "host_rss_bytes": -0.06}},
            "1B, cumem level 1": {"asleep_bytes": 900, "drift": {"wake": 3.0}},
        }
    },
}


def test_targets_are_judged_by_the_products_own_settings_and_the_worst_case() -> None:
    found = {target["name"]: (target["measured"], target["met"]) for target in report.targets(PARTS)}
    assert found == {
        "wake, share of pinned H2D": (0.909, True),
        "wake of 13 GB, ms": (250.0, True),
        "sleep but the first, p99 ms": (51.0, False),
        "bytes by NVML after the checkpoint": (0, True),
        "bytes by NVML of vllm serve asleep": (0, True),
        "wake from disk, share of raw read": (0.8, False),
        "drift over the cycles": (0.06, False),
        "wakes and restores that changed content": (0, True),
    }


def test_nothing_is_estimated_from_half_a_measurement() -> None:
    half = {"a": PARTS["a"], "d": {"cases": {"wake": {"wake_gb_s": 8.0}}}, "b": {"cases": {"13 GB": {"error": "no"}}}}
    assert all(target["measured"] is None and target["met"] is None for target in report.targets(half))


def test_the_table_tells_what_was_not_measured() -> None:
    swap = {"cases": {"ours": {"timeline": {"t_s": [0.125] * 900}}}}
    parts = PARTS | {"f": {"skipped": "there is no `vllm` on the PATH"} | swap}
    text = report.text({"name": "H200", "driver": "580", "memory_gib": 139.8}, parts, report.targets({}))
    assert "not measured: there is no `vllm` on the PATH" in text
    assert text.count("not measured") == 9
    assert "t_s [900 values]" in text
    assert "0.125" not in text
