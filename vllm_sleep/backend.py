"""vLLM's sleep backend `greenthread`: weights are saved once, in pinned host memory or in a file, and every later
sleep only unmaps.

The level chooses the store: 1 is host memory (`staging.pinned: true`), 2 a file (`false`). At both the weights come
back with `/wake_up` alone, without `reload_weights`: what is in the file is the device's memory, not a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
from vllm.device_allocator import DEFERRABLE_TAGS
from vllm.device_allocator.cumem import CuMemAllocator, create_and_map, unmap_and_release
from vllm.device_allocator.sleep_mode_backend import CuMemBackend

from vllm_sleep.cuda import CudaDevice
from vllm_sleep.disk import DiskFile
from vllm_sleep.host import HostMemory, cpus_near
from vllm_sleep.memory import DeviceError, MemoryPath, OutOfDeviceMemory, StoreError

log = logging.getLogger("vllm.greenthread")

FOLDER = "GREENTHREAD_SLEEP_FOLDER"
"""Environment variable: where files of level 2 go; a local NVMe disk."""
KEEP_KV_CACHE = "GREENTHREAD_KEEP_KV_CACHE"
"""Environment variable: 1 saves the KV cache too, for requests that a sleep with mode=keep holds on to."""

_STORE = {1: "host", 2: "file"}


class _Block:
    """One allocation of vLLM's allocator, in whose own books it is marked asleep."""

    def __init__(self, data: Any) -> None:
        self.data = data
        _, self.size, self.address, _ = data.handle
        self.tag: str = data.tag

    @property
    def mapped(self) -> bool:
        return not self.data.is_asleep

    @mapped.setter
    def mapped(self, value: bool) -> None:
        self.data.is_asleep = not value


def _blocks() -> list[_Block]:
    return [_Block(data) for data in list(CuMemAllocator.get_instance().pointer_to_data.values())]


def _map(block: _Block) -> None:
    try:
        create_and_map(block.data.handle)
    except RuntimeError as error:
        kind = OutOfDeviceMemory if "out of memory" in str(error) else DeviceError
        raise kind(f"cannot map {block.size} bytes again: {error}") from None


def _unmap(block: _Block) -> None:
    try:
        unmap_and_release(block.data.handle)
    except RuntimeError as error:
        raise DeviceError(f"cannot unmap {block.size} bytes: {error}") from None


class GreenThreadBackend(CuMemBackend):  # type: ignore[misc]
    """Of one worker process. Errors reach whoever called vLLM's /sleep or /wake_up as a 500 with their text."""

    def __init__(self) -> None:
        super().__init__()
        device = CudaDevice(torch.cuda.current_device(), _map, _unmap)
        folder = Path(os.environ.get(FOLDER) or "/tmp")  # noqa: S108
        self._path = MemoryPath(device, {"host": host_memory(device.index), "file": DiskFile(folder)})
        self._keep = {"weights", "runtime", "cudagraph"}
        if os.environ.get(KEEP_KV_CACHE) == "1":
            self._keep.add("kv_cache")

    def suspend(self, level: int = 1) -> None:
        began = time.perf_counter()
        slept = self._path.sleep(_blocks(), self._keep, _STORE[level])
        self._state = "SUSPENDED"
        torch.cuda.empty_cache()  # what ordinary allocations left, the fingerprints' included
        log.info(
            "Slept in %.0f ms: %.2f GiB unmapped, %.2f GiB of it kept (%s), %.2f GiB copied for that",
            (time.perf_counter() - began) * 1e3, slept.freed / 2**30, slept.kept / 2**30, _STORE[level],
            slept.copied / 2**30,
        )  # fmt: skip

    def resume(self, tags: list[str] | None = None) -> None:
        began = time.perf_counter()
        self._state = "RESUMING"
        chosen = [b for b in _blocks() if tags is None or b.tag in tags or b.tag not in DEFERRABLE_TAGS]
        try:
            copied = self._path.wake(chosen)
        except (DeviceError, StoreError):
            self._state = "SUSPENDED"
            raise
        self._state = "RUNNING"
        took = time.perf_counter() - began
        log.info("Woke in %.0f ms: %.2f GiB copied, %.1f GB/s", took * 1e3, copied / 2**30, copied / took / 1e9)


_host: HostMemory | None = None
_making = threading.Lock()


def host_memory(index: int) -> HostMemory:
    """This process's pinned memory, one for the device that it works on."""
    global _host
    with _making:
        if _host is None:
            device = CudaDevice(index, _map, _unmap)
            _host = HostMemory(cpus_near(device.pci_address()))
        return _host


def take_host_memory() -> bool:
    """Takes host memory for the weights before the first sleep asks for it, while the engine still boots.

    False: they are not loaded yet. What is refused now, the first sleep asks for again, and tells why.
    """
    blocks = _blocks()
    if not any(block.tag == "kv_cache" for block in blocks):  # it is made after the weights
        return False
    with contextlib.suppress(StoreError):
        host_memory(blocks[0].data.handle[0]).reserve(sum(block.size for block in blocks if block.tag == "weights"))
    return True
