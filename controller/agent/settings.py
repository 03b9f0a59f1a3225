"""What a node agent is told by its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from greenthread.names import DEFAULT_NAMESPACE


class SettingsError(Exception):
    """An environment variable is missing or wrong; the message says which."""


@dataclass(frozen=True)
class Settings:
    """Seconds and shares."""

    node: str
    #: Namespace of the GPU objects.
    namespace: str = DEFAULT_NAMESPACE
    #: Port of /metrics, /healthz and /readyz; None: not served.
    metrics_port: int | None = None
    #: Module with NVML's functions.
    nvml: str = "pynvml"
    #: Between two looks at the devices when nothing is said of them.
    look_every: float = 1.0
    #: Between two looks at most, whatever is said.
    look_gap: float = 0.1
    #: Between two writes to one GPU, when its memory changed by more than `memory_change` of its total, and otherwise.
    write_gap: float = 0.5
    write_every: float = 5.0
    memory_change: float = 0.01
    #: A sidecar must have been down this long before its intents go and its entry says it: its node's word may be late.
    down_for: float = 2.0
    #: Between two attempts to reach a driver that does not answer.
    retry_every: float = 5.0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Raises SettingsError."""
        node = env.get("NODE_NAME", "")
        if not node:
            raise SettingsError("NODE_NAME is not set: give the name of this node (spec.nodeName of the agent's pod)")
        port = env.get("METRICS_PORT", "")
        if port and (not port.isascii() or not port.isdigit() or int(port) > 65535):
            raise SettingsError(f"METRICS_PORT={port!r} is not a port number (0 to 65535)")
        return cls(
            node=node,
            metrics_port=int(port) if port else None,
            namespace=env.get("GREENTHREAD_NAMESPACE") or DEFAULT_NAMESPACE,
            nvml=env.get("GREENTHREAD_NVML") or cls.nvml,
        )
