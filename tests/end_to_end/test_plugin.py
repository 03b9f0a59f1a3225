"""The plugin acts on a cluster that lives. Its words, columns and mistakes are tests/parts/kubectl_greenthread's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from greenthread.chat import Chat, Kind
from greenthread.gpu import State
from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.names import ANNOTATION_REPORT
from greenthread.reach import LABELS, find_service, through_api_server
from localcluster.supervisor.ports import Ports
from tests.chart.prometheus import Prometheus
from tests.end_to_end.cluster import NAMESPACE, PATIENCE, Cluster
from tests.testbeds.programs import Missing, need, skip_or_fail

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

WAIT = ["--wait", "--timeout", f"{60 * PATIENCE:.0f}s"]


class Plugin:
    """`kubectl greenthread`, through kubectl itself, by the ordinary kubeconfig."""

    def __init__(self, cluster: Cluster) -> None:
        scripts = str(Path(sys.executable).parent)
        self.env = {
            **os.environ,
            "KUBECONFIG": str(cluster.api.kubeconfig),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
            "COLUMNS": "160",
        }

    def run(self, *arguments: str, namespace: str = NAMESPACE) -> subprocess.CompletedProcess[str]:
        command = [str(need("kubectl")), "greenthread", *arguments, "-n", namespace]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120 * PATIENCE)

    def __call__(self, *arguments: str) -> str:
        """Standard output of a command that succeeds."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def reported(cluster: Cluster, model: str, **wanted: object) -> None:
    """Waits until the sidecar's report on its pod says so: that is what the plugin knows of requests in flight."""

    def says() -> bool:
        [pod] = cluster.pods_of(model)
        report = json.loads(pod["metadata"]["annotations"].get(ANNOTATION_REPORT, "{}"))
        return all(report.get(key) == value for key, value in wanted.items())

    cluster.until(says, f"the report of {model} says {wanted}")


@pytest.fixture
def plugin(cluster: Cluster) -> Plugin:
    return Plugin(cluster)


def test_wake_and_sleep(cluster: Cluster, plugin: Plugin) -> None:
    said = plugin("wake", "ada", *WAIT)
    assert re.search(r"woke ada in \S+ on one/0 \(queue \S+, claim \S+, engine \S+\)", said)
    assert cluster.ledgers["one"].used_bytes(0) == cluster.measured("ada")
    assert "ada serves already" in plugin("wake", "ada", *WAIT)
    reported(cluster, "ada", state="serving", inFlight=0)
    said = plugin("sleep", "ada", *WAIT)
    assert "ada slept in" in said
    assert cluster.ledgers["one"].used_bytes(0) == 0
    assert "ada sleeps already" in plugin("sleep", "ada", *WAIT)


def test_several_at_once(cluster: Cluster, plugin: Plugin) -> None:
    said = plugin("wake", "ada", "bob", *WAIT)
    assert "woke ada" in said
    assert "woke bob" in said
    cluster.until_serving("one", {"ada", "bob"})
    for name in ("ada", "bob"):
        reported(cluster, name, state="serving", inFlight=0)
    plugin("sleep", "ada", "bob", *WAIT)
    assert cluster.ledgers["one"].used_bytes(0) == 0


def test_a_pinned_model_stays_until_it_is_unpinned(cluster: Cluster, plugin: Plugin) -> None:
    assert "pinned big" in plugin("pin", "big")
    plugin("wake", "big", *WAIT)
    refused = plugin.run("wake", "ada", "--wait", "--timeout", "1s")
    assert refused.returncode == 3
    assert "big" in refused.stderr
    assert "pinned" in refused.stderr
    refused = plugin.run("preempt", "big", "--for", "ada")
    assert refused.returncode == 1
    assert "unpin it first" in refused.stderr
    cluster.never(lambda: cluster.states("big") != [State.SERVING], "a pinned model left its GPU", seconds=0.5)
    assert "big" in plugin("unpin", "big")
    # ada still wants to wake
    cluster.until_serving("one", {"ada"})


def test_preempt_for_another(cluster: Cluster, plugin: Plugin) -> None:
    cluster.change("ada", fairness={"minRuntime": "1h", "yieldAfter": "0s"})
    cluster.change("big", fairness={"maxWaitTime": "1h"})
    plugin("wake", "ada", *WAIT)
    reported(cluster, "ada", state="serving", inFlight=0)
    said = plugin("preempt", "ada", "--for", "big", *WAIT)
    assert "woke big" in said
    assert "ada slept" in said
    cluster.until_serving("one", {"big"})


def test_requests_in_flight_are_asked_about(cluster: Cluster, plugin: Plugin) -> None:
    stream = cluster.stream("ada", seconds=6 * PATIENCE)
    stream.started()
    reported(cluster, "ada", inFlight=1)
    refused = plugin.run("sleep", "ada")
    assert refused.returncode == 1
    assert "1 request in flight" in refused.stderr
    assert "--yes" in refused.stderr
    plugin("sleep", "ada", "--yes", *WAIT)
    stream.result()
    assert stream.done, "the stream was cut"


