"""The parts of CEL and of its Kubernetes libraries that need no server."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcluster.api import cel
from localcluster.api.cel_functions import parse_quantity
from localcluster.api.schema import compile_schema


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", "1"), ("1.5", "1.5"), (".5", "0.5"), ("1Ki", "1024"), ("1.5Gi", "1610612736"), ("100m", "0.1"),
        ("2e3", "2000"), ("2E", "2e18"), ("1E3", "1000"), ("-1k", "-1000"), ("+1M", "1e6"), ("5n", "5e-9"),
    ],
)  # fmt: skip
def test_quantities(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "1 Gi", "1gi", "1KB", "Gi", "1.2.3", "1e", "0x1", "1Gi\n", "1e99999"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError):
        parse_quantity(text)


def ruled(*rules: dict[str, Any], **properties: Any) -> Any:
    schema = compile_schema({"type": "object", "properties": properties, "x-kubernetes-validations": list(rules)})
    assert cel.compile_rules(schema, "", root=False) == []
    return schema


@pytest.mark.parametrize(
    ("name", "seen"),
    [("namespace", "__namespace__"), ("a-b", "a__dash__b"), ("a.b", "a__dot__b"), ("a/b", "a__slash__b"),
     ("a__b", "a__underscores__b"), ("plain", "plain")],
)  # fmt: skip
def test_names_that_rules_must_escape(name: str, seen: str) -> None:
    assert cel.escape(name) == seen
    schema = ruled({"rule": f"self.{seen} == 1"}, **{name: {"type": "integer"}})
    assert cel.validate(schema, {name: 1}) == []
    assert len(cel.validate(schema, {name: 2})) == 1


def test_a_rule_without_old_value_is_not_asked_about_what_did_not_change() -> None:
    schema = ruled({"rule": "self.a > 0", "message": "too small"}, a={"type": "integer"})
    assert [c.message for c in cel.validate(schema, {"a": 0})] == ["Invalid value: too small"]
    assert cel.validate(schema, {"a": 0}, {"a": 0}) == []
    assert len(cel.validate(schema, {"a": -1}, {"a": 0})) == 1


def test_what_was_let_pass_for_it_did_not_change_is_refused_elsewhere() -> None:
    schema = ruled({"rule": "self.a > 0"}, a={"type": "integer"})
    for _ in range(2):  # what is known of a value must not change the answer
        assert cel.validate(schema, {"a": 0}, {"a": 0}) == []
        assert len(cel.validate(schema, {"a": 0})) == 1
        assert len(cel.validate(schema, {"a": 0}, {"a": 1})) == 1
        assert cel.validate(schema, {"a": 1}, {"a": 0}) == []


def test_a_part_that_passed_passes_again_and_a_rule_beside_it_looks_at_the_past() -> None:
    name = {"type": "string", "x-kubernetes-validations": [{"rule": "self.startsWith('a')"}]}
    schema = ruled({"rule": "self.n >= oldSelf.n"}, name=name, n={"type": "integer"})
    for _ in range(2):
        assert cel.validate(schema, {"name": "ada", "n": 1}) == []
        assert len(cel.validate(schema, {"name": "bob", "n": 1})) == 1
        assert len(cel.validate(schema, {"name": "ada", "n": 1}, {"name": "ada", "n": 2})) == 1
        assert cel.validate(schema, {"name": "ada", "n": 2}, {"name": "ada", "n": 1}) == []


def test_a_transition_rule_is_asked_even_about_what_did_not_change() -> None:
    schema = ruled({"rule": "self.a > oldSelf.a"}, a={"type": "integer"})
    assert cel.validate(schema, {"a": 1}) == []
    for _ in range(2):
        assert len(cel.validate(schema, {"a": 1}, {"a": 1})) == 1
    assert cel.validate(schema, {"a": 2}, {"a": 1}) == []


def test_an_error_in_a_rule_refuses() -> None:
    schema = ruled({"rule": "self.a / self.b == 1"}, a={"type": "integer"}, b={"type": "integer"})
    (problem,) = cel.validate(schema, {"a": 1, "b": 0})
    assert "rule evaluation error" in problem.message
    (problem,) = cel.validate(schema, {"a": 1})
    assert "rule evaluation error" in problem.message


def test_a_message_that_cannot_be_made() -> None:
    rule = {"rule": "self.a > 0", "message": "fixed", "messageExpression": "string(10 / self.a)"}
    schema = ruled(rule, a={"type": "integer"})
    assert [c.message for c in cel.validate(schema, {"a": 0})] == ["Invalid value: fixed"]
    assert [c.message for c in cel.validate(schema, {"a": -1})] == ["Invalid value: -10"]


@given(st.lists(st.integers(-100, 100), max_size=6))
def test_lists(numbers: list[int]) -> None:
    schema = ruled(
        {"rule": "self.l.sum() == self.total"},
        {"rule": "self.l.isSorted() == self.sorted"},
        {"rule": "size(self.l) == 0 || (self.l.min() == self.low && self.l.max() == self.high)"},
        {"rule": "self.l.indexOf(7) == self.place"},
        l={"type": "array", "items": {"type": "integer"}},
        total={"type": "integer"},
        low={"type": "integer"},
        high={"type": "integer"},
        place={"type": "integer"},
        sorted={"type": "boolean"},
    )
    value = {
        "l": numbers,
        "total": sum(numbers),
        "sorted": numbers == sorted(numbers),
        "low": min(numbers, default=0),
        "high": max(numbers, default=0),
        "place": numbers.index(7) if 7 in numbers else -1,
    }
    assert cel.validate(schema, value) == []
    assert len(cel.validate(schema, {**value, "total": value["total"] + 1})) == 1


without_nul = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


@given(st.text(without_nul, max_size=20), st.text(without_nul, max_size=3))
def test_strings(text: str, part: str) -> None:
    schema = ruled(
        {"rule": "self.s.indexOf(self.p) == self.i && self.s.lastIndexOf(self.p) == self.j"},
        {"rule": "self.s.replace(self.p, '') == self.r"},
        {"rule": "self.s.split('').join() == self.s"},
        s={"type": "string"},
        p={"type": "string"},
        r={"type": "string"},
        i={"type": "integer"},
        j={"type": "integer"},
    )
    value = {"s": text, "p": part, "i": text.find(part), "j": text.rfind(part), "r": text.replace(part, "")}
    assert cel.validate(schema, value) == []
