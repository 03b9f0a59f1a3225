"""One EndpointSlice for each pod and Service, with the numbers that the machine allocated."""

from __future__ import annotations

from typing import Any

from localcluster.supervisor.endpoints import PodAddress, belongs_to, differs, wanted
from tests.unit.localcluster_supervisor.builders import container, pod

TILL = pod(container(ports=[{"name": "http", "containerPort": 8080}]))


def service(name: str = "till", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    fields = {"selector": {"app": "till"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]} | spec
    return {"metadata": {"name": name, "namespace": namespace}, "spec": fields}


def slices(*services: dict[str, Any], ready: bool = True, terminating: bool = False) -> dict[tuple[str, str], Any]:
    place = PodAddress(TILL, {"http": 30001}, ready, terminating)
    return wanted([place], services, "node-a", "127.0.0.1")


def test_a_slice_says_where_a_pod_listens() -> None:
    (found,) = slices(service()).values()
    assert found["metadata"]["name"] == "till-till-0"
    assert found["metadata"]["labels"] == {
        "kubernetes.io/service-name": "till",
        "endpointslice.kubernetes.io/managed-by": "supervisor.greenthread.ai",
    }
    assert found["ports"] == [{"name": "web", "port": 30001, "protocol": "TCP"}]
    (endpoint,) = found["endpoints"]
    assert endpoint["addresses"] == ["127.0.0.1"]
    assert endpoint["targetRef"] == {"kind": "Pod", "namespace": "shop", "name": "till-0", "uid": "uid-till-0"}
    assert belongs_to(found, "node-a")
    assert not belongs_to(found, "node-b")


def test_each_selecting_service_gets_one() -> None:
    found = slices(
        service("a"),
        service("b"),
        service("other-namespace", namespace="cellar"),
        service("other-pods", selector={"app": "till", "tier": "gold"}),
        service("no-selector", selector={}),
    )
    assert set(found) == {("shop", "a-till-0"), ("shop", "b-till-0")}


def test_target_ports_by_number_and_by_default() -> None:
    ports = [
        {"port": 8080},
        {"name": "raw", "port": 1, "targetPort": 5000},
        {"name": "no", "port": 2, "targetPort": "x"},
    ]
    (found,) = slices(service(ports=ports)).values()
    assert [(port["name"], port["port"]) for port in found["ports"]] == [("", 30001), ("raw", 5000)]


def conditions(found: dict[tuple[str, str], Any]) -> dict[str, bool]:
    (only,) = found.values()
    return only["endpoints"][0]["conditions"]


def test_conditions() -> None:
    assert conditions(slices(service())) == {"ready": True, "serving": True, "terminating": False}
    assert conditions(slices(service(), ready=False)) == {"ready": False, "serving": False, "terminating": False}
    assert conditions(slices(service(), terminating=True)) == {"ready": False, "serving": True, "terminating": True}


def test_a_service_may_publish_pods_that_are_not_ready() -> None:
    assert conditions(slices(service(publishNotReadyAddresses=True), ready=False))["ready"]


def test_only_a_real_difference_is_written() -> None:
    (found,) = slices(service()).values()
    stored = found | {"metadata": found["metadata"] | {"resourceVersion": "7", "creationTimestamp": "now"}}
    assert not differs(stored, found)
    (unready,) = slices(service(), ready=False).values()
    assert differs(stored, unready)
