"""What a CRD says is enforced: types, bounds, lists, CEL rules; the same verdict, field and message on both APIs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.client import MERGE_PATCH, Client
from tests.conformance.widgets import GROUP, widget

Causes = set[tuple[str, str, str]]


def wrong(field: str, message: str) -> Causes:
    return {("FieldValueInvalid", field, f"Invalid value: {message}")}


def wrong_type(field: str, wanted: str, got: str, value: str | None = None) -> Causes:
    shown = value or got
    return {
        (
            "FieldValueTypeInvalid",
            field,
            f'Invalid value: "{shown}": {field} in body must be of type {wanted}: "{shown}"',
        )
    }


PART = {"namespace": "a", "id": "x"}

REFUSED: list[tuple[dict[str, Any], Causes]] = [
    ({"size": 0}, wrong("spec.size", "0: spec.size in body should be greater than or equal to 1")),
    ({"size": 101}, wrong("spec.size", "101: spec.size in body should be less than or equal to 100")),
    ({"size": "a"}, wrong_type("spec.size", "integer", "string")),
    ({"size": True}, wrong_type("spec.size", "integer", "boolean")),
    ({"size": None}, {("FieldValueRequired", "spec.size", "Required value")}),
    (
        {"color": "blue"},
        {("FieldValueNotSupported", "spec.color", 'Unsupported value: "blue": supported values: "red", "green"')},
    ),
    ({"name": "a"}, wrong("spec.name", '"a": spec.name in body should be at least 2 chars long')),
    ({"name": "abcdef"}, {("FieldValueTooLong", "spec.name", "Too long: may not be more than 5 bytes")}),
    ({"name": "AB"}, wrong("spec.name", "\"AB\": spec.name in body should match '^[a-z]+$'")),
    ({"name": "ab\n"}, wrong("spec.name", "\"ab\\n\": spec.name in body should match '^[a-z]+$'")),
    ({"ratio": 0}, wrong("spec.ratio", "0: spec.ratio in body should be greater than 0")),
    ({"ratio": "x"}, wrong_type("spec.ratio", "number", "string")),
    ({"step": 7}, wrong("spec.step", "7: spec.step in body should be a multiple of 5")),
    ({"on": "true"}, wrong_type("spec.on", "boolean", "string")),
    ({"port": True}, wrong_type("spec.port", "integer,string", "boolean")),
    ({"free": 1}, wrong_type("spec.free", "object", "integer")),
    ({"labels": {"a": "toolong"}}, {("FieldValueTooLong", "spec.labels.a", "Too long: may not be more than 3 bytes")}),
    (
        {"labels": {"a": "1", "b": "2", "c": "3"}},
        {("FieldValueTooMany", "spec.labels", "Too many: 3: must have at most 2 items")},
    ),
    ({"labels": []}, wrong_type("spec.labels", "object", "array")),
    ({"nested": {"note": 1}}, wrong_type("spec.nested.note", "string", "integer")),
    ({"tags": ["a", "a"]}, {("FieldValueDuplicate", "spec.tags[1]", 'Duplicate value: "a"')}),
    ({"tags": list("abcd")}, {("FieldValueTooMany", "spec.tags", "Too many: 4: must have at most 3 items")}),
    ({"tags": "a"}, wrong_type("spec.tags", "array", "string")),
    (
        {"parts": [PART, PART]},
        {("FieldValueDuplicate", "spec.parts[1]", 'Duplicate value: {"id":"x","namespace":"a"}')},
    ),
    ({"parts": [{"namespace": "a"}]}, {("FieldValueRequired", "spec.parts[0].id", "Required value")}),
    ({"when": "yesterday"}, wrong_type("spec.when", "date-time", "string", "yesterday")),
    # CEL
    (
        {"parts": [{**PART, "state": "bad"}]},
        {("FieldValueForbidden", "spec.parts[0].state", "Forbidden: bad is no state")},
    ),
    (
        {"parts": [{"namespace": "a", "id": str(i), "count": 2} for i in range(6)]},
        wrong("spec.parts", "too many parts"),
    ),
    ({"list": ["toolong"]}, wrong("spec", "failed rule: !has(self.list) || self.list.all(x, x.size() < 5)")),
    ({"wait": "5 m"}, wrong("spec.wait", "wait must be like 30s or 1h30m")),
    ({"wait": "5m\n"}, wrong("spec.wait", "wait must be like 30s or 1h30m")),
    ({"wait": "0s"}, wrong("spec.wait", "wait must be like 30s or 1h30m")),
    ({"memory": "1Gi"}, wrong("spec.memory", "memory must be more than 1Gi")),
    ({"memory": "lots"}, wrong("spec.memory", "memory must be more than 1Gi")),
    ({"low": 3, "high": 2}, wrong("spec", "low 3 is above high 2")),
    (
        {"size": 0, "low": 3, "high": 2},
        wrong("spec", "low 3 is above high 2")
        | wrong("spec.size", "0: spec.size in body should be greater than or equal to 1"),
    ),
    # a wrong type, a missing field, too much of something: the CEL rules are then not asked
    ({"size": "x", "low": 3, "high": 2}, wrong_type("spec.size", "integer", "string")),
]


@pytest.mark.parametrize(("spec", "causes"), REFUSED, ids=[str(list(spec.items())[:3])[:60] for spec, _ in REFUSED])
def test_refused(client: Client, widgets_path: str, spec: dict[str, Any], causes: Causes) -> None:
    answer = client.post(widgets_path, widget("a", **spec))
    answer.refused(422, "Invalid")
    assert answer.causes() == causes
    details = answer.body["details"]
    assert (details["name"], details["group"], details["kind"]) == ("a", GROUP, "Widget")


@pytest.mark.parametrize(
    "spec",
    [
        {"size": 1.0},
        {"step": 10},
        {"ratio": 1},
        {"ratio": 0.5},
        {"maybe": None},
        {"port": 1},
        {"port": "x"},
        {"free": {"a": [1, {"b": None}]}},
        {"nested": None},
        {"when": "2026-01-01T00:00:00.5+01:00"},
        {"wait": "1h30m"},
        {"memory": "1025Mi"},
        {"low": 9223372036854775807},
        {"parts": [{**PART, "count": 10}]},
    ],
    ids=str,
)
def test_accepted(client: Client, widgets_path: str, spec: dict[str, Any]) -> None:
    client.post(widgets_path, widget("a", **spec)).ok()


def test_the_message_of_one_error_and_of_several(client: Client, widgets_path: str) -> None:
    message = client.post(widgets_path, widget("a", size=0)).refused(422, "Invalid")
    assert message == (
        f'Widget.{GROUP} "a" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or '
        "equal to 1"
    )
    message = client.post(widgets_path, widget("a", size=0, step=7)).refused(422, "Invalid")
    assert message.startswith(f'Widget.{GROUP} "a" is invalid: [')
    assert message.endswith("]")


def test_a_required_part_is_missing(client: Client, widgets_path: str) -> None:
    given = widget("a")
    del given["spec"]
    answer = client.post(widgets_path, given)
    answer.refused(422, "Invalid")
    assert answer.causes() == {("FieldValueRequired", "spec", "Required value")}


def test_an_integer_is_no_larger_than_64_bits(client: Client, widgets_path: str) -> None:
    answer = client.post(widgets_path, widget("a", size=2**63))
    answer.refused(422, "Invalid")
    assert answer.causes() >= wrong_type("spec.size", "integer", "number")


def test_a_rule_of_the_root(client: Client, widgets_path: str) -> None:
    answer = client.post(widgets_path, widget("forbidden"))
    assert answer.refused(422, "Invalid") == (
        f'Widget.{GROUP} "forbidden" is invalid: <nil>: Invalid value: not this name'
    )


def test_transition_rules(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a", frozen="a")).ok()
    answer = client.patch(f"{widgets_path}/a", {"spec": {"frozen": "b"}})
    answer.refused(422, "Invalid")
    assert answer.causes() == wrong("spec.frozen", '"b": frozen may not change')
    client.patch(f"{widgets_path}/a", {"spec": {"frozen": None}}).ok()
    client.patch(f"{widgets_path}/a", {"spec": {"frozen": "b"}}).ok()


def test_items_of_a_map_list_are_compared_by_key(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a", parts=[{**PART, "count": 5}])).ok()
    other = {"namespace": "b", "id": "x"}
    answer = client.patch(f"{widgets_path}/a", {"spec": {"parts": [other, {**PART, "count": 4}]}})
    answer.refused(422, "Invalid")
    assert answer.causes() == wrong("spec.parts[1]", "count may not fall")
    client.patch(f"{widgets_path}/a", {"spec": {"parts": [other]}}).ok()
    client.patch(f"{widgets_path}/a", {"spec": {"parts": [PART]}}).ok()


def test_a_rule_that_knows_whether_there_was_a_value(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    where = f"{widgets_path}/a/status"
    over = wrong("status", "count must be at most 10, or fall")
    assert client.patch(where, {"status": {"count": 11}}).causes() == over
    client.patch(where, {"status": {"count": 10}}).ok()
    assert client.patch(where, {"status": {"count": 11}}).causes() == over
    client.patch(where, {"status": {"count": 9}}).ok()


def test_paths_in_messages_about_status_begin_there(client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    answer = client.patch(f"{widgets_path}/a/status", {"status": {"count": "a"}}, MERGE_PATCH)
    answer.refused(422, "Invalid")
    message = 'Invalid value: "string": count in body must be of type integer: "string"'
    assert answer.causes() == {("FieldValueTypeInvalid", "status.count", message)}
