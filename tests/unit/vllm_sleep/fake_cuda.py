"""A GPU for tests: real bytes, real host addresses, and copies that are done late and out of order.

Only `wait` is sure to complete a copy, so who forgets to wait sees wrong bytes. Misuse is never swallowed: it is raised
and also kept in `Device.misuse`, which `check` raises again.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_sleep.host import Region
from vllm_sleep.memory import Block, DeviceError, OutOfDeviceMemory, StoreError

FIRST_ADDRESS = 0x7F00_0000_0000
GAP = 4096  # between two blocks, so that a copy beyond a block's end is seen


class Misuse(AssertionError):
    """Something that would corrupt memory or crash on a GPU."""


class Faults:
    """Says which call fails: the n-th from now on of its kind, once."""

    def __init__(self) -> None:
        self._armed: dict[str, int] = {}
        self.fired: list[str] = []
        self._lock = threading.Lock()

    def arm(self, kind: str, skip: int = 0) -> None:
        """The call after the next `skip` ones fails."""
        self._armed[kind] = skip

    def disarm(self) -> None:
        self._armed.clear()
        self.fired.clear()

    def hit(self, kind: str) -> bool:
        with self._lock:
            left = self._armed.get(kind)
            if left is None:
                return False
            if left:
                self._armed[kind] = left - 1
                return False
            del self._armed[kind]
            self.fired.append(kind)
            return True


@dataclass(eq=False)
class FakeBlock:
    """One allocation."""

    address: int
    size: int
    tag: str
    mapped: bool = True


@dataclass(eq=False)
class _Copy:
    to_host: bool
    host: int
    address: int
    size: int
    #: What the source held when the copy was begun: it must not change until it is done.
    source: bytes


class FakeDevice:
    """See `vllm_sleep.memory.Device`."""

    def __init__(self, size: int, streams: int = 3, seed: int = 0, faults: Faults | None = None) -> None:
        self.size, self.streams = size, streams
        self.faults = faults or Faults()
        self.others = 0
        """Bytes that other processes have of it."""
        self.by_chance = 0.05
        """How likely a call completes the oldest copy of a stream."""
        self.calls: Counter[str] = Counter()
        self.misuse: list[Misuse] = []
        self.host: dict[int, int] = {}
        """Host memory that was taken and not given back: bytes by address."""
        self.pinned: dict[int, int] = {}
        self._memory: dict[int, bytearray] = {}
        self._waiting: list[deque[_Copy]] = [deque() for _ in range(streams)]
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._stuck: set[int] = set()  # still pinned because `unpin` was made to fail
        self._next = FIRST_ADDRESS
        self._freed: list[tuple[int, int]] = []

    # What the engine does

    def allocate(self, size: int, tag: str) -> FakeBlock:
        """Mapped, with random content; at an address that was freed, when one fits."""
        for place in self._freed:
            if place[1] >= size:
                self._freed.remove(place)
                address = place[0]
                break
        else:
            address = self._next
            self._next += -(-size // GAP) * GAP + GAP
        block = FakeBlock(address, size, tag)
        self.map(block)
        return block

    def free(self, block: FakeBlock) -> None:
        if block.mapped:
            self.unmap(block)
            block.mapped = False
        self._freed.append((block.address, block.size))

    def content(self, block: Block) -> bytes:
        with self._lock:
            return bytes(self._of(block.address, block.size, "read")[0])

    def overwrite(self, block: Block, at: int, data: bytes) -> None:
        with self._lock:
            memory, start = self._of(block.address + at, len(data), "overwrite")
            memory[start : start + len(data)] = data

    def end_process(self) -> None:
        """What the driver and the system do when the process is killed."""
        with self._lock:
            self._memory.clear()
            self.pinned.clear()
            self.host.clear()
            self._stuck.clear()
            for queue in self._waiting:
                queue.clear()

    # What tests ask

    @property
    def used(self) -> int:
        """Bytes of mapped blocks."""
        return sum(map(len, self._memory.values()))

    @property
    def in_flight(self) -> int:
        """Copies that were begun and not completed."""
        return sum(map(len, self._waiting))

    def check(self) -> None:
        if self.misuse:
            raise self.misuse[0]

    # vllm_sleep.memory.Device

    def map(self, block: Block) -> None:
        with self._lock:
            self._enter("map")
            for address, memory in self._memory.items():
                if block.address < address + len(memory) and address < block.address + block.size:
                    self._wrong(f"{block.address:#x} is mapped twice")
            if self.faults.hit("map"):
                raise DeviceError("cuMemMap: CUDA_ERROR_UNKNOWN")
            if self.used + self.others + block.size > self.size:
                raise OutOfDeviceMemory("cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY")
            self._memory[block.address] = bytearray(self._random.randbytes(block.size))

    def unmap(self, block: Block) -> None:
        with self._lock:
            self._enter("unmap")
            memory = self._memory.get(block.address)
            if memory is None or len(memory) != block.size:
                self._wrong(f"{block.address:#x} is unmapped, and is not mapped")
            self._quiet(block.address, block.size, "unmapped")
            if self.faults.hit("unmap"):
                raise DeviceError("cuMemUnmap: CUDA_ERROR_UNKNOWN")
            del self._memory[block.address]

    def fingerprints(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        with self._lock:
            self._enter("fingerprints")
            if self.faults.hit("fingerprints"):
                raise DeviceError("cudaLaunchKernel: cudaErrorUnknown")
            found = []
            for address, size in spans:
                self._quiet(address, size, "fingerprinted")
                memory, start = self._of(address, size, "fingerprint")
                digest = hashlib.blake2b(memory[start : start + size], digest_size=8).digest()
                found.append(int.from_bytes(digest, "little", signed=True))
            return found

    def fetch(self, host: int, address: int, size: int, stream: int) -> None:
        with self._lock:
            self._enter("fetch")
            memory, start = self._begin(host, address, size, stream)
            if self.faults.hit("fetch"):
                raise DeviceError("cudaMemcpyAsync: cudaErrorUnknown")
            ctypes.memmove(host, self._random.randbytes(size), size)  # until it is done, anything may be there
            self._waiting[stream].append(_Copy(True, host, address, size, bytes(memory[start : start + size])))

    def load(self, address: int, host: int, size: int, stream: int) -> None:
        with self._lock:
            self._enter("load")
            memory, start = self._begin(host, address, size, stream)
            if self.faults.hit("load"):
                raise DeviceError("cudaMemcpyAsync: cudaErrorUnknown")
            memory[start : start + size] = self._random.randbytes(size)
            self._waiting[stream].append(_Copy(False, host, address, size, ctypes.string_at(host, size)))

    def wait(self, stream: int) -> None:
        with self._lock:
            self._enter("wait")
            queue = self._waiting[stream]
            if self.faults.hit("wait"):
                for _ in range(self._random.randint(0, len(queue))):
                    self._complete(queue)
                queue.clear()
                raise DeviceError("cudaStreamSynchronize: cudaErrorIllegalAddress")
            while queue:
                self._complete(queue)

    def pin(self, host: int, size: int) -> None:
        with self._lock:
            self._enter("pin")
            if not any(start <= host and host + size <= start + length for start, length in self.host.items()):
                self._wrong(f"{host:#x} is pinned, and is nobody's memory")
            if any(host < start + length and start < host + size for start, length in self.pinned.items()):
                self._wrong(f"{host:#x} is pinned twice")
            if self.faults.hit("pin"):
                raise DeviceError("cudaHostRegister: cudaErrorMemoryAllocation")
            self.pinned[host] = size

    def unpin(self, host: int) -> None:
        with self._lock:
            self._enter("unpin")
            if host not in self.pinned:
                self._wrong(f"{host:#x} is unpinned, and is not pinned")
            for copy in (copy for queue in self._waiting for copy in queue):
                if host <= copy.host < host + self.pinned[host]:
                    self._wrong(f"{host:#x} is unpinned while a copy of it is in flight")
            if self.faults.hit("unpin"):
                self._stuck.add(host)
                raise DeviceError("cudaHostUnregister: cudaErrorUnknown")
            del self.pinned[host]

    # Host memory, told by `region_type`

    def host_taken(self, address: int, size: int) -> None:
        with self._lock:
            self.host[address] = size
            for stuck in [start for start in self._stuck if address <= start < address + size]:
                self._stuck.discard(stuck)  # the system gave the address anew
                self.pinned.pop(stuck, None)

    def host_back(self, address: int) -> None:
        with self._lock:
            if address not in self.host:
                self._wrong(f"{address:#x} is given back twice")
            size = self.host.pop(address)
            for start in [start for start in self.pinned if address <= start < address + size]:
                if start not in self._stuck:
                    self._wrong(f"{start:#x} is given back while it is pinned")
                del self.pinned[start]
            for copy in (copy for queue in self._waiting for copy in queue):
                if address <= copy.host < address + size:
                    self._wrong(f"{address:#x} is given back while a copy of it is in flight")

    # Inside

    def _enter(self, kind: str) -> None:
        self.calls[kind] += 1
        for queue in self._waiting:  # now and then one gets done by itself
            if queue and self._random.random() < self.by_chance:
                self._complete(queue)

    def _complete(self, queue: deque[_Copy]) -> None:
        copy = queue.popleft()
        memory, start = self._of(copy.address, copy.size, "copy")
        source = memory[start : start + copy.size] if copy.to_host else ctypes.string_at(copy.host, copy.size)
        if source != copy.source:
            self._wrong(f"what is copied from {copy.address if copy.to_host else copy.host:#x} changed meanwhile")
        if copy.to_host:
            ctypes.memmove(copy.host, copy.source, copy.size)
        else:
            memory[start : start + copy.size] = copy.source

    def _begin(self, host: int, address: int, size: int, stream: int) -> tuple[bytearray, int]:
        if not 0 <= stream < self.streams:
            self._wrong(f"there is no stream {stream}")
        if not any(start <= host and host + size <= start + length for start, length in self.pinned.items()):
            self._wrong(f"a copy with {size} bytes of host memory at {host:#x} that are not pinned")
        for copy in (copy for queue in self._waiting for copy in queue):
            if host < copy.host + copy.size and copy.host < host + size:
                self._wrong(f"two copies at once with the host memory at {host:#x}")
        self._quiet(address, size, "copied")
        return self._of(address, size, "copy")

    def _quiet(self, address: int, size: int, what: str) -> None:
        for copy in (copy for queue in self._waiting for copy in queue):
            if address < copy.address + copy.size and copy.address < address + size:
                self._wrong(f"{address:#x} is {what} while a copy of it is in flight")

    def _of(self, address: int, size: int, what: str) -> tuple[bytearray, int]:
        """The block's memory, and where in it the address is."""
        for start, memory in self._memory.items():
            if start <= address and address + size <= start + len(memory):
                return memory, address - start
        self._wrong(f"{what} of {size} bytes at {address:#x}, which are not within a mapped block")
        raise AssertionError

    def _wrong(self, message: str) -> None:
        self.misuse.append(Misuse(message))
        raise self.misuse[-1]


