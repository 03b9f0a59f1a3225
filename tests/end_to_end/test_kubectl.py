"""Unmodified kubectl on a cluster that lives. What it prints of objects at rest is tests/conformance's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable

import pytest

from greenthread.gpu import State
from greenthread.kube.resources import MODELS
from tests.end_to_end.cluster import NAMESPACE, PATIENCE, Cluster
from tests.testbeds.programs import need

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

#: As the documents print it.
ONE_LINER = (
    "{range .items[*]}{.metadata.name}: {range .status.occupants[*]}{.modelName}({.state}) {end}" + '{"\\n"}{end}'
)
RECIPE = """
apiVersion: greenthread.ai/v1alpha1
kind: Model
metadata:
  name: recipe
  namespace: greenthread-system
spec:
  modelName: Qwen/Qwen3-4B-Thinking-2507
  dtype: bfloat16
  gpuMemoryUtilization: "0.40"
  tensorParallelSize: 1
  replicas: 1
  extraArgs:
    - "--enforce-eager"
  fairness: {}
  kvCache: {}
  lora: {}
  sleep: {}
  staging: {}
  resources: {}
  nodeSelector:
    kubernetes.io/hostname: one
"""

Kubectl = Callable[..., str]


@pytest.fixture
def kubectl(cluster: Cluster) -> Kubectl:
    """Runs kubectl in the installation's namespace; its standard output."""
    return lambda *arguments, **options: cluster.api.kubectl("-n", NAMESPACE, *arguments, **options)


def test_the_life_of_a_model_by_kubectl_alone(cluster: Cluster, kubectl: Kubectl) -> None:
    assert kubectl("apply", "-f", "-", stdin=RECIPE) == "model.greenthread.ai/recipe created\n"
    waited = kubectl("wait", "--for=condition=Ready", "model/recipe", f"--timeout={40 * PATIENCE:.0f}s")
    assert waited == "model.greenthread.ai/recipe condition met\n"
    cluster.measured("recipe")
    cluster.until(lambda: cluster.model("recipe")["status"].get("sleepingReplicas") == 1, "it sleeps after its boot")
    header, row = kubectl("get", "models", "recipe").splitlines()
    assert header.split() == [
        "NAME",
        "PHASE",
        "REPLICAS",
        "SERVING",
        "SLEEPING",
        "NODE",
        "GPUS",
        "VRAM/GPU",
        "URL",
        "AGE",
    ]
    url = f"{cluster.gateway}/recipe/v1"
    # 0.40 of 96 GiB and the engine's context
    assert row.split()[:-1] == ["recipe", "Ready", "1", "0", "1", "one", "0", "40.2", "GiB", url]
    assert kubectl("get", "model", "recipe", "-o", "jsonpath={.status.phase}") == "Ready"
    assert cluster.http.get(f"{url}/models").status_code == 200
    assert kubectl("apply", "-f", "-", stdin=RECIPE) == "model.greenthread.ai/recipe unchanged\n"
    assert kubectl("label", "model", "recipe", "team=search") == "model.greenthread.ai/recipe labeled\n"
    assert kubectl("get", "models", "-l", "team=search", "-o", "name") == "model.greenthread.ai/recipe\n"
    pod = kubectl("get", "pods", "-l", "greenthread.ai/model=recipe", "-o", "name").strip()
    kubectl("patch", "model", "recipe", "--type=merge", "-p", '{"spec":{"fairness":{"popular":true}}}')
    editor = {**os.environ, "KUBE_EDITOR": "sed -i s/popular:.true/popular:\\ false/"}
    command = [str(need("kubectl")), "--kubeconfig", str(cluster.api.kubeconfig), "-n", NAMESPACE]
    edited = subprocess.run([*command, "edit", "model/recipe"], env=editor, capture_output=True, text=True)
    assert edited.stdout == "model.greenthread.ai/recipe edited\n", edited.stderr
    assert kubectl("get", "model", "recipe", "-o", "jsonpath={.spec.fairness.popular}") == "false"
    # fairness is live: it is still the same pod
    assert kubectl("get", "pods", "-l", "greenthread.ai/model=recipe", "-o", "name").strip() == pod
    # kubectl waits until the finalizer is gone
    assert kubectl("delete", "model", "recipe") == 'model.greenthread.ai "recipe" deleted\n'
    assert kubectl("get", "pods", "-l", "greenthread.ai/model=recipe", "-o", "name") == ""
    assert "recipe" not in kubectl("get", "gpu", "one-0", "-o", "json")


