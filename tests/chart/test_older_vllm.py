"""Panels of the vLLM dashboard over engines of two generations: some metrics were renamed, and both names count."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.conftest import CHART
from tests.chart.prometheus import find
from tests.testbeds.programs import Missing, skip_or_fail

pytestmark = pytest.mark.real

BOARD = CHART / "files" / "dashboards" / "vllm.json"
#: Panel → the name of today and the one before.
RENAMED = {
    "Whole request, p99": ("vllm:e2e_request_latency_seconds", "vllm:request_duration_seconds"),
    "Time per output token, p99": ("vllm:request_time_per_output_token_seconds", "vllm:time_per_output_token_seconds"),
    "KV cache in use": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}


def series(metric: str, model: str) -> list[dict[str, str]]:
    """Of a gauge at one half, or of a histogram whose observations are all between 0 and 1 s."""
    labels = f'namespace="team", model="{model}"'
    if not metric.endswith("_seconds"):
        return [{"series": f"{metric}{{{labels}}}", "values": "0.5x20"}]
    return [{"series": f'{metric}_bucket{{{labels}, le="{le}"}}', "values": "0+6x20"} for le in ("1", "+Inf")]


@pytest.mark.parametrize("title", RENAMED)
def test_a_renamed_metric_is_shown_of_old_and_new_engines(title: str, tmp_path: Path) -> None:
    [panel] = [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["title"] == title]
    [target] = panel["targets"]
    new, old = RENAMED[title]
    expression = (
        target["expr"].replace("$__rate_interval", "2m").replace('"$namespace"', '".*"').replace('"$model"', '".*"')
    )
    value = 0.99 if new.endswith("_seconds") else 0.5
    test = {
        "interval": "30s",
        "input_series": [*series(new, "today"), *series(old, "before")],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": "5m",
                "exp_samples": [{"labels": f'{{model="{model}"}}', "value": value} for model in ("today", "before")],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "30s", "tests": [test]}))
    try:
        promtool = find("promtool")
    except Missing as missing:
        skip_or_fail(missing)
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_with_two_names_is_in_the_table() -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    assert {p["title"] for p in panels for t in p.get("targets", []) if " or " in t["expr"]} == set(RENAMED)
