"""The launcher as a real process around a real engine's place: shells that play the engine, a driver that is played."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vllm_sleep import fake_driver as driver

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[3]
USES_CUDA = "echo RUNNING > $FAKE_DRIVER/$$; "
WAITS = "exec sleep 60"


def _heed_signals() -> None:
    """Where tests run in the background some are ignored, and a shell cannot trap those."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Launcher:
    """One launcher with its engine."""

    def __init__(self, run_dir: Path, engine: list[str], **environment: str) -> None:
        self.run_dir = run_dir
        given = {"PYTHONPATH": str(ROOT), "RUN_DIR": str(run_dir), "GREENTHREAD_CUDA": driver.__name__, **environment}
        # in files: whoever of the engine outlives it would hold a pipe open
        self.output, self.errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm_sleep.launch", *engine],
            env={**os.environ, **given},
            stdout=self.output,
            stderr=self.errors,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )

    def connect(self) -> socket.socket:
        until(lambda: (self.run_dir / "launcher.sock").exists())
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        folder = os.open(self.run_dir, os.O_PATH)
        try:
            client.connect(f"/proc/self/fd/{folder}/launcher.sock")
        finally:
            os.close(folder)
        return client

    def say(self, line: bytes) -> dict[str, Any]:
        """Sends these bytes and nothing more."""
        with self.connect() as client:
            client.sendall(line)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as answer:
                return dict(json.loads(answer.readline()))

    def call(self, name: str) -> dict[str, Any]:
        return self.say(json.dumps({"call": name}).encode() + b"\n")

    def end(self) -> tuple[int, str]:
        """Its exit status and what it wrote to stderr."""
        self.process.wait(timeout=20)
        self.errors.seek(0)
        return self.process.returncode, self.errors.read()

    def stop(self) -> None:
        """Ends it and all of the engine's processes."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.output.close()
        self.errors.close()

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the driver's states."""
    folder = tmp_path / "driver"
    folder.mkdir()
    monkeypatch.setenv("FAKE_DRIVER", str(folder))
    return folder


Start = Callable[..., Launcher]


@pytest.fixture
def start(tmp_path: Path, cuda: Path) -> Iterator[Start]:
    started: list[Launcher] = []

    def run(script: str, processes: int = 0, **environment: str) -> Launcher:
        """`processes`: that many of the engine have to say that they use CUDA before we go on."""
        launcher = Launcher(tmp_path, ["/bin/sh", "-c", script], **environment)
        started.append(launcher)
        until(lambda: len(pids()) >= processes)
        return launcher

    yield run
    for launcher in started:
        launcher.stop()


def pids() -> list[int]:
    return sorted(int(entry.name) for entry in driver.folder().iterdir() if entry.name.isdigit() and entry.read_text())


TWO = f"(sh -c '{USES_CUDA} {WAITS}') & {USES_CUDA} {WAITS}"


# Being the engine's parent


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
def test_the_engine_s_exit_status_is_passed_on(start: Start, script: str, status: int) -> None:
    assert start(script).end() == (status, "")


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_signals_are_passed_on(start: Start, name: str) -> None:
    launcher = start(f"trap 'exit 5' {name}; {USES_CUDA} while :; do sleep 0.05; done", 1)
    until(lambda: bool(launcher.call("state")))  # its handlers are there
    launcher.process.send_signal(signal.Signals[f"SIG{name}"])
    assert launcher.end() == (5, "")


def test_the_engine_does_not_outlive_a_launcher_that_is_killed(start: Start) -> None:
    launcher = start(USES_CUDA + WAITS, 1)
    launcher.process.kill()
    launcher.end()
    until(lambda: gone(pids()[0]))


def test_the_engine_s_output_is_the_container_s(start: Start) -> None:
    launcher = start("echo out; echo err >&2")
    assert launcher.end() == (0, "err\n")
    launcher.output.seek(0)
    assert launcher.output.read() == "out\n"


