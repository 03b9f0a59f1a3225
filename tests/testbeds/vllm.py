"""Real vLLM on a CPU as a test bed: a tiny model, and a `vllm` for the PATH of engine containers.

python -m tests.testbeds.install vllm          gets it
python -m tests.testbeds.vllm model            prints the tiny model's folder (made at the first call)
python -m tests.testbeds.vllm flags            prints vLLM's options, for localcluster/engine/flags.txt
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.testbeds.programs import Missing, cache, need_vllm

BIN = Path(__file__).parent / "vllm_on_cpu"
"""Put this first on an engine container's PATH, with `GREENTHREAD_PYTHON` naming this Python: `vllm serve …` is vLLM on
the CPU, its memory counted in the ledger that `GREENTHREAD_GPU_LEDGER` names."""

FLAGS = Path(__file__).parents[2] / "localcluster" / "engine" / "flags.txt"
_MODEL_VERSION = 1


def tiny_model() -> Path:
    """The folder of a tiny Llama with random weights, made at the first call. Raises Missing without vLLM."""
    folder = cache() / f"tiny-llama-{_MODEL_VERSION}"
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _in_vllm(str(BIN / "tiny_model.py"), str(partial))
        try:
            partial.rename(folder)
        except FileExistsError:
            pass  # somebody else was quicker
    return folder


def flags() -> str:
    """Every option of `vllm serve`, read from its own argument parser, in the form of localcluster/engine/flags.txt."""
    return _in_vllm(str(BIN / "flags.py"))


def wrong_arguments(commands: list[list[str]]) -> list[str]:
    """What vLLM has against each of these command lines (the words after `vllm serve`), "" for nothing."""
    said = _in_vllm(str(BIN / "parse.py"), stdin=json.dumps(commands))
    return list(json.loads(said.splitlines()[-1]))


def _in_vllm(*arguments: str, stdin: str = "") -> str:
    """Run a script with the Python of vLLM's environment; its output."""
    python = need_vllm().with_name("python")
    done = subprocess.run([str(python), *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{Path(arguments[0]).name} failed in vLLM's environment:\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.testbeds.vllm")
    parser.add_argument("what", choices=["model", "flags"])
    try:
        print(tiny_model() if parser.parse_args().what == "model" else flags(), end="")
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
