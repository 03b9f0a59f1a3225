"""The simulated driver's checkpoints: states, and where a process's memory is meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster.gpus import cuda
from localcluster.gpus.cuda import CUresult
from localcluster.gpus.ledger import ENVIRONMENT, GIB, Ledger, create

OK = (CUresult.CUDA_SUCCESS,)
ILLEGAL = (CUresult.CUDA_ERROR_ILLEGAL_STATE,)
ME = os.getpid()


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    file = tmp_path / "gpus"
    monkeypatch.setenv(ENVIRONMENT, str(file))
    ledger = create(file, 2, 10 * GIB)
    yield ledger
    ledger.close()


def state() -> str | None:
    error, found = cuda.cuCheckpointProcessGetState(ME)
    return found.name.removeprefix("CU_PROCESS_STATE_") if error == CUresult.CUDA_SUCCESS else None


def test_who_never_held_memory_uses_no_cuda_and_who_ever_did_does(ledger: Ledger) -> None:
    assert state() is None
    ledger.allocate(0, GIB)
    ledger.free(0)
    assert state() == "RUNNING"


def test_checkpointed_it_holds_nothing_and_restored_what_it_held(ledger: Ledger) -> None:
    ledger.allocate(0, 6 * GIB, "weights")
    ledger.allocate(1, GIB, "context")
    assert cuda.cuCheckpointProcessCheckpoint(ME, None) == ILLEGAL
    assert cuda.cuCheckpointProcessLock(ME, None) == OK
    assert (state(), ledger.used_bytes(0)) == ("LOCKED", 6 * GIB)
    assert cuda.cuCheckpointProcessCheckpoint(ME, None) == OK
    assert (state(), ledger.used_bytes(0), ledger.used_bytes(1)) == ("CHECKPOINTED", 0, 0)
    assert cuda.cuCheckpointProcessUnlock(ME, None) == ILLEGAL
    assert cuda.cuCheckpointProcessRestore(ME, None) == OK
    assert cuda.cuCheckpointProcessUnlock(ME, None) == OK
    assert (state(), ledger.held_bytes(0, "weights"), ledger.held_bytes(1, "context")) == ("RUNNING", 6 * GIB, GIB)


def test_what_another_took_meanwhile_is_not_restored(ledger: Ledger) -> None:
    ledger.allocate(0, 6 * GIB)
    cuda.cuCheckpointProcessLock(ME, None)
    cuda.cuCheckpointProcessCheckpoint(ME, None)
    other = subprocess.Popen(
        [sys.executable, "-c", "from localcluster.gpus.ledger import open_ledger, GIB\n"
         "open_ledger().allocate(0, 5 * GIB); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout
    other.stdout.readline()
    assert cuda.cuCheckpointProcessRestore(ME, None) == (CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
    assert (state(), ledger.used_bytes(0)) == ("CHECKPOINTED", 5 * GIB)
    other.communicate(b"\n", timeout=30)
    assert cuda.cuCheckpointProcessRestore(ME, None) == OK
    assert ledger.used_bytes(0) == 6 * GIB


def test_a_function_named_in_the_file_of_faults_fails_once(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "faults"
    file.write_text("cuCheckpointProcessUnlock\ncuCheckpointProcessLock")
    monkeypatch.setenv("GREENTHREAD_SIM_CUDA_FAULTS", str(file))
    ledger.allocate(0, GIB)
    assert cuda.cuCheckpointProcessLock(ME, None) == (CUresult.CUDA_ERROR_UNKNOWN,)
    assert cuda.cuCheckpointProcessLock(ME, None) == OK
    assert file.read_text() == "cuCheckpointProcessUnlock"
