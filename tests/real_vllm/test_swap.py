"""Two Models with real vLLM processes share one simulated GPU. The product boots them, puts them to sleep, wakes and
swaps them by requests, and clients get true completions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from greenthread.gpu import State
from greenthread.kube.resources import MODELS
from greenthread.names import ANNOTATION_CHECKPOINT
from tests.end_to_end.cluster import ONE, Cluster, manifest
from tests.testbeds import vllm
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.programs import Missing, need_vllm, skip_or_fail

pytestmark = [pytest.mark.real, pytest.mark.processes, pytest.mark.timeout(1800)]

#: Seconds for two boots, one after the other: vLLM on a CPU takes over a minute for each.
BOOTS = 1200
ASK = [{"role": "user", "content": "def read_file(path):"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One GPU with two sleeping Models of 58 GiB each: they cannot be awake together. One runs under the launcher, with
    vllm_sleep delivered into vLLM's Python; the driver that checkpoints it is played."""
    try:
        need_vllm()
        folder = vllm.tiny_model()
    except Missing as missing:
        skip_or_fail(missing)
    path = os.pathsep.join([str(vllm.BIN), os.environ.get("PATH", os.defpath)])
    with EmbeddedApi() as api, Cluster(api, {ONE: 1}, {"PATH": path, "GREENTHREAD_PYTHON": sys.executable}) as cluster:
        try:
            cluster.apply("first", **spec(folder))
            launched = manifest("second", ONE, **spec(folder))
            launched["metadata"]["annotations"] = {ANNOTATION_CHECKPOINT: "true"}
            cluster.kube.create(MODELS, launched)
            cluster.ready("first", "second", seconds=BOOTS)
            yield cluster
        except BaseException:
            print(cluster.picture(), file=sys.stderr)
            raise


def spec(folder: Path) -> dict[str, Any]:
    return {
        "modelName": str(folder),
        "gpuMemoryUtilization": "0.60",
        "extraArgs": ["--enforce-eager", "--max-model-len", "512"],
    }


@pytest.fixture(autouse=True)
def _true_at_the_end(cluster: Cluster) -> Iterator[None]:
    cluster.rest("first", "second")
    cluster.begin()
    yield
    cluster.check()


def sdk(base: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base}/v1", api_key="not-needed", max_retries=0, timeout=120)


def complete(base: str, model: str) -> str:
    answer = sdk(base).chat.completions.create(model=model, messages=ASK, **GREEDY)
    assert answer.usage.completion_tokens > 0
    return str(answer.choices[0].message.content)


def engine_sleeps(cluster: Cluster, model: str) -> bool:
    return bool(cluster.http.get(f"{cluster.engine(model)}/is_sleeping").json()["is_sleeping"])


def test_after_the_boots_both_sleep_and_hold_nothing(cluster: Cluster) -> None:
    assert cluster.ledgers[ONE].used_bytes(0) == 0
    for model in ("first", "second"):
        assert engine_sleeps(cluster, model)
        # 0.60 of 96 GiB and the engine's context, by NVML
        assert cluster.model(model)["status"]["memory"]["servingHuman"] == "59.4 GiB"
        assert cluster.http.get(f"{cluster.gateway}/{model}/v1/models").json()["data"][0]["id"] == model


def test_a_request_wakes_it_and_the_completion_is_true(cluster: Cluster) -> None:
    said = complete(f"{cluster.gateway}/first", "first")
    assert said
    assert not engine_sleeps(cluster, "first")
    assert said == complete(cluster.engine("first"), "first")
    assert said == complete(cluster.gateway, "first")
    assert said == complete(cluster.sidecar("first"), str(vllm.tiny_model()))
    assert cluster.history("first")[-2:] == [State.WAKING, State.SERVING]


def test_the_launched_one_is_checkpointed_and_its_vllm_has_loaded_our_plugin(cluster: Cluster) -> None:
    assert cluster.status("second")["shortfalls"] == []
    assert cluster.status("second")["records"][-1]["left"] == 0
    [pod] = cluster.pods_of("second")
    assert "Failed to load plugin" not in cluster.log(pod, "vllm")
    [engine] = cluster.engine_pids("second")
    environment = Path(f"/proc/{engine}/environ").read_bytes().decode().split("\0")
    [folder] = [line.removeprefix("PYTHONPATH=") for line in environment if line.startswith("PYTHONPATH=")]
    assert list(Path(folder).glob("greenthread-*.dist-info/entry_points.txt"))


def test_two_models_swap_and_stay_what_they_are(cluster: Cluster) -> None:
    answers: dict[str, set[str]] = {"first": set(), "second": set()}
    for model, other in (("first", "second"), ("second", "first"), ("first", "second"), ("second", "first")):
        answers[model].add(complete(f"{cluster.gateway}/{model}", model))
        cluster.until_serving(ONE, {model})
        assert engine_sleeps(cluster, other)
        assert cluster.ledgers[ONE].used_bytes(0) == cluster.measured(model)
    # the same model twice, the same greedy answer every time: a sleep loses nothing
    assert len(answers["first"] | answers["second"]) == 1


def test_streams_come_token_by_token(cluster: Cluster) -> None:
    stream = sdk(f"{cluster.gateway}/second").chat.completions.create(
        model="second", messages=ASK, stream=True, **GREEDY
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == complete(cluster.engine("second"), "second")


def test_the_other_apis_give_what_vllm_gives(cluster: Cluster) -> None:
    def answers(base: str) -> list[object]:
        client, claude = sdk(base), anthropic.Anthropic(base_url=base, api_key="x", max_retries=0, timeout=120)
        message = claude.messages.create(model="first", messages=ASK, max_tokens=24, extra_body={"temperature": 0.0})
        return [
            client.completions.create(model="first", prompt="import os", **GREEDY).choices[0].text,
            client.responses.create(
                model="first", input="import os", temperature=0.0, max_output_tokens=24
            ).output_text,
            [block.text for block in message.content if block.type == "text"],
            claude.messages.count_tokens(model="first", messages=ASK).input_tokens,
            cluster.http.post(f"{base}/tokenize", json={"model": "first", "prompt": "import os"}).json()["tokens"],
        ]

    through = answers(f"{cluster.gateway}/first")
    assert through == answers(cluster.engine("first"))


def test_twenty_requests_are_one_wake(cluster: Cluster) -> None:
    answers = [future.result(300) for future in cluster.chats("second", 20)]
    assert all(answer.json["usage"]["completion_tokens"] > 0 for answer in answers)
    assert cluster.history("second") == [State.SLEEPING, State.WAKING, State.SERVING]
    assert "EngineDied" not in [event["reason"] for event in cluster.events("second")]
