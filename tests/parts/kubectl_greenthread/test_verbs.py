"""models, gpus, events, explain, url, chat, doctor, completion; watching, dry runs, read-only; and what goes wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from greenthread.kube.resources import EVENTS, GPUS, MODELS
from tests.unit.greenthread_kube.scripted import Answer, Asked, Server, status

from .cluster import GIB, SYSTEM, Cluster, ago
from .conftest import Plugin

PROGRAM = [sys.executable, "-m", "kubectl_greenthread.main"]
PATIENCE = 20.0


@pytest.fixture
def screens(cluster: Cluster) -> Cluster:
    cluster.screens()
    return cluster


def rows(text: str) -> dict[str, str]:
    """The rows of a table by their first word, with single blanks."""
    return {line.split()[0]: " ".join(line.split()) for line in text.splitlines()[1:] if line}


class Running:
    """A command that goes on, on pipes."""

    def __init__(self, cluster: Cluster, *words: str) -> None:
        environ = os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "COLUMNS": "150"}
        self.process = subprocess.Popen(
            [*PROGRAM, *words], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )

    def until(self, pattern: str) -> str:
        """Reads lines until one matches; that one."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        seen = []
        while time.monotonic() < deadline:
            line = self.process.stdout.readline()
            seen.append(line)
            if re.search(pattern, line):
                return line
            if not line:
                break
        raise AssertionError(f"no {pattern} in {seen}")

    def close(self) -> int:
        self.process.terminate()
        return self.process.wait(10)


@pytest.fixture
def running(cluster: Cluster) -> Iterator[Any]:
    started: list[Running] = []

    def start(*words: str) -> Running:
        started.append(Running(cluster, *words))
        return started[-1]

    yield start
    for each in started:
        each.close()


# lists


def test_models_in_a_table_and_as_objects(screens: Cluster, plugin: Plugin) -> None:
    found = rows(plugin("models").out)
    assert found["gpt-oss-20b"].startswith("gpt-oss-20b org/gpt-oss-20b ● serving Ready 1/1 node-a/1 88.2G yes")
    assert "◌ pending" in found["qwen-3-4b-thinking"]
    assert rows(plugin("models", "kimi-vl-a3b", "models/gpt-oss-20b").out).keys() == {"kimi-vl-a3b", "gpt-oss-20b"}
    one: Any = plugin("models", "kimi-vl-a3b", "-o", "json").json()
    assert (one["kind"], one["metadata"]["name"]) == ("Model", "kimi-vl-a3b")
    several: Any = plugin("models", "-o", "json").json()
    assert (several["kind"], len(several["items"])) == ("List", 5)
    assert "URL" in plugin("models", "-o", "wide").out
    ran = plugin("models", "nope")
    assert (ran.code, ran.out) == (4, "")
    assert "http://gateway/kimi-vl-a3b/v1" in plugin("models", "-o", "jsonpath={.items[*].status.url}").out


def test_models_by_label_and_in_order(cluster: Cluster, plugin: Plugin) -> None:
    cluster.gpu(0)
    for name, memory in (("a", 30), ("b", 10), ("c", 20)):
        cluster.model(name, memory=memory)
    cluster.client.patch(MODELS, "a", {"metadata": {"labels": {"team": "x"}}}, "default")
    assert list(rows(plugin("models", "-l", "team=x").out)) == ["a"]
    assert list(rows(plugin("models", "--sort-by", ".status.servingMemoryPerGPU").out)) == ["b", "c", "a"]
    assert list(rows(plugin("models", "--field-selector", "metadata.name=b").out)) == ["b"]
    assert plugin("top", "-l", "team=x", "-o", "name").out == "model.greenthread.ai/a\n"
    assert "team=y" not in plugin("top", "-l", "team=y").out
    assert plugin("models", "--sort-by", "{.a[").code == 2


def test_gpus_say_who_is_on_them(screens: Cluster, plugin: Plugin) -> None:
    found = rows(plugin("gpus").out)
    assert found["node-a/0"].startswith(
        "node-a/0 73.2G 22.8G 96.0G 2.0G 83% 64C 412W ● llama-3-1-8b 62.0G, ◐ kimi-vl-a3b"
    )
    assert "qwen-3-4b-thinking" in found["node-a/0"]
    assert list(rows(plugin("gpus", "node-a/1").out)) == ["node-a/1"]
    assert plugin("gpus", "gpus/node-a-1", "-o", "name").out == "gpu.greenthread.ai/node-a-1\n"
    assert plugin("gpus", "node-a-1", "-o", "jsonpath={.status.product}").out == "NVIDIA H100"
    ran = plugin("gpus", "node-b-0")
    assert (ran.code, ran.err) == (4, "error: there is no GPU node-b-0; there is node-a-0, node-a-1\n")


