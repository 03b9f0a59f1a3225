"""What the model checker found (docs/protocol.md): trouble in the middle of a write, one test each."""

import asyncio
import json
from datetime import timedelta

from greenthread.gpu import Intent, Occupant, PodRef, State
from greenthread.kube.errors import Unreachable
from greenthread.kube.resources import GPUS
from tests.unit.sidecar.test_lifecycle import in_world, state
from tests.unit.sidecar.world import GIB, NAMESPACE

SOON = {"minRuntime": "0s", "maxWaitTime": "1s"}


def on_write(world, gpu, word, then):
    """Runs ``then(send)`` in the place of the next write to the GPU's status in whose body ``word`` stands."""
    request, done = world.transport.request, []

    async def hooked(method, path, *args, **options):
        send = lambda: request(method, path, *args, **options)  # noqa: E731
        body = next((arg for arg in (*args, *options.values()) if isinstance(arg, bytes)), b"")
        if not done and method == "PATCH" and path.endswith(f"/gpus/{gpu}/status") and word in _values(body):
            done.append(True)
            return await then(send)
        return await send()

    world.transport.request = hooked
    return done


def _values(body):
    return json.dumps([op.get("value") for op in json.loads(body) if op["op"] != "test"])


async def lost(send):
    """The write is made, its answer never comes."""
    await send()
    raise Unreachable("the connection broke")


async def another_program_takes(world, gpu, amount):
    body = {"status": {"foreignMemoryBytes": amount}}
    await world.client.patch(GPUS, gpu, body, namespace=NAMESPACE, subresource="status")


@in_world
async def test_a_gang_whose_claim_got_no_answer_does_not_wait_while_holding(world):
    await world.model("gang", 60 * GIB, gpus=(0, 1))
    await world.model("b", 60 * GIB)

    async def fails(_send):
        await another_program_takes(world, "n-1", 50 * GIB)
        raise Unreachable("the connection broke")

    done = on_write(world, "n-1", "waking", fails)
    waiting = asyncio.create_task(world.request("gang"))
    await asyncio.sleep(10)
    assert done
    gpu = await world.gpu(0)
    assert gpu.occupants[0].reserved == 0
    assert gpu.wake_lock is None
    assert await world.request("b") == "ok"
    await another_program_takes(world, "n-1", 0)
    assert await waiting == "ok"


@in_world
async def test_a_claim_without_an_answer_is_given_back_when_nobody_wants_it_any_more(world):
    await world.model("a", 60 * GIB)
    waiting = asyncio.create_task(world.request("a"))

    async def client_leaves_too(send):
        await send()
        waiting.cancel()
        raise Unreachable("the connection broke")

    done = on_write(world, "n-0", "waking", client_leaves_too)
    await asyncio.sleep(10)
    assert done
    gpu = await world.gpu()
    assert (gpu.occupants[0].state, gpu.occupants[0].reserved, gpu.wake_lock) == (State.SLEEPING, 0, None)


@in_world
async def test_who_began_to_leave_leaves_though_the_answer_was_lost(world):
    await world.model("a", 60 * GIB, fairness=SOON, sleep={"idleTimeout": "5s", "drainTimeout": "10s"})
    await world.model("b", 60 * GIB, fairness=SOON)
    assert await world.request("a") == "ok"
    long = []

    async def request_comes_then(send):
        long.append(asyncio.create_task(world.request("a", 1000)))
        return await lost(send)

    on_write(world, "n-0", "deactivating", request_comes_then)
    await world.until(lambda: bool(long))
    await asyncio.sleep(5)
    assert await world.request("b") == "ok", "a is not in the way for ever, with an entry that says it leaves"
    long[0].cancel()


@in_world
async def test_an_engine_that_dies_while_its_wake_is_claimed_boots_under_a_boots_claim(world):
    await world.model("a", 60 * GIB)

    async def dies(send):
        world.engines["a"].crash()
        return await send()

    done = on_write(world, "n-0", "waking", dies)
    starts = world.engines["a"].calls.count("start")
    waiting = asyncio.create_task(world.request("a"))
    await world.until(lambda: world.engines["a"].calls.count("start") > starts)
    assert done
    gpu = await world.gpu()
    assert gpu.occupants[0].state is State.CONVERTING
    assert gpu.wake_lock is None, "a boot lasts minutes"
    assert await waiting == "ok"