def test_top_and_status_show_what_is(cluster: Cluster, plugin: Plugin) -> None:
    plugin("wake", "ada", *WAIT)
    top = plugin("top")
    [gpu] = [line for line in top.splitlines() if line.startswith("one/0")]
    assert "45.0/96.0G" in gpu
    [row] = [line for line in top.splitlines() if line.startswith("ada")]
    assert "serving" in row
    assert "one/0" in row
    [row] = [line for line in top.splitlines() if line.startswith("gang")]
    assert "sleeping" in row
    assert "two/0-1" in row
    status = plugin("status", "ada")
    assert "serving" in status
    assert f"{cluster.gateway}/ada/v1" in status
    assert "woke in" in status


def test_a_model_that_is_not_there(plugin: Plugin) -> None:
    refused = plugin.run("wake", "adda")
    assert refused.returncode == 4
    assert "ada" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_explain_tells_who_made_room_by_which_rule(cluster: Cluster, plugin: Plugin) -> None:
    cluster.change("ada", fairness={"minRuntime": "0s", "yieldAfter": "0s"})
    plugin("wake", "ada", *WAIT)
    before = " ".join(plugin("explain", "big").split())
    assert "a request now: it would wait: it needs" in before
    assert "ada would be asked to make room" in before
    plugin("wake", "big", *WAIT)
    cluster.until(lambda: "ada was preempted" in " ".join(plugin("explain", "big").split()), "the events are there")
    told = json.loads(plugin("explain", "big", "-o", "json"))
    wake = told["wakes"][-1]
    assert {"queue", "claim", "engine"} <= set(wake["stepSeconds"])
    assert [made["model"] for made in wake["madeRoom"]] == ["ada"]
    assert told["ifAsked"]["text"].startswith("it would be answered at once")


def test_lists_and_events(cluster: Cluster, plugin: Plugin) -> None:
    plugin("wake", "ada", *WAIT)
    assert re.search(r"^ada +\S+ +● serving +Ready +1/1 +one/0 ", plugin("models"), re.MULTILINE)
    assert re.search(r"^one/0 .*● ada 45.0G", plugin("gpus"), re.MULTILINE)
    cluster.until(lambda: "woke in" in plugin("events", "ada"), "the wake is told")
    assert plugin("models", "-o", "name").startswith("model.greenthread.ai/ada\n")


def test_chat_wakes_the_model_and_prints_what_it_says(cluster: Cluster, plugin: Plugin) -> None:
    said = plugin.run("chat", "ada", "-m", "hello", "--max-tokens", "8")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("This is ")
    cluster.until_serving("one", {"ada"})
    assert plugin("url", "ada") == f"{cluster.gateway}/{NAMESPACE}/ada/v1\n"


def test_doctor_finds_all_parts(cluster: Cluster, plugin: Plugin) -> None:
    done = plugin.run("doctor", "--prometheus", "none", "-o", "json")
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    bad = [check for check in checks.values() if check["ok"] is False]
    assert not bad
    assert done.returncode == 0
    assert {"cluster", "kinds", "rights", "controller", "agents", "GPUs", "gateway"} <= set(checks)


def test_logs_of_the_sidecar(cluster: Cluster, plugin: Plugin) -> None:
    if cluster.real:
        pytest.skip("there is no kubelet that would answer")
    plugin("wake", "ada", *WAIT)
    assert "serving" in plugin("logs", "ada", "-c", "sidecar")
    assert len(plugin("logs", "ada", "--tail", "1").splitlines()) <= 1


def test_kubectl_itself_completes(cluster: Cluster, plugin: Plugin) -> None:
    command = [str(need("kubectl")), "__complete", "greenthread", "status", "-n", NAMESPACE, "a"]
    done = subprocess.run(command, env=plugin.env, capture_output=True, text=True, timeout=60)
    assert "ada\n" in done.stdout
    assert done.stdout.endswith(":4\n")


