"""The wheel alone gives a working `kubectl greenthread`; the sdist has everything and builds the same wheel."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from kubectl_greenthread.recipes import names
from scripts import release
from tests.distribution.conftest import CLEAN, Built, ran
from tests.testbeds.programs import Missing, need, skip_or_fail

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_the_wheel_alone_is_a_working_plugin(built: Built, tmp_path: Path) -> None:
    plugin = built.installed / "kubectl-greenthread"
    assert ran(plugin, "version", cwd=tmp_path).stdout == f"greenthread {release.version()}\n"
    listed = ran(plugin, "recipes", "-o", "json", cwd=tmp_path)
    assert sorted(item["metadata"]["name"] for item in json.loads(listed.stdout)["items"]) == names()
    assert ran(plugin, "top", "--help", cwd=tmp_path).stdout.startswith("Usage: kubectl greenthread top [MODEL...]")
    assert "bash completion" in ran(built.installed / "greenthread", "completion", "bash", cwd=tmp_path).stdout.replace(
        "completion for bash", "bash completion"
    )
    completed = ran(built.installed / "kubectl_complete-greenthread", "recipes", "bge-m", cwd=tmp_path)
    assert completed.stdout == "bge-m3\n:4\n"
    failed = ran(plugin, "top", cwd=tmp_path, env={"KUBECONFIG": str(tmp_path / "none")})
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)


def test_pipx_installs_commands_and_manual(built: Built, tmp_path: Path) -> None:
    python = release.virtual_environment(tmp_path / "venv", "pipx")
    env = {"HOME": str(tmp_path), "PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    env |= {"PIPX_MAN_DIR": str(tmp_path / "man"), "PATH": f"{python.parent}:{CLEAN['PATH']}"}
    env |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))}
    done = ran(python, "-m", "pipx", "install", built.wheel, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    commands = {file.name for file in (tmp_path / "bin").iterdir()}
    assert commands == {"greenthread", "kubectl-greenthread", "kubectl_complete-greenthread"}
    version = ran(tmp_path / "bin" / "kubectl-greenthread", "version", cwd=tmp_path)
    assert version.stdout == f"greenthread {release.version()}\n"
    manual = (tmp_path / "man" / "man1" / "greenthread.1").read_text(encoding="utf-8")
    assert manual.startswith(".")
    assert ".TH" in manual


@pytest.mark.parametrize(("verb", "extra"), [("up", "local"), ("demo", "local"), ("dashboard", "tui")])
def test_what_needs_more_says_what_to_install(built: Built, tmp_path: Path, verb: str, extra: str) -> None:
    done = ran(built.installed / "kubectl-greenthread", verb, "--help", cwd=tmp_path)
    if done.returncode:
        assert done.stderr.endswith(f"pip install 'greenthread[{extra}]'\n")
        assert done.stderr.count("\n") == 1
    else:  # its help needs nothing; itself does
        done = ran(built.installed / "kubectl-greenthread", verb, cwd=tmp_path)
        assert done.returncode == 1
        assert f"pip install 'greenthread[{extra}]'" in done.stderr


def test_kubectl_finds_it(built: Built, tmp_path: Path) -> None:
    try:
        kubectl = need("kubectl")
    except Missing as missing:
        skip_or_fail(missing)
    path = {"PATH": f"{built.installed}:{CLEAN['PATH']}"}
    assert ran(kubectl, "greenthread", "version", cwd=tmp_path, env=path).stdout.startswith("greenthread ")
    completed = ran(kubectl, "__complete", "greenthread", "rec", cwd=tmp_path, env=path)
    assert completed.stdout.startswith("recipes")


def test_the_wheel_has_what_the_programs_read(built: Built) -> None:
    inside = set(zipfile.ZipFile(built.wheel).namelist())
    data = f"greenthread-{release.version()}.data/data/share/man/man1/greenthread.1"
    for file in (
        *(f"greenthread/manifests/recipes/{name}.yaml" for name in names()),
        *(f"greenthread/manifests/crds/{name}.greenthread.ai.yaml" for name in ("models", "gpus")),
        "controller/gate.sh", "tui/app.tcss", "localcluster/engine/flags.txt", "localcluster/engine/bin/vllm", data,
    ):  # fmt: skip
        assert file in inside, file
    ours = ("greenthread", "proxy", "controller", "sidecar", "gateway", "tui", "kubectl_greenthread", "localcluster",
            "vllm_sleep")  # fmt: skip
    assert {name.partition("/")[0].partition("-")[0] for name in inside} == set(ours)


def test_the_sdist_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for path in ("manifests/charts/greenthread/values.yaml", "manifests/crds/models.greenthread.ai.yaml",
                 "manifests/charts/greenthread/files/crds/gpus.greenthread.ai.yaml", "manifests/recipes/bge-m3.yaml",
                 "manifests/images/Dockerfile", "manifests/install/greenthread.yaml", "docs/operate.md", "Makefile",
                 "requirements.lock", "tests/conftest.py"):  # fmt: skip
        assert (source / path).exists(), f"the sdist lacks {path}"
    (again,) = release.build(built.hatchling, source, tmp_path / "dist", "wheel")
    assert again.name == built.wheel.name
    assert contents(again) == contents(built.wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_krews_archive_works_where_there_is_only_python(built: Built, tmp_path: Path) -> None:
    archive = release.krew_archive(built.hatchling, built.wheel, tmp_path)
    manifest = yaml.safe_load(release.krew_manifest(archive))
    (platform,) = manifest["spec"]["platforms"]
    assert platform["uri"].rpartition("/")[2] == archive.name
    assert f"/v{release.version()}/" in platform["uri"]
    assert manifest["spec"]["version"] == f"v{release.version()}"
    assert platform["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "krew", filter="data")
        top = {member.name.partition("/")[0] for member in tar}
    assert {file["from"] for file in platform["files"]} == top
    program = tmp_path / "krew" / platform["bin"]
    assert program.stat().st_mode & stat.S_IXUSR
    link = tmp_path / "bin" / "kubectl-greenthread"  # as krew puts it on the PATH
    link.parent.mkdir()
    link.symlink_to(program)
    python = {"PATH": f"{built.hatchling.parent}:{CLEAN['PATH']}"}
    assert ran(link, "version", cwd=tmp_path, env=python).stdout == f"greenthread {release.version()}\n"
    assert "bge-m3" in ran(link, "recipes", cwd=tmp_path, env=python).stdout
    assert ran(link, "up", "--help", cwd=tmp_path, env=python).returncode == 1


def test_krew_installs_it(built: Built, tmp_path: Path) -> None:
    try:
        krew, kubectl = need("krew"), need("kubectl")
    except Missing as missing:
        skip_or_fail(missing)
    archive = release.krew_archive(built.hatchling, built.wheel, tmp_path)
    manifest = tmp_path / "greenthread.yaml"
    manifest.write_text(release.krew_manifest(archive), encoding="utf-8")
    root = tmp_path / "krew"
    env = {"KREW_ROOT": str(root), "PATH": f"{root / 'bin'}:{built.hatchling.parent}:{CLEAN['PATH']}"}
    done = ran(krew, "install", f"--manifest={manifest}", f"--archive={archive}", cwd=tmp_path, env=env)
    assert "Installed plugin: greenthread" in done.stderr, done.stderr
    said = ran(kubectl, "greenthread", "version", cwd=tmp_path, env=env)
    assert said.stdout == f"greenthread {release.version()}\n"
