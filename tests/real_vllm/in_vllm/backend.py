"""Runs in vLLM's Python: the backend as vLLM's worker calls it, over a fake GPU behind CUDA's runtime.

Real: vLLM's base class, its books of allocations, the device of vllm_sleep.cuda. Played: the runtime's functions, the
allocator's C extension, the fingerprints' kernel (fingerprints.py runs that).
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cuda.bindings import runtime as real
from vllm.device_allocator import AllocationData, cumem

from tests.unit.vllm_sleep.fake_cuda import FakeDevice, region_type
from vllm_sleep import cuda, disk, host, memory
from vllm_sleep.memory import DeviceError, OutOfDeviceMemory, StoreError

MIB = 2**20


def refused(kind: type[Exception], call: Any, *arguments: Any) -> str:
    """The words of the error that the call has to raise."""
    try:
        call(*arguments)
    except kind as error:
        return str(error)
    raise AssertionError(f"{call} did not raise {kind.__name__}")


class Runtime:
    """cuda.bindings.runtime over the fake device; what is not played here is the real module's."""

    class cudaError_t(IntEnum):
        cudaSuccess = 0
        cudaErrorUnknown = 999

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._here = threading.local()
        self.created = 0

    def __getattr__(self, name: str) -> Any:
        assert name.startswith("cuda"), name
        assert not callable(getattr(real, name)) or name in ("cudaMemcpyKind",), f"{name} is not played"
        return getattr(real, name)

    def _do(self, call: Any, *arguments: Any) -> tuple[Any, ...]:
        assert getattr(self._here, "index", None) == 0, "the device is the thread's: it has to be set"
        try:
            call(*arguments)
        except DeviceError:
            return (self.cudaError_t.cudaErrorUnknown,)
        return (self.cudaError_t.cudaSuccess,)

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        self._here.index = index
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == real.cudaStreamNonBlocking, "it would wait for the engine's own stream"
        self.created += 1
        return self.cudaError_t.cudaSuccess, self.created - 1

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return self._do(self._device.wait, stream % 16)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any, ...]:
        if kind == real.cudaMemcpyKind.cudaMemcpyHostToDevice:
            return self._do(self._device.load, to, source, size, stream % 16)
        assert kind == real.cudaMemcpyKind.cudaMemcpyDeviceToHost
        return self._do(self._device.fetch, to, source, size, stream % 16)

    def cudaHostRegister(self, address: int, size: int, flags: int) -> tuple[Any, ...]:
        return self._do(self._device.pin, address, size)

    def cudaHostUnregister(self, address: int) -> tuple[Any, ...]:
        return self._do(self._device.unpin, address)

    def cudaDeviceGetPCIBusId(self, length: int, index: int) -> tuple[Any, ...]:
        assert length >= 13
        return self.cudaError_t.cudaSuccess, b"0000:17:00.0\0\0\0"


# What we ask of the real module is there, and takes what we give it: without a GPU it refuses, with a number.
no_gpu = [
    real.cudaSetDevice(0),
    real.cudaStreamCreateWithFlags(real.cudaStreamNonBlocking),
    real.cudaMemcpyAsync(4096, 8192, 10, real.cudaMemcpyKind.cudaMemcpyHostToDevice, 0),
    real.cudaHostRegister(4096, 4096, real.cudaHostRegisterPortable),
    real.cudaHostUnregister(4096),
    real.cudaDeviceGetPCIBusId(32, 0),
]
for answer in no_gpu:
    assert refused(DeviceError, cuda._done, "cudaCall", answer).startswith("cudaCall: cudaError")

# A GPU of 1 MiB
device = FakeDevice(MIB, streams=16)
cuda.runtime = Runtime(device)
cuda.CudaDevice.fingerprints = lambda self, spans: device.fingerprints(spans)
torch.cuda.current_device = lambda: 0
memory.PIECE, disk._PART, disk._SPARE = 16384, 8192, 0
region = region_type(device)
host.HostMemory.__init__.__defaults__ = (frozenset(), lambda: 1 << 40, region)
disk.DiskFile.__init__.__defaults__ = (disk.THREADS, region)

allocator = SimpleNamespace(pointer_to_data={})
allocator.discard = lambda tags: cumem.CuMemAllocator.discard(allocator, tags)
cumem.CuMemAllocator.get_instance = staticmethod(lambda: allocator)
torch.accelerator.synchronize = lambda index: None
cumem.current_platform = SimpleNamespace(is_rocm=lambda: False)
sys.modules["vllm.device_allocator"].current_platform = SimpleNamespace(is_cuda_alike=lambda: True)


