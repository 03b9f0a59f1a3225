"""Gets the programs that are compared, and the load; what cannot be had is left out with a message."""

from __future__ import annotations

import shutil
import sys
import zlib
from pathlib import Path

from tests.testbeds.install import apt_install, locked, run_quietly
from tests.testbeds.programs import Missing, cache

PYTHON_PEERS = (
    "aiohttp==3.14.5",
    "starlette==1.10.0",
    "httpx==0.28.1",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "httptools==0.9.0",
)


def program(name: str) -> str:
    """The path of nginx or haproxy, installed by apt if need be. Raises `Missing`."""
    found = _find(name)
    if found is None:
        apt_install(name, "nginx-light" if name == "nginx" else name)
        found = _find(name)
    if found is None:
        raise Missing(f"{name} is not on the PATH even after its installation")
    return found


def load_program() -> str:
    """load.c, compiled; gcc is installed by apt if need be. Raises `Missing`."""
    source = Path(__file__).with_name("load.c")
    if _find("gcc") is None:
        apt_install("gcc", "gcc")
        apt_install("the C library's headers", "libc6-dev")
    with locked(cache().parent / "benchmarks" / "proxy-load") as folder:
        built = folder / f"load-{zlib.crc32(source.read_bytes()):08x}"
        if not built.exists():
            run_quietly(["gcc", "-O2", "-o", str(built.with_suffix(".new")), str(source)], "compiling load.c")
            built.with_suffix(".new").rename(built)
        return str(built)


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def python_with_peers() -> str:
    """The Python of a virtual environment, kept outside the checkout, that has the Python peers. Raises `Missing`."""
    with locked(cache().parent / "benchmarks" / "proxy-peers") as folder:
        python, complete = folder / "bin" / "python", folder / "complete"
        wanted = "\n".join(PYTHON_PEERS)
        if not complete.exists() or complete.read_text() != wanted:
            print("benchmarks: installing aiohttp, starlette, httpx and uvicorn (once)", file=sys.stderr, flush=True)
            run_quietly([sys.executable, "-m", "venv", "--clear", str(folder)], "making a virtual environment")
            run_quietly([str(python), "-m", "pip", "install", "--quiet", *PYTHON_PEERS], "installing the Python peers")
            complete.write_text(wanted)
        return str(python)
