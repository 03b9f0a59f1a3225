"""Checks docs/protocol.pml with SPIN: every configuration must hold, every seeded mistake must be caught.

``make model-check`` runs all, two at a time; ``--quick`` a small part; ``--only gang`` those with that word in their
name; ``--list`` says what there is. A search is exhaustive, within a limit for memory and time. If its line says
``hashed``, 64 bits of each state were kept: of 30 million, one is missed with a chance below 1 in 10,000. The exit
status is 0 if there was no surprise.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[1] / "docs" / "protocol.pml"
PAGE = MODEL.with_suffix(".md")
#: Between these lines of the page stands what the last whole run said.
_FROM, _TO = "<!-- what make model-check said -->", "<!-- end -->"
MEMORY_MIB = 3000
#: Seconds of CPU time that one verification may take before it counts as a failure.
LIMIT = 400
#: Spin: pan's search depth.
DEPTH = 2_000_000
#: The properties: assertions alone, also that no run goes on for ever, or the formula ``fed`` under weak fairness.
SAFE, ENDS, FED = "safety", "safety, progress", "fed, weakly fair"
#: What pan is compiled and called with for each.
HOW = {SAFE: (["-DSAFETY"], []), ENDS: (["-DNP"], ["-l"]), FED: (["-DNFAIR=3"], ["-a", "-f"])}


@dataclass(frozen=True)
class Check:
    """``flags``: -D of the model. ``hashed``: too many states to keep as they are. ``big``: worth a good compiler."""

    name: str
    flags: str
    wanted: str = ENDS
    hashed: bool = False
    big: bool = True
    quick: bool = False


@dataclass(frozen=True)
class Outcome:
    """``seconds``: CPU time of the search."""

    found: str
    states: int
    seconds: float
    complete: bool
    story: tuple[str, ...] = ()


def small(name: str, flags: str) -> Check:
    """A configuration that takes a few seconds: part of ``--quick``."""
    return Check(name, flags, quick=True)


def tiny(name: str, flags: str) -> Check:
    """One that takes less than the compiler's optimization."""
    return Check(name, flags, big=False, quick=True)


THREE = "NP=3 NG=1 TOTAL=2"
#: Without minRuntime, so that there is memory for trouble.
BRIEF = f"{THREE} SHORTRUN=7"
PAIR = "NP=2 NG=1 TOTAL=2 NW0=2"
GANG = "NP=3 NG=2 TOTAL=1 GS0=3 GS1=1 GS2=2"
TWINS = "NP=2 NG=2 TOTAL=2 GS0=3 GS1=3 NW0=2"
#: Gangs on GPUs {0,1}, {1,2} and {0,2}; the second, without minRuntime and yieldAfter, fits three GPUs into memory.
RING = "NP=3 NG=3 TOTAL=1 GS0=3 GS1=6 GS2=5 SHORTRUN=7 KEEPS=7"
CHAIN = "NP=2 NG=3 TOTAL=1 GS0=3 GS1=6"
BOOTS = "NP=2 NG=1 TOTAL=2 NB0=2 NB1=2 UNBOOTED=3"
BOOTERS = f"{THREE} NB0=2 UNBOOTED=7 RQ1=0 RQ2=0"
BESIDE = "NP=3 NG=1 TOTAL=3 NB2=2 UNBOOTED=4 IDLES=2 RQ1=2 RQ2=0"
HUNGRY = "NP=3 NG=1 TOTAL=4 NW0=2 RENEWS=6 IDLES=6 SHORTRUN=7 KEEPS=7"

