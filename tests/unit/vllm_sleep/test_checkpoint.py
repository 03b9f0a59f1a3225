"""What happens to an engine's processes when the driver refuses a call half way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.vllm_sleep import fake_driver as driver
from vllm_sleep.checkpoint import Checkpointer, CheckpointError

DRIVER = driver.__name__
FIRST, SECOND = 11, 12
BOTH = [FIRST, SECOND]


@pytest.fixture
def checkpointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpointer:
    monkeypatch.setenv("FAKE_DRIVER", str(tmp_path))
    driver.put(FIRST)
    driver.put(SECOND)
    return Checkpointer(DRIVER)


def states() -> list[str]:
    return [driver.state(pid) for pid in BOTH]


RUNNING, AWAY = ["RUNNING"] * 2, ["CHECKPOINTED"] * 2


def test_there_and_back(checkpointer: Checkpointer) -> None:
    for _ in range(2):
        checkpointer.checkpoint(BOTH)
        assert states() == AWAY
        checkpointer.restore(BOTH)
        assert states() == RUNNING


def test_all_are_locked_before_the_first_goes(checkpointer: Checkpointer) -> None:
    """Ranks wait for each other: one that still runs could wait for one that is gone."""
    checkpointer.checkpoint(BOTH)
    began = [line.split()[1] for line in driver.calls() if line.startswith("begin")]
    assert began == ["cuCheckpointProcessLock"] * 2 + ["cuCheckpointProcessCheckpoint"] * 2


def test_only_who_uses_cuda_is_concerned(checkpointer: Checkpointer) -> None:
    assert checkpointer.processes([7, SECOND, 8, FIRST]) == [SECOND, FIRST]


@pytest.mark.parametrize("pid", BOTH)
@pytest.mark.parametrize("result", ["CUDA_ERROR_NOT_READY", "CUDA_ERROR_UNKNOWN"])
def test_when_one_cannot_be_locked_everybody_runs_on(checkpointer: Checkpointer, pid: int, result: str) -> None:
    driver.fail("cuCheckpointProcessLock", pid, result=result)
    with pytest.raises(CheckpointError, match=f"cuCheckpointProcessLock: {result}") as caught:
        checkpointer.checkpoint(BOTH)
    assert not caught.value.lost
    assert states() == RUNNING
    checkpointer.checkpoint(BOTH)
    assert states() == AWAY


@pytest.mark.parametrize("pid", BOTH)
def test_when_one_of_two_cannot_be_checkpointed_both_run_again(checkpointer: Checkpointer, pid: int) -> None:
    driver.fail("cuCheckpointProcessCheckpoint", pid)
    with pytest.raises(CheckpointError, match="cuCheckpointProcessCheckpoint: CUDA_ERROR_UNKNOWN") as caught:
        checkpointer.checkpoint(BOTH)
    assert not caught.value.lost
    assert states() == RUNNING
    checkpointer.checkpoint(BOTH)
    assert states() == AWAY


@pytest.mark.parametrize("back", ["cuCheckpointProcessRestore", "cuCheckpointProcessUnlock"])
def test_when_going_back_fails_too_they_are_lost_and_both_reasons_told(checkpointer: Checkpointer, back: str) -> None:
    driver.fail("cuCheckpointProcessCheckpoint", SECOND)
    driver.fail(back, result="CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(CheckpointError) as caught:
        checkpointer.checkpoint(BOTH)
    assert caught.value.lost
    assert "cuCheckpointProcessCheckpoint: CUDA_ERROR_UNKNOWN" in str(caught.value)
    assert f"{back}: CUDA_ERROR_OUT_OF_MEMORY" in str(caught.value)


def test_a_process_that_the_driver_calls_failed_is_lost(checkpointer: Checkpointer) -> None:
    driver.fail("cuCheckpointProcessCheckpoint", SECOND, state="FAILED")
    with pytest.raises(CheckpointError) as caught:
        checkpointer.checkpoint(BOTH)
    assert caught.value.lost
    with pytest.raises(CheckpointError) as caught:
        checkpointer.restore(BOTH)
    assert caught.value.lost


@pytest.mark.parametrize("call", ["cuCheckpointProcessRestore", "cuCheckpointProcessUnlock"])
@pytest.mark.parametrize("pid", BOTH)
def test_a_restore_that_fails_loses_them(checkpointer: Checkpointer, call: str, pid: int) -> None:
    checkpointer.checkpoint(BOTH)
    driver.fail(call, pid)
    with pytest.raises(CheckpointError, match=f"{call}: CUDA_ERROR_UNKNOWN") as caught:
        checkpointer.restore(BOTH)
    assert caught.value.lost


def test_who_was_never_checkpointed_is_left_alone(checkpointer: Checkpointer) -> None:
    checkpointer.restore(BOTH)
    assert states() == RUNNING
    assert driver.calls() == []


def test_who_was_left_locked_is_unlocked(checkpointer: Checkpointer) -> None:
    driver.put(FIRST, "LOCKED")
    driver.put(SECOND, "CHECKPOINTED")
    checkpointer.restore(BOTH)
    assert states() == RUNNING


def test_a_second_checkpoint_changes_nothing(checkpointer: Checkpointer) -> None:
    checkpointer.checkpoint(BOTH)
    with pytest.raises(CheckpointError) as caught:
        checkpointer.checkpoint(BOTH)
    assert not caught.value.lost
    assert states() == AWAY
    checkpointer.restore(BOTH)
    assert states() == RUNNING


def test_a_process_that_ended_is_lost_when_it_should_come_back(checkpointer: Checkpointer) -> None:
    checkpointer.checkpoint(BOTH)
    (driver.folder() / str(SECOND)).unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpointer.restore(BOTH)
    assert caught.value.lost


@pytest.mark.parametrize(("version", "name"), [("12040", "12.4"), ("11080", "11.8"), ("12070", "12.7")])
def test_an_old_driver_is_named_with_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, name: str
) -> None:
    monkeypatch.setenv("FAKE_DRIVER", str(tmp_path))
    (tmp_path / "version").write_text(version)
    with pytest.raises(CheckpointError, match=f"too old .it speaks CUDA {name}.: 570 or newer is needed"):
        Checkpointer(DRIVER)


def test_bindings_without_the_calls_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DRIVER", str(tmp_path))
    monkeypatch.delattr(driver, "cuCheckpointProcessLock")
    with pytest.raises(CheckpointError, match="too old"):
        Checkpointer(DRIVER)


def test_a_machine_without_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DRIVER", str(tmp_path))
    driver.fail("cuInit", result="CUDA_ERROR_NO_DEVICE")
    with pytest.raises(CheckpointError, match="cuInit: CUDA_ERROR_NO_DEVICE"):
        Checkpointer(DRIVER)


def test_a_machine_without_the_bindings_says_so() -> None:
    with pytest.raises(CheckpointError, match="CUDA's driver cannot be called: No module named 'no_such_driver'"):
        Checkpointer("no_such_driver")
