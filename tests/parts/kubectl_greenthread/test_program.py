"""How the program starts, fails and ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kubectl_greenthread.main import program_name
from kubectl_greenthread.terminal import Terminal
from kubectl_greenthread.verbs import VERBS
from tests.unit.greenthread_kube.scripted import Answer, Asked, status

from .cluster import Cluster, write_kubeconfig
from .conftest import Plugin

SLOW = {"kubernetes", "textual", "rich", "httpx", "plotext", "prometheus_api_client", "uvloop", "kopf", "aiohttp",
        "yaml", "asyncio", "click", "dataclasses", "inspect", "tempfile", "shutil", "requests"}  # fmt: skip
VERBS_RUN = (["top"], ["status", "m"], ["explain", "m"], ["models"], ["gpus"], ["events"], ["wake", "m"],
             ["sleep", "m"], ["pin", "m"], ["preempt", "m"], ["url", "m", "--url", "http://x"], ["--help"],
             ["__complete", "status", ""], ["completion", "bash"])  # fmt: skip


@pytest.mark.parametrize("args", VERBS_RUN, ids=lambda args: args[0])
def test_start_up_imports_nothing_slow(cluster: Cluster, args: list[str]) -> None:
    cluster.gpu(0)
    cluster.model("m")
    code = (
        "import sys, kubectl_greenthread.main as main; code = main.run(sys.argv[1:], 'x'); "
        "print(code, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    code, *modules = ran.stderr.splitlines()[-1].split()
    assert code == "0", ran.stderr
    assert not set(modules) & SLOW


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (status(401, "Unauthorized"), 1, "log in again"),
        (status(403, "Forbidden", "User x"), 5, "no permission to list models.greenthread.ai: User x; ask for a role"),
        (Answer(404, b"404 page not found"), 1, "install GreenThread's CRDs"),
        (status(500, "InternalError", "etcd is gone"), 1, "etcd is gone"),
        (Answer(200, b"<html>"), 1, "is this address an API server"),
    ],
)
def test_a_failing_cluster_is_one_clear_line(scripted, plugin: Plugin, answer: Answer, code: int, message: str) -> None:
    scripted(lambda asked: answer)
    ran = plugin("top")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert message in ran.err


def test_an_unreachable_cluster_is_one_clear_line(
    tmp_path: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}")))
    ran = plugin("top")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert f"no API server listens at http://127.0.0.1:{port}" in ran.err


def test_what_may_not_be_read_is_left_out_and_said(scripted, plugin: Plugin) -> None:
    model = {"metadata": {"name": "m", "namespace": "default"}, "spec": {"modelName": "x"}}

    def reply(asked: Asked) -> Answer:
        if asked.path.endswith("/models"):
            return Answer(body={"metadata": {"resourceVersion": "1"}, "items": [model]})
        return status(403, "Forbidden", "no")

    scripted(reply)
    ran = plugin("top")
    assert ran.code == 0
    assert "m      ◇ staging" in ran.out
    assert "no permission to list pods" in ran.err
    assert "no permission to list gpus.greenthread.ai" in ran.err


def test_gpus_of_the_usual_namespace_are_read_when_not_all_may_be(scripted, plugin: Plugin) -> None:
    def reply(asked: Asked) -> Answer:
        if asked.path.endswith("v1alpha1/gpus"):
            return status(403, "Forbidden")
        return Answer(body={"metadata": {"resourceVersion": "1"}, "items": []})

    server = scripted(reply)
    assert plugin("top").code == 0
    assert any(asked.path.endswith("/namespaces/greenthread-system/gpus") for asked in server.asked)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["tpo"], 2, "error: there is no verb tpo: did you mean top? (see `kubectl greenthread --help`)"),
        (["frobnicate"], 2, "there is no verb frobnicate: the help lists them (see `kubectl greenthread --help`)"),
        (["top", "--nope"], 2, "(see `kubectl greenthread top --help`)"),
        (["top", "-o", "csv"], 2, "'csv'"),
        (["wake"], 2, "missing: MODEL... (see `kubectl greenthread wake --help`)"),
        (["wake", "x", "--timeout", "5 minutes"], 2, "write it like 500ms, 30s"),
        (["top", "--context", "nope"], 1, "there is no context nope in"),
        (["--context", "nope", "top"], 1, "contexts: here"),
        (["top", "--kubeconfig", "/does/not/exist"], 1, "cannot read the kubeconfig, /does/not/exist"),
    ],
)
def test_wrong_use_is_one_clear_line(
    cluster: Cluster, plugin: Plugin, args: list[str], code: int, message: str
) -> None:
    ran = plugin(*args)
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    assert message in ran.err


def test_help_names_every_verb_there_is_and_the_exit_codes(plugin: Plugin) -> None:
    for args in ([], ["--help"], ["-h"]):
        ran = plugin(*args)
        assert ran.code == 0
        assert ran.out.startswith("Usage: kubectl greenthread")
        assert "3 timed out" in ran.out
        for verb in ("top", "status", "wake", "sleep", "pin", "unpin", "preempt", "version"):
            assert f"  {verb} " in ran.out
            assert plugin(verb, "--help").code == 0
    assert set(VERBS) >= {"up", "demo"}


def test_the_program_is_called_what_the_user_typed() -> None:
    assert program_name("/usr/local/bin/kubectl-greenthread") == "kubectl greenthread"
    assert program_name("/usr/local/bin/greenthread") == "greenthread"


def test_as_kubectls_plugin_and_by_its_own_name(cluster: Cluster) -> None:
    cluster.gpu(0)
    cluster.model("tiny-1")
    folder = Path(sys.executable).parent
    if shutil.which("kubectl") is None or not (folder / "kubectl-greenthread").exists():
        pytest.skip("needs kubectl on the PATH and the package installed")
    environ = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    for program in (["kubectl", "greenthread"], ["greenthread"]):
        ran = subprocess.run([*program, "top"], env=environ, capture_output=True, text=True, check=True)
        assert "tiny-1  ○ sleeping" in ran.stdout
        ran = subprocess.run([*program, "nope"], env=environ, capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        assert f"`{' '.join(program)} --help`" in ran.stderr


def test_a_reader_that_has_enough_is_not_complained_about(cluster: Cluster) -> None:
    cluster.gpu(0)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "kubectl_greenthread.main", "top", "-o", "json"]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_a_mistake_of_ours_is_one_line_too(cluster: Cluster, plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubectl_greenthread.top.gpu_lines", lambda *_: 1 / 0)
    ran = plugin("top")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "a mistake in kubectl greenthread itself, please report it: ZeroDivisionError" in ran.err
    monkeypatch.setenv("GREENTHREAD_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        plugin("top")


class Fake:
    """A stream as wanted."""

    def __init__(self, tty: bool, encoding: str = "utf-8") -> None:
        self._tty, self.encoding = tty, encoding

    def isatty(self) -> bool:
        return self._tty

    def fileno(self) -> int:
        raise OSError("not a file")


@pytest.mark.parametrize(
    ("color", "tty", "environ", "wanted"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {}, False),
    ],
)
def test_when_there_are_colours(color: str, tty: bool, environ: dict[str, str], wanted: bool) -> None:
    assert Terminal.of_stdout(color, Fake(tty), environ).color is wanted  # type: ignore[arg-type]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    terminal = Terminal.of_stdout("never", Fake(False, "ascii"), {})  # type: ignore[arg-type]
    shown = [terminal.bar([(0.5, "full", ""), (0.2, "other", "")], 20), terminal.cut("abcdef", 3), terminal.clean("é")]
    assert all(text.isascii() for text in shown)
    states = ["serving", "waking", "pending", "deactivating", "sleeping", "converting", "failed", "cannot fit"]
    for each in (terminal, Terminal()):
        glyphs = [each.glyph(state) for state in states]
        assert len(set(glyphs)) == len(states)  # colour alone carries nothing
