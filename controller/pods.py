"""The pod of one replica, from the Model and its placement; and the hash of what needs a new pod. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from controller.settings import PodSettings
from greenthread.model import Model
from greenthread.names import (
    ANNOTATION_CHECKPOINT,
    ANNOTATION_ENGINE,
    ANNOTATION_GPUS,
    ANNOTATION_KEEP_KV_CACHE,
    API_VERSION,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    LABEL_NAME,
    LABEL_ORDINAL,
    MANAGED_BY,
    POD_APP_NAME,
)
from greenthread.placement import Placement
from greenthread.units import GIB, parse_quantity

Object = dict[str, Any]

SIDECAR, ENGINE = "sidecar", "vllm"
RUN_DIR = "/run/greenthread"
HF_DIR = "/run/secrets/huggingface"
HTTP_PORT, ENGINE_PORT = 8080, 8000
PLUGIN_DIR = "/opt/greenthread"
HOSTNAME = "kubernetes.io/hostname"
KNOWN_MEMORY = "SERVING_MEMORY_PER_GPU"
#: Before the engine's own command: its parent, which may checkpoint it.
LAUNCHER = ("python3", "-m", "vllm_sleep.launch")
#: Seconds beyond drainTimeout that a pod gets to end: the engine's sleep, and the release of its memory.
GRACE = 30
#: Host memory for KV cache where maxSize is not given.
KV_CACHE_BYTES = 4 * GIB


class SpecError(Exception):
    """The Model cannot be turned into a pod; the message says what to write instead."""


@cache
def gate() -> str:
    """The script around every engine, without its comments: a better word in one of them is no reason for new pods."""
    lines = (Path(__file__).parent / "gate.sh").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#")) + "\n"


def engine_command(model: Model, settings: PodSettings) -> list[str]:
    """Command line of the engine, without the gate. Raises SpecError."""
    if _engine_kind(model) == "command":
        if not model.spec.extra_args:
            raise SpecError(f"{ANNOTATION_ENGINE}=command needs the engine's command line in spec.extraArgs")
        return list(model.spec.extra_args)
    spec = model.spec
    # every name that the gateway takes for it
    names = dict.fromkeys((spec.model_name, model.name, f"{model.namespace}/{model.name}"))
    command = ["vllm", "serve", spec.model_name, "--served-model-name", *names, "--dtype", spec.dtype]
    if spec.quantization:
        command += ["--quantization", spec.quantization]
    command += ["--gpu-memory-utilization", f"{spec.gpu_memory_utilization:g}"]
    command += ["--tensor-parallel-size", str(spec.tensor_parallel_size)]
    if spec.lora.enabled:
        command += ["--enable-lora", "--max-lora-rank", str(spec.lora.max_rank)]
    if spec.kv_cache.enabled:
        size = parse_quantity(spec.kv_cache.max_size) if spec.kv_cache.max_size else KV_CACHE_BYTES
        command += ["--kv-offloading-backend", "native", "--kv-offloading-size", f"{size / GIB:g}"]
    if settings.sleep_mode_flag:
        command.append("--enable-sleep-mode")
    if has_own_backend(model, settings):
        command += ["--sleep-mode-backend", settings.sleep_backend]
    # the address last, where nothing overrides it: argparse takes --hos for --host, and the last one wins
    return [*command, *spec.extra_args, "--host", "127.0.0.1", "--port", "$(ENGINE_PORT)"]


def has_own_backend(model: Model, settings: PodSettings) -> bool:
    """Whether its engine sleeps by vllm_sleep in place of vLLM's own backend. Raises SpecError."""
    return settings.sleep_backend != "cumem" and _engine_kind(model) == "vllm"


def checkpoints(model: Model, settings: PodSettings) -> bool:
    """Whether a launcher around the engine is to take it off the GPU when it sleeps. Raises SpecError."""
    wanted = _switch(model, ANNOTATION_CHECKPOINT, settings.checkpoint)
    return wanted and _engine_kind(model) == "vllm"


def _engine_kind(model: Model) -> str:
    kind = model.annotations.get(ANNOTATION_ENGINE, "vllm")
    if kind not in ("vllm", "command"):
        raise SpecError(f"the annotation {ANNOTATION_ENGINE} is {kind!r}: write vllm or command")
    return kind


def _switch(model: Model, name: str, default: bool) -> bool:
    text = model.annotations.get(name, "")
    if text not in ("", "true", "false"):
        raise SpecError(f"the annotation {name} is {text!r}: write true or false")
    return text == "true" if text else default


