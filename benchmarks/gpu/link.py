"""Part a. What the link between host and device can do, by the very calls that the memory path makes."""

from __future__ import annotations

import time
from functools import cached_property, partial

from benchmarks.gpu.device import Gpu, open_gpu
from benchmarks.gpu.part import Case, Clock, Options, Row
from benchmarks.gpu.stats import GIB, rate
from vllm_sleep.host import Region
from vllm_sleep.memory import Block, settled

MIB = 2**20
CHUNKS = (1, 4, 16, 64, 256)
STREAMS = (1, 2, 4, 8)
ROUNDS = 3
SIZE = 4 * GIB
H2D, D2H = "h2d_gb_s", "d2h_gb_s"


def cases(options: Options, clock: Clock, notes: Row) -> list[Case]:
    rig = Rig(open_gpu(), SIZE // options.shrink)
    notes["of"] = f"{rig.size} bytes, best of {ROUNDS}; ceiling: one copy of them all"

    def cell(chunk: int, streams: int) -> Row:
        return rig.both(rig.registered, max(chunk * MIB // options.shrink, 4096), streams)

    grid = [(chunk, streams) for chunk in CHUNKS for streams in STREAMS]
    return [
        Case("ceiling", 15, lambda: rig.both(rig.registered, rig.size, 1)),
        Case("ceiling, host memory of the driver", 10, lambda: rig.both(rig.allocated, rig.size, 1)),
        *(Case(f"{chunk} MiB x {streams}", 2, partial(cell, chunk, streams)) for chunk, streams in grid),
        Case("pageable", 5, lambda: {H2D: rig.best(H2D, rig.pageable, rig.size, 1)}),
    ]


class Rig:
    """A block of the device and kinds of host memory, each made at its first use. Host memory is known by address."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self.size = gpu, size
        self._device = gpu.device()
        self._regions: list[Region] = []

    @cached_property
    def registered(self) -> int:
        """Pinned as the memory path does it."""
        address = self.pageable
        self._device.pin(address, self._regions[-1].size)
        return address

    @cached_property
    def allocated(self) -> int:
        """By cudaHostAlloc."""
        return self._gpu.host_alloc(self.size)

    @property
    def pageable(self) -> int:
        """Not pinned: what the pinning is worth."""
        region = Region(self.size)
        region.populate(self._gpu.cpus())
        self._regions.append(region)
        return region.address

    @cached_property
    def _block(self) -> Block:
        return self._gpu.allocate(self.size, "weights")

    def both(self, host: int, chunk: int, streams: int) -> Row:
        return {way: self.best(way, host, chunk, streams) for way in (H2D, D2H)}

    def best(self, way: str, host: int, chunk: int, streams: int) -> float:
        """GB/s."""
        self._device.streams = streams
        self._copy(way, host, chunk, streams)  # makes the streams
        return max(rate(self.size, self._copy(way, host, chunk, streams)) for _ in range(ROUNDS))

    def _copy(self, way: str, host: int, chunk: int, streams: int) -> float:
        """Seconds."""
        block = self._block
        began = time.perf_counter()
        with settled(self._device):
            for number, start in enumerate(range(0, self.size, chunk)):
                size = min(chunk, self.size - start)
                if way == H2D:
                    self._device.load(block.address + start, host + start, size, number % streams)
                else:
                    self._device.fetch(host + start, block.address + start, size, number % streams)
        return time.perf_counter() - began
