"""Part a. What the link between host and device can do, by the very calls that the memory path makes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.gpu.device import Gpu, open_gpu
from benchmarks.gpu.part import Case, Clock, Options, Row
from benchmarks.gpu.stats import GIB, rate
from vllm_sleep.host import Region
from vllm_sleep.memory import Block, Device, settled

MIB = 2**20
CHUNKS = (1, 4, 16, 64, 256)
STREAMS = (1, 2, 4, 8)
ROUNDS = 3
SIZE = 4 * GIB
H2D, D2H = "h2d_gb_s", "d2h_gb_s"


def cases(options: Options, clock: Clock, notes: Row) -> list[Case]:
    gpu = open_gpu()
    notes["of"] = f"{SIZE // options.shrink} bytes, best of {ROUNDS}; ceiling: one copy of them all"
    rig = Rig(gpu, SIZE // options.shrink)

    def one(chunk: int, streams: int) -> Row:
        with rig.ready():
            return {way: rig.best(way, chunk, streams) for way in (H2D, D2H)}

    grid = [(chunk, streams) for chunk in CHUNKS for streams in STREAMS]
    return [
        Case("ceiling", 15, lambda: one(rig.size, 1)),
        *(
            Case(f"{chunk} MiB x {streams}", 2, partial(one, max(chunk * MIB // options.shrink, 4096), streams))
            for chunk, streams in grid
        ),
        Case("pageable", 5, lambda: pageable(gpu, rig.size)),
    ]


class Rig:
    """A pinned region and a block of the device, made at the first use."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self.size = gpu, size
        self._device: Device = gpu.device()
        self._made: tuple[Region, Block] | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        if self._made is None:
            region = Region(self.size)
            region.populate(self._gpu.cpus())
            self._device.pin(region.address, region.size)
            self._made = (region, self._gpu.allocate(self.size, "weights"))
        yield

    def best(self, way: str, chunk: int, streams: int) -> float:
        """GB/s."""
        assert self._made is not None
        region, block = self._made
        self._device.streams = streams
        self._copy(way, region, block, chunk, streams)  # makes the streams
        return max(rate(self.size, self._copy(way, region, block, chunk, streams)) for _ in range(ROUNDS))

    def _copy(self, way: str, region: Any, block: Block, chunk: int, streams: int) -> float:
        began = time.perf_counter()
        with settled(self._device):
            for number, start in enumerate(range(0, self.size, chunk)):
                size = min(chunk, self.size - start)
                host, device = region.address + start, block.address + start
                if way == H2D:
                    self._device.load(device, host, size, number % streams)
                else:
                    self._device.fetch(host, device, size, number % streams)
        return time.perf_counter() - began


def pageable(gpu: Gpu, size: int) -> Row:
    """From memory that is not pinned: what the pinning is worth."""
    device, block, region = gpu.device(), gpu.allocate(size, "weights"), Region(size)
    try:
        region.populate(gpu.cpus())
        device.load(block.address, region.address, size, 0)
        device.wait(0)
        began = time.perf_counter()
        device.load(block.address, region.address, size, 0)
        device.wait(0)
        return {H2D: rate(size, time.perf_counter() - began)}
    finally:
        gpu.release(block)
        region.close()
