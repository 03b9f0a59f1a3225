"""The three kinds of patches, and the laws they keep."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcluster.api.openapi import schema_of
from localcluster.api.patches import PatchError, PatchRefused, json_patch, merge, strategic_merge

values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab~/", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=2), inner, max_size=3),
    max_leaves=12,
)
documents = st.dictionaries(st.text("ab~/", max_size=2), values, max_size=4)


@given(documents, documents)
def test_a_patch_that_another_library_made_leads_from_one_document_to_the_other(old: Any, new: Any) -> None:
    operations = jsonpatch.make_patch(old, new).patch
    assert json_patch(copy.deepcopy(old), operations) == new


@given(documents, documents)
def test_merge_is_rfc_7386(target: Any, patch: Any) -> None:
    def by_the_book(target: Any, patch: Any) -> Any:
        if not isinstance(patch, dict):
            return patch
        result = dict(target) if isinstance(target, dict) else {}
        for name, value in patch.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = by_the_book(result.get(name), value)
        return result

    assert merge(copy.deepcopy(target), patch) == by_the_book(target, patch)


@pytest.mark.parametrize(
    "operations",
    [{}, [1], [{"op": "add"}], [{"op": "add", "path": "a", "value": 1}], [{"op": "nonsense", "path": "/a"}],
     [{"op": "add", "path": "/a"}], [{"op": "copy", "path": "/a"}]],
)  # fmt: skip
def test_malformed_patches(operations: Any) -> None:
    with pytest.raises(PatchError):
        json_patch({"a": 1}, operations)


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/b"},
        {"op": "remove", "path": "/list/2"},
        {"op": "remove", "path": "/list/01"},
        {"op": "remove", "path": "/list/-1"},
        {"op": "remove", "path": ""},
        {"op": "add", "path": "/list/3", "value": 1},
        {"op": "add", "path": "/a/b", "value": 1},
        {"op": "add", "path": "/b/c", "value": 1},
        {"op": "replace", "path": "/list/2", "value": 1},
        {"op": "test", "path": "/a", "value": True},
        {"op": "test", "path": "/list/-", "value": None},
        {"op": "move", "from": "/b", "path": "/c"},
    ],
)
def test_patches_that_do_not_fit(operation: Any) -> None:
    with pytest.raises(PatchRefused):
        json_patch({"a": 1, "list": [1, 2]}, [operation])


def test_a_patch_is_bounded() -> None:
    with pytest.raises(PatchError, match="allowed maximum"):
        json_patch({}, [{"op": "add", "path": "/a", "value": 1}] * 11, limit=10)


def test_a_copied_value_is_not_shared() -> None:
    done = json_patch({"a": {"x": 1}}, [{"op": "copy", "from": "/a", "path": "/b"},
                                        {"op": "replace", "path": "/b/x", "value": 2}])  # fmt: skip
    assert done == {"a": {"x": 1}, "b": {"x": 2}}


def test_strategic_merge_goes_by_the_schema() -> None:
    schema = schema_of("", "v1", "Pod")
    pod = {
        "spec": {
            "containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}],
            "tolerations": [{"key": "k"}],
        }
    }
    patch = {"spec": {"containers": [{"name": "a", "image": "2"}, {"name": "c"}], "tolerations": [{"key": "l"}]}}
    done = strategic_merge(json.loads(json.dumps(pod)), patch, schema)
    assert done["spec"]["containers"] == [{"name": "a", "image": "2", "args": ["x"]}, {"name": "b"}, {"name": "c"}]
    assert done["spec"]["tolerations"] == [{"key": "l"}]  # a list without a merge key is replaced
    with pytest.raises(PatchError, match="does not contain declared merge key: name"):
        strategic_merge(pod, {"spec": {"containers": [{"image": "2"}]}}, schema)
    with pytest.raises(PatchError, match=r"unknown \$patch directive"):
        strategic_merge(pod, {"spec": {"$patch": "smash"}}, schema)
