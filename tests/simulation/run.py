"""Runs seeds: each in a loop of its own, the same every time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.simulation.loop import PROCESS, Process, SimLoop
from tests.simulation.world import Shape, World, logging_to


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every `random.Random()` that a part makes for itself is made from the seed."""
    original, numbers = random.Random, itertools.count(seed * 1_000_003)

    class Seeded(original):  # type: ignore[misc,valid-type]
        def __init__(self, x: object = None) -> None:
            super().__init__(next(numbers) if x is None else x)

    random.Random = Seeded  # type: ignore[misc]
    try:
        yield
    finally:
        random.Random = original  # type: ignore[misc]


def simulate(seed: int, with_logs: bool = False) -> World:
    """Runs one seed to its end."""
    history: list[str] = []

    async def main() -> World:
        PROCESS.set(Process("world"))
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        world = World(seed, loop, Shape.of(seed), history)
        await world.run()
        return world

    root = logging.getLogger()
    root.handlers.clear()
    handler = logging_to(history) if with_logs else logging.NullHandler()
    root.addHandler(handler)
    root.setLevel(logging.INFO if with_logs else logging.CRITICAL)
    try:
        with seeded(seed), asyncio.Runner(loop_factory=lambda: SimLoop(random.Random(seed))) as runner:
            return runner.run(main())
    finally:
        root.removeHandler(handler)


@dataclass(frozen=True)
class Result:
    seed: int
    violations: list[str]
    asked: int
    answered: int
    seconds: float


def result_of(seed: int) -> Result:
    """Runs one seed; the collector of garbage only runs between seeds."""
    began = time.process_time()
    gc.disable()
    try:
        world = simulate(seed)
    finally:
        gc.enable()
        gc.collect()
    answered = sum(ask.outcome == "answered" for ask in world.asks)
    return Result(seed, world.violations, len(world.asks), answered, time.process_time() - began)


def results(seeds: range, jobs: int) -> Iterator[Result]:
    """Runs the seeds, in ``jobs`` processes."""
    if jobs == 1:
        yield from map(result_of, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(result_of, seeds, chunksize=2)
