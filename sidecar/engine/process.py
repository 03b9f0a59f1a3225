"""The engine's process: let through the gate under a claim, watched by a pidfd, killed by pid.

The engine container's command (controller/gate.sh) announces itself on the FIFO ``gate-in`` and reads its word from
``gate-out``. No engine starts without the line ``start <its pid>``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from sidecar.engine import EngineError

log = logging.getLogger(__name__)


class EngineProcess:
    """The one engine process of a pod. ``on_exit(text)`` is called when it ends without having been killed here."""

    def __init__(self, run_dir: str, on_exit: Callable[[str], None]) -> None:
        self._dir = Path(run_dir)
        self._on_exit = on_exit
        self._waiting: int | None = None  # pid that waits at the gate
        self._arrived = asyncio.Event()
        self._gone = asyncio.Event()
        self._gone.set()
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._killing = False
        self._in = self._out = -1
        self._buffer = b""

    @property
    def pid(self) -> int | None:
        """Pid of the running engine, or None."""
        return self._pid

    def open(self) -> None:
        """Makes the FIFOs, takes over an engine that an earlier sidecar started, asks who waits at the gate."""
        self._dir.mkdir(parents=True, exist_ok=True)
        for name in ("gate-out", "gate-in"):
            path = self._dir / name
            if not path.exists():
                os.mkfifo(path, 0o600)
        # Read and write, so that no open ever blocks and no end of file is ever seen.
        self._in = os.open(self._dir / "gate-in", os.O_RDWR | os.O_NONBLOCK)
        self._out = os.open(self._dir / "gate-out", os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._in, self._read)
        try:
            known = json.loads((self._dir / "engine.json").read_text())
            if _start_time(known["pid"]) == known["started"]:
                self._follow(known["pid"])
        except (OSError, ValueError, KeyError):
            pass  # no engine was running
        self._say("again")

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._in >= 0:
            loop.remove_reader(self._in)
            os.close(self._in)
            os.close(self._out)
            self._in = self._out = -1
        self._unfollow()

    async def start(self, timeout: float) -> None:
        """Gives the word to the process at the gate, once there is one. EngineError after ``timeout`` seconds."""
        if self._pid is not None:
            raise EngineError(f"an engine is running already (pid {self._pid})")
        try:
            async with asyncio.timeout(timeout):
                while self._waiting is None or _start_time(self._waiting) is None:
                    self._waiting = None
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise EngineError(f"no engine container came to the gate within {timeout:.0f} s") from None
        pid, self._waiting = self._waiting, None
        record = {"pid": pid, "started": _start_time(pid)}
        (self._dir / "engine.json").write_text(json.dumps(record))
        self._follow(pid)
        self._say(f"start {pid}")

    async def gone(self) -> None:
        """Returns when no engine process exists."""
        await self._gone.wait()

    async def kill(self) -> None:
        """SIGKILL to the process and its descendants; returns when all are gone."""
        family = self.family()
        self._killing = True
        for member in family:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                continue
        await self._gone.wait()
        for member in family[1:]:
            await _wait_gone(member)

    def family(self) -> list[int]:
        """Pids of the engine and its descendants."""
        return [] if self._pid is None else [self._pid, *_descendants(self._pid)]

    def owns(self, pid: int) -> bool:
        """Whether a process is the engine or descends from it: a few reads of /proc, where `family` reads all of it."""
        while pid > 1 and pid != self._pid:
            fields = _stat(pid)
            pid = int(fields[1]) if fields else 0
        return pid == self._pid

    def _say(self, line: str) -> None:
        os.write(self._out, f"{line}\n".encode())

    def _read(self) -> None:
        try:
            self._buffer += os.read(self._in, 4096)
        except BlockingIOError:
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            match line.decode(errors="replace").split():
                case ["waiting", pid] if pid.isdigit():
                    if int(pid) != self._pid:
                        self._waiting = int(pid)
                        self._arrived.set()
                case ["exited", pid, status] if pid.isdigit() and status.lstrip("-").isdigit():
                    log.info("engine process %s ended with status %s", pid, status)
                case _:
                    log.warning("unknown line at the gate: %r", line[:200])

    def _follow(self, pid: int) -> None:
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise EngineError(f"the engine process {pid} ended before it began") from None
        self._pid, self._killing = pid, False
        self._gone.clear()
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _unfollow(self) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _ended(self) -> None:
        pid, self._pid = self._pid, None
        self._unfollow()
        (self._dir / "engine.json").unlink(missing_ok=True)
        self._gone.set()
        if not self._killing:
            self._on_exit(f"engine process {pid} ended by itself")


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat after the name; None when there is no such process or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields


def _start_time(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[19] if fields else None


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


async def _wait_gone(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