def test_top_of_some_models_in_another_order(screens: Cluster, plugin: Plugin) -> None:
    def order(*words: str) -> list[str]:
        text = plugin("top", "--no-headers", *words).out.split("\n\n")[1]
        return [line.split()[0] for line in text.splitlines()]

    assert order("kimi-vl-a3b") == ["kimi-vl-a3b"]
    assert order("--sort-by", "queue")[:2] == ["qwen-3-4b-thinking", "kimi-vl-a3b"]
    assert order("--sort-by", "vram")[0] == "gpt-oss-20b"
    assert plugin("top", "--sort-by", "colour").code == 2


def test_events_of_models_alone(screens: Cluster, plugin: Plugin) -> None:
    screens.event("kimi-vl-a3b", "Woke", "woke in 1s")
    screens.event("gpt-oss-20b", "WakeFailed", "out of memory", "Warning")
    out = plugin("events").out
    assert re.search(r"kimi-vl-a3b +Woke +woke in 1s", out)
    assert "kimi" not in plugin("events", "--warnings").out
    assert "gpt" not in plugin("events", "kimi-vl-a3b").out
    assert "gpt" not in plugin("events", "--reason", "Woke,Slept").out
    found: Any = plugin("events", "-o", "json").json()
    assert [item["reason"] for item in found["items"]] == ["Woke", "WakeFailed"]
    ran = plugin("events", "llama-3-1-8b")
    assert (ran.code, ran.out) == (0, "")
    assert "no events of llama-3-1-8b" in ran.err


def record(cluster: Cluster, name: str, what: str, **fields: Any) -> None:
    """What a sidecar tells when a wake or sleep is over."""
    cluster.event(name, what, "told", "Normal")
    [event] = [e for e in cluster.client.list(EVENTS).items if e["involvedObject"]["name"] == name]
    annotations = {"greenthread.ai/record": json.dumps({"gpus": "node-a/0", "reason": "", **fields})}
    meta = event["metadata"]
    cluster.client.patch(EVENTS, meta["name"], {"metadata": {"annotations": annotations}}, meta["namespace"])


def test_explain_tells_past_and_future(screens: Cluster, plugin: Plugin) -> None:
    record(
        screens,
        "llama-3-1-8b",
        "Woke",
        kind="wake",
        at=ago(30),
        reason="request",
        total=6.2,
        steps={"queue": 5.1, "claim": 0.004, "engine": 1.1},
        waitedFor="needs 62.0G on node-a/0",
        victims=["kimi-vl-a3b"],
    )
    left: dict[str, Any] = {"reason": "preempted for llama-3-1-8b", "forModel": "llama-3-1-8b", "memory": 9 * GIB}
    steps = {"drain": 0.1, "engine": 0.1}
    record(screens, "kimi-vl-a3b", "Preempted", kind="sleep", at=ago(25), total=0.2, steps=steps, **left)
    out = " ".join(plugin("explain", "llama-3-1-8b").out.split())
    assert "woke in 6.2s on node-a/0 (a request came)" in out
    assert "queue 5.1s ██" in out
    assert "waited it needs 62.0G on node-a/0" in out
    assert "room kimi-vl-a3b was preempted: after this model had waited its maxWaitTime (5s)" in out
    assert "a request now: it would be answered at once" in out
    data: Any = plugin("explain", "llama-3-1-8b", "-o", "json").json()
    assert data["wakes"][0]["stepSeconds"]["queue"] == 5.1
    assert data["wakes"][0]["madeRoom"][0]["model"] == "kimi-vl-a3b"
    assert data["ifAsked"]["text"].startswith("it would be answered at once")
    waiting = " ".join(plugin("explain", "qwen-3-4b-thinking").out.split())
    assert "No wake of qwen-3-4b-thinking is on record" in waiting
    assert "now qwen-3-4b-thinking needs 40.0G on node-a/0" in waiting
    asleep = " ".join(plugin("explain", "llama-3-1-70b").out.split())
    assert "a request now: it would not be served: it cannot fit" in asleep
    assert "gpt-oss-20b (88.2G) is pinned" in asleep


