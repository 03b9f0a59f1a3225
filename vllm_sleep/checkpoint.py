"""Takes what a process still holds of a GPU off it, and puts it back: the driver's checkpoint API, driver 570 or newer.

https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html: a process is locked, then checkpointed (its
device memory goes to its host memory, and it no longer uses the GPU), later restored, then unlocked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LOCK_TIMEOUT = 5_000
"""Milliseconds for work under way on the GPU to end: it is asleep, so there should be none."""

MODULE = "GREENTHREAD_CUDA"
"""Environment variable: a module with the functions of `cuda.bindings.driver` in its place."""


class CheckpointError(Exception):
    """`lost` says whether the processes can no longer be used; the message is for people."""

    def __init__(self, message: str, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class Checkpointer:
    """Of our own descendants: these may be stopped without a capability, also under YAMA."""

    def __init__(self, module: str = "cuda.bindings.driver") -> None:
        """CheckpointError when this machine cannot."""
        try:
            self._driver: Any = importlib.import_module(module)
            self._call("cuInit", 0)
            version = self._call("cuDriverGetVersion")
        except (ImportError, RuntimeError) as error:
            raise CheckpointError(f"CUDA's driver cannot be called: {error}") from None
        if version < 12080 or not hasattr(self._driver, "cuCheckpointProcessLock"):
            cuda = f"{version // 1000}.{version % 1000 // 10}"
            raise CheckpointError(f"the driver is too old (it speaks CUDA {cuda}): 570 or newer is needed")

    def processes(self, pids: Sequence[int]) -> list[int]:
        """Those of the processes that use CUDA."""
        return [pid for pid in pids if self._state(pid) is not None]

    def checkpoint(self, pids: Sequence[int]) -> None:
        """All of them, or none: CheckpointError, and they run on unless `lost`."""
        locked: list[int] = []
        try:
            for pid in pids:
                self._call("cuCheckpointProcessLock", pid, self._lock_arguments())
                locked.append(pid)
        except CheckpointError as error:
            self._release([], locked, error)
        failed = self._each("cuCheckpointProcessCheckpoint", pids)
        if failed:
            done = [pid for pid in pids if pid not in failed]
            self._release(done, list(pids), next(iter(failed.values())))

    def restore(self, pids: Sequence[int]) -> None:
        """Those that are checkpointed; who runs already is left alone. CheckpointError: they are `lost`."""
        states = {pid: self._state(pid) for pid in pids}
        away = [pid for pid, state in states.items() if state == "CHECKPOINTED"]
        locked = [pid for pid, state in states.items() if state != "RUNNING"]
        failed = self._each("cuCheckpointProcessRestore", away) or self._each("cuCheckpointProcessUnlock", locked)
        if failed:
            raise CheckpointError(str(next(iter(failed.values()))), lost=True)

    def _release(self, away: Sequence[int], locked: Sequence[int], why: CheckpointError) -> None:
        failed = self._each("cuCheckpointProcessRestore", away) or self._each("cuCheckpointProcessUnlock", locked)
        if failed:
            raise CheckpointError(f"{why}; and going back failed: {next(iter(failed.values()))}", lost=True)
        raise why

    def _each(self, name: str, pids: Sequence[int]) -> dict[int, CheckpointError]:
        """Calls for all at once, since each has its own GPU; the errors by pid."""

        def call(pid: int) -> CheckpointError | None:
            try:
                self._call(name, pid, None)
            except CheckpointError as error:
                return error
            return None

        if not pids:
            return {}
        with ThreadPoolExecutor(len(pids)) as pool:
            results = zip(pids, pool.map(call, pids), strict=True)
            return {pid: error for pid, error in results if error is not None}

    def _lock_arguments(self) -> Any:
        arguments = self._driver.CUcheckpointLockArgs()
        arguments.timeoutMs = LOCK_TIMEOUT
        return arguments

    def _state(self, pid: int) -> str | None:
        error, state = self._driver.cuCheckpointProcessGetState(pid)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            return None  # no CUDA process
        return str(state.name).removeprefix("CU_PROCESS_STATE_")

    def _call(self, name: str, *arguments: Any) -> Any:
        function: Callable[..., tuple[Any, ...]] = getattr(self._driver, name)
        error, *values = function(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise CheckpointError(f"{name}: {error.name}")
        return values[0] if values else None
