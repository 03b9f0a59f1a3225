"""What the benchmarks of the claim path share: a Kubernetes API to run on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import NoSuchKind
from greenthread.kube.resources import CRDS as CRD_KIND
from greenthread.kube.resources import GPUS, MODELS, NAMESPACES
from greenthread.names import DEFAULT_NAMESPACE
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.kube import RealApi

API_KINDS = ("embedded", "real")
CRDS = Path(__file__).parents[1] / "manifests" / "crds"


@contextmanager
def open_api(
    kind: str, controllers: str = "", audit: bool = False
) -> Iterator[tuple[EmbeddedApi | RealApi, list[int]]]:
    """A fresh Kubernetes API and the pids of its processes. `controllers`: what the real one runs beside itself."""
    with EmbeddedApi(audit) if kind == "embedded" else RealApi(controllers, audit) as api:
        yield api, api.pids


async def install_crds(client: AsyncClient) -> None:
    """Our kinds and namespace; returns when the API serves them."""
    import asyncio

    for path in sorted(CRDS.glob("*.yaml")):
        await client.create(CRD_KIND, yaml.safe_load(path.read_text()))
    for resource in (GPUS, MODELS):
        while True:
            try:
                await client.list(resource)
                break
            except NoSuchKind:
                await asyncio.sleep(0.1)
    await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": DEFAULT_NAMESPACE}})


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time that these processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
