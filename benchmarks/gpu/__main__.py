"""The command: runs the parts one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks.gpu
from benchmarks.gpu import report
from benchmarks.gpu.part import PARTS, Part, read, write

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds after its deadline until a part is ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or a part would outlive us
    with tempfile.TemporaryDirectory(prefix="greenthread-bench-") as temporary:
        folder = (given.out or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        python = given.python or python_with_torch()
        gpu = describe(python)
        parts = {}
        for letter in given.parts:
            parts[letter] = measured(PARTS[letter], folder, given, python)
    found = report.targets(parts)
    print(report.text(gpu, parts, found))
    if given.json:
        print(json.dumps({"gpu": gpu, "parts": parts, "targets": found}))
    return 1 if any("error" in part for part in parts.values()) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    text = benchmarks.gpu.__doc__ or ""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keeps what is measured, and continues there")
    parser.add_argument("--parts", type=letters, default=list(PARTS), metavar="a,b,...", help="default: all")
    parser.add_argument("--again", action="store_true", help="measure anew what DIR has")
    parser.add_argument("--python", metavar="PATH", help="the Python that has torch")
    parser.add_argument("--disk", type=Path, metavar="DIR", help="on the disk to measure (default: where --out is)")
    parser.add_argument("--host-memory", type=float, metavar="GB", help="to use (default: what is available)")
    parser.add_argument("--shrink", type=int, default=1, help=argparse.SUPPRESS)  # tests: all sizes divided by it
    return parser.parse_args(arguments)


def letters(text: str) -> list[str]:
    found = [letter.strip() for letter in text.split(",") if letter.strip()]
    for letter in found:
        if letter not in PARTS:
            raise argparse.ArgumentTypeError(f"there is no part {letter!r}: {', '.join(PARTS)}")
    return found


def python_with_torch() -> str:
    """Ours, or the one that `vllm` on the PATH runs with; ours again where neither is there, which then says so."""
    vllm = shutil.which("vllm")
    if importlib.util.find_spec("torch") is None and vllm is not None:
        beside = Path(vllm).resolve().with_name("python")
        if beside.exists():
            return str(beside)
    return sys.executable


def describe(python: str) -> dict[str, Any]:
    """The GPU, or why there is none."""
    command = [python, "-m", "benchmarks.gpu.nvml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"missing": f"{python} cannot be used: {done.stderr.strip()[-300:]}"}
    return found


def measured(part: Part, folder: Path, given: argparse.Namespace, python: str) -> dict[str, Any]:
    """The part's result: what an earlier run left, and what was missing of it."""
    path = folder / f"{part.letter}.json"
    if given.again:
        path.unlink(missing_ok=True)
    old = read(path)
    if old.get("done"):
        return old
    print(f"{part.letter}: {part.title}", file=sys.stderr, flush=True)
    work = folder / "work"
    host = None if given.host_memory is None else int(given.host_memory * 1e9)
    options = {"work": str(work), "disk": str((given.disk or work).absolute()), "host_memory": host}
    command = [python if part.torch else sys.executable, "-m", "benchmarks.gpu.child", part.letter, str(path)]
    command += [str(part.seconds), json.dumps(options | {"shrink": given.shrink})]
    log = folder / f"{part.letter}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stderr=output, stdout=output, start_new_session=True)
        try:
            status: int | None = process.wait(part.seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
    result = read(path)
    if status is None:
        result |= {"cut": True, "stopped": f"it did not end by itself {PATIENCE:.0f} s after its deadline"}
    elif status != 0:
        tail = log.read_text(errors="replace")[-1500:].strip()
        result |= {"error": f"it ended with {status}: {tail}"}
    result = {"part": part.letter, **result}
    failed = [f"{name}: {row['error']}" for name, row in result.get("cases", {}).items() if "error" in row]
    if failed and "error" not in result:
        result["error"] = "; ".join(failed)
    if result != read(path):
        write(path, {name: value for name, value in result.items() if name != "done"})
    return result


def end(process: subprocess.Popen[bytes]) -> None:
    """The part's whole session: also an engine that it could not stop."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
