#!/usr/bin/env python3
"""Writes the Grafana dashboards of the chart: `make dashboards`. Each panel is a line or two here; JSON is for Grafana.

The first row of each answers what somebody who was just woken asks. Metrics that vLLM has renamed stand with their
old name behind `or`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "manifests" / "charts" / "greenthread" / "files" / "dashboards"
#: What the rates are taken over, by Grafana's choice: at least four scrapes.
RATE = "$__rate_interval"
MODELS = 'namespace=~"$namespace", model=~"$model"'


@dataclass(frozen=True)
class Panel:
    """`queries`: expression → legend. `kind`: of Grafana's panels. `width`: of 24 columns."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    help: str = ""
    #: Value → colour from there on.
    steps: dict[float, str] = field(default_factory=dict)
    stack: bool = False


@dataclass(frozen=True)
class Board:
    title: str
    uid: str
    #: Heading → panels.
    rows: dict[str, list[Panel]]
    #: Variable → query of its values.
    variables: dict[str, str] = field(default_factory=dict)


def quantile(q: float, metric: str, by: str, selector: str = MODELS) -> str:
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{selector}}}[{RATE}])))"


def rate(metric: str, selector: str = MODELS) -> str:
    return f"rate({metric}{{{selector}}}[{RATE}])"


def of_models(metric: str, role: str = "") -> str:
    """How much a counter of the sidecars rose in the last hour, by model."""
    return f"sum by (model) (increase(gthread_sidecar_{metric}{{{role}{MODELS}}}[1h]))"


def either(new: str, old: str, expression: str) -> str:
    """`expression` with `{}` for the metric: by its name today, else by the one that older vLLM has."""
    return f"{expression.replace('{}', new)} or {expression.replace('{}', old)}"


BY_MODEL = {
    "namespace": "label_values(gthread_sidecar_state, namespace)",
    "model": "label_values(gthread_sidecar_state, model)",
}
BY_NODE = {"node": "label_values(gthread_agent_looks_total, node)"}
DCGM = 'node=~"$node"'

USED, FREE = f"DCGM_FI_DEV_FB_USED{{{DCGM}}}", f"DCGM_FI_DEV_FB_FREE{{{DCGM}}}"

GPU = Board(
    "GreenThread / GPU",
    "greenthread-gpu",
    {
        "Is there room?": [
            Panel(
                "Memory in use",
                {"sum({}) / sum({} + {})".replace("{}", USED, 2).replace("{}", FREE): ""},
                "percentunit",
                "gauge",
                4,
                steps={0: "green", 0.9: "orange"},
            ),
            Panel(
                "Claimed by models",
                {'sum(gthread_sidecar_gpu_memory_reserved_bytes{node=~"$node"})': ""},
                "bytes",
                "stat",
                4,
                "What engines may use now: the sum of all claims.",
            ),
            Panel(
                "Used by others",
                {'sum(gthread_agent_gpu_foreign_memory_bytes{node=~"$node"})': ""},
                "bytes",
                "stat",
                4,
                "Programs outside GreenThread, and what sleeping engines leave.",
                {0: "green", 2e9: "orange"},
            ),
            Panel(
                "Waiting for memory",
                {'sum(gthread_sidecar_state{state="pending", node=~"$node"})': ""},
                "short",
                "stat",
                4,
                "Models with requests that wait for room.",
                {0: "green", 1: "orange"},
            ),
            Panel(
                "GPUs with a fault",
                {'sum(gthread_agent_gpu_fault{node=~"$node"}) or vector(0)': ""},
                "short",
                "stat",
                4,
                steps={0: "green", 1: "red"},
            ),
            Panel(
                "Agents that look",
                {'count(rate(gthread_agent_looks_total{result="done", node=~"$node"}[2m]) > 0)': ""},
                "short",
                "stat",
                4,
            ),
        ],
        "Memory": [
            Panel(
                "Claimed, by model",
                {'sum by (model) (gthread_sidecar_gpu_memory_reserved_bytes{node=~"$node"})': "{{model}}"},
                "bytes",
                width=12,
                stack=True,
            ),
            Panel(
                "Used on the device",
                {f"DCGM_FI_DEV_FB_USED{{{DCGM}}} * 1048576": "{{Hostname}}/{{gpu}}"},
                "bytes",
                width=12,
            ),
            Panel(
                "Used by others",
                {'gthread_agent_gpu_foreign_memory_bytes{node=~"$node"}': "{{gpu}}"},
                "bytes",
                width=12,
            ),
            Panel(
                "Memory of a model while it serves",
                {'max by (model) (gthread_sidecar_gpu_memory_serving_bytes{node=~"$node"})': "{{model}}"},
                "bytes",
                width=12,
                help="Measured at its first boot, on each GPU.",
            ),
        ],
        "Device": [
            Panel("Utilization", {f"DCGM_FI_DEV_GPU_UTIL{{{DCGM}}}": "{{Hostname}}/{{gpu}}"}, "percent"),
            Panel("Memory copies", {f"DCGM_FI_DEV_MEM_COPY_UTIL{{{DCGM}}}": "{{Hostname}}/{{gpu}}"}, "percent"),
            Panel("Temperature", {f"DCGM_FI_DEV_GPU_TEMP{{{DCGM}}}": "{{Hostname}}/{{gpu}}"}, "celsius"),
            Panel("Power", {f"DCGM_FI_DEV_POWER_USAGE{{{DCGM}}}": "{{Hostname}}/{{gpu}}"}, "watt"),
        ],
    },
    BY_NODE,
)

