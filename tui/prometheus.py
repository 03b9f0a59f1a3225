"""The charts' numbers from Prometheus. Blocking: for a thread."""

from __future__ import annotations

from greenthread.kube.blocking import Client
from greenthread.kube.config import ClusterConfig
from greenthread.prometheus import Prometheus, find
from tui.measures import BUCKETS, Chart, Curve
from tui.series import Point

POINTS = 120
_SIDECAR = "gthread_sidecar_"


class Measured:
    """Asks for all charts in one question; finds Prometheus once. `bytes_of_all`: memory of all GPUs."""

    def __init__(self, config: ClusterConfig, timeout: float = 5.0) -> None:
        self._config, self._timeout = config, timeout
        self._found: Prometheus | None = None
        self._nowhere = False

    def __call__(self, since: float, until: float, bytes_of_all: float) -> list[Chart]:
        """The charts that it has numbers for; none where there is no Prometheus. KubeError."""
        if self._nowhere:
            return []
        if self._found is None:
            client = Client(self._config)
            address = find(client)
            if address is None:
                self._nowhere = True
                return []
            self._found = Prometheus(client, address, self._timeout)
        return charts(self._found, since, until, bytes_of_all)


def charts(prometheus: Prometheus, since: float, until: float, bytes_of_all: float) -> list[Chart]:
    """As `tui.measures.charts`, for what Prometheus knows. PrometheusError."""
    step = (until - since) / POINTS
    window, part = f"{max(step * 2, 60):.0f}s", f"{max(step * 2, (until - since) / BUCKETS, 60):.0f}s"
    wakes = f"sum by (le) (increase({_SIDECAR}wake_duration_seconds_bucket[{part}]))"
    asked = {
        "p50": f"histogram_quantile(0.5, {wakes})",
        "p99": f"histogram_quantile(0.99, {wakes})",
        "requests": f"sum(rate({_SIDECAR}requests_total[{window}]))",
        "in_flight": f"sum({_SIDECAR}in_flight_requests)",
        "queued": f"sum({_SIDECAR}queue_depth)",
        "preempted": f'sum(increase({_SIDECAR}preemptions_total{{role="preempted"}}[{part}]))',
        "memory": f"100 * sum({_SIDECAR}gpu_memory_reserved_bytes) / {bytes_of_all or 1:.0f}",
        "foreign": f"100 * sum(gthread_agent_gpu_foreign_memory_bytes) / {bytes_of_all or 1:.0f}",
    }
    # all in one query: a proxy in between makes every question dear
    one = " or ".join(f'label_replace({text}, "ask", "{name}", "", "")' for name, text in asked.items())
    known: dict[str, list[Point]] = {name: [] for name in asked}
    for line in prometheus.query_range(one, since, until, max(step, 1.0)):
        known.setdefault(line.labels.get("ask", ""), []).extend(p for p in line.points if p[1] == p[1])

    def curve(name: str, title: str, colour: str) -> Curve:
        return Curve(title, colour, known[name])

    gap = max(3 * step, 15.0)
    found = [
        Chart("WAKE LATENCY", "s", [curve("p50", "p50", "waking"), curve("p99", "p99", "deactivating")], gap=gap),
        Chart("REQUESTS", "/s", [curve("requests", "all models", "serving")], gap=gap),
        Chart("QUEUE", "", [curve("in_flight", "in flight", "serving"), curve("queued", "queued", "pending")], gap=gap),
        Chart("PREEMPTIONS", "", [curve("preempted", f"each {part}", "deactivating")], top=1, gap=gap),
        Chart("GPU MEMORY", "%", [curve("memory", "models", "serving"), curve("foreign", "other programs", "dim")],
              top=100, gap=gap),
    ]  # fmt: skip
    return [chart for chart in found if any(each.points for each in chart.curves)]
