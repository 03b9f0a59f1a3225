"""A file on local NVMe, in the layout of the device: read back around the page cache, by many threads."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from vllm_sleep.host import GIB, Region, give_back
from vllm_sleep.memory import Device, DeviceError, Piece, StoreError, aligned

THREADS = 16
"""Reads under way at once, each with a stream and a pinned buffer of its own: 128 MiB in all."""
_PART = 8 * 2**20  # bytes of a read: enough for full speed
_SPARE = 4 * GIB  # bytes that are left free on the disk


class DiskFile:
    """A store in a file without a name: it is gone with the process, however that ends."""

    def __init__(self, folder: Path, threads: int = THREADS, region: type[Region] = Region) -> None:
        self._folder, self._threads, self._region = folder, threads, region
        self._file: int | None = None
        self._size = 0
        self._buffers: queue.SimpleQueue[tuple[int, Region]] = queue.SimpleQueue()  # with the stream of each
        self._made: list[Region] = []
        self._device: Device | None = None

    def reserve(self, size: int) -> None:
        size = aligned(size)
        if size <= self._size:
            return
        try:
            if self._file is None:
                self._file = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600)
            disk = os.fstatvfs(self._file)
            free = disk.f_bavail * disk.f_frsize
            if size - self._size + _SPARE > free:
                raise StoreError(
                    f"{self._folder} has {free / GIB:.1f}G left, and the copy needs {(size - self._size) / GIB:.1f}G "
                    f"and leaves {_SPARE / GIB:.0f}G: make room, or set staging.pinned to true"
                )
            os.posix_fallocate(self._file, 0, size)
        except OSError as error:
            raise StoreError(f"cannot keep a copy in {self._folder}: {error.strerror}") from None
        self._size = size

    def write(self, device: Device, pieces: Sequence[Piece]) -> None:
        def save(piece: Piece, buffer: Region, stream: int) -> None:
            device.fetch(buffer.address, piece.address, piece.size, stream)
            device.wait(stream)
            self._transfer(os.pwritev, buffer, piece)

        self._each(device, pieces, save)

    def read(self, device: Device, pieces: Iterable[Piece]) -> None:
        def load(piece: Piece, buffer: Region, stream: int) -> None:
            self._transfer(os.preadv, buffer, piece)
            device.load(piece.address, buffer.address, piece.size, stream)
            device.wait(stream)  # the buffer's next user overwrites it

        self._each(device, pieces, load)

    def clear(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = None, 0
        made, self._made = self._made, []
        self._buffers = queue.SimpleQueue()
        give_back(made, self._device)

    def _each(self, device: Device, pieces: Iterable[Piece], copy: Callable[[Piece, Region, int], None]) -> None:
        """Every piece by a thread with a buffer and a stream of its own. All threads are done on return."""
        self._prepare(device)
        failed = threading.Event()

        def run(piece: Piece) -> None:
            stream, buffer = self._buffers.get()
            try:
                if not failed.is_set():
                    copy(piece, buffer, stream)
            except BaseException:
                failed.set()
                raise
            finally:
                self._buffers.put((stream, buffer))

        with ThreadPoolExecutor(len(self._made), "disk") as pool:
            try:
                work: list[Future[None]] = [pool.submit(run, part) for piece in pieces for part in _parts(piece)]
            except BaseException:
                failed.set()  # what waits for a thread need not be read any more
                raise
        for done in work:
            done.result()

    def _prepare(self, device: Device) -> None:
        self._device = device
        for number in range(len(self._made), min(self._threads, device.streams)):
            try:
                buffer = self._region(_PART)
            except OSError as error:
                raise StoreError(f"the system does not give a buffer of {_PART >> 20} MiB: {error}") from None
            try:
                device.pin(buffer.address, buffer.size)
            except DeviceError as error:
                buffer.close()
                raise StoreError(f"the driver does not pin a buffer of {_PART >> 20} MiB: {error}") from None
            buffer.pinned = True
            self._made.append(buffer)
            self._buffers.put((number, buffer))

    def _transfer(self, call: Callable[[int, list[memoryview], int], int], buffer: Region, piece: Piece) -> None:
        """The whole piece between file and buffer; its end is padded, O_DIRECT wants whole blocks."""
        assert self._file is not None
        size = aligned(piece.size)
        view = memoryview((ctypes.c_char * size).from_address(buffer.address)).cast("B")
        done = 0
        while done < size:
            try:
                moved = call(self._file, [view[done:]], piece.offset + done)
            except OSError as error:
                raise StoreError(f"the copy in {self._folder} cannot be used: {error.strerror}") from None
            if moved <= 0:
                raise StoreError(f"the copy in {self._folder} ends early")
            done += moved


def _parts(piece: Piece) -> Iterator[Piece]:
    for start in range(0, piece.size, _PART):
        yield Piece(piece.address + start, min(_PART, piece.size - start), piece.offset + start)
