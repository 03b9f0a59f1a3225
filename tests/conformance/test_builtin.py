"""The built-in kinds that the product uses: defaults, checks, subresources, strategic merge."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.conformance.client import MERGE_PATCH, STRATEGIC_PATCH, TABLE, Client
from tests.conformance.test_deletion import pod


@pytest.fixture
def base(ns: str) -> str:
    return f"/api/v1/namespaces/{ns}"


def test_a_namespace_is_active_and_labelled(client: Client, ns: str) -> None:
    obj = client.get(f"/api/v1/namespaces/{ns}").ok()
    assert obj["status"] == {"phase": "Active"}
    assert obj["spec"] == {"finalizers": ["kubernetes"]}
    assert obj["metadata"]["labels"] == {"kubernetes.io/metadata.name": ns}


def test_the_namespaces_of_every_cluster(client: Client) -> None:
    for name in ("default", "kube-system", "kube-public"):
        client.get(f"/api/v1/namespaces/{name}").ok()


@pytest.mark.parametrize("name", ["a.b", "Upper", "x" * 64])
def test_a_namespace_is_named_by_a_dns_label(client: Client, name: str) -> None:
    answer = client.post("/api/v1/namespaces", {"metadata": {"name": name}})
    answer.refused(422, "Invalid")
    assert "metadata.name" in {cause[1] for cause in answer.causes()}


# --- pods -----------------------------------------------------------------------------------------------------------


def test_the_defaults_of_a_pod(client: Client, base: str) -> None:
    container = {
        "name": "main",
        "image": "example.com/image:1",
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
        "resources": {"limits": {"memory": "1Gi"}},
    }
    obj = client.post(f"{base}/pods", pod("a", containers=[container], volumes=[{"name": "v", "emptyDir": {}}])).ok()
    spec = obj["spec"]
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Always", 30)
    assert (spec["dnsPolicy"], spec["schedulerName"]) == ("ClusterFirst", "default-scheduler")
    made = spec["containers"][0]
    assert made["imagePullPolicy"] == "IfNotPresent"
    assert made["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    assert made["resources"] == {"limits": {"memory": "1Gi"}, "requests": {"memory": "1Gi"}}
    assert made["terminationMessagePath"] == "/dev/termination-log"
    assert made["readinessProbe"] == {
        "httpGet": {"path": "/ready", "port": "http", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert obj["status"]["phase"] == "Pending"
    assert obj["status"]["qosClass"] == "Burstable"


Container = dict[str, Any]
MAIN: Container = {"name": "main", "image": "i"}


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ({"containers": []}, ("FieldValueRequired", "spec.containers", "Required value")),
        (
            {"containers": [{"name": "main"}]},
            ("FieldValueRequired", "spec.containers[0].image", "Required value"),
        ),
        ({"containers": [{"image": "i"}]}, ("FieldValueRequired", "spec.containers[0].name", "Required value")),
        ({"containers": [MAIN, MAIN]}, ("FieldValueDuplicate", "spec.containers[1].name", 'Duplicate value: "main"')),
        (
            {"containers": [{**MAIN, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            ("FieldValueNotFound", "spec.containers[0].volumeMounts[0].name", 'Not found: "v"'),
        ),
        (
            {"containers": [{**MAIN, "ports": [{"containerPort": 70000}]}]},
            (
                "FieldValueInvalid",
                "spec.containers[0].ports[0].containerPort",
                "Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
        ),
        (
            {"containers": [MAIN], "restartPolicy": "Sometimes"},
            (
                "FieldValueNotSupported",
                "spec.restartPolicy",
                'Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"',
            ),
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_pod_that_is_wrong(client: Client, base: str, spec: dict, cause: tuple[str, str, str]) -> None:
    answer = client.post(f"{base}/pods", {**pod("a"), "spec": spec})
    answer.refused(422, "Invalid")
    assert cause in answer.causes()


def test_a_pod_keeps_its_spec_but_for_the_image(client: Client, base: str) -> None:
    client.post(f"{base}/pods", pod("a")).ok()
    patch = {"spec": {"containers": [{"name": "main", "image": "example.com/other"}]}}
    assert client.patch(f"{base}/pods/a", patch, STRATEGIC_PATCH).ok()["spec"]["containers"][0]["image"] == (
        "example.com/other"
    )
    patch = {"spec": {"containers": [{"name": "main", "command": ["sh"]}]}}
    answer = client.patch(f"{base}/pods/a", patch, STRATEGIC_PATCH)
    answer.refused(422, "Invalid")
    ((kind, field, message),) = answer.causes()
    assert (kind, field) == ("FieldValueForbidden", "spec")
    assert message.startswith("Forbidden: pod updates may not change fields other than `spec.containers[*].image`")


def test_the_status_of_a_pod(client: Client, base: str) -> None:
    client.post(f"{base}/pods", pod("a", node="n1")).ok()
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {"name": "main", "ready": True, "restartCount": 2, "image": "i", "imageID": "", "state": {"running": {}}}
        ],
    }
    new = client.patch(f"{base}/pods/a/status", {"status": status}, STRATEGIC_PATCH).ok()
    assert new["status"]["podIP"] == "10.0.0.1"
    # conditions merge by their type
    more = {"status": {"conditions": [{"type": "Initialized", "status": "True"}]}}
    new = client.patch(f"{base}/pods/a/status", more, STRATEGIC_PATCH).ok()
    assert {c["type"] for c in new["status"]["conditions"]} == {"Ready", "Initialized"}
    main = client.patch(f"{base}/pods/a", {"status": {"phase": "Failed"}}, MERGE_PATCH).ok()
    assert main["status"]["phase"] == "Running"
    cells = client.get(f"{base}/pods", accept=TABLE).ok()["rows"][0]["cells"]
    assert cells[:4] == ["a", "1/1", "Running", "2"]
    assert cells[5:] == ["10.0.0.1", "n1", "<none>", "<none>"]


def test_annotations_of_a_pod_can_be_written_with_its_status(client: Client, base: str) -> None:
    client.post(f"{base}/pods", pod("a", node="n1")).ok()
    patch = {"metadata": {"annotations": {"x": "y"}}, "status": {"phase": "Running"}}
    new = client.patch(f"{base}/pods/a/status", patch, MERGE_PATCH).ok()
    assert new["metadata"]["annotations"] == {"x": "y"}
    assert new["status"]["phase"] == "Running"


def test_binding(client: Client, base: str) -> None:
    client.post(f"{base}/pods", pod("a")).ok()
    target = {"apiVersion": "v1", "kind": "Node", "name": "n1"}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": target}
    client.post(f"{base}/pods/a/binding", binding).ok()
    assert client.get(f"{base}/pods/a").ok()["spec"]["nodeName"] == "n1"
    client.post(f"{base}/pods/a/binding", binding).refused(409, "Conflict")


def test_selecting_pods(client: Client, base: str) -> None:
    for name, node in (("a", "n1"), ("b", "n2"), ("c", "n1")):
        client.post(f"{base}/pods", pod(name, node=node)).ok()
    client.patch(f"{base}/pods/c/status", {"status": {"phase": "Running"}}, MERGE_PATCH).ok()

    def names(selector: str) -> list[str]:
        return [i["metadata"]["name"] for i in client.get(f"{base}/pods", fieldSelector=selector).ok()["items"]]

    assert names("spec.nodeName=n1") == ["a", "c"]
    assert names("status.phase=Running") == ["c"]
    assert names("spec.nodeName=n1,status.phase!=Running") == ["a"]
    client.get(f"{base}/pods", fieldSelector="spec.containers=x").refused(400, "BadRequest")


# --- strategic merge ------------------------------------------------------------------------------------------------


def test_strategic_merge_of_lists_with_keys(client: Client, base: str) -> None:
    ports = [{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "c", "port": 3}]
    service = {
        "metadata": {"name": "s"},
        "spec": {"clusterIP": "None", "ports": ports, "selector": {"x": "y", "z": "w"}},
    }
    client.post(f"{base}/services", service).ok()

    def patched(spec: dict) -> dict:
        return client.patch(f"{base}/services/s", {"spec": spec}, STRATEGIC_PATCH).ok()["spec"]

    spec = patched({"ports": [{"port": 2, "name": "two"}], "selector": {"z": None, "n": "m"}})
    assert {(p["port"], p["name"]) for p in spec["ports"]} == {(1, "a"), (2, "two"), (3, "c")}
    assert spec["selector"] == {"x": "y", "n": "m"}
    spec = patched({"ports": [{"port": 1, "$patch": "delete"}]})
    assert {p["port"] for p in spec["ports"]} == {2, 3}
    spec = patched({"$setElementOrder/ports": [{"port": 3}, {"port": 2}], "ports": [{"port": 2, "name": "b"}]})
    assert [p["port"] for p in spec["ports"]] == [3, 2]
    spec = patched({"ports": [{"port": 9, "name": "only"}, {"$patch": "replace"}]})
    assert [p["port"] for p in spec["ports"]] == [9]
    spec = patched({"selector": {"$patch": "replace", "q": "r"}})
    assert spec["selector"] == {"q": "r"}


def test_strategic_merge_of_finalizers(client: Client, base: str) -> None:
    given = {"metadata": {"name": "c", "finalizers": ["example.com/a"]}}
    client.post(f"{base}/configmaps", given).ok()
    patch: dict[str, Any] = {"metadata": {"finalizers": ["example.com/b"]}}
    new = client.patch(f"{base}/configmaps/c", patch, STRATEGIC_PATCH).ok()
    assert sorted(new["metadata"]["finalizers"]) == ["example.com/a", "example.com/b"]
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/a"]}}
    new = client.patch(f"{base}/configmaps/c", patch, STRATEGIC_PATCH).ok()
    assert new["metadata"]["finalizers"] == ["example.com/b"]
    client.patch(f"{base}/configmaps/c", {"metadata": {"finalizers": None}}, MERGE_PATCH).ok()


# --- the others -----------------------------------------------------------------------------------------------------


def test_services(client: Client, base: str) -> None:
    made = client.post(f"{base}/services", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}).ok()
    spec = made["spec"]
    assert (spec["type"], spec["sessionAffinity"]) == ("ClusterIP", "None")
    assert spec["ports"] == [{"protocol": "TCP", "port": 80, "targetPort": 80}]
    assert spec["clusterIP"].startswith("10.96.") or spec["clusterIP"].startswith("10.")
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    replaced = client.put(f"{base}/services/s", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 81}]}}).ok()
    assert replaced["spec"]["clusterIP"] == spec["clusterIP"]
    headless = {"metadata": {"name": "h"}, "spec": {"clusterIP": "None"}}
    assert client.post(f"{base}/services", headless).ok()["spec"]["clusterIPs"] == ["None"]
    cells = client.get(f"{base}/services/s", accept=TABLE).ok()["rows"][0]["cells"]
    assert cells[:5] == ["s", "ClusterIP", spec["clusterIP"], "<none>", "81/TCP"]


@pytest.mark.parametrize(
    ("name", "spec", "field"),
    [
        ("s", {}, "spec.ports"),
        ("s", {"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ("s", {"ports": [{"port": 1, "name": "a"}, {"port": 2}]}, "spec.ports[1].name"),
        ("s", {"ports": [{"port": 1}], "type": "Nope"}, "spec.type"),
        ("a.s", {"ports": [{"port": 1}]}, "metadata.name"),
    ],
)
def test_a_service_that_is_wrong(client: Client, base: str, name: str, spec: dict, field: str) -> None:
    answer = client.post(f"{base}/services", {"metadata": {"name": name}, "spec": spec})
    answer.refused(422, "Invalid")
    assert field in {cause[1] for cause in answer.causes()}


def test_secrets(client: Client, base: str) -> None:
    obj = client.post(f"{base}/secrets", {"metadata": {"name": "s"}, "stringData": {"k": "v"}}).ok()
    assert obj["data"] == {"k": base64.b64encode(b"v").decode()}
    assert obj["type"] == "Opaque"
    assert "stringData" not in obj
    client.post(f"{base}/secrets", {"metadata": {"name": "t"}, "data": {"k": "no base64!"}}).refused(400, "BadRequest")
    client.patch(f"{base}/secrets/s", {"type": "other"}, MERGE_PATCH).refused(422, "Invalid")
    client.post(f"{base}/secrets", {"metadata": {"name": "u"}, "stringData": {"a b": "v"}}).refused(422, "Invalid")


def test_immutable_config_maps(client: Client, base: str) -> None:
    client.post(f"{base}/configmaps", {"metadata": {"name": "c"}, "data": {"k": "v"}, "immutable": True}).ok()
    answer = client.patch(f"{base}/configmaps/c", {"data": {"k": "w"}}, MERGE_PATCH)
    answer.refused(422, "Invalid")
    assert answer.causes() == {("FieldValueForbidden", "data", "Forbidden: field is immutable when `immutable` is set")}


def test_leases(client: Client, ns: str) -> None:
    where = f"/apis/coordination.k8s.io/v1/namespaces/{ns}/leases"
    spec = {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"}
    made = client.post(where, {"metadata": {"name": "l"}, "spec": spec}).ok()
    assert made["spec"] == spec
    made["spec"]["holderIdentity"] = "you"
    client.put(f"{where}/l", made).ok()
    client.put(f"{where}/l", made).refused(409, "Conflict")
    answer = client.post(where, {"metadata": {"name": "m"}, "spec": {"leaseDurationSeconds": 0}})
    answer.refused(422, "Invalid")
    client.post(where, {"metadata": {"name": "m"}, "spec": {"renewTime": "soon"}}).refused(400, "BadRequest")


def test_endpoint_slices(client: Client, ns: str) -> None:
    where = f"/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices"
    slice_ = {
        "metadata": {"name": "e", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
    }
    made = client.post(where, slice_).ok()
    assert made["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    assert made["metadata"]["generation"] == 1
    changed = client.patch(f"{where}/e", {"endpoints": []}, MERGE_PATCH).ok()
    assert changed["metadata"]["generation"] == 2
    client.patch(f"{where}/e", {"addressType": "IPv6"}, MERGE_PATCH).refused(422, "Invalid")
    client.post(where, {"metadata": {"name": "f"}, "endpoints": []}).refused(422, "Invalid")
    client.post(where, {**slice_, "metadata": {"name": "g"}, "endpoints": [{"addresses": []}]}).refused(422, "Invalid")


def test_events_of_both_groups_are_the_same(client: Client, ns: str) -> None:
    core, new = f"/api/v1/namespaces/{ns}/events", f"/apis/events.k8s.io/v1/namespaces/{ns}/events"
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": ns, "name": "p"}
    old = {
        "metadata": {"name": "a"},
        "involvedObject": about,
        "reason": "Because",
        "message": "it was",
        "type": "Normal",
        "source": {"component": "test"},
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:01Z",
        "count": 2,
    }
    client.post(core, old).ok()
    seen = client.get(f"{new}/a").ok()
    assert (seen["kind"], seen["apiVersion"]) == ("Event", "events.k8s.io/v1")
    assert (seen["regarding"], seen["note"], seen["reason"]) == (about, "it was", "Because")
    assert seen["deprecatedCount"] == 2
    fresh = {
        "metadata": {"name": "b"},
        "eventTime": "2026-01-01T00:00:00.123456Z",
        "regarding": about,
        "reason": "New",
        "note": "text",
        "action": "Do",
        "type": "Warning",
        "reportingController": "greenthread.ai/test",
        "reportingInstance": "one",
    }
    client.post(new, fresh).ok()
    seen = client.get(f"{core}/b").ok()
    assert (seen["involvedObject"], seen["message"], seen["reportingComponent"]) == (
        about,
        "text",
        "greenthread.ai/test",
    )

    def names(where: str, selector: str) -> list[str]:
        return [i["metadata"]["name"] for i in client.get(where, fieldSelector=selector).ok()["items"]]

    assert names(core, "involvedObject.name=p,type=Warning") == ["b"]
    assert names(core, "reason=Because") == ["a"]
    assert names(new, "regarding.kind=Pod") == ["a", "b"]
    table = client.get(core, accept=TABLE, fieldSelector="reason=Because").ok()
    assert [c["name"] for c in table["columnDefinitions"]][:4] == ["Last Seen", "Type", "Reason", "Object"]
    assert table["rows"][0]["cells"][1:4] == ["Normal", "Because", "pod/p"]


def test_an_event_belongs_to_the_namespace_of_its_object(client: Client, ns: str) -> None:
    given = {"metadata": {"name": "a"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}}
    answer = client.post(f"/api/v1/namespaces/{ns}/events", given)
    answer.refused(422, "Invalid")
    assert {cause[1] for cause in answer.causes()} == {"involvedObject.namespace"}


def test_nodes(client: Client, ns: str) -> None:
    name = f"node-{ns}"
    client.post("/api/v1/nodes", {"metadata": {"name": name}}).ok()
    status = {"conditions": [{"type": "Ready", "status": "True"}], "capacity": {"cpu": "2"}}
    client.patch(f"/api/v1/nodes/{name}/status", {"status": status}, STRATEGIC_PATCH).ok()
    cells = client.get(f"/api/v1/nodes/{name}", accept=TABLE).ok()["rows"][0]["cells"]
    assert cells[:3] == [name, "Ready", "<none>"]
    client.patch(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": True}}, MERGE_PATCH).ok()
    cells = client.get(f"/api/v1/nodes/{name}", accept=TABLE).ok()["rows"][0]["cells"]
    assert cells[1] == "Ready,SchedulingDisabled"
    client.delete(f"/api/v1/nodes/{name}").ok()
