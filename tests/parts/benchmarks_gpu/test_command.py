"""`python -m benchmarks.gpu`: skips that say why, every case kept, runs that go on where the last one stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__
from benchmarks.gpu.checkpoint import ASLEEP
from benchmarks.gpu.part import Part, read, write
from tests.parts.benchmarks_gpu.fake_gpu import CONTEXT, FAULT, FOLDER

ROOT = Path(__file__).parents[3]
FAKE = "tests.parts.benchmarks_gpu.fake_gpu"
SMALL = ("--shrink", "20000", "--host-memory", "0.2")

pytestmark = pytest.mark.processes


class Run:
    """One run of the command on the fake GPU."""

    def __init__(self, *arguments: str, folder: Path | None = None, **env: str) -> None:
        given = os.environ | {"GREENTHREAD_BENCH_GPU": FAKE, "GREENTHREAD_NVML": FAKE, "GREENTHREAD_CUDA": FAKE} | env
        given.pop(FOLDER, None)
        if folder is not None:
            folder.mkdir(exist_ok=True)
            given[FOLDER] = str(folder)
        command = [sys.executable, "-m", "benchmarks.gpu", "--json", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
        self.status, self.said, self.progress = done.returncode, done.stdout, done.stderr
        self.result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])

    def case(self, part: str, name: str) -> dict[str, Any]:
        row: dict[str, Any] = self.result["parts"][part]["cases"][name]
        return row

    def target(self, words: str) -> dict[str, Any]:
        return next(target for target in self.result["targets"] if words in target["name"])


def test_without_a_gpu_every_part_is_skipped_and_says_why() -> None:
    run = Run()
    assert run.status == 0
    assert "no NVIDIA GPU answers" in run.result["gpu"]["missing"]
    assert {name: sorted(part) for name, part in run.result["parts"].items()} == {
        name: ["part", "skipped"] for name in "abcdef"
    }
    assert all("no NVIDIA GPU answers" in part["skipped"] for part in run.result["parts"].values())
    assert all(target["measured"] is None and target["met"] is None for target in run.result["targets"])


def test_what_torch_and_cuda_alone_can_measure_is_measured_once(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "gpu"
    arguments = ("--out", str(out), "--parts", "a,b,c", *SMALL)
    run = Run(*arguments, folder=folder)
    assert run.status == 0, run.said
    assert run.result["gpu"]["name"] == "Fake GPU"
    assert all(part["done"] for part in run.result["parts"].values())
    rows = [(name, row) for part in run.result["parts"].values() for name, row in part["cases"].items()]
    assert len(rows) == 23 + 6 + 6
    assert not [name for name, row in rows if "left_out" in row or "error" in row or "cut" in row]

    assert run.case("a", "64 MiB x 4")["h2d_gb_s"] > 0
    memory = run.case("b", "13 GB")
    assert memory["first_sleep"]["copied_gb"] == memory["weights_gb"] > 0
    assert memory["sleep_copied_bytes"] == 0
    assert memory["same_content"]
    assert memory["changed_bit_copied_bytes"] > 0
    assert memory["changed_bit_came_back"]
    assert memory["asleep_process_bytes"] == CONTEXT
    assert memory["kv_cache_gb"] > 0
    assert memory["wake"]["p50_ms"] <= memory["wake"]["p99_ms"]
    assert set(run.case("b", "14 GB, by streams")["wakes"]) == {"1", "2", "4", "8", "16"}
    for name, row in run.result["parts"]["c"]["cases"].items():
        assert row["asleep_bytes"] == row["asleep_device_bytes"] == 0, name
        assert row["restored_bytes"] == row["before_bytes"] > 0, name
        assert row["replays_right"], name
        assert len(row["wake_s"]) == (3 if name == ASLEEP else 0)

    assert run.target("bytes by NVML after the checkpoint") | {"measured": 0, "met": True} == run.target(
        "bytes by NVML after the checkpoint"
    )
    assert run.case("a", "ceiling, host memory of the driver")["d2h_gb_s"] > 0
    share = memory["wake_gb_s"] / run.case("a", "ceiling")["h2d_gb_s"]
    assert run.target("share of pinned H2D")["measured"] <= round(share, 3)
    assert run.target("wake from disk")["met"] is None

    again = Run(*arguments, folder=folder)
    assert again.result["parts"] == run.result["parts"]
    assert again.progress == ""

    kept = json.loads((out / "c.json").read_text())
    del kept["cases"]["1 GB"], kept["done"]
    (out / "c.json").write_text(json.dumps(kept))
    Run(*arguments, folder=folder)
    assert json.loads((out / "c.json").read_text())["cases"].keys() == run.result["parts"]["c"]["cases"].keys()
    assert (out / "c.log").read_text().count("c: 1 GB") == 2
    assert (out / "c.log").read_text().count("c: 4 GB") == 1


def test_a_wake_that_changes_content_misses_the_target(tmp_path: Path) -> None:
    run = Run("--parts", "d", "--disk", str(tmp_path), *SMALL, folder=tmp_path / "gpu", **{FAULT: "content"})
    if "page cache" in run.result["parts"]["d"].get("skipped", ""):
        pytest.skip(run.result["parts"]["d"]["skipped"])
    assert run.case("d", "raw")["read_gb_s"] > 0
    assert run.case("d", "wake")["wake_gb_s"] > 0
    assert run.case("d", "wake")["same_content"] is False
    assert run.target("changed content") == {
        "name": "wakes and restores that changed content", "target": "0", "measured": 1, "met": False
    }  # fmt: skip


def test_what_the_driver_refuses_is_told_and_tried_again(tmp_path: Path) -> None:
    arguments = ("--out", str(tmp_path / "out"), "--parts", "c", *SMALL)
    run = Run(*arguments, folder=tmp_path / "gpu", **{FAULT: "checkpoint"})
    assert run.status == 1
    assert "CUDA_ERROR_ILLEGAL_STATE" in run.case("c", "0 GB")["error"]
    assert run.target("after the checkpoint")["measured"] is None
    later = Run(*arguments, folder=tmp_path / "gpu")
    assert later.status == 0
    assert later.case("c", "0 GB")["asleep_bytes"] == 0


def test_a_part_that_hangs_is_ended_and_what_it_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu").mkdir()
    for name in ("GREENTHREAD_BENCH_GPU", "GREENTHREAD_NVML"):
        monkeypatch.setenv(name, FAKE)
    monkeypatch.setenv(FOLDER, str(tmp_path / "gpu"))
    monkeypatch.setenv(FAULT, "hang")
    monkeypatch.setattr(__main__, "PATIENCE", -22.0)
    write(tmp_path / "a.json", {"part": "a", "cases": {"1 MiB x 1": {"h2d_gb_s": 7.0}}, "cut": True})
    part = Part("a", "link", "", True, 25.0)  # its first case wants 15 s, of which it gets 3
    given = __main__.parse(["--parts", "a", *SMALL])
    result = __main__.measured(part, tmp_path, given, sys.executable)
    assert result["cut"] is True
    assert "did not end by itself" in result["stopped"]
    assert result["cases"] == {"1 MiB x 1": {"h2d_gb_s": 7.0}}
    assert "done" not in read(tmp_path / "a.json")
    processes = [file for file in (tmp_path / "gpu").iterdir() if file.name.isdigit()]
    assert processes
    assert not [file for file in processes if Path(f"/proc/{file.name}").exists()]


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--parts", "a,x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no part 'x': a, b, c, d, e, f" in done.stderr
