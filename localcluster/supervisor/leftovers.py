"""Nothing outlives a supervisor: a record on disk for every process, and the means to kill what an earlier life left.

Also a program: `python leftovers.py FOLDER` waits until its standard input ends (its parent is gone, however it died)
and kills what the records in FOLDER name. Standard library only, no imports of ours: it starts in milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Seconds given to killed processes to vanish before they are reported.
PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Stat:
    """The parts of /proc/PID/stat that tell processes apart. `started` counts clock ticks since the machine's boot."""

    pid: int
    state: str
    session: int
    started: int


def read_stat(pid: int) -> Stat | None:
    """The process as the kernel has it, or None when there is none of that number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the command's name stands in parentheses and may itself contain any character
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, fields[0], int(fields[3]), int(fields[19]))


def in_session(session: int) -> list[Stat]:
    """The living processes of a session (zombies are dead)."""
    stats = (read_stat(int(entry.name)) for entry in os.scandir("/proc") if entry.name.isdecimal())
    return [stat for stat in stats if stat is not None and stat.session == session and stat.state not in "ZX"]


def kill_session(session: int) -> int:
    """SIGKILL to every process of a session; returns how many. A fork in between is caught by the next round."""
    killed: set[int] = set()
    for _ in range(100):
        members = [stat.pid for stat in in_session(session) if stat.pid not in killed]
        if not members:
            break
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            killed.add(pid)
    return len(killed)


def boot_id() -> str:
    """Identifies the machine's boot: start times count from it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Records:
    """One small file for each process that was started, named by its pid (which is also its session)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._boot = boot_id()

    def add(self, pid: int, what: str) -> None:
        """Remember a process just started; `what` is for people (`namespace/pod/container`)."""
        stat = read_stat(pid)
        if stat is None:
            return
        path = self.folder / f"{pid}.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({"pid": pid, "started": stat.started, "boot": self._boot, "what": what}))
        temporary.replace(path)

    def remove(self, pid: int) -> None:
        """Forget a process whose session is known to be gone."""
        (self.folder / f"{pid}.json").unlink(missing_ok=True)

    def _read(self) -> Iterator[tuple[Path, int, int, str]]:
        for path in sorted(self.folder.glob("*.json")):
            try:
                record = json.loads(path.read_text())
                pid, started, boot = int(record["pid"]), int(record["started"]), str(record["boot"])
                what = str(record["what"])
            except FileNotFoundError:
                continue  # the guard of the life before has just seen to it
            except (ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)  # half-written: the process was a child of a machine that lost power
                continue
            if boot != self._boot:
                path.unlink(missing_ok=True)  # the machine has booted since: nothing of that life runs
                continue
            yield path, pid, started, what

    def kill_all(self, patience: float = PATIENCE) -> list[str]:
        """Kill what the records name and forget it; returns the names of what was still running.

        Raises RuntimeError when something does not die within `patience` seconds (it hangs in the kernel).
        """
        killed: list[str] = []
        waiting: list[tuple[Path, int, str]] = []
        for path, pid, started, what in self._read():
            leader = read_stat(pid)
            if leader is not None and leader.started != started:
                path.unlink(missing_ok=True)  # the number belongs to a stranger now
                continue
            if kill_session(pid):
                killed.append(what)
            waiting.append((path, pid, what))
        deadline = time.monotonic() + patience
        for path, pid, what in waiting:
            while in_session(pid):
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"process {pid} ({what}) of an earlier run does not die; is its disk or GPU stuck?"
                    )
                time.sleep(0.01)
            path.unlink(missing_ok=True)
        return killed


def guard(folder: Path) -> None:
    """Wait until standard input ends, then kill everything that the records still name."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    Records(folder).kill_all()


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
