"""The pod of one replica, from the Model and its placement; and the hash of what needs a new pod. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from controller.settings import PodSettings
from greenthread.gpu import PodRef
from greenthread.model import Model
from greenthread.names import (
    ANNOTATION_ENGINE,
    ANNOTATION_GPUS,
    ANNOTATION_REPORT,
    ANNOTATION_SERVING_MEMORY,
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
HOSTNAME = "kubernetes.io/hostname"
KNOWN_MEMORY = "SERVING_MEMORY_PER_GPU"
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
    kind = model.annotations.get(ANNOTATION_ENGINE, "vllm")
    if kind == "command":
        if not model.spec.extra_args:
            raise SpecError(f"{ANNOTATION_ENGINE}=command needs the engine's command line in spec.extraArgs")
        return list(model.spec.extra_args)
    if kind != "vllm":
        raise SpecError(f"the annotation {ANNOTATION_ENGINE} is {kind!r}: write vllm or command")
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
    # the address last, where nothing overrides it: argparse takes --hos for --host, and the last one wins
    return [*command, *spec.extra_args, "--host", "127.0.0.1", "--port", "$(ENGINE_PORT)"]


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
                "args": engine_command(model, settings),
                "ports": [{"name": "engine", "containerPort": ENGINE_PORT}],
                "env": _engine_env(model, settings),
                "volumeMounts": mounts,
                "resources": dict(spec.resources),
                "securityContext": {"allowPrivilegeEscalation": False},
            },
        ],
    }
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
        _value("GREENTHREAD_GATEWAY_URL", settings.gateway_url),
        _value("NVIDIA_VISIBLE_DEVICES", "all"),  # to measure, not to compute
        _value("NVIDIA_DRIVER_CAPABILITIES", "utility"),
        *([_value("HEARTBEAT", settings.heartbeat)] if settings.heartbeat else []),
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


@dataclass(frozen=True, slots=True)
class Report:
    """Of what a pod's sidecar says of itself in the pod's annotation, what the status needs; empty before its first
    word. What it does at the moment is better known from the GPUs."""

    boot_ready: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class PodView:
    """A model's pod as the controller reads it."""

    ref: PodRef
    uid: str
    ordinal: int
    hash8: str
    node: str
    gpus: tuple[int, ...]
    phase: str
    ready: bool
    deleting: bool
    #: Why it will not run without a change ("ImagePullBackOff: …"), or "".
    trouble: str
    report: Report
    #: Bytes on each GPU, measured or handed on; None: not known yet.
    serving_memory: int | None

    @property
    def failed(self) -> bool:
        """It ended, or nobody knows: only a new pod helps."""
        return self.phase in ("Failed", "Unknown", "Succeeded")

    @classmethod
    def from_object(cls, pod: Mapping[str, Any]) -> PodView:
        """From the API's object; fields that are missing or broken count as unknown."""
        meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
        annotations, its_labels = meta.get("annotations") or {}, meta.get("labels") or {}
        ordinal = its_labels.get(LABEL_ORDINAL, "")
        return cls(
            ref=PodRef(meta.get("namespace", ""), meta["name"]),
            uid=meta.get("uid", ""),
            ordinal=int(ordinal) if ordinal.isdecimal() else -1,
            hash8=meta["name"].rpartition("-")[2],
            node=spec.get("nodeName") or (spec.get("nodeSelector") or {}).get(HOSTNAME, ""),
            gpus=tuple(int(part) for part in annotations.get(ANNOTATION_GPUS, "").split(",") if part.isdecimal()),
            phase=status.get("phase", "Pending"),
            ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()),
            deleting=bool(meta.get("deletionTimestamp")),
            trouble=_trouble(status),
            report=_report(annotations.get(ANNOTATION_REPORT, "")),
            serving_memory=_memory(annotations, spec),
        )


#: What a container waits for that time alone does not bring.
_STUCK = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


def _trouble(status: Mapping[str, Any]) -> str:
    if status.get("phase") in ("Failed", "Unknown"):
        return ": ".join(part for part in (status.get("reason") or status["phase"], status.get("message", "")) if part)
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _STUCK:
            return f"container {container.get('name', '')}: {waiting['reason']}" + (
                f": {waiting['message']}" if waiting.get("message") else ""
            )
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"not scheduled: {condition.get('message') or condition.get('reason') or 'no reason given'}"
    return ""


def _report(text: str) -> Report:
    try:
        said = json.loads(text) if text else {}
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    return Report(bool(said.get("bootReady")), str(said.get("error") or ""))


def _memory(annotations: Mapping[str, str], spec: Mapping[str, Any]) -> int | None:
    handed_on: Iterable[str] = (
        str(variable.get("value"))
        for container in spec.get("containers") or ()
        for variable in container.get("env") or ()
        if variable.get("name") == KNOWN_MEMORY
    )
    for text in (annotations.get(ANNOTATION_SERVING_MEMORY, ""), *handed_on):
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return None
