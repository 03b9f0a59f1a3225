"""What the sidecar and the simulated engine take for granted about vLLM, asked of both the simulated and the real one.

Where vLLM moves on, the real half fails first and says which fact is gone.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from localcluster.engine.memory import CONTEXT_BYTES
from localcluster.engine.metrics import Metrics
from localcluster.gpus.ledger import GIB
from tests.real_vllm.engines import Engine, until
from tests.testbeds import vllm

SERVING = int(96 * GIB * 0.9) + CONTEXT_BYTES
COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 3}
LONG = {"model": "tiny", "prompt": "hello", "max_tokens": 2000, "n": 16, "ignore_eos": True}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def later(engine: Engine, body: dict[str, Any], **options: Any) -> Future[httpx.Response]:
    """A completion, asked for in the background."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(engine.post, "/v1/completions", body, **options)
    finally:
        pool.shutdown(wait=False)


def chunks(engine: Engine, path: str, body: dict[str, Any]) -> list[str]:
    """The lines of a stream."""
    with engine.http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return [line for line in answer.iter_lines() if line]


def data(lines: list[str]) -> list[Any]:
    """The JSON of a stream's data lines."""
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


# Control


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_and_wake(engine: Engine, level: int) -> None:
    assert engine.control(f"/sleep?level={level}") == {"status": "sleeping", "level": level}
    assert (engine.sleeping, engine.paused) == (True, True)
    assert engine.ledger.used_bytes(0) == 0
    assert engine.control("/wake_up") == {"status": "awake", "tags": None}
    assert (engine.sleeping, engine.paused) == (False, False)
    assert engine.ledger.used_bytes(0) == SERVING


def test_the_rest_of_the_api_answers_asleep(engine: Engine) -> None:
    engine.control("/sleep")
    for path in ("/health", "/metrics", "/version", "/v1/models"):
        assert engine.http.get(path).status_code == 200
    assert engine.metric("vllm:engine_sleep_state", sleep_state="weights_offloaded") == 1


def test_sleeping_twice_and_waking_twice_is_harmless(engine: Engine) -> None:
    assert [engine.control("/sleep")["status"] for _ in range(2)] == ["sleeping"] * 2
    assert [engine.control("/wake_up")["status"] for _ in range(2)] == ["awake"] * 2
    assert engine.ledger.used_bytes(0) == SERVING


def test_a_partial_wake_reports_sleeping_until_every_tag_is_awake(engine: Engine) -> None:
    engine.control("/sleep?level=2")
    sleeping = {"status": "sleeping", "tags": ["weights"]}
    assert engine.control("/wake_up?tags=weights") == sleeping
    assert (engine.sleeping, engine.paused) == (True, True)
    assert 0 < engine.ledger.used_bytes(0) < SERVING
    # Tags that are not asleep change nothing.
    assert engine.control("/wake_up?tags=weights") == sleeping
    assert engine.control("/wake_up?tags=nonsense") == {"status": "sleeping", "tags": ["nonsense"]}
    assert engine.control("/wake_up?tags=scheduling") == {"status": "sleeping", "tags": ["scheduling"]}
    assert engine.control("/collective_rpc", {"method": "reload_weights"}) == {"results": [None]}
    assert engine.control("/wake_up?tags=kv_cache") == {"status": "awake", "tags": ["kv_cache"]}
    assert not engine.sleeping


def test_tags_can_be_repeated(engine: Engine) -> None:
    engine.control("/sleep")
    tags = ["weights", "kv_cache"]
    assert engine.control("/wake_up?tags=weights&tags=kv_cache") == {"status": "awake", "tags": tags}


def test_level_0_pauses_only(engine: Engine) -> None:
    assert engine.control("/sleep?level=0") == {"status": "sleeping", "level": 0}
    assert (engine.sleeping, engine.paused) == (True, True)
    assert engine.ledger.used_bytes(0) == SERVING
    assert engine.control("/wake_up?tags=scheduling") == {"status": "awake", "tags": ["scheduling"]}
    assert not engine.sleeping


