"""What the live view shows and does, on the embedded API in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from textual.pilot import Pilot

from greenthread.clock import format_time
from greenthread.kube.resources import MODELS
from tests.parts.tui.world import NOW, World, occupant, report
from tui.app import Dashboard
from tui.detail import Detail
from tui.dialogs import Confirm, Help
from tui.overview import Overview

SIZES = [(80, 24), (120, 34), (200, 60), (60, 16)]


def text_of(app: Dashboard) -> list[str]:
    """The screen as a person reads it."""
    return [strip.text for strip in app.screen._compositor.render_strips()]


async def until(pilot: Pilot[Any], condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await pilot.pause(0.01)
    raise AssertionError("it did not happen in time\n" + "\n".join(text_of(pilot.app)))  # type: ignore[arg-type]


@asynccontextmanager
async def opened(
    size: tuple[int, int] = (120, 34), world: World | None = None, models: int = 8, **options: Any
) -> AsyncIterator[tuple[World, Dashboard, Pilot[None]]]:
    """The view on the story's cluster, as soon as it shows it."""
    async with world or World() as place:
        if world is None:
            await place.story()
        app = place.app(**options)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: len(app.data.snapshot().models) == models and len(app.data.events) > 3)
            app.paint()
            await pilot.pause()
            yield place, app, pilot


def line_with(app: Dashboard, words: str) -> str:
    return next((line for line in text_of(app) if words in line), "")


@pytest.mark.parametrize("size", SIZES)
async def test_one_look_tells_who_is_on_the_gpus_who_waits_and_why(size: tuple[int, int]) -> None:
    async with opened(size) as (_, app, pilot):
        await pilot.press("j", "j", "j")
        lines = text_of(app)
        assert len(lines) == size[1]
        assert all(len(line) == size[0] for line in lines)
        everything = "\n".join(lines)
        assert "1 waiting" in lines[0]
        assert "14:03:22" in lines[0]
        assert "◌ qwen-3-4b-thinking" in everything
        assert "WHY" in everything
        assert "needs 62.0G on node-a/0, where 24.8G is free: 37.2G short" in " ".join(
            everything.replace("▎", " ").split()
        )
        assert "NEXT" in everything
        assert "14:03:30  in 8.0s: asks llama-3-1-8b to make room" in line_with(app, "NEXT")
        assert "quit" in lines[-1]


async def test_a_gpu_shows_its_occupants_free_and_foreign_memory_and_what_is_short() -> None:
    async with opened() as (_, app, _pilot):
        lines = text_of(app)
        at = next(number for number, line in enumerate(lines) if line.startswith(" node-a/0"))
        assert "● llama-3-1-8b" in lines[at]
        assert "◐ kimi-vl-a3b" in lines[at]
        assert lines[at].split()[-3:] == ["83%", "64°C", "412W"]
        assert "H100  71.2/96.0G" in lines[at + 1]
        assert "24.8G" in lines[at + 1]
        assert "protected 8.0s more" in lines[at + 2]
        assert "37.2G short of 62.0G" in lines[at + 2]
        assert lines[at + 2].rstrip().endswith("waits 1.8s of 5.0s")
        pinned = lines[at + 6]
        assert "★ pinned, never preempted" in pinned
        assert "6.4G free" in pinned
        assert "░ 1.4G other programs" in pinned


async def test_a_wake_is_as_far_as_its_time_by_the_last_one() -> None:
    async with opened() as (world, app, pilot):
        assert line_with(app, "kimi-vl-a3b          ◐ waking 63%")
        assert "63%" in line_with(app, "▎ WAKE ")
        assert "~1.1s to go" in line_with(app, "▎ WAKE ")
        world.clock.moment = NOW + timedelta(seconds=0.5)
        app.paint()
        await pilot.pause()
        assert "80%" in line_with(app, "▎ WAKE ")
        await world.patch_gpu(
            "node-a-0",
            wakeLock=None,
            occupants=[
                occupant("llama-3-1-8b", "serving", 62, becameServingAt=format_time(NOW)),
                occupant("kimi-vl-a3b", "serving", 9.2, becameServingAt=format_time(world.clock.moment)),
                *(occupant(n, "sleeping") for n in ("qwen-3-4b-thinking", "llama-3-1-70b", "mistral-small-24b")),
            ],
        )
        await until(pilot, lambda: "serves after 2.4s" in line_with(app, "kimi-vl-a3b  ✓ copy"))


