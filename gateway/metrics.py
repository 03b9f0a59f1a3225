"""The gateway's metrics, `gthread_apiserver_*`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from gateway.usage import tokens
from greenthread.kube.resources import Key
from proxy.exchange import Exchange
from proxy.routes import Respond

MAX_MODELS = 2000
"""Models with series of their own; further ones are counted together as `other`."""

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
_NONE: Key = ("", "")
_OTHER: Key = ("", "other")


class _Tally:
    """Of one model: finished requests by status, how long they took, and the tokens that their answers told of."""

    __slots__ = ("buckets", "codes", "completion", "prompt", "seconds")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.buckets = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0
        self.prompt = self.completion = 0


class Metrics(Collector):
    """Counts finished requests. `model` is `namespace/name` of a Model that exists, "" for a request without one.

    Plain numbers, made into Prometheus's families when somebody scrapes: requests pay no locks.
    """

    def __init__(self) -> None:
        self._tallies: dict[Key, _Tally] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def follow(self, in_flight: Callable[[], int], held: Callable[[], int], models: Callable[[], int]) -> None:
        """Where the gauges read their values."""
        for name, text, value in (
            ("in_flight_requests", "Requests that are not answered yet.", in_flight),
            ("held_requests", "Requests that wait for a ready endpoint.", held),
            ("models", "Models known.", models),
        ):
            Gauge(f"gthread_apiserver_{name}", text, registry=self._registry).set_function(value)

    def observe(self, exchange: Exchange, seconds: float) -> None:
        """A request is finished."""
        key: Key = exchange.tag or _NONE
        tally = self._tallies.get(key)
        if tally is None:
            key = key if len(self._tallies) < MAX_MODELS else _OTHER
            tally = self._tallies.setdefault(key, _Tally())
        status = exchange.status
        tally.codes[status] = tally.codes.get(status, 0) + 1
        tally.buckets[bisect_left(_BUCKETS, seconds)] += 1
        tally.seconds += seconds
        if exchange.first:
            prompt, completion = tokens(exchange.first, exchange.last)
            tally.prompt += prompt
            tally.completion += completion

    def forget(self, key: Key) -> None:
        """A Model is gone: so are its series."""
        self._tallies.pop(key, None)

    def collect(self) -> Iterator[Metric]:
        """The families of this moment."""
        requests = CounterMetricFamily(
            "gthread_apiserver_requests", "Requests finished; code 499: the client left.", labels=["model", "code"]
        )
        duration = HistogramMetricFamily(
            "gthread_apiserver_request_duration_seconds",
            "From a request's head to the end of its answer, waiting included.",
            labels=["model"],
        )
        spent = CounterMetricFamily(
            "gthread_apiserver_tokens",
            "Tokens that answers told of in their usage; kind prompt or completion.",
            labels=["model", "kind"],
        )
        for key, tally in self._tallies.items():
            model = "/".join(filter(None, key))
            for code, count in tally.codes.items():
                requests.add_metric([model, str(code)], count)
            total, buckets = 0, []
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), tally.buckets, strict=True):
                total += count
                buckets.append((bound, float(total)))
            duration.add_metric([model], buckets, tally.seconds)
            if model:
                spent.add_metric([model, "prompt"], tally.prompt)
                spent.add_metric([model, "completion"], tally.completion)
        yield requests
        yield duration
        yield spent

    def scrape(self) -> Respond:
        """The answer to GET /metrics."""
        return Respond(200, [("Content-Type", CONTENT_TYPE_LATEST)], generate_latest(self._registry))
