"""The sidecar's promises (CONTRACT §2, PROTOCOL) on the embedded API, in virtual time."""

import asyncio

import pytest

from greenthread.gpu import State
from greenthread.kube.resources import GPUS, MODELS, PODS
from tests.unit.sidecar.world import GIB, NAMESPACE, World
from tests.virtual import run


def in_world(test):
    """Runs an async test in virtual time with a World of one GPU of 100 GiB."""

    def wrapper(tmp_path):
        async def main():
            async with World(tmp_path, gpus=2) as world:
                await test(world)

        run(main(), turn=1e-6)

    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    return wrapper


def state(world, name):
    return str(world.sidecars[name].lifecycle.state)


@in_world
async def test_boots_into_sleeping_under_a_claim_and_measures(world):
    sidecar = await world.model("a", 60 * GIB, booted=False)
    await world.until(lambda: state(world, "a") == "waking")
    occupant = (await world.gpu()).occupants[0]
    assert occupant.state is State.CONVERTING
    assert occupant.reserved >= 60 * GIB
    assert (await world.gpu()).wake_lock is None
    await world.until(lambda: state(world, "a") == "sleeping")
    assert sidecar.lifecycle.boot_ready
    occupant = (await world.gpu()).occupants[0]
    assert (occupant.state, occupant.reserved) == (State.SLEEPING, 0)
    assert not world.ledger.held


@in_world
async def test_a_request_wakes_it_and_many_cause_one_wake(world):
    sidecar = await world.model("a", 60 * GIB)
    answers = await asyncio.gather(*(world.request("a") for _ in range(50)))
    assert answers == ["ok"] * 50
    assert world.engines["a"].calls.count("wake") == 1
    assert b"gthread_sidecar_wake_deduplications_total 49.0" in sidecar.metrics.text()
    gpu = await world.gpu()
    assert gpu.occupants[0].state is State.SERVING
    assert gpu.occupants[0].reserved == 60 * GIB, "what was measured, not what a boot claims"
    assert gpu.wake_lock is None


@in_world
async def test_a_wake_that_fits_costs_two_writes(world):
    await world.model("a", 60 * GIB)
    await asyncio.sleep(10)
    before = dict(world.transport.requests)
    assert await world.request("a", 0) == "ok"
    await asyncio.sleep(0.1)
    writes = {k: n - before.get(k, 0) for k, n in world.transport.requests.items()}
    assert writes["PATCH gpus"] == 2
    assert writes["GET gpus"] == 0


@in_world
async def test_nothing_is_asked_of_the_api_while_nothing_happens(world):
    await world.model("a", 60 * GIB)
    await asyncio.sleep(20)
    before = dict(world.transport.requests)
    await asyncio.sleep(100)
    assert world.transport.requests == before


@in_world
async def test_an_idle_model_gives_way_after_yield_after(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "2s"})
    await world.model("b", 60 * GIB)
    assert await world.request("a") == "ok"
    began = asyncio.get_running_loop().time()
    assert await world.request("b") == "ok"
    took = asyncio.get_running_loop().time() - began
    assert 2.0 < took < 3.5, "after minRuntime, long before maxWaitTime"
    assert (await world.gpu()).occupant(world.sidecars["a"].settings.pod).reserved == 0
    assert b'preemptions_total{role="preempted"} 1.0' in world.sidecars["a"].metrics.text()
    await asyncio.sleep(1)
    assert "GaveWay" in await world.events("a")


@in_world
async def test_a_busy_model_is_preempted_after_max_wait_time_and_drains_first(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "1s"})
    await world.model("b", 60 * GIB)
    stream = asyncio.create_task(world.request("a", 8.0))
    await world.until(lambda: state(world, "a") == "serving")
    waiting = asyncio.create_task(world.request("b"))
    await asyncio.sleep(5.5)
    assert state(world, "a") == "deactivating"
    late = asyncio.create_task(world.request("a"))
    assert await stream == "ok", "what is in flight finishes"
    assert await waiting == "ok"
    assert await late == "ok", "a request that came while draining is queued, and served after the next wake"
    assert b'preemptions_total{role="preemptor"} 1.0' in world.sidecars["b"].metrics.text()
    assert not (await world.gpu()).intents


@in_world
async def test_a_drain_ends_at_drain_timeout(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s"}, sleep={"drainTimeout": "2s"})
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "0s"})
    stream = asyncio.create_task(world.request("a", 100.0))
    await world.until(lambda: state(world, "a") == "serving")
    assert await world.request("b") == "ok"
    assert b"barrier_timeouts_total 1.0" in world.sidecars["a"].metrics.text()
    stream.cancel()


