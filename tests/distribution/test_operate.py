"""The commands of docs/operate.md, letter for letter, on a real kube-apiserver with the real Helm and kubectl.

Left out: building images, and what needs pods that run.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from scripts.release import ROOT
from tests.testbeds.kube import GARBAGE_COLLECTION, RealApi
from tests.testbeds.programs import Missing, need, skip_or_fail

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

NEEDS_PODS = re.compile(r"helm test |kubectl greenthread ")
LEAVES = re.compile(r"helm uninstall |kubectl delete ")
KUSTOMIZE = re.compile(r"kubectl apply --server-side -k ")


def commands() -> list[str]:
    """Each command of a code block, its lines joined."""
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"(helm|kubectl) ", line) and not NEEDS_PODS.match(line)]


@pytest.fixture
def cluster() -> Iterator[RealApi]:
    try:
        need("helm")
        bed = RealApi(GARBAGE_COLLECTION)
    except Missing as missing:
        skip_or_fail(missing)
    with bed as running:
        running.kubectl("create", "namespace", "team-a")
        yield running


def typed(api: RealApi, command: str) -> str:
    """As somebody types it in the checkout."""
    folders = [str(need("helm").parent), str(need("kubectl").parent), os.environ["PATH"]]
    env = {**os.environ, "KUBECONFIG": str(api.kubeconfig), "PATH": ":".join(folders)}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_with_helm(cluster: RealApi) -> None:
    wanted = [command for command in commands() if not KUSTOMIZE.match(command)]
    wanted.sort(key=lambda command: bool(LEAVES.match(command)))  # the page goes on after it told how to leave
    assert [command.split()[1] for command in wanted if command.startswith("helm")] == [
        "install", "upgrade", "upgrade", "upgrade", "uninstall"
    ]  # fmt: skip
    for command in wanted:
        typed(cluster, command)
        if "upgrade" in command:  # what was set before is still set
            pod = typed(cluster, "kubectl get deployment greenthread-controller -n greenthread-system -o yaml")
            assert "registry.example.com/greenthread/controller:" in pod
            assert "name: GREENTHREAD_HF_TOKEN_SECRET" in pod
            assert "value: huggingface\n" in pod
    assert typed(cluster, "kubectl get crd -o name") == ""


def test_with_kubectl_alone(cluster: RealApi) -> None:
    (command,) = [command for command in commands() if KUSTOMIZE.match(command)]
    typed(cluster, command)
    assert "deployment.apps/greenthread-controller" in typed(cluster, "kubectl get deployments -A -o name")
    assert "models.greenthread.ai" in typed(cluster, "kubectl get crd -o name")
