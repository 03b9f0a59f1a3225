"""Which pods are made and which go: for every mix of pods, not only those one thinks of."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controller.plan import known_memory, plan
from controller.pod_view import PodView, Report
from greenthread.gpu import PodRef


def pod(ordinal: int = 0, hash8: str = "new", **fields: object) -> PodView:
    base = PodView(
        ref=PodRef("team", f"m-{ordinal}-{hash8}"),
        uid=f"{ordinal}-{hash8}",
        ordinal=ordinal,
        hash8=hash8,
        node="node-a",
        gpus=(0,),
        phase="Running",
        ready=True,
        deleting=False,
        trouble="",
        report=Report(),
        serving_memory=None,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def names(removals: object) -> list[str]:
    return [removal.pod.ref.name for removal in removals]  # type: ignore[attr-defined]


def test_each_ordinal_gets_a_pod() -> None:
    assert plan(3, "new", [pod(1)]).create == (0, 2)


def test_scaling_down_deletes_the_highest_ordinals() -> None:
    assert names(plan(1, "new", [pod(0), pod(1), pod(2, deleting=True)]).delete) == ["m-1-new"]


def test_a_new_pod_is_made_beside_the_old_one_which_goes_when_it_is_ready() -> None:
    step = plan(1, "new", [pod(hash8="old")])
    assert (step.create, step.delete) == ((0,), ())
    step = plan(1, "new", [pod(hash8="old"), pod(ready=False)])
    assert (step.create, step.delete) == ((), ())
    step = plan(1, "new", [pod(hash8="old"), pod()])
    assert names(step.delete) == ["m-0-old"]


def test_of_several_outdated_pods_only_a_ready_one_stays() -> None:
    step = plan(1, "new", [pod(hash8="older"), pod(hash8="old", ready=False)])
    assert step.create == (0,)
    assert names(step.delete) == ["m-0-old"]


def test_a_failed_pod_is_deleted_and_its_name_waited_for() -> None:
    step = plan(1, "new", [pod(phase="Failed", ready=False, trouble="Evicted")])
    assert [(removal.reason, removal.broken) for removal in step.delete] == [("Evicted", True)]
    assert (step.create, step.waiting) == ((), (0,))
    step = plan(1, "new", [pod(deleting=True)])
    assert (step.create, step.waiting, step.delete) == ((), (0,), ())


def test_a_pod_of_a_lost_node_is_replaced() -> None:
    step = plan(1, "new", [pod()], lost_nodes={"node-a"})
    assert [removal.reason for removal in step.delete] == ["its node node-a is gone"]


def test_a_broken_new_pod_does_not_cost_the_old_one() -> None:
    step = plan(1, "new", [pod(hash8="old"), pod(phase="Failed", ready=False)])
    assert names(step.delete) == ["m-0-new"]


pods = st.lists(
    st.builds(
        pod,
        ordinal=st.integers(0, 3),
        hash8=st.sampled_from(["new", "old", "older"]),
        phase=st.sampled_from(["Pending", "Running", "Running", "Failed"]),
        ready=st.booleans(),
        deleting=st.booleans(),
    ),
    unique_by=lambda pod: pod.ref,
    max_size=8,
)


@given(st.integers(0, 4), pods)
def test_no_step_takes_the_last_working_pod_of_a_wanted_replica(replicas: int, present: list[PodView]) -> None:
    step = plan(replicas, "new", present)
    removed = {removal.pod.ref for removal in step.delete}
    for ordinal in range(replicas):
        working = [p for p in present if p.ordinal == ordinal and p.ready and not p.deleting and not p.failed]
        assert not working or any(p.ref not in removed for p in working)


@given(st.integers(0, 4), pods)
def test_steps_lead_to_one_ready_pod_a_replica(replicas: int, present: list[PodView]) -> None:
    """A cluster that obeys: what is deleted goes, what is made becomes ready."""
    for _ in range(6):
        step = plan(replicas, "new", present)
        removed = {removal.pod.ref for removal in step.delete}
        present = [replace(p, ready=True, phase="Running") for p in present if p.ref not in removed and not p.deleting]
        taken = {p.ref for p in present}
        for ordinal in step.create:
            made = pod(ordinal, ready=False, phase="Pending")
            assert made.ref not in taken
            present.append(made)
    assert sorted(p.ref.name for p in present) == [f"m-{ordinal}-new" for ordinal in range(replicas)]
    assert plan(replicas, "new", [replace(p, ready=True) for p in present]).delete == ()


def test_known_memory_is_of_this_template_only() -> None:
    assert known_memory([pod(serving_memory=5), pod(1, serving_memory=7)], "new", 99, True) == 7
    assert known_memory([pod(hash8="old", serving_memory=5)], "new", 5, True) is None
    assert known_memory([], "new", 5, True) == 5  # every pod is gone, the spec is the same
    assert known_memory([], "new", 5, False) is None  # the spec has changed since
