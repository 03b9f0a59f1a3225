"""The gate and the engine's process, with real shells: no engine starts without a word, and its end is noticed."""

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from sidecar.engine import EngineError
from sidecar.engine.process import EngineProcess

GATE = (Path(__file__).parents[3] / "controller" / "gate.sh").read_text()


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def container(run_dir):
    """The engine's container: the gate around a program that lives long."""
    started = []

    def start(command="echo up >>$RUN_DIR/started; exec sleep 600"):
        process = subprocess.Popen(
            ["/bin/sh", "-c", GATE, "gate", "sh", "-c", command],
            env={**os.environ, "RUN_DIR": str(run_dir)},
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # the process that waits at the gate is the gate's child
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def count(run_dir):
    file = run_dir / "started"
    return len(file.read_text().splitlines()) if file.exists() else 0


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 files have no events
            await asyncio.sleep(0.01)


async def test_an_engine_starts_by_a_word_only_and_its_end_is_noticed(run_dir, container):
    ends = asyncio.Queue()
    process = EngineProcess(str(run_dir), ends.put_nowait)
    process.open()
    container()
    await asyncio.sleep(0.3)
    assert count(run_dir) == 0
    await process.start(10)
    await until(lambda: count(run_dir) == 1)
    os.kill(process.pid, 9)
    assert "ended by itself" in await asyncio.wait_for(ends.get(), 10)
    assert process.pid is None
    await asyncio.sleep(0.3)
    assert count(run_dir) == 1, "it waits at the gate again"
    await process.start(10)
    await until(lambda: count(run_dir) == 2)
    await process.kill()
    assert ends.empty(), "an end that was asked for is no news"
    process.close()


async def test_a_restarted_sidecar_takes_the_running_engine_over(run_dir, container):
    first = EngineProcess(str(run_dir), lambda text: None)
    first.open()
    container()
    await first.start(10)
    pid = first.pid
    await until(lambda: count(run_dir) == 1)
    first.close()
    second = EngineProcess(str(run_dir), lambda text: None)
    second.open()
    assert second.pid == pid
    with pytest.raises(EngineError, match="running already"):
        await second.start(1)
    await second.kill()
    await second.start(10)
    await until(lambda: count(run_dir) == 2)
    await second.kill()
    second.close()


async def test_a_word_for_a_process_that_is_gone_starts_nobody(run_dir, container):
    first = EngineProcess(str(run_dir), lambda text: None)
    first.open()
    gate = container()
    await until(lambda: first._waiting is not None)
    stale = first._waiting
    gate.kill()
    gate.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(stale, 9)
    first._say(f"start {stale}")
    container()
    await until(lambda: first._waiting not in (None, stale))
    await asyncio.sleep(0.3)
    assert count(run_dir) == 0
    await first.start(10)
    await until(lambda: count(run_dir) == 1)
    await first.kill()
    first.close()


async def test_descendants_die_with_the_engine(run_dir, container):
    process = EngineProcess(str(run_dir), lambda text: None)
    process.open()
    container("sleep 601 & echo $! >$RUN_DIR/child; echo up >>$RUN_DIR/started; wait")
    await process.start(10)
    await until(lambda: count(run_dir) == 1)
    child = int((run_dir / "child").read_text())
    assert child in process.family()
    assert process.owns(child)
    assert not process.owns(os.getpid())
    await process.kill()
    assert not process.owns(child)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][:3]
    process.close()


async def test_without_an_engine_container_the_start_says_so(run_dir):
    process = EngineProcess(str(run_dir), lambda text: None)
    process.open()
    with pytest.raises(EngineError, match="no engine container came to the gate"):
        await process.start(0.2)
    process.close()
