"""`python3 -m sidecar deliver FOLDER`: puts this room where another Python finds it, by PYTHONPATH.

An init container does so for vLLM's own image, which then needs not to be built anew. The distribution's metadata goes
along, because vLLM finds its plugins by their entry points.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

DISTRIBUTION = "greenthread"


def deliver(folder: Path) -> None:
    """Makes the folder, or replaces what an earlier delivery put there."""
    source = Path(__file__).parent
    shutil.rmtree(folder / source.name, ignore_errors=True)
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    known = distribution(DISTRIBUTION)
    info = folder / f"{DISTRIBUTION}-{known.version}.dist-info"
    info.mkdir(exist_ok=True)
    for name in ("METADATA", "entry_points.txt"):
        (info / name).write_text(known.read_text(name) or "", encoding="utf-8")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: deliver FOLDER", file=sys.stderr)
        return 2
    deliver(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
