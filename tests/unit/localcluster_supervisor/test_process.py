"""Children: their end, their output, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localcluster.supervisor import leftovers
from localcluster.supervisor.leftovers import Records, boot_id, in_session, read_stat
from localcluster.supervisor.process import Log, Process, StartError, tail

ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "processes")


def shell(script: str, records: Records, log: Log | None = None) -> Process:
    return Process.start(["sh", "-c", script], ENV, records, "test", log=log)


async def test_exit_status_and_output(records: Records, tmp_path: Path) -> None:
    output = Log(tmp_path / "0.log")
    assert await shell("echo out; echo err >&2; exit 3", records, output).wait() == 3
    assert sorted((tmp_path / "0.log").read_text().split()) == ["err", "out"]


async def test_a_signal_counts_as_128_and_its_number(records: Records) -> None:
    process = shell("sleep 60 & wait", records)
    process.signal(signal.SIGTERM)
    assert await process.wait() == 128 + signal.SIGTERM


async def test_nothing_of_its_session_stays(records: Records) -> None:
    process = shell("sleep 60 & sleep 60 & exec sleep 0.05", records)
    assert len(in_session(process.pid)) >= 1
    assert await process.wait() == 0
    for _ in range(500):  # on a busy machine a killed process needs a turn to die
        if not in_session(process.pid):
            break
        await asyncio.sleep(0.01)
    assert in_session(process.pid) == []


async def test_records_last_as_long_as_the_process(records: Records) -> None:
    process = shell("read _ < /dev/null; sleep 60", records)
    assert [path.stem for path in records.folder.iterdir()] == [str(process.pid)]
    process.kill()
    await process.wait()
    assert list(records.folder.iterdir()) == []


async def test_what_cannot_start_says_why(records: Records, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="'no-such-program' was not found"):
        Process.start(["no-such-program"], ENV, records, "test")
    with pytest.raises(StartError, match="working directory /no/where was not found"):
        Process.start(["true"], ENV, records, "test", cwd="/no/where")
    (tmp_path / "text").write_text("no program")
    with pytest.raises(StartError, match="cannot start"):
        Process.start([str(tmp_path / "text")], ENV, records, "test")


def test_a_log_is_bounded(tmp_path: Path) -> None:
    log = Log(tmp_path / "0.log", limit=100)
    for number in range(50):
        log.write(f"line {number:03}\n".encode())
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"0.log", "0.log.1"}
    assert max(sizes.values()) <= 100
    assert tail(tmp_path / "0.log", lines=1) == "line 049"


def test_what_an_earlier_life_left_is_killed(records: Records) -> None:
    # a grandchild whose parent is gone already: only its session still tells whose it was
    with subprocess.Popen(["sh", "-c", "sleep 60 & exec sleep 60"], start_new_session=True) as old:
        records.add(old.pid, "shop/till/main")
        assert records.kill_all() == ["shop/till/main"]
        assert old.wait() == -signal.SIGKILL
    assert in_session(old.pid) == []
    assert list(records.folder.iterdir()) == []


def test_a_stranger_with_a_recycled_number_is_left_alone(records: Records) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        record = {"pid": stranger.pid, "started": 1, "boot": boot_id(), "what": "old"}
        (records.folder / f"{stranger.pid}.json").write_text(json.dumps(record))
        assert records.kill_all() == []
        assert stranger.poll() is None
        stranger.kill()


def test_records_of_another_boot_and_half_written_ones_are_forgotten(records: Records) -> None:
    me = read_stat(os.getpid())
    assert me is not None
    other = {"pid": me.session, "started": me.started, "boot": "another", "what": "x"}
    (records.folder / "1.json").write_text(json.dumps(other))
    (records.folder / "2.json").write_text('{"pid": 1')
    assert records.kill_all() == []
    assert list(records.folder.iterdir()) == []


def test_the_guard_kills_when_its_parent_is_gone(records: Records) -> None:
    command = [sys.executable, "-I", "-S", leftovers.__file__, str(records.folder)]
    with (
        subprocess.Popen(["sleep", "60"], start_new_session=True) as child,
        subprocess.Popen(command, stdin=subprocess.PIPE) as guard,
    ):
        records.add(child.pid, "shop/till/main")
        assert guard.stdin is not None
        guard.stdin.close()
        assert child.wait(10) == -signal.SIGKILL
        assert guard.wait(10) == 0