@pytest.mark.parametrize(("key", "annotation"), [("s", "sleep"), ("x", "preempt")])
async def test_what_disturbs_something_running_is_confirmed_and_cancel_is_the_default(
    key: str, annotation: str
) -> None:
    async with opened() as (world, app, pilot):
        await pilot.press("j", "j", key)  # llama-3-1-8b serves
        assert isinstance(app.screen, Confirm)
        await pilot.pause()
        shown = "\n".join(text_of(app))
        assert "1 request gets 30s (drainTimeout) to finish" in shown
        assert "62.0G on node-a/0, where qwen-3-4b-thinking waits" in shown
        assert f"kubectl greenthread {annotation} llama-3-1-8b -n prod" in shown
        await pilot.press(key, "enter")
        assert isinstance(app.screen, Overview)
        model = await world.client.get(MODELS, "llama-3-1-8b", "prod")
        assert "annotations" not in model["metadata"]
        await pilot.press(key, "y")
        wish = f"greenthread.ai/{annotation}"
        await until(pilot, lambda: any(m.model.annotations.get(wish) for m in app.data.snapshot().models))
        model = await world.client.get(MODELS, "llama-3-1-8b", "prod")
        assert model["metadata"]["annotations"][wish] == format_time(NOW)


async def test_waking_and_pinning_disturb_nothing_and_are_told_with_their_command() -> None:
    async with opened() as (world, app, pilot):
        await pilot.press("G", "w")  # whisper-large-v3 sleeps
        await until(pilot, lambda: bool(app._notifications))
        told = list(app._notifications)
        assert (told[0].title, told[0].message) == (
            "asked whisper-large-v3 to wake",
            "kubectl greenthread wake whisper-large-v3 -n prod",
        )
        await pilot.press("p")
        await until(pilot, lambda: bool(line_with(app, "whisper-large-v3   ★")))
        model = await world.client.get(MODELS, "whisper-large-v3", "prod")
        assert model["spec"]["fairness"]["popular"] is True
        assert model["metadata"]["annotations"] == {"greenthread.ai/wake": format_time(NOW)}


async def test_an_action_that_does_not_apply_says_why() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("x")  # gpt-oss-20b is pinned
        assert isinstance(app.screen, Overview)
        assert [n.message for n in app._notifications] == [
            "gpt-oss-20b is pinned and never preempted: unpin it first (p)"
        ]


async def test_a_model_whose_requests_wait_cannot_be_put_to_sleep() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("j", "j", "j", "s")  # qwen-3-4b-thinking waits
        await pilot.pause()
        assert [n.message for n in app._notifications] == [
            "qwen-3-4b-thinking holds no GPU memory: 5 requests wait for it, and only their clients can end that"
        ]


async def test_a_refused_change_is_told() -> None:
    async with opened() as (world, app, pilot):
        world.network.cut()
        await pilot.press("p")
        await until(pilot, lambda: bool(app._notifications))
        told = next(iter(app._notifications))
        assert told.severity == "error"
        assert "does not answer" in told.message


async def test_readonly_has_no_keys_that_act() -> None:
    async with opened(readonly=True) as (world, app, pilot):
        assert "sleep" not in text_of(app)[-1]
        await pilot.press("s", "p", "w", "x")
        assert isinstance(app.screen, Overview)
        assert not app._notifications
        model = await world.client.get(MODELS, "gpt-oss-20b", "prod")
        assert model["spec"]["fairness"]["popular"] is True


async def test_the_filter_keeps_what_matches_all_words() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("slash", *"llama sleep", "enter")
        await pilot.pause()
        assert "1 of 8" in line_with(app, " MODEL ")
        assert app.screen.selected == ("prod", "llama-3-1-70b")  # type: ignore[attr-defined]
        await pilot.press("escape")
        await pilot.pause()
        assert line_with(app, "gpt-oss-20b        ★")


async def test_enter_shows_one_model_and_escape_comes_back() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("j", "enter")
        assert isinstance(app.screen, Detail)
        await pilot.pause()
        shown = "\n".join(text_of(app))
        assert "models › kimi-vl-a3b" in shown
        assert "LAST WAKES" in shown
        wake = line_with(app, "13:56:42")
        assert wake.split()[:7] == ["13:56:42", "room,", "request", "2ms", "4ms", "3.0s", "3.0s"]
        assert "minRuntime" in shown
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)


