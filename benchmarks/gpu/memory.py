"""Part b. The memory path alone: blocks mapped and filled as an engine's, put to sleep and woken, and checked."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.gpu.device import Gpu, open_gpu
from benchmarks.gpu.nvml import Nvml
from benchmarks.gpu.part import Case, Clock, Options, Row
from benchmarks.gpu.stats import GB, GIB, most, rate, spread
from vllm_sleep import host
from vllm_sleep.host import HostMemory, Region
from vllm_sleep.memory import Block, Device, MemoryPath

CLASS_20B = "13 GB"
"""The weights of a model of 20B parameters in mxfp4: the row that the target of 300 ms is about."""
SIZES = {CLASS_20B: 13, "14 GB": 14, "40 GB": 40, "80 GB": 80}
SAMPLES = {13: 30, 14: 20, 40: 10, 80: 6}
STREAMS = (1, 2, 4, 8, 16)
UTILIZATION = 0.9
"""Of the card: weights and KV cache together, as vLLM has it."""
MARGIN = 2 * GIB
"""Of the card, for the sums that check the content."""
KEEP = {"weights"}
_NOHUGEPAGE = 15


class SmallPages(Region):
    """Of 4 KiB."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        host._libc.madvise(self.address, self.size, _NOHUGEPAGE)


def cases(options: Options, clock: Clock, notes: Row) -> list[Case]:
    nvml = Nvml()
    before = nvml.used()
    bench = Bench(open_gpu(), nvml, options, clock)
    notes["device_used_before_bytes"] = before
    notes["context_bytes"] = bench.context
    notes["compile_fingerprint_s"] = bench.compile()
    notes["transparent_huge_pages"] = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    notes["cpus_near_the_gpu"] = len(bench.gpu.cpus())
    found = [Case(name, 20 + 1.2 * size, partial(bench.size, size)) for name, size in SIZES.items()]
    return [
        *found,
        Case("14 GB, by streams", 25, lambda: bench.streams(14)),
        Case("14 GB, pages of 4 KiB", 45, lambda: bench.size(14, SmallPages, samples=6)),
    ]


