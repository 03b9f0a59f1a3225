"""Time travel and charts on the screen, on the embedded API in this process; the cluster that goes away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from textual.pilot import Pilot

from greenthread.clock import format_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Gone, KubeError
from tests.parts.tui.test_overview import line_with, text_of, until
from tests.parts.tui.world import NOW, World, occupant
from tui import layout, timeline
from tui.app import Dashboard
from tui.data import ClusterData
from tui.history import History
from tui.measures import Chart, Curve
from tui.recording import Recorder
from tui.replay import go_on_recording, open_recording
from tui.start import dashboard


def moved(world: World, seconds: float) -> None:
    world.clock.moment = NOW + timedelta(seconds=seconds)


async def happen(world: World) -> None:
    """At +10 s llama goes to sleep, at +20 s qwen wakes, at +21 s it serves; each is told."""
    others = [occupant(name, "sleeping") for name in ("llama-3-1-70b", "mistral-small-24b")]
    kimi = occupant("kimi-vl-a3b", "serving", 9.2, becameServingAt=format_time(NOW))
    for after, llama, qwen in (
        (10, "deactivating", "sleeping"),
        (20, "sleeping", "waking"),
        (21, "sleeping", "serving"),
    ):
        moved(world, after)
        occupants = [
            occupant("llama-3-1-8b", llama, 62 if llama == "deactivating" else 0),
            occupant("qwen-3-4b-thinking", qwen, 62 if qwen != "sleeping" else 0),
            kimi, *others,
        ]  # fmt: skip
        lock = {"holder": "prod/qwen-3-4b-thinking-0", "acquiredAt": format_time(world.clock.moment)}
        rest: dict[str, Any] = {} if qwen == "sleeping" else {"preemptionIntents": []}
        rest["wakeLock"] = lock if qwen == "waking" else None
        await world.patch_gpu("node-a-0", occupants=occupants, **rest)
        await asyncio.sleep(0.05)
    await world.event("qwen-3-4b-thinking", "Woke", "woke in 701ms on node-a/0", -21)
    await asyncio.sleep(0.05)
    moved(world, 50)


@asynccontextmanager
async def opened(
    path: Path | None = None, size: tuple[int, int] = (120, 34)
) -> AsyncIterator[tuple[World, Dashboard, Pilot[None]]]:
    async with World() as world:
        await world.story()
        history = History()
        recorder = go_on_recording(path, history) if path else None
        data = ClusterData(
            AsyncClient(world.network), clock=world.clock, history=history, recorder=recorder, context="prod-eu"
        )
        app = Dashboard(data, "prod-eu", zone=UTC)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: len(app.data.snapshot().models) == 8 and data._begun)
            await happen(world)
            app.paint()
            await pilot.pause()
            yield world, app, pilot


async def test_the_whole_screen_shows_the_moment_and_actions_are_off() -> None:
    async with opened() as (_, app, pilot):
        assert line_with(app, "qwen-3-4b-thinking   ● serving")
        await pilot.press("left_square_bracket", "left_square_bracket", "left_square_bracket")
        await pilot.pause()
        lines = text_of(app)
        assert "◂ 14:03:32.0, 40s ago   actions are off   end: back to now" in lines[0]
        assert line_with(app, "llama-3-1-8b         ▼ deactivating")
        assert line_with(app, "qwen-3-4b-thinking   ◌ pending")
        assert "[ ] step  { } 1m" in lines[-1]
        await pilot.press("j", "j", "j")
        assert app.page is not None
        assert app.page.selected == ("prod", "qwen-3-4b-thinking")
        app.paint()
        await pilot.pause()
        assert "14:03:43  11s later: woke in 701ms on node-a/0" in line_with(app, "THEN")
        await pilot.press("w")
        assert not any("asked" in (note.title or "") for note in app._notifications)
        await pilot.press("right_square_bracket")
        await pilot.pause()
        assert line_with(app, "qwen-3-4b-thinking   ◐ waking")
        await pilot.press("end")
        await pilot.pause()
        assert "live" in text_of(app)[0]
        assert line_with(app, "qwen-3-4b-thinking   ● serving")


async def test_steps_by_minutes_and_wakes_and_what_lies_before_and_after() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("left_parenthesis")
        await pilot.pause()
        assert "◂ 14:03:43.0" in text_of(app)[0]
        await pilot.press("left_parenthesis")
        await pilot.pause()
        assert any("no wake is known before" in note.message for note in app._notifications)
        await pilot.press("left_curly_bracket")
        await pilot.pause()
        assert "◂ 14:03:22.0" in text_of(app)[0]  # nothing older is known
        await pilot.press("right_curly_bracket")
        await pilot.pause()
        assert "live" in text_of(app)[0]


async def test_a_moment_of_another_day_says_which() -> None:
    async with opened() as (world, app, pilot):
        await pilot.press("left_parenthesis")
        await pilot.pause()
        assert "◂ 14:03:43.0" in text_of(app)[0]
        world.clock.moment += timedelta(hours=10)
        app.paint()
        await pilot.pause()
        assert "◂ 2026-11-22 14:03:43.0, 10h00m ago" in text_of(app)[0]


@pytest.mark.parametrize("page", ["o", "m", "u", "e", "v"])
async def test_every_page_shows_the_past(page: str) -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("left_square_bracket", page)
        await pilot.pause()
        assert "◂ 14:03:43.0" in text_of(app)[0]
        await pilot.press("end")
        await pilot.pause()
        assert "live" in text_of(app)[0]


async def test_the_past_is_as_wide_as_the_terminal() -> None:
    for size in ((60, 16), (80, 24), (200, 60)):
        async with opened(size=size) as (_, app, pilot):
            await pilot.press("left_square_bracket")
            await pilot.pause()
            assert "14:03:43.0" in text_of(app)[0]
            assert all(len(line) == size[0] for line in text_of(app))


async def test_a_recording_is_shown_without_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl.gz"
    async with opened(path) as (_, app, _pilot):
        pass
    assert app.data._recorder is not None
    for _ in range(500):  # it is left like any other worker: in its own time
        if app.data._recorder._file.closed:
            break
        await asyncio.sleep(0.01)
    recording = open_recording(path, History())
    app = Dashboard(recording, recording.context, readonly=True, zone=UTC, replay=True)
    async with app.run_test(size=(120, 34)) as pilot:
        await pilot.pause()
        first = text_of(app)[0]
        assert "prod-eu" in first
        assert "◂ 2026-11-22 14:03:22.0" in first, "a recording may be of any day"
        assert "recording" in first
        await until(pilot, lambda: bool(line_with(app, "kimi-vl-a3b          ◐ waking")))
        await pilot.press("end")
        await until(pilot, lambda: bool(line_with(app, "qwen-3-4b-thinking   ● serving")))
        await pilot.press("w", "s")
        assert len(app.screen_stack) == 1
        await pilot.press("left_square_bracket")
        await until(pilot, lambda: bool(line_with(app, "qwen-3-4b-thinking   ◐ waking")))
        app.travel.speed = 60.0
        await pilot.press("space")
        await until(pilot, lambda: bool(line_with(app, "qwen-3-4b-thinking   ● serving")))
        assert not app.travel.going
        await pilot.press("y")
        await pilot.pause()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replay", "/nowhere/x"], "/nowhere/x cannot be read: No such file or directory"),
        (["--replay", "a", "--record", "b"], "--record and --replay exclude each other"),
        (["--history", "lots"], "'lots' is no size such as 64Mi or 1Gi"),
    ],
)
def test_what_cannot_be_shown_is_said(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.start._is_terminal", lambda: True)
    result = CliRunner().invoke(dashboard, arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output


async def test_a_full_disk_ends_the_recording_with_words_and_nothing_else(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    async with World() as world:
        await world.story()
        data = ClusterData(AsyncClient(world.network), clock=world.clock, recorder=Recorder(Path("/dev/full")))
        app = Dashboard(data, "prod-eu", zone=UTC)
        async with app.run_test(size=(120, 34)) as pilot:
            await until(pilot, lambda: any("No space left" in note.message for note in app._notifications))
            await happen(world)
            app.paint()
            await pilot.pause()
            assert line_with(app, "qwen-3-4b-thinking   ● serving")


async def test_the_api_server_goes_away_and_comes_back() -> None:
    async with opened() as (world, app, pilot):
        world.network.cut()
        await until(pilot, lambda: "lost" in text_of(app)[0])
        moved(world, 60)
        await world.patch_gpu("node-a-0", stats={"utilizationPercent": 1}, preemptionIntents=[])
        await world.event("kimi-vl-a3b", "Slept", "slept meanwhile", -55)
        await pilot.press("left_square_bracket")
        await pilot.pause()
        assert "◂ 14:03:43.0" in text_of(app)[0]  # the past is there all the same
        await pilot.press("end")
        world.network.mend()
        await until(pilot, lambda: "live" in text_of(app)[0])
        await until(pilot, lambda: any(told.message == "slept meanwhile" for told in app.data.events))
        at = app.data.history.stop(world.clock.moment.timestamp() + 1, -1)
        assert at == world.clock.moment.timestamp()  # when it was heard, not when it happened


async def test_a_watch_that_is_too_old_lists_again() -> None:
    async with World() as world:
        await world.story()
        data = ClusterData(AsyncClient(world.network), clock=world.clock)
        app = Dashboard(data, "prod-eu", zone=UTC)
        ended = world.network.stream
        gone = asyncio.Event()

        async def stream(*args: Any, **options: Any) -> Any:
            if gone.is_set():
                gone.clear()
                raise Gone(410, "Expired", "too old resource version")
            async for line in ended(*args, **options):
                yield line

        world.network.stream = stream  # type: ignore[method-assign]
        async with app.run_test(size=(120, 34)) as pilot:
            await until(pilot, lambda: len(data.snapshot().models) == 8 and data._begun)
            before = data.history.changes
            gone.set()
            world.network.cut()
            await until(pilot, lambda: data.link.state == "lost")
            world.network.mend()
            await until(pilot, lambda: data.link.state == "live" and not gone.is_set())
            await happen(world)
            app.paint()
            await until(pilot, lambda: bool(line_with(app, "qwen-3-4b-thinking   ● serving")))
            assert data.history.changes - before <= 6  # what the new list did not change is not told again


async def test_charts_say_where_their_numbers_are_from() -> None:
    async with opened() as (world, app, pilot):
        for at in range(60):
            moved(world, 50 + 5 * at)
            app.data.sample()
        await pilot.press("v")
        await pilot.pause()
        text = "\n".join(text_of(app))
        assert "seen by this dashboard since 14:04:12" in text
        for words in ("WAKE LATENCY", "REQUESTS", "QUEUE", "PREEMPTIONS", "GPU USE", "GPU MEMORY", "━ models"):
            assert words in text
        await pilot.press("left", "left")
        await pilot.pause()
        assert "13:09" in "\n".join(text_of(app))  # an hour


async def test_charts_are_from_prometheus_where_there_is_one() -> None:
    trouble: list[str] = []

    def measured(since: float, until: float, memory: float) -> list[Chart]:
        if trouble:
            raise KubeError(trouble[0])
        assert memory == 2 * 96 * 2**30
        points = [(since + 10.0 * n, float(n)) for n in range(30)]
        return [Chart("REQUESTS", "/s", [Curve("all models", "serving", points)])]

    async with World() as world:
        await world.story()
        world.clock.moment = datetime.now(UTC)
        data = ClusterData(AsyncClient(world.network), clock=world.clock)
        app = Dashboard(data, "prod-eu", zone=UTC, measured=measured)
        async with app.run_test(size=(120, 34)) as pilot:
            await until(pilot, lambda: len(data.snapshot().models) == 8)
            await pilot.press("v")
            await until(pilot, lambda: bool(line_with(app, "from Prometheus; GPU USE")))
            assert "all models 29/s" in line_with(app, "REQUESTS")
            trouble.append("Prometheus by the kubeconfig: it does not answer")
            await pilot.press("left")
            await until(pilot, lambda: bool(line_with(app, "it does not answer")))
            assert "QUEUE" in "\n".join(text_of(app))


async def test_the_past_shows_memory_over_time_and_what_came_later() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("left_square_bracket", "left_square_bracket", "left_square_bracket")
        await pilot.pause()
        text = "\n".join(text_of(app))
        assert "MEMORY, 14:03:22 – 14:03:43" in text
        assert "llama-3-1-8b" in text_of(app)[5]
        assert [line.split()[-1] for line in text_of(app) if "woke in 701ms" in line and "EVENTS" in line] == ["later"]
        view = app.view()
        assert view.then is not None
        tracks = view.then.past.tracks()
        held = [(key[1], amount // 2**30) for key, amount in tracks.at("node-a-0", tracks.moment).models]  # type: ignore[union-attr]
        assert held == [("llama-3-1-8b", 62), ("kimi-vl-a3b", 9)]
        last = [key[1] for key, _ in tracks.of["node-a-0"][-1].models]
        assert last == ["qwen-3-4b-thinking", "kimi-vl-a3b"]
        assert len({view.colours["prod", name] for name in ("llama-3-1-8b", "kimi-vl-a3b", "qwen-3-4b-thinking")}) == 3


@pytest.mark.parametrize(("gpus", "models"), [(1, 1), (2, 8), (4, 12), (9, 30), (64, 200)])
@pytest.mark.parametrize("height", [16, 24, 34, 60])
def test_the_zones_of_the_past_take_as_many_rows_as_those_of_now(gpus: int, models: int, height: int) -> None:
    for width in (80, 120, 200):
        now = layout.plan(width, height, gpus, models)
        deep = -(-gpus // now.gpu_columns)
        then = timeline.plan(now, deep, timeline.rows(now, deep))
        # the wake and the blank line above it make room
        before = now.gpu_rows + now.events + 1 + now.wake_gap
        assert then.gpu_rows + then.events == before
        assert then.events >= 1
        assert not then.wake_gap
