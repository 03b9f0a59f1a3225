"""The ledger of simulated GPUs: who holds what, and what happens at the end of memory."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from localcluster.gpus import ledger as ledgers
from localcluster.gpus.ledger import GIB, Ledger, LedgerError, OutOfMemoryError, create
from localcluster.gpus.processes import ProcessId, is_alive, process_id


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = create(tmp_path / "gpus.db", count=2, total_bytes=96 * GIB, product="Simulated 96G")
    yield made
    made.close()


@contextmanager
def holder(ledger: Ledger, gpu: int, size: str) -> Iterator[subprocess.Popen[str]]:
    """A living process that holds memory, as `python -m localcluster.gpus hold` does."""
    command = [sys.executable, "-m", "localcluster.gpus", "hold", "--gpu", str(gpu), "--bytes", size]
    environment = {**os.environ, ledgers.ENVIRONMENT: str(ledger.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "holding" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_devices_are_as_created(ledger: Ledger) -> None:
    devices = ledger.devices()
    assert [device.index for device in devices] == [0, 1]
    assert {device.product for device in devices} == {"Simulated 96G"}
    assert len({device.uuid for device in devices}) == 2
    assert all(device.uuid.startswith("GPU-") for device in devices)
    assert ledger.free_bytes(1) == 96 * GIB


def test_memory_is_used_and_given_back_by_tag(ledger: Ledger) -> None:
    ledger.allocate(0, 10 * GIB, "weights")
    ledger.allocate(0, 5 * GIB, "weights")
    ledger.allocate(0, 30 * GIB, "kv_cache")
    assert ledger.used_bytes(0) == 45 * GIB
    assert ledger.used_bytes(1) == 0
    assert ledger.held_bytes(0, "weights") == 15 * GIB
    ledger.free(0, "kv_cache")
    assert ledger.used_bytes(0) == 15 * GIB
    ledger.free(0)
    assert ledger.used_bytes(0) == 0
    assert ledger.device(0).peak_bytes == 45 * GIB
    assert ledger.refusals() == []


def test_an_allocation_past_the_end_is_cudas_error_and_is_recorded(ledger: Ledger) -> None:
    with holder(ledger, 0, "90Gi") as other:
        ledger.allocate(0, 4 * GIB)
        with pytest.raises(OutOfMemoryError) as refused:
            ledger.allocate(0, 3 * GIB, "kv_cache")
        text = str(refused.value)
        assert text.startswith(
            "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 96.00 GiB"
        )
        assert "of which 2.00 GiB is free" in text
        assert f"Process {other.pid} has 90.00 GiB memory in use" in text
        assert "this process has 4.00 GiB memory in use" in text
        assert ledger.used_bytes(0) == 94 * GIB
        (refusal,) = ledger.refusals()
        assert (refusal.pid, refusal.device, refusal.bytes) == (os.getpid(), 0, 3 * GIB)
        assert (refusal.free_bytes, refusal.tag) == (2 * GIB, "kv_cache")
        ledger.allocate(0, 2 * GIB)
        assert ledger.free_bytes(0) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(ledger: Ledger, how: signal.Signals) -> None:
    with holder(ledger, 1, "80Gi") as process:
        assert [(usage.pid, usage.bytes) for usage in ledger.usage(1)] == [(process.pid, 80 * GIB)]
        process.send_signal(how)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # Not even reaped yet: a zombie's memory is free, as the driver has it.
        assert ledger.usage(1) == []
        ledger.allocate(1, 96 * GIB)


def test_a_recycled_pid_is_another_process(ledger: Ledger) -> None:
    me = process_id()
    with sqlite3.connect(ledger.path) as other:
        other.execute("INSERT INTO allocations VALUES (0, ?, ?, 'old', ?)", (me.pid, me.started - 1, GIB))
    other.close()
    assert ledger.used_bytes(0) == 0
    assert not is_alive(ProcessId(me.pid, me.started - 1))
    assert is_alive(me)


def test_many_processes_racing_for_memory_never_exceed_it(ledger: Ledger) -> None:
    script = (
        "import sys; from localcluster.gpus.ledger import *\n"
        "ledger = Ledger(sys.argv[1]); held = 0\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    for _ in range(8): ledger.allocate(0, 5 * GIB); held += 1\n"
        "except OutOfMemoryError: pass\n"
        "print(held, flush=True); sys.stdin.readline()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(ledger.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(5)
    ]
    try:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        got = [int(racer.stdout.readline()) for racer in racers if racer.stdout is not None]
        assert sum(got) == 19  # 96 // 5
        assert ledger.used_bytes(0) == 95 * GIB
        assert {refusal.bytes for refusal in ledger.refusals()} == {5 * GIB}
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_creating_again_keeps_what_is_there(ledger: Ledger) -> None:
    ledger.allocate(0, GIB)
    again = create(ledger.path, count=2, total_bytes=96 * GIB, product="Simulated 96G")
    assert again.used_bytes(0) == GIB
    again.close()


def test_other_devices_replace_a_ledger_only_when_nobody_uses_it(ledger: Ledger) -> None:
    ledger.allocate(0, GIB)
    with pytest.raises(LedgerError, match=f"pid {os.getpid()}"):
        create(ledger.path, count=1, total_bytes=GIB)
    ledger.free(0)
    smaller = create(ledger.path, count=1, total_bytes=GIB)
    assert [device.total_bytes for device in smaller.devices()] == [GIB]
    smaller.close()


def test_bad_ledgers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="no ledger of simulated GPUs at"):
        Ledger(tmp_path / "absent.db")
    (tmp_path / "text.db").write_text("this is no database, it is a text of some length\n" * 100)
    with pytest.raises(LedgerError, match="is not a ledger"):
        Ledger(tmp_path / "text.db")
    monkeypatch.delenv(ledgers.ENVIRONMENT, raising=False)
    with pytest.raises(LedgerError, match="GREENTHREAD_GPU_LEDGER is not set"):
        ledgers.open_ledger()
    with pytest.raises(LedgerError, match="1 to 1024"):
        create(tmp_path / "none.db", count=0)


def test_an_unknown_device_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no simulated GPU 7"):
        ledger.allocate(7, GIB)


def test_requests_can_be_counted_by_id(ledger: Ledger) -> None:
    first = ledger.begin_request("abc", "m", "/v1/completions")
    ledger.begin_request("def", "m", "/v1/completions")
    ledger.end_request(first, "ok")
    (record,) = ledger.requests("abc")
    assert (record.outcome, record.pid, record.path) == ("ok", os.getpid(), "/v1/completions")
    assert record.ended is not None
    assert [r.outcome for r in ledger.requests()] == ["ok", "running"]


def test_load_counts_where_the_process_holds_memory(ledger: Ledger) -> None:
    ledger.report_load(3)
    assert ledger.in_flight(0) == 0
    ledger.allocate(0, GIB, "weights")
    ledger.allocate(0, GIB, "kv_cache")
    assert (ledger.in_flight(0), ledger.in_flight(1)) == (3, 0)
