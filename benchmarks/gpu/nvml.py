"""What NVML says of the GPU: `python -m benchmarks.gpu.nvml` prints it as JSON."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gpu.part import Skip

MODULE = "GREENTHREAD_NVML"
"""Environment variable: a module with pynvml's functions in its place."""
SOFTWARE = ("torch", "triton", "cuda-bindings", "nvidia-ml-py", "vllm")
_NVML = ("pynvml", "vllm.third_party.pynvml")


class Nvml:
    """The GPU that CUDA calls 0 in this process."""

    def __init__(self) -> None:
        """Skip when there is none."""
        self._nvml = self._load()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
        index = int(visible) if visible.isdigit() else 0
        try:
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as error:
            raise Skip(f"no NVIDIA GPU answers on this machine (NVML: {error})") from None

    @staticmethod
    def _load() -> Any:
        names = (os.environ[MODULE],) if os.environ.get(MODULE) else _NVML
        for name in names:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError:
                continue
        raise Skip(f"nvidia-ml-py is not installed in {sys.executable}")

    def used(self) -> int:
        """Bytes of the device that are in use, by anybody."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._gpu).used)

    def total(self) -> int:
        """Bytes of the device."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._gpu).total)

    def by_process(self) -> dict[int, int | None]:
        """Bytes by pid; None where NVML knows the process and not its bytes."""
        listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._gpu)
        return {process.pid: process.usedGpuMemory for process in listed}

    def of(self, pids: Collection[int]) -> int | None:
        """Bytes of these processes together, 0 when none is listed, None when NVML does not tell."""
        try:
            mine = [used for pid, used in self.by_process().items() if pid in pids]
        except self._nvml.NVMLError:
            return None
        return None if None in mine else sum(used for used in mine if used is not None)

    def describe(self) -> dict[str, Any]:
        """Name, driver, memory, link; null what this driver does not tell."""

        def ask(name: str, *arguments: Any) -> Any:
            try:
                answer = getattr(self._nvml, name)(*arguments)
            except (AttributeError, self._nvml.NVMLError):
                return None
            return answer.decode() if isinstance(answer, bytes) else answer

        memory = ask("nvmlDeviceGetMemoryInfo", self._gpu)
        return {
            "name": ask("nvmlDeviceGetName", self._gpu),
            "driver": ask("nvmlSystemGetDriverVersion"),
            "memory_gib": round(memory.total / 2**30, 1) if memory else None,
            "link": {
                "generation": ask("nvmlDeviceGetCurrPcieLinkGeneration", self._gpu),
                "generation_max": ask("nvmlDeviceGetMaxPcieLinkGeneration", self._gpu),
                "width": ask("nvmlDeviceGetCurrPcieLinkWidth", self._gpu),
            },
            "host": {
                "cpus": os.cpu_count(),
                "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
                "kernel": platform.release(),
            },
            "software": {"python": platform.python_version()} | {name: _version(name) for name in SOFTWARE},
        }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    try:
        print(json.dumps(Nvml().describe()))
    except Skip as reason:
        print(json.dumps({"missing": str(reason)}))
