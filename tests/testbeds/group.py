"""Processes that end with the test that started them, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Reads until the process at the other end of the pipe is gone, then ends its own process group: itself and the others.
_GUARD = "read -r _; kill -9 0"


class ProcessGroup:
    """Processes in one group, with a guard that ends them all when this process is gone, even killed.

    (PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the child ends.)
    """

    def __init__(self) -> None:
        self._guard = subprocess.Popen(["/bin/sh", "-c", _GUARD], stdin=subprocess.PIPE, process_group=0)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Starts a process that is not running; its output is added to `log`."""
        with open(log, "ab") as output:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=self._guard.pid,
            )

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started and not killed."""
        return [process.pid for process in self.running.values()]

    def kill(self, name: str) -> None:
        """Kills one without warning (SIGKILL) and waits for its end."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Kills them all, and what they have started in their group; may be called twice."""
        if self._guard.returncode is None:  # until it is waited for, the group's number is ours
            os.killpg(self._guard.pid, signal.SIGKILL)
        for process in (*self.running.values(), self._guard):
            process.wait()
        self.running.clear()
        if self._guard.stdin:
            self._guard.stdin.close()
