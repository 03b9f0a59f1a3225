"""`python -m tests.simulation --seeds 1000 -j 2`, or `--seed 7 --history` to replay one and read what happened."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from tests.simulation import mutants
from tests.simulation.run import results, simulate


def replay(seed: int, history: bool) -> int:
    world = simulate(seed, with_logs=history)
    if history:
        print("\n".join(world.history))
    for violation in world.violations:
        print(f"seed {seed}: {violation}")
    print(f"seed {seed}: {world.shape}, {len(world.asks)} requests, {len(world.violations)} violations")
    return 1 if world.violations else 0


def break_it(name: str, seeds: range) -> int:
    """Breaks the product's code and runs seeds until one fails; prints how many it took."""
    mutants.MUTANTS[name]()
    for count, result in enumerate(results(seeds, 1), 1):
        if result.violations:
            print(f"{count}\t{result.seed}\t{result.violations[0].splitlines()[0]}")
            return 0
    return 1


def all_mutants(names: list[str], first: int, seeds: int) -> int:
    """A table: the mutant, the seeds that it took to find it, what was found."""
    missed = 0
    for name in names:
        command = [sys.executable, "-m", "tests.simulation", "--break", name, "--first", str(first)]
        done = subprocess.run([*command, "--seeds", str(seeds)], capture_output=True, text=True, check=False)
        found = (
            done.stdout.strip() if done.returncode == 0 else f"-\t-\tnot found in {seeds} seeds {done.stderr[-500:]}"
        )
        missed += done.returncode != 0
        count, seed, what = found.split("\t", 2)
        print(f"{name:40} {count:>4} {seed:>6}  {what[:130]}", flush=True)
    print(f"{len(names)} mutants, {missed} not found")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--history", action="store_true", help="with --seed: print what happened, with the parts' logs")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="processes; 0: one a core")
    parser.add_argument(
        "--break", dest="broken", metavar="NAME", help="break the code so; stop at the first that fails"
    )
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="break it in all these ways in turn (all)")
    options = parser.parse_args()
    wrong = [name for name in [*(options.mutants or ()), options.broken] if name and name not in mutants.MUTANTS]
    if wrong:
        parser.error(f"there is no mutant {wrong[0]}: there are {', '.join(mutants.MUTANTS)}")
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a schedule
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    if options.mutants is not None:
        return all_mutants(options.mutants or list(mutants.MUTANTS), options.first, options.seeds)
    if options.broken and options.seed is None:
        return break_it(options.broken, range(options.first, options.first + options.seeds))
    if options.broken:
        mutants.MUTANTS[options.broken]()
    if options.seed is not None:
        return replay(options.seed, options.history)
    began, failed, asked, answered, spent = time.monotonic(), 0, 0, 0, 0.0
    for result in results(range(options.first, options.first + options.seeds), options.jobs or os.cpu_count() or 1):
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
