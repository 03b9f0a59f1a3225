"""Deletion: preconditions, finalizers, owners and dependents, namespaces, grace."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.client import JSON_PATCH, MERGE_PATCH, Client
from tests.conformance.widgets import GROUP, widget


def test_deletion_answers_with_a_status(client: Client, widgets_path: str) -> None:
    made = client.post(widgets_path, widget("a")).ok()
    answer = client.delete(f"{widgets_path}/a").ok()
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"] == {"name": "a", "group": GROUP, "kind": "widgets", "uid": made["metadata"]["uid"]}
    assert client.get(f"{widgets_path}/a").status == 404


def test_preconditions(client: Client, widgets_path: str) -> None:
    meta = client.post(widgets_path, widget("a")).ok()["metadata"]
    options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
    other = {"uid": "11111111-2222-3333-4444-555555555555"}
    message = client.delete(f"{widgets_path}/a", {**options, "preconditions": other}).refused(409, "Conflict")
    assert message == (
        f'Operation cannot be fulfilled on Widget.{GROUP} "a": the UID in the precondition ({other["uid"]}) does not '
        f"match the UID in record ({meta['uid']}). The object might have been deleted and then recreated"
    )
    message = client.delete(f"{widgets_path}/a", {**options, "preconditions": {"resourceVersion": "1"}}).refused(
        409, "Conflict"
    )
    assert message == (
        f'Operation cannot be fulfilled on Widget.{GROUP} "a": the ResourceVersion in the precondition (1) does not '
        f"match the ResourceVersion in record ({meta['resourceVersion']}). The object might have been modified"
    )
    now = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    client.delete(f"{widgets_path}/a", {**options, "preconditions": now}).ok()


def test_a_finalizer_keeps_the_object_until_it_is_taken_off(client: Client, widgets_path: str) -> None:
    given = widget("a")
    given["metadata"]["finalizers"] = ["example.com/hold"]
    client.post(widgets_path, given).ok()
    answer = client.delete(f"{widgets_path}/a").ok()
    assert answer["kind"] == "Widget"
    meta = client.get(f"{widgets_path}/a").ok()["metadata"]
    assert meta["deletionTimestamp"]
    assert meta["deletionGracePeriodSeconds"] == 0
    assert meta["generation"] == 2
    again = client.delete(f"{widgets_path}/a").ok()
    assert again["metadata"]["deletionTimestamp"] == meta["deletionTimestamp"]
    # it can still be changed, but nothing new can hold it
    client.patch(f"{widgets_path}/a", {"spec": {"size": 2}}).ok()
    more = {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
    message = client.patch(f"{widgets_path}/a", more).refused(422, "Invalid")
    assert "no new finalizers can be added if the object is being deleted" in message
    # nor can the deletion be taken back
    kept = client.patch(f"{widgets_path}/a", {"metadata": {"deletionTimestamp": None}}).ok()
    assert kept["metadata"]["deletionTimestamp"] == meta["deletionTimestamp"]
    client.patch(f"{widgets_path}/a", {"metadata": {"finalizers": None}}).ok()
    assert client.get(f"{widgets_path}/a").status == 404


def test_a_finalizer_and_its_watchers(client: Client, widgets_path: str) -> None:
    given = widget("a")
    given["metadata"]["finalizers"] = ["example.com/hold"]
    version = client.post(widgets_path, given).version
    with client.watch(widgets_path, resourceVersion=version) as watch:
        client.delete(f"{widgets_path}/a").ok()
        kind, obj = watch.next()
        assert (kind, "deletionTimestamp" in obj["metadata"]) == ("MODIFIED", True)
        client.patch(f"{widgets_path}/a", [{"op": "remove", "path": "/metadata/finalizers/0"}], JSON_PATCH).ok()
        events = [watch.next()]
        if events[0][0] == "MODIFIED":  # kube-apiserver writes once, others may write twice
            events.append(watch.next())
        assert events[-1][0] == "DELETED"


def test_policies_that_do_not_exist(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    client.delete(
        f"{widgets_path}/a", {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Maybe"}
    ).refused(422, "Invalid")


# --- owners ---------------------------------------------------------------------------------------------------------


def owned_by(owner: dict[str, Any], name: str, *, block: bool = False) -> dict[str, Any]:
    reference = {key: owner[key] for key in ("apiVersion", "kind")}
    reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
    obj = widget(name)
    obj["metadata"]["ownerReferences"] = [{**reference, "blockOwnerDeletion": block}]
    return obj


def test_dependents_go_with_their_owner(client: Client, widgets_path: str, ns: str) -> None:
    owner = client.post(widgets_path, widget("owner")).ok()
    child = client.post(widgets_path, owned_by(owner, "child")).ok()
    maps = f"/api/v1/namespaces/{ns}/configmaps"
    grandchild = {**owned_by(child, "grandchild"), "apiVersion": "v1", "kind": "ConfigMap"}
    del grandchild["spec"]
    client.post(maps, grandchild).ok()
    client.delete(f"{widgets_path}/owner").ok()
    client.until_gone(f"{widgets_path}/child")
    client.until_gone(f"{maps}/grandchild")


def test_a_dependent_of_two_stays_while_one_is_there(client: Client, widgets_path: str) -> None:
    first = client.post(widgets_path, widget("first")).ok()
    second = client.post(widgets_path, widget("second")).ok()
    child = owned_by(first, "child")
    child["metadata"]["ownerReferences"] += owned_by(second, "child")["metadata"]["ownerReferences"]
    client.post(widgets_path, child).ok()
    witness = client.post(widgets_path, owned_by(first, "witness")).ok()
    client.delete(f"{widgets_path}/first").ok()
    client.until_gone(f"{widgets_path}/{witness['metadata']['name']}")
    client.get(f"{widgets_path}/child").ok()
    client.delete(f"{widgets_path}/second").ok()
    client.until_gone(f"{widgets_path}/child")


def test_foreground_deletion_waits_for_the_dependents(client: Client, widgets_path: str) -> None:
    owner = client.post(widgets_path, widget("owner")).ok()
    child = owned_by(owner, "child", block=True)
    child["metadata"]["finalizers"] = ["example.com/hold"]
    client.post(widgets_path, child).ok()
    answer = client.delete(f"{widgets_path}/owner", propagationPolicy="Foreground").ok()
    assert answer["metadata"]["finalizers"] == ["foregroundDeletion"]
    client.eventually(
        lambda: "deletionTimestamp" in client.get(f"{widgets_path}/child").ok()["metadata"], "the child is deleted"
    )
    client.get(f"{widgets_path}/owner").ok()
    client.patch(f"{widgets_path}/child", {"metadata": {"finalizers": None}}, MERGE_PATCH).ok()
    client.until_gone(f"{widgets_path}/child")
    client.until_gone(f"{widgets_path}/owner")


def test_orphans_are_let_go(client: Client, widgets_path: str) -> None:
    owner = client.post(widgets_path, widget("owner")).ok()
    client.post(widgets_path, owned_by(owner, "child")).ok()
    client.delete(f"{widgets_path}/owner", propagationPolicy="Orphan").ok()
    client.until_gone(f"{widgets_path}/owner")
    child = client.get(f"{widgets_path}/child").ok()
    assert "ownerReferences" not in child["metadata"]


def test_an_owner_that_never_was(client: Client, widgets_path: str) -> None:
    owner = {**widget("ghost"), "metadata": {"name": "ghost", "uid": "11111111-2222-3333-4444-555555555555"}}
    client.post(widgets_path, owned_by(owner, "child"))
    client.until_gone(f"{widgets_path}/child")


def test_an_owner_of_a_kind_that_is_not_known_is_left_alone(client: Client, widgets_path: str) -> None:
    uid = "11111111-2222-3333-4444-555555555555"
    owner = {"apiVersion": "no.such.group/v1", "kind": "Nobody", "metadata": {"name": "n", "uid": uid}}
    first = client.post(widgets_path, widget("first")).ok()
    client.post(widgets_path, owned_by(owner, "child")).ok()
    client.post(widgets_path, owned_by(first, "witness")).ok()
    client.delete(f"{widgets_path}/first").ok()
    client.until_gone(f"{widgets_path}/witness")
    client.get(f"{widgets_path}/child").ok()


# --- namespaces -----------------------------------------------------------------------------------------------------


def test_a_namespace_takes_its_objects_along(client: Client, ns: str, widgets_path: str) -> None:
    held = widget("held")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    client.post(widgets_path, held).ok()
    client.post(widgets_path, widget("free")).ok()
    answer = client.delete(f"/api/v1/namespaces/{ns}").ok()
    assert (answer["kind"], answer["status"]["phase"]) == ("Namespace", "Terminating")
    client.until_gone(f"{widgets_path}/free")
    answer = client.post(widgets_path, widget("late"))
    message = answer.refused(403, "Forbidden")
    assert message == (
        f'widgets.{GROUP} "late" is forbidden: unable to create new content in namespace {ns} because it is being '
        "terminated"
    )
    assert answer.body["details"]["causes"] == [
        {
            "reason": "NamespaceTerminating",
            "message": f"namespace {ns} is being terminated",
            "field": "metadata.namespace",
        }
    ]
    client.get(f"/api/v1/namespaces/{ns}").ok()
    client.patch(f"{widgets_path}/held", {"metadata": {"finalizers": None}}).ok()
    client.until_gone(f"/api/v1/namespaces/{ns}")
    assert client.get(widgets_path).ok()["items"] == []


def test_the_default_namespace_stays(client: Client) -> None:
    client.delete("/api/v1/namespaces/default").refused(403, "Forbidden")


# --- pods -----------------------------------------------------------------------------------------------------------


def pod(name: str, node: str | None = None, **spec: Any) -> dict[str, Any]:
    given = {"containers": [{"name": "main", "image": "example.com/image"}], **spec}
    if node:
        given["nodeName"] = node
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": given}


@pytest.fixture
def pods(ns: str) -> str:
    return f"/api/v1/namespaces/{ns}/pods"


def test_a_pod_that_runs_gets_time_to_end(client: Client, pods: str) -> None:
    client.post(pods, pod("a", node="n1")).ok()
    gone = client.delete(f"{pods}/a").ok()
    assert gone["kind"] == "Pod"
    meta = client.get(f"{pods}/a").ok()["metadata"]
    assert meta["deletionGracePeriodSeconds"] == 30
    assert meta["deletionTimestamp"] > meta["creationTimestamp"]
    # sooner is possible, later is not
    client.delete(f"{pods}/a", gracePeriodSeconds=60).ok()
    assert client.get(f"{pods}/a").ok()["metadata"]["deletionGracePeriodSeconds"] == 30
    client.delete(f"{pods}/a", gracePeriodSeconds=5).ok()
    assert client.get(f"{pods}/a").ok()["metadata"]["deletionGracePeriodSeconds"] == 5
    # who runs it says when it has ended
    client.delete(f"{pods}/a", gracePeriodSeconds=0).ok()
    assert client.get(f"{pods}/a").status == 404


@pytest.mark.parametrize("asked_before", [False, True])
def test_whoever_runs_a_pod_hears_that_it_has_no_time_left(client: Client, pods: str, asked_before: bool) -> None:
    version = client.post(pods, pod("a", node="n1")).version
    if asked_before:
        client.delete(f"{pods}/a").ok()
        version = client.get(f"{pods}/a").version
    with client.watch(pods, resourceVersion=version) as watch:
        client.delete(f"{pods}/a", gracePeriodSeconds=0).ok()
        for expected in ("MODIFIED", "DELETED"):
            kind, obj = watch.next()
            assert (kind, obj["metadata"]["deletionGracePeriodSeconds"]) == (expected, 0)
            assert "deletionTimestamp" in obj["metadata"]


def test_the_grace_of_a_pod_is_its_own(client: Client, pods: str) -> None:
    client.post(pods, pod("a", node="n1", terminationGracePeriodSeconds=7)).ok()
    client.delete(f"{pods}/a").ok()
    assert client.get(f"{pods}/a").ok()["metadata"]["deletionGracePeriodSeconds"] == 7


@pytest.mark.parametrize("phase", [None, "Succeeded", "Failed"])
def test_a_pod_that_does_not_run_goes_at_once(client: Client, pods: str, phase: str | None) -> None:
    client.post(pods, pod("a", node="n1" if phase else None)).ok()
    if phase:
        client.patch(f"{pods}/a/status", {"status": {"phase": phase}}).ok()
    assert client.delete(f"{pods}/a").ok()["metadata"]["name"] == "a"
    assert client.get(f"{pods}/a").status == 404


def test_a_pod_with_a_finalizer_waits_for_both(client: Client, pods: str) -> None:
    given = pod("a", node="n1")
    given["metadata"]["finalizers"] = ["example.com/hold"]
    client.post(pods, given).ok()
    client.delete(f"{pods}/a").ok()
    client.patch(f"{pods}/a", {"metadata": {"finalizers": None}}, MERGE_PATCH).ok()
    client.get(f"{pods}/a").ok()
    client.delete(f"{pods}/a", gracePeriodSeconds=0).ok()
    assert client.get(f"{pods}/a").status == 404
