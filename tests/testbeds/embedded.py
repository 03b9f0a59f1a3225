"""The embedded API as a process of its own, with the same handles as the real one (`tests.testbeds.kube.RealApi`)."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.testbeds.admin import Admin
from tests.testbeds.group import ProcessGroup

PROGRAM = "embedded"


class EmbeddedApi(Admin):
    """`python -m localcluster.api` on a fresh folder; objects and port stay the same over `kill` and `start`."""

    def __init__(self, audit: bool = False) -> None:
        """`audit`: every request leaves a line in `audit_log`."""
        self._audit = audit
        self.folder = Path(tempfile.mkdtemp(prefix="greenthread-embedded-"))
        self.logs = self.folder / "logs"
        self.audit_log = self.folder / "audit.log"
        super().__init__(self.folder / "kubeconfig", self.folder / "ca.crt")
        self.port = 0
        self._group: ProcessGroup | None = None

    def __enter__(self) -> Self:
        try:
            self._group = ProcessGroup()
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until it answers; RuntimeError, with its output, when it does not."""
        assert self._group is not None
        self.kubeconfig.unlink(missing_ok=True)
        command = [sys.executable, "-m", "localcluster.api", "--state-dir", str(self.folder / "state")]
        command += ["--kubeconfig", str(self.kubeconfig), "--log-dir", str(self.logs), "--port", str(self.port)]
        command += ["--audit-log", str(self.audit_log)] if self._audit else []
        log = self.folder / "log"
        self._group.start(PROGRAM, command, log)
        while not self.kubeconfig.exists():
            if self._group.running[PROGRAM].poll() is not None:
                raise RuntimeError(f"the embedded API ended:\n{log.read_text()}")
            time.sleep(0.02)
        self.load()
        self.port = int(self.url.rpartition(":")[2])

    @property
    def pids(self) -> list[int]:
        """Of its processes."""
        return self._group.pids if self._group else []

    def kill(self) -> None:
        """Kills it without warning (SIGKILL) and waits for its end."""
        assert self._group is not None
        self._group.kill(PROGRAM)

    def stop(self) -> None:
        """Ends it and removes its folder; may be called twice."""
        if self._group is not None:
            self._group.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