@pytest.mark.parametrize(("left", "told"), [(0, "left nothing on the GPU"), (3 * GIB, "left 3.0G"), (None, "")])
def test_explain_tells_what_the_last_sleep_left_on_the_gpu(
    screens: Cluster, plugin: Plugin, left: int | None, told: str
) -> None:
    slept: dict[str, Any] = {"kind": "sleep", "at": ago(9), "total": 0.1, "steps": {"engine": 0.1}, "memory": GIB}
    record(screens, "kimi-vl-a3b", "Slept", **slept, left=left)
    out = " ".join(plugin("explain", "kimi-vl-a3b").out.split())
    assert "Its last sleep, 9" in out
    assert told in out if told else " left " not in out


def test_status_says_what_falls_short_of_the_spec(screens: Cluster, plugin: Plugin) -> None:
    assert "Limited" not in plugin("status", "kimi-vl-a3b").out
    condition = {
        "type": "SleepsAsAsked",
        "status": "False",
        "reason": "Limited",
        "message": "its weights are on disk and not in host memory",
        "lastTransitionTime": "2026-11-22T00:00:00Z",
    }
    old = screens.client.get(MODELS, "kimi-vl-a3b", "default")["status"].get("conditions") or []
    body = {"status": {"conditions": [*old, condition]}}
    screens.client.patch(MODELS, "kimi-vl-a3b", body, "default", subresource="status")
    out = " ".join(plugin("status", "kimi-vl-a3b").out.split())
    assert "Limited its weights are on disk and not in host memory" in out
    assert plugin("explain", "nope").code == 4


# watching


def test_watching_prints_rows_that_change(screens: Cluster, running: Any) -> None:
    watch = running("top", "-w")
    watch.until("kimi-vl-a3b .*waking")
    screens.occupy("kimi-vl-a3b", "serving", 9.2, becameServingAt=ago(0))
    watch.until("kimi-vl-a3b .*serving")
    screens.occupy("kimi-vl-a3b", "deactivating", 9.2)
    watch.until("kimi-vl-a3b .*deactivating")


def test_watching_objects_and_events(screens: Cluster, running: Any) -> None:
    objects, events = running("models", "kimi-vl-a3b", "-w", "-o", "name"), running("events", "-w")
    gpus = running("gpus", "-w")
    assert objects.until("kimi") == "model.greenthread.ai/kimi-vl-a3b\n"
    gpus.until("node-a/1")
    screens.client.patch(MODELS, "gpt-oss-20b", {"metadata": {"labels": {"x": "y"}}}, "default")
    screens.client.patch(MODELS, "kimi-vl-a3b", {"metadata": {"labels": {"x": "y"}}}, "default")
    assert objects.until("model") == "model.greenthread.ai/kimi-vl-a3b\n"
    screens.event("kimi-vl-a3b", "Slept", "slept in 1s")
    events.until("kimi-vl-a3b +Slept +slept in 1s")
    screens.client.patch(GPUS, "node-a-1", {"status": {"foreignMemoryBytes": GIB}}, SYSTEM, "status")
    gpus.until("node-a/1 .* 1.0G")


def test_on_a_terminal_the_picture_stays_and_the_screen_is_given_back(screens: Cluster) -> None:
    ours, theirs = pty.openpty()
    environ = os.environ | {"KUBECONFIG": str(screens.kubeconfig), "TERM": "xterm-256color"}
    environ.pop("COLUMNS", None)
    process = subprocess.Popen([*PROGRAM, "top", "-w"], stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)

    def until(wanted: bytes) -> bytes:
        said, deadline = b"", time.monotonic() + PATIENCE
        while wanted not in said and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                said += os.read(ours, 65536)
        assert wanted in said, said
        return said

    assert b"\x1b[?1049h\x1b[?25l" in until(b"gpt-oss-20b")
    screens.occupy("kimi-vl-a3b", "serving", 9.2, becameServingAt=ago(0))
    until("● serving".encode())
    process.send_signal(2)
    assert until(b"error: stopped").count(b"\x1b[?25h\x1b[?1049l") == 1
    assert process.wait(10) == 130
    os.close(ours)


