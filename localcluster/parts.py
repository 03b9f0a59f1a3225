"""The product's own programs as Pods of one machine: which image is which command, and with what environment."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenthread.names import DEFAULT_NAMESPACE
from localcluster.state import Folder, Remembered
from localcluster.supervisor.settings import Image

Object = dict[str, Any]

ADDRESS = "127.0.0.1"
SIDECAR_IMAGE, ENGINE_IMAGE = "greenthread/sidecar", "local/vllm"
LABEL_PART = "app.kubernetes.io/component"
ENGINE_BIN = Path(__file__).parent / "engine" / "bin"


@dataclass(frozen=True, slots=True)
class Simulation:
    """Simulated GPUs in place of real ones."""

    gpus: int
    #: Bytes of each.
    memory: int


def images(folder: Folder, simulation: Simulation | None) -> dict[str, Image]:
    """What stands for which image. Any image but ours is an engine's: its command is looked up on the PATH."""
    base = {"KUBECONFIG": str(folder.kubeconfig), "PYTHONUNBUFFERED": "1"}
    engine: dict[str, str] = {}
    if simulation is not None:
        gpus = {
            "GREENTHREAD_NVML": "localcluster.gpus.nvml",
            "GREENTHREAD_CUDA": "localcluster.gpus.cuda",
            "GREENTHREAD_GPU_LEDGER": str(folder.ledger),
        }
        path = os.pathsep.join([str(ENGINE_BIN), os.environ.get("PATH", os.defpath)])
        base |= gpus
        engine = gpus | {"PATH": path, "GREENTHREAD_PYTHON": sys.executable}
    elif vllm := shutil.which("vllm"):
        # the launcher's `python3` is to be vLLM's own, also where only a link to vLLM is on the PATH
        engine = {"PATH": os.pathsep.join([os.path.dirname(os.path.realpath(vllm)), os.environ["PATH"]])}
    loopback = {"SIDECAR_HOST": ADDRESS, "GATEWAY_HOST": ADDRESS}
    return {
        "greenthread/controller": _python("controller", base),
        "greenthread/agent": _python("controller.agent", base),
        "greenthread/gateway": _python("gateway", base | loopback),
        SIDECAR_IMAGE: _python("sidecar", base | loopback),
        "*": Image((), engine),
    }


def _python(module: str, env: Mapping[str, str]) -> Image:
    # -P: a folder named like one of ours in the working directory must not be taken for it
    return Image((sys.executable, "-P", "-m", module), env)


def system_pods(remembered: Remembered) -> list[Object]:
    """Controller, agent and gateway."""
    url = f"http://{ADDRESS}:{remembered.gateway_port}"
    controller = {
        "GREENTHREAD_GATEWAY_URL": url,
        "GREENTHREAD_SIDECAR_IMAGE": SIDECAR_IMAGE,
        "GREENTHREAD_VLLM_IMAGE": ENGINE_IMAGE,
        "GREENTHREAD_RUN_AS_USER": "",
    }
    ready = {"httpGet": {"path": "/health", "port": remembered.gateway_port}, "periodSeconds": 1}
    metrics: list[Object] = [{"name": "metrics", "containerPort": 9090}]
    return [
        _pod("controller", remembered, controller | {"METRICS_PORT": "9090"}, ports=metrics),
        _pod("agent", remembered, {"METRICS_PORT": "9090"}, ports=metrics),
        # no port name: it listens where it is told, and not on a port of the supervisor's choice
        _pod("gateway", remembered, {"HTTP_PORT": str(remembered.gateway_port)}, readinessProbe=ready),
    ]


def _pod(part: str, remembered: Remembered, env: Mapping[str, str], **fields: Any) -> Object:
    common = {"GREENTHREAD_NAMESPACE": DEFAULT_NAMESPACE} | dict(env)
    fields_of_pod = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "NODE_NAME": "spec.nodeName"}
    container = {
        "name": part,
        "image": f"greenthread/{part}",
        "env": [
            *({"name": name, "value": value} for name, value in common.items()),
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields_of_pod.items()),
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"greenthread-{part}",
            "namespace": DEFAULT_NAMESPACE,
            "labels": {"app.kubernetes.io/name": "greenthread", LABEL_PART: part},
        },
        "spec": {
            "nodeName": remembered.node,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 10,
            "containers": [container | fields],
        },
    }


def missing_hardware() -> str:
    """Why this machine has no GPU to serve on, `""` when it has one."""
    nvml = importlib.import_module(os.environ.get("GREENTHREAD_NVML") or "pynvml")
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return f"no NVIDIA driver answers on this machine (NVML: {error})"
    return "" if count else "this machine has no NVIDIA GPU (NVML counts none)"


def missing_engine() -> str:
    """Why Models of the engine `vllm` cannot run here, `""` when they can."""
    if shutil.which("vllm"):
        return ""
    return "there is no `vllm` on the PATH, so Models will not start: install it (pip install vllm) and start again"
