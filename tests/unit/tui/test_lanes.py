"""A model's states and the steps of its wakes, from what sidecars told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from greenthread.clock import format_time
from greenthread.model import Model
from greenthread.snapshot import ModelRow, Shown
from tui import lanes
from tui.known import Told
from tui.last_wakes import how, steps_of
from tui.wakes import Wakes

NOW = datetime(2026, 11, 22, 14, 0, 0, tzinfo=UTC)
WINDOW = timedelta(minutes=15)


def told(kind: str, ago: float, reason: str = "", name: str = "m", **fields: Any) -> Told:
    """A record of what began `ago` seconds ago."""
    steps = fields.pop(
        "steps", {"queue": 2.0, "claim": 0.0, "engine": 1.0} if kind == "wake" else {"drain": 1.0, "engine": 0.5}
    )
    at = NOW - timedelta(seconds=ago)
    ended = at + timedelta(seconds=sum(steps.values()))
    record = {"kind": kind, "at": format_time(at), "steps": steps, **fields}
    return Told(ended, ("prod", name), reason or {"wake": "Woke", "sleep": "Slept"}.get(kind, ""), "", False, record,
                (ended.timestamp(), 0), f"{name}-{kind}-{ago}")  # fmt: skip


def row(state: Shown, since: float | None) -> ModelRow:
    model = Model.from_object({"metadata": {"name": "m", "namespace": "prod"}, "spec": {"modelName": "x"}})
    return ModelRow(model, state, NOW - timedelta(seconds=since) if since is not None else None, ())


def shown(records: list[Told], now: ModelRow) -> list[tuple[Shown, float]]:
    return [(span.state, span.seconds) for span in lanes.spans(records, now, NOW - WINDOW, NOW)]


def test_states_follow_from_the_records_and_from_now() -> None:
    records = [told("sleep", 100), told("wake", 300), told("wake", 50)]
    assert shown(records, row(Shown.SERVING, 47)) == [
        (Shown.SLEEPING, 600.0),  # it slept before the first wake
        (Shown.PENDING, 2.0),
        (Shown.WAKING, 1.0),
        (Shown.SERVING, 197.0),
        (Shown.DEACTIVATING, 1.5),
        (Shown.SLEEPING, 48.5),
        (Shown.PENDING, 2.0),
        (Shown.WAKING, 1.0),
        (Shown.SERVING, 47.0),
    ]


def test_without_records_only_the_state_now_is_known() -> None:
    assert shown([], row(Shown.SLEEPING, 60)) == [(Shown.SLEEPING, 60.0)]
    assert shown([], row(Shown.SLEEPING, 7200)) == [(Shown.SLEEPING, 900.0)]
    assert shown([], row(Shown.STAGING, None)) == []


def test_what_took_no_time_is_not_drawn_and_a_failed_wake_ends_asleep() -> None:
    fast = told("wake", 10, steps={"queue": 0.002, "claim": 0.004, "engine": 3.0}, error="out of memory")
    assert [state for state, _ in shown([fast], row(Shown.SLEEPING, None))] == [
        Shown.SLEEPING,
        Shown.WAKING,
        Shown.SLEEPING,
    ]


def test_a_mark_has_a_cell_at_least() -> None:
    records = [told("wake", 450, steps={"queue": 0.5, "claim": 0.0, "engine": 0.5})]
    found = lanes.spans(records, row(Shown.SERVING, 449), NOW - WINDOW, NOW)
    assert lanes.cells(found, Shown.PENDING, NOW - WINDOW, NOW, 10) == [(5, 6)]
    assert lanes.cells(found, Shown.SERVING, NOW - WINDOW, NOW, 10) == [(5, 10)]
    assert lanes.cells(found, Shown.SLEEPING, NOW - WINDOW, NOW, 10) == [(0, 5)]


def test_what_the_victim_needed_is_taken_out_of_the_queue() -> None:
    wake = told("wake", 60, steps={"queue": 6.0, "claim": 0.1, "engine": 0.5}, victims=["v"])
    sleep = told("sleep", 56, name="v", forModel="m", steps={"drain": 1.5, "engine": 0.5})
    other = told("sleep", 56, name="w", forModel="somebody", steps={"drain": 9.0, "engine": 9.0})
    long_ago = told("sleep", 5000, name="v", forModel="m", steps={"drain": 9.0, "engine": 9.0})
    steps = steps_of(wake, [long_ago, sleep, other, wake])
    assert steps == {"queue": 4.0, "drain": 1.5, "sleep": 0.5, "claim": 0.1, "engine": 0.5}
    assert sum(steps.values()) == 6.6
    assert how(wake) == "preempted v"


def test_records_that_cannot_be_read_are_left_out() -> None:
    broken = Told(NOW, ("prod", "m"), "Woke", "", False, {"kind": "wake", "at": "yesterday", "steps": 7})
    assert shown([broken], row(Shown.SLEEPING, 5)) == [(Shown.SLEEPING, 5.0)]
    assert steps_of(broken, [broken]) == {}
    Wakes().tell(("prod", "v"), {"kind": "sleep", "forModel": "m", "at": None})
