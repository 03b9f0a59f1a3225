"""The gateway's metrics stay few, whoever asks for whatever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics as module
from gateway.metrics import Metrics


def requests(metrics: Metrics) -> dict[str, float]:
    """Requests counted for each label `model`."""
    text = metrics.scrape().body
    assert isinstance(text, bytes)
    samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    return {s.labels["model"]: s.value for s in samples if s.name == "gthread_apiserver_requests_total"}


def ask(metrics: Metrics, *names: str) -> None:
    for name in names:
        metrics.observe(cast(Any, SimpleNamespace(tag=("team", name), status=200, first=None)), 0.1)


def test_models_beyond_the_bound_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1000 <= module.MAX_MODELS <= 2000
    monkeypatch.setattr(module, "MAX_MODELS", 20)
    metrics = Metrics()
    ask(metrics, *(f"m{number}" for number in range(25)))
    found = requests(metrics)
    assert len(found) == 21
    assert found["other"] == 5
    ask(metrics, "m0", "m20")
    assert requests(metrics)["team/m0"] == 2
    assert requests(metrics)["other"] == 6


def test_a_model_that_is_gone_makes_room() -> None:
    metrics = Metrics()
    ask(metrics, "ann", "bea")
    metrics.forget(("team", "ann"))
    assert requests(metrics) == {"team/bea": 1}
