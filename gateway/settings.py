"""What the gateway may be told, from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from greenthread.names import DEFAULT_NAMESPACE
from greenthread.units import parse_duration
from proxy.settings import MIB


class SettingsError(Exception):
    """An environment variable is wrong; the message says which and what to write."""


@dataclass(frozen=True)
class Settings:
    """Times are in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    """GATEWAY_HOST: address to listen on; loopback unless told otherwise."""

    port: int = 8080
    """HTTP_PORT."""

    metrics_port: int | None = None
    """METRICS_PORT: /metrics is answered here and nowhere else, so that clients cannot read it; None: with the rest."""

    namespace: str = DEFAULT_NAMESPACE
    """GREENTHREAD_NAMESPACE: where the GPU objects live."""

    hold_timeout: float = 300.0
    """HOLD_TIMEOUT: a request for a model that has no ready endpoint waits this long for one; then 503."""

    max_held: int = 10_000
    """Requests that wait for an endpoint at a time, of all models; one more is 503."""

    body_limit: int = 64 * MIB
    """Body of a request whose model is named in the body: it is read whole before it is sent on; more is 413."""

    heartbeat: float = 10.0
    """HEARTBEAT: a streaming request that waits gets an SSE comment after each silence of this length; 0s: never."""

    grace: float = 30.0
    """SHUTDOWN_GRACE: on SIGTERM, what is in flight may finish within this."""

    avoid_unreachable: float = 1.0
    """An endpoint that could not be connected to gets nothing for this long."""

    avoid_leaving: float = 5.0
    """An endpoint that said it does not run requests any more gets nothing for this long."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Raises SettingsError."""

        def seconds(name: str, default: float) -> float:
            text = env.get(name, "")
            try:
                return parse_duration(text) if text else default
            except ValueError as error:
                raise SettingsError(f"{name}={text!r}: {error}") from None

        def number(name: str) -> int | None:
            text = env.get(name, "")
            if text and (not text.isdecimal() or int(text) > 65535):
                raise SettingsError(f"{name}={text!r} is not a port number (0 to 65535)")
            return int(text) if text else None

        port = number("HTTP_PORT")
        return cls(
            host=env.get("GATEWAY_HOST") or cls.host,
            port=cls.port if port is None else port,
            metrics_port=number("METRICS_PORT"),
            namespace=env.get("GREENTHREAD_NAMESPACE") or cls.namespace,
            hold_timeout=seconds("HOLD_TIMEOUT", cls.hold_timeout),
            heartbeat=seconds("HEARTBEAT", cls.heartbeat),
            grace=seconds("SHUTDOWN_GRACE", cls.grace),
        )