HOLDS = [
    # One GPU, no trouble.
    Check("three pods, one GPU", THREE),
    Check("a big model among small ones", f"{THREE} NW1=2"),
    Check("requests that never end", f"{THREE} NW1=2 ENDLESS=5"),
    tiny("pinned, and another program", f"{PAIR} NW1=1 POPULAR=2 FOREIGN=1 RQ0=2"),
    Check("pinned beside two", f"{THREE} NW0=2 POPULAR=4"),
    Check("idle ones go by themselves", f"{THREE} NW0=2 IDLES=6"),
    Check("a boot beside who waits", BESIDE, SAFE),
    tiny("requests that may not preempt", f"{PAIR} POLITE=1 RQ1=2 QUITS=1"),
    Check("one of three may not preempt", f"{THREE} NW0=2 POLITE=2"),
    Check("small ones that keep coming", HUNGRY, FED),
    # Liveness with crashes.
    Check("a sidecar of three crashes", f"{BRIEF} CRASHES=1 CRASHWHO=1"),
    Check("sidecar crashes, engine death", f"{PAIR} CRASHES=2 DEATHS=1 NB0=2"),
    small("engine fails or hangs", f"{PAIR} FAILS=2 RQ0=2"),
    Check("two gangs, crash", f"{TWINS} CRASHES=1"),
    Check("gang, two crashes", "NP=2 NG=2 TOTAL=1 GS0=3 GS1=2 CRASHES=2 RQ1=2"),
    # Boots with crashes.
    Check("first boots", f"{BOOTS} QUITS=1"),
    Check("first boots, crash", f"{BOOTS} CRASHES=1"),
    Check("first boots, crash, engine death", f"{BOOTS} CRASHES=1 DEATHS=1 RQ1=0", SAFE),
    Check("first boots, engine fails, crash", f"{BOOTS} CRASHES=1 FAILS=1"),
    Check("three first boots, crash", f"{BOOTERS} RQ0=0 CRASHES=1"),
    Check("three first boots, a request, crash", f"{BOOTERS} CRASHES=1 CRASHWHO=3", SAFE),
    Check("boot among requests, engine death", f"{BRIEF} NB0=2 UNBOOTED=1 RQ0=0 DEATHS=1", SAFE),
    Check("gang and single boot, crash", "NP=2 NG=2 TOTAL=2 GS0=3 GS1=2 NB0=2 NB1=2 UNBOOTED=3 CRASHES=1"),
    Check("gang, engine death, boot", "NP=2 NG=2 TOTAL=2 GS0=3 GS1=2 NW0=1 NB0=2 DEATHS=2 NW1=2"),
    # A sidecar that stays down, for ever or until its pod goes; pods that go.
    Check("a sidecar stays down", f"{PAIR} CRASHES=2 STAYS=1 RQ1=2"),
    Check("a sidecar of three stays down", f"{BRIEF} CRASHES=1 CRASHWHO=1 STAYS=1"),
    Check("a gang's sidecar stays down", "NP=2 NG=2 TOTAL=1 GS0=3 GS1=2 CRASHES=1 STAYS=1 RQ1=2"),
    Check("a sidecar stays down, its pod goes", f"{PAIR} CRASHES=1 STAYS=1 DELETES=1 REBORN=1"),
    Check("pod gone, its name again", f"{PAIR} DELETES=2 REBORN=1"),
    Check("pod gone, crash", f"{PAIR} DELETES=1 REBORN=1 CRASHES=1"),
    Check("gang gone", "NP=2 NG=2 TOTAL=1 GS0=3 GS1=2 DELETES=1 REBORN=1"),
    # The API out of reach: single writes (CUTS: for good, or until HEALS; CUTWHO: pods, the agent, all).
    small("writes lost", f"{PAIR} APIFAULTS=3 QUITS=1"),
    Check("writes lost, crash", f"{PAIR} APIFAULTS=1 CRASHES=1 QUITS=1"),
    Check("writes lost, first boots", f"{BOOTS} APIFAULTS=2"),
    Check("writes lost, two gangs", f"{TWINS} APIFAULTS=2 QUITS=1", SAFE),
    small("no API for one sidecar", f"{PAIR} CUTS=1 CUTWHO=3 QUITS=1 RQ1=2"),
    Check("no API for one of three", f"{BRIEF} CUTS=1 CUTWHO=1"),
    Check("no API for one of a gang and a single", "NP=2 NG=2 TOTAL=1 GS0=3 GS1=2 CUTS=1 CUTWHO=3 HEALS=1 QUITS=1"),
    Check("no API for the agent, pod gone", f"{PAIR} CUTS=1 CUTWHO=4 HEALS=1 DELETES=1 REBORN=1"),
    Check("no API for anybody, engine death", f"{PAIR} CUTS=1 CUTWHO=8 HEALS=1 DEATHS=1 APIFAULTS=1"),
    Check("no API for anybody, crash", f"{PAIR} CUTS=1 CUTWHO=8 HEALS=1 CRASHES=1"),
    # Gangs, more than two GPUs.
    Check("gang and two singles", f"{GANG} SHORTRUN=7"),
    Check("gang, clients leave", f"{GANG} QUITS=1 SHORTRUN=7", SAFE),
    Check("three overlapping gangs, three GPUs", RING),
    *(
        Check(f"three overlapping gangs, the {which} crashes", f"{RING} CRASHES=1 CRASHWHO={mask}", SAFE, hashed=True)
        for which, mask in (("first", 1), ("second", 2), ("third", 4))
    ),
    Check("two overlapping gangs, crash", f"{CHAIN} CRASHES=1 RQ0=2 SHORTRUN=3"),
    Check("two overlapping gangs boot", f"{CHAIN} UNBOOTED=3 DEATHS=1"),
    Check("a gang of three and two singles", "NP=3 NG=3 TOTAL=1 GS0=7 GS1=1 GS2=4 SHORTRUN=7 KEEPS=7"),
]