def test_pause_and_resume(engine: Engine) -> None:
    assert engine.control("/pause") == {"status": "paused"}
    assert (engine.sleeping, engine.paused) == (True, True)
    assert engine.control("/resume") == {"status": "resumed"}
    assert (engine.sleeping, engine.paused) == (False, False)


def test_resume_does_not_wake(engine: Engine) -> None:
    engine.control("/sleep")
    engine.control("/resume")
    assert (engine.sleeping, engine.paused) == (True, False)


@pytest.mark.parametrize(
    ("path", "message", "param"),
    [
        (
            "/sleep?level=3",
            "1 validation error:\n  {'type': 'less_than_equal', 'loc': 'query.level', 'msg': 'Input should be "
            "less than or "
            "equal to 2', 'input': '3', 'ctx': {'le': 2}}",
            "query.level",
        ),
        (
            "/sleep?level=-1",
            "1 validation error:\n  {'type': 'greater_than_equal', 'loc': 'query.level', 'msg': 'Input should be "
            "greater "
            "than or equal to 0', 'input': '-1', 'ctx': {'ge': 0}}",
            "query.level",
        ),
        (
            "/sleep?level=x",
            "1 validation error:\n  {'type': 'int_parsing', 'loc': 'query.level', 'msg': 'Input should be a "
            "valid integer, "
            "unable to parse string as an integer', 'input': 'x'}",
            "query.level",
        ),
        (
            "/sleep?mode=foo",
            "1 validation error:\n  {'type': 'literal_error', 'loc': 'query.mode', 'msg': \"Input should be 'abort', "
            "'wait' or 'keep'\", 'input': 'foo', 'ctx': {'expected': \"'abort', 'wait' or 'keep'\"}}",
            "query.mode",
        ),
    ],
)
def test_a_bad_level_or_mode_is_refused(engine: Engine, path: str, message: str, param: str) -> None:
    answer = engine.post(path)
    assert answer.status_code == 400
    assert answer.json() == {"error": {"message": message, "type": "Bad Request", "param": param, "code": 400}}
    assert not engine.sleeping


