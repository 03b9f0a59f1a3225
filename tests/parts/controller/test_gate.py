"""The gate, run by real shells: no engine starts without a word meant for its very process."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import pods

GATE = pods.gate()
SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]
PATIENCE = 5.0


class Sidecar:
    """The other end of the FIFOs, as the real sidecar holds them."""

    def __init__(self, folder: Path) -> None:
        for name in ("gate-out", "gate-in"):
            if not (folder / name).exists():
                os.mkfifo(folder / name)
        self.inward = os.open(folder / "gate-in", os.O_RDWR | os.O_NONBLOCK)
        self.outward = os.open(folder / "gate-out", os.O_RDWR | os.O_NONBLOCK)
        self.buffer = b""
        self.say("again")

    def say(self, line: str) -> None:
        os.write(self.outward, f"{line}\n".encode())

    def hear(self, timeout: float = PATIENCE) -> str | None:
        """The next line, None when none comes in time."""
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            if not select.select([self.inward], [], [], max(end - time.monotonic(), 0))[0]:
                return None
            self.buffer += os.read(self.inward, 4096)
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def waiting(self) -> int:
        """Pid of the process at the gate; says nothing twice in a row."""
        line = self.hear()
        assert line is not None, "nobody came to the gate"
        word, pid = line.split()
        assert word == "waiting"
        self.settle(line)
        return int(pid)

    def settle(self, line: str) -> None:
        """Takes what was announced more than once (a restarted sidecar asks again)."""
        while (more := self.hear(0.05)) is not None:
            assert more == line

    def close(self) -> None:
        os.close(self.inward)
        os.close(self.outward)


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def gates(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GateMaker]:
    maker = GateMaker(request.param, tmp_path)
    yield maker
    for gate in maker.made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(gate.pid, signal.SIGKILL)
        gate.wait()


class GateMaker:
    def __init__(self, shell: list[str], folder: Path) -> None:
        self.shell, self.folder = shell, folder
        self.made: list[subprocess.Popen[str]] = []

    def run(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """A gate before an engine that is a shell script; what the engine prints comes on stdout."""
        engine = ["sh", "-c", script, "engine", *arguments]
        gate = subprocess.Popen(
            [*self.shell, "-c", GATE, "gate", *engine],
            env={"PATH": os.environ["PATH"], "RUN_DIR": str(self.folder)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.made.append(gate)
        return gate


def line_of(gate: subprocess.Popen[str]) -> str:
    assert gate.stdout is not None
    assert select.select([gate.stdout], [], [], PATIENCE)[0], "the engine says nothing"
    return gate.stdout.readline().strip()


def silent(gate: subprocess.Popen[str], seconds: float = 0.1) -> bool:
    assert gate.stdout is not None
    return not select.select([gate.stdout], [], [], seconds)[0]


RUNS = 'echo "engine $$ $1"; exec sleep 60'


def test_the_engine_has_the_pid_that_was_announced_and_its_arguments(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS, "two words")
    pid = sidecar.waiting()
    assert silent(gate)
    sidecar.say(f"start {pid}")
    assert line_of(gate) == f"engine {pid} two words"
    assert pid != gate.pid


def test_no_word_but_its_own_starts_it(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    pid = sidecar.waiting()
    for word in (f"start {pid + 1}", "start", f"{pid}", f"start {pid} now", f"start {pid}0", "", "again", "*"):
        sidecar.say(word)
        assert sidecar.waiting() == pid
    assert silent(gate)
    sidecar.say(f"start {pid}")
    assert line_of(gate).startswith(f"engine {pid}")


def test_the_end_of_the_engine_is_announced_and_the_next_one_waits_again(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run("exit 7")
    first = sidecar.waiting()
    sidecar.say(f"start {first}")
    assert sidecar.hear() == f"exited {first} 7"
    second = sidecar.waiting()
    assert second != first
    sidecar.say(f"start {first}")  # a word for the dead one
    assert sidecar.waiting() == second
    assert gate.poll() is None


def test_a_killed_engine_and_a_missing_program_are_announced(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    line_of(gate)
    os.kill(pid, signal.SIGKILL)
    assert sidecar.hear() == f"exited {pid} 137"
    waiting = sidecar.waiting()
    os.kill(waiting, signal.SIGKILL)  # even one that only waits
    assert sidecar.hear() == f"exited {waiting} 137"
    sidecar.waiting()


def test_the_gate_waits_for_the_fifos_and_for_a_sidecar(gates: GateMaker) -> None:
    gate = gates.run(RUNS)
    sidecar = Sidecar(gates.folder)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    assert line_of(gate).startswith(f"engine {pid}")


def test_a_sidecar_that_restarts_finds_the_waiting_process_and_nothing_was_started(gates: GateMaker) -> None:
    gate = gates.run(RUNS)
    pids = set()
    for _ in range(5):
        sidecar = Sidecar(gates.folder)
        pids.add(sidecar.waiting())
        sidecar.close()
    assert len(pids) == 1
    assert silent(gate)
    sidecar = Sidecar(gates.folder)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    assert line_of(gate).startswith(f"engine {pid}")


def test_a_sidecar_that_dies_right_after_it_was_spoken_to_leaves_no_stuck_gate(gates: GateMaker) -> None:
    gates.run(RUNS)
    for _ in range(20):  # without reading: what was announced is lost with it
        Sidecar(gates.folder).close()
    sidecar = Sidecar(gates.folder)
    sidecar.waiting()


def test_an_engine_lives_on_while_its_sidecar_restarts(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    line_of(gate)
    sidecar.close()
    sidecar = Sidecar(gates.folder)
    assert sidecar.hear(0.1) is None  # nobody waits
    os.kill(pid, signal.SIGTERM)
    assert sidecar.hear() == f"exited {pid} 143"
    assert sidecar.waiting() != pid


def test_an_engine_that_ends_while_no_sidecar_listens_is_told_to_the_next(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    line_of(gate)
    sidecar.close()
    os.kill(pid, signal.SIGKILL)
    sidecar = Sidecar(gates.folder)
    assert sidecar.hear() == f"exited {pid} 137"
    sidecar.waiting()


def test_sigterm_reaches_the_engine_when_the_sidecar_has_drained(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run('trap "echo bye; exit 3" TERM; echo "engine $$"; sleep 60 & wait')
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    line_of(gate)
    gate.send_signal(signal.SIGTERM)
    assert silent(gate), "the engine was disturbed while the sidecar drained"
    assert gate.poll() is None
    sidecar.close()
    assert line_of(gate) == "bye"
    assert gate.wait(PATIENCE) == 3


def test_sigterm_after_the_sidecar_is_gone_reaches_the_engine_at_once(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    line_of(gate)
    sidecar.close()
    gate.send_signal(signal.SIGTERM)
    assert gate.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_sidecar_that_kills_its_engine_on_sigterm_ends_the_gate(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    line_of(gate)
    gate.send_signal(signal.SIGTERM)
    os.kill(pid, signal.SIGKILL)
    assert gate.wait(PATIENCE) in (137, 143)
    sidecar.close()


def test_a_waiting_gate_ends_with_its_sidecar(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    sidecar.waiting()
    gate.send_signal(signal.SIGTERM)
    sidecar.close()
    gate.wait(PATIENCE)
    assert silent(gate, 0) or line_of(gate) == ""


def test_the_engine_inherits_neither_the_fifo_nor_an_ignored_signal(gates: GateMaker) -> None:
    sidecar = Sidecar(gates.folder)
    gate = gates.run(RUNS)
    pid = sidecar.waiting()
    sidecar.say(f"start {pid}")
    line_of(gate)
    held = [os.path.realpath(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    assert str(gates.folder / "gate-out") not in held
    (ignored,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn")]
    assert not int(ignored.split()[1], 16) & 1 << (signal.SIGPIPE - 1)


def test_kubernetes_leaves_the_script_as_it_is() -> None:  # it expands both
    assert "$$" not in GATE
    assert "$(" not in GATE


def test_a_gate_whose_volume_is_gone_ends_instead_of_spinning(gates: GateMaker, tmp_path: Path) -> None:
    sidecar = Sidecar(tmp_path)
    gate = gates.run("exec sleep 600")
    waiting = sidecar.waiting()
    (tmp_path / "gate-in").unlink()
    (tmp_path / "gate-out").unlink()
    sidecar.close()
    assert gate.wait(PATIENCE) == 1
    assert not Path(f"/proc/{waiting}").exists()
