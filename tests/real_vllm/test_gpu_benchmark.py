"""Part e of `benchmarks.gpu` with a real vLLM, as far as it goes on a CPU: a model made on the spot, its boot, its
first token, sleeps and wakes without memory, the same answer after each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.gpu.engine import Cycles, Engine, Vllm, Way, make_model
from benchmarks.gpu.launched import Failed
from tests.testbeds.programs import Missing, need_vllm, skip_or_fail
from tests.testbeds.vllm import BIN

pytestmark = [pytest.mark.real, pytest.mark.processes, pytest.mark.timeout(600)]


class NoGpu:
    """In the place of NVML."""

    def of(self, pids: list[int]) -> int:
        assert len(pids) > 1  # the launcher and what runs under it
        return 0


@pytest.fixture(scope="module")
def vllm() -> Vllm:
    try:
        program = need_vllm()
    except Missing as missing:
        skip_or_fail(missing)
    return Vllm((sys.executable, str(BIN / "start.py")), str(program.with_name("python")))


def test_a_model_made_here_answers_the_same_after_every_wake(vllm: Vllm, tmp_path: Path) -> None:
    make_model(vllm, "10M", tmp_path / "models" / "10M")
    way = Way("no sleep mode", (), 1)
    with Engine(vllm, tmp_path / "models" / "10M", way, tmp_path, tmp_path / "log") as engine:
        engine.ready(420)
        seconds, answer = engine.ask()
        assert 0 < seconds < 60
        assert answer
        with pytest.raises(Failed, match="checkpoint: CUDA's driver cannot be called"):
            engine.launcher("checkpoint")
        cycles = Cycles(engine, way, NoGpu(), answer)
        first = cycles.first()
        assert set(first) == {"first_sleep_s", "first_wake_s", "first_wake_to_first_token_s"}
        for _ in range(8):
            cycles.once()
        row = cycles.row()
        assert row["cycles"] == 8
        assert row["same_answer"]
        assert row["wake_to_first_token"]["p50_ms"] > row["wake"]["p50_ms"] > 0
        assert row["drift"]["host_rss_bytes"] is not None
        with pytest.raises(Failed, match=r"/sleep.* with 400"):
            engine.control("/sleep?level=9")


def test_an_engine_that_ends_is_told_with_its_log(vllm: Vllm, tmp_path: Path) -> None:
    nothing = tmp_path / "no-model"
    with (
        Engine(vllm, nothing, Way("", (), 1), tmp_path, tmp_path / "log") as engine,
        pytest.raises(Failed, match="vllm ended with"),
    ):
        engine.ready(300)
