"""`python3 -m sidecar deliver FOLDER`: puts this room where another Python finds it, by PYTHONPATH.

An init container does so for vLLM's own image, which then needs not to be built anew. The distribution's metadata goes
along, because vLLM finds its plugins by their entry points; of these only the plugin's, which an installation that is
older than its sources does not know.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

DISTRIBUTION = "greenthread"
ENTRY_POINTS = "[vllm.general_plugins]\ngreenthread = vllm_sleep.plugin:register\n"


def deliver(folder: Path) -> None:
    """Makes the folder, or replaces what an earlier delivery put there."""
    source = Path(__file__).parent
    shutil.rmtree(folder / source.name, ignore_errors=True)
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    known = distribution(DISTRIBUTION)
    for old in folder.glob(f"{DISTRIBUTION}-*.dist-info"):
        shutil.rmtree(old)
    info = folder / f"{DISTRIBUTION}-{known.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(known.read_text("METADATA") or "", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: deliver FOLDER", file=sys.stderr)
        return 2
    try:
        deliver(Path(arguments[0]))
    except (OSError, shutil.Error, PackageNotFoundError) as error:
        print(f"cannot deliver into {arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
