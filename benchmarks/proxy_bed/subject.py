"""What is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: The model that all requests name.
MODEL = "bench"


@dataclass(frozen=True)
class Subject:
    """One proxy: where it answers, and the process whose CPU time and memory are its."""

    name: str
    port: int
    pid: int

    def rss(self) -> float:
        """Megabytes (2**20) in memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"{self.name} has ended")
