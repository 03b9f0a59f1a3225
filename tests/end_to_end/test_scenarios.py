"""Clients, people and accidents against a whole cluster: what the contract promises, seen from outside.

Every test ends with the fixture's check that no engine was ever refused memory and that no request ran twice.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from datetime import UTC, datetime

import httpx
import pytest

from greenthread.clock import format_time
from greenthread.gpu import Gpu, State
from greenthread.kube.errors import NotFound
from greenthread.kube.resources import GPUS, MODELS, PODS
from greenthread.units import GIB
from tests.end_to_end.cluster import (
    IMPATIENT_SIDECAR,
    NAMESPACE,
    ONE,
    PATIENCE,
    TEAM,
    TWO,
    Answer,
    Cluster,
    Object,
    kill,
    manifest,
    results,
)

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

# waking


def test_a_request_wakes_a_sleeping_model_and_streams(cluster: Cluster) -> None:
    stream = cluster.stream("ada", seconds=0.3)
    text = stream.result()
    assert text.startswith("This is ada, simulated.")
    assert stream.done
    _went_through(cluster, "ada", State.SLEEPING, State.WAKING, State.SERVING)
    [run] = cluster.runs(stream.request_id)
    assert run.outcome == "ok"
    [entry] = cluster.occupants("ada")
    measured = cluster.measured("ada")
    assert entry.reserved == measured
    # 0.45 of 96 GiB, and the engine's context
    assert 43 * GIB < measured < 46 * GIB


def test_a_sleeping_model_holds_no_memory(cluster: Cluster) -> None:
    cluster.wake("ada")
    used = cluster.ledgers[ONE].used_bytes(0)
    assert used >= 43 * GIB
    cluster.sleep("ada")
    assert cluster.ledgers[ONE].used_bytes(0) == 0
    cluster.until(lambda: cluster.gpus(ONE)[0].stats.used == 0, "the agent measures an empty GPU")


def test_fifty_requests_for_a_sleeping_model_are_one_wake(cluster: Cluster) -> None:
    before = _metric(cluster, "ada", "gthread_sidecar_wake_duration_seconds_count")
    duplicates = _metric(cluster, "ada", "gthread_sidecar_wake_deduplications_total")
    answers = results(cluster.chats("ada", 50))
    assert [answer.status for answer in answers] == [200] * 50
    _went_through(cluster, "ada", State.SLEEPING, State.WAKING, State.SERVING)
    assert _metric(cluster, "ada", "gthread_sidecar_wake_duration_seconds_count") == before + 1
    assert _metric(cluster, "ada", "gthread_sidecar_wake_deduplications_total") > duplicates
    assert all(len(cluster.runs(answer.request_id)) == 1 for answer in answers)


def test_what_needs_no_engine_does_not_wake_one(cluster: Cluster) -> None:
    sidecar = cluster.sidecar("ada")
    assert cluster.http.get(f"{sidecar}/health").status_code == 200
    assert cluster.http.get(f"{sidecar}/ready").status_code == 503
    status = cluster.http.get(f"{sidecar}/status").json()
    assert (status["model"], status["state"], status["bootReady"]) == ("ada", "sleeping", True)
    assert status["queue"] == {"inFlight": 0, "barriered": 0}
    for url in (f"{sidecar}/v1/models", f"{cluster.gateway}/ada/v1/models", f"{cluster.gateway}/v1/models"):
        assert "ada" in [model["id"] for model in cluster.http.get(url).json()["data"]]
    for path in ("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/pause", "/v1/../sleep", "//sleep"):
        for base in (sidecar, f"{cluster.gateway}/ada"):
            assert cluster.http.post(base + path).status_code == 404, base + path
    assert set(cluster.history("ada")) == {State.SLEEPING}


def test_a_client_that_leaves_the_queue_runs_nothing(cluster: Cluster) -> None:
    cluster.change("big", fairness={"popular": True})
    cluster.wake("big")
    sent = {"X-Request-Id": "test-left"}
    with pytest.raises(httpx.ReadTimeout):
        cluster.http.post(
            f"{cluster.gateway}/ada/v1/completions", json={"prompt": "x"}, headers=sent, timeout=httpx.Timeout(1)
        )
    cluster.until(lambda: _barriered(cluster, "ada") == 0, "the client is dropped from the queue")
    cluster.change("big", fairness={"popular": False})
    cluster.sleep("big")
    assert cluster.chat("ada").status == 200
    assert cluster.runs("test-left") == []


def test_an_idle_model_sleeps_after_its_timeout(cluster: Cluster) -> None:
    cluster.change("ada", sleep={"idleTimeout": "1s"})
    stream = cluster.stream("ada", seconds=2)  # longer than the timeout, and not idle
    stream.result()
    assert stream.done
    _went_through(cluster, "ada", State.SLEEPING, State.WAKING, State.SERVING, State.DEACTIVATING, State.SLEEPING)
    assert cluster.ledgers[ONE].used_bytes(0) == 0


# sharing


def test_two_models_that_do_not_fit_together_swap(cluster: Cluster) -> None:
    for model, other in (("big", "ada"), ("ada", "big"), ("big", "ada")):
        answer = cluster.chat(model)
        assert answer.content.startswith(f"This is {model}, simulated.")
        cluster.until_serving(ONE, {model})
        assert cluster.reserved(other) == 0


def test_a_full_gpu_gives_the_memory_of_the_least_recently_used(cluster: Cluster) -> None:
    # busy ones do not give way: only preemption makes room
    first = cluster.stream("bob", seconds=3)
    first.started()
    second = cluster.stream("ada", seconds=3)
    second.started()
    cluster.until_serving(ONE, {"ada", "bob"})
    assert "This is bob" in first.result()
    assert "This is ada" in second.result()
    for name in ("ada", "bob"):
        cluster.change(name, fairness={"yieldAfter": "0s"})
    assert cluster.chat("bob").status == 200  # so ada is the one that was used longer ago
    assert cluster.chat("cleo").status == 200
    cluster.until_serving(ONE, {"bob", "cleo"})
    assert set(cluster.history("bob")) == {State.SLEEPING, State.WAKING, State.SERVING}
    cluster.until(lambda: "Preempted" in _reasons(cluster, "ada"), "ada tells that it was preempted")
    cluster.until(lambda: "Preempting" in _reasons(cluster, "cleo"), "cleo tells whom it preempted")


def test_an_idle_model_gives_way_before_anybody_is_preempted(cluster: Cluster) -> None:
    cluster.change("big", fairness={"maxWaitTime": "30s"})
    cluster.wake("ada")
    # Kubernetes keeps the events of earlier tests
    gave_way, preempted = _reasons(cluster, "ada").count("GaveWay"), _reasons(cluster, "big").count("Preempting")
    answer = cluster.chat("big")
    assert answer.status == 200
    assert answer.seconds < 15
    cluster.until(lambda: _reasons(cluster, "ada").count("GaveWay") > gave_way, "ada tells that it gave way")
    assert _reasons(cluster, "big").count("Preempting") == preempted


def test_a_popular_model_stays_and_the_503_names_it(cluster: Cluster) -> None:
    cluster.apply("hasty", sidecarImage=IMPATIENT_SIDECAR)
    cluster.ready("hasty")
    cluster.change("big", fairness={"popular": True})
    cluster.wake("big")
    waiting = cluster.chats("ada", 1)
    answer = cluster.chat("hasty")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "big" in answer.error
    assert "pinned" in answer.error
    assert not cluster.waits("ada"), "who cannot fit has no intents"
    assert not cluster.waits("hasty")
    assert set(cluster.history("big")) == {State.SLEEPING, State.WAKING, State.SERVING}
    # as soon as it may be preempted, who still waits is served
    cluster.change("big", fairness={"popular": False})
    assert results(waiting)[0].status == 200


def test_min_runtime_is_honoured(cluster: Cluster) -> None:
    cluster.change("ada", fairness={"minRuntime": "3s"})
    cluster.wake("ada")
    [entry] = cluster.occupants("ada")
    assert entry.became_serving_at is not None
    assert cluster.chat("big").status == 200
    cluster.until_serving(ONE, {"big"})
    # read from the writes themselves: big's first claim, and ada's end
    seen = [Gpu.from_object(obj) for obj in cluster.view.history(GPUS)]
    claims = [o for gpu in seen for o in gpu.occupants if o.model == "big" and o.became_serving_at]
    served = (claims[0].became_serving_at - entry.became_serving_at).total_seconds()
    assert served >= 3, f"ada had to go after {served:.2f} s"
    assert served < 10


def test_a_gang_takes_both_gpus_or_none(cluster: Cluster) -> None:
    cluster.change("gang", fairness={"yieldAfter": "0s"})
    # wakes both replicas, each on a GPU of its own
    cluster.until(lambda: cluster.chat("twins").status == 200, "a twin serves")
    for number in (0, 1):
        assert cluster.chat("twins", through=cluster.sidecar("twins", number)).status == 200
    cluster.until(
        lambda: [gpu.index for gpu in cluster.gpus(TWO) for o in gpu.occupants if o.state is State.SERVING] == [0, 1],
        "each twin serves on a GPU",
    )
    assert cluster.chat("gang").content.startswith("This is gang, simulated.")
    cluster.until(lambda: cluster.states("gang") == [State.SERVING], "the gang serves on both")
    assert cluster.reserved("twins") == 0
    assert len(cluster.occupants("gang")) == 2
    assert cluster.model("gang")["status"]["gpus"] == "0,1"
    per_gpu = cluster.measured("gang")
    assert [cluster.ledgers[TWO].used_bytes(index) for index in (0, 1)] == [per_gpu, per_gpu]
    # and one replica of the twins takes the gang's place on both
    assert cluster.chat("twins").status == 200
    cluster.until(lambda: cluster.reserved("gang") == 0, "the gang leaves both GPUs")


def test_a_big_model_is_not_starved_by_busy_small_ones(cluster: Cluster) -> None:
    stop = threading.Event()

    def keep_busy(model: str) -> list[Answer]:
        answers = []
        while not stop.is_set():
            answers.append(cluster.chat(model, max_tokens=100, ignore_eos=True))
        return answers

    busy = [cluster.background(keep_busy, name) for name in ("ada", "bob") for _ in range(2)]
    try:
        cluster.until_serving(ONE, {"ada", "bob"})
        answers = [cluster.chat("big") for _ in range(3)]
    finally:
        stop.set()
    small = [answer for answers in results(busy) for answer in answers]
    assert [answer.status for answer in answers] == [200] * 3
    assert {answer.status for answer in small} == {200}
    assert len(small) > 8, "the small ones were starved"


def test_other_programs_memory_counts(cluster: Cluster) -> None:
    [gpu] = cluster.gpus(ONE)
    with cluster.foreign_memory(ONE, 0, 60 * GIB):
        cluster.until(lambda: cluster.gpus(ONE)[0].foreign == 60 * GIB, "the agent counts foreign memory")
        waiting = cluster.chats("ada", 1)
        cluster.until(lambda: _barriered(cluster, "ada") == 1, "the request waits")
        cluster.until(lambda: "other programs use 60" in cluster.status("ada")["why"], "the reason tells of them")
        assert cluster.reserved("ada") == 0
        available = cluster.kube.get(GPUS, gpu.name, NAMESPACE)["status"]["availableMemoryBytes"]
        assert available == gpu.total - 60 * GIB
    assert results(waiting)[0].status == 200


# draining


def test_a_stream_in_flight_ends_before_the_model_sleeps_and_new_requests_wait(cluster: Cluster) -> None:
    stream = cluster.stream("ada", seconds=2)
    stream.started()
    cluster.change("ada", {"greenthread.ai/sleep": _now()})
    cluster.until(lambda: cluster.states("ada") == [State.DEACTIVATING], "ada drains")
    late = cluster.chats("ada", 3)
    cluster.until(lambda: _barriered(cluster, "ada") == 3, "new requests queue")
    assert not stream.done
    assert cluster.states("ada") == [State.DEACTIVATING]
    stream.result()
    assert stream.done, "the stream was cut"
    assert [answer.status for answer in results(late)] == [200] * 3
    awake = (State.WAKING, State.SERVING)
    _went_through(cluster, "ada", State.SLEEPING, *awake, State.DEACTIVATING, State.SLEEPING, *awake)


def test_a_drain_that_takes_too_long_is_cut_off(cluster: Cluster) -> None:
    cluster.change("ada", sleep={"drainTimeout": "1s"})
    stream = cluster.stream("ada", seconds=30)
    stream.started()
    before = _metric(cluster, "ada", "gthread_sidecar_preemption_barrier_timeouts_total")
    cluster.change("ada", {"greenthread.ai/sleep": _now()})
    cluster.until(lambda: cluster.states("ada") == [State.SLEEPING], "ada sleeps without waiting for the end")
    assert _metric(cluster, "ada", "gthread_sidecar_preemption_barrier_timeouts_total") == before + 1
    assert len(stream.result()) < 30_000


# accidents


def test_a_sidecar_killed_while_waking_is_repaired(cluster: Cluster) -> None:
    [pod] = cluster.pods_of("ada")
    engines, starts = cluster.engine_pids("ada"), cluster.engine_starts("ada")
    assert starts > 0
    cluster.http.post(f"{cluster.engine('ada')}/simulate", json={"wake": "slow:3s"}).raise_for_status()
    lost = cluster.background(cluster.chat, "ada", through=cluster.sidecar("ada"))
    cluster.until(lambda: cluster.states("ada") == [State.WAKING], "ada wakes")
    assert cluster.gpus(ONE)[0].wake_lock is not None
    kill(cluster.pid(pod, "sidecar"))
    with pytest.raises(httpx.TransportError):
        lost.result(30)
    cluster.until(
        lambda: cluster.states("ada") == [State.SLEEPING] and cluster.gpus(ONE)[0].wake_lock is None,
        "the sidecar comes back, lets the engine come to rest, and frees lock and memory",
    )
    assert cluster.reserved("ada") == 0
    assert cluster.chat("ada").status == 200
    [pod] = cluster.pods_of("ada")
    assert _restarts(pod) == {"sidecar": 1, "vllm": 0}
    assert cluster.engine_pids("ada") == engines
    assert cluster.engine_starts("ada") == starts, "the engine was started a second time"


def test_an_engine_killed_while_serving_boots_again_under_a_claim(cluster: Cluster) -> None:
    stream = cluster.stream("ada", seconds=30)
    stream.started()
    [old] = cluster.engine_pids("ada")
    kill(old)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, AssertionError)):
        stream.result()
    assert not stream.done
    # the first ones may come before anybody knows that it is gone; later ones wait for the new one
    killed = time.monotonic()
    while (status := cluster.chat("ada").status) != 200:
        assert status == 502
        assert time.monotonic() - killed < PATIENCE, "a second after its end, requests still go to the engine"
    assert [cluster.chat("ada").status for _ in range(2)] == [200, 200]
    assert State.CONVERTING in cluster.history("ada"), "it booted without a claim"
    [new] = cluster.engine_pids("ada")
    assert new != old
    assert [gpu.foreign for gpu in cluster.gpus(ONE)] == [0]
    cluster.until(lambda: "EngineDied" in _reasons(cluster, "ada"), "the Model tells that its engine died")


def test_an_engine_that_fails_to_wake_is_told_and_boots_again(cluster: Cluster) -> None:
    cluster.http.post(f"{cluster.engine('ada')}/simulate", json={"wake": "fail"}).raise_for_status()
    answer = cluster.chat("ada")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "wake" in answer.error
    cluster.until(lambda: cluster.chat("ada").status == 200, "it serves after a new boot")


def test_a_pod_that_is_killed_while_serving_leaves_nothing_behind(cluster: Cluster) -> None:
    stream = cluster.stream("ada", seconds=30)
    stream.started()
    [old] = cluster.pods_of("ada")
    name = old["metadata"]["name"]
    cluster.kube.delete(PODS, name, NAMESPACE, grace_seconds=0)  # too little for its stream, or to say goodbye
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, AssertionError)):
        stream.result()
    answer = cluster.chat("big")  # needs the memory of the dead
    assert answer.status == 200
    cluster.until(
        lambda: [pod["metadata"]["uid"] for pod in cluster.pods_of("ada")] != [old["metadata"]["uid"]], "it goes"
    )
    assert cluster.chat("ada").status == 200
    cluster.until(lambda: len(cluster.occupants("ada")) == 1, "the dead pod's entry is gone")
    assert cluster.gpus(ONE)[0].foreign == 0


def test_a_node_that_reboots_serves_again(cluster: Cluster) -> None:
    assert cluster.chat("ada").status == 200
    before = {pod["metadata"]["uid"] for name in ("ada", "big") for pod in cluster.pods_of(name)}
    cluster.reboot(ONE)  # the controller and the gateway were there too
    cluster.until(lambda: _serves(cluster, "ada"), "ada serves again")
    assert cluster.chat("big").status == 200
    assert cluster.chat("gang").status == 200
    after = {pod["metadata"]["uid"] for name in ("ada", "big") for pod in cluster.pods_of(name)}
    assert after == before
    cluster.until(lambda: cluster.gpus(ONE)[0].foreign == 0, "nothing is left on the GPU")


def test_serving_goes_on_while_the_api_is_out_of_reach(cluster: Cluster) -> None:
    assert cluster.chat("ada").status == 200
    cluster.until(lambda: cluster.reachable("bob"), "the gateway knows where bob is")
    stream = cluster.stream("ada", seconds=3)
    stream.started()
    with cluster.no_api():
        answer = cluster.chat("ada")
        assert answer.status == 200
        waiting = cluster.chats("bob", 2)
        cluster.until(lambda: _barriered(cluster, "bob") == 2, "requests for a sleeping model wait")
    assert [answer.status for answer in results(waiting)] == [200, 200]
    stream.result()
    assert stream.done
    cluster.until_serving(ONE, {"ada", "bob"})


def test_the_agent_restarts(cluster: Cluster) -> None:
    pod = cluster.view.get(PODS, "greenthread-agent")
    kill(cluster.pid(pod, "agent"))
    assert cluster.chat("ada").status == 200  # nobody waits for an agent
    cluster.until(
        lambda: (
            _restarts(cluster.view.get(PODS, "greenthread-agent"))["agent"] >= 1
            and cluster.is_ready(cluster.view.get(PODS, "greenthread-agent"))
        ),
        "the agent is back",
    )
    with cluster.foreign_memory(ONE, 0, 3 * GIB):
        cluster.until(lambda: cluster.gpus(ONE)[0].foreign == 3 * GIB, "the agent measures again")
    cluster.until(lambda: cluster.gpus(ONE)[0].foreign == 0, "the agent sees it go")
    assert [o.model for o in cluster.gpus(ONE)[0].occupants if o.reserved] == ["ada"]


def test_another_controller_takes_over(cluster: Cluster) -> None:
    leader = cluster.leader()
    pid = cluster.pid(cluster.view.get(PODS, leader), "controller")
    assert pid
    os.kill(pid, signal.SIGSTOP)  # it hangs, and does not know
    try:
        assert cluster.chat("ada").status == 200  # models wake without a controller
        cluster.apply("late")
        cluster.ready("late", seconds=60)
        successor = cluster.leader()
        assert successor not in ("", leader)
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.until(
        lambda: _restarts(cluster.view.get(PODS, leader))["controller"] >= 1,
        "the old leader ends itself as soon as it sees that it no longer leads",
    )
    assert cluster.chat("late").status == 200
    assert cluster.leader() == successor


# life of a Model


def test_a_changed_spec_replaces_the_pod_and_loses_no_request(cluster: Cluster) -> None:
    assert cluster.chat("ada").status == 200
    [old] = cluster.pods_of("ada")
    answers = []

    def ask_until_replaced() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answers.extend(results(cluster.chats("ada", 2)))
            names = [pod["metadata"]["name"] for pod in cluster.pods_of("ada")]
            if old["metadata"]["name"] not in names:
                return

    cluster.change("ada", extraArgs=["--max-model-len", "2048"])
    ask_until_replaced()
    cluster.ready("ada")
    [new] = cluster.pods_of("ada")
    assert new["metadata"]["name"] != old["metadata"]["name"]
    assert "2048" in new["spec"]["containers"][1]["args"]
    failed = [answer for answer in answers if answer.status != 200]
    assert not failed, f"{len(failed)} of {len(answers)} requests were lost: {failed[:3]}"
    assert cluster.chat("ada").status == 200
    cluster.until(
        lambda: {occupant.pod.name for occupant in cluster.occupants("ada")} == {new["metadata"]["name"]},
        "the old pod's entry is gone",
    )
    cluster.change("ada", extraArgs=None)
    cluster.ready("ada")


def test_replicas_from_one_to_two_and_back(cluster: Cluster) -> None:
    cluster.change("twins", replicas=1)
    cluster.until(lambda: len(cluster.pods_of("twins")) == 1, "one pod is left")
    cluster.until(lambda: len(cluster.occupants("twins")) == 1, "its GPU entry goes too")
    assert cluster.chat("twins").status == 200
    stream = cluster.stream("twins", seconds=2)
    stream.started()
    cluster.change("twins", replicas=2)
    cluster.ready("twins")
    assert len(cluster.pods_of("twins")) == 2
    assert {(o.pod.name[-10], gpu.index) for gpu in cluster.gpus(TWO) for o in gpu.occupants if o.model == "twins"}
    indices = [pod["metadata"]["annotations"]["greenthread.ai/gpus"] for pod in cluster.pods_of("twins")]
    assert sorted(indices) == ["0", "1"], "each replica claims its own GPU"
    stream.result()
    assert stream.done
    assert cluster.chat("twins").status == 200
    status = cluster.until(
        lambda: s if (s := cluster.model("twins")["status"])["replicas"] == 2 else None, "the status counts two"
    )
    assert status["readyReplicas"] == 2


def test_zero_replicas_answer_503_and_say_so(cluster: Cluster) -> None:
    cluster.change("cleo", replicas=0)
    cluster.until(lambda: not cluster.pods_of("cleo"), "the pod goes")
    cluster.until(lambda: not cluster.occupants("cleo"), "its GPU entry goes")
    cluster.until(lambda: cluster.condition("cleo", "Ready") == "False", "it is not Ready")
    answer = cluster.chat("cleo")
    assert answer.status == 503
    assert "replicas: 0" in answer.error
    cluster.change("cleo", replicas=1)
    cluster.ready("cleo")
    assert cluster.chat("cleo").status == 200


def test_a_deleted_model_drains_and_leaves_nothing(cluster: Cluster) -> None:
    cluster.apply("brief")
    cluster.ready("brief")
    stream = cluster.stream("brief", seconds=2)
    stream.started()
    cluster.delete("brief", wait=False)
    model = cluster.kube.get(MODELS, "brief", NAMESPACE)
    assert model["metadata"]["finalizers"] == ["greenthread.ai/drain"]
    stream.result()
    assert stream.done, "the stream was cut"
    cluster.until(lambda: cluster.view.get(MODELS, "brief") is None, "the finalizer goes")
    cluster.until(lambda: cluster.pods_of("brief") == [], "its pods are gone")
    cluster.until(lambda: cluster.occupants("brief") == [], "its GPU entries go")
    assert cluster.ledgers[ONE].used_bytes(0) == 0
    answer = cluster.chat("brief")
    assert answer.status == 404
    with pytest.raises(NotFound):
        cluster.kube.get(MODELS, "brief", NAMESPACE)


def test_of_two_models_of_one_name_the_older_has_the_short_address(cluster: Cluster) -> None:
    cluster.apply("shared", TWO, modelName="tests/older-1b", gpuMemoryUtilization="0.10")
    younger = manifest("shared", TWO, modelName="tests/younger-1b", gpuMemoryUtilization="0.10")
    younger["metadata"]["namespace"] = TEAM
    cluster.kube.create(MODELS, younger)
    try:
        cluster.ready("shared")
        cluster.until(lambda: cluster.condition("shared", "Ready", TEAM) == "True", "the younger is Ready")
        assert cluster.condition("shared", "Addressed") == "True"
        assert cluster.condition("shared", "Addressed", TEAM) == "False"
        for address, name in (
            ("shared", "tests/older-1b"),
            (f"{NAMESPACE}/shared", "tests/older-1b"),
            (f"{TEAM}/shared", "tests/younger-1b"),
        ):
            assert cluster.chat(name, through=f"{cluster.gateway}/{address}").status == 200, address
            # engines know their own names only: so it is this one and not the other
            other = {"tests/older-1b": "tests/younger-1b", "tests/younger-1b": "tests/older-1b"}[name]
            assert cluster.chat(other, through=f"{cluster.gateway}/{address}").status == 404, address
        cluster.delete("shared")
        cluster.until(
            lambda: cluster.chat("tests/younger-1b", through=f"{cluster.gateway}/shared").status == 200,
            "the younger inherits the short address",
        )
        cluster.until(lambda: cluster.condition("shared", "Addressed", TEAM) == "True", "and its condition says so")
    finally:
        cluster.kube.delete(MODELS, "shared", TEAM)
        cluster.until(lambda: cluster.view.get(MODELS, "shared", TEAM) is None, "the younger goes")


# the gateway


def test_an_unknown_model_is_404_and_near_names_are_named(cluster: Cluster) -> None:
    for answer in (cluster.chat("cleoo"), cluster.chat("cleoo", through=cluster.gateway)):
        assert answer.status == 404
        assert answer.json["error"]["code"] == "model_not_found"
        assert "cleo" in answer.error.split("Did you mean")[1]
    body = {"model": "cleoo", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    answer = cluster.post(f"{cluster.gateway}/v1/messages", body)
    assert answer.status == 404
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == "not_found_error"


def test_one_address_for_all_takes_names_and_hugging_face_ids(cluster: Cluster) -> None:
    for name in ("ada", "tests/ada-1b", f"{NAMESPACE}/ada"):
        answer = cluster.chat(name, through=cluster.gateway)
        assert answer.status == 200, (name, answer)
        assert "simulated" in answer.content
    assert cluster.chat("ada", through=f"{cluster.gateway}/{NAMESPACE}/ada").status == 200
    listed = {model["id"]: model for model in cluster.http.get(f"{cluster.gateway}/v1/models").json()["data"]}
    assert {"ada", "tests/ada-1b", "big", "gang"} <= set(listed)
    assert listed["ada"]["object"] == "model"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_malformed_request_without_a_model_is_400_in_the_apis_own_shape(cluster: Cluster, path: str) -> None:
    for body in (b"{not json", b"", b"[1, 2]", b'{"messages": []}', b'{"model": 7}'):
        answer = cluster.post(cluster.gateway + path, body)
        assert answer.status == 400, (body, answer)
        _in_the_shape_of(path, answer, "invalid_request_error")
    assert cluster.chat("ada", through=cluster.gateway).status == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_what_the_engine_finds_wrong_comes_through_unchanged(cluster: Cluster, path: str) -> None:
    cluster.wake("ada")
    for body in (b"{not json", b"", b'{"model": "ada", "messages": 7}', b'{"model": "ada", "messages": []}'):
        said = cluster.post(cluster.engine("ada") + path, body)
        assert 400 <= said.status < 500, (body, said)
        for base in (f"{cluster.gateway}/ada", cluster.sidecar("ada")):
            answer = cluster.post(base + path, body)
            assert (answer.status, answer.text) == (said.status, said.text)
    assert cluster.chat("ada").status == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_an_oversized_request_is_413_in_the_apis_own_shape(cluster: Cluster, path: str) -> None:
    body = b'{"model": "ada", "messages": [], "x": "' + b"x" * (65 * 1024 * 1024) + b'"}'
    answer = cluster.post(f"{cluster.gateway}{path}", body)
    assert answer.status == 413
    _in_the_shape_of(path, answer, "request_too_large" if path == "/v1/messages" else "invalid_request_error")
    assert cluster.chat("ada").status == 200


# helpers


def _went_through(cluster: Cluster, model: str, *states: State) -> None:
    """These states since the test began, and no others. (An answer may be faster than the news of its wake.)"""
    cluster.until(lambda: len(cluster.history(model)) >= len(states), f"{model} goes through {states}")
    assert cluster.history(model) == list(states)


def _serves(cluster: Cluster, model: str) -> bool:
    """Whether a request is answered; where nobody listens none is."""
    try:
        return cluster.chat(model).status == 200
    except httpx.TransportError:
        return False


def _in_the_shape_of(path: str, answer: Answer, kind: str) -> None:
    """An error as OpenAI or, on its path, Anthropic words it."""
    error = answer.json["error"]
    assert error["message"]
    assert error["type"] == kind
    if path == "/v1/messages":
        assert answer.json["type"] == "error"
        assert set(error) == {"type", "message"}
    else:
        assert set(error) == {"message", "type", "param", "code"}


def _metric(cluster: Cluster, model: str, name: str) -> float:
    """The sum over a metric's labels, at the sidecar of the Model's first pod."""
    text = cluster.http.get(f"{cluster.sidecar(model)}/metrics").text
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.MULTILINE)
    assert found, f"the sidecar of {model} has no {name}"
    return sum(map(float, found))


def _barriered(cluster: Cluster, model: str) -> int:
    return int(cluster.status(model)["queue"]["barriered"])


def _reasons(cluster: Cluster, model: str) -> list[str]:
    return [event["reason"] for event in cluster.events(model)]


def _restarts(pod: Object | None) -> dict[str, int]:
    assert pod is not None
    return {status["name"]: status["restartCount"] for status in pod["status"]["containerStatuses"]}


def _now() -> str:
    return format_time(datetime.now(UTC))
