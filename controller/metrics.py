"""The controller's and the agent's numbers, and the small server that shows them."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest


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
        self.models = Gauge("gthread_controller_models", "Models known.", registry=self.registry)
        self.leader = Gauge("gthread_controller_leader", "1 while this replica leads.", registry=self.registry)


async def serve(port: int, registry: CollectorRegistry, healthy: Callable[[], str]) -> web.AppRunner:
    """Serves /metrics and /healthz on all addresses; `healthy` returns what is wrong, or "". `cleanup()` ends it."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(_: web.Request) -> web.Response:
        wrong = healthy()
        return web.Response(text=(wrong or "ok") + "\n", status=503 if wrong else 200)

    app = web.Application(client_max_size=1024)
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", health)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