@in_world
async def test_an_engine_that_dies_while_its_sleep_is_written_is_not_taken_for_asleep(world):
    sidecar = await world.model("a", 60 * GIB, fairness=SOON, sleep={"idleTimeout": "5s"})
    assert await world.request("a") == "ok"

    async def dies(send):
        world.engines["a"].crash()
        return await send()

    starts = world.engines["a"].calls.count("start")
    done = on_write(world, "n-0", "sleeping", dies)
    await world.until(lambda: bool(done))
    await world.until(lambda: world.engines["a"].calls.count("start") > starts)
    await world.until(lambda: sidecar.lifecycle.boot_ready and state(world, "a") == "sleeping")
    assert await world.request("a") == "ok"


@in_world
async def test_a_gang_that_turned_back_and_is_not_wanted_any_more_leaves_no_intent(world):
    await world.model("gang", 60 * GIB, gpus=(0, 1))
    waiting = asyncio.create_task(world.request("gang"))

    async def refused(send):
        await another_program_takes(world, "n-1", 50 * GIB)
        waiting.cancel()
        return await send()

    done = on_write(world, "n-1", "waking", refused)
    await asyncio.sleep(10)
    assert done
    for index in (0, 1):
        assert (await world.gpu(index)).intents == ()


async def somebody_waits(world, gpu, amount):
    """An intent that is older than all others, of a pod that is not there."""
    intent = Intent(PodRef(NAMESPACE, "older-0"), "older", amount, world.clock.now() - timedelta(minutes=1))
    op = {"op": "add", "path": "/status/preemptionIntents/-", "value": intent.to_object()}
    await world.client.patch(GPUS, gpu, [op], namespace=NAMESPACE, subresource="status")


@in_world
async def test_a_gang_does_not_pass_who_came_between_its_two_claims(world):
    await world.model("gang", 60 * GIB, gpus=(0, 1))

    async def older_comes(send):
        answer = await send()
        await somebody_waits(world, "n-1", 60 * GIB)
        await asyncio.sleep(0.01)
        return answer

    done = on_write(world, "n-0", "waking", older_comes)
    waiting = asyncio.create_task(world.request("gang"))
    await asyncio.sleep(5)
    assert done
    for index in (0, 1):
        gpu = await world.gpu(index)
        assert (gpu.occupants[0].reserved, gpu.wake_lock) == (0, None), "the older one would lack 20 GiB"
        assert gpu.intent(PodRef(NAMESPACE, "gang-0"))
    waiting.cancel()


@in_world
async def test_who_passes_an_older_one_notices_a_boot_that_takes_the_room_of_both(world):
    await world.model("a", 30 * GIB)
    await somebody_waits(world, "n-0", 40 * GIB)

    async def somebody_boots(send):
        booting = Occupant(PodRef(NAMESPACE, "boot-0"), "boot", State.CONVERTING, 50 * GIB)
        op = {"op": "add", "path": "/status/occupants/-", "value": booting.to_object()}
        await world.client.patch(GPUS, "n-0", [op], namespace=NAMESPACE, subresource="status")
        return await send()

    done = on_write(world, "n-0", "waking", somebody_boots)
    waiting = asyncio.create_task(world.request("a"))
    await asyncio.sleep(5)
    assert done
    gpu = await world.gpu()
    assert gpu.occupants[0].reserved == 0, "the older one would lack 20 GiB"
    waiting.cancel()


@in_world
async def test_who_waits_longer_takes_a_free_wake_lock_first(world):
    for name, memory in (("holder", 10), ("big", 60), ("small", 10)):
        await world.model(name, memory * GIB)
    world.engines["holder"].wake_time = 5.0
    waiting = []
    for name in ("holder", "big", "small"):
        waiting.append(asyncio.create_task(world.request(name)))
        await asyncio.sleep(1)

    async def slowly(send):
        await asyncio.sleep(0.02)
        return await send()

    done = on_write(world, "n-0", "big-0", slowly)
    waking = world.ledger.waking
    await world.until(lambda: waking.get("n-0", "holder") != "holder")
    assert done
    assert waking["n-0"] == "big"
    assert await asyncio.gather(*waiting) == ["ok"] * 3


