"""The controller's and the agent's numbers, and the small server that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from greenthread.kube.aio import AsyncClient

PHASES = ("Pending", "Converting", "Staging", "Ready", "Failed")
"""Of a Model; one without a status counts as Pending."""


class ControllerMetrics:
    """Names are part of the product: dashboards and alerts use them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "gthread_controller_reconciles",
            "Reconciles of a Model by result.",
            ["result"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "gthread_controller_reconcile_duration_seconds",
            "Time of one reconcile.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.queue = Gauge("gthread_controller_queue_depth", "Models that wait for a turn.", registry=self.registry)
        self.leader = Gauge("gthread_controller_leader", "1 while this replica leads.", registry=self.registry)

    def follow(self, phases: Callable[[], Mapping[str, int]]) -> None:
        """Where the number of Models in each phase is read from, when somebody scrapes."""
        self.registry.register(_Models(phases))


class _Models(Collector):
    def __init__(self, phases: Callable[[], Mapping[str, int]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("gthread_controller_models", "Models known, by phase.", labels=["phase"])
        counts = self._phases()
        for phase in PHASES:
            family.add_metric([phase], counts.get(phase, 0))
        yield family


class ApiRequests(Collector):
    """Requests of one client to the Kubernetes API; watches are not counted. At most verbs × kinds × statuses."""

    def __init__(self, name: str, client: AsyncClient) -> None:
        self._name, self._client = name, client

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            self._name, "Requests to the Kubernetes API; code 0: no answer.", labels=["method", "resource", "code"]
        )
        for (method, resource, code), count in self._client.answers.items():
            family.add_metric([method, resource, str(code)], count)
        yield family


class AgentMetrics:
    """Labels are devices of one node: at most as many series as it has GPUs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.looks = Counter(
            "gthread_agent_looks", "Looks at the devices by result.", ["result"], registry=self.registry
        )
        self.duration = Histogram(
            "gthread_agent_look_duration_seconds",
            "Time of one look, with its writes.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.writes = Counter(
            "gthread_agent_writes", "Writes of GPU objects by result.", ["result"], registry=self.registry
        )
        self.faults = Gauge(
            "gthread_agent_gpu_fault", "1 while a device cannot be used.", ["gpu"], registry=self.registry
        )
        self.foreign = Gauge(
            "gthread_agent_gpu_foreign_memory_bytes",
            "Used on a device beyond the awake engines' own processes.",
            ["gpu"],
            registry=self.registry,
        )
        self.cleaned = Counter(
            "gthread_agent_cleanups",
            "Writes that took away what pods that are gone had left, or said who is down.",
            registry=self.registry,
        )


async def serve(port: int, registry: CollectorRegistry, unready: Callable[[], str]) -> web.AppRunner:
    """Serves /metrics, /healthz and /readyz on all addresses; `unready`: what is wrong, or "". `cleanup()` ends it."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        wrong = unready()
        return web.Response(text=(wrong or "ok") + "\n", status=503 if wrong else 200)

    app = web.Application(client_max_size=1024)
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", health), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