# acting


def test_a_dry_run_changes_nothing(screens: Cluster, plugin: Plugin) -> None:
    ran = plugin("pin", "llama-3-1-8b", "--dry-run=client", "-v")
    assert ran.out == "pinned llama-3-1-8b: it stays on its GPU and is never preempted (dry run)\n"
    assert ran.err.endswith("--dry-run=client\n")
    assert "(server dry run)" in plugin("sleep", "llama-3-1-8b", "--dry-run=server", "--wait").out
    seeming: Any = plugin("pin", "llama-3-1-8b", "--dry-run=client", "-o", "json").json()
    assert seeming["spec"]["fairness"]["popular"] is True
    real = screens.client.get(MODELS, "llama-3-1-8b", "default")
    assert real["spec"]["fairness"]["popular"] is False
    assert "greenthread.ai/sleep" not in real["metadata"].get("annotations", {})
    assert plugin("pin", "llama-3-1-8b", "--dry-run=maybe").code == 2


@pytest.mark.parametrize("words", [["pin", "m"], ["unpin", "m"], ["wake", "m"], ["sleep", "m"], ["preempt", "m"]])
def test_read_only_refuses_to_act(screens: Cluster, plugin: Plugin, words: list[str]) -> None:
    ran = plugin(*words, "--readonly")
    assert (ran.code, ran.err) == (5, "error: --readonly is on: nothing is changed\n")
    assert plugin("top", "--readonly").code == 0


def test_a_bar_shows_a_wake_on_a_terminal(screens: Cluster) -> None:
    screens.event("kimi-vl-a3b", "Woke", "woke in 1s")
    ours, theirs = pty.openpty()
    environ = os.environ | {"KUBECONFIG": str(screens.kubeconfig), "TERM": "xterm-256color"}
    command = [*PROGRAM, "wake", "kimi-vl-a3b", "--wait"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    said, deadline = b"", time.monotonic() + PATIENCE
    while b"copies 9.2G" not in said and time.monotonic() < deadline:
        said += os.read(ours, 65536)
    screens.occupy("kimi-vl-a3b", "serving", 9.2, becameServingAt=ago(0))
    while b"woke kimi-vl-a3b" not in said and time.monotonic() < deadline:
        said += os.read(ours, 65536)
    assert process.wait(10) == 0
    os.close(ours)
    assert "◐ waking".encode() in said
    assert b"\x1b[1A" in said


# formats


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models", "-o", "go-template={{.x}}"], "go-template is not supported: use -o jsonpath="),
        (["models", "-o", "jsonpath"], "jsonpath needs a template: -o jsonpath='{.metadata.name}'"),
        (["models", "-o", "jsonpath={.a[}"], "-o jsonpath: "),
        (["models", "-o", "custom-columns=NAME"], "'NAME' is not TITLE:.path"),
        (["top", "-o", "custom-columns=A:.b"], "'custom-columns' is none of json, yaml, wide, name, jsonpath"),
        (["top", "a", "-A"], "a name and -A do not go together"),
        (["chat", "m", "--temperature", "9"], "9 is not between 0 and 2"),
        (["logs", "m", "--tail", "-1"], "is not a whole number"),
        (["logs", "m", "-c", "init"], "-c is one of engine, sidecar"),
        (["completion", "tcsh"], "there is a completion for bash, zsh, fish, not for tcsh"),
    ],
)
def test_wrong_words_are_one_line_and_2(screens: Cluster, plugin: Plugin, words: list[str], message: str) -> None:
    ran = plugin(*words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert message in ran.err


def test_ascii_terminals_get_ascii(screens: Cluster) -> None:
    environ = os.environ | {"KUBECONFIG": str(screens.kubeconfig), "PYTHONIOENCODING": "ascii"}
    for verb in (["top"], ["gpus"], ["status", "gpt-oss-20b"], ["explain", "llama-3-1-70b"], ["doctor"]):
        ran = subprocess.run([*PROGRAM, *verb], env=environ, capture_output=True, check=False)
        assert ran.stdout.isascii()
        assert ran.stdout
        assert b"mistake" not in ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_what_the_shells_take(cluster: Cluster, plugin: Plugin, shell: str) -> None:
    script = plugin("completion", shell).out
    assert "__complete" in script
    program = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "-n"]}[shell]
    try:
        subprocess.run(program, input=script, text=True, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"no {shell} here")


