"""Whatever an object lacks, the dashboard is painted: pages are drawn from clusters with holes, without a terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from greenthread.kube.resources import key_of
from tests.unit.greenthread.test_snapshot_builder import NOW, _leaves, _remove, cluster
from tests.unit.tui.test_history import event
from tui import bars, detail, facts, table
from tui.data import Link
from tui.history import History, nothing
from tui.known import Known
from tui.measures import charts
from tui.model_charts import ModelCharts
from tui.past import Past
from tui.recorded import kept
from tui.theme import DARK, Colours
from tui.view import View, holders


class _Clock:
    def now(self) -> datetime:
        return NOW


def paint(known: Known, width: int) -> None:
    """All that the overview and a model's page say."""
    known.sample()
    snapshot = known.snapshot()
    colours = Colours().assign(holders(snapshot), len(DARK.occupants))
    view = View(snapshot, known, Link("live", 0.1), DARK, colours, "prod", UTC)
    facts.header(width, view, readonly=False)
    shape = bars.form(width, True, snapshot.gpus)
    for gpu in snapshot.gpus:
        assert len(bars.block(gpu, shape, view)) == shape.rows
    rows = table.in_order(snapshot.models)
    fields = table.columns(width, rows, view)
    for row in rows:
        assert table.draw(row, width, fields, view, True, True).width == width
        facts.reasons(width, 3, row, view)
        detail.lines_of(row, view, width, ModelCharts())
    facts.wake_lines(width, 2, view)
    facts.events(width, 5, view)
    charts(known.seen, NOW.timestamp() - 300, NOW.timestamp())


@given(st.data(), st.sampled_from([60, 80, 120]))
def test_a_cluster_with_holes_is_painted(data: st.DataObject, width: int) -> None:
    record = {"kind": "wake", "steps": {"engine": 0.5}, "total": 0.6, "at": "2026-11-22T14:03:00Z", "error": ""}
    told = event("a", 1, at=NOW.timestamp())
    told["metadata"]["annotations"] = {"greenthread.ai/record": json.dumps(record)}
    kinds: dict[str, list[Any]] = dict(zip(("models", "gpus", "pods"), cluster(), strict=True)) | {"events": [told]}
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(sorted(kinds)))
        broken = data.draw(st.sampled_from(kinds[kind]))
        # the API server knows no object without a name
        places = [place for place in _leaves(broken) if place not in (("metadata",), ("metadata", "name"))]
        if places:
            _remove(broken, data.draw(st.sampled_from(places)))
    known, history = Known(_Clock(), NOW.timestamp), History()
    history.begin(NOW.timestamp() - 1, nothing())
    for kind, objects in kinds.items():
        for obj in objects:
            small = kept(kind, obj)
            assert key_of(small) == key_of(obj)
            known.hear(kind, "ADDED", small)
            history.hear(kind, "ADDED", small, NOW.timestamp())
    paint(known, width)
    past = Past(history)
    past.seek(NOW.timestamp())
    assert past.known.snapshot().models == known.snapshot().models
    assert past.tracks().moment == past.moment


def test_a_gpu_of_unknown_size_for_which_somebody_waits() -> None:
    models, gpus, pods = cluster()
    del gpus[0]["status"]["totalMemoryBytes"]
    known = Known(_Clock(), NOW.timestamp)
    for kind, objects in (("models", models), ("gpus", gpus), ("pods", pods)):
        for obj in objects:
            known.hear(kind, "ADDED", kept(kind, obj))
    assert known.snapshot().gpus[0].waiting
    paint(known, 120)
