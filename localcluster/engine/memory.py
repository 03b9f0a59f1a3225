"""The GPU memory of one engine: context, weights and KV cache, allocated from the ledger by real elapsed time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from localcluster.gpus.ledger import GIB, Ledger

CONTEXT_BYTES = int(1.8 * GIB)
"""What the driver, the kernels and the workspaces take beside vLLM's share."""

_STEP_SECONDS = 0.025


class NotEnoughMemory(Exception):
    """vLLM refuses to start: too little memory is free, or too little for its own cache."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the engine takes of each of its GPUs, in bytes."""

    devices: tuple[int, ...]
    weights: int
    utilization: float


class GpuMemory:
    """The memory of one engine on its GPUs. Tags are vLLM's, `weights` and `kv_cache`, and `context` for the rest."""

    def __init__(self, ledger: Ledger, plan: Plan, left_bytes: int) -> None:
        self._ledger, self._plan = ledger, plan
        self._context = CONTEXT_BYTES
        self._left = min(left_bytes, self._context)
        self._kv_cache = {
            index: int(ledger.device(index).total_bytes * plan.utilization) - plan.weights for index in plan.devices
        }

    def start(self) -> None:
        """Take the context, then check that the share of each GPU that was asked for is free, as vLLM does first."""
        for index in self._plan.devices:
            self._ledger.allocate(index, self._context, "context")
        for index in self._plan.devices:
            free, total = self._ledger.free_bytes(index), self._ledger.device(index).total_bytes
            wanted = int(total * self._plan.utilization)
            if free < wanted:
                raise NotEnoughMemory(
                    f"Free memory on device cuda:{index} ({free / GIB:.2f}/{total / GIB:.2f} GiB) on startup is less "
                    f"than desired GPU memory utilization ({self._plan.utilization}, {wanted / GIB:.2f} GiB). Decrease "
                    "GPU memory utilization or reduce GPU memory used by other processes."
                )

    async def copy_weights(self, bytes_per_second: float) -> None:
        """Allocate and fill the weights of every GPU, at this speed for each."""
        loop = asyncio.get_running_loop()
        began, copied, total = loop.time(), 0, self._plan.weights
        while copied < total:
            seconds = min((total - copied) / bytes_per_second, _STEP_SECONDS)
            await asyncio.sleep(seconds)
            reached = min(int((loop.time() - began) * bytes_per_second), total)
            if total - reached < 1024:
                reached = total
            for index in self._plan.devices:
                self._ledger.allocate(index, reached - copied, "weights")
            copied = reached

    def map_weights(self) -> None:
        """Allocate the weights without anything in them: what waking the tag does after a level 2 sleep."""
        for index in self._plan.devices:
            self._ledger.allocate(index, self._plan.weights, "weights")

    def map_kv_cache(self) -> None:
        """Allocate the KV cache: the rest of vLLM's share. Raises NotEnoughMemory when the weights left nothing."""
        for index, size in self._kv_cache.items():
            if size <= 0:
                raise NotEnoughMemory(
                    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
                    "initializing the engine."
                )
            self._ledger.allocate(index, size, "kv_cache")

    def map_context(self) -> None:
        """Bring back what a sleep took of the context."""
        for index in self._plan.devices:
            self._ledger.allocate(index, self._context - self._ledger.held_bytes(index, "context"), "context")

    def free_all(self) -> None:
        """Give everything back but what stays while asleep."""
        for index in self._plan.devices:
            self._ledger.free(index, "kv_cache")
            self._ledger.free(index, "weights")
            self._ledger.free(index, "context", keep=self._left)

    @property
    def weights(self) -> int:
        """Bytes of weights on each GPU."""
        return self._plan.weights
