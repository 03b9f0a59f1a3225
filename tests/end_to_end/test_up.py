"""`greenthread up`: one command, every end of it, and what is there at the next start."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.kube.errors import Unreachable
from greenthread.kube.resources import MODELS, NODES, PODS
from localcluster import parts
from localcluster.gpus import ledger
from localcluster.supervisor.leftovers import in_session, read_stat

pytestmark = pytest.mark.processes

NAMESPACE = "greenthread-system"
MODEL = """
apiVersion: greenthread.ai/v1alpha1
kind: Model
metadata: {name: tiny, namespace: greenthread-system}
spec: {modelName: acme/tiny-1b, replicas: 0}
"""


class Up:
    """A running `greenthread up`."""

    def __init__(self, state: Path, *options: str, env: Mapping[str, str] = os.environ) -> None:
        command = [sys.executable, "-m", "localcluster.up", "--state-dir", str(state), *options]
        self.state = state
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def ready(self) -> Up:
        until(lambda: "Then, in another terminal" in self.said or self.process.poll() is not None, "it is up", 40)
        assert self.process.poll() is None, self.said
        return self

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Its exit status, -N for a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(40)
        self._reader.join(5)
        return status

    @property
    def client(self) -> Client:
        return Client(load_config(self.state / "kubeconfig"))

    def pids(self) -> set[int]:
        """Everything it runs."""
        folders = (self.state / "processes", self.state / "supervisor" / "processes")
        return {int(file.stem) for folder in folders for file in folder.glob("*.json")}


def until(holds: Callable[[], bool], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def fast_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENTHREAD_SIM_BOOT_SECONDS", "0.1")
    monkeypatch.setenv("GREENTHREAD_SIM_DISK_GBPS", "200")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    running: list[Up] = []

    def begin(*options: str, state: Path | None = None) -> Up:
        running.append(Up(state or tmp_path / "state", "--simulate-gpus", "2", *options))
        return running[-1]

    yield begin
    for up in running:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()


def refused(*options: str) -> str:
    """The one line with which it refuses to start."""
    command = [sys.executable, "-m", "localcluster.up", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_objects_ports_and_node_are_there_again_after_a_restart(start: Callable[..., Up], tmp_path: Path) -> None:
    manifest = tmp_path / "model.yaml"
    manifest.write_text(MODEL)
    first = start("-f", str(manifest)).ready()
    (model,) = first.client.list(MODELS, NAMESPACE).items
    (node,) = first.client.list(NODES).items
    pods = first.pids()
    assert len(pods) == 4  # the API, controller, agent, gateway
    assert first.end() == 0
    assert not any(in_session(pid) for pid in pods)
    assert "everything is kept" in first.said

    second = start().ready()
    (again,) = second.client.list(MODELS, NAMESPACE).items
    assert again["metadata"]["uid"] == model["metadata"]["uid"]
    assert [item["metadata"]["uid"] for item in second.client.list(NODES).items] == [node["metadata"]["uid"]]
    exports = [re.findall(r"(export KUBECONFIG=.*|models: .*)", up.said) for up in (first, second)]
    assert exports[0] == exports[1]
    assert second.end(signal.SIGTERM) == 0


def test_this_machines_own_gpus_and_its_own_vllm_serve(tmp_path: Path) -> None:
    """Without --simulate-gpus: the NVML that is there, and the `vllm` that is on the PATH."""
    ledger.create(tmp_path / "gpus", 1).close()
    manifest = tmp_path / "model.yaml"
    manifest.write_text(MODEL.replace("replicas: 0", "replicas: 1"))
    env = os.environ | {
        "GREENTHREAD_NVML": "localcluster.gpus.nvml",
        "GREENTHREAD_GPU_LEDGER": str(tmp_path / "gpus"),
        "GREENTHREAD_PYTHON": sys.executable,
        "PATH": f"{parts.ENGINE_BIN}{os.pathsep}{os.environ['PATH']}",
    }
    up = Up(tmp_path / "state", "-f", str(manifest), env=env)
    try:
        up.ready()
        assert "simulated" not in up.said
        url = re.findall(r"models: +(\S+)", up.said)[0]
        body = {"model": "acme/tiny-1b", "messages": [{"role": "user", "content": "Hello"}]}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert "Hello" in answer.json()["choices"][0]["message"]["content"]
        assert up.end() == 0
    finally:
        up.process.kill()
        up.process.wait()


def test_a_killed_run_leaves_nothing_and_the_next_start_works(start: Callable[..., Up]) -> None:
    first = start().ready()
    pids = first.pids()
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not any(in_session(pid) for pid in pids), "all its processes are gone", 5)
    second = start().ready()
    assert {pod["metadata"]["name"] for pod in second.client.list(PODS, NAMESPACE).items} == {
        "greenthread-agent",
        "greenthread-controller",
        "greenthread-gateway",
    }
    assert second.end() == 0


def test_an_api_that_dies_is_started_again_with_all_objects(start: Callable[..., Up]) -> None:
    up = start().ready()
    before = up.client.list(PODS, NAMESPACE).items
    (api,) = (int(file.stem) for file in (up.state / "processes").glob("*.json"))
    os.kill(api, signal.SIGKILL)
    until(lambda: "starting it again" in up.said, "it says so")

    def answers() -> bool:
        try:
            now = up.client.list(PODS, NAMESPACE).items
        except Unreachable:
            return False
        return [pod["metadata"]["uid"] for pod in now] == [pod["metadata"]["uid"] for pod in before]

    until(answers, "the API answers with the same objects")
    for pod in before:  # and nothing else was disturbed
        pid = int(pod["status"]["containerStatuses"][0]["containerID"].removeprefix("process://"))
        assert read_stat(pid) is not None
    assert up.end() == 0


def test_a_second_signal_does_not_wait_for_anybody(start: Callable[..., Up]) -> None:
    up = start().ready()
    script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    container = {"name": "main", "image": "none", "command": ["sh", "-c", script]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 300}
    up.client.create(PODS, {"metadata": {"name": "stubborn"}, "spec": spec}, NAMESPACE)
    until(lambda: any(log.read_text() == "up\n" for log in up.state.glob("logs/*stubborn*/main/0.log")), "it runs")
    pids = up.pids()
    up.process.send_signal(signal.SIGINT)
    until(lambda: "again: at once" in up.said, "it says how to hurry")
    assert up.end() == 0
    assert not any(in_session(pid) for pid in pids)


def test_two_cannot_use_one_folder(start: Callable[..., Up]) -> None:
    up = start().ready()
    message = refused("--simulate-gpus", "2", "--state-dir", str(up.state))
    assert f"another `greenthread up` (pid {up.process.pid}) uses {up.state}" in message
    assert up.end() == 0


@pytest.mark.parametrize("option", ["--gateway-port", "--api-port"])
def test_a_taken_port_is_named(option: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        message = refused("--simulate-gpus", "1", "--state-dir", str(tmp_path / "s"), option, str(port))
        assert f"port {port} is taken by another program: choose another with {option}" in message


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "api").mkdir(parents=True)
    (state / "api" / "objects.sqlite").write_text("this is no database" * 1000)
    (state / "up.json").write_text("{half")
    message = refused("--simulate-gpus", "1", "--state-dir", str(state))
    assert "objects.sqlite is damaged" in message
    assert "move the state folder away" in message


def test_state_of_another_version_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "api").mkdir(parents=True)
    with sqlite3.connect(state / "api" / "objects.sqlite") as database:
        database.execute("PRAGMA user_version=9999")
    assert "another version" in refused("--simulate-gpus", "1", "--state-dir", str(state))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"{file / 'state'} cannot be used" in refused("--simulate-gpus", "1", "--state-dir", str(file / "state"))


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("a: [", "is not YAML"),
        ("[1]", "an object needs apiVersion, kind and metadata.name"),
        ("{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}", "use kubectl apply"),
        (MODEL.replace("acme/tiny-1b", "''"), "Model tiny is refused"),
    ],
)
def test_a_bad_manifest_stops_the_start(tmp_path: Path, content: str, advice: str) -> None:
    manifest = tmp_path / "model.yaml"
    manifest.write_text(content)
    message = refused("--simulate-gpus", "1", "--state-dir", str(tmp_path / "state"), "-f", str(manifest))
    assert advice in message


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_it_says_what_to_do(tmp_path: Path) -> None:
    message = refused("--state-dir", str(tmp_path / "state"))
    assert "no NVIDIA driver" in message
    assert "--simulate-gpus" in message
