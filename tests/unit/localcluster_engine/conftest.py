"""Simulated engines for tests: each one a process with its own port, all on one ledger."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from localcluster.gpus.ledger import ENVIRONMENT, GIB, Ledger, create

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
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env={**os.environ, **given, ENVIRONMENT: str(ledger.path)}, stderr=file, stdout=file
            )
        self.http = httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    def wait(self) -> None:
        """Until it answers, or has died (AssertionError with its log)."""
        client = httpx.Client(transport=httpx.HTTPTransport(retries=0), trust_env=False)
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if client.get(f"{self.url}/health", timeout=5).status_code == 200:
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
        self.process.kill()
        self.process.wait()


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

    # argparse takes the model where it stands, after the first option too.
    yield begin
    for engine in running:
        engine.stop()


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
