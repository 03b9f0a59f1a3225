"""Names that several parts of the product, or its users, rely on."""

GROUP = "greenthread.ai"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

#: Namespace of an installation unless it is told otherwise; the GPU objects live there.
DEFAULT_NAMESPACE = "greenthread-system"

LABEL_MODEL = f"{GROUP}/model"
LABEL_ORDINAL = f"{GROUP}/ordinal"
#: On a GPU: its node.
LABEL_NODE = f"{GROUP}/node"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
POD_APP_NAME = "greenthread-model"
MANAGED_BY = "greenthread"

#: What a person asks of a Model: RFC 3339 time of the wish, see ``greenthread.clock.format_time``.
ANNOTATION_WAKE = f"{GROUP}/wake"
ANNOTATION_SLEEP = f"{GROUP}/sleep"
ANNOTATION_PREEMPT = f"{GROUP}/preempt"
#: ``vllm`` (default) or ``command``.
ANNOTATION_ENGINE = f"{GROUP}/engine"

#: On a model's pod: comma-separated GPU indices, chosen by the controller.
ANNOTATION_GPUS = f"{GROUP}/gpus"
SLEEP_BACKENDS = ("cumem", "greenthread")
"""How vLLM sleeps: by its own backend, or by ours (vllm_sleep)."""
ANNOTATION_CHECKPOINT = f"{GROUP}/checkpoint"
"""On a Model: ``true`` takes its sleeping engine off the GPU altogether, ``false`` does not; else as installed."""
ANNOTATION_KEEP_KV_CACHE = f"{GROUP}/keep-kv-cache"
"""On a Model: ``true`` has the sleep backend ``greenthread`` keep the KV cache as well."""
#: On a model's pod: JSON written by its sidecar, at most once a second.
ANNOTATION_REPORT = f"{GROUP}/report"
#: On a model's pod: bytes on each GPU, measured by its sidecar at first boot.
ANNOTATION_SERVING_MEMORY = f"{GROUP}/serving-memory-per-gpu"
#: On a pod of one machine: JSON {port name: allocated number}, written by the supervisor.
ANNOTATION_PORTS = f"{GROUP}/ports"
#: On a GPU: why its agent calls the device unusable, or its numbers stale.
ANNOTATION_FAULT = f"{GROUP}/fault"
#: On an Event: JSON of the wake's or sleep's record.
ANNOTATION_RECORD = f"{GROUP}/record"

FINALIZER = f"{GROUP}/drain"

#: Seconds after which a wish in an annotation is too old to be obeyed.
WISH_EXPIRES = 300.0
