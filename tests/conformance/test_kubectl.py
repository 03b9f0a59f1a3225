"""The unmodified kubectl does its work."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.client import MERGE_PATCH, Client
from tests.conformance.test_deletion import pod
from tests.conformance.widgets import BASE, GROUP, widget
from tests.testbeds.admin import Admin
from tests.testbeds.programs import need


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, api: Admin, namespace: str, home: Path) -> None:
        self._command = [str(need("kubectl")), "--kubeconfig", str(api.kubeconfig), "-n", namespace]
        self._environment = {**os.environ, "HOME": str(home)}

    def run(self, *arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={**self._environment, **environment},
        )

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> str:
        done = self.run(*arguments, stdin=stdin, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str, stdin: str | None = None) -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kubectl's cache, shared by the tests of one run."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def kubectl(api: Admin, ns: str, home: Path, client: Client) -> Kubectl:
    return Kubectl(api, ns, home)


def manifest(name: str = "a", **spec: Any) -> str:
    return yaml.safe_dump(widget(name, **spec))


def table(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.strip().splitlines()]


def test_apply(kubectl: Kubectl) -> None:
    assert kubectl("apply", "-f", "-", stdin=manifest(low=1)) == f"widget.{GROUP}/a created\n"
    assert kubectl("apply", "-f", "-", stdin=manifest(low=1)) == f"widget.{GROUP}/a unchanged\n"
    assert kubectl("apply", "-f", "-", stdin=manifest(size=2)) == f"widget.{GROUP}/a configured\n"
    spec = json.loads(kubectl("get", "widget", "a", "-o", "json"))["spec"]
    assert (spec["size"], spec.get("low")) == (2, None)


def test_apply_of_something_wrong(kubectl: Kubectl) -> None:
    error = kubectl.refused("apply", "-f", "-", stdin=manifest(zzz=1))
    assert 'unknown field "spec.zzz"' in error
    error = kubectl.refused("apply", "-f", "-", stdin=manifest(low=3, high=2))
    assert 'The Widget "a" is invalid: spec: Invalid value: low 3 is above high 2' in error
    error = kubectl.refused("apply", "-f", "-", stdin=manifest(size=0))
    assert "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1" in error
    assert 'no matches for kind "Nothing"' in kubectl.refused(
        "apply", "-f", "-", stdin="apiVersion: v1\nkind: Nothing\n"
    )


def test_dry_run_and_diff(kubectl: Kubectl) -> None:
    assert "created (server dry run)" in kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifest())
    assert "NotFound" in kubectl.refused("get", "widget", "a")
    kubectl("apply", "-f", "-", stdin=manifest())
    done = kubectl.run("diff", "-f", "-", stdin=manifest(size=7))
    assert done.returncode == 1
    assert "+  size: 7" in done.stdout


def test_get_in_all_its_forms(kubectl: Kubectl, ns: str) -> None:
    kubectl("apply", "-f", "-", stdin=manifest())
    rows = table(kubectl("get", "widgets"))
    assert rows[0] == ["NAME", "SIZE", "PHASE", "AGE"]
    assert rows[1][:2] == ["a", "1"]
    assert re.fullmatch(r"\d+s", rows[1][-1])
    assert table(kubectl("get", "wd", "-o", "wide"))[0] == ["NAME", "SIZE", "PHASE", "COLOR", "AGE"]
    assert [row[:2] for row in table(kubectl("get", "widgets", "-A")) if row[0] == ns] == [[ns, "a"]]
    assert table(kubectl("get", "things"))[1][0] == "a"
    assert yaml.safe_load(kubectl("get", "widget", "a", "-o", "yaml"))["spec"]["color"] == "red"
    assert kubectl("get", "widget", "a", "-o", "name") == f"widget.{GROUP}/a\n"
    assert kubectl("get", "widgets", "-o", "jsonpath={.items[*].spec.size}") == "1"
    assert kubectl("get", "widgets", "-o", "custom-columns=N:.metadata.name,C:.spec.color", "--no-headers").split() == [
        "a",
        "red",
    ]
    assert kubectl("get", "widgets", "-l", "none=such") == ""
    assert kubectl("get", "widgets", "--field-selector", "spec.color=red", "-o", "name").strip().endswith("/a")
    assert kubectl("get", "widgets", "--sort-by=.metadata.name", "-o", "name").strip().endswith("/a")


def test_many_objects_come_in_pages(kubectl: Kubectl, client: Client, widgets_path: str) -> None:
    for number in range(7):
        client.post(widgets_path, widget(f"w{number}")).ok()
    names = kubectl("get", "widgets", "--chunk-size=3", "-o", "name").split()
    assert names == [f"widget.{GROUP}/w{number}" for number in range(7)]


def test_patch_label_annotate(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=manifest())
    kubectl("patch", "widget", "a", "--type=merge", "-p", '{"spec":{"size":5}}')
    kubectl("patch", "widget", "a", "--type=json", "-p", '[{"op":"replace","path":"/spec/color","value":"green"}]')
    kubectl("patch", "widget", "a", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Done"}}')
    kubectl("label", "widget", "a", "x=y")
    kubectl("annotate", "widget", "a", "note=text")
    obj = json.loads(kubectl("get", "widget", "a", "-o", "json"))
    assert (obj["spec"]["size"], obj["spec"]["color"], obj["status"]) == (5, "green", {"phase": "Done"})
    assert obj["metadata"]["labels"] == {"x": "y"}
    assert obj["metadata"]["annotations"]["note"] == "text"
    kubectl("label", "widget", "a", "x-")
    assert "labels" not in json.loads(kubectl("get", "widget", "a", "-o", "json"))["metadata"]
    assert "already has a value" in kubectl.refused("annotate", "widget", "a", "note=other")


def test_edit(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=manifest())
    assert "edited" in kubectl("edit", "widget", "a", KUBE_EDITOR="sed -i s/size:\\ 1/size:\\ 8/")
    assert kubectl("get", "widget", "a", "-o", "jsonpath={.spec.size}") == "8"


def test_replace_and_create(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=manifest())
    assert "AlreadyExists" in kubectl.refused("create", "-f", "-", stdin=manifest())
    obj = json.loads(kubectl("get", "widget", "a", "-o", "json"))
    obj["spec"]["size"] = 9
    assert "replaced" in kubectl("replace", "-f", "-", stdin=json.dumps(obj))
    obj["spec"]["size"] = 10
    assert "Conflict" in kubectl.refused("replace", "-f", "-", stdin=json.dumps(obj))


def test_built_in_kinds_by_apply(kubectl: Kubectl) -> None:
    text = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s"},
        "spec": {"selector": {"a": "b"}, "ports": [{"name": "http", "port": 80}, {"name": "more", "port": 81}]},
    }
    assert kubectl("apply", "-f", "-", stdin=json.dumps(text)) == "service/s created\n"
    assert kubectl("apply", "-f", "-", stdin=json.dumps(text)) == "service/s unchanged\n"
    del text["spec"]["ports"][1]
    assert kubectl("apply", "-f", "-", stdin=json.dumps(text)) == "service/s configured\n"
    ports = json.loads(kubectl("get", "service", "s", "-o", "json"))["spec"]["ports"]
    assert [port["name"] for port in ports] == ["http"]
    assert "created" in kubectl("create", "secret", "generic", "x", "--from-literal=k=v")
    assert "created" in kubectl("create", "configmap", "y", "--from-literal=k=v")
    assert table(kubectl("get", "configmap", "y"))[0] == ["NAME", "DATA", "AGE"]
    assert 'unknown field "spec.zzz"' in kubectl.refused(
        "apply", "-f", "-", stdin=json.dumps({**text, "spec": {**text["spec"], "zzz": 1}})
    )


def test_delete_waits(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=manifest())
    assert kubectl("delete", "widget", "a").startswith(f'widget.{GROUP} "a" deleted')
    assert "NotFound" in kubectl.refused("get", "widget", "a")
    assert "NotFound" in kubectl.refused("delete", "widget", "a")
    kubectl("delete", "widget", "a", "--ignore-not-found")
    kubectl("apply", "-f", "-", stdin=f"{manifest('b')}---\n{manifest('c')}")
    kubectl("delete", "widgets", "--all")
    assert kubectl("get", "widgets") == ""


def test_delete_waits_for_a_finalizer(kubectl: Kubectl, client: Client, widgets_path: str) -> None:
    given = widget("a")
    given["metadata"]["finalizers"] = ["example.com/hold"]
    version = client.post(widgets_path, given).version
    deleting = kubectl.start("delete", "widget", "a")
    with client.watch(widgets_path, resourceVersion=version) as watch:
        assert watch.next()[1]["metadata"]["deletionTimestamp"]
    assert deleting.poll() is None
    client.patch(f"{widgets_path}/a", {"metadata": {"finalizers": None}}, MERGE_PATCH).ok()
    assert deleting.communicate(timeout=30)[0].startswith(f'widget.{GROUP} "a" deleted')


def test_get_watch(kubectl: Kubectl, client: Client, widgets_path: str) -> None:
    client.post(widgets_path, widget("a")).ok()
    watching = kubectl.start("get", "widgets", "-w")
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().split() == ["NAME", "SIZE", "PHASE", "AGE"]
        assert watching.stdout.readline().split()[:2] == ["a", "1"]
        client.patch(f"{widgets_path}/a/status", {"status": {"phase": "Done"}}, MERGE_PATCH).ok()
        assert watching.stdout.readline().split()[:3] == ["a", "1", "Done"]
        client.post(widgets_path, widget("b", size=2)).ok()
        assert watching.stdout.readline().split()[:2] == ["b", "2"]
    finally:
        watching.kill()
        watching.communicate()


def test_wait(kubectl: Kubectl, client: Client, ns: str) -> None:
    where = f"/api/v1/namespaces/{ns}/pods"
    client.post(where, pod("a", node="n1")).ok()
    assert "timed out" in kubectl.refused("wait", "--for=condition=Ready", "pod/a", "--timeout=1s")
    waiting = kubectl.start("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    gone = kubectl.start("wait", "--for=delete", "pod/a", "--timeout=30s")
    field = kubectl.start("wait", "--for=jsonpath={.status.phase}=Running", "pod/a", "--timeout=30s")
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    client.patch(f"{where}/a/status", {"status": status}, MERGE_PATCH).ok()
    assert waiting.communicate(timeout=40)[0] == "pod/a condition met\n"
    assert field.communicate(timeout=40)[0] == "pod/a condition met\n"
    client.delete(f"{where}/a", gracePeriodSeconds=0).ok()
    gone.communicate(timeout=40)
    assert gone.returncode == 0


def test_explain(kubectl: Kubectl) -> None:
    text = kubectl("explain", "widgets.spec")
    assert "GROUP:      " + GROUP in text
    assert re.search(r"size\s+<integer> -required-", text)
    assert re.search(r"tags\s+<\[\]string>", text)
    assert "FIELD: color <string>" in kubectl("explain", "widget.spec.color")
    text = kubectl("explain", "pod.spec.containers")
    assert "List of containers belonging to the pod" in text
    assert re.search(r"imagePullPolicy\s+<string>", text)
    assert 'field "nothing" does not exist' in kubectl.refused("explain", "widget.nothing")


def event(name: str, ns: str, kind: str, about: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "involvedObject": {"apiVersion": f"{GROUP}/v1", "kind": kind, "namespace": ns, "name": about},
        "type": "Normal",
        "reason": reason,
        "message": message,
        "source": {"component": "tests"},
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
    }


def test_events_and_describe(kubectl: Kubectl, client: Client, ns: str, widgets_path: str) -> None:
    uid = client.post(widgets_path, widget("a", nested={"note": "hello"})).ok()["metadata"]["uid"]
    given = event("a.1", ns, "Widget", "a", "Woke", "it woke in 600ms")
    given["involvedObject"]["uid"] = uid
    client.post(f"/api/v1/namespaces/{ns}/events", given).ok()
    rows = table(kubectl("events", "--for", "widget/a"))
    assert rows[0] == ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    assert rows[1][1:] == ["Normal", "Woke", "Widget/a", "it woke in 600ms"]
    assert "it woke in 600ms" in kubectl("get", "events")
    text = kubectl("describe", "widget", "a")
    assert re.search(r"Note:\s+hello", text)
    assert re.search(r"Normal\s+Woke\s+\S+\s+tests\s+it woke in 600ms", text)


def test_describe_built_in_kinds(kubectl: Kubectl, client: Client, ns: str) -> None:
    client.post(f"/api/v1/namespaces/{ns}/pods", pod("p", node="n1")).ok()
    client.patch(f"/api/v1/namespaces/{ns}/pods/p/status", {"status": {"podIP": "10.0.0.1"}}, MERGE_PATCH).ok()
    assert re.search(r"IP:\s+10.0.0.1", kubectl("describe", "pod", "p"))
    client.post(
        f"/api/v1/namespaces/{ns}/services", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    ).ok()
    assert re.search(r"TargetPort:\s+80/TCP", kubectl("describe", "service", "s"))
    assert re.search(r"Status:\s+Active", kubectl("describe", "namespace", ns))


def test_pods(kubectl: Kubectl, client: Client, ns: str) -> None:
    where = f"/api/v1/namespaces/{ns}/pods"
    client.post(where, pod("p", node="n1")).ok()
    assert table(kubectl("get", "pods"))[0] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert table(kubectl("get", "pods"))[1][:4] == ["p", "0/1", "Pending", "0"]
    deleting = kubectl.start("delete", "pod", "p")
    client.eventually(lambda: "deletionTimestamp" in client.get(f"{where}/p").ok()["metadata"], "the pod is deleted")
    assert table(kubectl("get", "pods"))[1][2] == "Terminating"
    client.delete(f"{where}/p", gracePeriodSeconds=0).ok()
    deleting.communicate(timeout=30)
    assert deleting.returncode == 0
    client.post(where, pod("q", node="n1")).ok()
    kubectl("delete", "pod", "q", "--force", "--grace-period=0")
    assert client.get(f"{where}/q").status == 404


def test_namespaces(kubectl: Kubectl, ns: str) -> None:
    assert kubectl("create", "namespace", f"{ns}-more") == f"namespace/{ns}-more created\n"
    assert table(kubectl("get", "ns", f"{ns}-more"))[1][:2] == [f"{ns}-more", "Active"]
    kubectl("delete", "namespace", f"{ns}-more")
    assert "NotFound" in kubectl.refused("get", "ns", f"{ns}-more")


def test_who_may_do_what(kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "create", "widgets") == "yes\n"
    assert "*.*" in kubectl("auth", "can-i", "--list")


def test_api_resources_and_versions(kubectl: Kubectl) -> None:
    rows = {row[0]: row[1:] for row in table(kubectl("api-resources"))}
    assert rows["widgets"] == ["wd", f"{GROUP}/v1", "true", "Widget"]
    assert f"{GROUP}/v1" in kubectl("api-versions").split()
    assert "Server Version: v1." in kubectl("version")


def test_raw(kubectl: Kubectl, ns: str) -> None:
    assert json.loads(kubectl("get", "--raw", f"{BASE}/namespaces/{ns}/widgets"))["kind"] == "WidgetList"


def test_what_is_not_there(kubectl: Kubectl) -> None:
    assert f'Error from server (NotFound): widgets.{GROUP} "nope" not found' in kubectl.refused("get", "widget", "nope")
    assert 'the server doesn\'t have a resource type "nonsense"' in kubectl.refused("get", "nonsense")
