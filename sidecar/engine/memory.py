"""What an engine's processes use on the devices, by NVML."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from greenthread.gpu import PodRef

log = logging.getLogger(__name__)


class DeviceMemory:
    """NVML's view of some devices, read off the loop. Works, and says None, where NVML is absent."""

    def __init__(self, indices: Sequence[int], module: str | None = None) -> None:
        """``module``: name of a module with pynvml's functions; by default ``$GREENTHREAD_NVML`` or ``pynvml``."""
        self._indices = tuple(indices)
        self._nvml: Any = None
        self._seen = False  # a process was: NVML shows those of this namespace
        name = module or os.environ.get("GREENTHREAD_NVML") or "pynvml"
        try:
            self._nvml = importlib.import_module(name)
            self._nvml.nvmlInit()
        except ImportError as error:
            self._nvml = None
            log.warning("no NVML module %s: memory is not measured (%s)", name, error)
        except self._nvml.NVMLError as error:
            self._nvml = None
            log.warning("NVML does not start: memory is not measured (%s)", error)

    async def used(self) -> list[int] | None:
        """Bytes in use on each device, by anybody."""
        return await asyncio.to_thread(self._used) if self._nvml else None

    async def used_by(self, owns: Callable[[int], bool]) -> list[int] | None:
        """Bytes that the processes whose pids ``owns`` takes use on each device; None when NVML has never shown one
        (another namespace)."""
        return await asyncio.to_thread(self._used_by, owns) if self._nvml else None

    async def used_by_pod(self, pod: PodRef, other_than: Iterable[int]) -> bool:
        """Whether a process of a pod of this name, ``other_than`` these, still holds memory on a device."""
        return await asyncio.to_thread(self._used_by_pod, pod, frozenset(other_than)) if self._nvml else False

    def _used(self) -> list[int] | None:
        try:
            return [int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle(index)).used) for index in self._indices]
        except self._nvml.NVMLError as error:
            log.warning("NVML cannot tell the memory in use: %s", error)
            return None

    def _used_by(self, owns: Callable[[int], bool]) -> list[int] | None:
        result = []
        try:
            for index in self._indices:
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle(index))
                own = [process for process in processes if owns(process.pid)]
                self._seen = self._seen or bool(own)
                result.append(sum(int(process.usedGpuMemory or 0) for process in own))
        except self._nvml.NVMLError as error:
            log.warning("NVML cannot tell the processes of a device: %s", error)
            return None
        return result if self._seen else None

    def _used_by_pod(self, pod: PodRef, known: frozenset[int]) -> bool:
        try:
            pids = {
                process.pid
                for index in self._indices
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle(index))
            }
        except self._nvml.NVMLError:
            return False
        return any(_pod_of(pid) == pod for pid in pids - known)

    def _handle(self, index: int) -> Any:
        return self._nvml.nvmlDeviceGetHandleByIndex(index)


def _pod_of(pid: int) -> PodRef | None:
    """The pod whose environment a process carries, where the process can be seen."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = dict(item.partition(b"=")[::2] for item in file.read().split(b"\0"))
    except OSError:
        return None
    namespace, name = pairs.get(b"POD_NAMESPACE"), pairs.get(b"POD_NAME")
    return PodRef(namespace.decode(), name.decode()) if namespace and name else None
