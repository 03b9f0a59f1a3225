"""A real GPU behind the memory path: CUDA's runtime for copies, one Triton kernel for fingerprints.

Mapping is its caller's: inside vLLM by vLLM's own allocator, which made the memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from cuda.bindings import runtime

from vllm_sleep.memory import Block, DeviceError

_WORDS = 4096  # of 8 bytes, that one program of the kernel reads


class CudaDevice:
    """The GPU of this index in this process. Its copies may be begun from any thread."""

    def __init__(
        self, index: int, map_block: Callable[[Any], None], unmap_block: Callable[[Any], None], streams: int = 16
    ) -> None:
        self.index, self.streams = index, streams
        self._map, self._unmap = map_block, unmap_block
        self._handles: list[Any] = []
        self._making = threading.Lock()

    def map(self, block: Block) -> None:
        self._map(block)

    def unmap(self, block: Block) -> None:
        self._unmap(block)

    def fingerprints(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        with torch.cuda.device(self.index):
            return fingerprints(spans, "cuda")

    def fetch(self, host: int, address: int, size: int, stream: int) -> None:
        self._copy(host, address, size, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def load(self, address: int, host: int, size: int, stream: int) -> None:
        self._copy(address, host, size, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def wait(self, stream: int) -> None:
        self._here()
        if stream < len(self._handles):
            _done("cudaStreamSynchronize", runtime.cudaStreamSynchronize(self._handles[stream]))

    def pin(self, host: int, size: int) -> None:
        self._here()
        _done("cudaHostRegister", runtime.cudaHostRegister(host, size, runtime.cudaHostRegisterPortable))

    def unpin(self, host: int) -> None:
        self._here()
        _done("cudaHostUnregister", runtime.cudaHostUnregister(host))

    def pci_address(self) -> str:
        """`0000:17:00.0`, as /sys has it."""
        return str(_done("cudaDeviceGetPCIBusId", runtime.cudaDeviceGetPCIBusId(32, self.index)).decode().rstrip("\0"))

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: int) -> None:
        self._here()
        with self._making:
            while len(self._handles) < self.streams:
                flags = runtime.cudaStreamNonBlocking
                self._handles.append(_done("cudaStreamCreate", runtime.cudaStreamCreateWithFlags(flags)))
        _done("cudaMemcpyAsync", runtime.cudaMemcpyAsync(to, source, size, kind, self._handles[stream]))

    def _here(self) -> None:
        _done("cudaSetDevice", runtime.cudaSetDevice(self.index))  # it is the thread's, not the process's


def fingerprints(spans: Sequence[tuple[int, int]], device: str) -> list[int]:
    """A number for the content of each (address, size) on the device, all by one launch: pieces are many."""
    if not spans:
        return []
    if any(size % 8 for _, size in spans):
        raise DeviceError("an allocation of no whole words: CUDA gives multiples of its page")
    addresses = torch.tensor([address for address, _ in spans], dtype=torch.int64, device=device)
    counts = torch.tensor([size // 8 for _, size in spans], dtype=torch.int64, device=device)
    sums = torch.zeros_like(counts)
    longest = max(size // 8 for _, size in spans)
    _mix[(triton.cdiv(longest, _WORDS), len(spans))](addresses, counts, sums, BLOCK=_WORDS)
    return [int(value) for value in sums.tolist()]


@triton.jit  # type: ignore[untyped-decorator]
def _mix(addresses, counts, sums, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    # every word with its place through the finalizer of MurmurHash3 (Appleby, 2011, public domain), then all added up
    span = tl.program_id(1)
    count = tl.load(counts + span)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start < count:
        words = tl.load(addresses + span).to(tl.pointer_type(tl.int64))
        at = start + tl.arange(0, BLOCK)
        inside = at < count
        x = tl.load(words + at, mask=inside, other=0) + at * 0x9E3779B97F4A7C1
        x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -0xAE502812AA7333
        x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -0x3B314601E57A13AD
        x = x ^ ((x >> 33) & 0x7FFFFFFF)
        tl.atomic_add(sums + span, tl.sum(tl.where(inside, x, 0), axis=0))


def _done(name: str, result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise DeviceError(f"{name}: {error.name}")
    return values[0] if values else None
