"""Who may do what: the API server's own answer, allowed and denied."""

from __future__ import annotations

import time

import pytest

from tests.chart.conftest import NAMESPACE
from tests.testbeds.kube import RealApi

pytestmark = pytest.mark.real

MODELS, GPUS = ("greenthread.ai", "models"), ("greenthread.ai", "gpus")
PODS, SERVICES, EVENTS, NODES, SECRETS = ("", "pods"), ("", "services"), ("", "events"), ("", "nodes"), ("", "secrets")
LEASES, SLICES = ("coordination.k8s.io", "leases"), ("discovery.k8s.io", "endpointslices")
ROLES, POLICIES = (
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
)
ROUTES, ACCOUNTS = ("gateway.networking.k8s.io", "httproutes"), ("", "serviceaccounts")
READ = ("get", "list", "watch")
FOLLOW = ("list", "watch")
EVERY = (*READ, "create", "update", "patch", "delete", "deletecollection")
ALL = ""  # of all namespaces, or of none
OWN, TEAM, ELSEWHERE = NAMESPACE, "team-a", "default"

CONTROLLER, AGENT, SIDECAR, GATEWAY = (
    f"system:serviceaccount:{OWN}:greenthread-controller",
    f"system:serviceaccount:{OWN}:greenthread-agent",
    f"system:serviceaccount:{TEAM}:greenthread-sidecar",
    f"system:serviceaccount:{OWN}:greenthread-apiserver",
)

PARTS = (CONTROLLER, AGENT, SIDECAR, GATEWAY)

#: who, (group, resource), subresource, namespace, verbs it may; every other verb is denied
TABLE = [
    (CONTROLLER, MODELS, "", ALL, (*FOLLOW, "patch")),
    (CONTROLLER, MODELS, "status", ALL, ("patch",)),
    (CONTROLLER, MODELS, "finalizers", TEAM, ("update",)),
    (CONTROLLER, GPUS, "", OWN, FOLLOW),
    (CONTROLLER, GPUS, "status", OWN, ()),
    (CONTROLLER, PODS, "", ALL, READ),
    (CONTROLLER, PODS, "", TEAM, (*READ, "create", "delete")),
    (CONTROLLER, PODS, "", ELSEWHERE, READ),
    (CONTROLLER, PODS, "exec", TEAM, ()),
    (CONTROLLER, SERVICES, "", TEAM, (*READ, "create", "patch")),
    (CONTROLLER, SERVICES, "", ELSEWHERE, READ),
    (CONTROLLER, EVENTS, "", TEAM, ("create", "patch")),
    (CONTROLLER, NODES, "", ALL, ("list",)),
    (CONTROLLER, LEASES, "", OWN, ("create",)),
    (CONTROLLER, LEASES, "", TEAM, ()),
    (CONTROLLER, ROUTES, "", TEAM, ("get", "create", "patch")),
    (CONTROLLER, ROUTES, "", ELSEWHERE, ()),
    (CONTROLLER, SECRETS, "", OWN, ()),
    (CONTROLLER, SECRETS, "", TEAM, ()),
    (AGENT, GPUS, "", OWN, (*FOLLOW, "create", "patch")),
    (AGENT, GPUS, "status", OWN, ("patch",)),
    (AGENT, GPUS, "", TEAM, ()),
    (AGENT, PODS, "", ALL, READ),
    (AGENT, NODES, "", ALL, ("get",)),
    (AGENT, NODES, "proxy", ALL, ()),
    (AGENT, PODS, "status", ALL, ()),
    (AGENT, MODELS, "", ALL, ()),
    (AGENT, SECRETS, "", OWN, ()),
    (SIDECAR, GPUS, "", OWN, READ),
    (SIDECAR, GPUS, "status", OWN, ("patch",)),
    (SIDECAR, GPUS, "", ALL, ()),
    (SIDECAR, MODELS, "", TEAM, FOLLOW),
    (SIDECAR, MODELS, "", "team-b", ()),
    (SIDECAR, MODELS, "status", TEAM, ()),
    (SIDECAR, PODS, "", TEAM, ("patch",)),
    (SIDECAR, PODS, "", "team-b", ()),
    (SIDECAR, PODS, "exec", TEAM, ()),
    (SIDECAR, PODS, "status", TEAM, ()),
    (SIDECAR, PODS, "ephemeralcontainers", TEAM, ()),
    (SIDECAR, SERVICES, "", TEAM, ()),
    (SIDECAR, ROUTES, "", TEAM, ()),
    (SIDECAR, EVENTS, "", TEAM, ("create",)),
    (SIDECAR, SECRETS, "", TEAM, ()),
    (SIDECAR, NODES, "", ALL, ()),
    (GATEWAY, MODELS, "", ALL, FOLLOW),
    (GATEWAY, SLICES, "", ALL, FOLLOW),
    (GATEWAY, GPUS, "", OWN, FOLLOW),
    (GATEWAY, GPUS, "status", OWN, ()),
    (GATEWAY, PODS, "", ALL, ()),
    (GATEWAY, SECRETS, "", OWN, ()),
    (GATEWAY, SERVICES, "", ALL, ()),
    (GATEWAY, EVENTS, "", OWN, ()),
    *[(who, what, "", ALL, ()) for who in PARTS for what in (ROLES, POLICIES, SECRETS, ACCOUNTS)],
    # a token of another account would be its rights
    *[(who, ACCOUNTS, "token", namespace, ()) for who in PARTS for namespace in (OWN, TEAM)],
]