SUCCESS = rate("gthread_sidecar_requests_total", f'status="success", {MODELS}')
#: The gateway's label `model` has the namespace in it.
TOKENS = rate("gthread_apiserver_tokens_total", 'kind="completion", model=~"$namespace/$model"')

STATES = Board(
    "GreenThread / Models",
    "greenthread-models",
    {
        "Are requests answered?": [
            Panel(
                "Serving", {'count(gthread_sidecar_state{state="serving"} == 1) or vector(0)': ""}, kind="stat", width=4
            ),
            Panel(
                "Asleep", {'count(gthread_sidecar_state{state="sleeping"} == 1) or vector(0)': ""}, kind="stat", width=4
            ),
            Panel(
                "Waiting requests",
                {"sum(gthread_sidecar_queue_depth)": ""},
                kind="stat",
                width=4,
                steps={0: "green", 50: "orange"},
            ),
            Panel(
                "Wake p99",
                {quantile(0.99, "gthread_sidecar_wake_duration_seconds", "job", ""): ""},
                "s",
                "stat",
                4,
                steps={0: "green", 5: "orange", 15: "red"},
            ),
            Panel(
                "Requests that failed",
                {
                    f'sum(rate(gthread_sidecar_requests_total{{status="error"}}[{RATE}]))'
                    f" / clamp_min(sum(rate(gthread_sidecar_requests_total[{RATE}])), 1e-9)": ""
                },
                "percentunit",
                "stat",
                4,
                steps={0: "green", 0.01: "orange", 0.05: "red"},
            ),
            Panel(
                "Wakes and boots that failed",
                {"sum(increase(gthread_sidecar_failures_total[1h]))": ""},
                kind="stat",
                width=4,
                help="In the last hour.",
                steps={0: "green", 1: "red"},
            ),
        ],
        "Requests": [
            Panel(
                "Requests",
                {f"sum by (model) ({SUCCESS})": "{{model}}"},
                "reqps",
                width=6,
            ),
            Panel(
                "Completion tokens a second",
                {f"sum by (model) ({TOKENS})": "{{model}}"},
                width=6,
                help="Told by the gateway's answers. Streams of OpenAI's API tell them when the client asks for it "
                "(stream_options.include_usage); vLLM's own count, on its dashboard, has all.",
            ),
            Panel(
                "In flight", {f"sum by (model) (gthread_sidecar_in_flight_requests{{{MODELS}}})": "{{model}}"}, width=6
            ),
            Panel("In the queue", {f"sum by (model) (gthread_sidecar_queue_depth{{{MODELS}}})": "{{model}}"}, width=6),
        ],
        "Wakes and sleeps": [
            Panel(
                "Time of a wake",
                {
                    quantile(0.5, "gthread_sidecar_wake_duration_seconds", "model"): "{{model}} p50",
                    quantile(0.99, "gthread_sidecar_wake_duration_seconds", "model"): "{{model}} p99",
                },
                "s",
            ),
            Panel(
                "Time of a sleep",
                {quantile(0.99, "gthread_sidecar_sleep_duration_seconds", "model"): "{{model}} p99"},
                "s",
            ),
            Panel(
                "Wakes and sleeps a minute",
                {
                    f"sum(rate(gthread_sidecar_wake_duration_seconds_count{{{MODELS}}}[{RATE}])) * 60": "wakes",
                    f"sum(rate(gthread_sidecar_sleep_duration_seconds_count{{{MODELS}}}[{RATE}])) * 60": "sleeps",
                },
            ),
            Panel(
                "State",
                {
                    f'{number} * sum by (model) (gthread_sidecar_state{{state="{state}", {MODELS}}})': "{{model}} "
                    + state
                    for number, state in enumerate(("pending", "waking", "serving", "deactivating"), 1)
                },
                width=12,
                kind="state-timeline",
            ),
            Panel(
                "Requests that joined a wake under way",
                {f"sum by (model) (rate(gthread_sidecar_wake_deduplications_total{{{MODELS}}}[{RATE}]))": "{{model}}"},
                "reqps",
                width=12,
            ),
        ],
        "Who gives way": [
            Panel(
                "Preemptions",
                {f"sum by (role) (rate(gthread_sidecar_preemptions_total{{{MODELS}}}[{RATE}]))": "{{role}}"},
            ),
            Panel(
                "Preempted, by model",
                {of_models("preemptions_total", 'role="preempted", '): "{{model}}"},
                help="In the last hour.",
            ),
            Panel(
                "Drains that timed out",
                {of_models("preemption_barrier_timeouts_total"): "{{model}}"},
                help="Requests were still in flight at the end of drainTimeout.",
            ),
        ],
    },
    BY_MODEL,
)

