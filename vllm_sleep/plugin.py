"""What vLLM loads in each of its processes, by the entry point `greenthread` of the group `vllm.general_plugins`."""

from __future__ import annotations

import os
import sys
import threading
import time

NAME = "greenthread"
"""Of the sleep backend: `--sleep-mode-backend greenthread`."""
PINNED = "GREENTHREAD_PINNED"
"""Environment variable: 1 takes the host memory for the weights while the engine boots."""
THREAD = "greenthread-host-memory"
_LOOK_EVERY, _LOOK_FOR = 0.5, 3600.0  # seconds


def register() -> None:
    """May be called several times in one process, and on machines without a GPU."""
    from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory

    try:
        SleepModeBackendFactory.register_backend(NAME, "vllm_sleep.backend", "GreenThreadBackend")
    except ValueError:
        return  # registered already
    if os.environ.get(PINNED) == "1":
        _watch()
        os.register_at_fork(after_in_child=_watch)  # vLLM forks its workers, and does not load plugins there again


def _watch() -> None:
    threading.Thread(target=_take_host_memory, name=THREAD, daemon=True).start()


def _take_host_memory() -> None:
    deadline = time.monotonic() + _LOOK_FOR
    while time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY)
        allocator = getattr(sys.modules.get("vllm.device_allocator.cumem"), "CuMemAllocator", None)
        if getattr(allocator, "instance", None) is not None:  # only in a worker: the others never allocate
            from vllm_sleep.backend import take_host_memory

            if take_host_memory():
                return
