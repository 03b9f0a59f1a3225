"""Streaming requests that wait: comments so that nobody cuts them, and the answer or an error on the same stream."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy import Outcome, Refuse, Settings
from proxy.heartbeat import BEAT, NOT_RUN, asks_for_stream, chunk
from tests.unit.proxy.harness import Client, FakeGate, Rig, Script, Upstream, answers, post, rig, until

SOON = Settings(heartbeat=0.01)
STREAM = b'{"messages":[],"stream":true}'
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"

EVENTS = b"data: one\n\ndata: [DONE]\n\n"
CHUNKED_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)
)
PLAIN_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (
    len(EVENTS),
    EVENTS,
)
ENDED_BY_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS


def answer_of(status: str, body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
    return head % (status.encode(), more, len(body)) + body


async def wait_for_beats(client: Client, count: int = 2) -> bytes:
    """The head, and at least `count` comments; what was read stays to be read as the answer."""
    while client._rest.count(BEAT) < count:
        data = await client.reader.read(65536)
        assert data, client._rest
        client._rest += data
    return client._rest.partition(b"\r\n\r\n")[0]


async def begin(r: Rig, gate: FakeGate, data: bytes) -> Client:
    """A request that waits, with its heartbeat begun."""
    client = await r.client()
    await client.send(data)
    await gate.asked.wait()
    await wait_for_beats(client)
    return client


def error_of(body: bytes) -> dict[str, object]:
    """The error event at the end of a stream: nothing but comments came before."""
    beats, _, event = body.partition(b"data: ")
    assert beats.replace(b": waking\n\n", b"").replace(b"event: error\n", b"") == b""
    return dict(json.loads(event))


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(
    "script",
    [answers(CHUNKED_STREAM), answers(PLAIN_STREAM), answers(ENDED_BY_CLOSE, close=True)],
    ids=["chunked", "a length", "ended by close"],
)
async def test_comments_while_it_waits_and_then_the_answer(script: Script, path: str) -> None:
    gate = FakeGate(open_=False)
    async with rig(script, gate, SOON) as r:
        client = await begin(r, gate, post(STREAM, path))
        gate.waiting[0].set_result(None)
        answer = await client.answer()
        assert (answer.status, answer.complete) == (200, True)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-greenthread-heartbeat"] == "10ms"
        assert answer.body.endswith(EVENTS)
        assert answer.body.removesuffix(EVENTS).replace(b": waking\n\n", b"") == b""
        assert gate.left == [(Outcome.SUCCESS, 200)]
        gate.open = True
        assert (await client.ask(post(STREAM, path))).body == EVENTS, "the connection goes on"


async def test_it_begins_after_the_silence_that_is_set() -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate, settings=Settings(heartbeat=0.2)) as r:
        client = await r.client()
        await client.send(post(STREAM, CHAT))
        await gate.asked.wait()
        began = r.server.loop.time()
        await wait_for_beats(client, 3)
        assert 0.55 < r.server.loop.time() - began < 2


QUIET = [
    ("not streaming", post(b'{"stream":false}', CHAT), SOON),
    ("streaming in words only", post(b'{"prompt":"\\"stream\\":true"}', CHAT), SOON),
    ("streaming somewhere inside", post(b'{"a":{"stream":true}}', CHAT), SOON),
    ("malformed", post(b'{"stream":true', CHAT), SOON),
    ("no such path", post(STREAM), SOON),
    ("asked not to", post(STREAM, CHAT, b"X-GreenThread-Heartbeat: off\r\n"), SOON),
    ("set off", post(STREAM, CHAT), Settings(heartbeat=0)),
    ("HTTP/1.0", post(STREAM, CHAT).replace(b"HTTP/1.1", b"HTTP/1.0"), SOON),
]


@pytest.mark.parametrize(("data", "settings"), [pytest.param(d, s, id=w) for w, d, s in QUIET])
async def test_no_heartbeat(data: bytes, settings: Settings) -> None:
    """The answer keeps its own status and head."""
    gate = FakeGate(open_=False)
    async with rig(gate=gate, settings=settings) as r:
        client = await r.client()
        await client.send(data)
        await gate.asked.wait()
        await asyncio.sleep(0.05)
        gate.waiting[0].set_exception(Refuse(503, "No room.", 2, "no_room"))
        answer = await client.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")


async def test_a_request_that_is_let_in_at_once_has_no_heartbeat() -> None:
    async with rig(answers(CHUNKED_STREAM), FakeGate(), SOON) as r:
        answer = await r.ask(post(STREAM, CHAT))
        assert (answer.body, "x-greenthread-heartbeat" in answer.headers) == (EVENTS, False)


async def test_a_refusal_is_an_error_event_in_the_apis_shape() -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate, settings=SOON) as r:
        for path, event in ((CHAT, b""), (MESSAGES, b"event: error\n")):
            gate.asked.clear()
            client = await begin(r, gate, post(STREAM, path))
            gate.waiting[-1].set_exception(Refuse(503, "Held by b.", 2.3, "no_room"))
            answer = await client.answer()
            assert (answer.status, answer.complete) == (200, True)
            assert event + b"data: " in answer.body
            said = error_of(answer.body)["error"]
            assert isinstance(said, dict)
            assert (said["message"], said.get("code", "no_room")) == ("Held by b.", "no_room")
            assert r.finished[-1].status == 503, "metrics count what it was"


ERROR = b'{"error":{"message":"too\\nlong","type":"BadRequestError","param":null,"code":400}}'


@pytest.mark.parametrize(
    ("answer", "message", "status"),
    [
        (answer_of("400 Bad Request", ERROR), "too\nlong", 400),
        (
            b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
            % (len(ERROR), ERROR),
            "too\nlong",
            400,
        ),
        (answer_of("500 Internal Server Error", b"oops"), "The engine answered with status 500.", 500),
        (answer_of("200 OK", b'{"choices":[]}'), "The engine did not answer with a stream.", 200),
        (answer_of("404 Not Found", b"x" * 100_000), "The engine answered with status 404.", 404),
        (answer_of("204 No Content", b""), "The engine did not answer with a stream.", 204),
    ],
)
async def test_an_answer_that_is_no_stream_becomes_an_error_event(answer: bytes, message: str, status: int) -> None:
    gate = FakeGate(open_=False)
    async with rig(answers(answer), gate, SOON) as r:
        client = await begin(r, gate, post(STREAM, CHAT))
        gate.waiting[0].set_result(None)
        got = await client.answer()
        assert got.complete
        assert error_of(got.body)["error"]["message"] == message  # type: ignore[index]
        assert gate.left == [(Outcome.SUCCESS, status)]


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf", b"nonsense\r\n\r\n"])
async def test_an_engine_that_fails_before_its_stream_is_an_error_event(begun: bytes) -> None:
    gate = FakeGate(open_=False)
    async with rig(answers(begun, close=True), gate, SOON) as r:
        client = await begin(r, gate, post(STREAM, CHAT))
        gate.waiting[0].set_result(None)
        got = await client.answer()
        assert got.complete
        assert error_of(got.body)["error"]["code"] == "upstream_error"  # type: ignore[index]
        assert gate.left[0][0] is Outcome.UPSTREAM_ERROR


async def test_an_engine_that_cannot_be_reached_is_an_error_event() -> None:
    gate = FakeGate(open_=False)
    gate.on_enter = lambda exchange: setattr(exchange, "upstream", ("127.0.0.1", 1))
    async with rig(gate=gate, settings=SOON) as r:
        client = await begin(r, gate, post(STREAM, CHAT))
        gate.waiting[0].set_result(None)
        assert error_of((await client.answer()).body)["error"]["code"] == "upstream_unreachable"  # type: ignore[index]


async def test_an_engine_that_breaks_in_its_stream_ends_it_without_an_end() -> None:
    gate = FakeGate(open_=False)
    async with rig(answers(CHUNKED_STREAM[:-20], close=True), gate, SOON) as r:
        client = await begin(r, gate, post(STREAM, CHAT))
        gate.waiting[0].set_result(None)
        assert not (await client.answer()).complete


async def test_a_client_that_leaves_is_dropped_from_the_queue() -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate, settings=SOON) as r:
        client = await begin(r, gate, post(STREAM, CHAT))
        client.close()
        await gate.done.wait()
        assert (gate.cancelled, gate.left, r.upstream.connections) == (1, [], 0)
        await until(lambda: bool(r.finished))
        assert r.finished[0].status == 499


async def test_a_large_body_is_read_while_it_waits_within_the_budget() -> None:
    """Whether it streams stands at its end."""
    body = b'{"messages":["' + b"x" * 300_000 + b'"],"stream":true}'
    for budget, beats in ((1_000_000, True), (100_000, False)):
        gate = FakeGate(open_=False)
        settings = Settings(heartbeat=0.01, waiting_body_bytes=1000, max_collected_bytes=budget)
        async with rig(answers(CHUNKED_STREAM), gate, settings) as r:
            client = await r.client()
            client.writer.write(post(body, CHAT))
            await gate.asked.wait()
            if beats:
                await wait_for_beats(client)
                assert r.server.collected_bytes == len(body)
            else:
                await asyncio.sleep(0.05)
                assert r.server.collected_bytes == 0
            gate.waiting[0].set_result(None)
            answer = await client.answer()
            assert answer.body.endswith(EVENTS)
            assert (b": waking" in answer.body) is beats
            assert r.upstream.requests[0][1] == body
            assert r.server.collected_bytes == 0


def beating(end: bytes) -> bytes:
    """The answer of a sidecar whose heartbeat had begun."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-GreenThread-Heartbeat: 10s\r\n"
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + BEAT + end


