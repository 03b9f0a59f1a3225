"""Who a process is: its pid and its start time, so that a recycled pid is never mistaken for its predecessor."""

from __future__ import annotations

import os
from typing import NamedTuple


class ProcessId(NamedTuple):
    """A process of this machine, for as long as the machine runs."""

    pid: int
    started: int
    """Start time in clock ticks since boot (field 22 of /proc/<pid>/stat)."""


def process_id(pid: int | None = None) -> ProcessId:
    """The identity of the living process `pid` (default: this one).

    Raises ProcessLookupError when there is no such process, or when it is a zombie: a driver has taken the memory
    back by then.
    """
    number = os.getpid() if pid is None else pid
    state, started = _stat(number)
    if state in "ZX":
        raise ProcessLookupError(f"process {number} has ended")
    return ProcessId(number, started)


def is_alive(process: ProcessId) -> bool:
    """True while exactly this process runs."""
    try:
        return process_id(process.pid) == process
    except ProcessLookupError:
        return False


def _stat(pid: int) -> tuple[str, int]:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"there is no process {pid}") from None
    # The command's name stands in parentheses and may contain spaces and parentheses itself.
    fields = line[line.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])