def may(
    api: RealApi, who: str, verb: str, what: tuple[str, str], subresource: str, namespace: str, name: str = ""
) -> bool:
    group, resource = what
    groups = ["system:authenticated"]
    if who.startswith("system:serviceaccount:"):
        groups += ["system:serviceaccounts", f"system:serviceaccounts:{who.split(':')[2]}"]
    attributes = {
        "verb": verb,
        "group": group,
        "resource": resource,
        "subresource": subresource,
        "namespace": namespace,
    }
    review = {"spec": {"user": who, "groups": groups, "resourceAttributes": {**attributes, "name": name}}}
    status, answer = api.request(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", **review},
    )
    assert status == 201, answer
    return bool(answer["status"]["allowed"])


@pytest.mark.parametrize(
    ("who", "what", "subresource", "namespace", "verbs"),
    TABLE,
    ids=lambda value: value.rpartition(":")[2] if isinstance(value, str) else value[-1] if value else "nothing",
)
def test_each_part_may_do_what_it_needs_and_no_more(
    installed: RealApi, who: str, what: tuple[str, str], subresource: str, namespace: str, verbs: tuple[str, ...]
) -> None:
    allowed = {verb for verb in EVERY if may(installed, who, verb, what, subresource, namespace)}
    # GPUs may be read by whoever may log in: the plugin shows them
    public = set(READ) if (what, subresource, namespace) == (GPUS, "", OWN) else set()
    assert allowed == set(verbs) | public


@pytest.mark.parametrize(("verb", "allowed"), [("get", True), ("update", True), ("delete", False), ("patch", False)])
def test_the_controller_has_its_own_lease_and_no_other(installed: RealApi, verb: str, allowed: bool) -> None:
    assert may(installed, CONTROLLER, verb, LEASES, "", OWN, "greenthread-controller") is allowed
    assert not may(installed, CONTROLLER, verb, LEASES, "", OWN, "kube-scheduler")


@pytest.mark.parametrize(
    ("role", "verbs"),
    [("view", READ), ("edit", EVERY), ("admin", EVERY), ("greenthread-viewer", READ), ("greenthread-operator", EVERY)],
)
def test_people_get_models_with_their_usual_roles(installed: RealApi, role: str, verbs: tuple[str, ...]) -> None:
    binding = {
        "metadata": {"name": f"test-{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"user-{role}"}],
    }
    installed.request("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{TEAM}/rolebindings", binding)
    deadline = time.monotonic() + 20  # the controller manager collects roles into view, edit and admin
    while {verb for verb in EVERY if may(installed, f"user-{role}", verb, MODELS, "", TEAM)} != set(verbs):
        assert time.monotonic() < deadline, [
            verb for verb in EVERY if may(installed, f"user-{role}", verb, MODELS, "", TEAM)
        ]
        time.sleep(0.2)
    assert may(installed, f"user-{role}", "get", GPUS, "", TEAM)
    assert not may(installed, f"user-{role}", "patch", MODELS, "status", TEAM)
    assert not {verb for verb in EVERY if may(installed, f"user-{role}", verb, MODELS, "", "team-b")}
    assert not may(installed, f"user-{role}", "patch", GPUS, "status", OWN)
