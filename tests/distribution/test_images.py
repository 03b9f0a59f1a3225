"""The images' Dockerfile without a container engine: its own install steps, run in a folder that stands for the image.

What this cannot show: that the base image is there, and how large the result is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripts.release import ROOT
from tests.distribution.conftest import ran

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

FILE = ROOT / "manifests" / "images" / "Dockerfile"


@dataclass
class Stage:
    """One FROM with its instructions, those of the stages that it is from first."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """By name, with the instructions that matter here."""
    found: dict[str, Stage] = {}
    stage = Stage("")
    for line in FILE.read_text(encoding="utf-8").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base, list(found[base].steps) if base in found else [])
        elif word in ("COPY", "RUN", "ENTRYPOINT", "ENV", "USER"):
            stage.steps.append((word, rest))
        else:
            assert word in ("", "#", "ARG", "WORKDIR") or line.startswith("#"), f"this test does not know {line!r}"
    return found


STAGES = stages()
TARGETS = {name: stage for name, stage in STAGES.items() if any(word == "ENTRYPOINT" for word, _ in stage.steps)}


def ignored() -> list[str]:
    """What the .dockerignore lets through, as it lists it."""
    lines = FILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "**"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The /app of each stage that others copy from."""
    wanted = {step.split()[0].removeprefix("--from=") for stage in TARGETS.values() for word, step in stage.steps
              if word == "COPY"}  # fmt: skip
    return {name: _build(STAGES[name], tmp_path_factory.mktemp(name)) for name in sorted(wanted)}


def _build(stage: Stage, folder: Path) -> Path:
    """Carries out COPY and RUN with /app and the working directory in `folder`."""
    app, source = folder / "app", folder / "src"
    source.mkdir()
    for word, step in stage.steps:
        if word == "COPY":
            *names, to = step.split()
            for name in names:
                assert any(name == let or name.startswith(f"{let}/") for let in ignored()), f"{name} is ignored"
                target = source / to / Path(name).name if len(names) > 1 else source / to
                target.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, target)
        elif word == "RUN":
            command = re.sub(r"(?<![\w.])/app\b", str(app), step).replace("python -m venv", f"{sys.executable} -m venv")
            done = subprocess.run(["/bin/sh", "-ec", command], cwd=source, capture_output=True, text=True)
            assert done.returncode == 0, f"RUN {step}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
    return app


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_part_starts_in_it(built: dict[str, Path], target: str, tmp_path: Path) -> None:
    steps = TARGETS[target].steps
    ((_, copied),) = [step for step in steps if step[0] == "COPY"]
    entrypoint = next(step for word, step in steps if word == "ENTRYPOINT")
    assert re.fullmatch(r"--from=[\w-]+ /app /app", copied)
    app = built[copied.split()[0].removeprefix("--from=")]
    words = re.findall(r'"([^"]*)"', entrypoint)
    assert words[:3] == ["python", "-P", "-m"]
    done = ran(app / "bin" / words[0], *words[1:], cwd=tmp_path, env={"KUBECONFIG": str(tmp_path / "none")})
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    missing = {"sidecar": "GPU_INDICES|MODEL_NAME|POD_NAME", "agent": "NODE_NAME|NVML|driver|kubeconfig"}
    assert re.search(missing.get(target, "kubeconfig"), said), said


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_it_is_lean_and_not_root(target: str) -> None:
    steps = TARGETS[target].steps
    assert [step for word, step in steps if word == "USER"] == ["65532:65532"]


def test_no_installer_stays(built: dict[str, Path]) -> None:
    for app in built.values():
        assert ran(app / "bin" / "python", "-m", "pip", "--version", cwd=app).returncode == 1


def test_the_chart_names_these_targets() -> None:
    import yaml

    values = yaml.safe_load((ROOT / "manifests/charts/greenthread/values.yaml").read_text(encoding="utf-8"))
    named = {value["image"]["repository"] for value in values.values() if isinstance(value, dict) and "image" in value
             and isinstance(value["image"], dict)}  # fmt: skip
    assert named == set(TARGETS)
