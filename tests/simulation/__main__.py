"""`python -m tests.simulation --seeds 1000 -j 2`, or `--seed 7 --history` to replay one and read what happened."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.run import results, simulate


def replay(seed: int, history: bool) -> int:
    world = simulate(seed, with_logs=history)
    if history:
        print("\n".join(world.history))
    for violation in world.violations:
        print(f"seed {seed}: {violation}")
    print(f"seed {seed}: {world.shape}, {len(world.asks)} requests, {len(world.violations)} violations")
    return 1 if world.violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--history", action="store_true", help="with --seed: print what happened, with the parts' logs")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a schedule
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    if options.seed is not None:
        return replay(options.seed, options.history)
    began, failed, asked, answered, spent = time.monotonic(), 0, 0, 0, 0.0
    for result in results(range(options.first, options.first + options.seeds), options.jobs):
        asked, answered, spent = asked + result.asked, answered + result.answered, spent + result.seconds
        if result.violations:
            failed += 1
            print(f"seed {result.seed}: {result.violations[0]}", flush=True)
    print(
        f"{options.seeds} seeds, {failed} failed, {asked} requests, {answered} answered, "
        f"{time.monotonic() - began:.1f} s, {spent / max(options.seeds, 1):.2f} s of CPU a seed"
    )
    if failed:
        print("to see what happened: python -m tests.simulation --seed N --history")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
