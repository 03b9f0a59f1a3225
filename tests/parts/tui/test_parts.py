"""The parts that know no terminal: data, wakes, layout, colours, cells."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Forbidden
from greenthread.kube.resources import GPUS, MODELS, PODS
from greenthread.snapshot import Shown, Snapshot, build
from localcluster.api.inprocess import InProcess
from tests.parts.tui.world import NOW, World, ago, intent, occupant, record, report
from tests.virtual import run
from tui import layout
from tui.cells import Line, cut, spark, wrap
from tui.data import ClusterData, read_event
from tui.known import SAMPLES
from tui.theme import DARK, LIGHT, Colours, blend
from tui.wakes import Wakes

GIB = 2**30


class Following:
    """`async with Following() as (world, data)`: the story, followed until it is known."""

    def __init__(self, client: AsyncClient | None = None) -> None:
        self.world = World()
        self._client = client

    async def __aenter__(self) -> tuple[World, ClusterData]:
        await self.world.__aenter__()
        await self.world.story()
        self.data = ClusterData(self._client or AsyncClient(self.world.network), clock=self.world.clock)
        self._task = asyncio.create_task(self.data.run())
        await asyncio.sleep(1)
        return self.world, self.data

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.world.__aexit__()


def test_what_changed_is_told_once() -> None:
    async def main() -> None:
        async with Following() as (world, data):
            assert data.take_changes() >= {"models", "gpus", "pods", "events"}
            assert data.take_changes() == set()
            await world.patch_gpu("node-a-0", stats={"utilizationPercent": 7})
            await asyncio.sleep(0.01)
            assert data.take_changes() == {"gpus"}
            stats = data.snapshot().gpus[0].gpu.stats
            assert stats is not None
            assert stats.utilization == 7

    run(main())


def test_requests_per_second_follow_the_reports() -> None:
    async def main() -> None:
        async with Following() as (world, data):
            key = ("prod", "gpt-oss-20b")
            data.snapshot()
            assert data.rate(key) is None

            async def tell(requests: int) -> None:
                value = json.dumps(report("serving", 192, requests=requests))
                body = {"metadata": {"annotations": {"greenthread.ai/report": value}}}
                await world.client.patch(PODS, "gpt-oss-20b-0", body, namespace="prod")

            await asyncio.sleep(4)
            await tell(950)
            await asyncio.sleep(5)
            assert data.rate(key) == pytest.approx(10, rel=0.05)
            await tell(1000)
            await asyncio.sleep(1)
            assert data.rate(key) == pytest.approx(10, rel=0.05)
            await asyncio.sleep(11)  # it would have told
            assert data.rate(key) == 0.0
            assert next(rate for rate in data.rates(key) if rate) == pytest.approx(10, rel=0.05)

    run(main())


def test_history_is_bounded_and_forgets_what_is_gone() -> None:
    async def main() -> None:
        async with Following() as (world, data):
            await asyncio.sleep(2000)
            assert len(data.utilization("node-a-0")) == SAMPLES
            assert set(data.utilization("node-a-0")) == {83}
            await world.client.delete(GPUS, "node-a-0", "greenthread-system")
            await asyncio.sleep(6)
            assert data.utilization("node-a-0") == []
            assert len(data.utilization("node-a-1")) == SAMPLES

    run(main())


def test_events_are_in_order_and_bounded_and_carry_records() -> None:
    async def main() -> None:
        async with Following() as (world, data):
            assert [event.reason for event in data.events] == ["Woke", "Slept", "Woke", "Waiting"]
            assert data.expected(("prod", "kimi-vl-a3b"), "wake") == 3.0
            assert data.expected(("prod", "kimi-vl-a3b"), "boot") is None
            failed = record("wake", 1, engine=99.0) | {"error": "out of memory"}
            await world.event("kimi-vl-a3b", "WakeFailed", "wake failed", 1, failed)
            await asyncio.sleep(0.1)
            assert data.expected(("prod", "kimi-vl-a3b"), "wake") == 3.0
            for number in range(600):
                await world.event("kimi-vl-a3b", "Slept", f"number {number}", 0, record("sleep", 0, engine=0.1))
            await asyncio.sleep(0.1)
            assert len(data.events) == 500
            assert data.events[-1].message == "number 599"
            assert len(data.records(("prod", "kimi-vl-a3b"))) == 30

    run(main())


class _Limited(InProcess):
    """A user who may not read these plurals, or only in one namespace."""

    def __init__(self, world: World, refused: set[str], everywhere: bool) -> None:
        super().__init__(world.api)
        self._refused, self._everywhere = refused, everywhere

    async def request(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        if path.rsplit("/", 1)[-1] in self._refused and (self._everywhere or "/namespaces/" not in path):
            raise Forbidden(403, "Forbidden", "no permission to list them; ask for a role that allows it")
        return await super().request(method, path, *args, **options)


def test_who_may_read_one_namespace_only_sees_that() -> None:
    async def main() -> None:
        following = Following()
        refused = {"models", "pods", "events", "gpus"}
        following._client = AsyncClient(_Limited(following.world, refused, everywhere=False))
        async with following as (world, _):
            client = AsyncClient(_Limited(world, refused, everywhere=False))
            data = ClusterData(client, None, "prod", world.clock)
            task = asyncio.create_task(data.run())
            await asyncio.sleep(2)
            assert data.namespace == "prod"
            assert len(data.snapshot().models) == 8
            assert len(data.snapshot().gpus) == 2
            assert data.link.state == "live"
            assert data.link.missing == ()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_what_may_not_be_read_is_named_and_the_rest_is_shown() -> None:
    async def main() -> None:
        following = Following()
        following._client = AsyncClient(_Limited(following.world, {"pods"}, everywhere=True))
        async with following as (_, data):
            assert len(data.snapshot().models) == 8
            assert data.link.state == "live"
            assert len(data.link.missing) == 1
            assert data.link.missing[0].startswith("pods: no permission")

    run(main())


def test_own_changes_are_seen_at_once() -> None:
    async def main() -> None:
        async with Following() as (_, data):
            data.snapshot()
            await data.patch_model(("prod", "llama-3-1-8b"), {"spec": {"fairness": {"popular": True}}})
            row = data.snapshot().model("prod", "llama-3-1-8b")
            assert row is not None
            assert row.pinned

    run(main())


def test_models_that_go_are_gone() -> None:
    async def main() -> None:
        async with Following() as (world, data):
            await world.client.delete(MODELS, "llama-3-1-8b", "prod")
            await asyncio.sleep(0.1)
            assert data.snapshot().model("prod", "llama-3-1-8b") is None

    run(main())


def test_an_event_that_says_nothing_of_a_model_is_left_out() -> None:
    assert read_event({"metadata": {"name": "x"}, "involvedObject": {"kind": "Pod", "name": "p"}}) is None
    about = {"kind": "Model", "name": "m", "namespace": "n"}
    assert read_event({"metadata": {"name": "x"}, "involvedObject": about}) is None
    broken = {"metadata": {"name": "x", "annotations": {"greenthread.ai/record": "{"}}, "involvedObject": about,
              "lastTimestamp": ago(1)}  # fmt: skip
    told = read_event(broken)
    assert told is not None
    assert told.record is None


def _moment(state: str, seconds: float, **gpu: Any) -> Snapshot:
    """Model m on one GPU, `seconds` after the start."""
    model = {"metadata": {"name": "m", "namespace": "prod"}, "spec": {"modelName": "x"}}
    status = {"node": "n", "index": 0, "totalMemoryBytes": 96 * GIB, **gpu}
    pod = {"metadata": {"name": "m-0", "namespace": "prod", "labels": {"greenthread.ai/model": "m"},
                        "annotations": {"greenthread.ai/gpus": "0"}}, "spec": {"nodeName": "n"}}  # fmt: skip
    occupants = [occupant("m", state, 40 if state != "sleeping" else 0, becameServingAt=ago(-7.5))]
    status["occupants"] = occupants + gpu.get("occupants", [])
    return build([model], [{"metadata": {"name": "n-0"}, "status": status}], [pod], NOW + timedelta(seconds=seconds))


def test_a_wake_is_followed_from_queue_to_serving() -> None:
    wakes = Wakes()
    waits = {"preemptionIntents": [intent("m", 40, 0, "v")]}
    wakes.observe(_moment("sleeping", 1, **waits, occupants=[occupant("v", "serving", 90)]))
    wakes.observe(_moment("sleeping", 5, **waits, occupants=[occupant("v", "deactivating", 90)]))
    wakes.observe(_moment("sleeping", 6.5, **waits))
    lock = {"wakeLock": {"holder": "prod/m-0", "acquiredAt": ago(-7)}}
    wakes.observe(_moment("waking", 7.2, **lock))
    last = _moment("serving", 7.6)
    wakes.observe(last)
    (wake,) = wakes.current(last)
    assert [(step.name, step.seconds(last.at)) for step in wake.steps] == [
        ("queue", 7.0),
        ("v makes room", 1.5),
        ("copy", 0.5),
    ]
    assert wake.done == NOW + timedelta(seconds=7.5)
    wakes.observe(_moment("serving", 20))
    assert wakes.current(last) == []


def test_a_wake_that_nobody_wants_any_more_is_forgotten() -> None:
    wakes = Wakes()
    wakes.observe(_moment("sleeping", 1, preemptionIntents=[intent("m", 40, 0)]))
    gone = _moment("sleeping", 2)
    wakes.observe(gone)
    assert wakes.current(gone) == []


@given(
    st.integers(40, 300), st.integers(16, 120), st.integers(0, 256), st.integers(0, 1000), st.integers(0, 4)
)  # fmt: skip
def test_the_zones_never_take_more_rows_than_there_are(
    width: int, height: int, gpus: int, models: int, taken: int
) -> None:
    found = layout.plan(width, height, gpus, models, taken)
    gaps = found.top_gap + found.wake_gap + found.events_gap + found.bottom_gap
    # header, footer, both headings, WAKE, the blank lines before the models and before WHY
    used = found.gpu_rows + found.table_rows + found.why_rows + found.events + gaps + 7 + taken
    assert used <= max(height, 16 + taken)
    assert found.table_rows >= 1
    assert found.why_rows >= 3
    assert found.events >= 1


def test_the_drawings_heights() -> None:
    large, small = layout.plan(120, 34, 2, 8), layout.plan(80, 24, 2, 8)
    assert (large.tall, large.table_rows, large.why_rows, large.events) == (True, 8, 3, 5)
    assert (small.tall, small.table_rows, small.why_rows, small.events) == (False, 8, 3, 1)


def test_a_holder_keeps_its_colour_and_neighbours_differ() -> None:
    colours = Colours()
    first = colours.assign([("n", "a"), ("n", "b")], 6)
    assert len(set(first.values())) == 2
    again = colours.assign([("n", "b"), ("n", "c")], 6)
    assert again["n", "b"] == first["n", "b"]
    assert again["n", "c"] != again["n", "b"]
    many = colours.assign([("n", str(number)) for number in range(20)], 6)
    assert set(many.values()) == set(range(6))


@pytest.mark.parametrize("palette", [DARK, LIGHT])
def test_every_state_has_a_colour_that_can_be_read(palette: Any) -> None:
    for state in Shown:
        assert _contrast(palette.state(state), palette.back) >= 4.5
    for segment, _edge in palette.occupants:
        assert _contrast(palette.on_segment, segment) >= 4.5


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_line_keeps_its_width_and_what_is_behind() -> None:
    line = Line(10, "#000000")
    line.fill(2, 5, "#112233")
    line.put(1, "abc\x1b[2Jdef", "#ffffff")
    line.put(8, "日本", "#ffffff")
    assert line.text == " abc [2J日"
    strip = line.strip()
    assert strip.cell_length == 10
    assert "\x1b" not in strip.text
    assert blend("#000000", "#ffffff", 0.5) == "#808080"


@given(st.text(max_size=80), st.integers(1, 40), st.integers(1, 4))
def test_wrapped_text_fits(text: str, width: int, most: int) -> None:
    lines = wrap(text, width, most)
    assert len(lines) <= most
    assert all(len(line) <= width for line in lines)


def test_sparkline_and_cut() -> None:
    assert spark([None, 0, 50, 100], 6, 100) == "   ▁▄█"
    assert cut("llama-3-1-70b", 8) == "llama-3…"
