"""One child process with a session of its own, its output in a bounded log, its end noticed by the event loop."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localcluster.supervisor.leftovers import Records, kill_session

#: Bytes in a log file before it is moved to `<name>.1`, so that one container life keeps at most twice this.
LOG_BYTES = 10 * 1024 * 1024
#: Seconds to wait for the last output of a session that has been killed.
LAST_OUTPUT = 1.0

_PR_SET_PDEATHSIG = 1
# loaded here: between fork and exec nothing may be imported
_libc = ctypes.CDLL(None, use_errno=True)


class StartError(Exception):
    """The process could not be started; the message says why, for people."""


class Log:
    """A file that is written to its end and moved aside when it is full."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._limit = limit
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size

    def write(self, data: bytes) -> None:
        if self._size + len(data) > self._limit and self._size:
            self._file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._file = self.path.open("ab", buffering=0)
            self._size = 0
        self._file.write(data)
        self._size += len(data)

    def close(self) -> None:
        self._file.close()

    def reopen(self) -> None:
        """Go on where it was closed."""
        if self._file.closed:
            self._file = self.path.open("ab", buffering=0)


def tail(path: Path, size: int = 2048, lines: int = 80) -> str:
    """The end of a log, bounded as Kubernetes bounds a termination message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            text = file.read(size).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


class Process:
    """A running child. It dies with its parent, and with it (when `wait` returns) everything of its session."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Log | None, records: Records) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._log = log
        self._records = records
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._silent: asyncio.Future[None] = self._loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._on_end)
        if popen.stdout is not None:
            self._output = popen.stdout.fileno()
            os.set_blocking(self._output, False)
            self._loop.add_reader(self._output, self._on_output)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        records: Records,
        what: str,
        *,
        cwd: str | None = None,
        log: Log | None = None,
    ) -> Process:
        """Start `argv` (looked up on the PATH of `env`). Must run in the main thread: the kernel ties a child to it.

        Without a log its output is thrown away. Raises StartError.
        """
        try:
            popen = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if log else subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        except FileNotFoundError as error:
            missing = error.filename or argv[0]
            where = f"working directory {cwd}" if cwd and missing == cwd else f"program {argv[0]!r}"
            raise StartError(f"{where} was not found") from error
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise StartError(f"cannot start {argv[0]!r}: {error}") from error
        records.add(popen.pid, what)
        return cls(popen, log, records)

    @property
    def running(self) -> bool:
        return not self._ended.done()

    def signal(self, number: int) -> None:
        """Send a signal to the first process (what a container runtime signals); nothing happens when it has ended."""
        if self.running:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL to everything of the session."""
        if self.running:
            kill_session(self.pid)

    async def wait(self) -> int:
        """The exit status (128 + signal number when a signal ended it), once nothing of its session runs any more."""
        code = await asyncio.shield(self._ended)
        if self._log is not None:
            await asyncio.wait([self._silent], timeout=LAST_OUTPUT)
            self._stop_reading()
        return code

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # as when a container's first process ends. Before it is reaped, while its number cannot be another's.
        kill_session(self.pid)
        code = self._popen.wait()
        os.close(self._pidfd)
        self._records.remove(self.pid)
        self._ended.set_result(128 - code if code < 0 else code)

    def _on_output(self) -> None:
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return
        if data and self._log is not None:
            self._log.write(data)
        elif not data:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if not self._silent.done():
            self._silent.set_result(None)
            self._loop.remove_reader(self._output)
            if self._popen.stdout is not None:
                self._popen.stdout.close()
            if self._log is not None:
                self._log.close()


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the kernel sends the child this signal when its parent's thread ends, however it ends."""
    parent = os.getpid()

    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child
