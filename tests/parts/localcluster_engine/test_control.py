"""Sleep, wake, pause and memory of the simulated engine, as vLLM has them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from localcluster.engine.memory import CONTEXT_BYTES
from localcluster.gpus.ledger import GIB, Ledger
from tests.parts.localcluster_engine.conftest import RunningEngine, Start

pytestmark = pytest.mark.processes
SERVING = int(96 * GIB * 0.9) + CONTEXT_BYTES
FLAGS = ("--gpu-memory-utilization", "0.90")
PROMPT = {"prompt": "Once", "max_tokens": 5}


def ask(engine: RunningEngine, **body: Any) -> httpx.Response:
    return engine.http.post("/v1/completions", json={**PROMPT, **body})


def in_background(call: Any) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def until(condition: Any) -> None:
    """Wait for another process; fails by the test's timeout."""
    while not condition():
        threading.Event().wait(0.005)


def running(engine: RunningEngine) -> float:
    return metric(engine, "vllm:num_requests_running")


def metric(engine: RunningEngine, name: str, **labels: str) -> float:
    for line in engine.http.get("/metrics").text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no {name} in the metrics")


def test_a_96_gib_card_at_090_shows_88_2_gib(start: Start, ledger: Ledger) -> None:
    engine = start("openai/gpt-oss-20b", *FLAGS)
    assert [usage.pid for usage in ledger.usage(0)] == [engine.process.pid]
    assert round(ledger.used_bytes(0) / GIB, 1) == 88.2
    assert ledger.used_bytes(1) == 0


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_frees_everything_and_wake_takes_it_back(plain: RunningEngine, level: int) -> None:
    engine, ledger = plain, plain.ledger
    assert engine.control(f"/sleep?level={level}").json() == {"status": "sleeping", "level": level}
    assert ledger.used_bytes(0) == 0
    assert engine.http.get("/is_sleeping").json() == {"is_sleeping": True}
    assert engine.http.get("/health").status_code == 200
    assert engine.http.get("/v1/models").status_code == 200
    assert engine.control("/wake_up").json() == {"status": "awake", "tags": None}
    assert ledger.used_bytes(0) == SERVING
    assert ledger.refusals() == []


def test_what_is_left_asleep_can_be_set(start: Start, ledger: Ledger) -> None:
    engine = start("openai/gpt-oss-20b", *FLAGS, GREENTHREAD_SIM_LEFT_BYTES=str(GIB))
    engine.control("/sleep")
    assert ledger.used_bytes(0) == GIB
    engine.control("/wake_up")
    assert ledger.used_bytes(0) == SERVING


def test_without_sleep_mode_nothing_is_freed(start: Start, ledger: Ledger) -> None:
    engine = start("openai/gpt-oss-20b", "--no-enable-sleep-mode", *FLAGS)
    engine.control("/sleep")
    assert engine.http.get("/is_sleeping").json() == {"is_sleeping": True}
    assert ledger.used_bytes(0) == SERVING


def test_a_partial_wake_sleeps_until_every_tag_is_awake(plain: RunningEngine) -> None:
    engine, ledger = plain, plain.ledger
    engine.control("/sleep?level=2")
    assert engine.control("/wake_up?tags=weights").json() == {"status": "sleeping", "tags": ["weights"]}
    assert ledger.used_bytes(0) == 16_000_000_000 + CONTEXT_BYTES
    assert engine.http.get("/is_sleeping").json() == {"is_sleeping": True}
    assert engine.control("/collective_rpc", method="reload_weights").json() == {"results": [None]}
    assert engine.control("/wake_up?tags=kv_cache").json() == {"status": "awake", "tags": ["kv_cache"]}
    assert ledger.used_bytes(0) == SERVING
    assert ask(engine).json()["choices"][0]["text"].startswith(" ")


def test_a_level_2_wake_without_reload_gives_garbage(plain: RunningEngine) -> None:
    engine = plain
    engine.control("/sleep?level=2")
    engine.control("/wake_up")
    assert ask(engine).json()["choices"][0]["text"] == "!!!!!"
    engine.control("/collective_rpc", method="reload_weights")
    assert "!" not in ask(engine).json()["choices"][0]["text"]


def test_reloading_weights_that_are_not_mapped_kills_the_engine(start: Start) -> None:
    engine = start("org/model-8B")
    engine.control("/sleep?level=2")
    assert engine.control("/collective_rpc", method="reload_weights").status_code == 500
    assert engine.process.wait(10) == 1
    assert "illegal memory access" in engine.log.read_text()


def test_a_wake_takes_the_time_of_the_link(start: Start, ledger: Ledger) -> None:
    engine = start("org/model-8B", GREENTHREAD_SIM_LINK_GBPS="40")
    engine.control("/sleep")
    began = time.monotonic()
    waking = in_background(lambda: engine.control("/wake_up"))
    until(lambda: 4 * GIB < ledger.used_bytes(0) < 15 * GIB)
    assert not waking.done()
    assert waking.result().json()["status"] == "awake"
    assert 0.4 <= time.monotonic() - began < 2


def test_a_wake_goes_on_when_the_one_who_asked_leaves(start: Start, ledger: Ledger) -> None:
    engine = start("org/model-8B", *FLAGS, GREENTHREAD_SIM_LINK_GBPS="40")
    engine.control("/sleep")
    with pytest.raises(httpx.ReadTimeout):
        engine.http.post("/wake_up", timeout=0.1)
    assert engine.http.get("/is_sleeping").json() == {"is_sleeping": True}
    until(lambda: engine.http.get("/is_sleeping").json() == {"is_sleeping": False})
    assert ledger.used_bytes(0) == SERVING