async def test_the_mouse_selects_and_opens() -> None:
    async with opened() as (_, app, pilot):
        await pilot.click("#models", offset=(8, 4))
        assert app.screen.selected == ("prod", "llama-3-1-70b")  # type: ignore[attr-defined]
        at = text_of(app)[-1].index("? help")
        await pilot.click("#footer", offset=(at, 0))
        assert isinstance(app.screen, Help)


async def test_a_lost_connection_is_told_greyed_and_mended() -> None:
    async with opened() as (world, app, pilot):
        world.network.cut()
        await until(pilot, lambda: app.data.link.state == "lost")
        app.paint()
        await pilot.pause()
        assert "connection lost" in text_of(app)[1]
        assert "connection refused" in text_of(app)[1]
        assert "✕ lost" in text_of(app)[0]
        assert app.screen.query_one("#models").has_class("-stale")
        world.network.mend()
        await world.patch_gpu("node-a-1", stats={"utilizationPercent": 99})
        await until(pilot, lambda: app.data.link.state == "live")
        app.paint()
        await pilot.pause()
        assert not app.screen.query_one("#models").has_class("-stale")
        assert "live" in text_of(app)[0]
        assert line_with(app, "99%")


async def test_a_cluster_that_never_answered_is_named() -> None:
    world = World()
    async with world:
        world.network.cut()
        app = world.app()
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "no connection: the API server at" in "\n".join(text_of(app)))


@pytest.mark.parametrize("size", SIZES)
async def test_resizing_leaves_a_whole_screen(size: tuple[int, int]) -> None:
    async with opened() as (_, app, pilot):
        await pilot.resize_terminal(*size)
        await pilot.pause()
        await pilot.pause()
        lines = text_of(app)
        assert (len(lines), len(lines[0])) == (size[1], size[0])
        assert "quit" in lines[-1]
        assert "NEXT" in "\n".join(lines)


async def test_many_models_and_gpus_scroll_and_the_selected_one_stays_in_sight() -> None:
    world = World()
    async with world:
        for number in range(20):
            await world.gpu(number % 8, [], node=f"node-{number // 8}")
        for number in range(60):
            await world.model(f"model-{number:02}", "0", 1, report("sleeping", 5))
        app = world.app()
        async with app.run_test(size=(160, 40)) as pilot:
            await until(pilot, lambda: len(app.data.snapshot().models) == 60)
            app.paint()
            await pilot.press("G")
            await pilot.pause()
            assert "▸" in line_with(app, "model-59")
            assert not line_with(app, "model-00")
            await pilot.press("g")
            await pilot.pause()
            assert "▸" in line_with(app, "model-00")
            two = line_with(app, "node-0/0")
            assert "node-1/2" in two  # two columns of ten


async def test_the_selected_model_stays_selected_when_it_moves_or_others_go() -> None:
    async with opened() as (world, app, pilot):
        await pilot.press("j", "j")
        assert app.screen.selected == ("prod", "llama-3-1-8b")  # type: ignore[attr-defined]
        await world.client.delete(MODELS, "gpt-oss-20b", "prod")
        await until(pilot, lambda: len(app.data.snapshot().models) == 7)
        app.paint()
        assert app.screen.selected == ("prod", "llama-3-1-8b")  # type: ignore[attr-defined]


async def test_help_opens_and_closes() -> None:
    async with opened((80, 24)) as (_, app, pilot):
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)


@pytest.mark.parametrize("theme", ["dark", "light"])
async def test_both_themes_paint_every_state_in_its_own_colour(theme: str) -> None:
    async with opened(theme=theme) as (_, app, _pilot):
        palette = app.palette
        states = {palette.serving, palette.waking, palette.pending, palette.sleeping, palette.preparing}
        assert len(states) == 5
        used = {
            segment.style.color.name
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style is not None and segment.style.color is not None
        }
        assert states <= used


async def test_the_detail_fits_a_small_terminal() -> None:
    async with opened((80, 24)) as (_, app, pilot):
        await pilot.press("j", "enter")
        await pilot.pause()
        assert "TOTAL" in line_with(app, "LAST WAKES")
        assert line_with(app, "13:56:42").split()[-4:-1] == ["2ms", "4ms", "3.0s"]
        assert "last wake 3.0s" in line_with(app, "in flight 0")
