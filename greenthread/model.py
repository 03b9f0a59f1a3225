"""The Model object: what to serve and how."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from greenthread.clock import parse_time
from greenthread.units import parse_duration
from greenthread.values import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, slots=True)
class Fairness:
    """Who gives way to whom. Seconds."""

    popular: bool = False
    min_runtime: float = 10.0
    max_wait_time: float = 5.0
    #: Idle this long while somebody waits for its memory: gives way by itself; 0 = never.
    yield_after: float = 1.0


@dataclass(frozen=True, slots=True)
class Sleep:
    """When a model sleeps by itself, and how long in-flight requests may hold it up. Seconds."""

    #: 0 = never.
    idle_timeout: float = 300.0
    drain_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Staging:
    """``pinned``: weights stay in pinned host RAM (sleep level 1); else they are read back from disk (level 2)."""

    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Lora:
    enabled: bool = False
    max_rank: int = 64
    cache_dir: str = ""
    #: Seconds.
    download_timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class KvCache:
    enabled: bool = False
    #: A Kubernetes quantity, or "".
    max_size: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    model_name: str
    dtype: str = "bfloat16"
    quantization: str = ""
    gpu_memory_utilization: float = 0.90
    tensor_parallel_size: int = 1
    replicas: int = 1
    extra_args: tuple[str, ...] = ()
    fairness: Fairness = field(default_factory=Fairness)
    sleep: Sleep = field(default_factory=Sleep)
    staging: Staging = field(default_factory=Staging)
    lora: Lora = field(default_factory=Lora)
    kv_cache: KvCache = field(default_factory=KvCache)
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    service_account_name: str = ""
    vllm_image: str = ""
    sidecar_image: str = ""

    @classmethod
    def from_object(cls, spec: Mapping[str, Any]) -> ModelSpec:
        """From the API's object. Defaults are the CRD's, so an object that skipped defaulting reads the same."""
        fairness, sleep = spec.get("fairness") or {}, spec.get("sleep") or {}
        lora, kv_cache = spec.get("lora") or {}, spec.get("kvCache") or {}
        return cls(
            model_name=spec["modelName"],
            dtype=spec.get("dtype") or "bfloat16",
            quantization=spec.get("quantization") or "",
            gpu_memory_utilization=float(spec.get("gpuMemoryUtilization") or "0.90"),
            tensor_parallel_size=_default(spec.get("tensorParallelSize"), 1),
            replicas=_default(spec.get("replicas"), 1),
            extra_args=tuple(spec.get("extraArgs") or ()),
            fairness=Fairness(
                popular=fairness.get("popular") or False,
                min_runtime=parse_duration(fairness.get("minRuntime") or "10s"),
                max_wait_time=parse_duration(fairness.get("maxWaitTime") or "5s"),
                yield_after=parse_duration(fairness.get("yieldAfter") or "1s"),
            ),
            sleep=Sleep(
                idle_timeout=parse_duration(sleep.get("idleTimeout") or "5m"),
                drain_timeout=parse_duration(sleep.get("drainTimeout") or "30s"),
            ),
            staging=Staging(pinned=(spec.get("staging") or {}).get("pinned") or False),
            lora=Lora(
                enabled=lora.get("enabled") or False,
                max_rank=_default(lora.get("maxRank"), 64),
                cache_dir=lora.get("cacheDir") or "",
                download_timeout=parse_duration(lora.get("downloadTimeout") or "5m"),
            ),
            kv_cache=KvCache(enabled=kv_cache.get("enabled") or False, max_size=str(kv_cache.get("maxSize") or "")),
            resources=spec.get("resources") or {},
            node_selector=spec.get("nodeSelector") or {},
            tolerations=tuple(spec.get("tolerations") or ()),
            service_account_name=spec.get("serviceAccountName") or "",
            vllm_image=spec.get("vllmImage") or "",
            sidecar_image=spec.get("sidecarImage") or "",
        )


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the controller says of a Model; everything may still be unknown."""

    phase: str = "Pending"
    conditions: tuple[Condition, ...] = ()
    replicas: int = 0
    ready_replicas: int = 0
    serving_replicas: int = 0
    sleeping_replicas: int = 0
    node: str = ""
    gpus: tuple[int, ...] = ()
    #: Bytes on each GPU, measured at first boot; None before.
    serving_memory_per_gpu: int | None = None
    url: str = ""
    observed_generation: int = 0
    last_transition: datetime | None = None

    @classmethod
    def from_object(cls, status: Mapping[str, Any]) -> ModelStatus:
        last = status.get("lastTransition")
        return cls(
            phase=status.get("phase") or "Pending",
            conditions=tuple(
                Condition(c["type"], c["status"], c.get("reason", ""), c.get("message", ""))
                for c in status.get("conditions") or ()
            ),
            replicas=status.get("replicas", 0),
            ready_replicas=status.get("readyReplicas", 0),
            serving_replicas=status.get("servingReplicas", 0),
            sleeping_replicas=status.get("sleepingReplicas", 0),
            node=status.get("node", ""),
            gpus=tuple(int(index) for index in (status.get("gpus") or "").split(",") if index),
            serving_memory_per_gpu=status.get("servingMemoryPerGPU"),
            url=status.get("url", ""),
            observed_generation=status.get("observedGeneration", 0),
            last_transition=parse_time(last) if last else None,
        )


@dataclass(frozen=True, slots=True)
class Model:
    namespace: str
    name: str
    spec: ModelSpec
    status: ModelStatus = field(default_factory=ModelStatus)
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    uid: str = ""
    generation: int = 0
    created_at: datetime | None = None
    deleting: bool = False

    @classmethod
    def from_object(cls, obj: Mapping[str, Any]) -> Model:
        """From the API's object; ValueError or KeyError only for one that the CRD would have refused."""
        meta = obj["metadata"]
        created = meta.get("creationTimestamp")
        return cls(
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            spec=ModelSpec.from_object(obj["spec"]),
            status=ModelStatus.from_object(obj.get("status") or {}),
            annotations=meta.get("annotations") or {},
            labels=meta.get("labels") or {},
            uid=meta.get("uid", ""),
            generation=meta.get("generation", 0),
            created_at=parse_time(created) if created else None,
            deleting=bool(meta.get("deletionTimestamp")),
        )


def _default(value: int | None, default: int) -> int:
    return default if value is None else value
