"""Finds a Prometheus and asks it about models. Blocking, standard library only; who shows it decides how long to wait.

Its HTTP interface is asked directly, because that also works through the API server's proxy, with its credentials.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from greenthread import http1
from greenthread.kube.blocking import Client
from greenthread.kube.errors import ApiError, ConfigError, KubeError
from greenthread.kube.resources import SERVICES
from greenthread.reach import Address, through_api_server
from greenthread.values import dataclass

ENVIRONMENT = "GREENTHREAD_PROMETHEUS"
"""Environment variable with its address, or `none`."""
EXTENSION = "greenthread.ai"
"""Name of the kubeconfig extension (of a context or cluster) whose key `prometheus` is its address, or `none`."""
SELECTORS = ("app.kubernetes.io/name=prometheus", "app=kube-prometheus-stack-prometheus")
"""Labels of the Services under which Prometheus is usually installed."""
MAX_BODY = 32 * 1024 * 1024
"""Largest answer, bytes."""
TIMEOUT = 10.0
"""Seconds for which it may be silent, unless the caller is more impatient."""


class PrometheusError(KubeError):
    """It does not answer, or not what was asked; the message is for people."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of an instant query."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a range query: (Unix time, value), oldest first."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class ModelNumbers:
    """What Prometheus knows of one model; None where it knows nothing. Seconds, requests a second."""

    requests: float | None = None
    wake_p50: float | None = None
    wake_p99: float | None = None
    #: Requests a second, oldest first.
    history: tuple[float, ...] = ()


def find(client: Client, given: str = "", environ: Mapping[str, str] = os.environ) -> Address | None:
    """Where Prometheus is: the given address, the environment's, the kubeconfig's, or a Service by the API server's
    proxy; None when there is none, or when one of these says `none`. ConfigError for an address that is none."""
    extension = client.config.extension.get("prometheus")
    for url, how in (
        (given, "the given address"),
        (environ.get(ENVIRONMENT, ""), f"${ENVIRONMENT}"),
        (str(extension or ""), "the kubeconfig"),
    ):
        if url == "none":
            return None
        if url:
            try:
                http1.split_address(url)
            except ValueError as error:
                raise ConfigError(f"Prometheus, by {how}: {error}") from None
            return Address(url.rstrip("/"), how)
    return _by_service(client)


def _by_service(client: Client) -> Address | None:
    for found in client.lists([(SERVICES, None, selector, "") for selector in SELECTORS]):
        if isinstance(found, ApiError):
            continue
        for service in found.items:
            if (service["spec"].get("ports") or [{}])[0].get("port"):
                return through_api_server(client, service)
    return None


class Prometheus:
    """Queries one Prometheus. Raises PrometheusError."""

    def __init__(self, client: Client, address: Address, timeout: float = TIMEOUT) -> None:
        """`timeout`: seconds for which it may be silent."""
        self.address = address
        self._client, self._timeout = client, timeout

    def query(self, expression: str) -> list[Sample]:
        """An instant query."""
        found = self._ask("query", {"query": expression, "timeout": f"{round(self._timeout * 1000)}ms"}, "vector")
        try:
            return [Sample(item["metric"], float(item["value"][1])) for item in found]
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._strange() from None

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """A range query; Unix times and seconds."""
        params = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:g}",
                  "timeout": f"{round(self._timeout * 1000)}ms"}  # fmt: skip
        found = self._ask("query_range", params, "matrix")
        try:
            return [
                Series(item["metric"], tuple((float(at), float(value)) for at, value in item["values"]))
                for item in found
            ]
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._strange() from None

    def version(self) -> str:
        """Its version."""
        found = self._get("/api/v1/status/buildinfo", {})
        return str(found.get("version") or "?") if isinstance(found, dict) else "?"

    def _ask(self, what: str, params: Mapping[str, str], kind: str) -> list[dict[str, Any]]:
        data = self._get(f"/api/v1/{what}", params)
        if not isinstance(data, dict) or data.get("resultType") != kind or not isinstance(data.get("result"), list):
            raise self._strange()
        return list(data["result"])

    def _get(self, path: str, params: Mapping[str, str]) -> Any:
        try:
            with self.address.open(
                self._client, "GET", path, params=params, headers={"accept": "application/json"}, timeout=self._timeout
            ) as stream:
                status, body = stream.status, stream.read_all()
        except PrometheusError:
            raise
        except KubeError as error:
            raise PrometheusError(f"Prometheus by {self.address.how}: {error}") from None
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if status != 200 or not isinstance(answer, dict) or answer.get("status") != "success":
            why = (answer.get("error") or answer.get("message")) if isinstance(answer, dict) else None
            text = " ".join(str(why or body[:120].decode("utf-8", "replace")).split())
            raise PrometheusError(f"Prometheus by {self.address.how} answered {status}: {text[:200]}")
        return answer.get("data")

    def _strange(self) -> PrometheusError:
        return PrometheusError(f"what answers by {self.address.how} is no Prometheus")


RATE = "sum by (namespace, model) (rate(gthread_sidecar_requests_total[1m]))"
"""Requests a second of each model."""


def wake_quantile(quantile: float, window: str = "1h") -> str:
    """The expression for a quantile of the wakes of each model in a window, in seconds."""
    buckets = f"sum by (namespace, model, le) (increase(gthread_sidecar_wake_duration_seconds_bucket[{window}]))"
    return f"histogram_quantile({quantile:g}, {buckets})"


def model_numbers(
    prometheus: Prometheus, now: float, points: int = 12, seconds: float = 600.0
) -> dict[tuple[str, str], ModelNumbers]:
    """Of all models, by namespace and name. `now`: Unix time; `points` of the last `seconds` make the history."""
    named = {"rate": RATE, "p50": wake_quantile(0.5), "p99": wake_quantile(0.99)}
    # all in one query: a proxy in between makes every question dear
    one = " or ".join(f'label_replace({text}, "ask", "{name}", "", "")' for name, text in named.items())
    values: dict[tuple[str, str], dict[str, float]] = {}
    for sample in prometheus.query(one):
        if sample.value == sample.value:  # not NaN: no wake in the window
            values.setdefault(_key(sample.labels), {})[sample.labels.get("ask", "")] = sample.value
    step = seconds / points
    history = {
        _key(line.labels): tuple(value for _, value in line.points)
        for line in prometheus.query_range(RATE, now - seconds + step, now, step)
    }
    return {
        key: ModelNumbers(known.get("rate"), known.get("p50"), known.get("p99"), history.get(key, ()))
        for key, known in values.items()
        if all(key)
    }


def _key(labels: Mapping[str, str]) -> tuple[str, str]:
    return (labels.get("namespace", ""), labels.get("model", ""))


SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as a line of blocks, on the scale of the largest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return SPARKS[0] * len(shown)
    return "".join(SPARKS[min(int(value / top * 8), 7)] for value in shown)
