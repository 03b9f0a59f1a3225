"""A GPU for the parts of benchmarks.gpu where there is none: its memory is the host's, and its books a folder.

One module in the place of three: the benchmark's own device (`open_gpu`), pynvml, and CUDA's checkpoint calls. Between
processes they agree through $FAKE_GPU_FOLDER: the file PID holds the bytes that a process has, PID.away what the
checkpoint took, PID.state its state. Without the folder there is no GPU. It fails where a real one would: memory that
is used unmapped, copies from what is not pinned, a process that is checkpointed and not locked.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm_sleep.memory import DeviceError, OutOfDeviceMemory

FOLDER = "FAKE_GPU_FOLDER"
FAULT = "FAKE_GPU_FAULT"
"""Environment variable: `content` loses a byte of every wake's copies, `checkpoint` refuses to checkpoint, `hang` never
ends a copy."""
TOTAL = 16 * 2**20
PAGE = 2**16
CONTEXT = 2**20


def _folder() -> Path:
    return Path(os.environ[FOLDER])


# the benchmark's device


@dataclass(eq=False)
class Block:
    address: int
    size: int
    tag: str
    mapped: bool
    memory: mmap.mmap


class FakeGpu:
    total = TOTAL
    streams = 16

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._pinned: dict[int, int] = {}
        (_folder() / f"{os.getpid()}.state").write_text("RUNNING")
        self._plain = 0
        self._count()

    def free(self) -> int:
        return TOTAL - sum(_used().values())

    def device(self) -> FakeGpu:
        return self

    def cpus(self) -> frozenset[int]:
        return frozenset()

    def allocate(self, size: int, tag: str) -> Block:
        size = -(-size // PAGE) * PAGE
        memory = mmap.mmap(-1, size)
        block = Block(ctypes.addressof(ctypes.c_char.from_buffer(memory)), size, tag, False, memory)
        self._blocks[block.address] = block
        self.map(block)
        block.mapped = True
        return block

    def release(self, block: Block) -> None:
        del self._blocks[block.address]
        self._count()

    def fill(self, block: Block, seed: int) -> None:
        self._at(block.address, block.size)
        block.memory[:] = random.Random(seed).randbytes(block.size)

    def checksum(self, block: Block) -> int:
        self._at(block.address, block.size)
        return _hash(bytes(block.memory))

    def change(self, block: Block, word: int) -> None:
        self._at(block.address, block.size)
        block.memory[8 * word] ^= 1

    def graphs(self, count: int) -> Callable[[], int]:
        return lambda: count

    def plain(self, size: int) -> Callable[[], int]:
        self._plain = size
        self._count()
        return lambda: size

    def host_alloc(self, size: int) -> int:
        self._host = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._host))
        self._pinned[address] = size
        return address

    def settle(self) -> None:
        pass

    # the memory path's device

    def map(self, block: Block) -> None:
        if block.mapped:
            raise DeviceError("mapped twice")
        if block.size > self.free():
            raise OutOfDeviceMemory("no memory left")
        if block.tag != "kv_cache":
            block.memory[:] = b"\xaa" * block.size
        block.mapped = True
        self._count()
        block.mapped = False  # its owner says so

    def unmap(self, block: Block) -> None:
        self._at(block.address, block.size)
        if block.tag != "kv_cache":
            block.memory[:] = bytes(block.size)
        block.mapped = False
        self._count()
        block.mapped = True

    def fingerprints(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        for span in spans:
            self._at(*span)
        return [_hash(ctypes.string_at(*span)) for span in spans]

    def fetch(self, host: int, address: int, size: int, stream: int) -> None:
        self._at(address, size)
        self._is_pinned(host, size)
        ctypes.memmove(host, address, size)

    def load(self, address: int, host: int, size: int, stream: int) -> None:
        self._at(address, size)
        ctypes.memmove(address, host, size)
        if os.environ.get(FAULT) == "content":
            ctypes.memset(address, 0x55, 1)
        if os.environ.get(FAULT) == "hang":
            time.sleep(3600)

    def wait(self, stream: int) -> None:
        pass

    def pin(self, host: int, size: int) -> None:
        self._pinned[host] = size

    def unpin(self, host: int) -> None:
        del self._pinned[host]

    def _is_pinned(self, host: int, size: int) -> None:
        if not any(start <= host and host + size <= start + length for start, length in self._pinned.items()):
            raise DeviceError("a copy to memory that is not pinned")

    def _at(self, address: int, size: int) -> None:
        for block in self._blocks.values():
            if block.mapped and block.address <= address and address + size <= block.address + block.size:
                return
        raise DeviceError("an illegal address")

    def _count(self) -> None:
        held = sum(block.size for block in self._blocks.values() if block.mapped)
        (_folder() / str(os.getpid())).write_text(str(CONTEXT + self._plain + held))


def open_gpu() -> FakeGpu:
    return FakeGpu()


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


# pynvml


class NVMLError(Exception):
    pass


def _used() -> dict[int, int]:
    """Bytes of the processes that live, by pid."""
    files = [file for file in _folder().iterdir() if file.name.isdigit() and Path(f"/proc/{file.name}").exists()]
    return {int(file.name): int(file.read_text() or 0) for file in files}


def nvmlInit() -> None:
    if not os.environ.get(FOLDER):
        raise NVMLError("Driver Not Loaded")


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetMemoryInfo(gpu: int) -> Any:
    return SimpleNamespace(total=TOTAL, used=sum(_used().values()))


def nvmlDeviceGetComputeRunningProcesses(gpu: int) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in _used().items() if used]


def nvmlDeviceGetName(gpu: int) -> str:
    return "Fake GPU"


# cuda.bindings.driver


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_ILLEGAL_STATE = 401


class CUcheckpointLockArgs:
    timeoutMs = 0


def cuInit(flags: int) -> tuple[CUresult]:
    return (CUresult.CUDA_SUCCESS,)


def cuDriverGetVersion() -> tuple[CUresult, int]:
    return CUresult.CUDA_SUCCESS, 13000


def cuCheckpointProcessGetState(pid: int) -> tuple[CUresult, Any]:
    file = _folder() / f"{pid}.state"
    if not file.exists():
        return CUresult.CUDA_ERROR_INVALID_VALUE, None
    return CUresult.CUDA_SUCCESS, SimpleNamespace(name=f"CU_PROCESS_STATE_{file.read_text()}")


def cuCheckpointProcessLock(pid: int, arguments: CUcheckpointLockArgs) -> tuple[CUresult]:
    return _moves(pid, "RUNNING", "LOCKED")


def cuCheckpointProcessCheckpoint(pid: int, arguments: None) -> tuple[CUresult]:
    if os.environ.get(FAULT) == "checkpoint":
        return (CUresult.CUDA_ERROR_ILLEGAL_STATE,)
    return _moves(pid, "LOCKED", "CHECKPOINTED", str(pid), f"{pid}.away")


def cuCheckpointProcessRestore(pid: int, arguments: None) -> tuple[CUresult]:
    return _moves(pid, "CHECKPOINTED", "LOCKED", f"{pid}.away", str(pid))


def cuCheckpointProcessUnlock(pid: int, arguments: None) -> tuple[CUresult]:
    return _moves(pid, "LOCKED", "RUNNING")


def _moves(pid: int, before: str, after: str, source: str = "", to: str = "") -> tuple[CUresult]:
    file = _folder() / f"{pid}.state"
    if file.read_text() != before:
        return (CUresult.CUDA_ERROR_ILLEGAL_STATE,)
    file.write_text(after)
    if source:
        (_folder() / source).rename(_folder() / to)
    return (CUresult.CUDA_SUCCESS,)
