"""A Model that is right is accepted with its defaults; one that is wrong is refused with what to write instead.

The same words on the embedded API and on kube-apiserver.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.conformance.crd_api import MERGE_PATCH, Answer, Api, Object, manifests, path, send

DURATION = "write a duration such as 500ms, 30s, 5m or 1h30m"
UTILIZATION = 'write a decimal string above 0 and at most 1, such as "0.90"'
POWER = "write 1, 2, 4, 8 or 16 (a power of 2)"
MODEL_NAME = (
    "write a Hugging Face id such as openai/gpt-oss-20b, or a path in the model store such as /mnt/models/my-model"
)
WORDS = 'write one word an item: "--max-model-len" and "8192" are two items (or one: "--max-model-len=8192")'
OURS = "take --host, --port, --uds, --served-model-name and --enable-sleep-mode out: GreenThread sets them itself"
GPUS = "take nvidia.com/gpu out: GreenThread shares the GPUs; write spec.tensorParallelSize for their number"
QUANTITY = "write a quantity such as 500m, 8, 512Mi or 64Gi"
SIZE = "write a memory size such as 512Mi, 10Gi or 80G, or leave it empty"
NAME = (
    "it becomes part of a URL: write lower-case letters, digits and '-' only, such as llama-3-1-8b (not llama-3.1-8b)"
)

DEFAULTS: Object = {
    "dtype": "bfloat16",
    "quantization": "",
    "gpuMemoryUtilization": "0.90",
    "tensorParallelSize": 1,
    "replicas": 1,
    "extraArgs": [],
    "fairness": {"popular": False, "minRuntime": "10s", "maxWaitTime": "5s", "yieldAfter": "1s"},
    "sleep": {"idleTimeout": "5m", "drainTimeout": "30s"},
    "staging": {"pinned": False},
    "lora": {"enabled": False, "maxRank": 64, "cacheDir": "", "downloadTimeout": "5m"},
    "kvCache": {"enabled": False, "maxSize": ""},
    "resources": {"limits": {}, "requests": {}},
    "nodeSelector": {},
    "tolerations": [],
    "serviceAccountName": "",
    "vllmImage": "",
    "sidecarImage": "",
}

_numbers = itertools.count()


def create(api: Api, spec: Any, name: str | None = None, namespace: str = "default") -> Answer:
    manifest = {
        "apiVersion": "greenthread.ai/v1alpha1",
        "kind": "Model",
        "metadata": {"name": name or f"m{next(_numbers)}", "namespace": namespace},
        "spec": spec,
    }
    return send(api, "POST", path("models", namespace), manifest)


@pytest.mark.parametrize(("name", "recipe"), list(manifests("recipes")))
def test_every_recipe_of_the_documents_applies_as_printed(crd_api: Api, name: str, recipe: Object) -> None:
    stored = send(crd_api, "POST", path("models", "greenthread-system"), recipe).ok()
    assert stored["metadata"]["name"] == name
    assert stored["spec"] == {**DEFAULTS, **{key: value for key, value in recipe["spec"].items() if value != {}}}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"fairness": {}, "sleep": {}, "staging": {}, "lora": {}, "kvCache": {}, "resources": {}},
        dict.fromkeys(DEFAULTS),
        {key: dict.fromkeys(value) for key, value in DEFAULTS.items() if isinstance(value, dict)},
    ],
    ids=["absent", "empty", "null", "null-inside"],
)
def test_what_is_absent_empty_or_null_gets_its_default(crd_api: Api, spec: Object) -> None:
    stored = create(crd_api, {"modelName": "openai/gpt-oss-20b", **spec}).ok()
    assert stored["spec"] == {"modelName": "openai/gpt-oss-20b", **DEFAULTS}


@pytest.mark.parametrize(
    "spec",
    [
        {"modelName": "/mnt/models/my-model"},
        {"modelName": "gpt2"},
        {"dtype": "auto", "quantization": "mxfp4"},
        {"gpuMemoryUtilization": "1"},
        {"gpuMemoryUtilization": "1.0"},
        {"gpuMemoryUtilization": "0.05"},
        *({"tensorParallelSize": size} for size in (1, 2, 4, 8, 16)),
        {"replicas": 0},
        {"fairness": {"popular": True, "minRuntime": "60s", "maxWaitTime": "30s"}},
        {"fairness": {"minRuntime": "1h30m", "maxWaitTime": "500ms", "yieldAfter": "0s"}},
        {"sleep": {"idleTimeout": "0s", "drainTimeout": "1.5h"}},
        {"sleep": {"idleTimeout": "0", "drainTimeout": "100µs"}},
        {"extraArgs": ["--enforce-eager", "--trust-remote-code", "--max-model-len", "8192", "--max-num-seqs=64"]},
        {"extraArgs": ["--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]},
        {"extraArgs": ["--quantization", "awq"]},
        {"extraArgs": ['--limit-mm-per-prompt={"image": 2}', "--chat-template", "a template with spaces"]},
        {"extraArgs": ["llama-server", "--host", "127.0.0.1", "--port", "$(ENGINE_PORT)", "--model", "/mnt/x.gguf"]},
        {"lora": {"enabled": True, "maxRank": 128, "cacheDir": "/mnt/models/adapters"}},
        {"kvCache": {"enabled": True, "maxSize": "10Gi"}},
        {"resources": {"limits": {"memory": "64Gi"}, "requests": {"cpu": 4, "memory": "1.5Gi"}}},
        {
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    ],
    ids=str,
)
def test_good_models_are_accepted(crd_api: Api, spec: Object) -> None:
    create(crd_api, {"modelName": "openai/gpt-oss-20b", **spec}).ok()


@pytest.mark.parametrize(
    ("spec", "field", "advice"),
    [
        ({"modelName": ""}, "spec.modelName", MODEL_NAME),
        ({"modelName": "openai/gpt oss"}, "spec.modelName", MODEL_NAME),
        ({"modelName": "--trust-remote-code"}, "spec.modelName", MODEL_NAME),
        ({"modelName": "https://example.com/gpt-oss-20b"}, "spec.modelName", MODEL_NAME),
        ({"modelName": None}, "spec.modelName", "Required value"),
        ({"modelName": 4}, "spec.modelName", "spec.modelName in body must be of type string"),
        ({"dtype": "int8"}, "spec.dtype", 'supported values: "bfloat16", "float16", "float32", "auto"'),
        ({"quantization": "AWQ 4"}, "spec.quantization", "write the method's name as vLLM spells it"),
        *(
            ({"gpuMemoryUtilization": text}, "spec.gpuMemoryUtilization", UTILIZATION)
            for text in ("90%", "0", "0.00", "1.1", "-0.5", "", ".9", "0.9\n")
        ),
        ({"gpuMemoryUtilization": 0.9}, "spec.gpuMemoryUtilization", "must be of type string"),
        *(({"tensorParallelSize": size}, "spec.tensorParallelSize", POWER) for size in (0, 3, -2, 6, 32)),
        ({"replicas": -1}, "spec.replicas", "should be greater than or equal to 0"),
        ({"replicas": "two"}, "spec.replicas", "must be of type integer"),
        *(
            ({"fairness": {"minRuntime": text}}, "spec.fairness.minRuntime", DURATION)
            for text in ("10", "1d", "5 m", "5 minutes", "-1s", "", "s", "1h30", "10S", "10s\n", "999999999h", "1,5s")
        ),
        ({"fairness": {"maxWaitTime": "soon"}}, "spec.fairness.maxWaitTime", DURATION),
        ({"fairness": {"yieldAfter": "never"}}, "spec.fairness.yieldAfter", DURATION),
        ({"fairness": {"popular": "yes"}}, "spec.fairness.popular", "must be of type boolean"),
        ({"sleep": {"idleTimeout": "1w"}}, "spec.sleep.idleTimeout", DURATION),
        ({"sleep": {"drainTimeout": "inf"}}, "spec.sleep.drainTimeout", DURATION),
        ({"lora": {"downloadTimeout": "5min"}}, "spec.lora.downloadTimeout", DURATION),
        ({"lora": {"maxRank": 50}}, "spec.lora.maxRank", "write a rank that vLLM knows"),
        ({"lora": {"cacheDir": "adapters"}}, "spec.lora.cacheDir", "write an absolute path"),
        *(
            ({"kvCache": {"maxSize": text}}, "spec.kvCache.maxSize", SIZE)
            for text in ("10 GB", "0", "lots", "-1Gi", "10GB")
        ),
        ({"extraArgs": "--enforce-eager"}, "spec.extraArgs", "must be of type array"),
        ({"extraArgs": ["--enforce-eager", "--max-model-len 8192"]}, "spec.extraArgs[1]", WORDS),
        ({"extraArgs": ["--model", "x"]}, "spec.extraArgs", "take --model out: write spec.modelName instead"),
        ({"extraArgs": ["--dtype=auto"]}, "spec.extraArgs", "take --dtype out: write spec.dtype instead"),
        (
            {"extraArgs": ["--gpu_memory_utilization", "0.5"]},
            "spec.extraArgs",
            "write spec.gpuMemoryUtilization instead",
        ),
        ({"extraArgs": ["-tp", "2"]}, "spec.extraArgs", "write spec.tensorParallelSize instead"),
        ({"extraArgs": ["--tensor-parallel-size=2"]}, "spec.extraArgs", "write spec.tensorParallelSize instead"),
        ({"extraArgs": ["-pp=2"]}, "spec.extraArgs", "write spec.replicas for more copies"),
        *(
            ({"extraArgs": ["--enforce-eager", flag]}, "spec.extraArgs", OURS)
            for flag in ("--host", "--port=1", "--uds", "--served-model-name", "--enable-sleep-mode")
        ),
        (
            {"quantization": "awq", "extraArgs": ["--quantization", "awq"]},
            "spec",
            "the quantization is given twice: write spec.quantization and take --quantization out of spec.extraArgs",
        ),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "spec.resources.limits", GPUS),
        ({"resources": {"requests": {"nvidia.com/gpu": "1"}}}, "spec.resources.requests", GPUS),
        ({"resources": {"limits": {"memory": "much"}}}, "spec.resources.limits[memory]", QUANTITY),
        ({"tolerations": [{"effect": "Never"}]}, "spec.tolerations[0].effect", "supported values: "),
        ({"resources": {"requests": {"memory": "64 GB"}}}, "spec.resources.requests[memory]", QUANTITY),
        ({"resources": {"requests": {"cpu": -1}}}, "spec.resources.requests[cpu]", QUANTITY),
        ({"tolerations": [{"operator": "Is"}]}, "spec.tolerations[0].operator", 'supported values: "Exists", "Equal"'),
    ],
    ids=str,
)
def test_bad_models_are_refused_with_what_to_write_instead(crd_api: Api, spec: Object, field: str, advice: str) -> None:
    answer = create(crd_api, {"modelName": "openai/gpt-oss-20b", **spec})
    assert answer.status == 422
    assert answer.body["reason"] == "Invalid"
    assert [(where, True) for where, text in answer.causes if advice in text] == [(field, True)], answer.causes
    assert len(answer.causes) == 1, answer.causes


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("llama-3.1-8b", NAME),
        ("m" * 51, "write at most 50 characters, since pods are named after it"),
        ("v1", "v1 and v2 are the gateway's own addresses: write another name"),
        ("v2", "v1 and v2 are the gateway's own addresses: write another name"),
    ],
)
def test_names_that_do_not_fit_a_url_or_a_pod_are_refused(crd_api: Api, name: str, advice: str) -> None:
    answer = create(crd_api, {"modelName": "gpt2"}, name=name)
    assert answer.status == 422
    assert [(where, text.endswith(advice)) for where, text in answer.causes] == [("metadata.name", True)], answer.causes


@pytest.mark.parametrize("name", ["m" * 50, "7b", "v1-chat", "v3"])
def test_names_that_fit_are_accepted(crd_api: Api, name: str) -> None:
    create(crd_api, {"modelName": "gpt2"}, name=name).ok()


def test_a_model_without_a_spec_is_refused(crd_api: Api) -> None:
    answer = create(crd_api, None)
    assert (answer.status, answer.causes) == (422, [("spec", "Required value")])


def test_all_that_is_wrong_is_told_at_once(crd_api: Api) -> None:
    answer = create(crd_api, {"modelName": "gpt2", "tensorParallelSize": 3, "sleep": {"idleTimeout": "1d"}})
    assert sorted(field for field, _ in answer.causes) == ["spec.sleep.idleTimeout", "spec.tensorParallelSize"]


def test_a_patch_of_a_good_model_to_a_bad_one_is_refused_and_changes_nothing(crd_api: Api) -> None:
    name = create(crd_api, {"modelName": "gpt2"}).ok()["metadata"]["name"]
    patch = {"spec": {"sleep": {"idleTimeout": "1d"}}}
    assert send(crd_api, "PATCH", path("models", "default", name), patch, MERGE_PATCH).status == 422
    assert send(crd_api, "GET", path("models", "default", name)).ok()["spec"]["sleep"]["idleTimeout"] == "5m"


def test_unknown_fields_are_dropped(crd_api: Api) -> None:
    assert "gpuCount" not in create(crd_api, {"modelName": "gpt2", "gpuCount": 2}).ok()["spec"]


def test_the_status_is_written_by_its_own_address_only(crd_api: Api) -> None:
    name = create(crd_api, {"modelName": "gpt2"}).ok()["metadata"]["name"]
    where = path("models", "default", name)
    assert "status" not in send(crd_api, "PATCH", where, {"status": {"phase": "Ready"}}, MERGE_PATCH).ok()
    written = send(crd_api, "PATCH", where + "/status", {"status": STATUS, "spec": {"replicas": 7}}, MERGE_PATCH).ok()
    assert (written["status"], written["spec"]["replicas"], written["metadata"]["generation"]) == (STATUS, 1, 1)
    refused = send(crd_api, "PATCH", where + "/status", {"status": {"phase": "Sleepy"}}, MERGE_PATCH)
    assert refused.status == 422
    assert "supported values: " in refused.causes[0][1]


STATUS: Object = {
    "phase": "Ready",
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Sleeping",
            "message": "It sleeps; the first request wakes it.",
            "lastTransitionTime": "2026-11-22T14:03:22Z",
            "observedGeneration": 1,
        }
    ],
    "replicas": 1,
    "readyReplicas": 1,
    "servingReplicas": 0,
    "sleepingReplicas": 1,
    "node": "node-a",
    "gpus": "0,1",
    "servingMemoryPerGPU": 94704040345,
    "memory": {"servingHuman": "88.2 GiB"},
    "url": "http://gateway/gpt2/v1",
    "conversion": {"status": "Complete", "totalSizeBytes": 13761264768},
    "distribution": {"availableOnNodes": ["node-a"], "stagingTier": "disk"},
    "observedGeneration": 1,
    "lastTransition": "2026-11-22T14:03:22.123456Z",
}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"extraArgs": ["x"] * 129}, "spec.extraArgs"),
        ({"tolerations": [{}] * 33}, "spec.tolerations"),
        ({"nodeSelector": {f"key{number}": "" for number in range(33)}}, "spec.nodeSelector"),
        ({"resources": {"limits": {f"key{number}": 1 for number in range(17)}}}, "spec.resources.limits"),
        ({"extraArgs": ["x" * 4097]}, "spec.extraArgs[0]"),
        ({"modelName": "x" * 513}, "spec.modelName"),
        ({"replicas": 1001}, "spec.replicas"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_everything_is_bounded(crd_api: Api, spec: Object, field: str) -> None:
    answer = create(crd_api, {"modelName": "gpt2", **spec})
    assert (answer.status, [where for where, _ in answer.causes]) == (422, [field])


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ({"conditions": [{key: value} for key, value in STATUS["conditions"][0].items()][:1]}, "status.conditions[0]."),
        ({"conditions": [{**STATUS["conditions"][0], "status": "Maybe"}]}, "status.conditions[0].status"),
        ({"conversion": {"status": "Done"}}, "status.conversion.status"),
        ({"distribution": {"stagingTier": "ram"}}, "status.distribution.stagingTier"),
        ({"distribution": {"availableOnNodes": ["n"] * 1025}}, "status.distribution.availableOnNodes"),
        ({"servingMemoryPerGPU": -1}, "status.servingMemoryPerGPU"),
        ({"servingReplicas": -1}, "status.servingReplicas"),
        ({"lastTransition": "now"}, "status.lastTransition"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_status_is_refused(crd_api: Api, status: Object, field: str) -> None:
    name = create(crd_api, {"modelName": "gpt2"}).ok()["metadata"]["name"]
    answer = send(crd_api, "PATCH", path("models", "default", name, "status"), {"status": status}, MERGE_PATCH)
    assert answer.status == 422
    assert answer.causes, answer.body
    assert all(where.startswith(field) for where, _ in answer.causes), answer.causes
