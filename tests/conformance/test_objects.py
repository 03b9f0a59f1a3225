"""Create, read, replace, patch: what every kind of object has in common."""

from __future__ import annotations

import pytest

from tests.conformance.client import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Client
from tests.conformance.widgets import BASE, CRD_NAME, GROUP, widget

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def config_map(name: str, **data: str) -> dict:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_create_sets_the_metadata_the_server_owns(client: Client, widgets_path: str, ns: str) -> None:
    given = widget("a")
    given["metadata"] |= {"uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "generation": 7}
    given["status"] = {"phase": "Made up"}
    answer = client.post(widgets_path, given)
    assert answer.status == 201
    obj = answer.ok()
    meta = obj["metadata"]
    assert (meta["name"], meta["namespace"], meta["generation"]) == ("a", ns, 1)
    assert len(meta["uid"]) == 36
    assert meta["creationTimestamp"] > "2020"
    assert int(meta["resourceVersion"]) > 0
    assert "status" not in obj
    assert client.get(f"{widgets_path}/a").ok() == obj


def test_defaults_are_filled_in(client: Client, widgets_path: str) -> None:
    spec = client.post(widgets_path, widget("a", color=None, nested={})).ok()["spec"]
    assert spec == {"size": 1, "color": "red", "nested": {"depth": 3}}


def test_unknown_fields_are_pruned_and_warned_about(client: Client, widgets_path: str) -> None:
    given = widget("a", zzz=1, nested={"zzz": 1}, free={"any": [1]}, labels={"k": "v"})
    given["more"] = 1
    answer = client.post(widgets_path, given)
    assert answer.ok()["spec"] == {
        "size": 1,
        "color": "red",
        "nested": {"depth": 3},
        "free": {"any": [1]},
        "labels": {"k": "v"},
    }
    assert "more" not in answer.body
    warnings = answer.headers.get_all("Warning") or []
    text = " ".join(warnings)
    assert '299 - "unknown field \\"spec.zzz\\""' in text
    assert '299 - "unknown field \\"spec.nested.zzz\\""' in text
    assert '299 - "unknown field \\"more\\""' in text


def test_unknown_fields_are_refused_when_asked_to_be_strict(client: Client, widgets_path: str) -> None:
    answer = client.post(widgets_path, widget("a", zzz=1), fieldValidation="Strict")
    assert answer.refused(400, "BadRequest").endswith('strict decoding error: unknown field "spec.zzz"')
    assert client.get(f"{widgets_path}/a").status == 404


def test_unknown_fields_are_ignored_when_asked_to(client: Client, widgets_path: str) -> None:
    answer = client.post(widgets_path, widget("a", zzz=1), fieldValidation="Ignore")
    assert answer.headers.get_all("Warning") is None
    assert "zzz" not in answer.ok()["spec"]


def test_unknown_fields_of_built_in_kinds(client: Client, ns: str) -> None:
    where = f"/api/v1/namespaces/{ns}/configmaps"
    given = {**config_map("a", k="v"), "zzz": 1}
    message = client.post(where, given, fieldValidation="Strict").refused(400, "BadRequest")
    assert message == (
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "zzz"'
    )
    answer = client.post(where, given)
    assert answer.headers.get_all("Warning") == ['299 - "unknown field \\"zzz\\""']
    assert "zzz" not in answer.ok()


def test_a_field_that_is_there_twice(client: Client, widgets_path: str) -> None:
    body = b'{"apiVersion":"%s/v1","kind":"Widget","metadata":{"name":"a"},"spec":{"size":1,"size":2}}' % GROUP.encode()
    message = client.post(widgets_path, body, fieldValidation="Strict").refused(400, "BadRequest")
    assert message.endswith('strict decoding error: duplicate field "spec.size"')
    answer = client.post(widgets_path, body)
    assert answer.ok()["spec"]["size"] == 2
    assert answer.headers.get_all("Warning") == ['299 - "duplicate field \\"spec.size\\""']


@pytest.mark.parametrize("value", ["Everything", "strict"])
def test_field_validation_must_be_one_of_three(client: Client, widgets_path: str, value: str) -> None:
    message = client.post(widgets_path, widget("a"), fieldValidation=value).refused(422, "Invalid")
    assert f'fieldValidation: Unsupported value: "{value}"' in message


def test_a_name_can_be_taken_once(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    answer = client.post(widgets_path, widget("a"))
    assert answer.refused(409, "AlreadyExists") == f'widgets.{GROUP} "a" already exists'
    assert answer.body["details"] == {"name": "a", "group": GROUP, "kind": "widgets"}


def test_what_is_not_there_is_not_found(client: Client, widgets_path: str) -> None:
    for answer in (
        client.get(f"{widgets_path}/nope"),
        client.put(f"{widgets_path}/nope", {**widget("nope"), "metadata": {"name": "nope", "resourceVersion": "1"}}),
        client.patch(f"{widgets_path}/nope", {"spec": {}}),
        client.delete(f"{widgets_path}/nope"),
    ):
        assert answer.refused(404, "NotFound") == f'widgets.{GROUP} "nope" not found'
        assert answer.body["details"] == {"name": "nope", "group": GROUP, "kind": "widgets"}


def test_the_namespace_must_be_there(client: Client) -> None:
    answer = client.post(f"{BASE}/namespaces/no-such/widgets", widget("a"))
    assert answer.refused(404, "NotFound") == 'namespaces "no-such" not found'
    assert client.get(f"{BASE}/namespaces/no-such/widgets").ok()["items"] == []


def test_the_body_must_agree_with_the_path(client: Client, widgets_path: str) -> None:
    elsewhere = widget("a")
    elsewhere["metadata"]["namespace"] = "default"
    message = client.post(widgets_path, elsewhere).refused(400, "BadRequest")
    assert message == "the namespace of the provided object does not match the namespace sent on the request"
    made = client.post(widgets_path, widget("a")).ok()
    renamed = {**made, "metadata": {**made["metadata"], "name": "b"}}
    message = client.put(f"{widgets_path}/a", renamed).refused(400, "BadRequest")
    assert message == "the name of the object (b) does not match the name on the URL (a)"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"metadata":{"name":"a"}}',
        b'{"apiVersion":"v1","kind":"Widget","metadata":{"name":"a"},"spec":{"size":1}}',
        b'{"apiVersion":"conformance.greenthread.ai/v1","kind":"Widget","metadata":{"name":1},"spec":{"size":1}}',
        b'{"apiVersion":"conformance.greenthread.ai/v1","kind":"Widget","metadata":{"labels":{"a":1}},"spec":{}}',
    ],
)
def test_a_body_that_is_no_such_object(client: Client, widgets_path: str, body: bytes) -> None:
    client.post(widgets_path, body).refused(400, "BadRequest")