def test_an_orphan_that_ends_leaves_no_zombie(start: Start) -> None:
    """The launcher takes them over, so that it can find them."""
    launcher = start(f"(sh -c '{USES_CUDA} exec sleep 0.2' &); {USES_CUDA} {WAITS}", 2)
    until(lambda: len(launcher.children()) == 2)
    until(lambda: len(launcher.children()) == 1)


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ([], 2, "usage: python3 -m vllm_sleep.launch ENGINE ARGUMENT..."),
        (["/no/such/engine"], 127, "cannot run /no/such/engine: No such file or directory"),
        (["/etc/passwd"], 127, "cannot run /etc/passwd: Permission denied"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    tmp_path: Path, cuda: Path, command: list[str], status: int, said: str
) -> None:
    assert Launcher(tmp_path, command).end() == (status, said + "\n")


@pytest.mark.parametrize("folder", ["", "/no/such/folder"])
def test_a_launcher_without_a_folder_for_its_socket_says_so(tmp_path: Path, cuda: Path, folder: str) -> None:
    status, errors = Launcher(tmp_path, ["/bin/true"], RUN_DIR=folder).end()
    assert status == 1
    assert "RUN_DIR" in errors
    assert len(errors.splitlines()) == 1


# Checkpoint and restore


def test_the_whole_family_goes_and_comes_back(start: Start) -> None:
    launcher = start(TWO, 2)
    assert launcher.call("state") == {"checkpoint": True}
    answer = launcher.call("checkpoint")
    assert answer["processes"] == 2
    assert answer["seconds"] >= 0
    assert [driver.state(pid) for pid in pids()] == ["CHECKPOINTED"] * 2
    assert launcher.call("restore")["processes"] == 2
    assert [driver.state(pid) for pid in pids()] == ["RUNNING"] * 2


def test_a_restore_of_who_was_never_checkpointed_is_harmless(start: Start) -> None:
    launcher = start(TWO, 2)
    assert launcher.call("restore")["processes"] == 2
    assert driver.calls() == []


def test_grandchildren_that_lost_their_parent_are_still_found(start: Start) -> None:
    launcher = start(f"(sh -c '{USES_CUDA} {WAITS}' &); {USES_CUDA} {WAITS}", 2)
    until(lambda: len(launcher.children()) == 2)
    assert launcher.call("checkpoint")["processes"] == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_checkpoint_that_fails_half_way_leaves_both_running(start: Start, number: int) -> None:
    launcher = start(TWO, 2)
    driver.fail("cuCheckpointProcessCheckpoint", pids()[number])
    answer = launcher.call("checkpoint")
    assert answer == {"error": "cuCheckpointProcessCheckpoint: CUDA_ERROR_UNKNOWN", "lost": False}
    assert [driver.state(pid) for pid in pids()] == ["RUNNING"] * 2


def test_a_restore_that_fails_loses_the_engine(start: Start) -> None:
    launcher = start(TWO, 2)
    launcher.call("checkpoint")
    driver.fail("cuCheckpointProcessRestore", pids()[1], result="CUDA_ERROR_OUT_OF_MEMORY")
    answer = launcher.call("restore")
    assert answer == {"error": "cuCheckpointProcessRestore: CUDA_ERROR_OUT_OF_MEMORY", "lost": True}


def test_an_engine_without_cuda_is_an_error(start: Start) -> None:
    answer = start(WAITS).call("checkpoint")
    assert answer == {"error": "the engine has no process that uses CUDA", "lost": False}


def test_a_driver_that_is_too_old_is_told_by_state_and_refuses_a_checkpoint(start: Start, cuda: Path) -> None:
    (cuda / "version").write_text("12040")
    launcher = start(USES_CUDA + WAITS, 1)
    state = launcher.call("state")
    assert state["checkpoint"] is False
    assert "570 or newer is needed" in state["reason"]
    assert launcher.call("checkpoint") == {"error": state["reason"], "lost": False}


def test_a_machine_without_cuda_is_told_by_state(start: Start) -> None:
    state = start(WAITS, GREENTHREAD_CUDA="no_such_driver").call("state")
    assert state == {"checkpoint": False, "reason": "CUDA's driver cannot be called: No module named 'no_such_driver'"}


# Clients


