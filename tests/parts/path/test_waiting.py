"""Requests that wait, on the whole path and with the unmodified SDKs: heartbeat, terms, and what answers say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from tests.parts.path.world import MODEL, Path, path
from tests.unit.proxy.harness import Answer, Client, Upstream, until

MESSAGES: Any = [{"role": "user", "content": "who?"}]


def chunks(*events: bytes) -> bytes:
    body = b"".join(events)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def data(value: Any, event: str = "") -> bytes:
    return (f"event: {event}\n" if event else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


def chat_stream(body: bytes) -> bytes:
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    words = [{**chunk, "choices": [{"index": 0, "delta": {"content": word}}]} for word in ("I ", "stream")]
    return chunks(*map(data, words), b"data: [DONE]\n\n")


def completion_stream(body: bytes) -> bytes:
    value = {"id": "x", "object": "text_completion", "created": 1, "model": MODEL}
    words = [{**value, "choices": [{"index": 0, "text": word, "finish_reason": None}]} for word in ("I ", "stream")]
    return chunks(*map(data, words), b"data: [DONE]\n\n")


def responses_stream(body: bytes) -> bytes:
    kind = "response.output_text.delta"
    about = {"type": kind, "item_id": "i", "output_index": 0, "content_index": 0, "logprobs": []}
    events = [data({**about, "sequence_number": n, "delta": word}, kind) for n, word in enumerate(("I ", "stream"))]
    return chunks(*events)


def messages_stream(body: bytes) -> bytes:
    message = {
        "id": "m", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        start,
        *({**delta, "delta": {"type": "text_delta", "text": word}} for word in ("I ", "stream")),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_stop"},
    ]
    return chunks(*(data(event, event["type"]) for event in events))


STREAMS: dict[bytes, Callable[[bytes], bytes]] = {
    b"/v1/chat/completions": chat_stream,
    b"/v1/completions": completion_stream,
    b"/v1/responses": responses_stream,
    b"/v1/messages": messages_stream,
}


async def engine(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each API's stream."""
    while True:
        head, body = await upstream.read_request(reader)
        writer.write(STREAMS[head.split(b" ")[1]](body))


async def refusing(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers 400 in the API's own shape."""
    while True:
        head, _ = await upstream.read_request(reader)
        error = {"message": "the prompt is too long", "type": "invalid_request_error"}
        body = json.dumps({"type": "error", "error": error} if b"/messages" in head else {"error": error}).encode()
        head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)


WAYS = ["the sidecar", "the gateway, by model", "the gateway"]


@asynccontextmanager
async def sdks(p: Path, way: str) -> Any:
    port, prefix = p.ports()[way]
    url = f"http://127.0.0.1:{port}{prefix}"
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as gpt,
        anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as claude,
    ):
        yield gpt, claude


async def _chat(gpt: Any, claude: Any) -> str:
    stream = await gpt.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def _completion(gpt: Any, claude: Any) -> str:
    stream = await gpt.completions.create(model=MODEL, prompt="who?", stream=True)
    return "".join([chunk.choices[0].text async for chunk in stream])


async def _response(gpt: Any, claude: Any) -> str:
    stream = await gpt.responses.create(model=MODEL, input="who?", stream=True)
    return "".join([event.delta async for event in stream])


async def _messages(gpt: Any, claude: Any) -> str:
    text = ""
    async with claude.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=9) as stream:
        async for word in stream.text_stream:
            text += word
    return text


CALLS = {"chat": _chat, "completions": _completion, "responses": _response, "messages": _messages}


async def _beats(p: Path, count: int) -> None:
    """Lets the heartbeat beat."""
    await until(lambda: p.door.waiting == 1)
    await asyncio.sleep(count * 0.02)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("call", CALLS)
async def test_the_sdks_skip_the_heartbeat(call: str, way: str) -> None:
    async with path(engine, awake=False, heartbeat=0.02) as p, sdks(p, way) as clients:
        asking = asyncio.create_task(CALLS[call](*clients))
        await _beats(p, 4)
        p.door.open()
        assert await asking == "I stream"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("call", CALLS)
async def test_the_sdks_raise_what_went_wrong_after_it(call: str, way: str) -> None:
    async with path(refusing, awake=False, heartbeat=0.02) as p, sdks(p, way) as clients:
        for end, words in (
            (lambda: p.door.turn_away("the model could not wake: out of memory"), "out of memory"),
            (p.door.open, "the prompt is too long"),
        ):
            asking = asyncio.create_task(CALLS[call](*clients))
            await _beats(p, 3)
            end()
            with pytest.raises((openai.APIError, anthropic.APIError), match=words):
                await asking


def ask(target: str, value: Any, extra: str = "") -> bytes:
    body = json.dumps({"model": MODEL, **value}).encode()
    return f"POST {target} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def waiting(p: Path, way: str, value: Any, extra: str = "") -> Client:
    """A client whose request waits at the door."""
    port, prefix = p.ports()[way]
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    p.gateway.clients.append(client)
    await client.send(ask(f"{prefix}/v1/chat/completions", value, extra))
    await until(lambda: p.door.waiting == 1 or bool(client.reader._buffer))  # type: ignore[attr-defined]
    return client