def on_the_device(call: Any) -> Any:
    """As the C extension has it: (device, size, address, handle), and RuntimeError."""

    def run(handle: tuple[int, int, int, int]) -> None:
        index, size, address, _ = handle
        assert index == 0
        try:
            call(SimpleNamespace(address=address, size=size, tag="", mapped=True))
        except OutOfDeviceMemory:
            raise RuntimeError("CUDA Error: out of memory at csrc/cumem_allocator.cpp:62") from None
        except DeviceError as error:
            raise RuntimeError(f"CUDA Error: {error}") from None

    return run


cumem.create_and_map, cumem.unmap_and_release = on_the_device(device.map), on_the_device(device.unmap)

from vllm_sleep import backend as module  # noqa: E402  (takes these functions by name)


def allocate(size: int, tag: str) -> AllocationData:
    block = device.allocate(size, tag)
    data = AllocationData((0, size, block.address, 7), tag)
    allocator.pointer_to_data[block.address] = data
    return data


def contents() -> dict[str, bytes]:
    """Of what is awake; the fake fails where the books say mapped and it is not."""
    awake = [data for data in allocator.pointer_to_data.values() if not data.is_asleep]
    return {data.tag: device.content(SimpleNamespace(address=data.handle[2], size=data.handle[1])) for data in awake}


assert module.take_host_memory() is False, "the weights are not there yet"
weights = allocate(100_000, "weights")
assert module.take_host_memory() is False, "the KV cache is made after the weights"
cache, other = allocate(50_000, "kv_cache"), allocate(3000, "runtime")
assert module.take_host_memory() is True
assert module.host_memory(0).size >= 100_000
assert module.take_host_memory() is True
assert len(device.host) == 1, "taken once"

os.environ[module.FOLDER] = tempfile.mkdtemp(dir=sys.argv[1])
backend = module.GreenThreadBackend()
was = contents()
KEPT = ("weights", "runtime")


def same() -> bool:
    now = contents()
    return all(now[tag] == was[tag] for tag in KEPT)


for level in (2, 1, 2, 2, 1):
    backend.suspend(level)
    assert backend.state() == "SUSPENDED"
    assert device.used == 0
    assert all(data.is_asleep for data in allocator.pointer_to_data.values())
    assert all(data.cpu_backup_tensor is None for data in allocator.pointer_to_data.values())
    backend.resume()
    assert backend.state() == "RUNNING"
    assert same()
    assert contents()["kv_cache"] != was["kv_cache"]
backend.suspend(1)
fetched = device.calls["fetch"]
backend.resume()
backend.suspend(1)
assert device.calls["fetch"] == fetched, "a later sleep only unmaps"

# tag by tag, as after a weight update
backend.resume(["weights"])
assert contents().keys() == {"weights", "runtime"}
assert same()
backend.resume(["kv_cache"])
assert contents().keys() == {"weights", "runtime", "kv_cache"}

# vLLM drops the KV cache alone
backend.discard(("kv_cache",))
assert contents().keys() == {"weights", "runtime"}
backend.resume()
assert contents().keys() == {"weights", "runtime", "kv_cache"}
assert same()

# others have the memory: an error with words, asleep as before
backend.suspend(2)
device.others = MIB - 100_000
assert "cannot map" in refused(OutOfDeviceMemory, backend.resume)
assert device.used == 0
assert backend.state() == "SUSPENDED"
device.others = 0
backend.resume()
assert same()

# no room for a copy: awake as before, with words
device.faults.arm("pin")
backend.suspend(2)  # its buffers are pinned already
backend.resume()
backend.suspend(2)
backend.resume()
assert "does not pin" in refused(StoreError, backend.suspend, 1)
assert backend.state() == "RUNNING", "what is refused leaves it running"
assert same()

# the cache is kept on request
os.environ[module.KEEP_KV_CACHE] = "1"
keeping = module.GreenThreadBackend()
was, KEPT = contents(), (*KEPT, "kv_cache")
for level in (1, 2):
    keeping.suspend(level)
    keeping.resume()
    assert same()
keeping.suspend(1)
keeping.resume(["kv_cache"])
assert contents()["kv_cache"] == was["kv_cache"]
keeping.resume()
assert same()

device.check()
assert device.in_flight == 0
assert cuda.runtime.created == 2 * 16, "each of the two backends makes its streams once, also from many threads"
assert not list(Path(os.environ[module.FOLDER]).iterdir())
del weights, cache, other
print("ok")
