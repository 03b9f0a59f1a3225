"""A request's own terms at the door: how long it waits, whom it may preempt, what its answer says of the wait."""

from __future__ import annotations

import asyncio
import re

import pytest

from proxy.terms import Terms
from sidecar.metrics import SidecarState
from sidecar.records import Record
from sidecar.retry import Prospect, retry_after
from tests.unit.sidecar.test_lifecycle import in_world
from tests.unit.sidecar.world import GIB, Exchange

NEVER = Terms(preempts=False)


def timing(exchange: Exchange) -> dict[str, float]:
    """Milliseconds of the field Server-Timing."""
    line = next(line.decode() for line in exchange.response_lines or () if line.startswith(b"Server-Timing"))
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([\d.]+)", line)}


def found(exchange: Exchange) -> str:
    [line] = [line for line in exchange.response_lines or () if line.startswith(b"X-GreenThread-State")]
    return line.partition(b": ")[2].decode()


@in_world
async def test_answers_tell_what_the_request_found_and_how_long_it_waited(world):
    await world.model("a", 60 * GIB, sleep={"idleTimeout": "0s"})
    first, late, awake = Exchange(), Exchange(), Exchange()
    one = asyncio.create_task(world.request("a", exchange=first))
    await world.until(lambda: world.sidecars["a"].lifecycle.state == "waking")
    await asyncio.sleep(0.2)
    two = asyncio.create_task(world.request("a", exchange=late))
    assert [await one, await two, await world.request("a", exchange=awake)] == ["ok"] * 3
    assert [found(first), found(late), found(awake)] == ["sleeping", "waking", "serving"]
    assert timing(first)["wake"] == pytest.approx(500, abs=2), "an engine wakes in 0.5 s here"
    assert timing(first)["queue"] < 50
    assert timing(late)["wake"] == pytest.approx(300, abs=5)
    assert timing(late)["queue"] == 0
    assert timing(awake) == {"queue": 0, "wake": 0}


@in_world
async def test_the_wait_for_room_is_queue_and_not_wake(world):
    await world.model("a", 60 * GIB)
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "2s", "minRuntime": "0s", "yieldAfter": "0s"})
    assert await world.request("a") == "ok"
    waited = Exchange()
    assert await world.request("b", exchange=waited) == "ok"
    assert timing(waited)["queue"] > 2000
    assert timing(waited)["wake"] == pytest.approx(500, abs=2)


@in_world
async def test_a_request_waits_as_long_as_it_says(world):
    await world.model("a", 60 * GIB, fairness={"popular": True})
    await world.model("b", 60 * GIB)
    assert await world.request("a") == "ok"
    loop = asyncio.get_running_loop()
    began, refused = loop.time(), Exchange(Terms(max_wait=3))
    said = await world.request("b", exchange=refused)
    assert loop.time() - began == pytest.approx(3, abs=0.01)
    assert said.startswith("X-GreenThread-Max-Wait allows 3.0s; b cannot fit")
    assert "a (60.0G) is pinned" in said
    assert found(refused) == "sleeping"
    assert timing(refused)["queue"] == pytest.approx(3000, abs=5)
    # what it waited at a gateway counts
    began, late = loop.time(), Exchange(Terms(max_wait=3))
    late.waited = 2.5
    await world.request("b", exchange=late)
    assert loop.time() - began == pytest.approx(0.5, abs=0.01)


@in_world
async def test_who_does_not_wait_at_all_is_served_only_by_an_awake_model_and_wakes_none(world):
    await world.model("a", 60 * GIB, sleep={"idleTimeout": "0s"})
    assert "allows 0ms; the model is asleep" in await world.request("a", exchange=Exchange(Terms(max_wait=0)))
    await asyncio.sleep(1)
    assert world.sidecars["a"].lifecycle.state == "sleeping"
    assert await world.request("a") == "ok"
    assert await world.request("a", exchange=Exchange(Terms(max_wait=0))) == "ok"


@in_world
async def test_a_request_that_never_preempts_waits_for_room_and_makes_nobody_go(world):
    """Neither the busy, nor the idle who would give way by itself."""
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s"})
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "1s"})
    assert await world.request("a") == "ok"
    waiting = asyncio.create_task(world.request("b", exchange=Exchange(NEVER)))
    await asyncio.sleep(30)
    [intent] = (await world.gpu()).intents
    assert (intent.model, intent.preempts, intent.victims) == ("b", False, ())
    assert world.sidecars["a"].lifecycle.state == "serving"
    assert "who waits asked not to preempt" in world.sidecars["b"].lifecycle.explain()
    world.sidecars["a"].lifecycle.wish_sleep(preempt=False)
    assert await waiting == "ok"


