"""Part d. The disk around the page cache, and a wake from vllm_sleep's file beside it."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu.device import Gpu, open_gpu
from benchmarks.gpu.memory import sizes
from benchmarks.gpu.part import Case, Clock, Options, Row, Skip
from benchmarks.gpu.stats import GB, rate, spread
from vllm_sleep.disk import THREADS, DiskFile
from vllm_sleep.memory import Block, MemoryPath

SIZES = (16, 8, 4)
SPARE = 6 * GB
"""Left free on the disk."""
BLOCK = 8 * 2**20
ROUNDS = 3
SECONDS, PASSES = 50, 10
"""Of the part, and how often all bytes are read or written in it."""


def cases(options: Options, clock: Clock, notes: Row) -> list[Case]:
    gpu = open_gpu()
    options.disk.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.disk).free
    # the file for raw reads is gone before the other one is made
    fits = [size for size in SIZES if size * GB // options.shrink + SPARE < free]
    if not fits:
        raise Skip(f"{options.disk} has {free / GB:.0f} GB free, {SIZES[-1] + SPARE // GB} GB are needed (see --disk)")
    speed = probe(options.disk, _blocks(GB // options.shrink))
    quick = [size for size in fits if size <= speed * SECONDS / PASSES] or fits[-1:]
    size = _blocks(quick[0] * GB // options.shrink)
    notes["folder"] = str(options.disk)
    return [
        Case("raw", 25, lambda: raw(options.disk, size, clock)),
        Case("wake", 25, lambda: wake(gpu, options.disk, size, options.shrink, clock)),
        Case("raw, fio", 15, lambda: fio(options.disk, min(size, 4 * GB))),
    ]


def probe(folder: Path, size: int) -> float:
    """GB/s of a write, to choose a size that is measured in time."""
    with _file(folder, size) as file:
        return rate(size, _each(file, size, os.pwritev))


@contextmanager
def _file(folder: Path, size: int) -> Iterator[int]:
    """Without a name, around the page cache. Skip where the file system has no such thing."""
    try:
        file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600)
    except OSError as error:
        raise Skip(f"{folder} cannot be read around the page cache: {error.strerror} (see --disk)") from None
    try:
        os.posix_fallocate(file, 0, size)
        yield file
    finally:
        os.close(file)


def _blocks(size: int) -> int:
    return max(size // BLOCK, 1) * BLOCK


def raw(folder: Path, size: int, clock: Clock) -> Row:
    """Writes and reads in blocks of 8 MiB by as many threads as the store has."""
    row: Row = {"size_gb": round(size / GB, 2)}
    with _file(folder, size) as file:
        row["write_gb_s"] = rate(size, _each(file, size, os.pwritev))
        reads = []
        for _ in range(ROUNDS):
            reads.append(_each(file, size, os.preadv))
            if clock.left() < 15:
                row["cut"] = True
                break
    return row | {"read_gb_s": rate(size, min(reads)), "reads": spread(reads)}


def _each(file: int, size: int, call: Callable[[int, list[mmap.mmap], int], int]) -> float:
    """Seconds for the whole file."""
    buffers = [mmap.mmap(-1, BLOCK) for _ in range(THREADS)]
    for buffer in buffers:
        buffer.write(os.urandom(BLOCK))  # or a clever disk would compress it

    def share(number: int) -> None:
        for start in range(number * BLOCK, size, THREADS * BLOCK):
            done = call(file, [buffers[number]], start)
            if done != BLOCK:
                raise OSError(f"{done} bytes of {BLOCK} moved")

    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        list(pool.map(share, range(THREADS)))
        return time.perf_counter() - began


def wake(gpu: Gpu, folder: Path, size: int, shrink: int, clock: Clock) -> Row:
    """Through vllm_sleep's file, into mapped memory, checked."""
    device, store = gpu.device(), DiskFile(folder)
    path = MemoryPath(device, {"file": store})
    blocks: list[Block] = []
    try:
        for number, part in enumerate(sizes(size, shrink)):
            blocks.append(gpu.allocate(part, "weights"))
            gpu.fill(blocks[-1], number)
        moved = sum(block.size for block in blocks)
        sums = [gpu.checksum(block) for block in blocks]
        began = time.perf_counter()
        path.sleep(blocks, {"weights"}, "file")
        first = time.perf_counter() - began
        sleeps, wakes, same, cut = [], [], True, False
        for number in range(5):
            if number:
                began = time.perf_counter()
                path.sleep(blocks, {"weights"}, "file")
                sleeps.append(time.perf_counter() - began)
            began = time.perf_counter()
            path.wake(blocks)
            wakes.append(time.perf_counter() - began)
            same = same and [gpu.checksum(block) for block in blocks] == sums
            if clock.left() < 10:
                cut = True
                break
        return {
            "weights_gb": round(moved / GB, 3),
            "allocations": len(blocks),
            "first_sleep_s": round(first, 3),
            "sleep": spread(sleeps),
            "wake": spread(wakes),
            "wake_gb_s": rate(moved, min(wakes)),
            "same_content": same,
        } | ({"cut": True} if cut else {})
    finally:
        store.clear()
        for block in blocks:
            gpu.release(block)
        gpu.settle()


def fio(folder: Path, size: int) -> Row:
    """The same reads by a program that others know."""
    program = shutil.which("fio")
    if program is None:
        return {"left_out": "fio is not installed"}
    name = folder / "greenthread-fio"
    command = [program, "--name=read", f"--filename={name}", f"--size={size}", "--rw=read", "--direct=1", "--bs=8M",
               "--ioengine=libaio", "--iodepth=16", "--output-format=json"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            return {"left_out": f"fio failed: {done.stderr.strip()[-200:]}"}
        return {"read_gb_s": round(json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"] / GB, 2)}
    finally:
        name.unlink(missing_ok=True)
