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
    """`python -m localcluster.api` on a fresh folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="greenthread-embedded-"))
        super().__init__(self.folder / "kubeconfig")
        self._group: ProcessGroup | None = None

    def __enter__(self) -> Self:
        self._group = ProcessGroup()
        command = [sys.executable, "-m", "localcluster.api", "--state-dir", str(self.folder / "state")]
        log = self.folder / "log"
        try:
            self._group.start(PROGRAM, [*command, "--kubeconfig", str(self.kubeconfig)], log)
            while not self.kubeconfig.exists():
                if self._group.running[PROGRAM].poll() is not None:
                    raise RuntimeError(f"the embedded API ended:\n{log.read_text()}")
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it and removes its folder; may be called twice."""
        if self._group is not None:
            self._group.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
