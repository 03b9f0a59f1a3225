"""The driver's checkpoint API over the simulated GPUs: the part of `cuda.bindings.driver` that the launcher calls.

Select it with `GREENTHREAD_CUDA=localcluster.gpus.cuda`. A checkpointed process holds nothing of a GPU; its restore
takes what it held, and fails where another has it by now. A function whose name stands in the file
$GREENTHREAD_SIM_CUDA_FAULTS, alone in a line, fails once, and the line goes.
"""

from __future__ import annotations

import os
from enum import IntEnum
from pathlib import Path

from localcluster.gpus.ledger import OutOfMemoryError, open_ledger


class CUresult(IntEnum):
    """Those of the driver's that can come up here."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_ILLEGAL_STATE = 401
    CUDA_ERROR_UNKNOWN = 999


class CUprocessState(IntEnum):
    CU_PROCESS_STATE_RUNNING = 0
    CU_PROCESS_STATE_LOCKED = 1
    CU_PROCESS_STATE_CHECKPOINTED = 2


class CUcheckpointLockArgs:
    timeoutMs = 0


_RUNNING, _LOCKED, _CHECKPOINTED = CUprocessState


def cuInit(flags: int) -> tuple[CUresult]:
    return (CUresult.CUDA_SUCCESS,)


def cuDriverGetVersion() -> tuple[CUresult, int]:
    return CUresult.CUDA_SUCCESS, 13000


def cuCheckpointProcessGetState(pid: int) -> tuple[CUresult, CUprocessState]:
    """Not initialized: the process holds nothing of any GPU, and never did."""
    ledger = open_ledger()
    try:
        state = ledger.state(pid)
    finally:
        ledger.close()
    if state is None:
        return CUresult.CUDA_ERROR_NOT_INITIALIZED, _RUNNING
    return CUresult.CUDA_SUCCESS, CUprocessState(state)


def cuCheckpointProcessLock(pid: int, args: CUcheckpointLockArgs | None) -> tuple[CUresult]:
    return _change("cuCheckpointProcessLock", pid, _RUNNING, _LOCKED)


def cuCheckpointProcessCheckpoint(pid: int, args: None) -> tuple[CUresult]:
    return _change("cuCheckpointProcessCheckpoint", pid, _LOCKED, _CHECKPOINTED)


def cuCheckpointProcessRestore(pid: int, args: None) -> tuple[CUresult]:
    return _change("cuCheckpointProcessRestore", pid, _CHECKPOINTED, _LOCKED)


def cuCheckpointProcessUnlock(pid: int, args: None) -> tuple[CUresult]:
    return _change("cuCheckpointProcessUnlock", pid, _LOCKED, _RUNNING)


def _change(name: str, pid: int, old: CUprocessState, new: CUprocessState) -> tuple[CUresult]:
    if _struck(name):
        return (CUresult.CUDA_ERROR_UNKNOWN,)
    ledger = open_ledger()
    try:
        if ledger.state(pid) != old:
            return (CUresult.CUDA_ERROR_ILLEGAL_STATE,)
        ledger.set_state(pid, new, away=new == _CHECKPOINTED)
    except OutOfMemoryError:
        return (CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
    except ProcessLookupError:
        return (CUresult.CUDA_ERROR_NOT_INITIALIZED,)
    finally:
        ledger.close()
    return (CUresult.CUDA_SUCCESS,)


def _struck(name: str) -> bool:
    file = Path(os.environ.get("GREENTHREAD_SIM_CUDA_FAULTS") or os.devnull)
    lines = file.read_text().split() if file.is_file() else []
    if name not in lines:
        return False
    lines.remove(name)
    file.write_text("\n".join(lines))
    return True
