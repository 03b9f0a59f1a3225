"""`python -m tests.simulation --seeds 1000`, or `--seed 7 --history` to replay one and read what happened."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.simulation.world import World, logging_to
from tests.virtual import run


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
        world = World(seed, models=2 + seed % 4, gpus=1 + seed % 3, history=history)
        await world.run()
        return world

    root = logging.getLogger()
    root.handlers.clear()
    handler = logging_to(history) if with_logs else logging.NullHandler()
    root.addHandler(handler)
    root.setLevel(logging.INFO if with_logs else logging.CRITICAL)
    try:
        with seeded(seed):
            return run(main(), turn=1e-6)
    finally:
        root.removeHandler(handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--history", action="store_true", help="print what happened, with the parts' logs")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a schedule
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    began, failed, asked, answered = time.monotonic(), [], 0, 0
    for seed in seeds:
        world = simulate(seed, with_logs=options.history)
        asked += len(world.asks)
        answered += sum(ask.outcome == "answered" for ask in world.asks)
        if options.history:
            print("\n".join(world.history))
        if world.violations:
            failed.append(seed)
            print(f"seed {seed}: {world.violations[0]}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds, {len(failed)} failed, {asked} requests, {answered} answered, {seconds:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
