"""What the plugin starts in each of vLLM's processes; that vLLM finds it is tests/real_vllm/test_sleep_backend.py's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

IN_A_PROCESS_OF_VLLM = """
import os, sys, threading, types

class SleepModeBackendFactory:
    known = {}

    @classmethod
    def register_backend(cls, name, module, of):
        if name in cls.known:
            raise ValueError
        cls.known[name] = module, of

for name in ("vllm", "vllm.device_allocator", "vllm.device_allocator.sleep_mode_backend"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[name].SleepModeBackendFactory = SleepModeBackendFactory

from vllm_sleep import plugin

def watching():
    return [thread.name for thread in threading.enumerate()].count(plugin.THREAD)

plugin.register()
plugin.register()
assert SleepModeBackendFactory.known == {"greenthread": ("vllm_sleep.backend", "GreenThreadBackend")}
here = watching()
child = os.fork()
if not child:
    os._exit(watching())
print(here, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("pinned", "watching"), [("1", "1 1"), ("", "0 0")])
def test_a_pinned_model_has_one_watcher_in_each_process_also_in_those_that_vllm_forks(
    pinned: str, watching: str
) -> None:
    environment = {**os.environ, "GREENTHREAD_PINNED": pinned, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS_OF_VLLM], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.returncode) == (watching, 0), done.stderr