GOING = NOT_RUN + chunk(b'data: {"error":{}}\n\n') + b"0\r\n\r\n"


@pytest.mark.parametrize("step", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("begun", [False, True], ids=["the sidecar's heartbeat", "the gateway's too"])
async def test_a_sidecar_that_goes_away_after_its_heartbeat_hands_the_request_back(begun: bool, step: bool) -> None:
    """A gateway sends it elsewhere on the same stream."""

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read_request(reader)
        if len(upstream.requests) > 1:
            writer.write(CHUNKED_STREAM)
        elif step:
            writer.write(beating(b""))
            await upstream.go.wait()
            writer.write(BEAT + GOING)
        else:
            writer.write(beating(GOING))
        await script(upstream, reader, writer)

    gate = FakeGate(open_=not begun)
    async with rig(script, gate, SOON, retry=True) as r:
        client = await r.client()
        await client.send(post(STREAM, CHAT))
        if begun:
            await wait_for_beats(client)
            gate.open = True
            gate.waiting[0].set_result(None)
        await r.upstream.reached.wait()
        r.upstream.go.set()
        answer = await client.answer()
        assert (answer.status, answer.complete) == (200, True)
        assert answer.body.endswith(EVENTS)
        assert answer.body.removesuffix(EVENTS).replace(b": waking\n\n", b"") == b""
        assert [body for _, body in r.upstream.requests] == [STREAM, STREAM]
        assert [outcome for outcome, _ in gate.left] == [Outcome.NOT_RUN, Outcome.SUCCESS]


async def test_what_only_looks_like_it_in_a_running_answer_is_passed_on() -> None:
    text = beating(chunk(b"data: one\n\n")) + GOING
    async with rig(answers(text), FakeGate(), SOON, retry=True) as r:
        answer = await r.ask(post(STREAM, CHAT))
        assert (answer.status, b"data: one\n\n: not run\n\n" in answer.body) == (200, True)
        assert len(r.upstream.requests) == 1


def test_what_is_streaming() -> None:
    assert asks_for_stream(b'{"stream" : true}')
    assert asks_for_stream(b'{"stream":false,"stream":true}'), "the last one counts, as for the engine"
    assert not asks_for_stream(b'{"stream":true,"stream":false}')
    assert not asks_for_stream(b'[{"stream":true}]')
    assert not asks_for_stream(b'{"stream":"true"}')
    assert not asks_for_stream(b"[" * 100_000 + b'"stream":true')
    assert not asks_for_stream(b'\xff{"stream":true}')
