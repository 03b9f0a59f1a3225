"""The gateway, put together: watches, directory, gates, router, server."""

from __future__ import annotations

import asyncio
import logging

from gateway.directory import Directory, Object
from gateway.holds import Holds
from gateway.metrics import Metrics
from gateway.router import GatewayRouter, MetricsRouter
from gateway.settings import Settings
from gateway.usage import tokens
from greenthread.kube.aio import AsyncClient
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import ENDPOINT_SLICES, GPUS, MODELS, Key, key_of
from proxy.exchange import Exchange
from proxy.server import ProxyServer
from proxy.settings import Settings as ProxySettings
from proxy.tracing import Attributes, Tracing

logger = logging.getLogger(__name__)


def described(exchange: Exchange) -> Attributes:
    """What a span says of a request, beside what the proxy knows."""
    if exchange.tag is None:
        return {}
    found: Attributes = {"greenthread.model.namespace": exchange.tag[0], "gen_ai.request.model": exchange.tag[1]}
    if exchange.first:
        prompt, completion = tokens(exchange.first, exchange.last)
        if prompt or completion:
            found |= {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": completion}
    return found


class Gateway:
    """One address for all Models of a cluster."""

    def __init__(self, settings: Settings, client: AsyncClient, tracing: Tracing | None = None) -> None:
        """Must be made inside a running loop."""
        self.settings = settings
        self.directory = Directory(self._changed)
        self.holds = Holds(self.directory, settings)
        self.metrics = Metrics()
        self._reflectors = {
            "models": Reflector(client, MODELS, on_event=self._on_model),
            "endpointslices": Reflector(client, ENDPOINT_SLICES, on_event=self.directory.slice_event),
            "gpus": Reflector(client, GPUS, settings.namespace, on_event=self.directory.gpu_event),
        }
        self._waiting_for = set(self._reflectors)
        self._tasks: list[asyncio.Task[None]] = []
        self._started = 0
        self.holds.starting.why = self._not_ready
        apart = settings.metrics_port is not None
        scrape = None if apart else self.metrics.scrape
        router = GatewayRouter(self.directory, self.holds, settings, self._not_ready, scrape)
        self.server = ProxyServer(router, ProxySettings(heartbeat=settings.heartbeat), self._finished, tracing)
        self.scraped = ProxyServer(MetricsRouter(self.metrics.scrape)) if apart else None
        self.metrics_port = 0  # of the above, once it listens
        self.metrics.follow(lambda: self.server.in_flight, lambda: self.holds.held, lambda: len(self.directory.models))

    def _changed(self, key: Key) -> None:
        self.holds.changed(key)

    def _on_model(self, kind: str, obj: Object) -> None:
        self.directory.model_event(kind, obj)
        if kind == "DELETED":
            self.metrics.forget(key_of(dict(obj)))

    def _not_ready(self) -> str:
        """Why nothing can be routed yet; GPUs only make the choice better and are not waited for."""
        if not self._waiting_for:
            return ""
        missing = sorted(self._waiting_for - {"gpus"})
        if not missing:
            return ""
        error = self._reflectors[missing[0]].error
        return f"it has not read the {' and '.join(missing)} yet" + (f" ({error})" if error else "")

    def _finished(self, exchange: Exchange) -> None:
        self.metrics.observe(exchange, self.server.loop.time() - exchange.started)

    async def start(self) -> int:
        """Listen and begin to watch; returns the port. Raises OSError when an address is taken."""
        port = await self.server.start(self.settings.host, self.settings.port)
        if self.scraped is not None:
            self.metrics_port = await self.scraped.start(self.settings.host, self.settings.metrics_port or 0)
        for name, reflector in self._reflectors.items():
            self._tasks.append(asyncio.create_task(reflector.run(), name=f"watch {name}"))
            self._tasks.append(asyncio.create_task(self._note_synced(name), name=f"sync {name}"))
        return port

    async def _note_synced(self, name: str) -> None:
        await self._reflectors[name].synced()
        self._waiting_for.discard(name)
        if not self._not_ready():
            self.holds.starting.over.set()
        if not self._waiting_for:
            logger.info("ready: %d models", len(self.directory.models))

    async def ready(self) -> None:
        """Return when all has been read once."""
        await asyncio.gather(*(reflector.synced() for reflector in self._reflectors.values()))
        self._waiting_for.clear()
        self.holds.starting.over.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set, then drain. Raises what ends a watch for good (a mistake of ours)."""
        waiter = asyncio.create_task(stop.wait())
        watches = [task for task in self._tasks if task.get_name().startswith("watch")]
        done, _ = await asyncio.wait([waiter, *watches], return_when=asyncio.FIRST_COMPLETED)
        try:
            for task in done:
                task.result()
        finally:
            waiter.cancel()
            await self.stop()

    async def stop(self) -> None:
        """Stop accepting, tell who is held, let the rest finish within the grace, end."""
        logger.info("stopping: %d requests in flight, %d held", self.server.in_flight, self.holds.held)
        self.holds.stop()
        await self.server.stop(self.settings.grace)
        if self.scraped is not None:
            await self.scraped.stop(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
