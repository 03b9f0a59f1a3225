"""Lists: selectors, pages, versions, and the forms in which they come."""

from __future__ import annotations

import pytest

from tests.conformance.client import JSON_PATCH, PARTIAL, PARTIAL_LIST, TABLE, Client
from tests.conformance.widgets import BASE, widget


@pytest.fixture
def three(client: Client, widgets_path: str) -> str:
    """The path of a namespace with the Widgets a (app=x, tier=1), b (app=y, green) and c."""
    for name, labels, color in (
        ("a", {"app": "x", "tier": "1"}, "red"),
        ("b", {"app": "y"}, "green"),
        ("c", {}, "red"),
    ):
        obj = widget(name, color=color)
        obj["metadata"]["labels"] = labels
        client.post(widgets_path, obj).ok()
    return widgets_path


def names(obj: dict) -> list[str]:
    return [item["metadata"]["name"] for item in obj["items"]]


def test_a_list(client: Client, three: str) -> None:
    found = client.get(three).ok()
    assert (found["kind"], found["apiVersion"]) == ("WidgetList", "conformance.greenthread.ai/v1")
    assert names(found) == ["a", "b", "c"]
    assert int(found["metadata"]["resourceVersion"]) >= int(found["items"][2]["metadata"]["resourceVersion"])
    assert found["items"][0]["kind"] == "Widget"


def test_all_namespaces(client: Client, three: str, ns: str) -> None:
    found = client.get(f"{BASE}/widgets").ok()["items"]
    assert [i["metadata"]["name"] for i in found if i["metadata"]["namespace"] == ns] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("app=x", "a"),
        ("app==x", "a"),
        ("app!=x", "bc"),
        ("app in (x,y)", "ab"),
        ("app notin (x)", "bc"),
        ("app", "ab"),
        ("!app", "c"),
        ("app,tier=1", "a"),
        ("app in (x, y),tier!=1", "b"),
        ("tier>0", "a"),
        ("tier<1", ""),
        ("", "abc"),
        ("app=", ""),
    ],
)
def test_label_selectors(client: Client, three: str, selector: str, wanted: str) -> None:
    assert names(client.get(three, labelSelector=selector).ok()) == list(wanted)


@pytest.mark.parametrize("selector", ["app=(", "app in x", "=x", "app in (x", "a b", "app!", "app==x=y"])
def test_malformed_label_selectors(client: Client, three: str, selector: str) -> None:
    client.get(three, labelSelector=selector).refused(400, "BadRequest")


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("metadata.name=a", "a"),
        ("metadata.name!=a", "bc"),
        ("spec.color=green", "b"),
        ("spec.color!=green,metadata.name=c", "c"),
        ("metadata.name==b", "b"),
    ],
)
def test_field_selectors(client: Client, three: str, selector: str, wanted: str) -> None:
    assert names(client.get(three, fieldSelector=selector).ok()) == list(wanted)


def test_field_selector_of_the_namespace(client: Client, three: str, ns: str) -> None:
    assert names(client.get(f"{BASE}/widgets", fieldSelector=f"metadata.namespace={ns}").ok()) == ["a", "b", "c"]


def test_fields_that_cannot_be_selected(client: Client, three: str) -> None:
    message = client.get(three, fieldSelector="spec.size=1").refused(400, "BadRequest")
    assert "field label not supported: spec.size" in message
    client.get(three, fieldSelector="nonsense").refused(400, "BadRequest")


def test_pages(client: Client, three: str) -> None:
    first = client.get(three, limit=2).ok()
    assert names(first) == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 1
    # what changes after the first page does not show in the second
    client.post(three, widget("d")).ok()
    client.delete(f"{three}/c").ok()
    second = client.get(three, limit=2, **{"continue": first["metadata"]["continue"]}).ok()
    assert names(second) == ["c"]
    assert not second["metadata"].get("continue")
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_pages_with_a_selector_do_not_count_the_rest(client: Client, three: str) -> None:
    page = client.get(three, limit=1, labelSelector="app").ok()
    assert names(page) == ["a"]
    assert "remainingItemCount" not in page["metadata"]
    rest = client.get(three, limit=5, labelSelector="app", **{"continue": page["metadata"]["continue"]}).ok()
    assert names(rest) == ["b"]


def test_a_continue_that_is_none(client: Client, three: str) -> None:
    client.get(three, limit=2, **{"continue": "nonsense"}).refused(400, "BadRequest")


def test_list_at_versions(client: Client, three: str) -> None:
    then = client.get(three).version
    client.delete(f"{three}/a").ok()
    assert names(client.get(three, resourceVersion=then).ok()) == ["b", "c"]
    assert names(client.get(three, resourceVersion=then, resourceVersionMatch="NotOlderThan").ok()) == ["b", "c"]
    exact = client.get(three, resourceVersion=then, resourceVersionMatch="Exact", limit=10).ok()
    assert names(exact) == ["a", "b", "c"]
    assert exact["metadata"]["resourceVersion"] == then
    client.get(three, resourceVersion="0").ok()


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"resourceVersion": "x"}, 400),
        ({"resourceVersionMatch": "Exact"}, 422),
        ({"resourceVersion": "0", "resourceVersionMatch": "Exact"}, 422),
        ({"resourceVersion": "1", "resourceVersionMatch": "Sometimes"}, 422),
        ({"sendInitialEvents": "true"}, 422),
    ],
)
def test_list_options_that_do_not_exist(client: Client, three: str, query: dict, status: int) -> None:
    answer = client.get(three, **query)
    answer.refused(status, "BadRequest" if status == 400 else "Invalid")


def test_metadata_only(client: Client, three: str) -> None:
    found = client.get(three, accept=PARTIAL_LIST).ok()
    assert (found["kind"], found["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    assert names(found) == ["a", "b", "c"]
    assert "spec" not in found["items"][0]
    one = client.get(f"{three}/a", accept=PARTIAL).ok()
    assert (one["kind"], one["metadata"]["labels"]) == ("PartialObjectMetadata", {"app": "x", "tier": "1"})


def test_a_table(client: Client, three: str) -> None:
    client.patch(f"{three}/a/status", [{"op": "add", "path": "/status", "value": {"phase": "Done"}}], JSON_PATCH).ok()
    table = client.get(three, accept=f"{TABLE},application/json").ok()
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    columns = [(c["name"], c["type"], c["priority"]) for c in table["columnDefinitions"]]
    assert columns == [
        ("Name", "string", 0),
        ("Size", "integer", 0),
        ("Phase", "string", 0),
        ("Color", "string", 1),
        ("Age", "date", 0),
    ]
    assert table["columnDefinitions"][1]["description"] == "How large"
    rows = [row["cells"][:4] for row in table["rows"]]
    assert rows == [["a", 1, "Done", "red"], ["b", 1, None, "green"], ["c", 1, None, "red"]]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    one = client.get(f"{three}/b", accept=TABLE, includeObject="Object").ok()
    assert one["rows"][0]["object"]["kind"] == "Widget"


def test_a_form_that_does_not_exist(client: Client, three: str) -> None:
    assert client.get(three, accept="text/html").status == 406


def test_delete_all_that_match(client: Client, three: str) -> None:
    client.delete(three, labelSelector="app").ok()
    client.eventually(lambda: names(client.get(three).ok()) == ["c"], "a and b go")
