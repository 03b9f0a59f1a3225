"""Watches: what happens is told once, in order, to those whom it concerns."""

from __future__ import annotations

import threading

import pytest

from tests.conformance.client import JSON_PATCH, MERGE_PATCH, PARTIAL, TABLE, Client
from tests.conformance.widgets import BASE, widget


def test_changes_after_a_version(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("before")).ok()
    version = client.get(widgets_path).version
    with client.watch(widgets_path, resourceVersion=version) as watch:
        made = client.post(widgets_path, widget("a")).ok()
        changed = client.patch(f"{widgets_path}/a", {"spec": {"size": 2}}, MERGE_PATCH).ok()
        client.delete(f"{widgets_path}/a").ok()
        assert watch.next() == ("ADDED", made)
        assert watch.next() == ("MODIFIED", changed)
        kind, last = watch.next()
        assert kind == "DELETED"
        assert last["spec"]["size"] == 2
        assert int(last["metadata"]["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])


def test_changes_of_the_past(client: Client, widgets_path: str) -> None:
    version = client.get(widgets_path).version
    client.post(widgets_path, widget("a")).ok()
    client.delete(f"{widgets_path}/a").ok()
    client.post(widgets_path, widget("b")).ok()
    with client.watch(widgets_path, resourceVersion=version) as watch:
        assert watch.names(3) == [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "b")]


def test_without_a_version_it_begins_with_what_is_there(client: Client, widgets_path: str) -> None:
    for name in ("b", "a"):
        client.post(widgets_path, widget(name)).ok()
    for version in ({}, {"resourceVersion": "0"}):
        with client.watch(widgets_path, **version) as watch:
            assert sorted(watch.names(2)) == [("ADDED", "a"), ("ADDED", "b")]


def test_initial_events_and_their_end(client: Client, widgets_path: str) -> None:
    for name in ("a", "b"):
        client.post(widgets_path, widget(name)).ok()
    options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with client.watch(widgets_path, **options) as watch:
        first = watch.next()
        if first[0] == "ERROR" and "RequestWatchProgress" in first[1]["message"]:
            pytest.skip("the etcd of this test bed is too old for it")
        assert sorted([first[1]["metadata"]["name"], watch.next()[1]["metadata"]["name"]]) == ["a", "b"]
        kind, obj = watch.next()
        assert kind == "BOOKMARK"
        assert obj["kind"] == "Widget"
        assert obj["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert int(obj["metadata"]["resourceVersion"]) > 0
        client.delete(f"{widgets_path}/a").ok()
        assert watch.names(1) == [("DELETED", "a")]


def test_initial_events_need_their_match(client: Client, widgets_path: str) -> None:
    client.get(widgets_path, watch="true", sendInitialEvents="true").refused(422, "Invalid")
    client.get(widgets_path, watch="true", resourceVersionMatch="NotOlderThan", resourceVersion="1").refused(
        422, "Invalid"
    )


def test_a_selector_sees_objects_come_and_go(client: Client, widgets_path: str) -> None:
    version = client.get(widgets_path).version
    with client.watch(widgets_path, resourceVersion=version, labelSelector="app=x") as watch:
        client.post(widgets_path, widget("a")).ok()
        for labels in ({"app": "x"}, {"more": "y"}, {"app": "z"}, {"app": None}, {"app": "x"}):
            client.patch(f"{widgets_path}/a", {"metadata": {"labels": labels}}, MERGE_PATCH).ok()
        client.delete(f"{widgets_path}/a").ok()
        events = [watch.next() for _ in range(5)]
        assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
        assert events[2][1]["metadata"]["labels"]["app"] == "x"  # as it was when it still matched


def test_a_field_selector(client: Client, widgets_path: str) -> None:
    version = client.get(widgets_path).version
    with client.watch(widgets_path, resourceVersion=version, fieldSelector="spec.color=green") as watch:
        for name, color in (("a", "red"), ("b", "green")):
            client.post(widgets_path, widget(name, color=color)).ok()
        client.patch(f"{widgets_path}/a", {"spec": {"color": "green"}}, MERGE_PATCH).ok()
        client.patch(f"{widgets_path}/b", {"spec": {"color": "red"}}, MERGE_PATCH).ok()
        assert watch.names(3) == [("ADDED", "b"), ("ADDED", "a"), ("DELETED", "b")]


def test_one_object(client: Client, widgets_path: str) -> None:
    version = client.get(widgets_path).version
    with client.watch(widgets_path, resourceVersion=version, fieldSelector="metadata.name=a") as watch:
        for name in ("b", "a"):
            client.post(widgets_path, widget(name)).ok()
        assert watch.names(1) == [("ADDED", "a")]


def test_other_namespaces_do_not_show(client: Client, widgets_path: str) -> None:
    version = client.get(widgets_path).version
    with client.watch(widgets_path, resourceVersion=version) as watch:
        client.post(f"{BASE}/namespaces/default/widgets", {**widget("x"), "metadata": {"generateName": "x"}}).ok()
        client.post(widgets_path, widget("a")).ok()
        assert watch.names(1) == [("ADDED", "a")]


def test_it_ends_after_its_timeout(client: Client, widgets_path: str) -> None:
    with client.watch(widgets_path, timeoutSeconds=1, resourceVersion=client.get(widgets_path).version) as watch:
        assert watch.next_or_end() is None


def test_a_version_that_is_forgotten(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    with client.watch(widgets_path, resourceVersion="1") as watch:
        kind, status = watch.next()
        assert kind == "ERROR"
        assert (status["kind"], status["status"], status["code"], status["reason"]) == (
            "Status",
            "Failure",
            410,
            "Expired",
        )
        assert status["message"].startswith("too old resource version: 1 (")
        assert watch.next_or_end() is None


def test_a_version_that_is_none(client: Client, widgets_path: str) -> None:
    assert client.get(widgets_path, watch="true", resourceVersion="x").status in (400, 500)


def test_rows_and_metadata(client: Client, widgets_path: str) -> None:
    version = client.get(widgets_path).version
    with (
        client.watch(widgets_path, accept=TABLE, resourceVersion=version) as tables,
        client.watch(widgets_path, accept=PARTIAL, resourceVersion=version) as partial,
    ):
        client.post(widgets_path, widget("a", size=4)).ok()
        kind, table = tables.next()
        assert (kind, table["kind"]) == ("ADDED", "Table")
        assert table["rows"][0]["cells"][:2] == ["a", 4]
        assert [c["name"] for c in table["columnDefinitions"]][:2] == ["Name", "Size"]
        kind, meta = partial.next()
        assert (kind, meta["kind"], meta["metadata"]["name"]) == ("ADDED", "PartialObjectMetadata", "a")
        assert "spec" not in meta


def test_a_write_that_changes_nothing_is_not_told(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    version = client.get(widgets_path).version
    with client.watch(widgets_path, resourceVersion=version) as watch:
        client.patch(f"{widgets_path}/a", {"spec": {"size": 1}}, MERGE_PATCH).ok()
        client.patch(f"{widgets_path}/a", {"spec": {"size": 2}}, MERGE_PATCH).ok()
        _, obj = watch.next()
        assert obj["spec"]["size"] == 2


def test_all_watchers_hear_all_changes_in_order(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    version = client.get(widgets_path).version

    def write(start: int) -> None:
        mine = Client(client.api)
        for number in range(10):
            patch = [{"op": "add", "path": "/spec/high", "value": start + number}]
            mine.patch(f"{widgets_path}/a", patch, JSON_PATCH).ok()

    with (
        client.watch(widgets_path, resourceVersion=version) as one,
        client.watch(widgets_path, resourceVersion=version) as two,
    ):
        threads = [threading.Thread(target=write, args=(100 * n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first = [one.next()[1] for _ in range(30)]
        second = [two.next()[1] for _ in range(30)]
    assert first == second
    versions = [int(obj["metadata"]["resourceVersion"]) for obj in first]
    assert versions == sorted(set(versions))
    assert sorted(obj["spec"]["high"] for obj in first) == sorted(100 * n + i for n in range(3) for i in range(10))