@in_world
async def test_a_pinned_model_stays_and_the_waiter_is_told_who_is_in_the_way(world):
    await world.model("a", 60 * GIB, fairness={"popular": True, "minRuntime": "0s"})
    await world.model("b", 60 * GIB)
    assert await world.request("a") == "ok"
    began = asyncio.get_running_loop().time()
    answer = await world.request("b")
    assert asyncio.get_running_loop().time() - began == pytest.approx(120, abs=1)
    assert "a (60.0G) is pinned" in answer
    assert state(world, "a") == "serving"
    await world.until(lambda: state(world, "b") == "sleeping")
    assert not (await world.gpu()).intents


@in_world
async def test_min_runtime_is_honoured(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "30s"})
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "0s"})
    assert await world.request("a") == "ok"
    began = asyncio.get_running_loop().time()
    assert await world.request("b") == "ok"
    assert asyncio.get_running_loop().time() - began > 29


@in_world
async def test_sleeps_by_itself_when_idle(world):
    await world.model("a", 60 * GIB, sleep={"idleTimeout": "20s"})
    assert await world.request("a") == "ok"
    await asyncio.sleep(15)
    assert state(world, "a") == "serving"
    await asyncio.sleep(6)
    assert state(world, "a") == "sleeping"
    assert not world.ledger.held


@in_world
async def test_a_gang_takes_both_gpus_or_none(world):
    await world.model("big", 60 * GIB, gpus=(0, 1), fairness={"minRuntime": "1s"})
    await world.model("a", 60 * GIB, gpus=(0,), fairness={"minRuntime": "1s"})
    await world.model("b", 60 * GIB, gpus=(1,), fairness={"minRuntime": "1s"})
    assert await asyncio.gather(world.request("a"), world.request("b")) == ["ok", "ok"]
    assert await world.request("big") == "ok"
    for index in (0, 1):
        gpu = await world.gpu(index)
        assert [o.model for o in gpu.occupants if o.reserved] == ["big"]
        assert not gpu.intents
    assert await asyncio.gather(world.request("a"), world.request("b"), world.request("big")) == ["ok"] * 3


@in_world
async def test_people_wake_and_put_to_sleep_by_annotations(world):
    await world.model("a", 60 * GIB)
    await world.annotate("a", "greenthread.ai/wake")
    await world.until(lambda: state(world, "a") == "serving")
    await world.annotate("a", "greenthread.ai/sleep")
    await world.until(lambda: state(world, "a") == "sleeping")
    await world.annotate("a", "greenthread.ai/wake", seconds_ago=400)
    await asyncio.sleep(10)
    assert state(world, "a") == "sleeping", "an old wish is not obeyed"


@in_world
async def test_a_wish_is_obeyed_once_even_across_a_restart(world):
    await world.model("a", 60 * GIB)
    await world.annotate("a", "greenthread.ai/wake")
    await world.until(lambda: state(world, "a") == "serving")
    await world.annotate("a", "greenthread.ai/sleep")
    await world.until(lambda: state(world, "a") == "sleeping")
    await world.kill("a")
    world.start("a")
    await asyncio.sleep(5)
    assert state(world, "a") == "sleeping"


@in_world
async def test_a_sidecar_killed_while_serving_serves_on_without_a_wake(world):
    await world.model("a", 60 * GIB)
    assert await world.request("a") == "ok"
    since = (await world.gpu()).occupants[0].became_serving_at
    await world.kill("a")
    world.start("a")
    await world.until(lambda: state(world, "a") == "serving")
    assert (await world.gpu()).occupants[0].became_serving_at == since
    assert await world.request("a") == "ok"
    assert world.engines["a"].calls.count("wake") == 1


@in_world
async def test_a_sidecar_killed_while_waking_repairs_occupant_and_lock(world):
    await world.model("a", 60 * GIB)
    asking = asyncio.create_task(world.request("a"))
    await world.until(lambda: world.engines["a"].under_way == "wake")
    await world.kill("a")
    asking.cancel()
    gpu = await world.gpu()
    assert gpu.wake_lock is not None
    world.start("a")
    await asyncio.sleep(1)
    await world.until(lambda: state(world, "a") == "sleeping")
    gpu = await world.gpu()
    assert gpu.wake_lock is None
    assert (gpu.occupants[0].state, gpu.occupants[0].reserved) == (State.SLEEPING, 0)
    assert await world.request("a") == "ok"


