"""The beds themselves: what they start is found, survives what tests do to it, and never outlives the test."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testbeds import install, programs
from tests.testbeds.group import ProcessGroup
from tests.testbeds.kube import APISERVER, ETCD, RealApi

NAMESPACES = "/api/v1/namespaces"


def until(what: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether `what` comes true in time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def real() -> RealApi:
    try:
        return RealApi()
    except programs.Missing as missing:
        programs.skip_or_fail(missing)


@pytest.mark.real
def test_the_api_keeps_its_objects_and_address_when_its_programs_are_killed(real: RealApi) -> None:
    with real:
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kept"}}
        assert real.request("POST", NAMESPACES, made)[0] == 201
        real.kill(APISERVER)
        assert not real.answers("/readyz")
        real.start(APISERVER)
        real.kill(ETCD)
        real.start(ETCD)
        assert until(lambda: real.answers(f"{NAMESPACES}/kept"))
        assert real.kubectl("get", "namespace", "kept", "-o", "name") == "namespace/kept\n"
        real.signal(APISERVER, signal.SIGSTOP)
        real.signal(APISERVER, signal.SIGCONT)
        assert real.answers("/readyz")
    assert not real.folder.exists()
    assert not real.answers("/readyz")


@pytest.mark.real
def test_a_program_that_does_not_start_is_told_with_its_last_words(real: RealApi) -> None:
    real._arguments[ETCD].append("--no-such-flag")
    with pytest.raises(RuntimeError, match=r"etcd ended with status 2:\nUsage"):
        real.__enter__()
    assert not real.folder.exists()


def test_what_a_killed_test_has_started_is_gone_too(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, time\n"
        "from tests.testbeds.group import ProcessGroup\n"
        "group = ProcessGroup()\n"
        f"group.start('sleep', ['sleep', '100'], pathlib.Path({str(tmp_path / 'log')!r}))\n"
        "print(group.running['sleep'].pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        started = Path(f"/proc/{int(test.stdout.readline())}/cmdline")
        running = until(lambda: started.read_bytes() == b"sleep\x00100\x00")  # empty in the midst of its exec
        test.kill()
    assert running
    assert until(lambda: not started.exists() or not started.read_bytes())


def test_a_group_is_ended_by_its_stop(tmp_path: Path) -> None:
    group = ProcessGroup()
    group.start("sleep", ["sleep", "100"], tmp_path / "log")
    # as nginx does, and a pod's gate
    group.start("parent", ["sh", "-c", "sleep 100 & echo $!; wait"], tmp_path / "pid")
    assert until(lambda: (tmp_path / "pid").read_text().endswith("\n"))
    grandchild = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline")
    process = group.running["sleep"]
    group.stop()
    group.stop()
    assert process.returncode == -signal.SIGKILL
    assert until(lambda: not grandchild.exists() or not grandchild.read_bytes())


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any of the programs, and an ordinary user."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    return tmp_path


def test_a_missing_program_is_told_with_what_gets_it(nothing_here: Path) -> None:
    with pytest.raises(programs.Missing, match=r"python -m tests\.testbeds\.install kube"):
        programs.need("kube-apiserver")
    with pytest.raises(programs.Missing, match=r"python -m tests\.testbeds\.install vllm"):
        programs.need_vllm()


def test_the_folder_of_envtest_wins(nothing_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = nothing_here / "assets"
    assets.mkdir()
    (assets / "kube-apiserver").touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert programs.need("kube-apiserver") == assets / "kube-apiserver"


def test_what_cannot_be_installed_is_told_and_fails_only_in_ci(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main(["kube"]) == 0
    assert capsys.readouterr().err == (
        "testbeds: etcd is not on the PATH. Install it (Debian, Ubuntu: `sudo apt-get install etcd-server`).\n"
    )
    monkeypatch.setenv("CI", "true")
    assert install.main(["kube"]) == 1
    (nothing_here / "bin").mkdir()
    (nothing_here / "bin" / "etcd").touch(mode=0o755)
    assert install.main(["kube"]) == 1
    assert "built with Go, and there is no `go` on the PATH. Install Go 1.26" in capsys.readouterr().err


def test_two_installs_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, order = threading.Event(), []
    monkeypatch.setattr(install, "_say", lambda text: said.set())

    def second() -> None:
        with install.locked(tmp_path / "bed"):
            order.append("second")

    thread = threading.Thread(target=second)
    with install.locked(tmp_path / "bed"):
        thread.start()
        assert said.wait(10), "it does not say that it waits"
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_an_unknown_bed_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(["docker"]) == 2
    assert "usage: python -m tests.testbeds.install [kube] [chart] [vllm]" in capsys.readouterr().err