def test_a_built_in_object_of_the_wrong_type(client: Client, ns: str) -> None:
    where = f"/api/v1/namespaces/{ns}/configmaps"
    message = client.post(where, {**config_map("a"), "data": {"k": 1}}).refused(400, "BadRequest")
    assert message == (
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct '
        "field ConfigMap.data of type string"
    )


def test_a_body_may_be_yaml(client: Client, ns: str) -> None:
    body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  when: '2026-01-01'\n"
    obj = client.post(f"/api/v1/namespaces/{ns}/configmaps", body, content="application/yaml").ok()
    assert obj["data"] == {"when": "2026-01-01"}


def test_a_body_in_no_known_format(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, b"<a/>", content="text/xml").refused(415, "UnsupportedMediaType")


def test_a_body_that_is_too_large(client: Client, ns: str) -> None:
    where = f"/api/v1/namespaces/{ns}/configmaps"
    client.post(where, config_map("a", k="x" * 4_000_000)).refused(413, "RequestEntityTooLarge")


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        (
            "Upper",
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
            "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
        ("x" * 254, "must be no more than 253 characters"),
    ],
)
def test_a_name_must_be_a_dns_subdomain(client: Client, widgets_path: str, name: str, detail: str) -> None:
    answer = client.post(widgets_path, widget(name))
    answer.refused(422, "Invalid")
    assert ("FieldValueInvalid", "metadata.name", f'Invalid value: "{name}": {detail}') in answer.causes()


def test_a_name_is_required(client: Client, widgets_path: str) -> None:
    given = widget("a")
    del given["metadata"]["name"]
    answer = client.post(widgets_path, given)
    answer.refused(422, "Invalid")
    assert answer.causes() == {
        ("FieldValueRequired", "metadata.name", "Required value: name or generateName is required")
    }


