"""Pinned host memory: one copy of what sleeps, of its size, on huge pages, near the GPU, if the host can spare it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vllm_sleep.memory import Device, DeviceError, Piece, StoreError, settled

GIB = 2**30
HUGE_PAGE = 2 * 2**20
RESERVE = 8 * GIB
"""Bytes of the host's memory that are left to everybody else."""
_POPULATE = 512 * 2**20  # bytes that one thread touches at a time
_THREADS = 8
_MADV_POPULATE_WRITE = 23  # Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)  # its calls let go of the interpreter's lock, mmap.madvise does not
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def available(root: Path = Path("/")) -> int:
    """Bytes that this container may still take: of the host's memory less RESERVE, and of its own limit."""
    meminfo = (root / "proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    left = int(found.group(1)) * 1024 - RESERVE if found else 0
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        uses = dict(re.findall(r"^(\w+) (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE))
    except (OSError, ValueError):
        return left  # no limit of its own that we can read
    if limit != "max":
        cached = int(uses.get("file", 0)) - int(uses.get("shmem", 0))  # what is in /dev/shm counts as file, but stays
        left = min(left, int(limit) - used + cached)
    return left


def cpus_near(pci_address: str, root: Path = Path("/")) -> frozenset[int]:
    """CPUs of the device's NUMA node that this process may use; empty where that is unknown. `0000:17:00.0`."""
    try:
        text = (root / "sys/bus/pci/devices" / pci_address.lower() / "local_cpulist").read_text().strip()
        near: set[int] = set()
        for span in filter(None, text.split(",")):
            first, _, last = span.partition("-")
            near.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return frozenset()
    return frozenset(near & os.sched_getaffinity(0))


class Region:
    """Anonymous memory, a multiple of huge pages; pinned once a device is told."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // HUGE_PAGE) * HUGE_PAGE
        self._memory = mmap.mmap(-1, self.size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        anchor = ctypes.c_char.from_buffer(self._memory)
        start = ctypes.addressof(anchor)
        del anchor  # or the memory could not be given back
        self.address = -(-start // HUGE_PAGE) * HUGE_PAGE
        self.pinned = False
        _libc.madvise(self.address, self.size, mmap.MADV_HUGEPAGE)  # without them it works too, slower

    def populate(self, cpus: frozenset[int]) -> None:
        """Takes the memory from the system now, by threads that run near the device. StoreError."""

        def run(start: int) -> int:
            if cpus:
                with contextlib.suppress(OSError):  # they are not ours any more: it works elsewhere too, slower
                    os.sched_setaffinity(0, cpus)  # of this thread: who touches a page first decides where it is
            return self._touch(start, min(_POPULATE, self.size - start))

        with ThreadPoolExecutor(_THREADS, "populate") as pool:
            failed = [number for number in pool.map(run, range(0, self.size, _POPULATE)) if number]
        if failed:
            raise StoreError(f"the system does not give {self.size / GIB:.1f}G of memory: {os.strerror(failed[0])}")

    def _touch(self, start: int, size: int) -> int:
        if _libc.madvise(self.address + start, size, _MADV_POPULATE_WRITE) == 0:
            return 0
        number = ctypes.get_errno()
        if number != 22:  # EINVAL: an older kernel
            return number
        ctypes.memset(self.address + start, 0, size)
        return 0

    def close(self) -> None:
        self._memory.close()


def give_back(regions: Iterable[Region], device: Device | None) -> None:
    """Unpins and closes them all, and then raises the first DeviceError."""
    errors = []
    for region in regions:
        if region.pinned and device is not None:
            try:
                device.unpin(region.address)
            except DeviceError as error:
                errors.append(error)
        region.close()
    if errors:
        raise errors[0]


class HostMemory:
    """A store in pinned host memory. It grows by regions and is given back as a whole."""

    def __init__(
        self, cpus: frozenset[int] = frozenset(), room: Callable[[], int] = available, region: type[Region] = Region
    ) -> None:
        """`room`: bytes that may still be taken. `region`: another kind of memory, for tests."""
        self._cpus, self._room, self._region = cpus, room, region
        self._regions: list[tuple[int, Region]] = []  # with the offset at which each begins
        self._size = 0
        self._lock = threading.Lock()
        self._device: Device | None = None

    @property
    def size(self) -> int:
        """Bytes taken."""
        return self._size

    def reserve(self, size: int) -> None:
        """Also ahead of the first sleep, from another thread: nothing here calls CUDA."""
        with self._lock:
            missing = size - self._size
            if missing <= 0:
                return
            room = self._room()
            if missing > room:
                raise StoreError(
                    f"the pinned copy needs {missing / GIB:.1f}G more of host memory, {max(room, 0) / GIB:.1f}G may be "
                    "taken: raise the engine's memory limit, serve fewer models with staging.pinned on this node, or "
                    "write staging.pinned: false"
                )
            try:
                region = self._region(missing)
            except OSError as error:
                raise StoreError(f"the system does not give {missing / GIB:.1f}G of memory: {error}") from None
            try:
                region.populate(self._cpus)
                if self._room() < 0:  # somebody else took memory at the same time
                    raise StoreError("the host ran short of memory while the pinned copy was made")
            except StoreError:
                region.close()
                raise
            self._regions.append((self._size, region))
            self._size += region.size

    def write(self, device: Device, pieces: Sequence[Piece]) -> None:
        self._pin(device)
        with settled(device):
            for number, (host, address, size) in enumerate(self._parts(pieces)):
                device.fetch(host, address, size, number % device.streams)

    def read(self, device: Device, pieces: Iterable[Piece]) -> None:
        with settled(device):
            for number, (host, address, size) in enumerate(self._parts(pieces)):
                device.load(address, host, size, number % device.streams)

    def _parts(self, pieces: Iterable[Piece]) -> Iterator[tuple[int, int, int]]:
        """(host address, device address, bytes): a piece may lie across regions."""
        starts = [start for start, _ in self._regions]
        for piece in pieces:
            done = 0
            while done < piece.size:
                start, region = self._regions[bisect_right(starts, piece.offset + done) - 1]
                at = piece.offset + done - start
                size = min(piece.size - done, region.size - at)
                yield region.address + at, piece.address + done, size
                done += size

    def clear(self) -> None:
        with self._lock:
            regions = [region for _, region in self._regions]
            self._regions.clear()
            self._size = 0
            give_back(regions, self._device)

    def _pin(self, device: Device) -> None:
        self._device = device
        for _, region in self._regions:
            if not region.pinned:
                try:
                    device.pin(region.address, region.size)
                except DeviceError as error:
                    raise StoreError(f"the driver does not pin {region.size / GIB:.1f}G of memory: {error}") from None
                region.pinned = True
