"""The sidecar's metrics, under the names users rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class SidecarState(StrEnum):
    SLEEPING = "sleeping"
    PENDING = "pending"
    WAKING = "waking"
    SERVING = "serving"
    DEACTIVATING = "deactivating"


_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120, 300)


class Tally:
    """A counter without a lock, for what happens with every request."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        self.value += 1


class _Requests(Collector):
    def __init__(self, name: str, success: Tally, error: Tally) -> None:
        self._name, self._tallies = name, {"success": success, "error": error}

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, "Requests that ended.", labels=["status"])
        for status, tally in self._tallies.items():
            family.add_metric([status], tally.value)
        yield family


class Metrics:
    """One registry for each sidecar, so that many may live in one process."""

    def __init__(self, gpu_indices: Sequence[int]) -> None:
        self.registry = CollectorRegistry()
        prefix = "gthread_sidecar_"
        self._state = Gauge(prefix + "state", "Current state; exactly one is 1.", ["state"], registry=self.registry)
        self.wake_duration = Histogram(
            prefix + "wake_duration_seconds",
            "From the first wish to serving.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.sleep_duration = Histogram(
            prefix + "sleep_duration_seconds", "Drain and release.", buckets=_SECONDS, registry=self.registry
        )
        self.success, self.error = Tally(), Tally()
        self.registry.register(_Requests(prefix + "requests", self.success, self.error))
        self._queue = Gauge(prefix + "queue_depth", "Requests that wait.", registry=self.registry)
        self._in_flight = Gauge(prefix + "in_flight_requests", "Requests in the engine.", registry=self.registry)
        reserved = Gauge(
            prefix + "gpu_memory_reserved_bytes", "Bytes this pod has claimed.", ["gpu"], registry=self.registry
        )
        serving = Gauge(
            prefix + "gpu_memory_serving_bytes", "Bytes measured while serving.", ["gpu"], registry=self.registry
        )
        self._reserved = [reserved.labels(str(index)) for index in gpu_indices]
        self._serving = [serving.labels(str(index)) for index in gpu_indices]
        preemptions = Counter(prefix + "preemptions_total", "Preemptions.", ["role"], registry=self.registry)
        self.preempted, self.preemptor = preemptions.labels("preempted"), preemptions.labels("preemptor")
        self.barrier_timeouts = Counter(
            prefix + "preemption_barrier_timeouts_total",
            "Drains that ended by drainTimeout with requests still in flight.",
            registry=self.registry,
        )
        self.wake_deduplications = Counter(
            prefix + "wake_deduplications_total", "Requests that joined a wake under way.", registry=self.registry
        )
        failures = Counter(
            prefix + "failures_total", "Wakes and boots of the engine that failed.", ["kind"], registry=self.registry
        )
        self.failed_wakes, self.failed_boots = failures.labels("wake"), failures.labels("boot")
        self.cas_conflicts = Counter(
            prefix + "gpu_cas_conflicts_total", "Writes of GPU objects that were refused.", registry=self.registry
        )
        self.set_state(SidecarState.SLEEPING)

    def set_state(self, state: SidecarState) -> None:
        for each in SidecarState:
            self._state.labels(str(each)).set(each is state)

    def set_reserved(self, count: int) -> None:
        for gauge in self._reserved:
            gauge.set(count)

    def set_serving(self, counts: Sequence[int]) -> None:
        for gauge, count in zip(self._serving, counts, strict=True):
            gauge.set(count)

    def follow(self, waiting: Callable[[], int], in_flight: Callable[[], int]) -> None:
        """Where the queue's gauges are read from, at scrape time."""
        self._queue.set_function(waiting)
        self._in_flight.set_function(in_flight)

    def text(self) -> bytes:
        return generate_latest(self.registry)