class Timed:
    """A Device that says where the time went. For stores that call from one thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @property
    def streams(self) -> int:
        return self._device.streams

    @streams.setter
    def streams(self, count: int) -> None:
        self._device.streams = count

    def __getattr__(self, name: str) -> Any:
        call: Callable[..., Any] = getattr(self._device, name)

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        return timed

    def take(self) -> dict[str, float]:
        """Milliseconds since the last time, by call."""
        taken = {f"{name}_ms": round(1000 * seconds, 2) for name, seconds in sorted(self.seconds.items())}
        self.seconds = {}
        return taken


class Bench:
    def __init__(self, gpu: Gpu, nvml: Nvml, options: Options, clock: Clock) -> None:
        self.gpu, self._nvml, self._options, self._clock = gpu, nvml, options, clock
        self.device = Timed(gpu.device())
        self.context = nvml.of([os.getpid()])

    def compile(self) -> float:
        """Seconds until fingerprints can be taken: a process's first sleep has them too."""
        block = self.gpu.allocate(4 * 2**20, "weights")
        half = block.size // 2
        began = time.perf_counter()
        # a kernel is compiled for each alignment of its result's address
        self.device.fingerprints([(block.address, half), (block.address + half, half)])
        took = time.perf_counter() - began
        self.gpu.release(block)
        return round(took, 3)

    def size(self, size: int, pages: type[Region] = Region, samples: int = 0) -> Row:
        """First sleeps, sleeps and wakes of weights of that many GB."""
        total = size * GB // self._options.shrink
        room = self._room()
        if total * 1.01 > room:
            return {"left_out": f"the host may give {room / GB:.0f} GB for the pinned copy"}
        free = self.gpu.free()
        if total + MARGIN // self._options.shrink > free:
            return {"left_out": f"the card has {free / GB:.0f} GB free"}
        with self._blocks(total) as (weights, blocks):
            row: Row = {
                "weights_gb": round(sum(block.size for block in weights) / GB, 3),
                "allocations": len(weights),
                "kv_cache_gb": round(sum(block.size for block in blocks if block.tag == "kv_cache") / GB, 3),
            }
            sums = self._sums(weights)
            if size < 40:  # twice the time of the largest is too much
                with self._path(pages) as (path, store):
                    row["first_sleep"] = self._first(path, blocks)
                    row["first_wake"] = self._woken(path, blocks, weights, sums)
                    began = time.perf_counter()
                    store.clear()
                    row["give_back_s"] = round(time.perf_counter() - began, 3)
            with self._path(pages) as (path, store):
                began = time.perf_counter()
                store.reserve(sum(block.size for block in weights))
                row["take_host_memory_s"] = round(time.perf_counter() - began, 3)
                row["first_sleep_host_memory_taken"] = self._first(path, blocks)
                row["second_wake"] = self._woken(path, blocks, weights, sums)
                row |= self._cycles(path, blocks, weights, sums, samples or SAMPLES[size])
                row |= self._changed(path, blocks, weights)
            return row

    def streams(self, size: int) -> Row:
        """Wakes with other numbers of streams, in turn."""
        total = size * GB // self._options.shrink
        row: Row = {"wakes": {}}
        usual = self.device.streams
        with self._blocks(total) as (weights, blocks), self._path(Region) as (path, _):
            seconds: dict[int, list[float]] = {count: [] for count in STREAMS}
            path.sleep(blocks, KEEP, "host")
            try:
                for _ in range(6):
                    for count in STREAMS:
                        self.device.streams = count
                        seconds[count].append(self._wake(path, blocks)[0])
                        path.sleep(blocks, KEEP, "host")
                    if self._clock.left() < 10:
                        row["cut"] = True
                        break
            finally:
                self.device.streams = usual
            moved = sum(block.size for block in weights)
            for count, took in seconds.items():
                took = took[1:] or took  # the first makes the streams
                row["wakes"][str(count)] = spread(took) | {"best_gb_s": rate(moved, min(took))}
        return row

    def _room(self) -> int:
        return self._options.host_memory if self._options.host_memory is not None else host.available()

    @contextmanager
    def _path(self, pages: type[Region]) -> Iterator[tuple[MemoryPath, HostMemory]]:
        """A memory path with nothing saved; at the end its host memory is given back."""
        given = self._options.host_memory
        store = HostMemory(self.gpu.cpus(), host.available if given is None else lambda: given - store.size, pages)
        try:
            yield MemoryPath(self.device, {"host": store}), store
        finally:
            store.clear()

    @contextmanager
    def _blocks(self, total: int) -> Iterator[tuple[list[Block], list[Block]]]:
        """Weights in allocations as vLLM has them, and an empty KV cache in the rest of the card."""
        blocks: list[Block] = []
        try:
            for number, size in enumerate(sizes(total, self._options.shrink)):
                blocks.append(self.gpu.allocate(size, "weights"))
                self.gpu.fill(blocks[-1], number)
            weights = list(blocks)
            cache = int(UTILIZATION * self.gpu.total) - sum(block.size for block in weights)
            cache = min(cache, self.gpu.free() - MARGIN // self._options.shrink)
            if cache > 0:
                blocks.append(self.gpu.allocate(cache // (2 * 2**20) * 2 * 2**20, "kv_cache"))
            self.gpu.settle()
            yield weights, blocks
        finally:
            for block in blocks:
                self.gpu.release(block)

    def _first(self, path: MemoryPath, blocks: Sequence[Block]) -> Row:
        self.device.take()
        began = time.perf_counter()
        slept = path.sleep(blocks, KEEP, "host")
        took = time.perf_counter() - began
        return {"s": round(took, 3), "copied_gb": round(slept.copied / GB, 3), **self.device.take()}

    def _wake(self, path: MemoryPath, blocks: Sequence[Block]) -> tuple[float, int]:
        began = time.perf_counter()
        copied = path.wake(blocks)
        return time.perf_counter() - began, copied

    def _woken(self, path: MemoryPath, blocks: Sequence[Block], weights: Sequence[Block], sums: list[int]) -> Row:
        self.device.take()
        took, copied = self._wake(path, blocks)
        return {"ms": round(took * 1000, 2), "gb_s": rate(copied, took), **self.device.take(),
                "same_content": self._sums(weights) == sums}  # fmt: skip

    def _cycles(
        self, path: MemoryPath, blocks: Sequence[Block], weights: Sequence[Block], sums: list[int], samples: int
    ) -> Row:
        sleeps, prints, unmaps, wakes, left = [], [], [], [], []
        same, copied, device_left, cut = True, 0, [], False
        moved = sum(block.size for block in weights)
        for _ in range(samples):
            if self._clock.left() < 15:
                cut = True
                break
            self.gpu.settle()
            self.device.take()
            began = time.perf_counter()
            copied += path.sleep(blocks, KEEP, "host").copied
            sleeps.append(time.perf_counter() - began)
            parts = self.device.take()
            prints.append(parts.get("fingerprints_ms", 0.0) / 1000)
            unmaps.append(parts.get("unmap_ms", 0.0) / 1000)
            self.gpu.settle()
            left.append(self._nvml.of([os.getpid()]))
            device_left.append(self._nvml.used())
            wakes.append(self._wake(path, blocks)[0])
            same = same and self._sums(weights) == sums
        parts = self.device.take()
        row: Row = {
            "sleep": spread(sleeps),
            "sleep_fingerprints": spread(prints),
            "sleep_unmap": spread(unmaps),
            "sleep_copied_bytes": copied,
            "wake": spread(wakes),
            "asleep_process_bytes": most(left, self.context),
            "asleep_device_used_bytes": max(device_left, default=None),
            "same_content": same if wakes else None,
            "last_wake_parts": parts,
        }
        if wakes:
            ordered = sorted(wakes)
            row["wake_gb_s"] = rate(moved, ordered[len(ordered) // 2])
        return row | ({"cut": True} if cut else {})

    def _changed(self, path: MemoryPath, blocks: Sequence[Block], weights: Sequence[Block]) -> Row:
        """One bit of one block: is it noticed, is no more than its piece copied, and does it come back?"""
        block = max(weights, key=lambda b: b.size)
        self.gpu.change(block, block.size // 8 - 1)
        sums = self._sums(weights)
        slept = path.sleep(blocks, KEEP, "host")
        path.wake(blocks)
        return {"changed_bit_copied_bytes": slept.copied, "changed_bit_came_back": self._sums(weights) == sums}

    def _sums(self, weights: Sequence[Block]) -> list[int]:
        sums = [self.gpu.checksum(block) for block in weights]
        self.gpu.settle()
        return sums


def sizes(total: int, shrink: int = 1) -> list[int]:
    """Allocations as an engine makes them: nearly all of 20 to 500 MB, some small; always the same."""
    chance = random.Random(total)
    found, left = [], total
    while left > 0:
        largest = chance.uniform(2, 20) if chance.random() < 0.15 else chance.uniform(20, 500)
        size = min(left, max(2 * 2**20, int(largest * 1e6 / shrink)))
        found.append(size)
        left -= size
    return found


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None
