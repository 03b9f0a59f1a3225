"""What a controller is told by its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from greenthread.names import DEFAULT_NAMESPACE, SLEEP_BACKENDS
from greenthread.units import parse_duration

#: Of OpenTelemetry's variables the ones that sidecars get as the controller has them. Not its headers: they have keys.
TRACING = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_SDK_DISABLED",
)


class SettingsError(Exception):
    """An environment variable is wrong; the message says which and what to write."""


@dataclass(frozen=True, slots=True)
class PodSettings:
    """How this installation's model pods look. A change of most of these makes new pods."""

    namespace: str = DEFAULT_NAMESPACE
    vllm_image: str = "vllm/vllm-openai:latest"
    sidecar_image: str = "ghcr.io/greenthread/sidecar:latest"
    #: Folder of the model store on every node, mounted at the same path; "": none, models are downloaded into the pod.
    models_path: str = ""
    #: Secret, in each Model's namespace, whose key ``token`` is a Hugging Face token; "": none.
    hf_token_secret: str = ""
    runtime_class: str = ""
    #: For Models that name none; "": the namespace's default.
    service_account: str = ""
    #: User and group of both containers, so that the sidecar may signal the engine. None: the images' own.
    run_as_user: int | None = 65532
    #: ``--enable-sleep-mode`` is refused by vLLM on CPU, where sleeping works without it.
    sleep_mode_flag: bool = True
    #: vLLM's ``--sleep-mode-backend``: ``cumem`` (its own) or ``greenthread`` (vllm_sleep, which needs vLLM 0.33).
    sleep_backend: str = "cumem"
    #: Whether sleeping engines are taken off the GPU altogether; a Model's annotation says otherwise for itself.
    checkpoint: bool = False
    #: HEARTBEAT of every sidecar, a duration; "": the sidecar's own default.
    heartbeat: str = ""
    #: OpenTelemetry's variables of every sidecar; none: no traces.
    tracing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Settings:
    pods: PodSettings
    #: Identity in the Lease; unique among the replicas.
    identity: str
    lease_name: str = "greenthread-controller"
    #: Address of the gateway without a path, ``http://host:port``; "": there is none.
    gateway_url: str = f"http://greenthread-apiserver.{DEFAULT_NAMESPACE}.svc"
    #: Gateway (Gateway API) that the Models' HTTPRoutes attach to, ``namespace/name``; "": no routes are made.
    route_gateway: str = f"{DEFAULT_NAMESPACE}/greenthread"
    #: Longest request through a route, as the Gateway API writes it.
    route_timeout: str = "300s"
    #: Port of /metrics and /healthz; None: not served.
    metrics_port: int | None = None
    #: Reconciles under way at once.
    workers: int = 8
    #: Seconds between two full lists that check what the watches said.
    audit_every: float = 600.0

    @property
    def namespace(self) -> str:
        return self.pods.namespace

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Raises SettingsError."""
        namespace = env.get("GREENTHREAD_NAMESPACE") or DEFAULT_NAMESPACE
        default = PodSettings()
        pods = PodSettings(
            namespace=namespace,
            vllm_image=env.get("GREENTHREAD_VLLM_IMAGE") or default.vllm_image,
            sidecar_image=env.get("GREENTHREAD_SIDECAR_IMAGE") or default.sidecar_image,
            models_path=env.get("GREENTHREAD_MODELS_PATH", "").rstrip("/"),
            hf_token_secret=env.get("GREENTHREAD_HF_TOKEN_SECRET", ""),
            runtime_class=env.get("GREENTHREAD_RUNTIME_CLASS", ""),
            service_account=env.get("GREENTHREAD_POD_SERVICE_ACCOUNT", ""),
            run_as_user=_number(env, "GREENTHREAD_RUN_AS_USER", default.run_as_user),
            sleep_mode_flag=_switch(env, "GREENTHREAD_ENABLE_SLEEP_MODE", default.sleep_mode_flag),
            sleep_backend=env.get("GREENTHREAD_SLEEP_BACKEND") or default.sleep_backend,
            checkpoint=_switch(env, "GREENTHREAD_CHECKPOINT", default.checkpoint),
            heartbeat=env.get("GREENTHREAD_HEARTBEAT", ""),
            tracing=tuple((name, env[name]) for name in TRACING if env.get(name)),
        )
        if pods.sleep_backend not in SLEEP_BACKENDS:
            raise SettingsError(
                f"GREENTHREAD_SLEEP_BACKEND={pods.sleep_backend!r}: write {' or '.join(SLEEP_BACKENDS)}"
            )
        try:
            parse_duration(pods.heartbeat or "0s")
        except ValueError as error:
            raise SettingsError(f"GREENTHREAD_HEARTBEAT: {error}") from None
        if pods.models_path and not pods.models_path.startswith("/"):
            raise SettingsError(f"GREENTHREAD_MODELS_PATH={pods.models_path!r} must be an absolute path")
        gateway = env.get("GREENTHREAD_ROUTE_GATEWAY", f"{namespace}/greenthread")
        if gateway and gateway.count("/") != 1:
            raise SettingsError(
                f"GREENTHREAD_ROUTE_GATEWAY={gateway!r}: write namespace/name of the Gateway, or nothing"
            )
        return cls(
            pods=pods,
            identity=env.get("POD_NAME") or f"{os.uname().nodename}-{os.getpid()}",
            lease_name=env.get("GREENTHREAD_LEASE_NAME") or cls.lease_name,
            gateway_url=env.get("GREENTHREAD_GATEWAY_URL", f"http://greenthread-apiserver.{namespace}.svc").rstrip("/"),
            route_gateway=gateway,
            route_timeout=env.get("GREENTHREAD_REQUEST_TIMEOUT") or cls.route_timeout,
            metrics_port=_number(env, "METRICS_PORT", None),
        )


def _number(env: Mapping[str, str], name: str, default: int | None) -> int | None:
    """A number from the environment; set but empty means None."""
    text = env.get(name)
    if text is None:
        return default
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise SettingsError(f"{name}={text!r} is not a whole number")
    return int(text)


def _switch(env: Mapping[str, str], name: str, default: bool) -> bool:
    text = env.get(name, "").lower()
    if not text:
        return default
    if text not in ("true", "false", "1", "0"):
        raise SettingsError(f"{name}={text!r}: write true or false")
    return text in ("true", "1")
