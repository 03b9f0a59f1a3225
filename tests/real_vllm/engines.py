"""Engines for these tests: the same command line, carried out by the simulated engine or by the real vLLM on a CPU."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

import localcluster.engine
from localcluster.gpus.ledger import ENVIRONMENT, Ledger
from tests.testbeds import vllm
from tests.testbeds.group import ProcessGroup

BINS = {"simulated": localcluster.engine.BIN, "real": vllm.BIN}
BOOT_SECONDS = {"simulated": 30, "real": 420}
_QUICK = {"GREENTHREAD_SIM_BOOT_SECONDS": "0", "GREENTHREAD_SIM_TTFT_MS": "1", "GREENTHREAD_SIM_TOKEN_MS": "2"}


class Engine:
    """One engine on GPU 0 of a ledger, started as a model's pod starts it."""

    def __init__(
        self,
        kind: str,
        ledger: Ledger,
        folder: Path,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`arguments`, `env`: beside those that every engine here has."""
        self.kind, self.ledger, self.log = kind, ledger, folder / f"{kind}.log"
        self._arguments, self._env = arguments, dict(env or {})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        # vLLM closes a connection that is idle for 5 seconds, and on a busy machine these tests may be slower.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False, verify=False, limits=limits
        )
        self._group = ProcessGroup()

    def __enter__(self) -> Self:
        try:
            # The simulated engine loads nothing, so it takes the folder's name for a model like any other.
            model = str(vllm.tiny_model()) if self.kind == "real" else "org/tiny"
            command = ["vllm", "serve", model, "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "bfloat16"]
            command += ["--gpu-memory-utilization", "0.90", "--tensor-parallel-size", "1", "--enable-sleep-mode"]
            command += ["--served-model-name", "tiny", "alias", "--max-model-len", "2048", "--enforce-eager"]
            command += self._arguments
            given = {
                "PATH": f"{BINS[self.kind]}:{os.environ['PATH']}",
                "GREENTHREAD_PYTHON": sys.executable,
                ENVIRONMENT: str(self.ledger.path),
                "CUDA_VISIBLE_DEVICES": "0",
                "VLLM_SERVER_DEV_MODE": "1",
                **_QUICK,
                **self._env,
            }
            settings = [f"{name}={value}" for name, value in given.items()]
            self._group.start("engine", ["/usr/bin/env", *settings, *command], self.log)
            self._wait(BOOT_SECONDS[self.kind])
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        self.http.close()
        self._group.stop()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self._group.running["engine"].poll() is None, f"the engine ended:\n{self.log.read_text()[-4000:]}"
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx.ConnectError:
                time.sleep(0.05)
        raise AssertionError(f"the engine does not answer:\n{self.log.read_text()[-4000:]}")

    # Shorthands

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        """POST with a JSON body, or none."""
        return self.http.post(path, json=json, **options)

    def control(self, path: str, json: Any = None) -> Any:
        """POST to a control path that must answer 200; its JSON."""
        answer = self.post(path, json)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def sleeping(self) -> bool:
        """GET /is_sleeping."""
        return bool(self.http.get("/is_sleeping").json()["is_sleeping"])

    @property
    def paused(self) -> bool:
        """GET /is_paused."""
        return bool(self.http.get("/is_paused").json()["is_paused"])

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"there is no {name} in /metrics")


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
