"""`top` and `status` show who is on the GPUs, who waits, and why."""

from __future__ import annotations

import json

import pytest
import yaml

from greenthread.kube.resources import PODS

from .cluster import Cluster, ago
from .conftest import Plugin


@pytest.fixture
def screens(cluster: Cluster) -> Cluster:
    cluster.screens()
    return cluster


def table(text: str, head: str) -> dict[str, list[str]]:
    """The rows under a header line, by their first word."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(head))
    rows: dict[str, list[str]] = {}
    for line in lines[start + 1 :]:
        if not line:
            break
        rows[line.split()[0]] = line.split("  ")
    return rows


def test_top_shows_gpus_models_and_why_the_waiting_wait(screens: Cluster, plugin: Plugin) -> None:
    ran = plugin("top")
    assert (ran.code, ran.err) == (0, "")
    gpus = table(ran.out, "GPU ")
    assert {"73.2/96.0G", "83%", "64C"} <= set(" ".join(gpus["node-a/0"]).split())
    assert "88.2/96.0G" in " ".join(gpus["node-a/1"])
    assert "qwen-3-4b-thinking" in " ".join(gpus["node-a/0"])
    models = {name: " ".join(" ".join(cells).split()) for name, cells in table(ran.out, "MODEL ").items()}
    assert models["gpt-oss-20b"].startswith("gpt-oss-20b ● serving 3m1")
    assert models["gpt-oss-20b"].endswith("node-a/1 88.2G 4 0 612ms pinned")
    assert "◐ waking" in models["kimi-vl-a3b"]
    assert models["llama-3-1-70b"] == "llama-3-1-70b ○ sleeping 2h00m node-a/0-1 0 0 0 2.1s"
    assert "◌ pending" in models["qwen-3-4b-thinking"]
    assert "waits for" in models["qwen-3-4b-thinking"]
    assert "llama-3-1-8b (" in models["qwen-3-4b-thinking"]
    assert "qwen-3-4b-thinking needs 40.0G on node-a/0, where 22.8G is free: 17.2G short" in ran.out
    assert "  next: " in ran.out


def test_a_bar_shows_serving_waking_foreign_and_free_memory_to_scale(screens: Cluster, plugin: Plugin) -> None:
    bar = table(plugin("top", width=120).out, "GPU ")["node-a/0"][1]
    assert len(bar) == 42
    # 62, 9.2 and 2 of 96 GiB
    assert [bar.count(cell) for cell in "█▊▒▓░"] == [26, 1, 4, 1, 10]


def test_lines_never_pass_the_width(screens: Cluster, plugin: Plugin) -> None:
    for width in range(60, 180, 9):
        out = plugin("top", "-A", "-o", "wide", width=width).out
        assert max(len(line) for line in out.splitlines()) <= max(width, 78)


def test_columns_drop_in_the_stated_order(screens: Cluster, plugin: Plugin) -> None:
    optional = ["FLAGS", "LAST WAKE", "IN-FLIGHT", "QUEUE"]
    missing = []
    for width in range(140, 40, -3):
        head = next(line for line in plugin("top", width=width).out.splitlines() if line.startswith("MODEL "))
        assert all(title in head for title in ("MODEL", "STATE", "FOR", "GPU", "VRAM"))
        gone = [title for title in optional if title not in head]
        assert gone == optional[: len(gone)]
        missing.append(len(gone))
    assert set(missing) == {0, 1, 2, 3, 4}


def test_a_pinned_model_is_marked_where_flags_do_not_fit(screens: Cluster, plugin: Plugin) -> None:
    assert "gpt-oss-20b ★" in plugin("top", width=70).out
    assert "★" not in plugin("top", width=140).out


def test_colours_are_for_terminals_or_when_asked_for(screens: Cluster, plugin: Plugin) -> None:
    assert "\x1b" not in plugin("top").out
    assert "\x1b[33m◌ pending\x1b[0m" in plugin("top", "--color", "always").out
    assert "\x1b" not in plugin("top", "--color", "never").out


def test_headers_can_be_left_out(screens: Cluster, plugin: Plugin) -> None:
    out = plugin("top", "--no-headers").out
    assert "MEMORY" not in out
    assert "FLAGS" not in out
    assert "gpt-oss-20b" in out


def test_namespaces_are_kubectls(screens: Cluster, plugin: Plugin) -> None:
    screens.model("elsewhere", namespace="prod", memory=1)
    assert "elsewhere" not in plugin("top").out
    assert "elsewhere" in plugin("top", "-n", "prod").out
    assert "elsewhere" in plugin("-n", "prod", "top").out
    everything = table(plugin("top", "-A").out, "NAMESPACE")
    assert {"prod", "default"} <= set(everything)


def test_data_for_programs(screens: Cluster, plugin: Plugin) -> None:
    data = json.loads(plugin("top", "-o", "json").out)
    assert data["gpus"][0]["freeMemoryBytes"] > 0
    models = {model["name"]: model for model in data["models"]}
    assert models["gpt-oss-20b"]["inFlight"] == 4
    assert models["gpt-oss-20b"]["pinned"] is True
    assert models["qwen-3-4b-thinking"]["state"] == "pending"
    assert models["llama-3-1-70b"]["gpus"] == ["node-a/0-1"]
    again = yaml.safe_load(plugin("top", "-o", "yaml").out)
    assert [model["name"] for model in again["models"]] == [model["name"] for model in data["models"]]
    assert plugin("top", "-o", "name").out.splitlines()[0] == "model.greenthread.ai/gpt-oss-20b"


def test_an_empty_cluster_is_said_on_stderr(cluster: Cluster, plugin: Plugin) -> None:
    ran = plugin("top")
    assert (ran.code, ran.out) == (0, "")
    assert "no GPUs" in ran.err
    assert "no models in namespace default" in ran.err


def test_status_tells_all_of_one_model(screens: Cluster, plugin: Plugin) -> None:
    screens.event("gpt-oss-20b", "Woke", "woke in 612ms on node-a/1 (queue 12ms, engine 600ms)")
    screens.event("llama-3-1-8b", "Woke", "not of this model")
    out = plugin("status", "models/gpt-oss-20b").out
    assert out.startswith("gpt-oss-20b  ● serving for 3m1")
    assert "\n  why   gpt-oss-20b serves on node-a/1" in out
    facts = {line[:11].strip(): line[11:].strip() for line in out.splitlines()}
    assert facts["Model"] == "org/gpt-oss-20b"
    assert facts["Memory"] == "88.2 GiB on one GPU"
    assert facts["In flight"] == "4"
    assert facts["Pinned"] == "yes: never preempted"
    assert "gpt-oss-20b-0-abcd  ● serving" in out
    assert "Woke   woke in 612ms" in out
    assert "not of this model" not in out


def test_status_for_programs(screens: Cluster, plugin: Plugin) -> None:
    screens.event("kimi-vl-a3b", "Waiting", "asks for room")
    data = json.loads(plugin("status", "kimi-vl-a3b", "-o", "json").out)
    assert (data["state"], data["queued"]) == ("waking", 2)
    assert data["replicas"][0]["pod"] == "kimi-vl-a3b-0-abcd"
    assert data["events"][0]["message"] == "asks for room"


def test_what_is_not_known_is_not_made_up(cluster: Cluster, plugin: Plugin) -> None:
    cluster.gpu(0)
    cluster.model("silent")
    patch = {"metadata": {"annotations": {"greenthread.ai/report": "no json"}}}
    cluster.client.patch(PODS, "silent-0-abcd", patch, "default")
    assert " ".join(plugin("top").out.splitlines()[-1].split()) == "silent ○ sleeping - node-a/0 0 - - -"
    assert "In flight  not reported" in plugin("status", "silent").out


def test_text_from_the_cluster_cannot_move_the_cursor(cluster: Cluster, plugin: Plugin) -> None:
    cluster.gpu(0)
    cluster.model("odd", report={"error": "broken \x1b[2J\nsecond line", "since": ago(5)})
    cluster.event("odd", "Slept", "evil \x1b]0;title\x07 text")
    for verb in (["top"], ["status", "odd"]):
        out = plugin(*verb, "--color", "always").out
        assert "\x1b[2J" not in out
        assert "\x1b]" not in out


def test_who_cannot_fit_is_told_from_who_waits(cluster: Cluster, plugin: Plugin) -> None:
    cluster.gpu(0, foreign=3)
    cluster.model("big", memory=50, report={"state": "pending", "queued": 1})
    cluster.model("stays", memory=60)
    cluster.occupy("stays", "serving", 60, popular=True)
    line = next(line for line in plugin("top").out.splitlines() if line.startswith("big "))
    assert "⊘ cannot fit" in line
    assert line.endswith("cannot fit: stays is pinned, other programs use 3.0G")