def test_who_may_only_look_sees_everything_and_is_told_what_is_missing(
    cluster: Cluster, plugin: Plugin, tmp_path: Path
) -> None:
    if not cluster.real:
        pytest.skip("on one machine there is one user")
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "looker"},
            "rules": [{"apiGroups": ["greenthread.ai", ""], "resources": ["models", "gpus", "pods", "events"],
                       "verbs": ["get", "list", "watch"]}]}  # fmt: skip
    cluster.api.kubectl("apply", "-f", "-", stdin=json.dumps(role))
    cluster.api.kubectl("create", "serviceaccount", "looker", "-n", "default")
    cluster.api.kubectl("create", "clusterrolebinding", "looker", "--clusterrole=looker",
                        "--serviceaccount=default:looker")  # fmt: skip
    token = cluster.api.kubectl("create", "token", "looker", "-n", "default").strip()
    config = json.loads(cluster.api.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    cluster.until(lambda: plugin.run("top", "--kubeconfig", str(file)).returncode == 0, "the role is in force")
    looker = ["--kubeconfig", str(file)]
    top = plugin.run("top", *looker)
    assert "warning" not in top.stderr
    assert "ada" in top.stdout
    assert plugin.run("explain", "ada", *looker).returncode == 0
    refused = plugin.run("pin", "ada", *looker)
    assert refused.returncode == 5
    assert "it lacks the verb `patch` on `models.greenthread.ai`" in refused.stderr
    examined = plugin.run("doctor", "--prometheus", "none", *looker)
    assert "you may not wake, sleep, pin and preempt models" in examined.stdout
    config["users"][0]["user"] = {"token": "expired"}
    file.write_text(json.dumps(config))
    late = plugin.run("top", *looker)
    assert (late.returncode, late.stderr.count("\n")) == (1, 1)
    assert "log in again, the token may have expired" in late.stderr
    assert {account for account, _, _ in cluster.forbidden()} == {"default:looker"}
    cluster.begin()  # what was refused here was meant to be


def test_chats_stream_through_the_api_server(cluster: Cluster) -> None:
    if not cluster.real:
        pytest.skip("on one machine the gateway is reached directly")
    name, port = "greenthread-apiserver", cluster.remembered.gateway_port
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
               "spec": {"ports": [{"name": "http", "port": 80}]}}  # fmt: skip
    # a controller fills this on a whole cluster; the API server's proxy goes to pods alone
    address = {
        "ip": cluster.address,
        "targetRef": {"kind": "Pod", "name": "greenthread-gateway", "namespace": NAMESPACE},
    }
    subset = {"addresses": [address], "ports": [{"name": "http", "port": port}]}
    endpoints = {"apiVersion": "v1", "kind": "Endpoints", "metadata": service["metadata"], "subsets": [subset]}
    for obj in (service, endpoints):
        cluster.api.kubectl("apply", "-f", "-", stdin=json.dumps(obj))
    client = Client(load_config(cluster.api.kubeconfig))
    found = find_service(client, name, LABELS, NAMESPACE)
    assert found is not None
    talk = Chat(client, through_api_server(client, found), NAMESPACE, "ada")
    pieces = list(talk.ask([{"role": "user", "content": "hello"}], max_tokens=8))
    assert pieces[0].kind is Kind.BEGIN
    assert "".join(each.text for each in pieces if each.kind is Kind.TEXT).startswith("This is")
    cluster.until_serving("one", {"ada"})
    # a long answer comes in parts, not when it is whole
    long = talk.ask([{"role": "user", "content": "tell me a long story"}], max_tokens=1500, ignore_eos=True)
    times = [time.monotonic() for each in long if each.kind is Kind.TEXT]
    assert times[-1] - times[0] > 0.5
    cluster.api.kubectl("delete", "service", name, "-n", NAMESPACE)


@pytest.mark.real
def test_a_real_prometheus_adds_its_columns(cluster: Cluster, plugin: Plugin, tmp_path: Path) -> None:
    targets = [
        {
            "targets": [f"{cluster.address}:{cluster.port(pod, 'http')}"],
            "labels": {"namespace": NAMESPACE, "model": name, "pod": pod["metadata"]["name"]},
        }
        for name in ("ada", "bob")
        for pod in cluster.pods_of(name)
    ]
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: []\n")
    try:
        bed = Prometheus([{"job_name": "sidecars", "static_configs": targets}], rules, Ports().take())
    except Missing as missing:
        skip_or_fail(missing)
    with bed as server:
        known = "gthread_sidecar_wake_duration_seconds_count"
        cluster.until(lambda: len(server.query(known)) == len(targets), "both are scraped")
        plugin("chat", "ada", "-m", "hello", "--max-tokens", "4")
        of_ada = "rate(gthread_sidecar_requests_total{model='ada'}[1m]) > 0"
        cluster.until(lambda: bool(server.query(of_ada)), "the request is scraped")
        of_bob = "rate(gthread_sidecar_requests_total{model='bob'}[1m]) == 0"
        cluster.until(lambda: bool(server.query(of_bob)), "the other is scraped twice: a rate takes two samples")
        [head] = [line for line in plugin("top", "--prometheus", server.url).splitlines() if line.startswith("MODEL")]
        assert "REQ/S" in head
        assert "WAKE P50/P99" in head
        rows = {
            row["name"]: row for row in json.loads(plugin("top", "--prometheus", server.url, "-o", "json"))["models"]
        }
        assert rows["ada"]["requestsPerSecond"] > 0
        assert rows["ada"]["wakeSecondsP50"] > 0
        assert rows["bob"]["requestsPerSecond"] == 0
        assert rows["bob"]["wakeSecondsP50"] is None
        checks = json.loads(plugin("doctor", "--prometheus", server.url, "-o", "json"))["checks"]
        [told] = [check for check in checks if check["check"] == "prometheus"]
        assert told["ok"] is True
        assert f"knows {len(targets)} replicas" in told["text"]
