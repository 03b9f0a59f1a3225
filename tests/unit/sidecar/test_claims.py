"""What a pod reads when its write was refused, and how seldom."""

import asyncio

from greenthread.gpu import Gpu
from greenthread.kube.reflector import Reflector
from tests.unit.sidecar.test_lifecycle import in_world
from tests.unit.sidecar.world import GIB


async def both_are_asked(world):
    """Two models want the wake lock at the same moment: one of them is refused. Requests made meanwhile, by kind."""
    await world.model("a", 30 * GIB)
    await world.model("b", 30 * GIB)
    await asyncio.sleep(10)
    before = dict(world.transport.requests)
    answers = await asyncio.gather(world.request("a", 0), world.request("b", 0))
    assert answers == ["ok", "ok"]
    assert sum(sidecar.metrics.cas_conflicts._value.get() for sidecar in world.sidecars.values()) >= 1
    return {kind: count - before.get(kind, 0) for kind, count in world.transport.requests.items()}


@in_world
async def test_what_a_watch_tells_of_a_refusal_is_not_asked_for_again(world):
    assert (await both_are_asked(world))["GET gpus"] == 0


@in_world
async def test_who_is_refused_and_hears_nothing_of_it_reads_the_gpu(world):
    put, deaf = Reflector._put, False

    def heard(self, obj):
        if not deaf or obj["kind"] != "GPU":
            put(self, obj)

    Reflector._put = heard
    try:
        await world.model("a", 30 * GIB)
        await world.model("b", 30 * GIB)
        await asyncio.sleep(10)
        deaf = True
        first = asyncio.create_task(world.request("a", 0))
        await asyncio.sleep(0.1)
        claims = world.sidecars["b"].claims
        assert [gpu.wake_lock for gpu in claims.gpus()] == [None], "b has not heard of the wake"
        before = world.transport.requests.get("GET gpus", 0)
        second = asyncio.create_task(world.request("b", 0))
        await asyncio.sleep(0.1)
        assert world.transport.requests["GET gpus"] == before + 1
        assert [gpu.wake_lock is not None for gpu in claims.gpus()] == [True]
        deaf = False
        assert await asyncio.gather(first, second) == ["ok", "ok"]
    finally:
        Reflector._put = put


@in_world
async def test_an_object_is_read_into_a_decision_once_for_each_version(world):
    read = []
    original = Gpu.from_object.__func__

    def counted(cls, obj):
        read.append(obj["metadata"]["resourceVersion"])
        return original(cls, obj)

    await world.model("a", 30 * GIB)
    await asyncio.sleep(10)
    Gpu.from_object = classmethod(counted)
    try:
        assert await world.request("a", 0) == "ok"
        await asyncio.sleep(1)
    finally:
        Gpu.from_object = classmethod(original)
    assert read
    assert len(read) == len(set(read))
