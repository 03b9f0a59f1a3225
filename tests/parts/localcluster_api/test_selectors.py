"""Label selectors take what Kubernetes takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localcluster.api.errors import StatusError
from localcluster.api.selectors import by_path, field_selector, label_selector

keys = st.sampled_from(["a", "b", "x/y", "example.com/long-name_1"])
words = st.sampled_from(["v", "w", "1", ""])


@given(keys, st.lists(words, min_size=1, max_size=3), st.dictionaries(keys, words))
def test_sets_and_their_complement(key: str, values: list[str], labels: dict[str, str]) -> None:
    listed = ",".join(values)
    within, without = label_selector(f"{key} in ({listed})"), label_selector(f"{key} notin ({listed})")
    assert within is not None
    assert without is not None
    assert within(labels) != without(labels)
    assert within(labels) == (labels.get(key) in values)


@given(keys, words, st.dictionaries(keys, words))
def test_equality_and_presence(key: str, value: str, labels: dict[str, str]) -> None:
    for text, wanted in (
        (f"{key}={value}", labels.get(key) == value),
        (f"{key} == {value}", labels.get(key) == value),
        (f"{key}!={value}", labels.get(key) != value),
        (key, key in labels),
        (f"!{key}", key not in labels),
    ):
        test = label_selector(text)
        assert test is not None
        assert test(labels) == wanted, text


@given(st.text("ab=!(),<> inot", max_size=12))
def test_whatever_is_written_is_a_selector_or_refused(text: str) -> None:
    try:
        label_selector(text)
    except StatusError as refused:
        code = refused.code
    else:
        code = 400
    assert code == 400


def test_field_selectors() -> None:
    fields = {"spec.on": by_path("spec.on"), "metadata.name": by_path("metadata.name")}
    test = field_selector("spec.on=true,metadata.name!=b", fields)
    assert test is not None
    assert test({"metadata": {"name": "a"}, "spec": {"on": True}})
    assert not test({"metadata": {"name": "b"}, "spec": {"on": True}})
    assert not test({"metadata": {"name": "a"}})
    escaped = field_selector(r"metadata.name=a\,b", fields)
    assert escaped is not None
    assert escaped({"metadata": {"name": "a,b"}})
