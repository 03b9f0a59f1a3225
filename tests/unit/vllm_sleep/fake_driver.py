"""The driver's checkpoint API, played: each process's state is a file in $FAKE_DRIVER, so that all processes see it.

The files there: `PID` its state (without one it is no CUDA process), `version` what the driver speaks, `faults` which
calls fail, `calls` what was called. Select it with GREENTHREAD_CUDA=tests.unit.vllm_sleep.fake_driver.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_STATE = 401
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_UNKNOWN = 999


class CUprocessState(IntEnum):
    CU_PROCESS_STATE_RUNNING = 0
    CU_PROCESS_STATE_LOCKED = 1
    CU_PROCESS_STATE_CHECKPOINTED = 2
    CU_PROCESS_STATE_FAILED = 3


class CUcheckpointLockArgs:
    timeoutMs = 0


def folder() -> Path:
    return Path(os.environ["FAKE_DRIVER"])


# What tests set and ask


def fail(call: str, pid: int | None = None, **what: Any) -> None:
    """The next such call (of this process) fails: `result`, by default CUDA_ERROR_UNKNOWN; `state`: what it leaves the
    process in; `seconds`: it only takes long; `times`: how often, default once."""
    with _locked():
        (folder() / "faults").write_text(json.dumps([*_faults(), {"call": call, "pid": pid, **what}]))


def put(pid: int, state: str = "RUNNING") -> None:
    (folder() / str(pid)).write_text(state)


def state(pid: int) -> str:
    return (folder() / str(pid)).read_text().strip()


def calls() -> list[str]:
    """`begin NAME PID` and `end NAME PID`, in order."""
    file = folder() / "calls"
    return file.read_text().splitlines() if file.exists() else []


# cuda.bindings.driver


def cuInit(flags: int) -> tuple[CUresult]:
    assert flags == 0
    return (_struck("cuInit", 0) or CUresult.CUDA_SUCCESS,)


def cuDriverGetVersion() -> tuple[CUresult, int]:
    file = folder() / "version"
    return CUresult.CUDA_SUCCESS, int(file.read_text()) if file.exists() else 12080


def cuCheckpointProcessGetState(pid: int) -> tuple[CUresult, CUprocessState]:
    try:
        name = state(pid)
    except FileNotFoundError:
        return CUresult.CUDA_ERROR_INVALID_VALUE, CUprocessState.CU_PROCESS_STATE_RUNNING
    return CUresult.CUDA_SUCCESS, CUprocessState[f"CU_PROCESS_STATE_{name}"]


def cuCheckpointProcessLock(pid: int, args: CUcheckpointLockArgs | None) -> tuple[CUresult]:
    assert isinstance(args, CUcheckpointLockArgs)
    assert 0 < args.timeoutMs <= 60_000, "without a bound it would wait for ever"
    return _change("cuCheckpointProcessLock", pid, "RUNNING", "LOCKED")


def cuCheckpointProcessCheckpoint(pid: int, args: None) -> tuple[CUresult]:
    return _change("cuCheckpointProcessCheckpoint", pid, "LOCKED", "CHECKPOINTED")


def cuCheckpointProcessRestore(pid: int, args: None) -> tuple[CUresult]:
    return _change("cuCheckpointProcessRestore", pid, "CHECKPOINTED", "LOCKED")


def cuCheckpointProcessUnlock(pid: int, args: None) -> tuple[CUresult]:
    return _change("cuCheckpointProcessUnlock", pid, "LOCKED", "RUNNING")


def _change(name: str, pid: int, old: str, new: str) -> tuple[CUresult]:
    _log(f"begin {name} {pid}")
    result = _struck(name, pid)
    if result is None:
        with _locked():
            if not (folder() / str(pid)).exists():
                result = CUresult.CUDA_ERROR_INVALID_VALUE
            elif state(pid) != old:
                result = CUresult.CUDA_ERROR_ILLEGAL_STATE
            else:
                put(pid, new)
                result = CUresult.CUDA_SUCCESS
    _log(f"end {name} {pid}")
    return (result,)


def _struck(name: str, pid: int) -> CUresult | None:
    seconds = 0.0
    result = None
    with _locked():
        faults = _faults()
        for fault in faults:
            if fault["call"] == name and fault["pid"] in (None, pid):
                fault["times"] = fault.get("times", 1) - 1
                seconds = fault.get("seconds", 0)
                if not seconds:
                    result = CUresult[fault.get("result", "CUDA_ERROR_UNKNOWN")]
                if "state" in fault:
                    put(pid, fault["state"])
                break
        (folder() / "faults").write_text(json.dumps([fault for fault in faults if fault.get("times", 1)]))
    time.sleep(seconds)
    return result


def _faults() -> list[dict[str, Any]]:
    file = folder() / "faults"
    return list(json.loads(file.read_text())) if file.exists() else []


def _log(line: str) -> None:
    with open(folder() / "calls", "a") as file:
        file.write(line + "\n")


@contextmanager
def _locked() -> Iterator[None]:
    with open(folder() / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
