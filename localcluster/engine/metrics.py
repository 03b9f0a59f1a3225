"""vLLM's metrics, in Prometheus' text format, under the names of vLLM 0.32."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_COUNT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_OPERATION = (0.01, 0.1, 1, 10, 30, 60, 120, 300, 600)
_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vllm:request_prompt_tokens": ("Number of prefill tokens processed.", _COUNT),
    "vllm:request_generation_tokens": ("Number of generation tokens processed.", _COUNT),
    "vllm:time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _FIRST),
    "vllm:inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _TOKEN),
    "vllm:request_time_per_output_token_seconds": ("Histogram of time per output token per request.", _TOKEN),
    "vllm:e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _LATENCY),
    "vllm:request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _LATENCY),
    "vllm:request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _LATENCY),
    "vllm:request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _LATENCY),
    "vllm:request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _LATENCY),
}
_REASONS = ("abort", "error", "length", "stop", "repetition")
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


class Counted(Protocol):
    """What the metrics ask of a request."""

    prompt_tokens: int
    generated_tokens: int


class Histogram:
    """Counts by upper bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """The text of its buckets, count and sum."""
        total = 0
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            total += count
            shown = "+Inf" if bound == float("inf") else str(float(bound))
            yield f'{name}_bucket{{{labels},le="{shown}"}} {total}'
        yield f"{name}_count{{{labels}}} {total}"
        yield f"{name}_sum{{{labels}}} {self.sum:.6f}"


class RequestTimes:
    """The clock of one request."""

    def __init__(self, metrics: Metrics, work: Counted) -> None:
        self._metrics, self._work = metrics, work
        self._arrived = time.monotonic()
        self._admitted: float | None = None
        self.first: float | None = None
        self.last = 0.0

    def admitted(self) -> None:
        """The request runs now."""
        self._admitted = time.monotonic()

    def token(self) -> None:
        """A token came."""
        now = time.monotonic()
        if self.first is None:
            self.first = now
            self._metrics.observe("vllm:time_to_first_token_seconds", now - self._arrived)
        else:
            self._metrics.observe("vllm:inter_token_latency_seconds", now - self.last)
        self.last = now

    def ended(self, reason: str) -> None:
        """The request ended, in one of vLLM's reasons."""
        metrics, work, now = self._metrics, self._work, time.monotonic()
        metrics.forget(work)
        metrics.finished[reason] += 1
        if self._admitted is None:
            return
        metrics.prompt_tokens += work.prompt_tokens
        metrics.generation_tokens += work.generated_tokens
        first, last = self.first or now, self.last or now
        metrics.observe("vllm:request_prompt_tokens", work.prompt_tokens)
        metrics.observe("vllm:request_generation_tokens", work.generated_tokens)
        metrics.observe("vllm:e2e_request_latency_seconds", now - self._arrived)
        metrics.observe("vllm:request_queue_time_seconds", self._admitted - self._arrived)
        metrics.observe("vllm:request_inference_time_seconds", last - self._admitted)
        metrics.observe("vllm:request_prefill_time_seconds", first - self._admitted)
        metrics.observe("vllm:request_decode_time_seconds", last - first)
        if work.generated_tokens > 1:
            metrics.observe("vllm:request_time_per_output_token_seconds", (last - first) / (work.generated_tokens - 1))


class Metrics:
    """All of one engine's metrics."""

    def __init__(self, model: str) -> None:
        escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self._labels = f'engine="0",model_name="{escaped}"'
        self._started = time.time()
        self._histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self._operations: dict[str, Histogram] = {}
        self._operating: dict[str, int] = {}
        self._requests: dict[int, RequestTimes] = {}
        self.finished = dict.fromkeys(_REASONS, 0)
        self.running = self.waiting = 0
        self.prompt_tokens = self.generation_tokens = 0

    def request(self, work: Counted) -> RequestTimes:
        """Start the clock of a request."""
        times = self._requests[id(work)] = RequestTimes(self, work)
        return times

    def forget(self, work: Counted) -> None:
        """The request has ended."""
        self._requests.pop(id(work), None)

    def token(self, work: Counted) -> None:
        """A token of a request came."""
        self._requests[id(work)].token()

    def observe(self, name: str, value: float) -> None:
        """Count a value in a histogram."""
        self._histograms[name].observe(value)

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Time one `sleep` or `wake`."""
        self._operating[name] = self._operating.get(name, 0) + 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._operating[name] -= 1
            self._operations.setdefault(name, Histogram(_OPERATION)).observe(time.monotonic() - began)

    def text(self, sleep_state: str) -> str:
        """Everything, as Prometheus reads it."""
        labels = self._labels
        busy = 0.0 if sleep_state != "awake" else min(self.running / 256, 1.0)
        lines = []
        for name, kind, text, value in (
            ("num_requests_running", "gauge", "Number of requests in model execution batches.", self.running),
            ("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", self.waiting),
            ("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", busy),
            ("num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", 0),
            ("prompt_tokens_total", "counter", "Number of prefill tokens processed.", self.prompt_tokens),
            ("generation_tokens_total", "counter", "Number of generation tokens processed.", self.generation_tokens),
        ):
            lines += [*_head(f"vllm:{name}", kind, text), f"vllm:{name}{{{labels}}} {float(value)}"]
        lines += [
            *_head("vllm:engine_sleep_state", "gauge", "Engine sleep state: 1 for the state it is in."),
            *(
                f'vllm:engine_sleep_state{{{labels},sleep_state="{state}"}} {float(state == sleep_state)}'
                for state in _SLEEP_STATES
            ),
            *_head("vllm:request_success_total", "counter", "Count of successfully processed requests."),
            *(
                f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(count)}'
                for reason, count in self.finished.items()
            ),
        ]
        for name, (text, _) in _HISTOGRAMS.items():
            lines += [*_head(name, "histogram", text), *self._histograms[name].lines(name, labels)]
        name = "vllm:sleep_mode_operation_duration_seconds"
        lines += _head(name, "histogram", "Duration of one sleep-mode operation.")
        for operation, histogram in self._operations.items():
            lines += histogram.lines(name, f'operation="{operation}"')
        name = "vllm:sleep_mode_operations_in_flight"
        lines += _head(name, "gauge", "Sleep-mode operations currently awaited.")
        lines += [f'{name}{{operation="{operation}"}} {count}' for operation, count in self._operating.items()]
        lines += _head("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.")
        lines += [f"process_start_time_seconds {self._started}"]
        lines += _head("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.")
        lines += [f"process_resident_memory_bytes {_resident_bytes()}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
