"""The gateway's metrics, `gthread_apiserver_*`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from greenthread.kube.resources import Key
from proxy.exchange import Exchange
from proxy.routes import Respond

MAX_MODELS = 2000
"""Models with series of their own; further ones are counted together as `other`."""

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts finished requests. `model` is `namespace/name` of a Model that exists, "" for a request without one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gthread_apiserver_requests", "Requests finished.", ["model", "code"], registry=self.registry
        )
        self._duration = Histogram(
            "gthread_apiserver_request_duration_seconds",
            "From a request's head to the end of its answer, waiting included.",
            ["model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "gthread_apiserver_in_flight_requests", "Requests that are not answered yet.", registry=self.registry
        )
        self._held = Gauge(
            "gthread_apiserver_held_requests", "Requests that wait for a ready endpoint.", registry=self.registry
        )
        self._known = Gauge("gthread_apiserver_models", "Models known.", registry=self.registry)
        self._counters: dict[tuple[Key | None, int], Counter] = {}
        self._histograms: dict[Key | None, Histogram] = {}

    def follow(self, in_flight: Callable[[], int], held: Callable[[], int], models: Callable[[], int]) -> None:
        """Where the gauges read their values."""
        self._in_flight.set_function(in_flight)
        self._held.set_function(held)
        self._known.set_function(models)

    def _label(self, key: Key | None) -> str:
        if key is None:
            return ""
        return f"{key[0]}/{key[1]}" if key in self._histograms or len(self._histograms) < MAX_MODELS else "other"

    def observe(self, exchange: Exchange, seconds: float) -> None:
        """A request is finished."""
        key: Key | None = exchange.tag
        counter = self._counters.get((key, exchange.status))
        if counter is None:
            counter = self._requests.labels(self._label(key), str(exchange.status))
            if len(self._counters) < 20 * MAX_MODELS:
                self._counters[key, exchange.status] = counter
        counter.inc()
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._duration.labels(self._label(key))
            if len(self._histograms) < MAX_MODELS:
                self._histograms[key] = histogram
        histogram.observe(seconds)

    def forget(self, key: Key) -> None:
        """A Model is gone: so are its series."""
        if self._histograms.pop(key, None) is not None:
            self._duration.remove(f"{key[0]}/{key[1]}")
        for known, code in [pair for pair in self._counters if pair[0] == key]:
            del self._counters[known, code]
            try:
                self._requests.remove(f"{key[0]}/{key[1]}", str(code))
            except KeyError:
                pass  # it was counted as `other`

    def scrape(self) -> Respond:
        """The answer to GET /metrics."""
        return Respond(200, [("Content-Type", CONTENT_TYPE_LATEST)], generate_latest(self.registry))