SYSTEM = Board(
    "GreenThread / System",
    "greenthread-system",
    {
        "Is it looked after?": [
            Panel("Leader", {"sum(gthread_controller_leader)": ""}, kind="stat", width=4, steps={0: "red", 1: "green"}),
            Panel(
                "Models that are Failed",
                {'max(gthread_controller_models{phase="Failed"})': ""},
                kind="stat",
                width=4,
                steps={0: "green", 1: "red"},
            ),
            Panel("Models", {"sum(max by (phase) (gthread_controller_models))": ""}, kind="stat", width=4),
            Panel(
                "Parts that answer Prometheus",
                {'sum by (job) (up{job=~"greenthread-.*"})': "{{job}}"},
                kind="stat",
                width=12,
            ),
        ],
        "Controller": [
            Panel(
                "Reconciles",
                {f"sum by (result) (rate(gthread_controller_reconciles_total[{RATE}]))": "{{result}}"},
                "ops",
            ),
            Panel(
                "Time of a reconcile",
                {
                    quantile(0.5, "gthread_controller_reconcile_duration_seconds", "job", ""): "p50",
                    quantile(0.99, "gthread_controller_reconcile_duration_seconds", "job", ""): "p99",
                },
                "s",
            ),
            Panel("Models in its queue", {"sum(gthread_controller_queue_depth)": "waiting"}),
            Panel("Models by phase", {"max by (phase) (gthread_controller_models)": "{{phase}}"}, width=12, stack=True),
            Panel(
                "Requests to the Kubernetes API",
                {
                    f"sum by (code) (rate(gthread_{part}_api_requests_total[{RATE}]))": f"{part} {{{{code}}}}"
                    for part in ("controller", "agent")
                },
                "reqps",
                width=12,
            ),
        ],
        "Gateway": [
            Panel(
                "Requests by answer",
                {f"sum by (code) (rate(gthread_apiserver_requests_total[{RATE}]))": "{{code}}"},
                "reqps",
                width=6,
            ),
            Panel(
                "Time of a request",
                {
                    quantile(0.5, "gthread_apiserver_request_duration_seconds", "job", ""): "p50",
                    quantile(0.99, "gthread_apiserver_request_duration_seconds", "job", ""): "p99",
                },
                "s",
                width=6,
                help="Waiting for a wake included.",
            ),
            Panel(
                "Tokens a second",
                {f"sum by (kind) (rate(gthread_apiserver_tokens_total[{RATE}]))": "{{kind}}"},
                width=6,
                help="Of answers whose usage tells them.",
            ),
            Panel(
                "In flight, and held",
                {
                    "sum(gthread_apiserver_in_flight_requests)": "in flight",
                    "sum(gthread_apiserver_held_requests)": "held: no pod is ready",
                },
                width=6,
            ),
        ],
        "Agents and claims": [
            Panel("Looks", {f"sum by (result) (rate(gthread_agent_looks_total[{RATE}]))": "{{result}}"}, "ops"),
            Panel(
                "Time of a look",
                {quantile(0.99, "gthread_agent_look_duration_seconds", "node", ""): "{{node}} p99"},
                "s",
            ),
            Panel(
                "Claims refused",
                {f"sum by (node) (rate(gthread_sidecar_gpu_cas_conflicts_total[{RATE}]))": "{{node}}"},
                "ops",
                help="Another sidecar wrote first; the loser reads again and retries.",
            ),
        ],
    },
)

