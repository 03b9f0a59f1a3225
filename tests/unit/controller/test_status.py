"""What `kubectl get models` and `kubectl describe model` say, and when that changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.pod_view import Report
from controller.status import Situation, merge_patch, model_status
from greenthread.gpu import Gpu, Intent, Occupant, State

from .builders import GIB, model
from .test_plan import pod

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
BOOTING = pod(ready=False)


def gpu(*occupants: tuple[Any, State, int]) -> Gpu:
    entries = tuple(Occupant(view.ref, "m", state, reserved) for view, state, reserved in occupants)
    return Gpu("node-a-0", "node-a", 0, 96 * GIB, occupants=entries)


def status_of(
    *pods: Any, gpus: Any = (), replicas: int = 1, previous: Any = None, now: datetime = NOW, **more: Any
) -> Any:
    situation = Situation("new", pods, gpus, url="http://gw/m/v1", **more)
    return model_status(model(replicas=replicas), situation, previous or {}, now)


def ready_of(status: Any) -> tuple[str, str, str]:
    first = status["conditions"][0]
    assert first["type"] == "Ready"
    return first["status"], first["reason"], first["message"]


def test_the_phases_of_a_first_boot() -> None:
    assert status_of()["phase"] == "Pending"
    assert status_of(BOOTING)["phase"] == "Pending"
    converting = status_of(BOOTING, gpus=[gpu((BOOTING, State.CONVERTING, 80 * GIB))])
    assert converting["phase"] == "Converting"
    assert ready_of(converting) == (
        "False",
        "Converting",
        "m-0-new boots its engine on node-a/0, with 80.0G of each GPU",
    )
    assert status_of(BOOTING, gpus=[gpu((BOOTING, State.DEACTIVATING, 80 * GIB))])["phase"] == "Staging"
    booted = replace(BOOTING, report=Report(True))
    assert status_of(booted, gpus=[gpu((booted, State.SLEEPING, 0))])["phase"] == "Staging"
    done = status_of(pod(), gpus=[gpu((pod(), State.SLEEPING, 0))])
    assert done["phase"] == "Ready"
    assert ready_of(done)[0] == "True"


def test_phases_do_not_go_back_while_the_pods_word_is_late() -> None:
    asleep = gpu((BOOTING, State.SLEEPING, 0))
    converting = status_of(BOOTING, gpus=[gpu((BOOTING, State.CONVERTING, 80 * GIB))])
    booted = status_of(BOOTING, gpus=[asleep], previous=converting)
    assert booted["phase"] == "Staging"
    assert status_of(BOOTING, gpus=[asleep], previous=booted)["phase"] == "Staging"
    # a boot that failed says so, and one that has not begun is told from one that is over
    failed = replace(BOOTING, report=Report(False, "out of memory"))
    assert status_of(failed, gpus=[asleep], previous=booted)["phase"] == "Failed"
    assert status_of(BOOTING, gpus=[asleep], previous=status_of(BOOTING))["phase"] == "Pending"
    other = pod(1, ready=False)
    both = gpu((BOOTING, State.SLEEPING, 0), (other, State.CONVERTING, 80 * GIB))
    assert status_of(BOOTING, other, gpus=[both], replicas=2, previous=converting)["phase"] == "Converting"


def test_counts_and_place_come_from_the_gpus() -> None:
    serving, asleep, booting = pod(0), pod(1), pod(2, ready=False)
    entries = gpu((serving, State.SERVING, 9), (asleep, State.SLEEPING, 0), (booting, State.CONVERTING, 9))
    status = status_of(asleep, serving, booting, gpus=[entries], replicas=3, known_memory=int(88.2 * GIB))
    assert (status["replicas"], status["readyReplicas"]) == (3, 2)
    assert (status["servingReplicas"], status["sleepingReplicas"]) == (1, 1)
    assert (status["node"], status["gpus"]) == ("node-a", "0")
    assert status["memory"]["servingHuman"] == "88.2 GiB"
    assert status["url"] == "http://gw/m/v1"
    assert ready_of(status)[2].startswith("2 of 3 replicas can answer; m-2-new boots its engine")


def test_two_pods_of_one_replica_count_as_one_ready() -> None:
    status = status_of(pod(hash8="old"), pod())
    assert status["readyReplicas"] == 1
    assert [c["status"] for c in status["conditions"] if c["type"] == "UpToDate"] == ["False"]


def test_a_waiting_boot_says_for_what() -> None:
    waiting = replace(gpu(), intents=(Intent(BOOTING.ref, "m", 80 * GIB, NOW, boot=True),))
    assert ready_of(status_of(BOOTING, gpus=[waiting]))[2] == "m-0-new waits for 80.0G on node-a/0 to boot its engine"


def test_failures_are_told_while_nothing_answers() -> None:
    broken = replace(BOOTING, trouble="container vllm: ImagePullBackOff: no such image")
    status = status_of(broken)
    assert status["phase"] == "Failed"
    assert "ImagePullBackOff" in ready_of(status)[2]
    refused = replace(BOOTING, report=Report(False, "the engine ended with status 1"))
    assert status_of(refused)["phase"] == "Failed"
    beside = status_of(pod(hash8="old"), broken)
    assert beside["phase"] == "Ready"
    assert "ImagePullBackOff" in ready_of(beside)[2]


def test_an_impossible_place_is_in_the_ready_condition() -> None:
    status = status_of(problems=["replica 0: needs 4 neighbouring GPUs on one node; node-a has 2"])
    assert ready_of(status) == (
        "False",
        "Unschedulable",
        "replica 0: needs 4 neighbouring GPUs on one node; node-a has 2",
    )


def test_no_replicas_is_not_ready() -> None:
    assert ready_of(status_of(replicas=0))[:2] == ("False", "NoReplicas")


def test_times_stay_while_nothing_changes() -> None:
    first = status_of(BOOTING)
    later = status_of(BOOTING, previous=first, now=NOW + timedelta(minutes=5))
    assert merge_patch(first, later) == {}
    moved = status_of(pod(), previous=first, now=NOW + timedelta(minutes=5))
    assert moved["lastTransition"].startswith("2026-11-22T14:05:00")
    assert moved["conditions"][0]["lastTransitionTime"] == "2026-11-22T14:05:00Z"
    addressed = [c["lastTransitionTime"] for c in moved["conditions"] if c["type"] == "Addressed"]
    assert addressed == ["2026-11-22T14:00:00Z"]


def test_what_is_no_longer_known_goes_away() -> None:
    first = status_of(pod(), known_memory=GIB)
    assert merge_patch(first, status_of(pod(), previous=first)) == {"servingMemoryPerGPU": None, "memory": None}


def test_a_deletion_says_what_it_waits_for() -> None:
    gone = replace(model(), deleting=True)
    status = model_status(
        gone, Situation("", [pod(deleting=True)], waits_for="waits for 1 pods to end: m-0-new"), {}, NOW
    )
    assert ready_of(status)[:2] == ("False", "Deleting")
    assert "waits for 1 pods" in ready_of(status)[2]


def test_the_rest_of_a_status_stays_while_a_model_goes() -> None:
    first = status_of(pod(), known_memory=GIB)
    gone = replace(model(), deleting=True)
    status = model_status(gone, Situation("", [pod(deleting=True)]), first, NOW)
    assert status["conditions"][1:] == first["conditions"][1:]
    assert (status["url"], status["memory"]) == (first["url"], first["memory"])


values = st.recursive(
    st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=6
)


def applied(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = applied(result.get(key), value)
    return result


@given(st.dictionaries(st.sampled_from("abc"), values), st.dictionaries(st.sampled_from("abc"), values))
def test_the_patch_makes_the_one_into_the_other(old: Any, new: Any) -> None:
    assert applied(old, merge_patch(old, new)) == new
