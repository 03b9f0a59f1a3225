"""What the plugin writes as YAML, every YAML reader reads back."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from greenthread.kube.write_yaml import write_yaml

texts = st.text(max_size=30) | st.text("ab:-# '\"|>[]{},&*!%@`?=\n\t\\/0123.~", max_size=12) | st.sampled_from(
    ["yes", "NULL", "1e3", "0x1F", "5s", "10Gi", "12:30", "2026-11-22", "a: b", "http://x/y", "a\nb\n", "a\n\n b", "on"]
)  # fmt: skip
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20
)


@given(values)
def test_it_reads_back_as_what_was_written(value: Any) -> None:
    assert yaml.safe_load(write_yaml(value)) == value


def test_it_looks_as_kubectl_writes_it() -> None:
    value = {"b": [{"x": 1, "z": ["a"]}, "5s"], "a": {"text": "one\ntwo\n", "url": "http://x/y", "none": [], "f": "1"}}
    assert write_yaml(value) == (
        'a:\n  f: "1"\n  none: []\n  text: |\n    one\n    two\n  url: http://x/y\nb:\n- x: 1\n  z:\n  - a\n- 5s\n'
    )
