"""Simulated engines for tests: each one a process with its own port, all on one ledger."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from localcluster.gpus.ledger import ENVIRONMENT, GIB, Ledger, create
from tests.testbeds.group import ProcessGroup

QUICK = {
    "GREENTHREAD_SIM_BOOT_SECONDS": "0",
    "GREENTHREAD_SIM_SLEEP_SECONDS": "0",
    "GREENTHREAD_SIM_DISK_GBPS": "100000",
    "GREENTHREAD_SIM_LINK_GBPS": "100000",
    "GREENTHREAD_SIM_TTFT_MS": "0",
    "GREENTHREAD_SIM_TOKEN_MS": "0",
}
TOOLS = ("--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "qwen3_coder")


class RunningEngine:
    """A simulated engine in a process of its own."""

    def __init__(self, ledger: Ledger, arguments: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "localcluster.engine", "serve", *arguments, "--port", str(self.port)]
        given = {"VLLM_SERVER_DEV_MODE": "1", "CUDA_VISIBLE_DEVICES": "0", **QUICK, **environment}
        self.ledger = ledger
        # In a group that ends with this process, however it ends.
        self._group = ProcessGroup()
        settings = [f"{name}={value}" for name, value in {**given, ENVIRONMENT: str(ledger.path)}.items()]
        self._group.start("engine", ["/usr/bin/env", *settings, *command], log)
        self.process = self._group.running["engine"]
        # No TLS here: reading the certificates would take longer than the engine's start.
        self.http = httpx.Client(base_url=self.url, timeout=20, trust_env=False, verify=False)

    def wait(self) -> None:
        """Until it answers, or has died (AssertionError with its log)."""
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx.ConnectError:
                # The port is there when the boot is over; the process's end is seen above.
                try:
                    self.process.wait(0.02)
                except subprocess.TimeoutExpired:
                    continue

    def control(self, path: str, **json: object) -> httpx.Response:
        """POST a control path."""
        return self.http.post(path, json=json) if json else self.http.post(path)

    def stop(self) -> None:
        """Kill it."""
        self.http.close()
        self._group.stop()


Start = Callable[..., RunningEngine]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = create(tmp_path / "gpus.db", count=2, total_bytes=96 * GIB, product="Simulated 96G")
    yield made
    made.close()


@pytest.fixture
def start(ledger: Ledger, tmp_path: Path) -> Iterator[Start]:
    """Start an engine: `start("org/model-8B", "--flag", NAME="value")`; `wait=False` does not wait for its boot."""
    running: list[RunningEngine] = []

    def begin(*arguments: str, wait: bool = True, **environment: str) -> RunningEngine:
        log = tmp_path / f"engine-{len(running)}.log"
        engine = RunningEngine(ledger, ("--enable-sleep-mode", *arguments), environment, log)
        running.append(engine)
        if wait:
            engine.wait()
        return engine

    yield begin
    for engine in running:
        engine.stop()


@pytest.fixture(scope="session")
def _plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("plain")
    ledger = create(folder / "gpus.db", count=1, total_bytes=96 * GIB)
    arguments = ("org/model-8B", "--enable-sleep-mode", "--gpu-memory-utilization", "0.90")
    engine = RunningEngine(ledger, arguments, {"GREENTHREAD_SIM_TOKEN_MS": "10"}, folder / "engine.log")
    engine.wait()
    yield engine
    engine.stop()
    ledger.close()


@pytest.fixture
def plain(_plain: RunningEngine) -> Iterator[RunningEngine]:
    """An engine that many tests share, 10 ms a token: awake before and after each, its weights good."""
    yield _plain
    assert _plain.control("/wake_up").json()["status"] == "awake"
    _plain.control("/collective_rpc", method="reload_weights")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """One engine for the tests of a module that leave it as they found it."""
    folder = tmp_path_factory.mktemp("engine")
    ledger = create(folder / "gpus.db", count=1, total_bytes=96 * GIB)
    arguments = ("Qwen/Qwen3.5-35B-A3B", "--enable-sleep-mode", "--max-model-len", "4096", *TOOLS)
    names = ("--served-model-name", "Qwen/Qwen3.5-35B-A3B", "qwen")
    engine = RunningEngine(ledger, (*arguments, *names), {}, folder / "engine.log")
    engine.wait()
    yield engine
    engine.stop()
    ledger.close()
