"""What the simulation found (tests/simulation), one test each."""

import asyncio

from greenthread.kube.errors import Unreachable
from greenthread.kube.resources import GPUS
from tests.unit.sidecar.test_faults import on_write
from tests.unit.sidecar.test_lifecycle import in_world, state
from tests.unit.sidecar.world import GIB, NAMESPACE


def late_watches(world, seconds):
    """From now on, a watch tells of a change this much later."""
    stream = world.transport.stream

    async def late(*args, **options):
        async for line in stream(*args, **options):
            await asyncio.sleep(seconds)
            yield line

    world.transport.stream = late


@in_world
async def test_room_that_is_first_seen_in_the_answer_to_the_own_write_is_used(world):
    """Its watch says nothing of a version that it knows already: seed 87 waited for ever on an empty GPU."""
    late_watches(world, 0.02)
    await world.model("a", 60 * GIB)
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "100s"})
    assert await world.request("a") == "ok"
    await world.kill("a")

    async def sleeps_meanwhile(send):
        (entry,) = [k for k, o in enumerate((await world.gpu(0)).occupants) if o.model == "a"]
        for phase, reserved in (("deactivating", 60 * GIB), ("sleeping", 0)):
            path = f"/status/occupants/{entry}"
            ops = [
                {"op": "replace", "path": f"{path}/state", "value": phase},
                {"op": "replace", "path": f"{path}/reservedMemoryBytes", "value": reserved},
            ]
            await world.client.patch(GPUS, "n-0", ops, namespace=NAMESPACE, subresource="status")
        world.ledger.free("a")
        return await send()

    done = on_write(world, "n-0", "requestedMemoryBytes", sleeps_meanwhile)
    async with asyncio.timeout(10):
        assert await world.request("b") == "ok"
    assert done


@in_world
async def test_a_request_that_comes_after_the_engine_died_waits_for_the_next(world):
    """Also while the sidecar is busy with a slow API server: in seed 99 the door stayed open, and it got a 502."""
    await world.model("a", 60 * GIB)
    assert await world.request("a") == "ok"
    world.engines["a"].crash()
    assert await world.request("a") == "ok"


@in_world
async def test_an_api_server_that_swallows_the_write_of_a_sleep_does_not_stop_the_serving(world):
    """Seed 46: the door was shut until the client's own time limit of 30 s was over, and the request was refused."""
    await world.model("a", 60 * GIB, sleep={"idleTimeout": "2s"}, fairness={"minRuntime": "0s"})
    assert await world.request("a") == "ok"

    async def swallowed(_send):
        await asyncio.sleep(30)
        raise Unreachable("no answer within 30 s")

    done = on_write(world, "n-0", "deactivating", swallowed)
    await world.until(lambda: done)
    async with asyncio.timeout(5):
        assert await world.request("a") == "ok"
    await world.until(lambda: state(world, "a") == "sleeping")