VLLM = "greenthread-vllm"
OF_MODEL = 'namespace=~"$namespace", model=~"$model"'
ENGINE = Board(
    "GreenThread / vLLM",
    VLLM,
    {
        "Is it fast?": [
            Panel(
                "Time to first token, p99",
                {quantile(0.99, "vllm:time_to_first_token_seconds", "job", OF_MODEL): ""},
                "s",
                "stat",
                6,
            ),
            Panel(
                "Requests running",
                {f"sum(vllm:num_requests_running{{{OF_MODEL}}})": ""},
                kind="stat",
                width=6,
            ),
            Panel(
                "Requests waiting in engines",
                {f"sum(vllm:num_requests_waiting{{{OF_MODEL}}})": ""},
                kind="stat",
                width=6,
                steps={0: "green", 20: "orange"},
            ),
            Panel(
                "Tokens a second",
                {f"sum(rate(vllm:generation_tokens_total{{{OF_MODEL}}}[{RATE}]))": ""},
                kind="stat",
                width=6,
            ),
        ],
        "Latency": [
            Panel(
                "Time to first token",
                {
                    quantile(0.5, "vllm:time_to_first_token_seconds", "model", OF_MODEL): "{{model}} p50",
                    quantile(0.99, "vllm:time_to_first_token_seconds", "model", OF_MODEL): "{{model}} p99",
                },
                "s",
            ),
            Panel(
                "Whole request, p99",
                {
                    either(
                        "vllm:e2e_request_latency_seconds",
                        "vllm:request_duration_seconds",
                        f"histogram_quantile(0.99, sum by (model, le) (rate({{}}_bucket{{{OF_MODEL}}}[{RATE}])))",
                    ): "{{model}}"
                },
                "s",
            ),
            Panel(
                "Time per output token, p99",
                {
                    either(
                        "vllm:request_time_per_output_token_seconds",
                        "vllm:time_per_output_token_seconds",
                        f"histogram_quantile(0.99, sum by (model, le) (rate({{}}_bucket{{{OF_MODEL}}}[{RATE}])))",
                    ): "{{model}}"
                },
                "s",
            ),
        ],
        "Throughput": [
            Panel(
                "Requests that succeeded",
                {f"sum by (model) (rate(vllm:request_success_total{{{OF_MODEL}}}[{RATE}]))": "{{model}}"},
                "reqps",
            ),
            Panel(
                "Prompt tokens",
                {f"sum by (model) (rate(vllm:prompt_tokens_total{{{OF_MODEL}}}[{RATE}]))": "{{model}}"},
            ),
            Panel(
                "Generated tokens",
                {f"sum by (model) (rate(vllm:generation_tokens_total{{{OF_MODEL}}}[{RATE}]))": "{{model}}"},
            ),
        ],
        "Load": [
            Panel("Running", {f"sum by (model) (vllm:num_requests_running{{{OF_MODEL}}})": "{{model}}"}),
            Panel("Waiting", {f"sum by (model) (vllm:num_requests_waiting{{{OF_MODEL}}})": "{{model}}"}),
            Panel(
                "KV cache in use",
                {
                    either(
                        "vllm:kv_cache_usage_perc",
                        "vllm:gpu_cache_usage_perc",
                        f"max by (model) ({{}}{{{OF_MODEL}}})",
                    ): "{{model}}"
                },
                "percentunit",
            ),
        ],
    },
    BY_MODEL,
)

BOARDS = {"gpu": GPU, "models": STATES, "system": SYSTEM, "vllm": ENGINE}


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    height = 8 if panel.kind in ("timeseries", "state-timeline") else 4
    steps = [{"color": color, "value": value or None} for value, color in panel.steps.items()]
    custom: dict[str, Any] = {"fillOpacity": 10} if panel.kind == "timeseries" else {}
    if panel.stack:
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 40}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "gridPos": {"h": height, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "custom": custom,
                **({"thresholds": {"mode": "absolute", "steps": steps}} if steps else {}),
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(65 + index), "expr": expression, "legendFormat": legend or "__auto"}
            for index, (expression, legend) in enumerate(panel.queries.items())
        ],
    }


def board_json(board: Board) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for heading, row in board.rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": heading,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        x = deepest = 0
        for panel in row:
            if x + panel.width > 24:
                x, y, deepest = 0, y + deepest, 0
            made = panel_json(panel, len(panels) + 1, x, y)
            panels.append(made)
            x, deepest = x + panel.width, max(deepest, made["gridPos"]["h"])
        y += deepest
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}
    ]
    for name, query in board.variables.items():
        variables.append(
            {
                "name": name,
                "type": "query",
                "query": query,
                "datasource": {"type": "prometheus", "uid": "$datasource"},
                "includeAll": True,
                "allValue": ".*",
                "multi": True,
                "current": {"text": "All", "value": "$__all"},
                "refresh": 2,
                "sort": 1,
            }
        )
    return {
        "title": board.title,
        "uid": board.uid,
        "tags": ["greenthread"],
        "schemaVersion": 39,
        "editable": True,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": panels,
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, board in BOARDS.items():
        text = json.dumps(board_json(board), indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
