"""The core without a socket: time, restarts, watches, whatever comes in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localcluster.api.errors import StatusError
from localcluster.api.messages import Request, Response
from localcluster.api.watches import Watch
from tests.parts.localcluster_api.builders import CRDS, MERGE, THINGS, Local, crd, thing


def open_watch(local: Local, path: str, **query: str) -> tuple[Watch, list[tuple[str, dict]]]:
    watch = local.raw("GET", path, watch="true", **query)
    assert isinstance(watch, Watch)
    events: list[tuple[str, dict]] = []

    def deliver(line: bytes | None) -> None:
        if line is None:
            events.append(("END", {}))
        else:
            event = json.loads(line)
            events.append((event["type"], event["object"]))

    watch.start(deliver)
    return watch, events


def test_uids_and_times_come_from_outside() -> None:
    first, second = Local(), Local()
    made = [local.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "a"}}) for local in (first, second)]
    assert made[0] == made[1]
    assert made[0]["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"
    first.clock.forward(61)
    later = first.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "b"}})
    assert later["metadata"]["creationTimestamp"] == "2026-01-01T00:01:01Z"


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    local = Local(tmp_path / "s")
    local.add_things(a={"type": "integer", "maximum": 3})
    made = local.ok("POST", THINGS, thing("x", a=1))
    local.store.close()
    again = Local(tmp_path / "s")
    assert again.ok("GET", f"{THINGS}/x") == made
    assert again.ask("PATCH", f"{THINGS}/x", {"spec": {"a": 4}}, MERGE)[0] == 422
    assert len(again.ok("GET", "/api/v1/namespaces")["items"]) == 4


def test_a_collection_that_was_interrupted_goes_on_after_a_restart(tmp_path: Path) -> None:
    local = Local(tmp_path / "s")
    local.add_things()
    owner = local.ok("POST", THINGS, thing("owner"))
    child = thing("child")
    reference = {"apiVersion": "test.example/v1", "kind": "Thing", "name": "owner", "uid": owner["metadata"]["uid"]}
    child["metadata"]["ownerReferences"] = [reference]
    local.ok("POST", THINGS, child)
    local.store.remove("things.test.example", ("default", "owner"))  # as if it stopped before the collector ran
    local.store.close()
    again = Local(tmp_path / "s")
    assert again.ask("GET", f"{THINGS}/child")[0] == 404


def test_events_are_forgotten_after_an_hour() -> None:
    local = Local()

    def tell(name: str) -> None:
        about = {"kind": "Pod", "namespace": "default", "name": "p"}
        local.ok("POST", "/api/v1/namespaces/default/events", {"metadata": {"name": name}, "involvedObject": about})

    def names() -> list[str]:
        return [item["metadata"]["name"] for item in local.ok("GET", "/api/v1/events")["items"]]

    tell("a")
    local.clock.forward(1800)
    tell("b")
    local.clock.forward(1801)
    tell("c")
    assert names() == ["b", "c"]


def test_a_watch_is_told_where_it_stands_if_it_asked() -> None:
    local = Local()
    watch, _ = open_watch(local, "/api/v1/pods", allowWatchBookmarks="true")
    line = watch.bookmark()
    assert line is not None
    event = json.loads(line)
    assert (event["type"], event["object"]["kind"]) == ("BOOKMARK", "Pod")
    assert event["object"]["metadata"]["resourceVersion"] == str(local.store.version)
    quiet, _ = open_watch(local, "/api/v1/pods")
    assert quiet.bookmark() is None


def test_a_watch_on_what_is_forgotten() -> None:
    local = Local(history=2)
    local.add_things()
    since = local.ok("GET", THINGS)["metadata"]["resourceVersion"]
    for name in "abc":
        local.ok("POST", THINGS, thing(name))
    watch = local.raw("GET", THINGS, watch="true", resourceVersion=since)
    assert isinstance(watch, Watch)
    with pytest.raises(StatusError) as refused:
        watch.start(lambda line: None)
    assert refused.value.code == 410


def test_a_list_cannot_be_continued_when_its_moment_is_forgotten() -> None:
    local = Local(history=2)
    local.add_things()
    for name in "abc":
        local.ok("POST", THINGS, thing(name))
    token = local.ok("GET", THINGS, limit="1")["metadata"]["continue"]
    for name in "def":
        local.ok("POST", THINGS, thing(name))
    status, body = local.ask("GET", THINGS, limit="1", **{"continue": token})
    assert (status, body["reason"]) == (410, "Expired")
    assert "The provided continue parameter is too old" in body["message"]


def test_watches_end_with_their_resource() -> None:
    local = Local()
    local.add_things()
    local.ok("POST", THINGS, thing("a"))
    _, events = open_watch(local, THINGS)
    local.ok("DELETE", f"{CRDS}/things.test.example")
    assert [kind for kind, _ in events] == ["ADDED", "DELETED", "END"]


def test_a_stopped_watch_hears_nothing_more() -> None:
    local = Local()
    local.add_things()
    watch, events = open_watch(local, THINGS)
    watch.stop()
    local.ok("POST", THINGS, thing("a"))
    assert events == []


def test_all_watchers_share_the_line_of_a_change() -> None:
    local = Local()
    local.add_things()
    lines: list[bytes | None] = []
    for _ in range(2):
        watch = local.raw("GET", THINGS, watch="true")
        assert isinstance(watch, Watch)
        watch.start(lines.append)
    local.ok("POST", THINGS, thing("a"))
    assert lines[0] is lines[1]


@pytest.mark.parametrize(
    "function", ["semver(self.a).major() == 1", "sets.contains([self.a], ['x'])", "cidr(self.a).ip() == ip('::1')"]
)
def test_a_rule_that_is_not_supported_here_is_refused_at_once(function: str) -> None:
    local = Local()
    spec = {"type": "object", "properties": {"a": {"type": "string"}}, "x-kubernetes-validations": [{"rule": function}]}
    status, body = local.ask("POST", CRDS, crd({"type": "object", "properties": {"spec": spec}}))
    assert status == 422
    assert "compilation failed: ERROR: <input>:1:" in body["message"]
    assert "undeclared reference to" in body["message"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("PATCH", f"{THINGS}/a", "application/apply-patch+yaml", 415),
        ("POST", "/api/v1/namespaces/default/pods/p/exec", "application/json", 501),
        ("GET", "/api/v1/watch/pods", "application/json", 400),
        ("POST", THINGS, "application/vnd.kubernetes.protobuf", 400),
    ],
)
def test_what_is_not_done_is_said(method: str, path: str, content: str, status: int) -> None:
    local = Local()
    local.add_things()
    local.ok("POST", THINGS, thing("a"))
    local.ok(
        "POST",
        "/api/v1/namespaces/default/pods",
        {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    )
    got, body = local.ask(method, path, {}, content)
    assert got == status
    assert body["kind"] == "Status"
    assert body["message"]


KEYED = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["k"],
    "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}},
}
SHARED = Local()
SHARED.add_things(a={"type": "integer"}, l=KEYED)
words = st.sampled_from(["metadata", "spec", "name", "labels", "a", "l", "k", "x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=15,
)
bodies = values | st.fixed_dictionaries(
    {"metadata": values, "spec": values, "apiVersion": st.just("test.example/v1"), "kind": st.just("Thing")}
)
paths = st.sampled_from(
    [THINGS, f"{THINGS}/a", f"{THINGS}/a/status", "/api/v1/namespaces/default/pods", CRDS, "/api/v1/namespaces"]
)
contents = st.sampled_from(["json", "merge-patch+json", "json-patch+json", "strategic-merge-patch+json", "yaml"])
options = st.sampled_from(["limit", "continue", "resourceVersion", "labelSelector", "fieldSelector", "dryRun"])
queries = st.dictionaries(options, st.text(max_size=4), max_size=2)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["POST", "PUT", "PATCH", "DELETE", "GET"]), paths, contents, bodies, queries)
def test_whatever_is_sent_gets_an_answer_that_is_no_crash(
    method: str, path: str, content: str, body: object, query: dict[str, str]
) -> None:
    data = json.dumps(body).encode()
    answer = SHARED.api.handle(Request(method, path, query, {"content-type": f"application/{content}"}, data))
    assert isinstance(answer, Response)
    assert answer.status != 500 or b"should not be set on objects to be created" in answer.body


@given(st.binary(max_size=60))
def test_whatever_bytes_are_sent(data: bytes) -> None:
    for content in ("application/json", "application/vnd.kubernetes.protobuf", "application/yaml"):
        for body in (data, b"k8s\x00" + data):
            answer = SHARED.api.handle(Request("POST", THINGS, {}, {"content-type": content}, body))
            assert isinstance(answer, Response)
            assert 400 <= answer.status < 500


def test_a_yaml_bomb_is_refused() -> None:
    local = Local()
    bomb = b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"
    status, body = local.ask("POST", "/api/v1/namespaces", bomb, "application/yaml")
    assert (status, "aliases are not supported" in body["message"]) == (400, True)
    deep = b"[" * 100_000
    assert local.ask("POST", "/api/v1/namespaces", deep)[0] == 400
