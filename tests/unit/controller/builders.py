"""Objects for the controller's tests."""

from __future__ import annotations

import copy
from typing import Any

from greenthread.gpu import gpu_name
from greenthread.kube.aio import AsyncClient
from greenthread.kube.resources import CRDS, GPUS, MODELS, NAMESPACES, NODES
from greenthread.model import Model
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.storage import Store
from tests.crds import crds
from tests.virtual import VirtualClock

GIB = 2**30
NAMESPACE = "greenthread-system"

Object = dict[str, Any]


def model_object(
    name: str = "m", namespace: str = "team", annotations: dict[str, str] | None = None, **spec: Any
) -> Object:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "generation": 1,
            "creationTimestamp": "2026-11-22T14:00:00Z",
            "annotations": annotations or {},
        },
        "spec": {"modelName": f"org/{name}", **spec},
    }


def model(name: str = "m", namespace: str = "team", annotations: dict[str, str] | None = None, **spec: Any) -> Model:
    return Model.from_object(model_object(name, namespace, annotations, **spec))


def client_of(api: Api) -> AsyncClient:
    return AsyncClient(InProcess(api))


async def new_cluster(nodes: dict[str, int] | None = None, gpu_objects: bool = True) -> tuple[Api, AsyncClient]:
    """An embedded API with the CRDs, and nodes with so many GPUs."""
    api = Api(Store(), clock=VirtualClock())
    client = client_of(api)
    for crd in crds():
        await client.create(CRDS, crd)
    for namespace in (NAMESPACE, "team", "other"):
        await client.create(NAMESPACES, {"metadata": {"name": namespace}})
    for node, count in (nodes or {"node-a": 2}).items():
        labels = {"kubernetes.io/hostname": node}
        await client.create(NODES, {"metadata": {"name": node, "labels": labels}})
        for index in range(count if gpu_objects else 0):
            await make_gpu(client, node, index)
    return api, client


async def make_gpu(client: AsyncClient, node: str, index: int, total: int = 96 * GIB) -> None:
    name = gpu_name(node, index)
    await client.create(GPUS, {"metadata": {"name": name, "namespace": NAMESPACE}})
    status = {"node": node, "index": index, "totalMemoryBytes": total, "occupants": [], "preemptionIntents": []}
    await client.patch(GPUS, name, {"status": status}, NAMESPACE, subresource="status")


async def make_model(client: AsyncClient, name: str = "m", namespace: str = "team", **spec: Any) -> Object:
    obj = {"metadata": {"name": name, "namespace": namespace}, "spec": {"modelName": f"org/{name}", **spec}}
    return await client.create(MODELS, copy.deepcopy(obj))
