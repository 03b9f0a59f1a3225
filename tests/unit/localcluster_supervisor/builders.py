"""Pods for the supervisor's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localcluster.supervisor.settings import Image, Settings

Object = dict[str, Any]


def container(name: str = "main", **fields: Any) -> Object:
    return {"name": name, "image": "shop/till:1", "command": ["till"]} | fields


def pod(*containers: Object, name: str = "till-0", **fields: Any) -> Object:
    """A pod of the namespace `shop`; further fields go into its spec."""
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"uid-{name}",
            "labels": {"app": "till"},
            "annotations": {"greenthread.ai/gpus": "0,1"},
        },
        "spec": {"containers": list(containers) or [container()], "nodeName": "node-a"} | fields,
    }


def settings(**fields: Any) -> Settings:
    images = {"shop/*": Image(("python", "-m", "till"), {"LANG": "C", "TILL_MODE": "image"})}
    return Settings(node="node-a", state=Path("/state"), logs=Path("/logs"), images=images, **fields)
