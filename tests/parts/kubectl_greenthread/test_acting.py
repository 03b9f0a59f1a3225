"""The verbs act by patching Models, ask before they disturb, and say what came of it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenthread.clock import parse_time
from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.kube.resources import MODELS

from .cluster import Cluster, ago
from .conftest import Plugin

PROGRAM = [sys.executable, "-m", "kubectl_greenthread.main"]


@pytest.fixture
def two(cluster: Cluster) -> Cluster:
    """`busy` serves 4 requests on node-a/0, `idle` sleeps there."""
    cluster.gpu(0)
    cluster.model("busy", memory=60, report={"state": "serving", "inFlight": 4})
    cluster.model("idle", memory=50)
    cluster.occupy("busy", "serving", 60, becameServingAt=ago(60), lastAccessed=ago(0))
    return cluster


def wish(cluster: Cluster, name: str, what: str) -> str | None:
    metadata = cluster.client.get(MODELS, name, "default")["metadata"]
    return (metadata.get("annotations") or {}).get(f"greenthread.ai/{what}")


def popular(cluster: Cluster, name: str) -> bool:
    return bool(cluster.client.get(MODELS, name, "default")["spec"]["fairness"]["popular"])


class Sidecar:
    """Does `then` when a wish appears on a Model."""

    def __init__(self, cluster: Cluster, name: str, what: str, then: Callable[[Cluster], None]) -> None:
        own = Cluster(cluster.kubeconfig)
        version = own.client.list(MODELS).resource_version

        def follow() -> None:
            for event in own.client.watch(MODELS, resource_version=version):
                metadata = event.object.get("metadata", {})
                if metadata.get("name") == name and f"greenthread.ai/{what}" in metadata.get("annotations", {}):
                    then(own)
                    return

        self._thread = threading.Thread(target=follow, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_wake_is_an_annotation_with_the_time(two: Cluster, plugin: Plugin) -> None:
    ran = plugin("wake", "model/idle")
    assert (ran.code, ran.out, ran.err) == (0, "asked idle to wake\n", "")
    wished = wish(two, "idle", "wake")
    assert wished is not None
    assert parse_time(ago(10)) < parse_time(wished) <= parse_time(ago(0))
    assert len(wished) == len("2026-11-22T14:03:22.123456Z")


def test_waking_what_serves_changes_nothing(two: Cluster, plugin: Plugin) -> None:
    ran = plugin("wake", "busy", "--wait")
    assert (ran.code, ran.out) == (0, "busy serves already, on node-a/0\n")
    assert wish(two, "busy", "wake") is None


def test_wake_and_wait_tells_how_it_went(two: Cluster, plugin: Plugin) -> None:
    two.gpu(1)
    two.model("other", gpus="1", memory=50)

    def obey(own: Cluster) -> None:
        own.wait_for_room("other", 50, since=0, gpus="1")
        own.event("other", "Preempting", "asks nobody to make room")
        own.occupy("other", "serving", 50, "1", becameServingAt=ago(0))
        own.event("other", "Woke", "woke in 540ms on node-a/1 (queue 12ms, claim 4ms, engine 524ms)")

    sidecar = Sidecar(two, "other", "wake", obey)
    ran = plugin("wake", "other", "--wait")
    sidecar.join()
    assert (ran.code, ran.out) == (0, "woke other in 540ms on node-a/1 (queue 12ms, claim 4ms, engine 524ms)\n")


def test_a_wake_that_fails_fails(two: Cluster, plugin: Plugin) -> None:
    two.event("idle", "WakeFailed", "an old story")
    sidecar = Sidecar(two, "idle", "wake", lambda own: own.event("idle", "WakeFailed", "out of memory", "Warning"))
    ran = plugin("wake", "idle", "--wait")
    sidecar.join()
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-1] == "error: idle did not wake: out of memory"


def test_a_wake_that_takes_too_long_says_what_is_in_the_way(two: Cluster, plugin: Plugin) -> None:
    two.wait_for_room("idle", 50, since=1)
    ran = plugin("wake", "idle", "--wait", "--timeout", "100ms")
    assert ran.code == 3
    assert "error: idle did not wake within 100ms, and still may: idle needs 50.0G on node-a/0" in ran.err
    assert wish(two, "idle", "wake") is not None


def test_a_model_without_replicas_cannot_wake(two: Cluster, plugin: Plugin) -> None:
    two.client.patch(MODELS, "idle", {"spec": {"replicas": 0}}, "default")
    ran = plugin("wake", "idle")
    assert ran.code == 1
    assert "replicas: 0" in ran.err
    assert wish(two, "idle", "wake") is None


def test_several_models_at_once_all_or_none(two: Cluster, plugin: Plugin) -> None:
    assert plugin("pin", "busy", "idle", "nope").code == 4
    assert not popular(two, "busy")
    assert plugin("pin", "busy", "idle", "busy").code == 0
    assert popular(two, "busy")
    assert popular(two, "idle")


def test_requests_in_flight_are_not_disturbed_without_a_yes(two: Cluster, plugin: Plugin) -> None:
    for verb in (["sleep", "busy"], ["preempt", "busy"]):
        ran = plugin(*verb)
        assert ran.code == 1
        assert "busy has 4 requests in flight; they get 30s to finish: pass --yes to go on" in ran.err
    assert wish(two, "busy", "sleep") is None
    assert plugin("sleep", "busy", "--yes").code == 0
    assert wish(two, "busy", "sleep") is not None


def test_nothing_is_asked_when_nothing_is_in_flight(two: Cluster, plugin: Plugin) -> None:
    two.report("busy", state="serving", inFlight=0)
    assert plugin("sleep", "busy").out == "asked busy to sleep\n"


@pytest.mark.parametrize(("key", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_a_terminal_is_asked_and_the_default_is_no(two: Cluster, key: str, code: int) -> None:
    ours, theirs = pty.openpty()
    environ = os.environ | {"KUBECONFIG": str(two.kubeconfig)}
    process = subprocess.Popen([*PROGRAM, "sleep", "busy"], stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 1000)
    os.write(ours, f"{key}\n".encode())
    assert process.wait(20) == code
    os.close(ours)
    question = "busy has 4 requests in flight; they get 30s to finish. Put it to sleep? [y/N]"
    assert question in " ".join(said.decode().split())
    assert (wish(two, "busy", "sleep") is not None) == (code == 0)


def test_sleep_and_wait_until_the_memory_is_free(two: Cluster, plugin: Plugin) -> None:
    def obey(own: Cluster) -> None:
        own.occupy("busy", "deactivating", 60)
        own.occupy("busy", "sleeping", 0)
        own.event("busy", "Slept", "slept in 1.2s on node-a/0 (drain 1.1s, engine 90ms), asked to, freed 60.0G")

    sidecar = Sidecar(two, "busy", "sleep", obey)
    ran = plugin("sleep", "busy", "--yes", "--wait")
    sidecar.join()
    assert (ran.code, ran.out) == (
        0,
        "busy slept in 1.2s on node-a/0 (drain 1.1s, engine 90ms), asked to, freed 60.0G\n",
    )


def test_what_sleeps_is_left_alone(two: Cluster, plugin: Plugin) -> None:
    assert plugin("sleep", "idle").out == "idle sleeps already: it holds no GPU memory\n"
    assert wish(two, "idle", "sleep") is None


def test_pin_and_unpin_are_the_spec(two: Cluster, plugin: Plugin) -> None:
    assert plugin("pin", "busy").out == "pinned busy: it stays on its GPU and is never preempted\n"
    assert popular(two, "busy")
    assert plugin("pin", "busy").out == "busy is pinned already\n"
    assert plugin("unpin", "busy").out == "unpinned busy: it sleeps when idle and may be preempted\n"
    assert not popular(two, "busy")
    assert plugin("unpin", "busy").out == "busy is not pinned\n"


def test_preempt_for_another_wakes_the_other(two: Cluster, plugin: Plugin) -> None:
    ran = plugin("preempt", "busy", "--for", "idle", "-y")
    assert (ran.code, ran.out) == (0, "asked idle to wake\nasked busy to make room\n")
    assert wish(two, "busy", "preempt") is not None
    assert wish(two, "idle", "wake") is not None


def test_a_pinned_model_is_not_preempted(two: Cluster, plugin: Plugin) -> None:
    plugin("pin", "busy")
    ran = plugin("preempt", "busy", "--yes")
    assert ran.code == 1
    assert "busy is pinned and never preempted: unpin it first" in ran.err
    assert wish(two, "busy", "preempt") is None


def test_preempting_where_it_makes_no_room_is_refused(two: Cluster, plugin: Plugin) -> None:
    two.gpu(1)
    two.model("far", gpus="1")
    ran = plugin("preempt", "busy", "--for", "far", "--yes")
    assert ran.code == 1
    assert "busy is on node-a/0 and far on node-a/1" in ran.err
    assert plugin("preempt", "busy", "--for", "busy", "--yes").code == 1
    assert wish(two, "busy", "preempt") is None


def test_verbose_says_the_kubectl_command_that_does_the_same(two: Cluster, plugin: Plugin) -> None:
    ran = plugin("pin", "idle", "-v", "--context", "here")
    patch = json.dumps({"spec": {"fairness": {"popular": True}}}, separators=(",", ":"))
    assert ran.err == (
        f"kubectl --context=here patch models.greenthread.ai idle -n default --type=merge -p '{patch}'\n"
    )


def test_objects_instead_of_words(two: Cluster, plugin: Plugin) -> None:
    assert plugin("pin", "idle", "-o", "name").out == "model.greenthread.ai/idle\n"
    found: Any = plugin("unpin", "idle", "-o", "json").json()
    assert (found["kind"], found["spec"]["fairness"]["popular"]) == ("Model", False)
    several: Any = plugin("pin", "idle", "busy", "-o", "json").json()
    assert (several["kind"], len(several["items"])) == ("List", 2)


def test_an_unknown_model_is_answered_with_near_ones(two: Cluster, plugin: Plugin) -> None:
    ran = plugin("wake", "bussy")
    assert (ran.code, ran.err) == (4, "error: there is no model bussy in namespace default; did you mean busy?\n")
    assert "it has busy, idle" in plugin("status", "zzzz").err
    ran = plugin("status", "busy", "-n", "prod")
    assert ran.err == "error: there is no model busy in namespace prod; there is one in default: pass -n default\n"


def test_ctrl_c_stops_the_waiting_not_the_wake(two: Cluster) -> None:
    version = two.client.list(MODELS).resource_version
    process = subprocess.Popen(
        [*PROGRAM, "wake", "idle", "--wait"],
        env=os.environ | {"KUBECONFIG": str(two.kubeconfig)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wishes: Iterator[Any] = Client(load_config(two.kubeconfig)).watch(MODELS, resource_version=version)
    next(event for event in wishes if event.type == "MODIFIED")
    two.wait_for_room("idle", 50, since=0)
    assert process.stderr is not None
    assert "idle needs" in process.stderr.readline()  # it waits now
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == "error: stopped waiting; idle still goes on to wake\n"
    assert process.wait(10) == 130
