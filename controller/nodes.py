"""Which nodes a Model's pods may run on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from controller.pods import HOSTNAME
from greenthread.kube.aio import AsyncClient
from greenthread.kube.resources import NODES
from greenthread.model import ModelSpec

Object = dict[str, Any]

#: Seconds that a list of nodes is used for: placing is rare, and a burst of it asks once.
FRESH = 10.0

#: Taints that say how a node is just now. They come and go by themselves, so they are left to the scheduler.
_PASSING = "node.kubernetes.io/"


class Nodes:
    """The cluster's nodes, listed when they are asked for."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self._nodes: dict[str, Object] = {}
        self._read_at: float | None = None

    async def all(self) -> Mapping[str, Object]:
        """Node objects by name, at most `FRESH` seconds old."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._read_at is None or now - self._read_at > FRESH:
                found = await self._client.list(NODES)
                self._nodes = {node["metadata"]["name"]: node for node in found.items}
                self._read_at = now
        return self._nodes


def hostname(nodes: Mapping[str, Object], name: str) -> str:
    """The node's label `kubernetes.io/hostname`, which is not always its name."""
    labels = (nodes.get(name, {}).get("metadata") or {}).get("labels") or {}
    return str(labels.get(HOSTNAME) or name)


def excluded(spec: ModelSpec, names: Sequence[str], nodes: Mapping[str, Object]) -> dict[str, str]:
    """Nodes among `names` that a pod of this spec cannot run on, with the reason: "is cordoned"."""
    reasons = {}
    for name in names:
        reason = _why_not(spec, nodes.get(name))
        if reason:
            reasons[name] = reason
    return reasons


def _why_not(spec: ModelSpec, node: Object | None) -> str:
    if node is None:
        return "is no node of the cluster any more"
    labels = node["metadata"].get("labels") or {}
    wrong = [f"{key}={value}" for key, value in spec.node_selector.items() if labels.get(key) != value]
    if wrong:
        return f"does not have the label {', '.join(wrong)}"
    node_spec = node.get("spec") or {}
    for taint in node_spec.get("taints") or ():
        passing = taint.get("key", "").startswith(_PASSING)
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not passing and not _tolerated(spec, taint):
            return f"has the taint {taint.get('key')}:{taint['effect']}, which spec.tolerations does not name"
    if node_spec.get("unschedulable"):
        return "is cordoned"
    return ""


def _tolerated(spec: ModelSpec, taint: Mapping[str, Any]) -> bool:
    for toleration in spec.tolerations:
        key, effect = toleration.get("key") or "", toleration.get("effect") or ""
        if effect not in ("", taint.get("effect")):
            continue
        if (toleration.get("operator") or "Equal") == "Exists":
            if key in ("", taint.get("key")):
                return True
        elif key == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or ""):
            return True
    return False
