"""What is built once for all tests here: sdist, wheel, and an environment that has nothing but the wheel."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import release

CLEAN = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", "COLUMNS": "100"}


@dataclass(frozen=True)
class Built:
    """`hatchling`: a Python that has it. `installed`: the `bin` of an environment with the wheel alone."""

    hatchling: Path
    sdist: Path
    wheel: Path
    installed: Path


def ran(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program as a stranger's shell would: with next to no environment, outside the checkout."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=cwd, env={**CLEAN, **(env or {})})


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    hatchling = release.virtual_environment(folder / "build", "hatchling")
    sdist, wheel = sorted(release.build(hatchling, release.ROOT, folder / "dist"), key=lambda file: file.suffix)
    release.virtual_environment(folder / "clean", "--constraint", str(release.ROOT / "requirements.lock"), str(wheel))
    assert not os.environ.get("PYTHONPATH")
    return Built(hatchling, sdist, wheel, folder / "clean" / "bin")