@in_world
async def test_a_crashed_engine_boots_again_under_a_claim(world):
    await world.model("a", 60 * GIB)
    assert await world.request("a") == "ok"
    world.engines["a"].crash()
    await world.until(lambda: state(world, "a") != "serving")
    assert await world.request("a") == "ok"
    assert world.engines["a"].calls.count("start") == 2
    await asyncio.sleep(1)
    assert "EngineDied" in await world.events("a")


@in_world
async def test_a_failing_wake_is_told_and_the_next_request_is_served(world):
    await world.model("a", 60 * GIB)
    world.engines["a"].fail = ["wake"]
    answer = await world.request("a")
    assert "wake failed" in answer
    assert await world.request("a") == "ok"
    await asyncio.sleep(1)
    assert "WakeFailed" in await world.events("a")


@in_world
async def test_an_engine_that_does_not_sleep_is_killed(world):
    await world.model("a", 60 * GIB)
    assert await world.request("a") == "ok"
    world.engines["a"].fail = ["sleep"]
    await world.annotate("a", "greenthread.ai/sleep")
    await world.until(lambda: "kill" in world.engines["a"].calls)
    await world.until(lambda: state(world, "a") == "sleeping")
    assert not world.ledger.held


@in_world
async def test_clients_that_leave_are_dropped_and_their_wait_withdrawn(world):
    await world.model("a", 60 * GIB, fairness={"popular": True})
    await world.model("b", 60 * GIB, fairness={"popular": False})
    assert await world.request("a") == "ok"
    await world.client.patch(
        MODELS,
        "a",
        {"spec": {"fairness": {"popular": False, "minRuntime": "1000s"}}},
        namespace=NAMESPACE,
    )
    await asyncio.sleep(1)
    asking = asyncio.create_task(world.request("b"))
    await asyncio.sleep(1)
    assert [i.model for i in (await world.gpu()).intents] == ["b"]
    asking.cancel()
    await asyncio.sleep(1)
    assert not (await world.gpu()).intents
    assert state(world, "b") == "sleeping"


@in_world
async def test_the_queue_is_bounded(world):
    sidecar = await world.model("a", 60 * GIB)
    sidecar.door._limit = 3
    answers = await asyncio.gather(*(world.request("a") for _ in range(5)))
    assert sorted(answers)[-3:] == ["ok"] * 3
    assert "requests wait for this model already" in answers[-1]


@in_world
async def test_stopping_drains_releases_and_leaves(world):
    sidecar = await world.model("a", 60 * GIB)
    stream = asyncio.create_task(world.request("a", 3.0))
    await world.until(lambda: state(world, "a") == "serving")
    sidecar.lifecycle.stop()
    assert "going away" in await world.request("a")
    assert await stream == "ok"
    await world.tasks["a"]
    assert not (await world.gpu()).occupants
    assert not world.ledger.held


@in_world
async def test_several_models_share_a_gpu_and_nobody_is_forgotten(world):
    for name in "abcdef":
        await world.model(name, 40 * GIB, fairness={"minRuntime": "1s"})
    for _ in range(3):
        answers = await asyncio.gather(*(world.request(name) for name in "abcdef"))
        assert answers == ["ok"] * 6
    gpu = await world.gpu()
    assert not gpu.intents
    assert gpu.wake_lock is None
    assert not world.ledger.overcommits


@in_world
async def test_a_boot_waits_behind_real_requests_but_is_not_forgotten(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "1s"})
    stream = asyncio.create_task(world.request("a", 20.0))
    await world.until(lambda: state(world, "a") == "serving")
    await world.model("b", 60 * GIB, booted=False)
    await asyncio.sleep(2)
    assert [(i.model, i.boot) for i in (await world.gpu()).intents] == [("b", True)]
    assert await stream == "ok"
    await world.until(lambda: world.sidecars["b"].lifecycle.boot_ready and state(world, "b") == "sleeping")


@in_world
async def test_waits_for_a_gpu_that_no_agent_has_registered_yet(world):
    await world.model("late", 60 * GIB, gpus=(2,), booted=False)
    await asyncio.sleep(1)
    assert "n-2" in world.sidecars["late"].lifecycle.explain()
    await world.register_gpu(2)
    await world.until(lambda: world.sidecars["late"].lifecycle.boot_ready)


