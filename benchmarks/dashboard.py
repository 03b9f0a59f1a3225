"""How fast the dashboard is on a large cluster that changes all the time, in a real terminal (pty) of 120×34.

    python -m benchmarks.dashboard [--json] [--gpus 256] [--models 1000] [--rate 200] [--minutes 3]

The dashboard runs as a user starts it, against the embedded API over TLS, with watches. An empty Textual app is started
in turn with it. `--rate` objects change per second while keys, CPU and memory are measured.

Other work on the machine makes a program wait for a CPU. `…_free_…` are the same less that wait, as the kernel counts
it for the program's main thread; `first_paint_cpu_vs_empty_app` compares CPU time until the first paint.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

from benchmarks._common import cpu_seconds
from benchmarks._table import table

SIZE = (34, 120)
EMPTY = """
from textual.app import App
from textual.widgets import Static
class Empty(App):
    def compose(self):
        yield Static("here I am")
Empty().run()
"""
PROGRAM = "from kubectl_greenthread.main import main; main()"
SELECTED = re.compile(rb"\xe2\x96\xb8[^\n]{0,120}?(model-\d{4})")
HISTORY = "1Mi"
"""Memory for the past while growth is measured: full after a minute, so that what still grows is something else."""


class Terminal:
    """A program in a pty of its own."""

    def __init__(self, command: list[str]) -> None:
        self.began = time.perf_counter()
        self.output = bytearray()
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
            os.execve(command[0], command, environment)
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))

    def read(self, seconds: float) -> bytes:
        """What it writes next, b"" if that takes longer. EOFError when it ended."""
        if not select.select([self.fd], [], [], max(seconds, 0.0))[0]:
            return b""
        try:
            part = os.read(self.fd, 1 << 16)
        except OSError:
            part = b""
        if not part:
            raise EOFError("it ended:\n" + self.output[-4000:].decode(errors="replace"))
        self.output += part
        del self.output[:-200_000]
        return part

    def until(self, found: Callable[[bytes], bool], seconds: float) -> float:
        """Time at which what it wrote since the call satisfies `found`. TimeoutError."""
        end, seen = time.perf_counter() + seconds, b""
        while (left := end - time.perf_counter()) > 0:
            seen += self.read(left)
            if found(seen):
                return time.perf_counter()
        raise TimeoutError("not seen in time; the last it wrote:\n" + self.output[-3000:].decode(errors="replace"))

    def drain(self, seconds: float) -> int:
        """Reads on for so long; returns how many bytes came."""
        end, count = time.perf_counter() + seconds, 0
        while (left := end - time.perf_counter()) > 0:
            count += len(self.read(left))
        return count

    def press(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)

    def waited(self) -> float:
        """Seconds for which it was ready to run and had no CPU."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    def rss(self) -> float:
        """MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def first_paint(command: list[str], marks: tuple[bytes, ...]) -> list[tuple[float, float]]:
    """(seconds, CPU seconds) from the start until each of these was written."""
    terminal, found = Terminal(command), []
    try:
        for mark in marks:
            at = terminal.until(lambda _, mark=mark: mark in terminal.output, 60) - terminal.began
            found.append((at, cpu_seconds([terminal.pid])))
        return found
    finally:
        terminal.close()


def key_to_paint(terminal: Terminal, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from a key to the bytes that show the next row selected; and the same less the wait for a CPU."""
    taken, free = [], []
    terminal.press(b"g")
    terminal.drain(1.0)
    selected = SELECTED.findall(bytes(terminal.output))[-1]
    for number in range(count):
        terminal.drain(0.05 + 0.013 * (number % 7))  # at any moment between two frames
        before = selected
        waited = terminal.waited()
        began = time.perf_counter()
        terminal.press(b"j")

        def moved(seen: bytes, before: bytes = before) -> bool:
            return any(name != before for name in SELECTED.findall(seen))

        taken.append((terminal.until(moved, 10) - began) * 1000)
        free.append(max(taken[-1] - (terminal.waited() - waited) * 1000, 0.0))
        selected = SELECTED.findall(bytes(terminal.output))[-1]
    return taken, free


def cpu_percent(terminal: Terminal, seconds: float) -> tuple[float, float]:
    """CPU of one core, and KiB per second that it wrote."""
    before, began = cpu_seconds([terminal.pid]), time.perf_counter()
    count = terminal.drain(seconds)
    passed = time.perf_counter() - began
    return (cpu_seconds([terminal.pid]) - before) / passed * 100, count / 1024 / passed