GARBAGE = {
    "nothing": b"",
    "an empty line": b"\n",
    "no JSON": b"checkpoint\n",
    "no text": b"\xff\xfe\x00\n",
    "no object": b'["checkpoint"]\n',
    "null": b"null\n",
    "no call": b"{}\n",
    "an unknown call": b'{"call": "unlock"}\n',
    "a number": b'{"call": 5}\n',
    "a list": b'{"call": ["checkpoint"]}\n',
    "a private method": b'{"call": "_release"}\n',
    "deep": b"[" * 4000 + b"\n",
    "long": b'{"call": "checkpoint", "x": "' + b"x" * 8000 + b'"}\n',
}


def test_garbage_is_answered_with_an_error_and_does_no_harm(start: Start) -> None:
    launcher = start(USES_CUDA + WAITS, 1)
    for name, line in GARBAGE.items():
        answer = launcher.say(line)
        assert answer.get("lost") is False, name
        assert "no such call" in answer["error"], name
    assert driver.calls() == []
    assert launcher.call("checkpoint")["processes"] == 1
    launcher.process.terminate()
    assert launcher.end()[1] == ""


def test_garbage_is_called_garbage_where_there_is_no_driver(start: Start) -> None:
    answer = start(WAITS, GREENTHREAD_CUDA="no_such_driver").say(b'{"call": "sleep"}\n')
    assert answer == {"error": "no such call: 'sleep'", "lost": False}


def test_a_client_that_says_nothing_keeps_nobody_waiting(start: Start) -> None:
    launcher = start(USES_CUDA + WAITS, 1)
    silent = [launcher.connect() for _ in range(8)]
    half = launcher.connect()
    half.sendall(b'{"call": "check')
    began = time.monotonic()
    assert launcher.call("checkpoint")["processes"] == 1
    assert time.monotonic() - began < 8
    for client in (*silent, half):
        client.close()


def test_a_client_that_does_not_wait_for_its_answer_is_no_news(start: Start) -> None:
    launcher = start(USES_CUDA + WAITS, 1)
    driver.fail("cuCheckpointProcessLock", seconds=0.2)
    client = launcher.connect()
    client.sendall(b'{"call": "checkpoint"}\n')
    client.close()
    until(lambda: [driver.state(pid) for pid in pids()] == ["CHECKPOINTED"])
    assert launcher.call("restore")["processes"] == 1
    launcher.process.terminate()
    assert launcher.end()[1] == ""


def test_calls_at_once_are_done_one_after_the_other(start: Start) -> None:
    launcher = start(USES_CUDA + WAITS, 1)
    for call in ("Lock", "Checkpoint", "Restore", "Unlock"):
        driver.fail(f"cuCheckpointProcess{call}", seconds=0.05, times=10)
    answers: list[dict[str, Any]] = []
    names = ["checkpoint", "restore", "checkpoint", "restore"]
    threads = [threading.Thread(target=lambda name=name: answers.append(launcher.call(name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert not any(answer.get("lost") for answer in answers)
    lines = driver.calls()
    for begun, ended in zip(lines[::2], lines[1::2], strict=True):
        assert begun.removeprefix("begin") == ended.removeprefix("end"), lines
    launcher.call("restore")
    assert driver.state(pids()[0]) == "RUNNING"


def test_the_socket_of_an_earlier_launcher_is_replaced(start: Start, tmp_path: Path) -> None:
    first = start(USES_CUDA + WAITS, 1)
    assert first.call("state") == {"checkpoint": True}
    first.process.kill()
    first.end()
    assert (tmp_path / "launcher.sock").exists()
    second = start(USES_CUDA + WAITS, 2)

    def listens() -> bool:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            second.connect().close()
            return True
        return False

    until(listens)
    assert second.call("checkpoint")["processes"] == 1


def test_a_long_folder_does_not_matter(cuda: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    launcher = Launcher(folder, ["/bin/sh", "-c", USES_CUDA + WAITS])
    try:
        until(lambda: bool(pids()))
        assert launcher.call("checkpoint")["processes"] == 1
    finally:
        launcher.stop()