@in_world
async def test_the_report_on_the_pod_tells_state_and_counts(world):
    await world.model("a", 60 * GIB)
    assert await world.request("a") == "ok"
    await asyncio.sleep(12)
    report = await world.report("a")
    assert report["state"] == "serving"
    assert report["requests"] == 1
    assert report["lastWakeSeconds"] == pytest.approx(0.5, abs=0.1)


@in_world
async def test_of_two_idle_models_only_the_least_recently_used_gives_way(world):
    for name in ("old", "new"):
        await world.model(name, 40 * GIB, fairness={"minRuntime": "0s"})
    await world.model("w", 50 * GIB)
    assert await world.request("old") == "ok"
    await asyncio.sleep(3)
    assert await world.request("new") == "ok"
    await asyncio.sleep(3)
    assert await world.request("w") == "ok"
    assert (state(world, "old"), state(world, "new")) == ("sleeping", "serving")


@in_world
async def test_pinning_takes_effect_at_once_and_without_a_new_pod(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s"})
    await world.model("b", 60 * GIB)
    assert await world.request("a") == "ok"
    await world.client.patch(MODELS, "a", {"spec": {"fairness": {"popular": True}}}, namespace=NAMESPACE)
    await asyncio.sleep(0.1)
    assert (await world.gpu()).occupants[0].popular
    asking = asyncio.create_task(world.request("b"))
    await asyncio.sleep(20)
    assert state(world, "a") == "serving"
    assert not (await world.gpu()).intents, "who cannot fit must not hold up the younger"
    await world.client.patch(MODELS, "a", {"spec": {"fairness": {"popular": False}}}, namespace=NAMESPACE)
    assert await asking == "ok"


@in_world
async def test_serves_on_while_the_api_server_is_away_and_publishes_after(world):
    await world.model("a", 60 * GIB)
    asking = asyncio.create_task(world.request("a"))
    await world.until(lambda: world.engines["a"].under_way == "wake")
    world.transport.away = True
    assert await asking == "ok"
    assert await world.request("a") == "ok"
    await asyncio.sleep(30)
    world.transport.away = False
    await asyncio.sleep(40)
    gpu = await world.gpu()
    assert gpu.occupants[0].state is State.SERVING
    assert gpu.wake_lock is None


@in_world
async def test_who_waits_while_the_api_server_is_away_is_told_so(world):
    await world.model("a", 60 * GIB)
    world.transport.away = True
    assert "Kubernetes API" in await world.request("a")
    world.transport.away = False
    await asyncio.sleep(60)
    assert await world.request("a") == "ok"


@in_world
async def test_an_engine_that_uses_more_than_its_boot_claimed_claims_that_before_it_serves(world):
    await world.model("a", 99 * GIB, booted=False)
    await world.until(lambda: state(world, "a") == "waking")
    assert (await world.gpu()).occupants[0].reserved < 99 * GIB
    assert await world.request("a") == "ok"
    assert world.engines["a"].calls == ["start", "sleep", "wake"]
    assert (await world.gpu()).occupants[0].reserved == 99 * GIB


@in_world
async def test_an_entry_that_somebody_deleted_comes_back(world):
    await world.model("a", 60 * GIB)
    assert await world.request("a") == "ok"
    await world.client.delete(GPUS, "n-0", NAMESPACE)
    await asyncio.sleep(1)
    await world.register_gpu(0)
    await asyncio.sleep(10)
    occupant = (await world.gpu()).occupants[0]
    assert (occupant.state, occupant.reserved) == (State.SERVING, 60 * GIB)


@in_world
async def test_what_a_boot_measured_is_told_at_once(world):
    await world.model("a", 60 * GIB, booted=False)
    await world.until(lambda: world.sidecars["a"].lifecycle.boot_ready)
    await asyncio.sleep(1)
    assert (await world.report("a"))["bootReady"]
    pod = await world.client.get(PODS, "a-0", namespace=NAMESPACE)
    assert int(pod["metadata"]["annotations"]["greenthread.ai/serving-memory-per-gpu"]) == 60 * GIB


@in_world
async def test_the_report_follows_the_state_within_two_seconds(world):
    await world.model("a", 60 * GIB)
    await asyncio.sleep(10)
    assert await world.request("a") == "ok"
    await asyncio.sleep(1)
    assert (await world.report("a"))["state"] == "serving"
    await world.annotate("a", "greenthread.ai/sleep")
    await asyncio.sleep(2)
    assert (await world.report("a"))["state"] == "sleeping"
