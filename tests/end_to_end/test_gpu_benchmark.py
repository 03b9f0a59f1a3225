"""Part f of `benchmarks.gpu` on a simulated GPU: two Models swapped by requests, the memory recorded all along."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.gpu import swap
from benchmarks.gpu.nvml import MODULE, Nvml
from benchmarks.gpu.part import Clock

pytestmark = pytest.mark.processes


class LateNvml:
    """The simulated GPU is only made by `greenthread up`."""

    def __getattr__(self, name: str) -> object:
        return getattr(Nvml(), name)


def test_swaps_are_timed_and_the_memory_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODULE, "localcluster.gpus.nvml")
    monkeypatch.setenv("GREENTHREAD_GPU_LEDGER", str(tmp_path / "gpus.sqlite"))
    monkeypatch.setenv("GREENTHREAD_SIM_BOOT_SECONDS", "0.1")
    monkeypatch.setenv("GREENTHREAD_SIM_DISK_GBPS", "200")
    monkeypatch.setattr(swap, "SWAPS", 5)
    row = swap.swap("acme/tiny-1b", tmp_path, LateNvml(), Clock(time.monotonic() + 110), ["--simulate-gpus", "1"])
    assert row["swaps"] == 4
    assert row["first_token"]["n"] == row["wake"]["n"] == row["preempt_and_claim"]["n"] == 4
    assert row["first_token"]["p50_ms"] > row["wake"]["p50_ms"] > 0
    assert row["same_answer"]
    assert row["engine"][:2] == ["vllm", "serve"]
    timeline = row["timeline"]
    assert set(timeline["mib"]) == {"first", "second"}
    assert "error" not in timeline
    assert max(timeline["mib"]["first"]) > 50_000
    assert max(timeline["mib"]["second"]) > 50_000
    assert {len(column) for column in timeline["mib"].values()} == {len(timeline["t_s"])}
    # never both at once: the card holds one
    assert max(timeline["device_used_mib"]) < 96 * 1024
    assert [mark["what"] for mark in timeline["marks"]][:3] == ["ready", "ask first", "answer first"]