@in_world
async def test_who_is_younger_does_not_wait_for_an_older_one_that_lacks_something_elsewhere(world):
    await world.model("a", 30 * GIB)
    await somebody_waits(world, "n-0", 60 * GIB)
    began = asyncio.get_running_loop().time()
    assert await world.request("a", 0) == "ok"
    assert asyncio.get_running_loop().time() - began < 1


@in_world
async def test_who_becomes_idle_while_it_writes_its_entry_still_gives_way(world):
    patient = {"minRuntime": "0s", "maxWaitTime": "1h", "yieldAfter": "1s"}
    await world.model("a", 60 * GIB, fairness=patient, sleep={"idleTimeout": "1h"})
    await world.model("b", 60 * GIB, fairness=patient)
    running = asyncio.create_task(world.request("a", 1000))
    await world.until(lambda: state(world, "a") == "serving" and world.sidecars["a"].door.in_flight == 1)
    await asyncio.sleep(5)

    async def request_ends(send):
        running.cancel()
        await asyncio.sleep(0.01)
        return await send()

    done = on_write(world, "n-0", "serving", request_ends)
    async with asyncio.timeout(20):
        assert await world.request("b") == "ok"
    assert done


async def its_sidecar_stays_down(world, name):
    """What the node agent writes when it has found out."""
    await world.kill(name)
    index = [occupant.model for occupant in (await world.gpu()).occupants].index(name)
    op = {"op": "add", "path": f"/status/occupants/{index}/sidecarDown", "value": True}
    await world.client.patch(GPUS, "n-0", [op], namespace=NAMESPACE, subresource="status")


@in_world
async def test_who_waits_names_another_when_its_victims_sidecar_stays_down(world):
    for name in ("a", "b", "c"):
        await world.model(name, 50 * GIB, fairness={**SOON, "yieldAfter": "0s"}, sleep={"idleTimeout": "1h"})
    for name in ("a", "b"):
        assert await world.request(name) == "ok"
    await world.kill("a")
    waiting = asyncio.create_task(world.request("c"))
    await asyncio.sleep(5)
    (intent,) = (await world.gpu()).intents
    assert [victim.name for victim in intent.victims] == ["a-0"]
    await its_sidecar_stays_down(world, "a")
    async with asyncio.timeout(5):
        assert await waiting == "ok"
    world.start("a")
    await asyncio.sleep(1)
    assert not any(occupant.sidecar_down for occupant in (await world.gpu()).occupants), "it is back, and says so"
    async with asyncio.timeout(10):
        assert await world.request("b") == "ok", "and may be named"


@in_world
async def test_who_is_idle_gives_way_when_who_was_leaving_has_no_sidecar(world):
    patient = {"minRuntime": "0s", "maxWaitTime": "1h", "yieldAfter": "1s"}
    for name in ("a", "b", "c"):
        await world.model(name, 50 * GIB, fairness=patient, sleep={"idleTimeout": "1h", "drainTimeout": "1h"})
    for name in ("a", "b"):
        assert await world.request(name) == "ok"
    world.engines["a"].sleep_time = 1000.0
    world.sidecars["a"].lifecycle.wish_sleep(preempt=False)
    await world.until(lambda: state(world, "a") == "deactivating")
    running = asyncio.create_task(world.request("c"))
    await asyncio.sleep(5)
    assert state(world, "b") == "serving", "it counts on a"
    await its_sidecar_stays_down(world, "a")
    async with asyncio.timeout(5):
        assert await running == "ok"


@in_world
async def test_an_engine_that_dies_while_its_new_sidecar_withdraws_gets_no_requests(world):
    await world.model("a", 60 * GIB)
    assert await world.request("a") == "ok"
    await world.kill("a")
    me = PodRef(NAMESPACE, "a-0")
    intent = Intent(me, "a", 60 * GIB, world.clock.now())
    op = {"op": "add", "path": "/status/preemptionIntents/-", "value": intent.to_object()}
    await world.client.patch(GPUS, "n-0", [op], namespace=NAMESPACE, subresource="status")
    request = world.transport.request

    async def dies(method, path, *args, **options):
        if method == "PATCH" and path.endswith("/gpus/n-0/status"):
            world.transport.request = request
            world.engines["a"].crash()
        return await request(method, path, *args, **options)

    world.transport.request = dies
    world.start("a")
    assert await world.request("a") == "ok", "after a boot"
    assert world.transport.request == request
