"""Memory and file descriptors of the parts' processes over time: what lives long must not grow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

MIB = 2**20
_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass
class Life:
    """What was measured of one process. Times are of the monotonic clock, memory in bytes."""

    part: str
    pid: int
    times: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def after(self, start: float) -> Life:
        """What was measured from `start` on."""
        kept = [i for i, moment in enumerate(self.times) if moment >= start]
        return Life(
            self.part,
            self.pid,
            *([values[i] for i in kept] for values in (self.times, self.memory, self.files)),  # type: ignore[arg-type]
        )

    @property
    def span(self) -> float:
        """Seconds from the first measurement to the last."""
        return self.times[-1] - self.times[0]

    @property
    def growth(self) -> float:
        """Bytes of memory by which it grew over the time measured: the slope of a straight line through it, times that
        time."""
        if len(self.times) < 3:
            return 0.0
        mean_t, mean_m = sum(self.times) / len(self.times), sum(self.memory) / len(self.memory)
        spread = sum((t - mean_t) ** 2 for t in self.times)
        slope = sum((t - mean_t) * (m - mean_m) for t, m in zip(self.times, self.memory, strict=True)) / spread
        return slope * (self.times[-1] - self.times[0])

    @property
    def more_files(self) -> float:
        """Median of file descriptors in the last third, less that in the first."""
        third = max(len(self.files) // 3, 1)
        return median(self.files[-third:]) - median(self.files[:third])


class Sampler:
    """`with Sampler(find):` measures once a second what `find()` names: part → pid."""

    def __init__(self, find: Callable[[], dict[str, int]], every: float = 1.0) -> None:
        self._find, self._every = find, every
        self.lives: dict[tuple[str, int], Life] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            for part, pid in self._find().items():
                self.measure(part, pid)

    def measure(self, part: str, pid: int) -> None:
        """One measurement; none of a process that has just ended."""
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{pid}/fd"))
        except (OSError, IndexError):
            return
        if not pages:  # it has ended, and waits for its parent to see that
            return
        life = self.lives.setdefault((part, pid), Life(part, pid))
        life.times.append(time.monotonic())
        life.memory.append(pages * _PAGE)
        life.files.append(files)

    def long_lived(self, warm_up: float, least: float) -> list[Life]:
        """Of each part the process that lived longest, from `warm_up` seconds after its beginning on, if that is at
        least `least` seconds."""
        longest: dict[str, Life] = {}
        for life in self.lives.values():
            if life.span >= warm_up + least and (life.part not in longest or life.span > longest[life.part].span):
                longest[life.part] = life
        return [life.after(life.times[0] + warm_up) for _, life in sorted(longest.items())]
