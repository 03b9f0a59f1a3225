"""What the small YAML reader accepts means what PyYAML says it means; the rest it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greenthread.kube import simple_yaml


class Loader(yaml.SafeLoader):
    """PyYAML, but dates stay text, as in JSON."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

keys = st.text("abc-_.:/ #'\"", min_size=1, max_size=8) | st.text(max_size=5)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.text("ab :#-?'\"|>{}[]&*!%@`,\n\\", max_size=12)
    | st.sampled_from(["yes", "0x1F", "010", "1_000", "1:30", "2026-11-22", ".5", "=", "<<", "null", "~", "1e3", "---"])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=15
)


@given(st.dictionaries(keys, values, max_size=5), st.booleans(), st.sampled_from([None, "'", '"']))
def test_what_it_reads_of_pyyamls_own_writing_is_what_was_written(value: Any, wide: bool, style: str | None) -> None:
    text = yaml.safe_dump(value, default_flow_style=False, width=10**6 if wide else 40, default_style=style)
    try:
        found = simple_yaml.load(text)
    except simple_yaml.Unsupported:
        return  # multi-line quotes, odd numbers, tags: for a whole YAML reader
    assert found == value


pieces = st.sampled_from(
    ["a: b", "a:", "- a", "-", "- a: b", "- - a", "b: 'c'", 'b: "c"', "c: |", "c: |-", "c: |2", "  d", " # e", "#", "",
     "? a", "&x", "*x", "!t", "{}", "[]", '{"a": 1}', "e: {a: b}", "f: [1, 2]", "g: 1", "h: ~", "i: a: b", "- a:b",
     "---", "...", "text", "'q'", '"q": r', "j: 'it''s'", 'k: "\\u00e9\\n"', "l: - m", "n: -1", "o: a#b", "p : q", "\t"]
)  # fmt: skip
lines = st.tuples(st.integers(0, 4), pieces).map(lambda pair: " " * pair[0] + pair[1])


@settings(max_examples=600)
@given(st.lists(lines, max_size=8).map("\n".join))
@example("a:\n- b\n- c: d\n  e: f\n")
@example("a: b\n  c\n  d\ne: f\n")
@example("a: |\n\n  x\n   y\n\nb: c\n")
@example("- |\n x\n- a: |-\n    y\n")
def test_whatever_it_accepts_pyyaml_reads_the_same(text: str) -> None:
    try:
        found = simple_yaml.load(text)
    except simple_yaml.Unsupported:
        return
    assert found == yaml.load(text, Loader)


@given(st.text(max_size=60))
def test_no_text_makes_it_fail_in_another_way(text: str) -> None:
    try:
        found = simple_yaml.load(text)
    except simple_yaml.Unsupported:
        return
    assert found == yaml.load(text, Loader)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &x b", "line 1"),
        ("a: b\nc: *x", "line 2"),
        ("a:\n\tb: c", "tab"),
        ("a: 1\na: 2", "second time"),
        ("a: 'b\n  c'", "does not end"),
        ("a: >\n  b", "`>`"),
        ("a: 0o10\n---\nb: c", "does not belong"),
        ("\n".join(" " * n + "a:" for n in range(100)), "deeply"),
    ],
)
def test_what_it_does_not_know_it_names_with_its_line(text: str, why: str) -> None:
    with pytest.raises(simple_yaml.Unsupported, match=why):
        simple_yaml.load(text)
