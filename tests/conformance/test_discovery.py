"""How clients find their way: health, version, discovery, OpenAPI, who may do what."""

from __future__ import annotations

import pytest

from tests.conformance.client import Client
from tests.conformance.widgets import GROUP
from tests.testbeds.admin import Admin

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/livez"])
def test_health_needs_no_token(api: Admin, path: str) -> None:
    answer = Client(api, token="").get(path)
    assert (answer.status, answer.body) == (200, "ok")


def test_version_needs_no_token(api: Admin) -> None:
    version = Client(api, token="").get("/version").ok()
    assert version["major"] == "1"
    assert version["gitVersion"].startswith("v1.")


@pytest.mark.parametrize("token", ["wrong", "ß"])
def test_a_wrong_token(api: Admin, token: str) -> None:
    for path in ("/api/v1/namespaces", "/apis", f"/apis/{GROUP}/v1/widgets"):
        answer = Client(api, token=token.encode().decode("latin-1")).get(path)
        assert answer.refused(401, "Unauthorized") == "Unauthorized"


def test_nobody_reads_objects_without_a_token(api: Admin) -> None:
    assert Client(api, token="").get("/api/v1/namespaces").status in (401, 403)
    assert Client(api, token="").post("/api/v1/namespaces", {}).status in (401, 403)


def test_who_holds_the_token_may_do_everything(client: Client) -> None:
    where = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    spec = {"resourceAttributes": {"verb": "delete", "group": GROUP, "resource": "widgets", "namespace": "default"}}
    answer = client.post(
        where, {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
    )
    assert answer.status == 201
    assert answer.body["status"]["allowed"] is True
    where = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    rules = client.post(where, {"spec": {"namespace": "default"}}).ok()["status"]["resourceRules"]
    assert any(rule["verbs"] == ["*"] and rule["resources"] == ["*"] for rule in rules)


def test_groups_and_versions(client: Client) -> None:
    assert client.get("/api").ok()["versions"] == ["v1"]
    groups = {group["name"]: group for group in client.get("/apis").ok()["groups"]}
    for name in (GROUP, "apiextensions.k8s.io", "coordination.k8s.io", "discovery.k8s.io", "events.k8s.io"):
        assert {"groupVersion": f"{name}/v1", "version": "v1"} in groups[name]["versions"]
    assert client.get(f"/apis/{GROUP}").ok()["name"] == GROUP


def test_resources_of_a_group(client: Client) -> None:
    found = client.get(f"/apis/{GROUP}/v1").ok()
    assert (found["kind"], found["groupVersion"]) == ("APIResourceList", f"{GROUP}/v1")
    entries = {entry["name"]: entry for entry in found["resources"]}
    widgets = entries["widgets"]
    assert (widgets["kind"], widgets["singularName"], widgets["namespaced"]) == ("Widget", "widget", True)
    assert (widgets["shortNames"], widgets["categories"]) == (["wd"], ["things"])
    assert set(widgets["verbs"]) == {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
    assert set(entries["widgets/status"]["verbs"]) == {"get", "patch", "update"}
    core = {entry["name"]: entry for entry in client.get("/api/v1").ok()["resources"]}
    assert core["pods"]["shortNames"] == ["po"]
    assert core["namespaces"]["namespaced"] is False
    assert "pods/log" in core
    assert client.get("/apis/no.such.group/v1").status == 404


def test_aggregated_discovery(client: Client) -> None:
    found = client.get("/apis", accept=f"{AGGREGATED},application/json").ok()
    assert found["kind"] == "APIGroupDiscoveryList"
    (group,) = [item for item in found["items"] if item["metadata"]["name"] == GROUP]
    (version,) = [version for version in group["versions"] if version["version"] == "v1"]
    (resource,) = [r for r in version["resources"] if r["resource"] == "widgets"]
    assert resource["responseKind"] == {"group": GROUP, "version": "v1", "kind": "Widget"}
    assert (resource["scope"], resource["singularResource"]) == ("Namespaced", "widget")
    core = client.get("/api", accept=f"{AGGREGATED},application/json").ok()
    assert core["items"][0]["metadata"].get("name", "") == ""


def test_openapi(client: Client) -> None:
    def has_widgets() -> str | None:
        paths = client.get("/openapi/v3").ok()["paths"]
        return paths.get(f"apis/{GROUP}/v1", {}).get("serverRelativeURL")

    where = client.eventually(has_widgets, "the CRD is in the OpenAPI document")
    document = client.get(where.partition("?")[0]).ok()
    kinds = {
        kind["kind"]: schema
        for schema in document["components"]["schemas"].values()
        for kind in schema.get("x-kubernetes-group-version-kind", ())
    }
    spec = kinds["Widget"]["properties"]["spec"]
    assert spec["properties"]["size"] == {"type": "integer", "minimum": 1, "maximum": 100}
    patch = document["paths"][f"/apis/{GROUP}/v1/namespaces/{{namespace}}/widgets/{{name}}"]["patch"]
    assert "fieldValidation" in {parameter["name"] for parameter in patch["parameters"]}
    core = client.get(client.get("/openapi/v3").ok()["paths"]["api/v1"]["serverRelativeURL"]).ok()
    assert "io.k8s.api.core.v1.Pod" in core["components"]["schemas"]


@pytest.mark.parametrize("path", ["/nonsense", "/apis/x/y/z", "/api/v1/nonsense", "/api/v2/pods"])
def test_paths_that_are_not_there(client: Client, path: str) -> None:
    assert client.get(path).status == 404


def test_methods_that_do_not_fit(client: Client, ns: str) -> None:
    base = f"/api/v1/namespaces/{ns}/configmaps"
    for answer in (client.put(base, {}), client.patch(base, {}), client.post(f"{base}/a", {})):
        answer.refused(405, "MethodNotAllowed")
