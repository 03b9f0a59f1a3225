"""`recipes` lists, prints and applies the Models that come with the program."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import pytest
import yaml

from greenthread.kube.resources import MODELS
from kubectl_greenthread.completing import complete
from kubectl_greenthread.recipes import names
from tests.unit.greenthread_kube.scripted import Answer, Asked, status

from .cluster import SYSTEM, Cluster
from .conftest import Plugin
from .test_program import SLOW


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/does/not/exist")


@pytest.mark.usefixtures("no_cluster")
def test_it_lists_them_all_without_a_cluster(plugin: Plugin) -> None:
    ran = plugin("recipes", "-o", "wide")
    header, *lines = ran.out.splitlines()
    assert header.split()[:7] == ["NAME", "TASK", "WEIGHTS", "GPUS", "NEEDS", "SHARE", "SERVES"]
    assert sorted(line.split()[0] for line in lines) == names()
    row = next(line for line in lines if line.startswith("llama-3-1-70b "))
    assert row.split()[1:8] == ["chat", "131.4G", "2", "89.5G", "90%", "meta-llama/Llama-3.1-70B-Instruct", "yes"]
    assert max(map(len, plugin("recipes", width=80).out.splitlines())) <= 80


@pytest.mark.usefixtures("no_cluster")
def test_it_prints_one_as_a_manifest(plugin: Plugin) -> None:
    printed = plugin("recipes", "qwen-3-8b").out
    assert printed == plugin("recipes", "qwen-3-8b", "-o", "yaml").out
    assert printed.startswith("# ")
    assert yaml.safe_load(printed) == plugin("recipes", "qwen-3-8b", "-o", "json").json()
    assert yaml.safe_load(plugin("recipes", "qwen-3-8b", "-n", "prod").out)["metadata"]["namespace"] == "prod"
    assert plugin("recipes", "qwen-3-8b", "-o", "name").out == "model.greenthread.ai/qwen-3-8b\n"
    listed = cast(dict[str, Any], plugin("recipes", "-o", "json").json())
    assert [item["metadata"]["name"] for item in listed["items"]].count("qwen-3-8b") == 1


@pytest.mark.usefixtures("no_cluster")
def test_a_recipe_that_is_not_there(plugin: Plugin) -> None:
    ran = plugin("recipes", "qwen3-8b")
    assert (ran.code, ran.out) == (4, "")
    assert "there is no recipe qwen3-8b; did you mean qwen-3-8b" in ran.err
    assert "`recipes` lists them" in plugin("recipes", "../../etc/passwd").err
    assert plugin("recipes", "--apply").code == 1


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("args", [["recipes"], ["recipes", "bge-m3"], ["__complete", "recipes", "b"]])
def test_it_starts_as_quickly_as_other_verbs(args: list[str]) -> None:
    code = (
        "import sys, kubectl_greenthread.main as main; code = main.run(sys.argv[1:], 'x'); "
        "print(code, *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    exit_code, *modules = done.stderr.split()
    assert exit_code == "0"
    assert not set(modules) & (SLOW | {"click", "importlib.metadata", "localcluster"})


@pytest.mark.usefixtures("no_cluster")
def test_names_are_completed() -> None:
    assert [name for name, _ in complete(["recipes", "qwen-3-vl"])[0]] == ["qwen-3-vl-30b-a3b-fp8", "qwen-3-vl-8b"]


def test_it_applies_one(cluster: Cluster, plugin: Plugin) -> None:
    ran = plugin("recipes", "bge-m3", "--apply")
    assert (ran.code, ran.out) == (0, f"created bge-m3 in {SYSTEM}\n")
    model = cluster.client.get(MODELS, "bge-m3", SYSTEM)
    assert model["spec"]["modelName"] == "BAAI/bge-m3"
    assert model["spec"]["sleep"]["idleTimeout"] == "5m"  # the CRD's defaults
    assert (
        "recipes bge-m3 -n prod | kubectl apply -f -\n"
        in plugin("recipes", "bge-m3", "--apply", "-n", "prod", "-v").err
    )
    assert plugin("recipes", "bge-m3", "--apply").out == f"left unchanged bge-m3 in {SYSTEM}\n"
    assert "left unchanged bge-m3 in prod" in plugin("recipes", "models/bge-m3", "--apply", "-n", "prod").out
    assert cluster.client.get(MODELS, "bge-m3", "prod")["spec"] == model["spec"]
    assert "give the installation your Hugging Face token" in plugin("recipes", "llama-3-1-8b", "--apply").out


def test_an_existing_model_gets_the_recipes_fields_and_keeps_its_others(cluster: Cluster, plugin: Plugin) -> None:
    cluster.gpu(0)
    cluster.model("bge-m3", namespace=SYSTEM, gpuMemoryUtilization="0.50", fairness={"popular": True})
    ran = plugin("recipes", "bge-m3", "--apply")
    changed = "spec.modelName, spec.dtype, spec.gpuMemoryUtilization, spec.extraArgs"
    assert ran.out == f"changed {changed} of bge-m3 in {SYSTEM}\n"
    spec = cluster.client.get(MODELS, "bge-m3", SYSTEM)["spec"]
    assert (spec["gpuMemoryUtilization"], spec["fairness"]["popular"]) == ("0.05", True)


def test_a_dry_run_and_readonly_change_nothing(cluster: Cluster, plugin: Plugin) -> None:
    assert "(dry run)" in plugin("recipes", "bge-m3", "--apply", "--dry-run", "client").out
    assert "(server dry run)" in plugin("recipes", "bge-m3", "--apply", "--dry-run", "server").out
    assert plugin("recipes", "bge-m3", "--apply", "--readonly").code == 5
    assert cluster.client.list(MODELS).items == []


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (status(403, "Forbidden", "no"), 5, "it needs `create` and `patch` on models.greenthread.ai in prod"),
        (status(404, "NotFound", 'namespaces "prod" not found'), 1, "bge-m3 in prod: "),
        (Answer(404, b"404 page not found"), 1, "install GreenThread's CRDs"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(
    scripted, plugin: Plugin, answer: Answer, code: int, message: str
) -> None:
    def reply(asked: Asked) -> Answer:
        return answer

    scripted(reply)
    ran = plugin("recipes", "bge-m3", "--apply", "-n", "prod")
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    assert message in ran.err