@in_world
async def test_another_request_of_the_same_model_may_preempt_for_both(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s", "yieldAfter": "0s"})
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "1s", "minRuntime": "0s"})
    assert await world.request("a") == "ok"
    polite = asyncio.create_task(world.request("b", exchange=Exchange(NEVER)))
    await asyncio.sleep(30)
    began = asyncio.get_running_loop().time()
    assert await world.request("b") == "ok"
    assert 1 < asyncio.get_running_loop().time() - began < 3, "its own maxWaitTime counts, not the other's age"
    assert await polite == "ok"
    assert "Preempted" in await world.events("a")


@in_world
async def test_when_the_one_leaves_that_may_preempt_nobody_is_named_any_more(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s", "yieldAfter": "0s"})
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "2s"})
    assert await world.request("a") == "ok"
    polite = asyncio.create_task(world.request("b", exchange=Exchange(NEVER)))
    await world.request("b", exchange=Exchange(Terms(max_wait=1)))
    await asyncio.sleep(10)
    [intent] = (await world.gpu()).intents
    assert (intent.preempts, intent.victims) == (False, ())
    assert world.sidecars["a"].lifecycle.state == "serving"
    polite.cancel()
    await asyncio.gather(polite, return_exceptions=True)


@in_world
async def test_who_never_preempts_stands_behind_who_may(world):
    """Victims that somebody else names make room for somebody else."""
    fairness = {"minRuntime": "0s", "yieldAfter": "0s", "maxWaitTime": "1s"}
    for name in ("a", "b", "c"):
        await world.model(name, 40 * GIB, fairness=fairness)
    await world.model("d", 50 * GIB, fairness=fairness)
    assert [await world.request("a"), await world.request("b")] == ["ok", "ok"]
    polite = asyncio.create_task(world.request("d", exchange=Exchange(NEVER)))
    await asyncio.sleep(5)
    assert await world.request("c") == "ok"
    assert world.sidecars["b"].lifecycle.state == "serving", "one victim is enough for c"
    assert not polite.done()
    polite.cancel()
    await asyncio.gather(polite, return_exceptions=True)


def wake(queue: float, engine: float, error: str = "") -> Record:
    return Record("wake", "", "", "", steps={"queue": queue, "claim": 0.0, "engine": engine}, error=error)


WAKES = [wake(0, 900), wake(0, 2), wake(4, 3), wake(6, 4), wake(5, 100, "failed"), wake(8, 5), wake(5, 20)]
"""Of the last five that worked: queue 5 s, engine 4 s."""
BOOTS = [Record("boot", "", "", "", steps={"queue": 1.0, "claim": 1.0, "engine": 40.0})]
SLEEPS = [Record("sleep", "", "", "", steps={"drain": 3.0, "engine": 0.1})]
S = SidecarState


@pytest.mark.parametrize(
    ("prospect", "records", "seconds"),
    [
        (Prospect(S.SLEEPING, 9), WAKES, 5 + 4),
        (Prospect(S.SLEEPING, 9), [], 5),
        (Prospect(S.SLEEPING, 9, boot_ready=False, boot_pause=7.2), WAKES + BOOTS, 50),
        (Prospect(S.PENDING, 2), WAKES, 3 + 4),
        (Prospect(S.PENDING, 60), WAKES, 4),
        (Prospect(S.PENDING, 2, ahead=2), WAKES, 3 + 3 * 4),
        (Prospect(S.PENDING, 2, decides_in=11), WAKES, 11 + 4),
        (Prospect(S.PENDING, 2, cannot_fit=True), WAKES, 30),
        (Prospect(S.WAKING, 1), WAKES, 3),
        (Prospect(S.WAKING, 3.9), WAKES, 1),
        (Prospect(S.WAKING, 10, boot_ready=False), BOOTS, 31),
        (Prospect(S.WAKING, 100, boot_ready=False), BOOTS, 11),
        (Prospect(S.DEACTIVATING, 1), [*WAKES, *SLEEPS], 2 + 5 + 4),
        (Prospect(S.SERVING, 1), WAKES, 1),
        (Prospect(S.SLEEPING, 0), [wake(0, 0.2)], 1),
        (Prospect(S.PENDING, 0, ahead=1000), WAKES, 600),
    ],
)
def test_retry_after_comes_from_what_was_measured(prospect, records, seconds):
    assert retry_after(prospect, records) == seconds