LIMITS = [
    tiny("a victim that does not reach the API", f"{BRIEF} CUTS=1 CUTWHO=1 STRICT"),
    Check(
        "a gang among small ones that keep coming",
        "NP=3 NG=2 TOTAL=2 GS0=3 GS1=1 GS2=2 RENEWS=6 IDLES=6 SHORTRUN=7 KEEPS=7",
        FED,
    ),
]

MISTAKES = [
    # Rules taken away.
    tiny("NO_SUM_RULE", BOOTS),
    tiny("LOCK_TAKEN_OVER", "NP=2 NG=1 TOTAL=2"),
    tiny("NO_RUNTIME_TIMER", f"{PAIR} ENDLESS=3"),
    tiny("RUNTIME_IGNORED", f"{PAIR} ENDLESS=3"),
    tiny("PINNED_IS_VICTIM", "NP=3 NG=1 TOTAL=3 NW0=2 POPULAR=2"),
    tiny("HOPELESS_WAITS", f"{THREE} NW0=2 POPULAR=4"),
    tiny("ALL_GIVE_WAY", THREE),
    tiny("YIELD_UNTESTED", THREE),
    Check("GANG_BLIND", GANG),
    Check("GANG_HOLDS BUG_HOLDS_AND_WAITS", GANG),
    tiny("EVENTS_LOST", PAIR),
    tiny("RELEASE_FIRST", PAIR),
    tiny("NO_STRIKE", f"{THREE} RQ0=2"),
    tiny("CLAIM_UNTESTED", BESIDE),
    Check("NO_HEAD_START", HUNGRY, FED),
    tiny("TRUSTS_IS_SLEEPING", f"{PAIR} CRASHES=1"),
    tiny("HEIR_DOES_NOT_WAIT", f"{PAIR} DELETES=1 REBORN=1"),
    tiny("AGENT_UNCONDITIONAL", f"{PAIR} DELETES=1 REBORN=1"),
    tiny("INTENTS_OF_THE_DOWN_STAY", f"{PAIR} CRASHES=1 STAYS=1"),
    # What the code once did, found by this model.
    tiny("DOWN_UNSAID", f"{BRIEF} CRASHES=1 STAYS=1"),
    tiny("HOLDS_AND_WAITS", f"{PAIR} APIFAULTS=1"),
    Check("INTENT_FORGOTTEN", f"{GANG} QUITS=1"),
    tiny("BOOT_UNDER_A_WAKE", "NP=2 NG=1 TOTAL=3 NB0=2 DEATHS=1"),
    tiny("HALF_LEFT", f"{PAIR} APIFAULTS=1 QUITS=1"),
    tiny("READY_WHEN_DEAD", f"{PAIR} DEATHS=1"),
    tiny("NAMES_THE_SLEEPING", f"{THREE} RQ0=2"),
    tiny("OPENS_WHEN_DEAD", f"{PAIR} CRASHES=1 DEATHS=1"),
    Check("GANG_PASSES", "NP=3 NG=2 TOTAL=2 GS0=3 GS1=2 GS2=2 NW2=2"),
    Check("BOOT_UNNOTICED", BESIDE),
]


def main() -> int:
    arguments = _arguments()
    chosen = [
        [c for c in checks if arguments.only.lower() in c.name.lower() and (c.quick or not arguments.quick)]
        for checks in (HOLDS, LIMITS, MISTAKES)
    ]
    if arguments.list:
        for check in (check for checks in chosen for check in checks):
            print(f"{check.name:44} {check.flags}")
        return 0
    if not any(chosen):
        print(f"error: no configuration has {arguments.only!r} in its name; --list shows them", file=sys.stderr)
        return 2
    if arguments.page and (arguments.quick or arguments.only):
        print("error: --page wants the whole run, without --quick and --only", file=sys.stderr)
        return 2
    if arguments.if_installed and _lacking():
        print(f"the claim protocol is not checked: {' and '.join(_lacking())} not found")
        return 0
    _tools()
    began = time.monotonic()
    surprises = 0
    told: list[str] = []
    titles = ("configuration", "known limit, which must show", "seeded mistake, which must be caught")
    for title, checks, run in zip(titles, chosen, (_holds, _limited, _caught), strict=True):
        if checks:
            _tell(told, _ROW.format(title, "property", "search", "states", "cpu", "verdict"))
            surprises += _all(checks, run, arguments, told)
            _tell(told, "")
    counts = f"{len(chosen[0])} configurations, {len(chosen[1])} limits, {len(chosen[2])} seeded mistakes"
    verdict = "as it should be" if not surprises else f"{surprises} SURPRISES"
    _tell(told, f"{counts}, {time.monotonic() - began:.0f} s: {verdict}")
    if arguments.page:
        text = PAGE.read_text()
        head, tail = text.partition(_FROM)[0], text.partition(_TO)[2]
        PAGE.write_text(f"{head}{_FROM}\n```\n{chr(10).join(told)}\n```\n{_TO}{tail}")
    return 1 if surprises else 0


