"""The pieces behind the endpoints: sizes of models, tokens, values for schemas, HTTP, and the endpoints SDKs lack."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcluster.engine import tokens
from localcluster.engine.answers import Conversation, Limits, answer
from localcluster.engine.http import Connection, Request, Response
from localcluster.engine.schemas import example
from localcluster.engine.weights import billions, weight_bytes
from tests.parts.localcluster_engine.conftest import RunningEngine

MODEL = "qwen"


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("openai/gpt-oss-20b", 20.9),
        ("meta-llama/Llama-3.1-8B-Instruct", 8),
        ("meta-llama/Llama-3.1-70B-Instruct", 70),
        ("Qwen/Qwen3-4B-Thinking-2507", 4),
        ("Qwen/Qwen3.5-35B-A3B", 35),
        ("moonshotai/Kimi-VL-A3B-Thinking-2506", 16.4),
        ("Qwen/Qwen3-0.6B", 0.6),
        ("mistralai/Mixtral-8x7B-v0.1", 56),
        ("HuggingFaceTB/SmolLM2-360M", 0.36),
        ("/mnt/models/2024/some-model-13b", 13),
        ("sentence-transformers/all-MiniLM-L6-v2", 1),
    ],
)
def test_parameters_by_name(model: str, size: float) -> None:
    assert billions(model) == pytest.approx(size)


def test_weights_by_type() -> None:
    assert weight_bytes("org/m-8B", "bfloat16", "") == 16_000_000_000
    assert weight_bytes("org/m-8B", "float32", "") == 32_000_000_000
    assert weight_bytes("org/m-8B", "auto", "awq") < 5_000_000_000


@given(st.text())
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(tokens.split(text)) == text
    printable = text.encode("utf-8", "replace").decode()
    numbers = tokens.encode(printable)
    assert tokens.decode(numbers) == printable
    assert all(number < 2**53 for number in numbers)


@given(st.text(max_size=50), st.integers(1, 400), st.booleans())
def test_an_answer_keeps_to_its_limit(question: str, most: int, endless: bool) -> None:
    found = answer("m", Conversation(question, question, thinks=True), Limits(most, ignore_eos=endless))
    assert found.generated <= most
    if endless:
        assert (found.generated, found.finish_reason) == (most, "length")


SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"type": "number", "minimum": 2.5, "maximum": 3}, "minItems": 3},
    {"type": "integer", "exclusiveMinimum": 10, "multipleOf": 7},
    {"type": "number", "maximum": -4},
    {"type": "string", "minLength": 12, "maxLength": 14},
    {"type": "string", "format": "date-time"},
    {"enum": ["x", "y"]},
    {"const": 5},
    {"anyOf": [{"type": "null"}, {"type": "string"}]},
    {"type": ["integer", "null"]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
        "value": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}}, "required": ["value"]}}},
    {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"required": ["b"]}], "type": "object"},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    {"type": "array", "maxItems": 0},
    {"type": "object", "required": ["free"]},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_a_value_for_a_schema_is_valid(schema: Any) -> None:
    jsonschema.validate(example(schema), schema)


def test_a_schema_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        example({"$ref": "#"})


# The endpoints that the SDKs do not know


def test_score_and_rerank(shared: RunningEngine) -> None:
    body = {"model": MODEL, "text_1": "a red fox", "text_2": ["a red fox runs", "tax law"]}
    for path in ("/score", "/v1/score"):
        near, far = (item["score"] for item in shared.http.post(path, json=body).json()["data"])
        assert 1 >= near > far >= 0
    ranked = {"model": MODEL, "query": "red fox", "documents": ["tax law", "a red fox", "blue whale"], "top_n": 2}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        results = shared.http.post(path, json=ranked).json()["results"]
        assert results[0]["index"] == 1
        assert len(results) == 2
        assert results[0]["document"]["text"] == "a red fox"


def test_classify_and_pooling(shared: RunningEngine) -> None:
    body = {"model": MODEL, "input": ["one", "two words"]}
    for item in shared.http.post("/classify", json=body).json()["data"]:
        assert sum(item["probs"]) == pytest.approx(1)
        assert item["num_classes"] == 2
    pooled = shared.http.post("/pooling", json=body).json()["data"]
    assert [len(item["data"]) for item in pooled] == [tokens.count("one"), tokens.count("two words")]


def test_tokenize_and_detokenize(shared: RunningEngine) -> None:
    told = shared.http.post("/tokenize", json={"model": MODEL, "prompt": "Grüße 🚀"}).json()
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 4096)
    back = shared.http.post("/detokenize", json={"model": MODEL, "tokens": told["tokens"]}).json()
    assert back == {"prompt": "Grüße 🚀"}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert shared.http.post("/tokenize", json=chat).json()["count"] > 5
    assert shared.http.post("/detokenize", json={"model": MODEL, "tokens": [5]}).status_code == 400


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "chat.completion"),
        ({"prompt": "hi"}, "text_completion"),
        ({"input": "hi"}, "list"),
        ({"text_1": "hi", "text_2": "ho"}, "list"),
    ],
)
def test_invocations_serve_what_the_body_is_made_for(shared: RunningEngine, body: Any, kind: str) -> None:
    assert shared.http.post("/invocations", json=body).json()["object"] == kind


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": []}),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}),
        ("/v1/score", {"text_1": "a"}),
        ("/v1/rerank", {"documents": ["a"]}),
        ("/v1/audio/transcriptions", {"file": "a"}),
        ("/v1/audio/speech", {"input": "a"}),
        ("/v1/responses", {"input": 5}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "alien", "content": "x"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tool_choice": "auto"}),
        ("/v1/completions", {"prompt": {"a": 1}}),
        ("/v1/completions", {"prompt": "x", "max_tokens": "many"}),
        ("/tokenize", {}),
    ],
)
def test_bad_bodies_are_400_in_openais_shape(shared: RunningEngine, path: str, body: Any) -> None:
    answer = shared.http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"]
    if isinstance(error.get("code"), int):
        assert error["code"] == 400


def test_random_bodies_never_break_the_server(shared: RunningEngine) -> None:
    values: list[Any] = [None, True, -1, 1.5, "x", [], {}, [[]], [{}], {"type": []}, ["x", 1]]
    fields = ("messages", "prompt", "input", "tools", "tool_choice", "response_format", "stream_options", "stop", "n")
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"):
        good: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
        for field in fields:
            for value in values:
                answer = shared.http.post(path, json={**good, "max_tokens": 5, field: value})
                assert answer.status_code in (200, 400), (path, field, value)


# HTTP


def raw(engine: RunningEngine, *parts: bytes) -> bytes:
    """What comes back for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_pipelined_requests_are_answered_in_order(shared: RunningEngine) -> None:
    first, last = b"GET /version HTTP/1.1\r\n\r\n", b"GET /is_sleeping HTTP/1.1\r\nConnection: close\r\n\r\n"
    answered = raw(shared, first + last)
    assert answered.index(b"0.32.0") < answered.index(b"is_sleeping")


def test_chunked_bodies_and_expect_continue(shared: RunningEngine) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    answered = raw(shared, head, b'a\r\n{"prompt":\r\n', b'4\r\n"x"}\r\n0\r\n\r\n')
    assert answered.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /tokenize HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
    ],
)
def test_broken_requests_are_refused(shared: RunningEngine, request_bytes: bytes, status: int) -> None:
    assert raw(shared, request_bytes).startswith(b"HTTP/1.1 %d " % status)


def test_keep_alive(shared: RunningEngine) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port)
    for _ in range(3):
        connection.request("GET", "/version")
        assert json.loads(connection.getresponse().read()) == {"version": "0.32.0"}
    connection.close()


async def test_an_idle_connection_is_closed() -> None:
    async def never(_: Request) -> Response:
        raise AssertionError("nobody asks")

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(never, set(), idle_seconds=0), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    assert await reader.read() == b""
    writer.close()
    server.close()
