"""A real GPU for the parts: memory mapped as vLLM's allocator maps it, filled and checked by torch.

`open_gpu` gives it; the environment variable of `SEAM` names another module with the same functions, which is how the
parts are tried out where there is none.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.gpu.nvml import Nvml
from benchmarks.gpu.part import Skip
from vllm_sleep.memory import Block, Device, DeviceError, OutOfDeviceMemory

SEAM = "GREENTHREAD_BENCH_GPU"
_CHUNK = 64 * 2**20  # bytes that are summed at once


class Gpu(Protocol):
    """What the parts need of a GPU. Sizes are bytes."""

    total: int

    def free(self) -> int:
        """Of the device's memory."""

    def device(self) -> Device:
        """For the memory path; `streams` may be set between two calls."""

    def cpus(self) -> frozenset[int]:
        """Near the device."""

    def allocate(self, size: int, tag: str) -> Block:
        """Reserved and mapped; its size is a multiple of the page."""

    def release(self, block: Block) -> None:
        """Memory and address."""

    def fill(self, block: Block, seed: int) -> None:
        """Random words, the same for the same seed."""

    def checksum(self, block: Block) -> int:
        """Of what is on the device: another word, or words that changed places, give another."""

    def change(self, block: Block, word: int) -> None:
        """One bit of one word of 8 bytes."""

    def graphs(self, count: int) -> Callable[[], int]:
        """Captures that many graphs of matrix products; a call replays them all and sums up what came out."""

    def plain(self, size: int) -> Callable[[], int]:
        """Ordinary memory of torch, which no sleep knows; a call sums it up."""

    def host_alloc(self, size: int) -> int:
        """The address of host memory that the driver itself took and pinned; until the process ends."""

    def settle(self) -> None:
        """All work is done, and memory that torch keeps for later is given back."""


def open_gpu() -> Gpu:
    """Skip when this machine or this Python has none."""
    need_gpu()
    name = os.environ.get(SEAM)
    gpu: Gpu = importlib.import_module(name).open_gpu() if name else CudaGpu()
    return gpu


def need_gpu() -> None:
    """The same check, without using the GPU."""
    Nvml()
    if not os.environ.get(SEAM):
        import torch

        if not torch.cuda.is_available():
            raise Skip(f"torch in {sys.executable} finds no CUDA GPU (see --python)")


@dataclass(eq=False, slots=True)
class Allocation:
    """A Block, with the driver's handle of what is mapped."""

    address: int
    size: int
    tag: str
    mapped: bool = False
    handle: Any = None