def template(model: Model, settings: PodSettings) -> Object:
    """Everything of a pod that its place, its number and the live parts of the spec do not change. Raises SpecError."""
    spec = model.spec
    volumes: list[Object] = [
        {"name": "run", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[Object] = [{"name": "run", "mountPath": RUN_DIR}, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    if settings.models_path:
        volumes.append({"name": "models", "hostPath": {"path": settings.models_path, "type": "DirectoryOrCreate"}})
        mounts.append({"name": "models", "mountPath": settings.models_path})
    if settings.hf_token_secret:
        # a file, and no variable: an environment is printed by many a tool
        secret = {"secretName": settings.hf_token_secret, "items": [{"key": "token", "path": "token"}]}
        volumes.append({"name": "huggingface", "secret": secret | {"defaultMode": 0o440, "optional": True}})
        mounts.append({"name": "huggingface", "mountPath": HF_DIR, "readOnly": True})
    checkpoint = checkpoints(model, settings)
    plugin = checkpoint or has_own_backend(model, settings)
    if plugin:
        volumes.append({"name": "plugin", "emptyDir": {}})
        mounts.append({"name": "plugin", "mountPath": PLUGIN_DIR, "readOnly": True})
    probe = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 2}
    alive = {"httpGet": {"path": "/status", "port": "http"}, "timeoutSeconds": 2}
    hardened: Object = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod: Object = {
        "shareProcessNamespace": True,
        "restartPolicy": "Always",
        "volumes": volumes,
        "containers": [
            {
                "name": SIDECAR,
                "image": spec.sidecar_image or settings.sidecar_image,
                "ports": [{"name": "http", "containerPort": HTTP_PORT}],
                "env": _sidecar_env(model, settings),
                "volumeMounts": [{"name": "run", "mountPath": RUN_DIR}],
                # Alive also while its engine boots: one that hangs then holds a claim that nobody else can give back.
                "livenessProbe": alive | {"periodSeconds": 10, "failureThreshold": 6},
                "readinessProbe": probe | {"periodSeconds": 2, "failureThreshold": 3},
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
                "securityContext": hardened,
            },
            {
                "name": ENGINE,
                "image": spec.vllm_image or settings.vllm_image,
                "command": ["/bin/sh", "-c", gate(), "gate"],
                "args": [*(LAUNCHER if checkpoint else ()), *engine_command(model, settings)],
                "ports": [{"name": "engine", "containerPort": ENGINE_PORT}],
                "env": _engine_env(model, settings),
                "volumeMounts": mounts,
                "resources": dict(spec.resources),
                "securityContext": {"allowPrivilegeEscalation": False},
            },
        ],
    }
    if plugin:
        pod["initContainers"] = [
            {
                "name": "plugin",
                "image": spec.sidecar_image or settings.sidecar_image,
                "args": ["deliver", "$(PLUGIN_DIR)"],
                "env": [_value("PLUGIN_DIR", PLUGIN_DIR)],
                "volumeMounts": [{"name": "plugin", "mountPath": PLUGIN_DIR}],
                "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
                "securityContext": hardened,
            }
        ]
    if settings.run_as_user is not None:
        user = settings.run_as_user
        pod["securityContext"] = {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
        hardened["runAsNonRoot"] = user != 0
    if settings.runtime_class:
        pod["runtimeClassName"] = settings.runtime_class
    if spec.service_account_name or settings.service_account:
        pod["serviceAccountName"] = spec.service_account_name or settings.service_account
    if spec.tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in spec.tolerations]
    if spec.node_selector:
        pod["nodeSelector"] = dict(spec.node_selector)
    return pod


def template_hash(model: Model, settings: PodSettings) -> str:
    """Eight hexadecimal digits that change when a new pod is needed. Raises SpecError."""
    text = json.dumps(template(model, settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def pod_name(model: Model, ordinal: int, hash8: str) -> str:
    return f"{model.name}-{ordinal}-{hash8}"


def make_pod(
    model: Model,
    settings: PodSettings,
    ordinal: int,
    placement: Placement,
    known_memory: int | None = None,
    hostname: str = "",
) -> Object:
    """The pod of a replica on its GPUs.

    ``known_memory``: bytes on each GPU, measured by an earlier pod of the same template; ``hostname``: the node's
    label ``kubernetes.io/hostname`` where it is not the node's name. Raises SpecError.
    """
    indices = ",".join(map(str, placement.indices))
    pod = template(model, settings)
    sidecar, engine = pod["containers"]
    sidecar["env"].append({"name": "GPU_INDICES", "value": indices})
    if known_memory is not None:
        sidecar["env"].append({"name": KNOWN_MEMORY, "value": str(known_memory)})
    # every device is visible and CUDA picks: an index means the same to NVML, to CUDA and on the host
    engine["env"].append({"name": "CUDA_VISIBLE_DEVICES", "value": indices})
    if has_own_backend(model, settings) and model.spec.staging.pinned:
        # a hint for the boot, which takes the memory ahead; no part of the template, since the spec's word is live
        engine["env"].append({"name": "GREENTHREAD_PINNED", "value": "1"})
    pod["nodeSelector"] = {**pod.get("nodeSelector", {}), HOSTNAME: hostname or placement.node}
    pod["terminationGracePeriodSeconds"] = math.ceil(model.spec.sleep.drain_timeout) + GRACE
    return {
        "metadata": {
            "name": pod_name(model, ordinal, template_hash(model, settings)),
            "namespace": model.namespace,
            "labels": labels(model) | {LABEL_ORDINAL: str(ordinal)},
            "annotations": {ANNOTATION_GPUS: indices},
            "ownerReferences": [owner_reference(model)],
        },
        "spec": pod,
    }


def labels(model: Model) -> dict[str, str]:
    return {LABEL_NAME: POD_APP_NAME, LABEL_MANAGED_BY: MANAGED_BY, LABEL_MODEL: model.name}


def owner_reference(model: Model) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "name": model.name,
        "uid": model.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _sidecar_env(model: Model, settings: PodSettings) -> list[Object]:
    return [
        _value("HTTP_PORT", HTTP_PORT),
        _value("ENGINE_PORT", ENGINE_PORT),
        _value("RUN_DIR", RUN_DIR),
        _value("ENGINE_KIND", model.annotations.get(ANNOTATION_ENGINE, "vllm")),
        _value("MODEL_NAME", model.name),
        _field("MODEL_NAMESPACE", "metadata.namespace"),
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("POD_UID", "metadata.uid"),
        _field("NODE_NAME", "spec.nodeName"),
        _value("GREENTHREAD_NAMESPACE", settings.namespace),
        _value("NVIDIA_VISIBLE_DEVICES", "all"),  # to measure, not to compute
        _value("NVIDIA_DRIVER_CAPABILITIES", "utility"),
        *([_value("HEARTBEAT", settings.heartbeat)] if settings.heartbeat else []),
        *(_value(name, value) for name, value in settings.tracing),
        *([_value("SLEEP_BACKEND", settings.sleep_backend)] if has_own_backend(model, settings) else []),
        *([_value("CHECKPOINT", 1)] if checkpoints(model, settings) else []),
    ]


def _engine_env(model: Model, settings: PodSettings) -> list[Object]:
    env = [
        _value("ENGINE_PORT", ENGINE_PORT),
        _value("RUN_DIR", RUN_DIR),
        # by these the agent knows whose process it is, where cgroups do not tell
        _field("POD_UID", "metadata.uid"),
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _value("VLLM_SERVER_DEV_MODE", 1),
        _value("NVIDIA_VISIBLE_DEVICES", "all"),
        _value("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
    ]
    if settings.run_as_user is not None:  # a user that the image does not know has no home and no name
        env += [_value("HOME", "/tmp"), _value("USER", "greenthread")]  # noqa: S108
    if has_own_backend(model, settings) or checkpoints(model, settings):
        env.append(_value("PYTHONPATH", PLUGIN_DIR))
    if has_own_backend(model, settings):
        if settings.models_path:  # the disk of the weights is the fast one
            env.append(_value("GREENTHREAD_SLEEP_FOLDER", settings.models_path))
        if _switch(model, ANNOTATION_KEEP_KV_CACHE, False):
            env.append(_value("GREENTHREAD_KEEP_KV_CACHE", 1))
    if settings.models_path:
        env.append(_value("HF_HOME", settings.models_path))
    if settings.hf_token_secret:
        env.append(_value("HF_TOKEN_PATH", f"{HF_DIR}/token"))
    if model.spec.lora.enabled:
        env.append(_value("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True"))
        folder = model.spec.lora.cache_dir or settings.models_path
        if folder:
            env.append(_value("VLLM_LORA_RESOLVER_CACHE_DIR", folder))
    return env


def _value(name: str, value: object) -> Object:
    return {"name": name, "value": str(value)}


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
