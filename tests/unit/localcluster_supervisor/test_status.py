"""A Pod's phase and conditions follow from its containers as Kubernetes defines them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from localcluster.supervisor.status import (
    ContainerView,
    PodView,
    Running,
    State,
    Terminated,
    Waiting,
    phase,
    pod_status,
)
from tests.unit.localcluster_supervisor.builders import container

NOW = datetime(2026, 11, 22, 14, 3, 22, 123456, tzinfo=UTC)
CREATING, RUNNING = Waiting("ContainerCreating"), Running(NOW, 77)


def ended(code: int) -> Terminated:
    return Terminated(code, NOW, NOW, 77)


def view(*states: State, policy: str = "Always", init: tuple[State, ...] = (), ready: bool = True) -> PodView:
    return PodView(
        policy=policy,
        init=[ContainerView(container(f"init{n}"), state) for n, state in enumerate(init)],
        main=[
            ContainerView(container(f"main{n}"), state, ready=ready and isinstance(state, Running))
            for n, state in enumerate(states)
        ],
        started_at=NOW,
        address="127.0.0.1",
    )


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (view(CREATING), "Pending"),
        (view(RUNNING, CREATING), "Pending"),
        (view(RUNNING, RUNNING), "Running"),
        (view(RUNNING, ended(1)), "Running"),
        (view(ended(1)), "Running"),
        (view(ended(0)), "Running"),
        (view(ended(0), policy="OnFailure"), "Succeeded"),
        (view(ended(1), policy="OnFailure"), "Running"),
        (view(ended(1), ended(0), policy="Never"), "Failed"),
        (view(ended(0), ended(0), policy="Never"), "Succeeded"),
        (view(ended(0), RUNNING, policy="Never"), "Running"),
        (view(CREATING, init=(RUNNING,)), "Pending"),
        (view(CREATING, init=(ended(1),)), "Pending"),
        (view(CREATING, init=(ended(1),), policy="Never"), "Failed"),
        (view(RUNNING, init=(ended(0),)), "Running"),
    ],
)
def test_phase(pod: PodView, expected: str) -> None:
    assert phase(pod) == expected


def test_a_container_that_waits_for_its_restart_keeps_the_pod_running() -> None:
    pod = view(Waiting("CrashLoopBackOff"))
    pod.main[0].last = ended(1)
    assert phase(pod) == "Running"


def conditions(status: dict) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in status["conditions"]}


def test_ready_when_every_container_is() -> None:
    status = pod_status(view(RUNNING, RUNNING), {}, NOW)
    assert conditions(status) == {
        "PodScheduled": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }


def test_unready_names_the_containers() -> None:
    status = pod_status(view(RUNNING, RUNNING, ready=False), {}, NOW)
    ready = status["conditions"][-1]
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert "main0 main1" in ready["message"]


def test_initialized_waits_for_every_init_container() -> None:
    assert conditions(pod_status(view(CREATING, init=(ended(0), RUNNING)), {}, NOW))["Initialized"] == "False"
    assert conditions(pod_status(view(CREATING, init=(ended(0), ended(0))), {}, NOW))["Initialized"] == "True"


def test_transition_times_move_only_with_the_condition() -> None:
    first = pod_status(view(RUNNING), {}, NOW)
    later = NOW + timedelta(minutes=1)
    assert pod_status(view(RUNNING), first, later) == first
    changed = pod_status(view(RUNNING, ready=False), first, later)
    times = {condition["type"]: condition["lastTransitionTime"] for condition in changed["conditions"]}
    assert times["Initialized"] == "2026-11-22T14:03:22Z"
    assert times["Ready"] == "2026-11-22T14:04:22Z"


def test_container_status_tells_how_it_ended_last_time() -> None:
    pod = view(RUNNING)
    pod.main[0].last = Terminated(137, NOW, NOW, 76, "killed")
    pod.main[0].restarts = 3
    status = pod_status(pod, {}, NOW)["containerStatuses"][0]
    assert status["restartCount"] == 3
    assert status["containerID"] == "process://77"
    assert status["state"] == {"running": {"startedAt": "2026-11-22T14:03:22Z"}}
    last = status["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"], last["message"]) == (137, "Error", "killed")
