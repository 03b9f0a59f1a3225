"""What kubectl shows of Models and GPUs: the columns, names and words that the documents promise."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.conformance.crd_api import GIB, MANIFESTS, MERGE_PATCH, Api, path, send
from tests.conformance.gpus import Gpu, device, intent, lock, occupant
from tests.conformance.test_model_crd import STATUS


@pytest.fixture(scope="module")
def shown(crd_api: Api) -> Api:
    """An API server with one Model that serves, and one GPU on which it sleeps and another wakes."""
    send(
        crd_api, "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shown"}}
    )
    model = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "Model", "metadata": {"name": "gpt-oss-20b"}}
    send(crd_api, "POST", path("models", "shown"), {**model, "spec": {"modelName": "openai/gpt-oss-20b"}}).ok()
    send(crd_api, "PATCH", path("models", "shown", "gpt-oss-20b", "status"), {"status": STATUS}, MERGE_PATCH).ok()
    return crd_api


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def table(api: Api, *arguments: str) -> tuple[list[str], list[str]]:
    """Header and first row of what `kubectl get` prints."""
    header, row, *_ = api.kubectl("get", *arguments).splitlines()
    return cells(header), cells(row)


@pytest.mark.parametrize("name", ["models", "model", "mdl", "models.greenthread.ai"])
def test_get_models(shown: Api, name: str) -> None:
    header, row = table(shown, name, "-n", "shown")
    assert " ".join(header) == "NAME PHASE REPLICAS SERVING SLEEPING NODE GPUS VRAM/GPU URL AGE"
    assert row[:-1] == ["gpt-oss-20b", "Ready", "1", "0", "1", "node-a", "0,1", "88.2 GiB", "http://gateway/gpt2/v1"]


def test_get_the_category(shown: Api) -> None:
    assert table(shown, "greenthread", "-n", "shown")[1][0] == "model.greenthread.ai/gpt-oss-20b"


def test_get_models_of_all_namespaces(shown: Api) -> None:
    assert table(shown, "models", "-A")[0][:3] == ["NAMESPACE", "NAME", "PHASE"]


def test_get_models_wide(shown: Api) -> None:
    header, row = table(shown, "models", "-n", "shown", "-o", "wide")
    assert " ".join(header[-5:]) == "AGE MODEL TP POPULAR READY"
    assert row[-4:] == ["openai/gpt-oss-20b", "1", "false", "Sleeping"]


def test_get_gpu(crd_api: Api) -> None:
    status = device(
        occupant("qwen", "sleeping"),
        occupant("llama", "waking", 40),
        wakeLock=lock("llama"),
        preemptionIntents=[intent("gpt", 60)],
        availableMemoryBytes=40 * GIB,
    )
    gpu = Gpu(crd_api, status)
    header, row = table(crd_api, "gpu", gpu.name, "-n", "greenthread-system")
    assert " ".join(header) == "NAME NODE INDEX PRODUCT AVAILABLE AGE"
    assert row[:-1] == [gpu.name, "node-a", "0", "Simulated 80 GB", str(40 * GIB)]
    header, row = table(crd_api, "gpu", gpu.name, "-n", "greenthread-system", "-o", "wide")
    assert " ".join(header[-5:]) == "TOTAL FOREIGN OCCUPANTS WAITING WAKING"
    assert row[-5:] == [str(80 * GIB), "0", "qwen", "gpt", "default/llama"]
    template = '{.metadata.name}: {range .status.occupants[*]}{.modelName}({.state}) {end}{"\\n"}'
    line = crd_api.kubectl("get", "gpu", gpu.name, "-n", "greenthread-system", "-o", f"jsonpath={template}")
    assert line == f"{gpu.name}: qwen(sleeping) llama(waking) \n"


def test_the_one_liner_of_the_documents(crd_api: Api) -> None:
    gpu = Gpu(crd_api, device(occupant("qwen"), occupant("llama", "serving", 40)))
    one_liner = (
        "jsonpath={range .items[*]}{.metadata.name}: {range .status.occupants[*]}{.modelName}({.state}) {end}"
        '{"\\n"}{end}'
    )
    assert f"{gpu.name}: qwen(sleeping) llama(serving) \n" in crd_api.kubectl("get", "gpu", "-A", "-o", one_liner)


def test_explain_describes_every_field(crd_api: Api) -> None:
    assert "Waits this long for room before it may preempt others." in " ".join(
        crd_api.kubectl("explain", "model.spec.fairness.maxWaitTime").split()
    )
    for kind in ("model", "gpu"):
        fields = crd_api.kubectl("explain", kind, "--recursive")
        assert "status" in fields


@pytest.mark.parametrize("plural", ["models", "gpus"])
def test_every_field_of_ours_has_a_description(crd_api: Api, plural: str) -> None:
    crd = json.loads(crd_api.kubectl("get", "crd", f"{plural}.greenthread.ai", "-o", "json"))
    todo = [("", crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])]
    while todo:
        where, schema = todo.pop()
        for key, child in schema.get("properties", {}).items():
            if where or key in ("spec", "status"):
                assert child.get("description"), f"{plural}{where}.{key} has no description"
                todo.append((f"{where}.{key}", child))
        if "properties" in schema.get("items", {}):
            todo.append((f"{where}[]", schema["items"]))


def test_a_bad_manifest_is_told_by_kubectl_in_one_line(crd_api: Api) -> None:
    manifest = (
        (MANIFESTS / "recipes" / "gpt-oss-20b.yaml")
        .read_text()
        .replace("tensorParallelSize: 1", "tensorParallelSize: 3")
    )
    with pytest.raises(subprocess.CalledProcessError) as refused:
        crd_api.kubectl("create", "-f", "-", stdin=manifest.replace("name: gpt-oss-20b", "name: bad"))
    assert refused.value.stderr == (
        'The Model "bad" is invalid: spec.tensorParallelSize: Invalid value: 3: write 1, 2, 4, 8 or 16 (a power of 2)\n'
    )