@pytest.mark.parametrize(
    ("body", "status"), [(b"x", 400), (b"[]", 400), (b"{}", 400), (b'{"method":"no_such_thing"}', 500)]
)
def test_a_bad_rpc_is_refused(engine: Engine, body: bytes, status: int) -> None:
    answer = engine.http.post("/collective_rpc", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status


def test_a_wrong_method_or_path(engine: Engine) -> None:
    assert engine.http.get("/sleep").status_code == 405
    assert engine.post("/is_sleeping").json() == {"detail": "Method Not Allowed"}
    assert engine.http.get("/no/such/path").json() == {"detail": "Not Found"}


# Requests and sleep


def test_a_request_waits_silently_inside_a_sleeping_engine(engine: Engine) -> None:
    engine.control("/sleep")
    answer = later(engine, COMPLETION)
    # Nothing tells from outside that it is there: no answer, and a sleeping engine's metrics stand still.
    with pytest.raises(TimeoutError):
        answer.result(timeout=1)
    engine.control("/wake_up")
    assert answer.result().json()["usage"]["completion_tokens"] == 3


def test_a_stream_for_a_sleeping_engine_has_its_headers_at_once(engine: Engine) -> None:
    engine.control("/sleep")
    with engine.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        # So a status tells nothing about whether the engine is awake.
        assert answer.status_code == 200
        engine.control("/wake_up")
        assert list(answer.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_sleep_aborts_what_runs(engine: Engine) -> None:
    answer = later(engine, LONG)
    until(lambda: engine.metric("vllm:num_requests_running") > 0)
    engine.control("/sleep?mode=abort")
    assert {choice["finish_reason"] for choice in answer.result().json()["choices"]} == {"abort"}


def test_sleep_can_wait_for_what_runs(engine: Engine) -> None:
    answer = later(engine, {**LONG, "max_tokens": 200})
    until(lambda: engine.metric("vllm:num_requests_running") > 0)
    engine.control("/sleep?mode=wait")
    assert {choice["finish_reason"] for choice in answer.result().json()["choices"]} == {"length"}


def test_a_client_that_leaves_aborts_its_request(engine: Engine) -> None:
    before = engine.metric("vllm:generation_tokens_total")
    with engine.http.stream("POST", "/v1/completions", json={**LONG, "n": 1, "stream": True}) as answer:
        next(answer.iter_lines())
    # The metrics move with the next request only.
    engine.post("/v1/completions", COMPLETION)
    until(lambda: engine.metric("vllm:num_requests_running") == 0)
    assert engine.metric("vllm:generation_tokens_total") < before + 2000


# What clients see


def test_models(engine: Engine) -> None:
    cards = engine.http.get("/v1/models").json()["data"]
    assert [(card["id"], card["max_model_len"], card["owned_by"]) for card in cards] == [
        ("tiny", 2048, "vllm"),
        ("alias", 2048, "vllm"),
    ]


def test_chat(engine: Engine) -> None:
    answer = engine.post("/v1/chat/completions", CHAT).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice.keys() >= {"index", "message", "logprobs", "finish_reason", "stop_reason"}
    assert choice["message"].keys() == {
        *("role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"),
    }
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


def test_chat_stream(engine: Engine) -> None:
    lines = chunks(engine, "/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    assert lines[-1] == "data: [DONE]"
    first, *middle, last = data(lines)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in middle] == [None, None, "length"]
    assert last["choices"] == []
    assert last["usage"].keys() >= {"prompt_tokens", "completion_tokens", "total_tokens"}


def test_completion_stream(engine: Engine) -> None:
    lines = chunks(engine, "/v1/completions", COMPLETION)
    assert lines[-1] == "data: [DONE]"
    assert [chunk["choices"][0]["finish_reason"] for chunk in data(lines)] == [None, None, "length"]


def test_responses(engine: Engine) -> None:
    body = {"model": "tiny", "input": "hello", "max_output_tokens": 3}
    answer = engine.post("/v1/responses", body).json()
    assert (answer["object"], answer["status"]) == ("response", "incomplete")
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["content"][0].keys() >= {"annotations", "text", "type", "logprobs"}
    lines = chunks(engine, "/v1/responses", body)
    names = [line[7:] for line in lines if line.startswith("event: ")]
    assert list(dict.fromkeys(names)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in data(lines)] == list(range(len(names)))


def test_messages(engine: Engine) -> None:
    answer = engine.post("/v1/messages", CHAT).json()
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert [block["type"] for block in answer["content"]] == ["text"]
    lines = chunks(engine, "/v1/messages", CHAT)
    names = [line[7:] for line in lines if line.startswith("event: ")]
    assert list(dict.fromkeys(names)) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [event["type"] for event in data(lines)] == names
    counted = engine.post("/v1/messages/count_tokens", CHAT).json()
    assert counted["input_tokens"] == answer["usage"]["input_tokens"]


def test_tokenize_and_back(engine: Engine) -> None:
    answer = engine.post("/tokenize", {"model": "tiny", "prompt": "hello world", "return_token_strs": True}).json()
    assert answer.keys() == {"count", "max_model_len", "tokens", "token_strs"}
    assert answer["count"] == len(answer["tokens"])
    back = engine.post("/detokenize", {"model": "tiny", "tokens": answer["tokens"]}).json()
    assert back == {"prompt": "hello world"}


_MISSING = (
    "1 validation error:\n  {'type': 'missing', 'loc': 'body.%s', 'msg': 'Field required', 'input': "
    "'<dict of %d items>'}"
)
_USER = [{"role": "user", "content": "hello"}]
ERRORS: list[tuple[str, Any, int, str, str | None, str]] = [
    ("chat/completions", {**CHAT, "model": "nobody"}, 404, "NotFoundError", "model",
     "The model `nobody` does not exist. Valid aliases: tiny, alias."),
    ("chat/completions", {"model": "tiny"}, 400, "Bad Request", "body.messages", _MISSING % ("messages", 1)),
    ("chat/completions", {"model": "tiny", "messages": []}, 400, "BadRequestError", None,
     "Cannot apply chat template to an empty conversation. Provide at least one message."),
    ("chat/completions", {"model": "tiny", "messages": "x"}, 400, "Bad Request", "body.messages",
     "1 validation error:\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'Input should be a valid list', "
     "'input': 'x'}"),
    ("chat/completions", [], 400, "Bad Request", "body",
     "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a "
     "valid dictionary or "
     "object to extract fields from', 'input': '<list of 0 items>'}"),
    ("chat/completions", {**CHAT, "max_tokens": 5000}, 400, "BadRequestError", "max_tokens",
     "max_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer output tokens. "
     "(parameter=max_tokens, "
     "value=5000)"),
    ("chat/completions", {**CHAT, "max_tokens": 0}, 400, "BadRequestError", "max_tokens",
     "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
    ("chat/completions", {**CHAT, "temperature": -1}, 400, "BadRequestError", "temperature",
     "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)"),
    ("chat/completions", {**CHAT, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, 400,
     "BadRequestError", None, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
    ("completions", {"model": "tiny", "max_tokens": 3}, 400, "BadRequestError", "prompt",
     "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"),
    ("completions", {**COMPLETION, "prompt": "hello world " * 3000}, 400, "BadRequestError", "input_tokens",
     "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 "
     "input tokens, which "
     "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
     "(parameter=input_tokens, value=2049)"),
    ("responses", {"model": "nobody", "input": "hello"}, 404, "NotFoundError", "model",
     "The model `nobody` does not exist. Valid aliases: tiny, alias."),
    ("messages", {"model": "tiny", "messages": _USER}, 400, "Bad Request", "body.max_tokens",
     _MISSING % ("max_tokens", 2)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "kind", "param", "message"), ERRORS)
def test_errors(engine: Engine, path: str, body: Any, status: int, kind: str, param: str | None, message: str) -> None:
    answer = engine.post(f"/v1/{path}", body)
    assert answer.status_code == status
    assert answer.json() == {"error": {"message": message, "type": kind, "param": param, "code": status}}


def test_text_that_is_no_json_is_refused(engine: Engine) -> None:
    headers = {"content-type": "application/json"}
    answer = engine.http.post("/v1/chat/completions", content=b"not json", headers=headers)
    assert answer.status_code == 400
    assert "JSON decode error" in answer.json()["error"]["message"]


def test_an_unknown_model_in_anthropics_shape(engine: Engine) -> None:
    answer = engine.post("/v1/messages", {**CHAT, "model": "nobody"})
    assert answer.status_code == 404
    message = "The model `nobody` does not exist. Valid aliases: tiny, alias."
    assert answer.json() == {"type": "error", "error": {"type": "NotFoundError", "message": message}}


def test_metrics_have_the_names_that_dashboards_use(engine: Engine) -> None:
    engine.post("/v1/completions", COMPLETION)
    simulated = {line.split()[2] for line in Metrics("any").text("awake").splitlines() if line.startswith("# TYPE")}
    shown = {line.split()[2] for line in engine.http.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    assert simulated - shown == set()
    assert {"vllm:e2e_request_latency_seconds", "vllm:kv_cache_usage_perc", "vllm:num_requests_waiting"} <= shown


@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_options_are_those_of_vllms_own_parser() -> None:
    assert vllm.flags() == vllm.FLAGS.read_text()
