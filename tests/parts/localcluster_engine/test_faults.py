"""Faults on order, disconnecting clients, and the record of what ran."""

from __future__ import annotations

import signal
import time

import httpx
import pytest

from localcluster.engine.faults import ControlFaults, Fault, request_fault
from localcluster.gpus.ledger import Ledger
from tests.parts.localcluster_engine.conftest import RunningEngine, Start
from tests.parts.localcluster_engine.test_control import ask, in_background, metric, running, until

pytestmark = pytest.mark.processes
BODY = {"prompt": "Once", "max_tokens": 8}


def faulty(engine: RunningEngine, fault: str, **body: object) -> httpx.Response:
    return engine.http.post("/v1/completions", json={**BODY, **body}, headers={"X-Simulate": fault})


def broken_stream(engine: RunningEngine) -> list[str]:
    """The lines of a stream that breaks off."""
    got: list[str] = []
    body = {**BODY, "stream": True}
    try:
        with engine.http.stream("POST", "/v1/completions", json=body, headers={"X-Simulate": "break-stream"}) as stream:
            got.extend(stream.iter_lines())
    except httpx.RemoteProtocolError:
        return got
    raise AssertionError("the stream came to an end")


def test_request_faults(start: Start) -> None:
    engine = start("org/model-8B")
    assert faulty(engine, "status=503").status_code == 503
    assert faulty(engine, "garbage").json()["choices"][0]["text"] == "!" * 8
    began = time.monotonic()
    assert faulty(engine, "slow=300ms").status_code == 200
    assert time.monotonic() - began >= 0.3
    with pytest.raises(httpx.RemoteProtocolError):
        faulty(engine, "break-stream")
    got = broken_stream(engine)
    assert any("data:" in line for line in got)
    assert not any("[DONE]" in line for line in got)
    with pytest.raises(httpx.ReadTimeout):
        engine.http.post("/v1/completions", json=BODY, headers={"X-Simulate": "hang"}, timeout=0.3)
    refused = faulty(engine, "explode")
    assert refused.status_code == 400
    assert "write slow=2s, crash" in refused.json()["error"]["message"]
    with pytest.raises(httpx.RemoteProtocolError):
        faulty(engine, "crash")
    assert engine.process.wait(10) == -signal.SIGKILL


def test_control_faults(start: Start, ledger: Ledger) -> None:
    engine = start("org/model-8B")
    assert engine.control("/simulate", sleep="fail", wake="fail", times=2).json() == {
        "wake": {"fault": "fail", "times": 2},
        "sleep": {"fault": "fail", "times": 2},
    }
    assert [engine.control("/sleep").status_code for _ in range(3)] == [500, 500, 200]
    assert [engine.control("/wake_up").status_code for _ in range(3)] == [500, 500, 200]
    engine.control("/simulate", wake="slow:300ms")
    engine.control("/sleep")
    began = time.monotonic()
    assert engine.control("/wake_up").status_code == 200
    assert time.monotonic() - began >= 0.3
    engine.control("/sleep")
    engine.control("/simulate", wake="hang")
    with pytest.raises(httpx.ReadTimeout):
        engine.http.post("/wake_up", timeout=0.3)
    assert ledger.used_bytes(0) == 0
    assert engine.http.get("/is_sleeping").json() == {"is_sleeping": True}


def test_a_crash_while_waking(start: Start, ledger: Ledger) -> None:
    engine = start("org/model-8B")
    engine.control("/sleep")
    engine.control("/simulate", wake="crash")
    with pytest.raises(httpx.RemoteProtocolError):
        engine.control("/wake_up")
    assert engine.process.wait(10) == -signal.SIGKILL
    assert ledger.usage(0) == []


@pytest.mark.parametrize(("fault", "status"), [("boot=fail", 1), ("boot=crash", -signal.SIGKILL)])
def test_boot_faults(start: Start, fault: str, status: int) -> None:
    engine = start("org/model-8B", wait=False, GREENTHREAD_SIM_FAULTS=fault)
    assert engine.process.wait(10) == status


def test_bad_settings_are_named(start: Start) -> None:
    engine = start("org/model-8B", wait=False, GREENTHREAD_SIM_LINK_GBPS="fast")
    assert engine.process.wait(10) == 1
    assert "GREENTHREAD_SIM_LINK_GBPS='fast'" in engine.log.read_text()
    assert "Traceback" not in engine.log.read_text()


@pytest.mark.parametrize("body", [[], {"boot": "fail"}, {"wake": "explode"}, {"wake": "fail", "times": 0}])
def test_bad_orders_are_refused(body: object) -> None:
    with pytest.raises(ValueError):
        ControlFaults().order(body)


def test_orders_are_read() -> None:
    assert request_fault("") is None
    assert request_fault("slow=1m30s") == Fault("slow", seconds=90)
    with pytest.raises(ValueError):
        request_fault("status=200")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_its_request(plain: RunningEngine, stream: bool) -> None:
    engine, request_id = plain, f"left-{stream}"
    before = metric(engine, "vllm:request_success_total", finished_reason="abort")
    body = {**BODY, "max_tokens": 5000, "ignore_eos": True, "stream": stream}
    url = f"{engine.url}/v1/completions"
    with httpx.Client(trust_env=False, verify=False) as client:
        try:
            with client.stream("POST", url, json=body, headers={"X-Request-Id": request_id}, timeout=0.3) as answer:
                next(answer.iter_lines())
        except httpx.ReadTimeout:
            assert not stream
    until(lambda: metric(engine, "vllm:request_success_total", finished_reason="abort") == before + 1)
    assert running(engine) == 0
    assert [record.outcome for record in engine.ledger.requests(request_id)] == ["aborted"]


def test_requests_are_recorded_once_by_their_id(plain: RunningEngine) -> None:
    engine = plain
    for number in range(3):
        engine.http.post("/v1/completions", json=BODY, headers={"X-Request-Id": f"r{number}"})
    records = [record for number in range(3) for record in engine.ledger.requests(f"r{number}")]
    assert [(record.request_id, record.outcome) for record in records] == [("r0", "ok"), ("r1", "ok"), ("r2", "ok")]
    assert {record.pid for record in records} == {engine.process.pid}


def test_load_shows_while_requests_run(plain: RunningEngine) -> None:
    engine, ledger = plain, plain.ledger
    answer = in_background(lambda: ask(engine, max_tokens=30, ignore_eos=True))
    until(lambda: ledger.in_flight(0) == 1)
    answer.result()
    until(lambda: ledger.in_flight(0) == 0)


def test_metrics_count(start: Start) -> None:
    engine = start("org/model-8B")
    ask(engine)
    assert metric(engine, "vllm:generation_tokens_total", model_name="org/model-8B") == 5
    assert metric(engine, "vllm:prompt_tokens_total") == 1
    assert metric(engine, "vllm:request_success_total", finished_reason="length") == 1
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
    ):
        assert metric(engine, f"vllm:{name}_count") >= 1
    assert metric(engine, "vllm:engine_sleep_state", sleep_state="awake") == 1
    engine.control("/sleep")
    assert metric(engine, "vllm:engine_sleep_state", sleep_state="weights_offloaded") == 1
