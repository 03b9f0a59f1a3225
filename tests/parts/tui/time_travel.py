"""Two minutes of two GPUs, to be looked at afterwards: `async with travelled() as (app, pilot)`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, timedelta
from typing import Any

from textual.pilot import Pilot

from greenthread.clock import format_time
from greenthread.kube.aio import AsyncClient
from tests.parts.tui.test_overview import until
from tests.parts.tui.world import NOW, World, intent, occupant, record, report
from tui.app import Dashboard
from tui.data import ClusterData

NAMES = {"llama-3-1-8b": 62.0, "kimi-vl-a3b": 9.2, "qwen-3-4b-thinking": 62.0, "mistral-small-24b": 50.0}
STEPS: tuple[tuple[float, dict[str, str], str], ...] = (
    # seconds after the start, who changes to what, who waits
    (14, {"mistral-small-24b": "deactivating"}, ""),
    (15, {"mistral-small-24b": "sleeping"}, ""),
    (16, {"llama-3-1-8b": "waking"}, ""),
    (17, {"llama-3-1-8b": "serving"}, ""),
    (29, {"kimi-vl-a3b": "waking"}, ""),
    (32, {"kimi-vl-a3b": "serving"}, ""),
    (76.7, {}, "qwen-3-4b-thinking"),
    (81.9, {"llama-3-1-8b": "deactivating"}, "qwen-3-4b-thinking"),
    (83, {"llama-3-1-8b": "sleeping"}, "qwen-3-4b-thinking"),
    (83.3, {"qwen-3-4b-thinking": "waking"}, ""),
    (84, {"qwen-3-4b-thinking": "serving"}, ""),
    (100, {"kimi-vl-a3b": "deactivating"}, ""),
    (101, {"kimi-vl-a3b": "sleeping"}, ""),
    (112, {"qwen-3-4b-thinking": "deactivating"}, ""),
    (113, {"qwen-3-4b-thinking": "sleeping"}, ""),
    (118, {"mistral-small-24b": "waking"}, ""),
    (119, {"mistral-small-24b": "serving"}, ""),
)
START = NOW - timedelta(seconds=120)


@asynccontextmanager
async def travelled(seconds: float = 78.0, **options: Any) -> AsyncIterator[tuple[Dashboard, Pilot[None]]]:
    """The dashboard after these two minutes, as it shows the moment so many seconds after their start."""
    async with World() as world:
        world.clock.moment = START
        states = dict.fromkeys(NAMES, "sleeping") | {"mistral-small-24b": "serving"}
        since = dict.fromkeys(NAMES, -300.0)
        await world.gpu(0, _occupants(states, since), stats=_stats(60, 0), foreignMemoryBytes=0)
        others = [occupant("gpt-oss-20b", "serving", 88.2, popular=True, becameServingAt=_at(-70)),
                  occupant("whisper-large-v3", "serving", 3.1, becameServingAt=_at(-200))]  # fmt: skip
        await world.gpu(1, others, stats=_stats(14, 1))
        for name, need in NAMES.items():
            wake = {"llama-3-1-8b": 0.562, "kimi-vl-a3b": 3.0, "qwen-3-4b-thinking": 0.701}.get(name, 0.87)
            await world.model(name, "0", need, report(states[name], 420, requests=9, wake=wake))
        await world.model("gpt-oss-20b", "1", 88.2, report("serving", 190, inFlight=3, requests=900, wake=0.612),
                          fairness={"popular": True})  # fmt: skip
        await world.model("whisper-large-v3", "1", 3.1, report("serving", 320, requests=30, wake=0.318))
        data = ClusterData(AsyncClient(world.network), clock=world.clock)
        app = Dashboard(data, "prod-eu", zone=UTC, **options)
        async with app.run_test(size=(120, 34)) as pilot:
            await until(pilot, lambda: len(data.snapshot().models) == 6 and data._begun)
            requests = 900
            for tenth in range(0, 1200, 5):
                second = tenth / 10
                world.clock.moment = START + timedelta(seconds=second)
                for after, changes, waiting in STEPS:
                    if abs(after - second) < 0.25:
                        await pilot.pause(0.02)  # what happened is heard before the clock goes on
                        await _step(world, states, since, after, changes, waiting)
                        await pilot.pause(0.02)
                if tenth % 20 == 0:
                    requests += 21 + tenth % 7
                    await world.report("gpt-oss-20b", report("serving", 190, inFlight=3, requests=requests, wake=0.612))
                    for index, use in ((0, 40 + tenth % 37), (1, 10 + tenth % 9)):
                        await world.patch_gpu(f"node-a-{index}", stats=_stats(use, index))
                    await pilot.pause(0.01)
            await until(pilot, lambda: data.snapshot().gpus[0].gpu.occupants[3].reserved > 0)
            await pilot.pause(0.1)
            world.clock.moment = NOW
            app.travel._at(START.timestamp() + seconds)
            app.paint()
            await pilot.pause()
            yield app, pilot


async def _step(
    world: World, states: dict[str, str], since: dict[str, float], after: float, changes: dict[str, str], waiting: str
) -> None:
    world.clock.moment = START + timedelta(seconds=after)
    states |= changes
    since |= dict.fromkeys(changes, after)
    waking = next((name for name, state in states.items() if state == "waking"), None)
    waits = []
    if waiting:
        waits = [intent(waiting, NAMES[waiting], 0) | {"since": _at(76.7)}]
    lock = {"holder": f"prod/{waking}-0", "acquiredAt": _at(after)} if waking else None
    await world.patch_gpu("node-a-0", occupants=_occupants(states, since), preemptionIntents=waits, wakeLock=lock)
    ago = 120 - after
    for name, state in changes.items():
        reported = {"deactivating": "deactivating", "waking": "waking"}.get(state, state)
        await world.report(name, report(reported, ago, requests=9, wake=0.7, inFlight=2 if state == "serving" else 0))
        if state == "serving":
            await world.event(name, "Woke", "woke in 701ms on node-a/0 (queue 2ms, claim 4ms, engine 695ms)", ago,
                              record("wake", ago, queue=0.002, claim=0.004, engine=0.695))  # fmt: skip
        elif state == "sleeping":
            await world.event(name, "Slept", f"slept in 92ms on node-a/0, freed {NAMES[name]}G", ago)
    if waiting and not changes:
        await world.report(waiting, report("pending", ago, queued=3, requests=9, wake=0.7))
        await world.event(waiting, "Waiting", "asks for room: needs 62.0G on node-a/0, where 24.8G is free", ago)


def _occupants(states: dict[str, str], since: dict[str, float]) -> list[dict[str, Any]]:
    return [
        occupant(name, state, 0 if state == "sleeping" else NAMES[name],
                 **({"becameServingAt": _at(since[name])} if state == "serving" else {}))
        for name, state in states.items()
    ]  # fmt: skip


def _stats(use: int, index: int) -> dict[str, int]:
    return {"utilizationPercent": use, "temperatureCelsius": 62 - 11 * index, "powerWatts": (388, 146)[index]}


def _at(seconds: float) -> str:
    return format_time(START + timedelta(seconds=seconds))