def region_type(device: FakeDevice) -> type[Region]:
    """Host memory that tells the device when it comes and goes."""

    class Told(Region):
        def __init__(self, size: int) -> None:
            if device.faults.hit("region"):
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            super().__init__(size)
            device.host_taken(self.address, self.size)

        def populate(self, cpus: frozenset[int]) -> None:
            if device.faults.hit("populate"):
                raise StoreError("the system does not give memory")
            super().populate(cpus)

        def close(self) -> None:
            device.host_back(self.address)
            super().close()

    return Told


class FaultyOs:
    """Stands in for `os` in vllm_sleep.disk: any file system will do, and calls fail as told."""

    def __init__(self, faults: Faults, alignment: int) -> None:
        self._faults, self._alignment = faults, alignment

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        assert flags & os.O_DIRECT, "the page cache would hold a second copy"
        self._maybe("open", errno.EOPNOTSUPP)
        return os.open(path, flags & ~os.O_DIRECT, mode)

    def fstatvfs(self, file: int) -> os.statvfs_result:
        found = os.fstatvfs(file)
        if not self._faults.hit("disk full"):
            return found
        values = list(found)
        values[4] = 0  # f_bavail
        return os.statvfs_result(values)

    def posix_fallocate(self, file: int, offset: int, size: int) -> None:
        self._maybe("fallocate", errno.ENOSPC)
        os.posix_fallocate(file, offset, size)

    def pwritev(self, file: int, views: Sequence[memoryview], offset: int) -> int:
        self._aligned(views, offset)
        self._maybe("write file", errno.EIO)
        return os.pwritev(file, self._some("short write", views), offset)

    def preadv(self, file: int, views: Sequence[memoryview], offset: int) -> int:
        self._aligned(views, offset)
        self._maybe("read file", errno.EIO)
        if self._faults.hit("file ends"):
            return 0
        return os.preadv(file, self._some("short read", views), offset)

    def _some(self, kind: str, views: Sequence[memoryview]) -> Sequence[memoryview]:
        """One call moves less than was asked for, whole blocks still."""
        most = len(views[0]) // self._alignment // 2 * self._alignment
        return [views[0][:most]] if most and self._faults.hit(kind) else views

    def _aligned(self, views: Sequence[memoryview], offset: int) -> None:
        """What O_DIRECT asks for."""
        for view in views:
            at = ctypes.addressof(ctypes.c_char.from_buffer(view))
            assert at % self._alignment == len(view) % self._alignment == offset % self._alignment == 0

    def _maybe(self, kind: str, number: int) -> None:
        if self._faults.hit(kind):
            raise OSError(number, os.strerror(number))
