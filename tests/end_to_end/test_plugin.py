"""The plugin acts on a cluster that lives. Its words, columns and mistakes are tests/parts/kubectl_greenthread's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from greenthread.gpu import State
from greenthread.names import ANNOTATION_REPORT
from tests.end_to_end.cluster import NAMESPACE, PATIENCE, Cluster
from tests.testbeds.programs import need

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

WAIT = ["--wait", "--timeout", f"{60 * PATIENCE:.0f}s"]


class Plugin:
    """`kubectl greenthread`, through kubectl itself, by the ordinary kubeconfig."""

    def __init__(self, cluster: Cluster) -> None:
        scripts = str(Path(sys.executable).parent)
        self._env = {
            **os.environ,
            "KUBECONFIG": str(cluster.api.kubeconfig),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
            "COLUMNS": "160",
        }

    def run(self, *arguments: str, namespace: str = NAMESPACE) -> subprocess.CompletedProcess[str]:
        command = [str(need("kubectl")), "greenthread", *arguments, "-n", namespace]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=120 * PATIENCE)

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
