"""What is applied on one machine, and what our own programs are there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from greenthread.kube.aio import AsyncClient
from greenthread.kube.resources import MODELS, PODS
from localcluster import manifests, parts
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.storage import Store
from localcluster.parts import Simulation
from localcluster.state import ClusterError, Folder, Remembered
from localcluster.supervisor.settings import Settings

REMEMBERED = Remembered("node-a", 6443, 8080)
MODEL = {
    "apiVersion": "greenthread.ai/v1alpha1",
    "kind": "Model",
    "metadata": {"name": "tiny"},
    "spec": {"modelName": "acme/tiny"},
}


@pytest.fixture
async def client() -> AsyncClient:
    client = AsyncClient(InProcess(Api(Store())))
    for crd in manifests.read(manifests.packaged("crds")):
        await manifests.apply(client, crd, "shop")
    await manifests.apply(client, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}, "")
    return client


async def test_applying_twice_changes_what_changed(client: AsyncClient) -> None:
    await manifests.apply(client, MODEL, "shop")
    first = await client.get(MODELS, "tiny", "shop")
    await client.patch(MODELS, "tiny", {"status": {"phase": "Ready"}}, "shop", "status")
    await manifests.apply(client, MODEL | {"spec": {"modelName": "acme/tiny", "replicas": 2}}, "shop")
    second = await client.get(MODELS, "tiny", "shop")
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert (second["spec"]["replicas"], second["status"]["phase"]) == (2, "Ready")
    await manifests.apply(client, MODEL | {"metadata": {"name": "tiny", "labels": {"tier": "gold"}}}, "shop")
    assert (await client.get(MODELS, "tiny", "shop"))["metadata"]["labels"] == {"tier": "gold"}


async def test_a_refusal_carries_the_apis_words(client: AsyncClient) -> None:
    with pytest.raises(ClusterError, match=r"Model tiny is refused: .*tensorParallelSize"):
        await manifests.apply(client, MODEL | {"spec": {"modelName": "a/b", "tensorParallelSize": 3}}, "shop")


def test_folders_are_read_whole_and_only_their_manifests(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n---\n" * 2)
    (tmp_path / "b.json").write_text('{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}}')
    (tmp_path / "README.md").write_text("# no manifest")
    assert [obj["metadata"]["name"] for obj in manifests.read(tmp_path)] == ["a", "a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClusterError, match=r"no \.yaml or \.json file"):
        manifests.read(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"\xff\xfe", "is not text"),
        (b"a: [", "is not YAML"),
        (b"a: b", "needs apiVersion"),
        (b" " * 2**21, "larger than"),
    ],
)
def test_what_is_no_manifest_is_named(tmp_path: Path, content: bytes, advice: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ClusterError, match=rf"x\.yaml.*{advice}"):
        manifests.read(file)
    with pytest.raises(ClusterError, match="cannot be read: No such file"):
        manifests.read(tmp_path / "absent")


def test_every_recipe_can_be_applied_here() -> None:
    assert len(manifests.read(manifests.packaged("recipes"))) >= 6


def test_our_own_pods_run_our_own_programs() -> None:
    folder = Folder(Path("/state"))
    settings = Settings("node-a", Path("/s"), Path("/l"), parts.images(folder, None))
    modules = {}
    for pod in parts.system_pods(REMEMBERED):
        assert pod["spec"]["nodeName"] == "node-a"
        (container,) = pod["spec"]["containers"]
        image = settings.image(container["image"])
        assert image is not None
        modules[container["name"]] = image.entrypoint
        assert image.env["KUBECONFIG"] == "/state/kubeconfig"
    assert modules == {
        "controller": (sys.executable, "-P", "-m", "controller"),
        "agent": (sys.executable, "-P", "-m", "controller.agent"),
        "gateway": (sys.executable, "-P", "-m", "gateway"),
    }


def test_only_a_simulation_puts_its_vllm_before_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    folder = Folder(Path("/state"))
    real = parts.images(folder, None)
    assert real["*"].env == {}
    assert "GREENTHREAD_NVML" not in real[parts.SIDECAR_IMAGE].env
    simulated = parts.images(folder, Simulation(2, 2**30))
    assert simulated["*"].env["PATH"] == f"{parts.ENGINE_BIN}:/usr/bin"
    assert simulated[parts.SIDECAR_IMAGE].env["GREENTHREAD_GPU_LEDGER"] == "/state/gpus.sqlite"


def test_what_listens_listens_on_loopback() -> None:
    images = parts.images(Folder(Path("/state")), None)
    assert images[parts.SIDECAR_IMAGE].env["SIDECAR_HOST"] == "127.0.0.1"
    assert images["greenthread/gateway"].env["GATEWAY_HOST"] == "127.0.0.1"


async def test_our_pods_are_accepted_by_the_api(client: AsyncClient) -> None:
    await manifests.apply(
        client, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "greenthread-system"}}, ""
    )
    for pod in parts.system_pods(REMEMBERED):
        await client.create(PODS, pod)


def test_an_engines_python_is_vllms_own_also_where_a_link_to_vllm_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pipx installs it: the launcher around the engine needs what vLLM's environment has."""
    (tmp_path / "venv").mkdir()
    (tmp_path / "links").mkdir()
    program = tmp_path / "venv" / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "links" / "vllm").symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path}/links:/usr/bin")
    assert parts.images(Folder(tmp_path), None)["*"].env["PATH"] == f"{tmp_path}/venv:{tmp_path}/links:/usr/bin"
