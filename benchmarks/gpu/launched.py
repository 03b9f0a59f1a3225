"""A program under vllm_sleep's launcher, as the engine's container runs it."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vllm_sleep.launch import SOCKET, descendants


class Failed(Exception):
    """The program or its launcher did not do what it was asked; the message says what was said instead."""


class Launched:
    """Its processes end with the `with` block."""

    def __init__(
        self,
        python: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] = os.environ,
        cwd: Path | None = None,
        talk: bool = False,
    ) -> None:
        """`talk`: what it prints is answers, not a log."""
        self._folder = tempfile.TemporaryDirectory(prefix="greenthread-")
        self._log = log
        self.launcher = Path(self._folder.name) / SOCKET
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [python, "-m", "vllm_sleep.launch", *command],
                env={**env, "RUN_DIR": self._folder.name},
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talk else output,
                stderr=output,
                text=True,
                cwd=cwd,
            )
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        if talk:
            threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        mine = self.pids()
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        for pid in (*mine, self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)  # also one that is checkpointed, which no other signal reaches
            except ProcessLookupError:
                pass
        self.process.wait()
        self._folder.cleanup()

    def pids(self) -> list[int]:
        """All that runs under the launcher."""
        return descendants(self.process.pid)

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next answer. Failed."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Failed(f"no answer within {seconds:.0f} s; {self.tail()}") from None
            if line is None:
                raise Failed(f"it ended with {self.process.wait()}; {self.tail()}")
            try:
                answer: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # what a library prints
            if "error" in answer:
                raise Failed(str(answer["error"]))
            return answer

    def ask(self, word: str, seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it ended: `hear` tells how
        return self.hear(seconds)

    def call(self, name: str, seconds: float) -> tuple[float, dict[str, Any]]:
        """Seconds that the launcher took by our clock, and its answer. Failed."""
        began = time.perf_counter()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(seconds)
                connection.connect(str(self.launcher))
                connection.sendall(json.dumps({"call": name}).encode() + b"\n")
                line = connection.makefile("rb").readline()
        except OSError as error:
            raise Failed(f"the launcher did not answer {name}: {error}; {self.tail()}") from None
        took = time.perf_counter() - began
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise Failed(f"the launcher ended while it was asked for {name}; {self.tail()}") from None
        if "error" in answer:
            raise Failed(f"{name}: {answer['error']}")
        return took, answer

    def tail(self) -> str:
        """What it wrote last, for people."""
        text = self._log.read_text(errors="replace")
        return f"its log ends: {text[-1500:].strip()}" if text.strip() else "its log is empty"

    def _listen(self, output: IO[str]) -> None:
        for line in output:
            self._said.put(line)
        self._said.put(None)