class Memory:
    """Device memory by the driver's calls, as vLLM's allocator makes them: addresses stay, memory comes and goes."""

    def __init__(self, driver: Any) -> None:
        """On GPU 0, in the context that torch and CUDA's runtime use: they could not see another one's memory."""
        self._driver = driver
        self._call("cuInit", 0)
        gpu = self._call("cuDeviceGet", 0)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", gpu))
        self._properties = driver.CUmemAllocationProp()
        self._properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._properties.location.id = 0
        attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED
        if self._call("cuDeviceGetAttribute", attribute, gpu):
            self._properties.allocFlags.gpuDirectRDMACapable = 1  # as vLLM has it
        self._access = driver.CUmemAccessDesc()
        self._access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._access.location.id = 0
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        option = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self._page = int(self._call("cuMemGetAllocationGranularity", self._properties, option))

    def allocate(self, size: int, tag: str) -> Allocation:
        size = -(-size // self._page) * self._page
        block = Allocation(int(self._call("cuMemAddressReserve", size, 0, 0, 0)), size, tag)
        try:
            self.map(block)
        except DeviceError:
            self._call("cuMemAddressFree", block.address, block.size)
            raise
        block.mapped = True
        return block

    def release(self, block: Any) -> None:
        if block.mapped:
            self.unmap(block)
            block.mapped = False
        self._call("cuMemAddressFree", block.address, block.size)

    def map(self, block: Any) -> None:
        block.handle = self._call("cuMemCreate", block.size, self._properties, 0)
        try:
            self._call("cuMemMap", block.address, block.size, 0, block.handle, 0)
            try:
                self._call("cuMemSetAccess", block.address, block.size, [self._access], 1)
            except DeviceError:
                self._call("cuMemUnmap", block.address, block.size)
                raise
        except DeviceError:
            self._call("cuMemRelease", block.handle)
            raise

    def unmap(self, block: Any) -> None:
        self._call("cuMemUnmap", block.address, block.size)
        self._call("cuMemRelease", block.handle)
        block.handle = None

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            kind = OutOfDeviceMemory if "OUT_OF_MEMORY" in error.name else DeviceError
            raise kind(f"{name}: {error.name}")
        return values[0] if values else None


class CudaGpu:
    """GPU 0 of this process."""

    def __init__(self) -> None:
        import torch
        from cuda.bindings import driver

        self._torch = torch
        torch.zeros(1, device="cuda")
        self._memory = Memory(driver)
        self.allocate, self.release = self._memory.allocate, self._memory.release
        self.total = int(torch.cuda.mem_get_info(0)[1])
        self._odd: Any = None
        self._host: Any = None

    def free(self) -> int:
        return int(self._torch.cuda.mem_get_info(0)[0])

    def device(self) -> Device:
        from vllm_sleep.cuda import CudaDevice

        return CudaDevice(0, self._memory.map, self._memory.unmap)

    def cpus(self) -> frozenset[int]:
        from vllm_sleep.cuda import CudaDevice
        from vllm_sleep.host import cpus_near

        return cpus_near(CudaDevice(0, self._memory.map, self._memory.unmap).pci_address())

    def fill(self, block: Block, seed: int) -> None:
        generator = self._torch.Generator("cuda").manual_seed(seed)
        self._words(block).random_(generator=generator)
        self._torch.cuda.synchronize()

    def checksum(self, block: Block) -> int:
        torch, words = self._torch, self._words(block)
        if self._odd is None:
            self._odd = torch.arange(1, _CHUNK // 4, 2, dtype=torch.int64, device="cuda")
        # an odd factor for each place: modulo 2⁶⁴ no word can change, and no two change places, unnoticed
        sums = [(part * self._odd[: part.numel()]).sum() for part in words.split(_CHUNK // 8)]
        total = 0
        for value in torch.stack(sums).tolist():
            total = (total * 1_000_003 + value) % 2**64
        return total

    def change(self, block: Block, word: int) -> None:
        self._words(block)[word] ^= 1
        self._torch.cuda.synchronize()

    def graphs(self, count: int) -> Callable[[], int]:
        torch = self._torch
        generator = torch.Generator("cuda").manual_seed(1)
        captured = []
        for number in range(count):
            rows = 1 + number  # a batch size each, as an engine captures them
            x = torch.randn(rows, 1024, dtype=torch.bfloat16, device="cuda", generator=generator)
            w = torch.randn(1024, 1024, dtype=torch.bfloat16, device="cuda", generator=generator) / 32
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                torch.relu(x @ w)  # loads what the capture may not
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = x
                for _ in range(8):
                    y = torch.relu(y @ w)
            captured.append((graph, x, w, y))

        def replay() -> int:
            total = 0
            for graph, _, _, y in captured:
                y.fill_(0)
                graph.replay()
                total = (total * 31 + int(y.view(torch.int16).to(torch.int64).sum())) % 2**64
            return total

        return replay

    def plain(self, size: int) -> Callable[[], int]:
        torch = self._torch
        held = [torch.empty(_CHUNK // 8, dtype=torch.int64, device="cuda") for _ in range(size // _CHUNK)]
        for tensor in held:
            tensor.random_()
        return lambda: sum(int(tensor.sum()) for tensor in held)

    def host_alloc(self, size: int) -> int:
        self._host = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        return int(self._host.data_ptr())

    def settle(self) -> None:
        self._odd = None
        self._torch.cuda.synchronize()
        self._torch.cuda.empty_cache()

    def _words(self, block: Block) -> Any:
        return self._torch.as_tensor(_Span(block.address, block.size), device="cuda")


class _Span:
    """Device memory as torch reads it: 64-bit words from an address on."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size // 8,),
            "typestr": "<i8",
            "data": (address, False),
            "version": 3,
        }
