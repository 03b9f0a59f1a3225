"""A process that uses the GPU as an engine does, for part c: `python -m benchmarks.gpu.tenant '{"plain": 0, …}'`.

Reads a word a line: `check` replays its graphs and sums its memory up, `sleep` and `wake` go through the memory path.
It answers each by one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.gpu.device import open_gpu
from vllm_sleep.host import HostMemory, Region
from vllm_sleep.memory import Block, MemoryPath

GRAPHS = 20


class Tenant:
    def __init__(self, plain: int = 0, pinned: int = 0, weights: int = 0) -> None:
        """Bytes of: torch's ordinary memory, pinned host memory, and weights with a memory path around them."""
        self._gpu = gpu = open_gpu()
        self._graphs, self._plain = gpu.graphs(GRAPHS), gpu.plain(plain)
        self._blocks: list[Block] = []
        for number in range(4 if weights else 0):
            self._blocks.append(gpu.allocate(weights // 4, "weights"))
            gpu.fill(self._blocks[-1], number)
        device = gpu.device()
        self._path = MemoryPath(device, {"host": HostMemory(gpu.cpus(), lambda: 2**62)})
        if pinned:
            self._region = Region(pinned)
            self._region.populate(gpu.cpus())
            device.pin(self._region.address, self._region.size)
        gpu.settle()
        self._expected = self._sums()

    def answer(self, word: str) -> dict[str, Any]:
        began = time.perf_counter()
        if word == "sleep":
            self._path.sleep(self._blocks, {"weights"}, "host")
            self._gpu.settle()
        elif word == "wake":
            self._path.wake(self._blocks)
        elif word == "check":
            return {"same": self._sums() == self._expected}
        else:
            return {"error": f"no such word: {word}"}
        return {"s": time.perf_counter() - began}

    def _sums(self) -> list[int]:
        sums = [self._graphs(), self._plain(), *(self._gpu.checksum(block) for block in self._blocks)]
        self._gpu.settle()
        return sums


def main() -> None:
    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    tenant = Tenant(**json.loads(sys.argv[1]))
    say({"ready": True})
    for line in sys.stdin:
        try:
            say(tenant.answer(line.strip()))
        except Exception as error:  # who measures is to know, and goes on
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
