"""One part in a process of its own: `python -m benchmarks.gpu.child PART FILE SECONDS OPTIONS`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import PARTS, Board, Clock, Options, Skip, write


def run(letter: str, path: Path, seconds: float, given: Mapping[str, Any]) -> int:
    """Measures the part; the exit status."""
    options = Options(Path(given["work"]), Path(given["disk"]), given["host_memory"], given["shrink"])
    clock = Clock(time.monotonic() + seconds)
    board = Board(path, letter)
    board.load()
    old = {"cases": board.cases} if board.cases else {}
    try:
        module = importlib.import_module(f"benchmarks.gpu.{PARTS[letter].module}")
        board.run(module.cases(options, clock, board.notes), clock)
    except Skip as reason:
        write(path, {**old, "part": letter, "skipped": str(reason)})
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("benchmarks", "vllm_sleep"):
            raise
        write(
            path,
            {**old, "part": letter, "skipped": f"{error.name} is not installed in {sys.executable} (see --python)"},
        )
    return 0


if __name__ == "__main__":
    status = run(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a CUDA context that is torn down late must not spoil what was measured