def test_load_formats_that_cannot_reload(start: Start) -> None:
    engine = start("org/model-8B", "--load-format", "dummy")
    answer = engine.control("/collective_rpc", method="reload_weights")
    assert answer.status_code == 500
    assert "Model reloading with `dummy` format" in answer.json()["error"]["message"]
    assert ask(engine).status_code == 200


def test_a_request_waits_silently_inside_a_sleeping_engine(plain: RunningEngine) -> None:
    engine = plain
    engine.control("/sleep")
    answer = in_background(lambda: ask(engine))
    until(lambda: metric(engine, "vllm:num_requests_waiting") == 1)
    assert not answer.done()
    engine.control("/wake_up")
    assert answer.result().status_code == 200


def test_sleep_aborts_what_runs(plain: RunningEngine) -> None:
    engine = plain
    answer = in_background(lambda: ask(engine, max_tokens=2000, ignore_eos=True))
    until(lambda: running(engine) == 1)
    engine.control("/sleep?mode=abort")
    assert answer.result().json()["choices"][0]["finish_reason"] == "abort"


def test_sleep_can_wait_for_what_runs(plain: RunningEngine) -> None:
    engine, ledger = plain, plain.ledger
    answer = in_background(lambda: ask(engine, max_tokens=20, ignore_eos=True))
    until(lambda: running(engine) == 1)
    assert engine.control("/sleep?mode=wait").status_code == 200
    assert answer.result().json()["usage"]["completion_tokens"] == 20
    assert ledger.used_bytes(0) == 0


def test_sleep_can_keep_what_runs(plain: RunningEngine) -> None:
    engine = plain
    answer = in_background(lambda: ask(engine, max_tokens=20, ignore_eos=True))
    until(lambda: running(engine) == 1)
    assert engine.control("/sleep?mode=keep").status_code == 200
    assert not answer.done()
    engine.control("/wake_up")
    assert answer.result().json()["usage"]["completion_tokens"] == 20


def test_pause_and_resume(plain: RunningEngine) -> None:
    engine = plain
    assert engine.control("/pause").json() == {"status": "paused"}
    assert engine.http.get("/is_paused").json() == {"is_paused": True}
    assert engine.control("/resume").json() == {"status": "resumed"}
    assert engine.http.get("/is_paused").json() == {"is_paused": False}
    assert ask(engine).status_code == 200


def test_a_wake_without_room_dies_of_cudas_error(start: Start, ledger: Ledger) -> None:
    first = start("org/first-8B", *FLAGS)
    first.control("/sleep")
    second = start("org/second-8B", *FLAGS)
    assert ledger.refusals() == []
    answer = first.control("/wake_up")
    assert answer.status_code == 500
    assert "EngineCore encountered an issue" in answer.json()["error"]["message"]
    assert first.process.wait(10) == 1
    assert "CUDA out of memory. Tried to allocate" in first.log.read_text()
    assert [refusal.pid for refusal in ledger.refusals()] == [first.process.pid]
    assert [usage.pid for usage in ledger.usage(0)] == [second.process.pid]


def test_a_boot_without_room_is_refused_as_vllm_does(start: Start, ledger: Ledger) -> None:
    start("org/first-8B", *FLAGS)
    second = start("org/second-8B", "--gpu-memory-utilization", "0.10", wait=False)
    assert second.process.wait(10) == 1
    said = second.log.read_text()
    assert "Free memory on device cuda:0 (" in said
    assert "is less than desired GPU memory utilization (0.1, 9.60 GiB)" in said
    assert ledger.refusals() == []


def test_a_boot_that_finds_no_room_at_all_dies_of_cudas_error(start: Start, ledger: Ledger) -> None:
    ledger.allocate(0, 95 * GIB)
    engine = start("org/model-8B", wait=False)
    assert engine.process.wait(10) == 1
    assert "CUDA out of memory" in engine.log.read_text()
    assert len(ledger.refusals()) == 1


def test_tensor_parallel_takes_two_gpus(start: Start, ledger: Ledger) -> None:
    engine = start("meta-llama/Llama-3.1-70B-Instruct", "-tp", "2", *FLAGS, CUDA_VISIBLE_DEVICES="0,1")
    assert [ledger.used_bytes(index) for index in (0, 1)] == [SERVING, SERVING]
    engine.control("/sleep?level=2")
    engine.control("/wake_up?tags=weights")
    assert [ledger.used_bytes(index) for index in (0, 1)] == [70_000_000_000 + CONTEXT_BYTES] * 2


def test_more_gpus_than_are_visible_are_refused(start: Start) -> None:
    engine = start("org/model-8B", "--tensor-parallel-size=2", CUDA_VISIBLE_DEVICES="1", wait=False)
    assert engine.process.wait(10) == 1
    assert "World size (2) is larger than the number of available GPUs (1)" in engine.log.read_text()


def test_weights_that_leave_no_cache_are_refused(start: Start) -> None:
    engine = start("org/model-47B", *FLAGS, wait=False)
    assert engine.process.wait(10) == 1
    assert "No available memory for the cache blocks" in engine.log.read_text()


def test_sigterm_ends_it_cleanly(start: Start, ledger: Ledger) -> None:
    engine = start("org/model-8B")
    engine.process.terminate()
    assert engine.process.wait(10) == 0
    assert ledger.used_bytes(0) == 0


def test_control_is_only_there_in_development_mode(start: Start) -> None:
    engine = start("org/model-8B", VLLM_SERVER_DEV_MODE="0")
    for path in ("/sleep", "/wake_up", "/pause", "/resume", "/collective_rpc", "/simulate"):
        assert engine.control(path).status_code == 404
    assert engine.http.get("/is_sleeping").status_code == 404
    assert ask(engine).status_code == 200