def growth(terminal: Terminal, seconds: float) -> tuple[float, float]:
    """MiB at the end, and MiB per hour by the line that fits best."""
    points = []
    began = time.perf_counter()
    while (at := time.perf_counter() - began) < seconds:
        points.append((at, terminal.rss()))
        terminal.drain(2.0)
    slope, _ = statistics.linear_regression(*zip(*points, strict=True))
    return points[-1][1], slope * 3600


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def measure(gpus: int, models: int, rate: float, minutes: float, pairs: int) -> dict[str, float]:
    result: dict[str, float] = {"gpus": gpus, "models": models, "changes_per_second": rate}
    with tempfile.TemporaryDirectory(prefix="greenthread-bench-") as folder:
        arguments = [sys.executable, "-m", "benchmarks.dashboard_bed", folder, str(models), str(gpus)]
        bed = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert bed.stdin is not None
        assert bed.stdout is not None
        terminal: Terminal | None = None
        try:
            assert bed.stdout.readline() == "ready\n", "the cluster did not come up"
            look = ["dashboard", "--kubeconfig", f"{folder}/kubeconfig", "--history", HISTORY]
            command = [sys.executable, "-c", PROGRAM, *look]
            found: dict[str, list[float]] = {}
            for number in range(pairs + 1):
                ((empty, empty_cpu),) = first_paint([sys.executable, "-c", EMPTY], (b"here I am",))
                (paint, paint_cpu), (data, _) = first_paint(command, (b"Thread", b"model-0"))
                if number:  # the first fills caches of the disk
                    for name, value in (
                        ("empty_app_ms", empty * 1000),
                        ("first_paint_ms", paint * 1000),
                        ("first_paint_vs_empty_app", paint / empty),
                        ("first_paint_cpu_vs_empty_app", paint_cpu / empty_cpu),
                        ("first_models_vs_empty_app", data / empty),
                    ):
                        found.setdefault(name, []).append(value)
            result |= {name: statistics.median(values) for name, values in found.items()}
            terminal = Terminal(command)
            terminal.until(lambda _: b"model-0" in terminal.output, 60)  # type: ignore[union-attr]
            terminal.drain(5)
            result["idle_cpu_percent"], result["idle_kib_per_second"] = cpu_percent(terminal, 30)
            taken, free = key_to_paint(terminal, 60)
            result["key_to_paint_idle_p95_ms"] = percentile(taken, 0.95)
            result["key_to_paint_idle_free_p95_ms"] = percentile(free, 0.95)

            def change(wanted: float) -> int:
                """Sets how much changes; returns how much did since the last call."""
                assert bed.stdin is not None
                assert bed.stdout is not None
                bed.stdin.write(f"{wanted}\n")
                return int(bed.stdout.readline().split()[1])

            change(rate)
            terminal.drain(5)
            taken, free = key_to_paint(terminal, 150)
            result["key_to_paint_p50_ms"] = statistics.median(taken)
            result["key_to_paint_p95_ms"] = percentile(taken, 0.95)
            result["key_to_paint_free_p95_ms"] = percentile(free, 0.95)
            change(rate)
            result["busy_cpu_percent"], result["busy_kib_per_second"] = cpu_percent(terminal, 30)
            result["changes_made_per_second"] = change(rate) / 30
            terminal.drain(
                150
            )  # what is bounded is full then: history, and the Events, records and samples that are kept
            result["rss_mb"], result["rss_growth_mb_per_hour"] = growth(terminal, minutes * 60)
            result["growth_minutes"] = minutes
        finally:
            if terminal is not None:
                terminal.close()
            bed.stdin.close()
            bed.wait(20)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="only the last line, one JSON object")
    parser.add_argument("--gpus", type=int, default=256)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=200, help="objects that change per second")
    parser.add_argument("--minutes", type=float, default=3, help="for which growth is measured, after four")
    parser.add_argument("--pairs", type=int, default=7, help="starts of each program")
    given = parser.parse_args()
    result = {name: round(value, 2) for name, value in
              measure(given.gpus, given.models, given.rate, given.minutes, given.pairs).items()}  # fmt: skip
    if not given.json:
        print("\n".join(table([(name, f"{value:g}") for name, value in result.items()])))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
