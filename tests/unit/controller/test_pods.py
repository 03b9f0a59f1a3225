"""What the pod of a replica looks like, and which changes of a Model need a new one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.pod_view import PodView
from controller.pods import SpecError, engine_command, make_pod, pod_name, template_hash
from controller.settings import PodSettings, Settings, SettingsError
from greenthread.placement import Placement
from localcluster.supervisor.container_spec import expand

from .builders import model

SETTINGS = PodSettings(models_path="/mnt/models", hf_token_secret="hf", runtime_class="nvidia")
PLACE = Placement("node-a", (2, 3))


def pod_of(subject: Any = None, settings: PodSettings = SETTINGS, **named: Any) -> dict[str, Any]:
    return make_pod(subject or model(), settings, 0, PLACE, **named)


def env_of(pod: dict[str, Any], container: int) -> dict[str, Any]:
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom"))
        for entry in pod["spec"]["containers"][container]["env"]
    }


def test_the_pod_is_named_labelled_and_owned_by_its_model() -> None:
    subject = model("llama", tensorParallelSize=2)
    pod = make_pod(subject, SETTINGS, 3, PLACE)
    meta = pod["metadata"]
    assert (
        meta["name"]
        == f"llama-3-{template_hash(subject, SETTINGS)}"
        == pod_name(subject, 3, template_hash(subject, SETTINGS))
    )
    assert meta["labels"] == {
        "app.kubernetes.io/name": "greenthread-model",
        "app.kubernetes.io/managed-by": "greenthread",
        "greenthread.ai/model": "llama",
        "greenthread.ai/ordinal": "3",
    }
    assert meta["annotations"] == {"greenthread.ai/gpus": "2,3"}
    assert meta["ownerReferences"][0]["uid"] == subject.uid
    assert meta["ownerReferences"][0]["controller"] is True
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "node-a"}
    assert pod["spec"]["shareProcessNamespace"] is True


def test_a_hugging_face_token_is_a_file_for_the_engine_and_in_no_environment() -> None:
    pod = pod_of()["spec"]
    sidecar, engine = pod["containers"]
    [volume] = [volume for volume in pod["volumes"] if "secret" in volume]
    assert volume["secret"]["secretName"] == "hf"
    [mount] = [mount for mount in engine["volumeMounts"] if mount["name"] == volume["name"]]
    assert env_of(pod_of(), 1)["HF_TOKEN_PATH"] == mount["mountPath"] + "/token"
    assert volume["name"] not in [mount["name"] for mount in sidecar["volumeMounts"]]
    assert not [entry for container in pod["containers"] for entry in container["env"] if "secretKeyRef" in str(entry)]


def test_both_containers_are_told_what_they_need() -> None:
    pod = pod_of()
    sidecar, engine = env_of(pod, 0), env_of(pod, 1)
    assert sidecar["HTTP_PORT"] == "8080"
    assert sidecar["GPU_INDICES"] == "2,3"
    assert sidecar["MODEL_NAME"] == "m"
    assert sidecar["POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert sidecar["GREENTHREAD_NAMESPACE"] == "greenthread-system"
    assert engine["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert engine["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert engine["VLLM_SERVER_DEV_MODE"] == "1"
    assert engine["HF_HOME"] == "/mnt/models"
    assert "HF_TOKEN" not in sidecar
    for environment in (sidecar, engine):
        assert environment["RUN_DIR"] == "/run/greenthread"
        assert environment["ENGINE_PORT"] == "8000"
    assert [port["name"] for container in pod["spec"]["containers"] for port in container["ports"]] == [
        "http",
        "engine",
    ]


def test_the_engine_container_stands_behind_the_gate_and_kubernetes_leaves_the_script_alone() -> None:
    engine = pod_of()["spec"]["containers"][1]
    shell, flag, script, name = engine["command"]
    assert (shell, flag, name) == ("/bin/sh", "-c", "gate")
    assert expand(script, {"RUN_DIR": "x", "ENGINE_PORT": "y"}) == script
    assert [expand(word, {"ENGINE_PORT": "41234"}) for word in engine["args"]][-2:] == ["--port", "41234"]


def test_vllm_is_told_the_spec() -> None:
    subject = model(
        "gpt",
        dtype="float16",
        quantization="awq",
        gpuMemoryUtilization="0.50",
        tensorParallelSize=2,
        lora={"enabled": True, "maxRank": 32},
        kvCache={"enabled": True, "maxSize": "10Gi"},
        extraArgs=["--enforce-eager", "--max-model-len", "8192"],
    )
    words = engine_command(subject, SETTINGS)
    text = " ".join(words)
    assert text.startswith("vllm serve org/gpt --served-model-name")
    for part in (
        "--served-model-name org/gpt gpt team/gpt",
        "--dtype float16",
        "--quantization awq",
        "--gpu-memory-utilization 0.5",
        "--tensor-parallel-size 2",
        "--enable-lora --max-lora-rank 32",
        "--kv-offloading-size 10",
        "--enable-sleep-mode",
    ):
        assert part in text
    address = ["--host", "127.0.0.1", "--port", "$(ENGINE_PORT)"]
    assert words[-7:] == ["--enforce-eager", "--max-model-len", "8192", *address], "the last one wins"
    plain = " ".join(engine_command(model(), SETTINGS))
    assert not any(flag in plain for flag in ("--quantization", "--enable-lora", "--kv-offloading"))
    assert "--enable-sleep-mode" not in engine_command(model(), replace(SETTINGS, sleep_mode_flag=False))


def test_the_sleep_backend_is_delivered_into_vllms_python_and_chosen() -> None:
    pod = pod_of(settings=replace(SETTINGS, sleep_backend="greenthread"))
    [init] = pod["spec"]["initContainers"]
    sidecar, engine = pod["spec"]["containers"]
    assert init["image"] == sidecar["image"]
    assert init["args"] == ["deliver", "$(PLUGIN_DIR)"]
    assert init["securityContext"] == sidecar["securityContext"]
    assert " --sleep-mode-backend greenthread " in " ".join(engine["args"])
    env = env_of(pod, 1)
    assert env["PYTHONPATH"] == "/opt/greenthread"
    assert env["GREENTHREAD_SLEEP_FOLDER"] == "/mnt/models", "the disk of the weights"
    assert "GREENTHREAD_KEEP_KV_CACHE" not in env
    assert {"name": "plugin", "mountPath": "/opt/greenthread", "readOnly": True} in engine["volumeMounts"]
    assert env_of(pod, 0)["SLEEP_BACKEND"] == "greenthread"
    plain = pod_of()
    assert "initContainers" not in plain["spec"]
    assert "PYTHONPATH" not in env_of(plain, 1)


def test_a_pinned_model_is_told_so_at_its_boot_without_that_being_part_of_its_template() -> None:
    settings = replace(SETTINGS, sleep_backend="greenthread")
    pinned, unpinned = model(staging={"pinned": True}), model()
    assert env_of(pod_of(pinned, settings), 1)["GREENTHREAD_PINNED"] == "1"
    assert "GREENTHREAD_PINNED" not in env_of(pod_of(unpinned, settings), 1)
    assert template_hash(pinned, settings) == template_hash(unpinned, settings)


def test_a_checkpoint_needs_the_launcher_around_the_engine_and_no_more_rights() -> None:
    pod = pod_of(settings=replace(SETTINGS, checkpoint=True))
    sidecar, engine = pod["spec"]["containers"]
    assert engine["args"][:5] == ["python3", "-m", "vllm_sleep.launch", "vllm", "serve"]
    assert env_of(pod, 0)["CHECKPOINT"] == "1"
    assert engine["securityContext"] == {"allowPrivilegeEscalation": False}, "no CAP_SYS_PTRACE"
    assert sidecar["securityContext"] == pod_of()["spec"]["containers"][0]["securityContext"]


@pytest.mark.parametrize(("installed", "said", "wanted"), [(True, "false", False), (False, "true", True)])
def test_a_model_says_for_itself_whether_it_is_checkpointed(installed: bool, said: str, wanted: bool) -> None:
    subject = model(annotations={"greenthread.ai/checkpoint": said})
    pod = pod_of(subject, replace(SETTINGS, checkpoint=installed))
    assert ("vllm_sleep.launch" in pod["spec"]["containers"][1]["args"]) is wanted
    with pytest.raises(SpecError, match="write true or false"):
        pod_of(model(annotations={"greenthread.ai/checkpoint": "yes"}))


def test_only_vllm_has_a_sleep_backend() -> None:
    annotations = {"greenthread.ai/engine": "command", "greenthread.ai/checkpoint": "true"}
    subject = model(annotations=annotations, extraArgs=["llama-server"])
    pod = pod_of(subject, replace(SETTINGS, sleep_backend="greenthread", checkpoint=True))
    assert pod["spec"]["containers"][1]["args"] == ["llama-server"]
    assert "initContainers" not in pod["spec"]
    assert not {"PYTHONPATH", "GREENTHREAD_SLEEP_FOLDER"} & env_of(pod, 1).keys()
    assert "CHECKPOINT" not in env_of(pod, 0)


def test_the_kv_cache_is_kept_where_the_model_asks_for_it() -> None:
    subject = model(annotations={"greenthread.ai/keep-kv-cache": "true"})
    assert (
        env_of(pod_of(subject, replace(SETTINGS, sleep_backend="greenthread")), 1)["GREENTHREAD_KEEP_KV_CACHE"] == "1"
    )


def test_a_command_engine_is_its_own_command_line() -> None:
    annotations = {"greenthread.ai/engine": "command"}
    words = ["llama-server", "--port", "$(ENGINE_PORT)"]
    assert engine_command(model(annotations=annotations, extraArgs=words), SETTINGS) == words
    assert env_of(pod_of(model(annotations=annotations, extraArgs=words)), 0)["ENGINE_KIND"] == "command"
    with pytest.raises(SpecError, match=r"spec\.extraArgs"):
        engine_command(model(annotations=annotations), SETTINGS)
    with pytest.raises(SpecError, match="write vllm or command"):
        engine_command(model(annotations={"greenthread.ai/engine": "tgi"}), SETTINGS)


def test_a_pod_is_ready_when_its_boot_is_over_and_its_sidecar_restarted_when_it_hangs_at_any_time() -> None:
    sidecar = pod_of()["spec"]["containers"][0]
    assert sidecar["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert sidecar["livenessProbe"]["httpGet"] == {"path": "/status", "port": "http"}, "answers while the engine boots"
    assert "startupProbe" not in sidecar, "it would hold the liveness probe back until the first boot is over"


def test_a_pod_may_take_its_drain_timeout_to_end() -> None:
    assert pod_of(model(sleep={"drainTimeout": "90s"}))["spec"]["terminationGracePeriodSeconds"] == 120


def test_the_sidecar_is_restricted_and_may_signal_its_engine() -> None:
    pod = pod_of()
    context = pod["spec"]["containers"][0]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["securityContext"]["runAsUser"] == 65532  # both containers
    own = pod_of(settings=replace(SETTINGS, run_as_user=None))
    assert "securityContext" not in own["spec"]
    assert "HOME" not in env_of(own, 1)


def test_the_rest_of_the_spec_reaches_the_pod() -> None:
    subject = model(
        resources={"limits": {"memory": "64Gi"}},
        nodeSelector={"disk": "nvme"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        serviceAccountName="me",
        vllmImage="my/vllm:1",
        sidecarImage="my/sidecar:1",
    )
    spec = pod_of(subject)["spec"]
    assert spec["nodeSelector"] == {"disk": "nvme", "kubernetes.io/hostname": "node-a"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert spec["serviceAccountName"] == "me"
    assert spec["runtimeClassName"] == "nvidia"
    assert [container["image"] for container in spec["containers"]] == ["my/sidecar:1", "my/vllm:1"]
    assert spec["containers"][1]["resources"] == {"limits": {"memory": "64Gi"}}


def test_no_model_store_means_no_host_path() -> None:
    pod = pod_of(settings=PodSettings())
    assert not any("hostPath" in volume for volume in pod["spec"]["volumes"])
    assert "HF_HOME" not in env_of(pod, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"fairness": {"popular": True, "minRuntime": "1m"}},
        {"sleep": {"idleTimeout": "1h", "drainTimeout": "5s"}},
        {"replicas": 7},
        {"staging": {"pinned": True}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_sidecars_watch_needs_no_new_pod(change: dict[str, Any]) -> None:
    assert template_hash(model(**change), SETTINGS) == template_hash(model(), SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"modelName": "org/other"},
        {"dtype": "auto"},
        {"extraArgs": ["--enforce-eager"]},
        {"gpuMemoryUtilization": "0.5"},
        {"vllmImage": "other"},
        {"resources": {"limits": {"cpu": 4}}},
        {"lora": {"enabled": True}},
        {"annotations": {"greenthread.ai/engine": "command"}, "extraArgs": ["x"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_processes_are_started_with_needs_a_new_pod(change: dict[str, Any]) -> None:
    assert template_hash(model(**change), SETTINGS) != template_hash(model(), SETTINGS)


def test_place_number_and_known_memory_are_not_in_the_hash() -> None:
    one = make_pod(model(), SETTINGS, 0, PLACE, known_memory=7)
    two = make_pod(model(), SETTINGS, 0, Placement("node-b", (0,)), hostname="b.example")
    assert one["metadata"]["name"] == two["metadata"]["name"]
    assert env_of(one, 0)["SERVING_MEMORY_PER_GPU"] == "7"
    assert two["spec"]["nodeSelector"]["kubernetes.io/hostname"] == "b.example"


def test_a_pod_is_read_as_it_was_made() -> None:
    pod = pod_of(known_memory=42)
    view = PodView.from_object(pod)
    assert (view.ordinal, view.hash8, view.node, view.gpus) == (0, template_hash(model(), SETTINGS), "node-a", (2, 3))
    assert (view.serving_memory, view.ready, view.failed, view.trouble) == (42, False, False, "")
    pod["metadata"]["annotations"] |= {
        "greenthread.ai/serving-memory-per-gpu": "43",
        "greenthread.ai/report": json.dumps({"state": "sleeping", "bootReady": True, "error": ""}),
    }
    pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    view = PodView.from_object(pod)
    assert (view.serving_memory, view.ready, view.report.boot_ready) == (43, True, True)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_broken_annotations_are_unknown_and_no_error(report: str, memory: str, gpus: str) -> None:
    pod = pod_of()
    pod["metadata"]["annotations"] = {
        "greenthread.ai/report": report,
        "greenthread.ai/serving-memory-per-gpu": memory,
        "greenthread.ai/gpus": gpus,
    }
    PodView.from_object(pod)


def test_a_container_that_cannot_start_is_trouble() -> None:
    waiting = {"name": "vllm", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    view = PodView.from_object(pod_of() | {"status": {"phase": "Pending", "containerStatuses": [waiting]}})
    assert view.trouble == "container vllm: ImagePullBackOff: no such image"
    view = PodView.from_object(pod_of() | {"status": {"phase": "Failed", "reason": "Evicted", "message": "disk"}})
    assert view.failed
    assert view.trouble == "Evicted: disk"


def test_sidecars_trace_to_where_the_controller_is_told() -> None:
    told = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
    }
    settings = Settings.from_env({**told, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret"}).pods
    pod = make_pod(model(), settings, 0, Placement("n", (0,)))
    sidecar = pod["spec"]["containers"][0]
    assert told.items() <= {variable["name"]: variable.get("value", "") for variable in sidecar["env"]}.items()
    assert "secret" not in str(pod)
    assert "OTEL" not in str(make_pod(model(), Settings.from_env({}).pods, 0, Placement("n", (0,))))


def test_the_heartbeat_of_sidecars_is_a_setting_of_the_installation() -> None:
    def environment(heartbeat: str) -> dict[str, str]:
        settings = Settings.from_env({"GREENTHREAD_HEARTBEAT": heartbeat}).pods
        sidecar = make_pod(model(), settings, 0, Placement("n", (0,)))["spec"]["containers"][0]
        return {variable["name"]: variable.get("value", "") for variable in sidecar["env"]}

    assert environment("30s")["HEARTBEAT"] == "30s"
    assert "HEARTBEAT" not in environment("")
    with pytest.raises(SettingsError, match="GREENTHREAD_HEARTBEAT: 'soon' is not a duration"):
        environment("soon")
