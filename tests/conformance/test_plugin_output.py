"""The plugin's -o formats print what the real kubectl prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conformance.crd_api import send
from tests.testbeds.admin import Admin

NAMESPACE = "greenthread-system"
MODELS = f"/apis/greenthread.ai/v1alpha1/namespaces/{NAMESPACE}/models"

ONE = [
    "{.metadata.name}",
    "{.spec.extraArgs}",
    "{.spec.extraArgs[0]}",
    "{.spec.extraArgs[-1]}",
    "{.spec.extraArgs[0:2]}",
    "{.spec.extraArgs[1:]}",
    "{.spec.extraArgs[0,2]}",
    "{.spec.extraArgs[*]}",
    "{.spec.fairness}",
    "{.spec['modelName','dtype']}",
    "{.metadata['name']}",
    "{.metadata.annotations.example\\.com/note}",
    "{.metadata.annotations['example\\.com/note']}",
    "{.metadata.annotations}",
    "{.spec.tensorParallelSize} of {.spec.replicas}",
    "{.spec.fairness.popular}",
    "{.spec.nothing}",
    "{.status.nothing.deeper}",
    "{..minRuntime}",
    "{$.metadata.name}",
    "{@.metadata.name}",
    "plain text",
    '{.metadata.name}{"\\n"}{.metadata.namespace}{"\\t|"}',
    "{.metadata.name} {'quoted'}",
    "{range .spec.extraArgs[*]}[{@}]{end}",
    "{.spec.tolerations[?(@.key==\"gpu\")].effect}",
    "{.spec.tolerations[?(@.effect!=\"NoSchedule\")].key}",
    "{.spec.tolerations[?(@.tolerationSeconds>60)].key}",
    "{.spec.tolerations[?(@.tolerationSeconds<=60)].key}",
    "{.spec.tolerations[?(@.tolerationSeconds)].key}",
    "{.spec.tolerations[*]['key','effect']}",
]  # fmt: skip
LIST = [
    "{.items[*].metadata.name}",
    '{range .items[*]}{.metadata.name}{"\\t"}{.spec.modelName}{"\\n"}{end}',
    '{range .items[*]}{.metadata.name}:{range .spec.tolerations[*]} {.key}{end};{end}',
    '{.items[?(@.spec.replicas==0)].metadata.name}',
    '{.items[?(@.metadata.name=="output-b")].spec.modelName}',
    "{.items[*]['metadata.name','kind']}",
    "{.kind} {.items[0].kind}",
    "{.items[-1:].metadata.name}",
]  # fmt: skip
BAD = ["{.items[}", "{.metadata.name", "{.spec.extraArgs[99]}", "{end}"]
COLUMNS = [
    "NAME:.metadata.name,SERVES:.spec.modelName",
    "NAME:.metadata.name,NOTHING:.spec.nothing,REPLICAS:.spec.replicas",
    "N:metadata.name,KEYS:.spec.tolerations[*].key,P:{.spec.fairness.popular}",
]


@pytest.fixture(scope="module")
def models(crd_api: Admin) -> Admin:
    """Two Models with what a template may ask for."""
    tolerations = [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "slow", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        {"key": "late", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
    ]
    for name, replicas in (("output-a", 1), ("output-b", 0)):
        body = {
            "apiVersion": "greenthread.ai/v1alpha1", "kind": "Model",
            "metadata": {"name": name, "labels": {"test": "output"},
                         "annotations": {"example.com/note": "<b> & 'quotes' é"}},
            "spec": {"modelName": f"org/{name}", "extraArgs": ["--a", "--b", "c d"], "replicas": replicas,
                     "tolerations": tolerations},
        }  # fmt: skip
        assert send(crd_api, "POST", MODELS, body).status == 201
    return crd_api


def plugin(api: Admin, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kubectl_greenthread.main", "models", "-n", NAMESPACE, *arguments]
    environ = os.environ | {"KUBECONFIG": str(api.kubeconfig), "PYTHONUTF8": "1"}
    return subprocess.run(command, env=environ, cwd=Path(__file__).parents[2], capture_output=True, text=True)


def kubectl(api: Admin, *arguments: str) -> str:
    return api.kubectl("get", "models.greenthread.ai", "-n", NAMESPACE, *arguments)


@pytest.mark.parametrize("template", ONE)
def test_jsonpath_of_one(models: Admin, template: str) -> None:
    assert plugin(models, "output-a", "-o", f"jsonpath={template}").stdout.rstrip("\n") == kubectl(
        models, "output-a", "-o", f"jsonpath={template}"
    ).rstrip("\n")


@pytest.mark.parametrize("template", LIST)
def test_jsonpath_of_a_list(models: Admin, template: str) -> None:
    wanted = kubectl(models, "-l", "test=output", "-o", f"jsonpath={template}")
    assert plugin(models, "-l", "test=output", "-o", f"jsonpath={template}").stdout == wanted


@pytest.mark.parametrize("template", BAD)
def test_what_kubectl_refuses_is_refused(models: Admin, template: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        kubectl(models, "output-a", "-o", f"jsonpath={template}")
    ran = plugin(models, "output-a", "-o", f"jsonpath={template}")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("columns", COLUMNS)
def test_custom_columns(models: Admin, columns: str) -> None:
    wanted = kubectl(models, "-l", "test=output", "-o", f"custom-columns={columns}")
    assert plugin(models, "-l", "test=output", "-o", f"custom-columns={columns}").stdout == wanted


@pytest.mark.parametrize("output", ["name", "json", "yaml"])
def test_whole_objects(models: Admin, output: str) -> None:
    for which in (["output-a"], ["-l", "test=output"]):
        wanted, ours = kubectl(models, *which, "-o", output), plugin(models, *which, "-o", output).stdout
        if output == "json":
            assert json.loads(ours) == json.loads(wanted)
        elif output == "yaml":
            assert yaml.safe_load(ours) == yaml.safe_load(wanted)
        else:
            assert ours == wanted


def test_sorting_is_kubectls(models: Admin) -> None:
    for path in (".metadata.name", ".spec.replicas", "{.spec.modelName}"):
        wanted = kubectl(models, "-l", "test=output", "-o", "name", f"--sort-by={path}")
        assert plugin(models, "-l", "test=output", "-o", "name", f"--sort-by={path}").stdout == wanted