def test_the_kind_must_be_the_one_of_the_path(client: Client, widgets_path: str) -> None:
    answer = client.post(widgets_path, {**widget("a"), "kind": "Gadget"})
    assert answer.refused(422, "Invalid") == (
        f'Gadget.{GROUP} "a" is invalid: kind: Invalid value: "Gadget": must be Widget'
    )


def test_generate_name(client: Client, widgets_path: str) -> None:
    given = widget("a")
    given["metadata"] = {"generateName": "gen-"}
    names = {client.post(widgets_path, given).ok()["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("gen-") and len(name) == 9 for name in names)


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"labels": {"a b": "v"}}, "metadata.labels"),
        ({"labels": {"a": "v v"}}, "metadata.labels"),
        ({"labels": {"a": "v" * 64}}, "metadata.labels"),
        ({"labels": {"/a": "v"}}, "metadata.labels"),
        ({"annotations": {"a b": "v"}}, "metadata.annotations"),
        ({"annotations": {"a": "v" * 262145}}, "metadata.annotations"),
        ({"finalizers": ["no spaces please"]}, "metadata.finalizers"),
        (
            {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "", "uid": "x"}]},
            "metadata.ownerReferences.name",
        ),
    ],
)
def test_metadata_is_checked(client: Client, ns: str, metadata: dict, field: str) -> None:
    where = f"/api/v1/namespaces/{ns}/configmaps"
    answer = client.post(where, {**config_map("a"), "metadata": {"name": "a", **metadata}})
    answer.refused(422, "Invalid")
    assert {cause[1].partition("[")[0] for cause in answer.causes()} == {field}


# --- replace --------------------------------------------------------------------------------------------------------


def test_replace_at_the_version_that_was_read(client: Client, widgets_path: str) -> None:
    obj = client.post(widgets_path, widget("a")).ok()
    obj["spec"]["size"] = 2
    second = client.put(f"{widgets_path}/a", obj).ok()
    assert second["spec"]["size"] == 2
    assert second["metadata"]["generation"] == 2
    assert int(second["metadata"]["resourceVersion"]) > int(obj["metadata"]["resourceVersion"])
    answer = client.put(f"{widgets_path}/a", obj)
    assert answer.refused(409, "Conflict") == f'Operation cannot be fulfilled on widgets.{GROUP} "a": {MODIFIED}'
    assert answer.body["details"] == {"name": "a", "group": GROUP, "kind": "widgets"}


