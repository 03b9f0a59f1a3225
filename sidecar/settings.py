"""What a sidecar is told by its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from greenthread.gpu import PodRef, gpu_name
from greenthread.names import DEFAULT_NAMESPACE, SLEEP_BACKENDS
from greenthread.units import parse_duration


class SettingsError(Exception):
    """An environment variable is missing or wrong; the message says which."""


@dataclass(frozen=True)
class Settings:
    pod: PodRef
    pod_uid: str
    model: str
    node: str
    gpu_indices: tuple[int, ...]
    run_dir: str
    #: Namespace of the GPU objects.
    namespace: str = DEFAULT_NAMESPACE
    #: Address and port of the front door. A pod's sidecar is reached from outside the pod.
    host: str = "0.0.0.0"  # noqa: S104
    port: int = 8080
    #: The engine listens on loopback only.
    engine_port: int = 8000
    #: ``vllm`` or ``command``.
    engine_kind: str = "vllm"
    #: Bytes on each GPU, measured by an earlier pod of the same template; None: measure at first boot.
    serving_memory: int | None = None

    #: Requests that may wait at once; one more is refused with 503.
    queue_limit: int = 10_000
    #: Seconds a request waits for its wake before it gets a 503.
    queue_timeout: float = 120.0
    #: A streaming request that waits gets an SSE comment after each silence of this many seconds; 0: never.
    heartbeat: float = 10.0
    #: Seconds an engine may take to boot, to wake, to sleep; past it, it is killed.
    boot_timeout: float = 1800.0
    wake_timeout: float = 120.0
    sleep_timeout: float = 30.0
    #: Seconds for the first sleep of an engine process, which may have to copy all weights.
    first_sleep_timeout: float = 300.0
    #: vLLM's ``--sleep-mode-backend``: ``cumem`` (its own) or ``greenthread`` (vllm_sleep).
    sleep_backend: str = "cumem"
    #: Whether a sleeping engine is taken off the GPU altogether, by its launcher.
    checkpoint: bool = False
    #: Bytes of a GPU that a sleeping engine may hold beyond what it held after its first sleep.
    sleep_allowance: int = 2**30
    #: Seconds between two attempts to boot an engine that fails: the first pause and the longest.
    boot_backoff: tuple[float, float] = (1.0, 60.0)
    #: Bytes an engine may take at boot beyond gpuMemoryUtilization (context, graphs), when there is room.
    boot_slack: int = 4 * 2**30

    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def gpu_names(self) -> tuple[str, ...]:
        return tuple(gpu_name(self.node, index) for index in self.gpu_indices)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """SettingsError names the variable that is missing or wrong."""

        def need(name: str) -> str:
            value = env.get(name, "")
            if not value:
                raise SettingsError(f"the environment variable {name} is not set; the controller sets it in every pod")
            return value

        def number(name: str, default: float) -> float:
            text = env.get(name, "")
            try:
                value = float(text) if text else default
            except ValueError:
                raise SettingsError(f"{name}={text!r} is not a number") from None
            if value <= 0:
                raise SettingsError(f"{name}={text!r} must be above 0")
            return value

        try:
            indices = tuple(sorted(int(part) for part in need("GPU_INDICES").split(",")))
        except ValueError:
            raise SettingsError(f"GPU_INDICES={env['GPU_INDICES']!r} is not a list like 0,1") from None
        try:
            heartbeat = parse_duration(env["HEARTBEAT"]) if env.get("HEARTBEAT") else cls.heartbeat
        except ValueError as error:
            raise SettingsError(f"HEARTBEAT: {error}") from None
        kind = env.get("ENGINE_KIND") or "vllm"
        if kind not in ("vllm", "command"):
            raise SettingsError(f"ENGINE_KIND={kind!r} is neither vllm nor command")
        backend = env.get("SLEEP_BACKEND") or cls.sleep_backend
        if backend not in SLEEP_BACKENDS:
            raise SettingsError(f"SLEEP_BACKEND={backend!r} is neither {' nor '.join(SLEEP_BACKENDS)}")
        memory = env.get("SERVING_MEMORY_PER_GPU", "")
        return cls(
            pod=PodRef(need("POD_NAMESPACE"), need("POD_NAME")),
            pod_uid=env.get("POD_UID", ""),
            model=need("MODEL_NAME"),
            node=need("NODE_NAME"),
            gpu_indices=indices,
            run_dir=need("RUN_DIR"),
            namespace=env.get("GREENTHREAD_NAMESPACE") or DEFAULT_NAMESPACE,
            host=env.get("SIDECAR_HOST") or cls.host,
            port=int(number("HTTP_PORT", cls.port)),
            engine_port=int(number("ENGINE_PORT", cls.engine_port)),
            engine_kind=kind,
            serving_memory=int(memory) if memory.isdigit() and int(memory) > 0 else None,
            queue_limit=int(number("QUEUE_LIMIT", cls.queue_limit)),
            queue_timeout=number("QUEUE_TIMEOUT_SECONDS", cls.queue_timeout),
            heartbeat=heartbeat,
            boot_timeout=number("BOOT_TIMEOUT_SECONDS", cls.boot_timeout),
            wake_timeout=number("WAKE_TIMEOUT_SECONDS", cls.wake_timeout),
            sleep_timeout=number("SLEEP_TIMEOUT_SECONDS", cls.sleep_timeout),
            first_sleep_timeout=number("FIRST_SLEEP_TIMEOUT_SECONDS", cls.first_sleep_timeout),
            sleep_backend=backend,
            checkpoint=env.get("CHECKPOINT") == "1",
            sleep_allowance=int(number("SLEEP_ALLOWANCE_BYTES", cls.sleep_allowance)),
            env=env,
        )
