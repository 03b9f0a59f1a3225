"""Checks docs/protocol.pml with SPIN: every configuration must hold, every seeded mistake must be caught.

``make model-check`` runs all; ``--only gang`` those with that word in their name, ``--list`` says what there is. One
verification at a time, each exhaustive, with a limit for memory. The exit status is 0 if there was no surprise.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[1] / "docs" / "protocol.pml"
MEMORY_MIB = 3000
#: Seconds that one verification may take before it counts as a failure.
LIMIT = 300
#: Spin: pan's search depth.
DEPTH = 2_000_000


@dataclass(frozen=True)
class Check:
    """``flags``: -D of the model. ``progress``: also that no run goes on for ever."""

    name: str
    flags: str
    progress: bool = True


@dataclass(frozen=True)
class Outcome:
    found: str
    states: int
    seconds: float
    complete: bool
    story: tuple[str, ...] = ()


GANG = "NP=3 NG=2 TOTAL=1 GS0=3 GS1=1 GS2=2"
RING = "NP=3 NG=3 TOTAL=1 GS0=3 GS1=6 GS2=5 SHORTRUN=7 KEEPS=7"
PAIR = "NP=2 NG=1 TOTAL=2 NW0=2"
TWINS = "NP=2 NG=2 TOTAL=2 GS0=3 GS1=3 NW0=2"

HOLDS = [
    Check("three pods, one GPU", "NP=3 NG=1 TOTAL=2"),
    Check("a big model among small ones", "NP=3 NG=1 TOTAL=2 NW1=2"),
    Check("requests that never end", "NP=3 NG=1 TOTAL=2 NW1=2 ENDLESS=5"),
    Check("pinned, and another program", f"{PAIR} NW1=1 POPULAR=2 FOREIGN=1 RQ0=2"),
    Check("pinned beside two", "NP=3 NG=1 TOTAL=2 NW0=2 POPULAR=4"),
    Check("idle ones go by themselves", "NP=3 NG=1 TOTAL=2 NW0=2 IDLES=6"),
    Check("sidecar crash", "NP=3 NG=1 TOTAL=2 CRASHES=1", progress=False),
    Check("sidecar crashes, engine death", f"{PAIR} CRASHES=2 DEATHS=1 NB0=2"),
    Check("sidecar stays down", f"{PAIR} CRASHES=2 STAYS=1 RQ1=2"),
    Check("engine fails or hangs", f"{PAIR} FAILS=2 RQ0=2"),
    Check("API out of reach", f"{PAIR} APIFAULTS=3 QUITS=1"),
    Check("API out of reach, crash", f"{PAIR} APIFAULTS=1 CRASHES=1 QUITS=1"),
    Check("first boots", "NP=2 NG=1 TOTAL=2 NB0=2 NB1=2 UNBOOTED=3 QUITS=1"),
    Check("first boots, API out of reach", "NP=2 NG=1 TOTAL=2 NB0=2 NB1=2 UNBOOTED=3 APIFAULTS=2"),
    Check("first boots, crash, engine death", "NP=2 NG=1 TOTAL=2 NB0=2 NB1=2 UNBOOTED=3 CRASHES=1 DEATHS=1"),
    Check("boot among requests, engine death", "NP=3 NG=1 TOTAL=2 NB0=2 UNBOOTED=1 RQ0=0 DEATHS=1", progress=False),
    Check("pod gone, its name again", f"{PAIR} DELETES=2 REBORN=1"),
    Check("pod gone, crash", f"{PAIR} DELETES=1 REBORN=1 CRASHES=1"),
    Check("gang and two singles", GANG),
    Check("gang, clients leave", f"{GANG} QUITS=1", progress=False),
    Check("gang, sidecar crash", "NP=2 NG=2 TOTAL=1 GS0=3 GS1=2 CRASHES=2 RQ1=2"),
    Check("gang, engine death, boot", "NP=2 NG=2 TOTAL=2 GS0=3 GS1=2 NW0=1 NB0=2 DEATHS=2 NW1=2"),
    Check("two gangs, API out of reach", f"{TWINS} APIFAULTS=2 QUITS=1", progress=False),
    Check("two gangs, crash", f"{TWINS} CRASHES=1"),
    Check("gang gone", "NP=2 NG=2 TOTAL=1 GS0=3 GS1=2 DELETES=1 REBORN=1"),
    Check("three overlapping gangs, three GPUs", RING, progress=False),
    Check("two overlapping gangs, three GPUs", "NP=2 NG=3 TOTAL=1 GS0=3 GS1=6 CRASHES=1 QUITS=1 RQ0=2"),
]

MISTAKES = [
    # Rules taken away.
    Check("NO_SUM_RULE", "NP=2 NG=1 TOTAL=2 NB0=2 NB1=2 UNBOOTED=3"),
    Check("LOCK_TAKEN_OVER", "NP=2 NG=1 TOTAL=2"),
    Check("NO_RUNTIME_TIMER", f"{PAIR} ENDLESS=3"),
    Check("RUNTIME_IGNORED", f"{PAIR} ENDLESS=3"),
    Check("PINNED_IS_VICTIM", "NP=3 NG=1 TOTAL=3 NW0=2 POPULAR=2"),
    Check("HOPELESS_WAITS", "NP=3 NG=1 TOTAL=2 NW0=2 POPULAR=4"),
    Check("ALL_GIVE_WAY", "NP=3 NG=1 TOTAL=2"),
    Check("YIELD_UNTESTED", "NP=3 NG=1 TOTAL=2"),
    Check("GANG_BLIND", GANG),
    Check("GANG_HOLDS BUG_HOLDS_AND_WAITS", GANG),
    Check("EVENTS_LOST", PAIR),
    Check("RELEASE_FIRST", PAIR),
    Check("TRUSTS_IS_SLEEPING", f"{PAIR} CRASHES=1"),
    Check("HEIR_DOES_NOT_WAIT", f"{PAIR} DELETES=1 REBORN=1"),
    Check("AGENT_UNCONDITIONAL", f"{PAIR} DELETES=1 REBORN=1"),
    Check("INTENTS_OF_THE_DOWN_STAY", f"{PAIR} CRASHES=1 STAYS=1"),
    # What the code once did, found by this model.
    Check("HOLDS_AND_WAITS", f"{PAIR} APIFAULTS=1"),
    Check("INTENT_FORGOTTEN", f"{GANG} QUITS=1"),
    Check("BOOT_UNDER_A_WAKE", "NP=2 NG=1 TOTAL=3 NB0=2 DEATHS=1"),
    Check("HALF_LEFT", f"{PAIR} APIFAULTS=1 QUITS=1"),
    Check("READY_WHEN_DEAD", f"{PAIR} DEATHS=1"),
]


def main() -> int:
    arguments = _arguments()
    holds = [check for check in HOLDS if arguments.only.lower() in check.name.lower()]
    mistakes = [check for check in MISTAKES if arguments.only.lower() in check.name.lower()]
    if arguments.list:
        for check in (*holds, *mistakes):
            print(f"{check.name:38} {check.flags}")
        return 0
    if not holds and not mistakes:
        print(f"error: no configuration has {arguments.only!r} in its name; --list shows them", file=sys.stderr)
        return 2
    _tools()
    surprises = 0
    began = time.monotonic()
    row = "{:38} {:18} {:>11} {:>6}  {}"
    print(row.format("configuration", "property", "states", "s", "verdict"))
    for check in holds:
        wanted = "safety, progress" if check.progress else "safety"
        outcome = _verify(check.flags, check.progress)
        good = not outcome.found and outcome.complete
        surprises += not good
        verdict = "holds" if good else outcome.found or "not exhausted: out of memory, depth or time"
        print(row.format(check.name, wanted, outcome.states, f"{outcome.seconds:.0f}", verdict), flush=True)
        print(*outcome.story, sep="\n", end="\n" if outcome.story else "")
    print()
    print(row.format("seeded mistake", "", "states", "s", "verdict"))
    for check in mistakes:
        outcome = _verify(f"{check.flags} BUG_{check.name}", progress=False)
        if not outcome.found:
            outcome = _verify(f"{check.flags} BUG_{check.name}", progress=True)
        surprises += not outcome.found
        verdict = f"caught: {outcome.found}" if outcome.found else "NOT CAUGHT"
        print(row.format(check.name.split()[0], "", outcome.states, f"{outcome.seconds:.0f}", verdict), flush=True)
        if arguments.stories:
            print(*outcome.story, sep="\n", end="\n" if outcome.story else "")
    print()
    done = f"{len(holds)} configurations, {len(mistakes)} seeded mistakes, {time.monotonic() - began:.0f} s"
    print(f"{done}: {'as it should be' if not surprises else f'{surprises} SURPRISES'}")
    return 1 if surprises else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make model-check", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", metavar="WORD", help="only what has this word in its name")
    parser.add_argument("--list", action="store_true", help="name the configurations and leave")
    parser.add_argument("--stories", action="store_true", help="tell how each seeded mistake goes wrong")
    return parser.parse_args()


def _tools() -> None:
    """Sees to it that spin and a C compiler are there; else leaves with advice."""
    lacking = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if lacking and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' and '.join(lacking)}", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        install = ["apt-get", "install", "-y", "-qq", *lacking, "libc6-dev"]
        subprocess.run(install, check=False, stdout=subprocess.DEVNULL)
        lacking = [tool for tool in lacking if shutil.which(tool) is None]
    if lacking:
        what = " and ".join(lacking)
        print(f"error: {what} not found. On Debian or Ubuntu: sudo apt-get install spin gcc", file=sys.stderr)
        raise SystemExit(2)


def _verify(flags: str, progress: bool) -> Outcome:
    defines = [f"-D{flag}" for flag in flags.split()]
    with tempfile.TemporaryDirectory(prefix="model-check-") as folder:
        shutil.copy(MODEL, folder)
        _do(folder, "spin", *defines, "-a", MODEL.name)
        _do(
            folder, "gcc", "-O2", "-w", "-DNP" if progress else "-DSAFETY", "-DNOREDUCE", "-DCOLLAPSE",
            f"-DMEMLIM={MEMORY_MIB}", "-o", "pan", "pan.c",
        )  # fmt: skip
        began = time.monotonic()
        pan = ["nice", "-n", "19", "./pan", "-E", f"-m{DEPTH}", *(["-l"] if progress else [])]
        try:
            output = subprocess.run(pan, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False).stdout
        except subprocess.TimeoutExpired:
            output = ""
        seconds = time.monotonic() - began
        states = re.search(r"(\d+) states, stored", output)
        complete = "max search depth" not in output and "reached -DMEMLIM" not in output and states is not None
        found = ""
        if re.search(r"^pan:\d+: non-progress cycle", output, re.M):
            found = "goes on for ever"
        elif re.search(r"^pan:\d+: assertion violated", output, re.M):
            found = "assertion"
        story: tuple[str, ...] = ()
        if found:
            story = _story(folder, defines)
            found = f"{found} ({_where(folder, defines)})"
        return Outcome(found, int(states[1]) if states else 0, seconds, complete, story)


def _do(folder: str, *command: str) -> None:
    result = subprocess.run(["nice", "-n", "19", *command], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        print(f"error: {' '.join(command)}\n{result.stdout}{result.stderr}", file=sys.stderr)
        raise SystemExit(2)


def _replay(folder: str, defines: list[str]) -> list[str]:
    command = ["spin", *defines, "-T", "-t", "-p", "-g", MODEL.name]
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    return output.split("spin: trail ends")[0].splitlines()


_STEP = re.compile(r"\s*\d+:\s+proc\s+\d+ \(([^)]*)\) \S+?:(\d+)")
_CHANGE = re.compile(r"\t+(\w+)(?:\[(\d+)\])? = (-?\d+)")
#: Arrays with one item a GPU and pod; shown as name[gpu,pod].
_BY_GPU = ("st", "rs", "it", "rq", "vic")


def _where(folder: str, defines: list[str]) -> str:
    """The line at which the run ends."""
    lines = [step for line in _replay(folder, defines) if (step := _STEP.match(line))]
    return f"{MODEL.name}:{lines[-1][2]}" if lines else "?"


def _story(folder: str, defines: list[str]) -> tuple[str, ...]:
    """The counterexample as the changes that each step made."""
    source = MODEL.read_text()
    places = {int(n): name for name, n in re.findall(r"^#define ([A-Z]+)\s+(\d+)\s+/\* (?!requests)", source, re.M)}
    engines = ("absent", "boots", "asleep", "wakes", "awake", "goes to sleep")
    states = ("none", "sleeping", "waking", "converting", "serving", "deactivating")
    pods = next((int(flag[5:]) for flag in defines if flag.startswith("-DNP=")), 3)
    values: dict[str, str] = {}
    told: list[str] = []
    who = ""
    for line in _replay(folder, defines):
        if step := _STEP.match(line):
            who = step[1]
            continue
        change = _CHANGE.match(line)
        if not change or change[1] in ("sI", "sO", "cg", "k", "j", "nm"):
            continue
        name, index, value = change.groups()
        if name == "pc":
            value = places.get(int(value), value)
        elif name in ("eng", "st"):
            value = (engines if name == "eng" else states)[int(value)]
        if index is not None and name in _BY_GPU:
            name = f"{name}[gpu {int(index) // pods}, pod {int(index) % pods}]"
        elif index is not None:
            name = f"{name}[{index}]"
        if values.get(name, "0") != value:
            values[name] = value
            if "init" not in who:
                told.append(f"    {name} = {value}")
    return tuple(told)


if __name__ == "__main__":
    raise SystemExit(main())