def test_replace_of_a_custom_resource_needs_the_version(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    answer = client.put(f"{widgets_path}/a", widget("a", size=2))
    assert answer.refused(422, "Invalid") == (
        f'widgets.{GROUP} "a" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update'
    )


def test_replace_of_a_built_in_kind_without_version(client: Client, ns: str) -> None:
    where = f"/api/v1/namespaces/{ns}/configmaps"
    client.post(where, config_map("a", k="1")).ok()
    assert client.put(f"{where}/a", config_map("a", k="2")).ok()["data"] == {"k": "2"}


def test_replace_drops_what_is_left_out_but_not_what_the_server_owns(client: Client, widgets_path: str) -> None:
    given = widget("a", low=1, high=2)
    given["metadata"]["labels"] = {"x": "y"}
    obj = client.post(widgets_path, given).ok()
    bare = widget("a")
    bare["metadata"]["resourceVersion"] = obj["metadata"]["resourceVersion"]
    new = client.put(f"{widgets_path}/a", bare).ok()
    assert new["metadata"]["uid"] == obj["metadata"]["uid"]
    assert new["metadata"]["creationTimestamp"] == obj["metadata"]["creationTimestamp"]
    assert "labels" not in new["metadata"]
    assert "low" not in new["spec"]


def test_another_uid_is_another_object(client: Client, widgets_path: str) -> None:
    obj = client.post(widgets_path, widget("a")).ok()
    uid = "11111111-2222-3333-4444-555555555555"
    other = {**obj, "metadata": {**obj["metadata"], "uid": uid}}
    message = client.put(f"{widgets_path}/a", other).refused(409, "Conflict")
    assert message.startswith(f'Operation cannot be fulfilled on widgets.{GROUP} "a": ')
    assert message.endswith(
        f"Precondition failed: UID in precondition: {uid}, UID in object meta: {obj['metadata']['uid']}"
    )


def test_a_write_that_changes_nothing_makes_no_new_version(client: Client, widgets_path: str) -> None:
    obj = client.post(widgets_path, widget("a")).ok()
    assert client.put(f"{widgets_path}/a", obj).version == obj["metadata"]["resourceVersion"]
    assert client.patch(f"{widgets_path}/a", {"spec": {"size": 1}}).version == obj["metadata"]["resourceVersion"]


def test_labels_do_not_count_as_a_new_generation(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    new = client.patch(f"{widgets_path}/a", {"metadata": {"labels": {"x": "y"}}}).ok()
    assert new["metadata"]["generation"] == 1


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_is_written_in_its_own_place(client: Client, widgets_path: str) -> None:
    obj = client.post(widgets_path, widget("a")).ok()
    changed = {**obj, "spec": {"size": 9}, "status": {"phase": "Done"}}
    changed["metadata"] = {**obj["metadata"], "labels": {"x": "y"}}
    new = client.put(f"{widgets_path}/a/status", changed).ok()
    assert new["status"] == {"phase": "Done"}
    assert new["spec"] == obj["spec"]
    assert "labels" not in new["metadata"]
    assert new["metadata"]["generation"] == 1
    kept = client.patch(f"{widgets_path}/a", {"spec": {"size": 3}, "status": {"phase": "Lost"}}).ok()
    assert (kept["status"], kept["spec"]["size"], kept["metadata"]["generation"]) == ({"phase": "Done"}, 3, 2)
    assert client.get(f"{widgets_path}/a/status").ok() == kept


def test_a_conflict_in_status(client: Client, widgets_path: str) -> None:
    obj = client.post(widgets_path, widget("a")).ok()
    client.patch(f"{widgets_path}/a/status", {"status": {"phase": "One"}}).ok()
    client.put(f"{widgets_path}/a/status", {**obj, "status": {"phase": "Two"}}).refused(409, "Conflict")


def test_a_subresource_that_is_not_there(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    assert client.get(f"{widgets_path}/a/scale").status == 404
    assert client.get(f"{widgets_path}/a/nonsense").status == 404


# --- dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(client: Client, widgets_path: str) -> None:
    assert client.post(widgets_path, widget("a"), dryRun="All").ok()["spec"]["color"] == "red"
    assert client.get(f"{widgets_path}/a").status == 404
    obj = client.post(widgets_path, widget("a")).ok()
    assert client.patch(f"{widgets_path}/a", {"spec": {"size": 5}}, dryRun="All").ok()["spec"]["size"] == 5
    client.delete(f"{widgets_path}/a", dryRun="All").ok()
    assert client.get(f"{widgets_path}/a").ok() == obj
    client.post(widgets_path, widget("b", size=0), dryRun="All").refused(422, "Invalid")
    client.post(widgets_path, widget("b"), dryRun="Some").refused(422, "Invalid")


# --- patch ----------------------------------------------------------------------------------------------------------


def test_merge_patch(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a", low=1, list=["x", "y"], labels={"a": "1"})).ok()
    new = client.patch(f"{widgets_path}/a", {"spec": {"low": None, "list": ["z"], "labels": {"b": "2"}}}).ok()
    assert "low" not in new["spec"]
    assert new["spec"]["list"] == ["z"]
    assert new["spec"]["labels"] == {"a": "1", "b": "2"}


def test_a_patch_may_name_the_version_it_wants(client: Client, widgets_path: str) -> None:
    first = client.post(widgets_path, widget("a")).version
    client.patch(f"{widgets_path}/a", {"metadata": {"resourceVersion": first}, "spec": {"size": 2}}).ok()
    client.patch(f"{widgets_path}/a", {"metadata": {"resourceVersion": first}, "spec": {"size": 3}}).refused(
        409, "Conflict"
    )


def test_json_patch(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a", list=["x", "y"], free={"a/b": 1, "c~d": 2})).ok()
    operations = [
        {"op": "test", "path": "/spec/size", "value": 1},
        {"op": "replace", "path": "/spec/size", "value": 7},
        {"op": "add", "path": "/spec/list/1", "value": "n"},
        {"op": "add", "path": "/spec/list/-", "value": "last"},
        {"op": "remove", "path": "/spec/list/0"},
        {"op": "copy", "from": "/spec/size", "path": "/spec/low"},
        {"op": "move", "from": "/spec/free/a~1b", "path": "/spec/free/moved"},
        {"op": "test", "path": "/spec/free/c~0d", "value": 2},
    ]
    spec = client.patch(f"{widgets_path}/a", operations, JSON_PATCH).ok()["spec"]
    assert spec["list"] == ["n", "y", "last"]
    assert (spec["size"], spec["low"], spec["free"]) == (7, 7, {"moved": 1, "c~d": 2})


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/spec/size", "value": 2},
        {"op": "test", "path": "/spec/size", "value": "1"},
        {"op": "test", "path": "/spec/nothing", "value": 1},
        {"op": "remove", "path": "/spec/nothing"},
        {"op": "replace", "path": "/spec/list/1", "value": "x"},
        {"op": "replace", "path": "/spec/nothing/at/all", "value": 1},
        {"op": "add", "path": "/status/phase", "value": "x"},
        {"op": "add", "path": "/spec/list/9", "value": "x"},
        {"op": "test", "path": "/status/phase", "value": None},
    ],
)
def test_a_json_patch_that_does_not_fit(client: Client, widgets_path: str, operation: dict) -> None:
    obj = client.post(widgets_path, widget("a", list=["x"])).ok()
    answer = client.patch(f"{widgets_path}/a", [{"op": "add", "path": "/spec/low", "value": 1}, operation], JSON_PATCH)
    answer.refused(422, "Invalid")
    assert client.get(f"{widgets_path}/a").ok() == obj


def test_replace_in_a_json_patch_also_adds(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    operations = [{"op": "replace", "path": "/spec/low", "value": 1}]
    assert client.patch(f"{widgets_path}/a", operations, JSON_PATCH).ok()["spec"]["low"] == 1


def test_a_json_patch_may_test_that_something_is_absent(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    operations = [{"op": "test", "path": "/spec/low", "value": None}, {"op": "add", "path": "/spec/low", "value": 1}]
    assert client.patch(f"{widgets_path}/a", operations, JSON_PATCH).ok()["spec"]["low"] == 1
    client.patch(f"{widgets_path}/a", operations, JSON_PATCH).refused(422, "Invalid")


@pytest.mark.parametrize(
    ("content", "body"),
    [
        (JSON_PATCH, b'{"op":"add"}'),
        (JSON_PATCH, b"["),
        (JSON_PATCH, b'[{"op":"frobnicate","path":"/spec"}]'),
        (MERGE_PATCH, b"{"),
        (MERGE_PATCH, b'"text"'),
    ],
)
def test_a_malformed_patch(client: Client, widgets_path: str, content: str, body: bytes) -> None:
    client.post(widgets_path, widget("a")).ok()
    answer = client.patch(f"{widgets_path}/a", body, content)
    assert answer.status in (400, 422), answer.body


def test_a_patch_must_leave_a_valid_object(client: Client, widgets_path: str) -> None:
    obj = client.post(widgets_path, widget("a")).ok()
    client.patch(f"{widgets_path}/a", {"spec": {"size": 0}}).refused(422, "Invalid")
    client.patch(f"{widgets_path}/a", {"spec": {"size": None}}).refused(422, "Invalid")
    client.patch(f"{widgets_path}/a", {"kind": "Gadget"}).refused(422, "Invalid")
    client.patch(f"{widgets_path}/a", {"metadata": {"name": "b"}}).refused(400, "BadRequest")
    assert client.get(f"{widgets_path}/a").ok() == obj


def test_strategic_merge_is_for_built_in_kinds_only(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    answer = client.patch(f"{widgets_path}/a", {"spec": {"size": 2}}, STRATEGIC_PATCH)
    answer.refused(415, "UnsupportedMediaType")


def test_names_of_kinds_do_not_leak_between_groups(client: Client) -> None:
    assert client.get(f"/apis/{GROUP}/v1/{CRD_NAME}").status == 404
    assert client.get("/apis/no.such.group/v1/widgets").status == 404
    assert client.get(f"/apis/{GROUP}/v9/widgets").status == 404