_ROW = "{:44} {:17} {:12} {:>11} {:>4}  {}"


def _tell(told: list[str], line: str) -> None:
    told.append(line)
    print(line, flush=True)


def _all(
    checks: Sequence[Check],
    run: Callable[[Check], tuple[bool, str, Outcome]],
    arguments: argparse.Namespace,
    told: list[str],
) -> int:
    """Runs them, some at a time, and prints their lines in order; returns how many did not go as they should."""
    surprises = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for check, (good, verdict, outcome) in zip(checks, pool.map(run, checks), strict=True):
            surprises += not good
            search = "hashed" if check.hashed else "exhaustive"
            line = (check.name, check.wanted, search, outcome.states, f"{outcome.seconds:.0f}s", verdict)
            _tell(told, _ROW.format(*line))
            if outcome.story and (arguments.stories or not good):
                print(*outcome.story, sep="\n")
    return surprises


def _holds(check: Check) -> tuple[bool, str, Outcome]:
    outcome = _verify(check, check.flags, check.wanted)
    verdict = "holds" if outcome.complete else "NOT EXHAUSTED: memory, depth or time"
    return not outcome.found and outcome.complete, outcome.found or verdict, outcome


def _limited(check: Check) -> tuple[bool, str, Outcome]:
    outcome = _verify(check, check.flags, check.wanted)
    return bool(outcome.found), f"shows: {outcome.found}" if outcome.found else "DOES NOT SHOW", outcome


def _caught(check: Check) -> tuple[bool, str, Outcome]:
    flags = f"{check.flags} BUG_{check.name}"
    outcome = _verify(check, flags, FED if check.wanted == FED else SAFE)
    if not outcome.found and check.wanted == ENDS:
        outcome = _verify(check, flags, ENDS)
    return bool(outcome.found), f"caught: {outcome.found}" if outcome.found else "NOT CAUGHT", outcome


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make model-check", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="only the small configurations: less than a minute")
    parser.add_argument("--if-installed", action="store_true", help="without spin or a compiler, leave in peace")
    parser.add_argument("--only", default="", metavar="WORD", help="only what has this word in its name")
    parser.add_argument("--list", action="store_true", help="name the configurations and leave")
    parser.add_argument("--page", action="store_true", help="write what a whole run says into docs/protocol.md")
    parser.add_argument("--stories", action="store_true", help="tell how each seeded mistake goes wrong")
    parser.add_argument("-j", "--jobs", type=int, default=2, metavar="N", help="how many at a time (2)")
    return parser.parse_args()


def _lacking() -> list[str]:
    return [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]


def _tools() -> None:
    """Sees to it that spin and a C compiler are there; else leaves with advice."""
    lacking = _lacking()
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


def _verify(check: Check, flags: str, wanted: str) -> Outcome:
    defines = [f"-D{flag}" for flag in flags.split()]
    compiled, called = HOW[wanted]
    called = [*called, "-w26"] if check.hashed else called
    with tempfile.TemporaryDirectory(prefix="model-check-") as folder:
        shutil.copy(MODEL, folder)
        _do(folder, "spin", *defines, "-a", MODEL.name)
        options = ["-O1", "-DNOBOUNDCHECK"] if check.big else ["-O0"]
        options += ["-w", "-DNOREDUCE", *(["-DHC4"] if check.hashed else []), f"-DMEMLIM={MEMORY_MIB}"]
        _do(folder, "gcc", *options, *compiled, "-o", "pan", "pan.c")
        pan = f"ulimit -t {LIMIT}; exec nice -n 10 ./pan -E -m{DEPTH} {' '.join(called)}"
        log = Path(folder, "pan.log")
        with log.open("w") as file:
            process = subprocess.Popen(["sh", "-c", pan], cwd=folder, stdout=file, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        output, seconds = log.read_text(), usage.ru_utime + usage.ru_stime
        states = re.search(r"(\d+) states, stored", output)
        complete = "max search depth" not in output and "reached -DMEMLIM" not in output and states is not None
        found = ""
        if re.search(r"^pan:\d+: (non-progress|acceptance) cycle", output, re.M):
            found = "waits for ever" if wanted == FED else "goes on for ever"
        elif re.search(r"^pan:\d+: assertion violated", output, re.M):
            found = "assertion"
        story: tuple[str, ...] = ()
        if found:
            story = _story(folder, defines)
            found = f"{found} ({_where(folder, defines)})" if found == "assertion" else found
        return Outcome(found, int(states[1]) if states else 0, seconds, complete, story)


def _do(folder: str, *command: str) -> None:
    result = subprocess.run(["nice", "-n", "10", *command], cwd=folder, capture_output=True, text=True, check=False)
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