def test_the_one_liner_shows_who_is_where(cluster: Cluster, kubectl: Kubectl) -> None:
    assert cluster.chat("ada").status == 200
    cluster.until(lambda: cluster.states("ada") == [State.SERVING], "ada serves")
    lines = cluster.api.kubectl("get", "gpu", "-A", "-o", f"jsonpath={ONE_LINER}").splitlines()
    shown = {name: set(rest.split()) for name, rest in (line.split(": ") for line in lines)}
    assert shown == {
        "one-0": {"ada(serving)", "bob(sleeping)", "cleo(sleeping)", "big(sleeping)"},
        "two-0": {"gang(sleeping)", "twins(sleeping)"},
        "two-1": {"gang(sleeping)", "twins(sleeping)"},
    }
    header, *rows = cluster.api.kubectl("get", "gpu", "-A").splitlines()
    assert " ".join(header.split()) == "NAMESPACE NAME NODE INDEX PRODUCT AVAILABLE AGE"
    [gpu] = cluster.gpus("one")
    columns = re.split(r"\s{2,}", next(row for row in rows if "one-0" in row))
    assert columns[:6] == [NAMESPACE, "one-0", "one", "0", gpu.product, str(gpu.total - gpu.reserved)]
    assert cluster.api.kubectl("get", "models", "-A").count("\n") == 7
    status = cluster.until(
        lambda: s if (s := cluster.model("ada")["status"])["servingReplicas"] else None, "the status says it serves"
    )
    assert (status["servingReplicas"], status["sleepingReplicas"]) == (1, 0)


def test_describe_tells_the_story(cluster: Cluster, kubectl: Kubectl) -> None:
    assert cluster.chat("ada").status == 200
    assert cluster.chat("big").status == 200
    cluster.until(
        lambda: (
            {"GaveWay", "Woke"} <= {event["reason"] for event in cluster.events("ada")}
            and "Woke" in {event["reason"] for event in cluster.events("big")}
        ),
        "the events are written",
    )
    ada = kubectl("describe", "model", "ada")
    assert re.search(r"Normal\s+PodCreated\s.*pod ada-0-[0-9a-f]{8} on one/0", ada)
    assert re.search(r"Normal\s+Booted\s.*booted in \S+ on one/0", ada)
    assert re.search(r"Normal\s+Woke\s.*woke in \S+ on one/0 \(queue \S+, claim \S+, engine \S+\)", ada)
    assert re.search(r"Normal\s+GaveWay\s.*gave way to big", ada)
    assert re.search(r"Ready\s", ada)
    big = kubectl("describe", "mdl", "big")
    assert re.search(r"Normal\s+Waiting\s.*ada", big)
    events = kubectl("events", "--for", "model/big")
    assert "woke in" in events
    gpu = kubectl("describe", "gpu", "one-0")
    assert "big" in gpu
    assert "serving" in gpu


def test_phases_are_seen_by_a_watch_in_their_order(cluster: Cluster) -> None:
    command = [str(need("kubectl")), "--kubeconfig", str(cluster.api.kubeconfig), "-n", NAMESPACE]
    command += ["get", "models", "--watch-only", "--output-watch-events", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        try:
            cluster.apply("fresh")
            cluster.ready("fresh")
        finally:
            # the watch is a little behind: what it printed until now is whole
            cluster.delete("fresh")
            watch.terminate()
        text = watch.stdout.read()
    decoder, phases = json.JSONDecoder(), []
    while text.strip():
        event, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        model = event["object"]
        if model["metadata"]["name"] == "fresh" and "deletionTimestamp" not in model["metadata"]:
            phases.append((model.get("status") or {}).get("phase"))
    order = ["Pending", "Converting", "Staging", "Ready"]
    seen = [order.index(phase) for phase in phases if phase]
    assert seen == sorted(seen), f"it went back: {phases}"
    assert order[seen[-1]] == "Ready"
    assert "Converting" in phases


def test_a_pod_that_is_deleted_comes_back(cluster: Cluster, kubectl: Kubectl) -> None:
    assert cluster.chat("ada").status == 200
    [old] = cluster.pods_of("ada")
    kubectl("delete", "pod", old["metadata"]["name"])
    assert cluster.chat("ada").status == 200
    [new] = cluster.pods_of("ada")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert len(cluster.occupants("ada")) == 1
    cluster.ready("ada")


def test_a_bad_manifest_is_refused_and_a_change_of_a_good_one_too(cluster: Cluster, kubectl: Kubectl) -> None:
    bad = RECIPE.replace("tensorParallelSize: 1", "tensorParallelSize: 3").replace('"0.40"', '"1.5"')
    with pytest.raises(subprocess.CalledProcessError) as refused:
        kubectl("apply", "-f", "-", stdin=bad)
    assert "write 1, 2, 4, 8 or 16" in refused.value.stderr
    assert "gpuMemoryUtilization" in refused.value.stderr
    before = cluster.kube.get(MODELS, "ada", NAMESPACE)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        kubectl("patch", "model", "ada", "--type=merge", "-p", '{"spec":{"fairness":{"minRuntime":"soon"}}}')
    assert "write a duration such as 500ms, 30s, 5m or 1h30m" in refused.value.stderr
    assert cluster.kube.get(MODELS, "ada", NAMESPACE)["spec"] == before["spec"]


def test_a_gpu_cannot_be_overcommitted_by_hand(cluster: Cluster, kubectl: Kubectl) -> None:
    cluster.wake("ada")
    cluster.until(lambda: cluster.states("ada") == [State.SERVING], "ada serves")
    number = [o.model for o in cluster.gpus("one")[0].occupants].index("ada")
    patch = [{"op": "replace", "path": f"/status/occupants/{number}/reservedMemoryBytes", "value": 2**40}]
    with pytest.raises(subprocess.CalledProcessError) as refused:
        kubectl("patch", "gpu", "one-0", "--subresource=status", "--type=json", "-p", json.dumps(patch))
    assert "occupants" in refused.value.stderr
    assert cluster.chat("ada").status == 200
