"""The path of a request on real processes: the engine's address, what logs hold, terms and heartbeat."""

from __future__ import annotations

import uuid
from pathlib import Path

import openai
import pytest

from greenthread.gpu import State
from tests.end_to_end.cluster import ONE, Cluster

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

BIG = "big"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def _listeners(port: int) -> set[str]:
    """Addresses (as the kernel writes them) on which anybody listens on a TCP port of this machine."""
    found = set()
    for name in ("tcp", "tcp6"):
        file = Path("/proc/net") / name
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            words = line.split()
            address, _, number = words[1].partition(":")
            if words[3] == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def test_an_engine_listens_on_loopback_only(cluster: Cluster) -> None:
    """Also when its Model asks for another address, in a way that no rule of the API server notices."""
    cluster.apply("wide", extraArgs=["--hos", "0.0.0.0"])
    cluster.ready("wide")
    assert cluster.chat("wide").status == 200
    for model in ("ada", "wide"):
        [pod] = cluster.pods_of(model)
        found = _listeners(cluster.port(pod, "engine"))
        assert found
        assert found <= LOOPBACK


def test_no_log_has_a_body_or_a_key(cluster: Cluster) -> None:
    body, key, query = (f"secret-{what}-{uuid.uuid4().hex}" for what in ("body", "key", "query"))
    headers = {"Authorization": f"Bearer {key}", "x_api_key": key}
    url = f"{cluster.gateway}/ada/v1/chat/completions"
    chat = {"model": "ada", "messages": [{"role": "user", "content": body}], "max_tokens": 4}
    for base in (url, f"{cluster.sidecar('ada')}/v1/chat/completions", f"{cluster.gateway}/nobody/v1/chat/completions"):
        for sent in (chat, {**chat, "stream": True}, {**chat, "max_tokens": -1}, body.encode(), [body]):
            cluster.post(f"{base}?key={query}", sent, **headers)  # type: ignore[arg-type]
    # an engine that answers nonsense, breaks off, dies, and does not wake
    for fault in ("garbage", "break-stream", "status=500", "crash"):
        failed = cluster.background(cluster.post, url, {**chat, "stream": True}, **headers, X_Simulate=fault)
        failed.exception(30)
    cluster.until(lambda: cluster.chat("ada").status == 200, "it serves after a new boot")
    cluster.sleep("ada")
    cluster.http.post(f"{cluster.engine('ada')}/simulate", json={"wake": "fail"}).raise_for_status()
    assert cluster.post(url, chat, **headers).status == 503
    texts = {str(file): file.read_text(errors="replace") for file in cluster.logs.glob("**/*.log")}
    ours = {name: text for name, text in texts.items() if "/vllm/" not in name}
    assert any("/sidecar/" in name for name in ours)
    assert any("gateway" in name for name in ours)
    for name, text in ours.items():
        for mark in (body, key, query):
            assert mark not in text, name


def test_a_stream_that_waits_for_a_wake_gets_signs_of_life(cluster: Cluster) -> None:
    cluster.http.post(f"{cluster.engine('ada')}/simulate", json={"wake": "slow:2s"}).raise_for_status()
    chat = {"model": "ada", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 8}
    answer = cluster.post(f"{cluster.gateway}/v1/chat/completions", chat)
    assert (answer.status, answer.headers["x-greenthread-state"]) == (200, "sleeping")
    assert answer.text.startswith(": waking\n\n: waking\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")


def test_an_sdk_raises_when_the_wake_of_its_stream_fails(cluster: Cluster) -> None:
    cluster.change(BIG, fairness={"popular": True})
    cluster.wake(BIG)
    with openai.OpenAI(base_url=f"{cluster.gateway}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="ada",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            extra_headers={"X-GreenThread-Max-Wait": "2s"},
        )
        with pytest.raises(openai.APIError, match=r"Max-Wait allows 2.0s; .*big \(\d+.*\) is pinned"):
            list(stream)


def test_answers_tell_state_and_timing(cluster: Cluster) -> None:
    first, second = cluster.chat("ada"), cluster.chat("ada")
    assert (first.headers["x-greenthread-state"], second.headers["x-greenthread-state"]) == ("sleeping", "serving")
    queue, wake = (part.partition("=")[2] for part in first.headers["server-timing"].split(", "))
    assert 0 <= float(queue) < first.seconds * 1000
    assert 0 < float(wake) < first.seconds * 1000
    assert second.headers["server-timing"] == "queue;dur=0, wake;dur=0"


def test_a_request_that_never_preempts_is_refused_rather_than_served(cluster: Cluster) -> None:
    cluster.wake(BIG)
    polite = {"X_GreenThread_Preempt": "never", "X_GreenThread_Max_Wait": "1500ms"}
    answer = cluster.chat("ada", **polite)
    assert (answer.status, "asked not to preempt" in answer.error) == (503, True)
    assert int(answer.headers["retry-after"]) >= 1
    assert cluster.states(BIG) == [State.SERVING]
    waiting = cluster.background(cluster.chat, "ada", X_GreenThread_Preempt="never")
    cluster.until(lambda: cluster.waits("ada"), "it waits")
    assert [intent.preempts for gpu in cluster.gpus(ONE) for intent in gpu.intents] == [False]
    assert cluster.chat("ada").status == 200, "another request may"
    assert waiting.result(30).status == 200
