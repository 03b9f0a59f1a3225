"""Runs in vLLM's Python with a delivered folder on its path: how vLLM itself finds and loads the plugin."""

from __future__ import annotations

import sys

import vllm.plugins
from vllm.device_allocator.sleep_mode_backend import CuMemBackend, SleepModeBackendFactory

assert SleepModeBackendFactory._registry.keys() == {"cumem"}
vllm.plugins.load_general_plugins()
assert SleepModeBackendFactory._registry.keys() == {"cumem", "greenthread"}
assert "vllm_sleep.backend" not in sys.modules, "whoever does not sleep with it need not load it"

from vllm_sleep.plugin import register  # noqa: E402

register()
register()
vllm.plugins.plugins_loaded = False  # another of vLLM's processes
vllm.plugins.load_general_plugins()
assert issubclass(SleepModeBackendFactory.get_backend_class("cumem"), CuMemBackend)

backend = SleepModeBackendFactory.get_backend_class("greenthread")
assert issubclass(backend, CuMemBackend)
assert backend.preserves_communicators()


class Configuration:
    sleep_mode_backend = "greenthread"


said = ""
try:
    SleepModeBackendFactory.create_backend(Configuration())
except RuntimeError as error:
    said = str(error)
assert "NVIDIA" in said, "torch's words for: no GPU here"
print("ok")