@pytest.mark.parametrize("way", WAYS)
async def test_one_head_one_stream_and_the_state(way: str) -> None:
    """Beats of the sidecar only: the gateway passes them on, and what follows."""
    async with path(engine, awake=False, heartbeat=0.02) as p:
        client = await waiting(p, way, {"stream": True})
        await _beats(p, 3)
        p.door.open()
        answer = await client.answer()
        assert (answer.status, answer.complete) == (200, True)
        assert answer.headers["x-greenthread-state"] == "sleeping"
        assert answer.body.count(b": waking\n\n") >= 2
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b"HTTP/1.1" not in answer.body


@pytest.mark.parametrize("way", WAYS)
async def test_max_wait_is_a_503_that_says_why(way: str) -> None:
    async with path(awake=False, heartbeat=0) as p:
        p.door.retry_after = lambda: 7.0
        began = asyncio.get_running_loop().time()
        answer = await (await waiting(p, way, {"stream": True}, "X-GreenThread-Max-Wait: 100ms\r\n")).answer()
        assert 0.09 < asyncio.get_running_loop().time() - began < 5
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert answer.headers["x-greenthread-state"] == "sleeping"
        assert answer.headers["server-timing"].startswith("queue;dur=1")
        error = json.loads(answer.body)["error"]
        assert error["message"] == "X-GreenThread-Max-Wait allows 100ms; llama needs 20.0G on n/0, where 1.0G is free"
        assert p.engine.requests == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "field", ["X-GreenThread-Max-Wait: soon", "X-GreenThread-Preempt: maybe", "X-GreenThread-Heartbeat: 1"]
)
async def test_malformed_terms_are_400(field: str, way: str) -> None:
    async with path() as p:
        answer: Answer = await (await waiting(p, way, {}, field + "\r\n")).answer()
        assert answer.status == 400
        assert field.partition(":")[0] in json.loads(answer.body)["error"]["message"]
        assert p.engine.requests == []


@pytest.mark.parametrize("way", WAYS)
async def test_preempt_never_reaches_the_door(way: str) -> None:
    async with path(awake=False) as p:
        await waiting(p, way, {}, "X-GreenThread-Preempt: never\r\n")
        assert p.door.asked is not None
        assert not p.door.asked.preempts


@pytest.mark.parametrize("way", WAYS)
async def test_an_awake_model_says_so(way: str) -> None:
    async with path(engine) as p:
        answer = await (await waiting(p, way, {})).answer()
        assert answer.headers["x-greenthread-state"] == "serving"
        assert answer.headers["server-timing"] == "queue;dur=0, wake;dur=0"


async def test_max_wait_counts_at_the_gateway_too() -> None:
    async with path(awake=False, heartbeat=0) as p:
        await p.gateway.remove_slice(MODEL)
        client = Client(*await asyncio.open_connection("127.0.0.1", p.gateway_port))
        p.gateway.clients.append(client)
        began = asyncio.get_running_loop().time()
        await client.send(ask("/v1/chat/completions", {}, "X-GreenThread-Max-Wait: 300ms\r\n"))
        await asyncio.sleep(0.15)
        await p.gateway.slice(MODEL, f"{MODEL}-0", p.sidecar_port)
        answer = await client.answer()
        assert answer.status == 503
        assert "llama needs 20.0G" in answer.body.decode(), "it came to the sidecar, which let it wait for the rest"
        assert asyncio.get_running_loop().time() - began < 0.45


async def test_no_pod_within_max_wait() -> None:
    async with path() as p:
        await p.gateway.remove_slice(MODEL)
        answer = await p.gateway.ask(ask("/v1/chat/completions", {}, "X-GreenThread-Max-Wait: 50ms\r\n"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "X-GreenThread-Max-Wait allows 50ms" in answer.body.decode()


async def test_the_gateway_beats_while_there_is_no_pod_and_the_answer_goes_on_in_its_stream() -> None:
    async with path(engine, awake=False, heartbeat=0.02) as p:
        await p.gateway.remove_slice(MODEL)
        client = Client(*await asyncio.open_connection("127.0.0.1", p.gateway_port))
        p.gateway.clients.append(client)
        await client.send(ask("/v1/chat/completions", {"stream": True}))
        await asyncio.sleep(0.1)
        await p.gateway.slice(MODEL, f"{MODEL}-0", p.sidecar_port)
        await _beats(p, 4)
        p.door.open()
        answer = await client.answer()
        assert (answer.status, answer.complete) == (200, True)
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b"HTTP/1.1" not in answer.body


async def test_a_pod_that_goes_away_hands_a_waiting_stream_to_the_next() -> None:
    async with path(engine, awake=False, heartbeat=0.02) as old, path(engine) as new:
        client = await waiting(old, "the gateway", {"stream": True})
        await _beats(old, 4)
        await old.gateway.slice(MODEL, f"{MODEL}-1", new.sidecar_port)
        old.door.close_for_good("this replica is going away")
        answer = await client.answer()
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.body.count(b": waking\n\n") >= 2
        assert (len(old.engine.requests), len(new.engine.requests)) == (0, 1)