def test_bash_completes_names_of_models(screens: Cluster, plugin: Plugin) -> None:
    script = plugin("completion", "bash").out
    test = f"""{script}
greenthread() {{ {sys.executable} -m kubectl_greenthread.main "$@"; }}
COMP_LINE='greenthread wake ki' COMP_POINT=19 COMP_CWORD=2
_greenthread; printf '%s\\n' "${{COMPREPLY[@]}}"
COMP_LINE='greenthread top --color=a' COMP_POINT=25
_greenthread; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environ = os.environ | {"KUBECONFIG": str(screens.kubeconfig)}
    ran = subprocess.run(["bash", "-c", test], env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["kimi-vl-a3b", "auto", "always"]


# the gateway


class World:
    """A cluster and its gateway in one scripted server, as on one machine: a Model, a pod, and a streaming answer."""

    def __init__(self, scripted: Any) -> None:
        self.state = "serving"
        self.refusal: Answer | None = None
        self.server: Server = scripted(self.reply)

    def reply(self, asked: Asked) -> Answer:
        meta = {"resourceVersion": "1"}
        url = f"{self.server.url}/llama/v1" if hasattr(self, "server") else ""
        model = {
            "metadata": {"name": "llama", "namespace": "default"},
            "spec": {"modelName": "x"},
            "status": {"url": url},
        }
        if asked.path.endswith("/chat/completions"):
            return self.refusal or self.answer(asked)
        if asked.path.endswith("/health"):
            return Answer(body={"status": "ok"})
        if asked.path == "/version":
            return Answer(body={"gitVersion": "v1.36.0"})
        if "watch" in asked.params:
            return Answer(chunks=self.silence())
        if asked.path.endswith("/models/llama"):
            return Answer(body=model)
        if asked.path.endswith("/models"):
            return Answer(body={"metadata": meta, "items": [model]})
        if asked.path.endswith("accessreviews"):
            return Answer(201, {"status": {"allowed": asked.body["spec"]["resourceAttributes"]["verb"] != "patch"}})
        return Answer(body={"metadata": meta, "items": []})

    def silence(self) -> Iterator[bytes]:
        self.server.closing.wait(PATIENCE)
        yield b""

    def answer(self, asked: Asked) -> Answer:
        def chunk(text: str) -> bytes:
            return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"

        last = asked.body["messages"][-1]["content"]
        end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        return Answer(chunks=[chunk("You said: "), chunk(last), chunk("\x1b[2J"), end])


@pytest.fixture
def world(scripted: Any) -> World:
    return World(scripted)


def test_url_is_where_the_model_answers(world: World, plugin: Plugin) -> None:
    assert plugin("url", "llama").out == f"{world.server.url}/default/llama/v1\n"
    assert plugin("url").out == f"{world.server.url}/v1\n"
    assert plugin("url", "llama", "--url", "https://models.example.com/v1").out == (
        "https://models.example.com/default/llama/v1\n"
    )


def test_chat_asks_once(world: World, plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ran = plugin("chat", "llama", "-m", "hello", "--system", "be brief")
    assert (ran.code, ran.out, ran.err) == (0, "You said: hello\x1b[2J\n", "")
    asked = next(asked for asked in world.server.asked if asked.path.endswith("completions"))
    assert [message["role"] for message in asked.body["messages"]] == ["system", "user"]
    monkeypatch.setattr("sys.stdin", io.StringIO("some text\n"))
    assert "this:\n\nsome text" in plugin("chat", "llama", "-m", "this:").out
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert plugin("chat", "llama").code == 2


def test_chat_says_why_there_is_no_answer(world: World, plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    world.refusal = Answer(503, {"error": {"message": "gpt is pinned and stays"}})
    ran = plugin("chat", "llama")
    assert (ran.code, ran.out, ran.err) == (1, "", "error: gpt is pinned and stays\n")


def test_a_conversation_on_a_terminal(world: World) -> None:
    ours, theirs = pty.openpty()
    environ = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen([*PROGRAM, "chat", "llama"], stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    said, deadline = b"", time.monotonic() + PATIENCE

    def until(wanted: bytes) -> None:
        nonlocal said
        while wanted not in said and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                said += os.read(ours, 65536)
        assert wanted in said, said

    until(b"> ")
    os.write(ours, b"one **bold** word\n")
    until(b"You said: one")
    while said.count(b"> ") < 2 and time.monotonic() < deadline:
        said += os.read(ours, 65536)
    os.write(ours, b"/exit\n")
    assert process.wait(10) == 0
    os.close(ours)
    assert b"\x1b[2J" not in said  # a model's words cannot clear the screen
    asked = [asked for asked in world.server.asked if asked.path.endswith("completions")]
    assert len(asked) == 1


# what goes wrong


def test_doctor_says_what_is_wrong_and_what_to_do(world: World, plugin: Plugin) -> None:
    ran = plugin("doctor", "--prometheus", "none", width=200)
    assert ran.code == 1
    assert any(line.startswith("✓ cluster") and "v1.36.0" in line for line in ran.out.splitlines())
    assert "you may not wake, sleep, pin and preempt models" in ran.out
    assert "ask for a role that allows `patch` on `models.greenthread.ai`" in ran.out
    assert "✗ controller there is none" in " ".join(ran.out.split())
    assert "✗ GPUs none is registered" in " ".join(ran.out.split())
    assert "✓ gateway" in " ".join(ran.out.split())
    data: Any = plugin("doctor", "--prometheus", "none", "-o", "json").json()
    assert {check["check"] for check in data["checks"]} >= {
        "cluster",
        "kinds",
        "rights",
        "controller",
        "agents",
        "GPUs",
    }


def test_doctor_without_a_cluster(tmp_path: Any, plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    from .cluster import write_kubeconfig

    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "c", "http://127.0.0.1:1")))
    ran = plugin("doctor")
    assert ran.code == 1
    assert "✗ cluster" in ran.out
    assert "check the context" in ran.out


@pytest.mark.parametrize("kind", ["models", "gpus", "pods", "events"])
def test_a_kind_that_may_not_be_read_takes_nothing_else_along(scripted: Any, plugin: Plugin, kind: str) -> None:
    model = {"metadata": {"name": "m", "namespace": "default"}, "spec": {"modelName": "x"}}

    def reply(asked: Asked) -> Answer:
        if asked.path.endswith(f"/{kind}") or (kind == "models" and "/models/" in asked.path):
            return status(403, "Forbidden", "no")
        if asked.path.endswith("/models/m"):
            return Answer(body=model)
        return Answer(body={"metadata": {"resourceVersion": "1"}, "items": [model] if "/models" in asked.path else []})

    scripted(reply)
    for words in (["top"], ["models"], ["status", "m"], ["explain", "m"]):
        ran = plugin(*words)
        if kind == "models":
            assert (ran.code, ran.out) == (5, "")
            assert f"no permission to {'get' if len(words) > 1 else 'list'} models" in ran.err
        else:
            assert ran.code == 0
            assert "m " in ran.out
        assert "mistake" not in ran.err


def test_who_may_only_read_is_told_the_right_that_is_missing(scripted: Any, plugin: Plugin) -> None:
    model = {"metadata": {"name": "m", "namespace": "default"}, "spec": {"modelName": "x"}}

    def reply(asked: Asked) -> Answer:
        if asked.method == "PATCH":
            return status(403, "Forbidden", "User x cannot patch")
        if asked.path.endswith("/models/m"):
            return Answer(body=model)
        return Answer(body={"metadata": {"resourceVersion": "1"}, "items": []})

    scripted(reply)
    ran = plugin("pin", "m")
    assert ran.code == 5
    assert "it lacks the verb `patch` on `models.greenthread.ai` in namespace default" in ran.err


@pytest.mark.parametrize(
    "broken",
    [
        {"metadata": {"name": "m", "namespace": "default"}},
        {"metadata": {"name": "m", "namespace": "default"}, "spec": {}},
        {"metadata": {"name": "m", "namespace": "default"}, "spec": {"modelName": "x"}, "status": None},
        {"metadata": {"name": "m", "namespace": "default"}, "spec": {"modelName": "x", "fairness": None}, "status": {}},
    ],
)
def test_objects_with_missing_fields_hide_no_others(scripted: Any, plugin: Plugin, broken: dict[str, Any]) -> None:
    good = {"metadata": {"name": "good", "namespace": "default"}, "spec": {"modelName": "x"}}
    gpus = [{"metadata": {"name": "n-0", "namespace": "s"}},
            {"metadata": {"name": "n-1", "namespace": "s"}, "status": {"occupants": [{}], "node": "n", "index": 1}},
            {"metadata": {"name": "n-2", "namespace": "s"}, "status": {"node": "n", "index": 2}}]  # fmt: skip
    pods = [{"metadata": {"name": "p", "namespace": "default", "labels": {"greenthread.ai/model": "good"}}}]

    def reply(asked: Asked) -> Answer:
        items: list[Any] = []
        if asked.path.endswith("/models"):
            items = [broken, good]
        elif asked.path.endswith("/gpus"):
            items = gpus
        elif asked.path.endswith("/pods"):
            items = pods
        return Answer(body={"metadata": {"resourceVersion": "1"}, "items": items})

    scripted(reply)
    for words in (
        ["top"],
        ["top", "-o", "wide"],
        ["top", "-o", "json"],
        ["models", "-o", "wide"],
        ["gpus"],
        ["events"],
    ):
        ran = plugin(*words)
        assert ran.code == 0, ran.err
        if words[0] in ("top", "models"):
            assert "good" in ran.out


def test_an_api_that_goes_away_midway_is_told_and_waited_for(scripted: Any, plugin: Plugin) -> None:
    model = {"metadata": {"name": "m", "namespace": "default", "resourceVersion": "1"}, "spec": {"modelName": "x"}}

    def reply(asked: Asked) -> Answer:
        if "watch" in asked.params:
            return status(503, "ServiceUnavailable", "the API server is shutting down")
        if asked.path.endswith("/models/m"):
            return Answer(body=model)
        return Answer(body={"metadata": {"resourceVersion": "1"}, "items": []})

    scripted(reply)
    ran = plugin("wake", "m", "--wait", "--timeout", "1s")
    assert ran.code == 3
    assert "the API server is shutting down" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: m did not wake within 1.0s, and still may")


def test_a_slow_prometheus_is_not_waited_for(screens: Cluster, plugin: Plugin) -> None:
    def slow(asked: Asked) -> Answer:
        server.closing.wait(PATIENCE)
        return Answer(body={})

    server = Server(slow)
    began = time.monotonic()
    ran = plugin("top", "--prometheus", server.url)
    took = time.monotonic() - began
    server.close()
    assert ran.code == 0
    assert "REQ/S" not in ran.out
    assert "gpt-oss-20b" in ran.out
    assert "Prometheus" in ran.err
    assert took < PATIENCE / 2


def test_a_prometheus_adds_its_columns(screens: Cluster, plugin: Plugin) -> None:
    labels = {"namespace": "default", "model": "gpt-oss-20b"}

    def reply(asked: Asked) -> Answer:
        if asked.path.endswith("query_range"):
            line = {"metric": labels, "values": [[1, "0"], [2, "12"]]}
            return Answer(body={"status": "success", "data": {"resultType": "matrix", "result": [line]}})
        samples = [{"metric": {**labels, "ask": ask}, "value": [0, value]}
                   for ask, value in (("rate", "12.1"), ("p50", "0.54"), ("p99", "2.1"))]  # fmt: skip
        return Answer(body={"status": "success", "data": {"resultType": "vector", "result": samples}})

    server = Server(reply)
    try:
        out = plugin("top", "--prometheus", server.url).out
        line = next(line for line in out.splitlines() if line.startswith("gpt-oss-20b"))
        assert re.search(r" 12\.1 +540ms/2\.1s +▁█ +612ms +pinned$", line)
        data: Any = plugin("top", "--prometheus", server.url, "-o", "json").json()
        assert data["models"][0]["requestsPerSecond"] == 12.1
        narrow = plugin("top", "--prometheus", server.url, width=110).out
        assert "REQUESTS, 10M" not in narrow
        assert "LAST WAKE" in narrow
    finally:
        server.close()


def test_where_there_is_no_prometheus_is_remembered(
    screens: Cluster, plugin: Plugin, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plugin("top").err == ""
    file = tmp_path / "greenthread" / "prometheus.json"
    [[path, at]] = json.loads(file.read_text()).values()
    assert path == ""
    assert abs(at - time.time()) < PATIENCE
    file.write_text("{broken")
    assert plugin("top").code == 0
