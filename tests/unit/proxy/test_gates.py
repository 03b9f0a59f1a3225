"""Requests that wait at a gate."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy import Exchange, Outcome, Refuse, Settings
from tests.unit.proxy.harness import FakeGate, Upstream, answer_ok, answers, post, rig, send_until_blocked, until


async def test_an_open_gate_is_entered_and_left_once() -> None:
    gate = FakeGate()
    async with rig(gate=gate) as r:
        client = await r.client()
        for _ in range(3):
            await client.ask(post())
        assert gate.entered == 3
        assert gate.left == [(Outcome.SUCCESS, 200)] * 3


async def test_a_waiting_request_is_sent_when_the_gate_opens() -> None:
    gate = FakeGate(open_=False)
    gate.on_enter = lambda exchange: exchange.add_response_header("Server-Timing", "queue;dur=1.5")
    async with rig(gate=gate) as r:
        client = await r.client()
        await client.send(post(b"hello"))
        await gate.asked.wait()
        assert r.upstream.connections == 0
        gate.waiting[0].set_result(None)
        answer = await client.answer()
        assert (answer.status, answer.headers["server-timing"]) == (200, "queue;dur=1.5")
        assert r.upstream.requests[0][1] == b"hello"
        assert gate.left == [(Outcome.SUCCESS, 200)]


async def test_a_refusal_is_answered_with_its_reason() -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate) as r:
        client = await r.client()
        for path in ("/v1/echo", "/v1/messages"):
            gate.asked.clear()
            await client.send(post(path=path))
            await gate.asked.wait()
            gate.waiting[-1].set_exception(
                Refuse(503, "Held by b.", 2.3, "no_room", [("X-GreenThread-Not-Run", "true")])
            )
            answer = await client.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "3")
            assert answer.headers["x-greenthread-not-run"] == "true"
            error = json.loads(answer.body)["error"]
            assert error["message"] == "Held by b."
            assert error.get("code", error["type"]) in ("no_room", "overloaded_error")
        assert gate.left == [], "it never entered"


async def test_a_client_that_leaves_the_queue_is_dropped() -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate) as r:
        client = await r.client()
        await client.send(post())
        await gate.asked.wait()
        client.close()
        await gate.done.wait()
        assert (gate.cancelled, gate.left, r.upstream.connections) == (1, [], 0)


async def test_a_client_that_leaves_as_the_gate_opens_is_counted_right() -> None:
    """Entered and left, or neither: never one without the other."""
    for pause in range(6):
        gate = FakeGate(open_=False)
        async with rig(gate=gate) as r:
            client = await r.client()
            await client.send(post())
            await gate.asked.wait()
            client.close()
            for _ in range(pause):
                await asyncio.sleep(0)
            if not gate.waiting[0].done():
                gate.waiting[0].set_result(None)
            await gate.done.wait()
            await until(lambda: bool(r.finished))
            assert gate.entered == len(gate.left)
            assert gate.entered + gate.cancelled == 1


async def test_the_body_of_a_waiting_request_is_read_only_in_part() -> None:
    gate = FakeGate(open_=False)
    total = 64 * 1024 * 1024
    async with rig(gate=gate, settings=Settings(waiting_body_bytes=65536)) as r:
        client = await r.client()
        client.writer.write(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % total)
        sent = await send_until_blocked(client, total)
        assert sent < total / 2
        connection = next(iter(r.server.connections))
        assert connection._body_bytes < 2 * 1024 * 1024
        gate.waiting[0].set_result(None)
        await client.send(b"x" * (total - sent))
        assert (await client.answer()).status == 200
        assert len(r.upstream.requests[0][1]) == total


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_the_queue_is_noticed_though_its_body_is_not_read(how: str) -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate, settings=Settings(waiting_body_bytes=10)) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100)
        await until(lambda: any(not c._reading for c in r.server.connections))
        if how == "close":
            client.close()
        else:
            client.writer.transport.abort()
        await gate.done.wait()
        assert gate.cancelled == 1


async def test_a_broken_gate_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate) as r:
        client = await r.client()
        await client.send(post())
        await gate.asked.wait()
        gate.waiting[0].set_exception(KeyError("a mistake of the gate"))
        assert (await client.answer()).status == 500
        assert "a mistake of the gate" in caplog.text


NOT_RUN = b"HTTP/1.1 503 Service Unavailable\r\nX-GreenThread-Not-Run: true\r\nContent-Length: 4\r\n\r\nbusy"


async def test_a_request_that_was_not_run_is_sent_again_through_the_gate() -> None:
    gate = FakeGate()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if upstream.connections == 1:
            await upstream.read_request(reader)
            writer.write(NOT_RUN)
        else:
            await answer_ok(upstream, reader, writer)

    async with rig(script, gate, retry=True) as r:
        answer = await r.ask(post(b"hello"))
        assert answer.status == 200
        assert [body for _, body in r.upstream.requests] == [b"hello", b"hello"]
        assert [outcome for outcome, _ in gate.left] == [Outcome.NOT_RUN, Outcome.SUCCESS]


async def test_a_request_in_the_middle_of_its_upload_is_sent_again() -> None:
    gate = FakeGate()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if upstream.connections == 1:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(NOT_RUN)
            await reader.read()
        else:
            await answer_ok(upstream, reader, writer)

    async with rig(script, gate, retry=True) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
        await until(lambda: r.upstream.connections == 2)
        assert (await client.ask(b"later")).status == 200
        assert r.upstream.requests[0][1] == b"firstlater"


@pytest.mark.parametrize(
    ("answer", "retry", "body"),
    [
        (NOT_RUN, False, b"x"),
        (NOT_RUN.replace(b"X-GreenThread-Not-Run: true\r\n", b""), True, b"x"),
        (NOT_RUN.replace(b"503", b"500"), True, b"x"),
        (NOT_RUN, True, b"x" * 101),
    ],
    ids=["no retry wanted", "it does not say so", "another status", "the body was not kept"],
)
async def test_else_it_is_not_sent_again(answer: bytes, retry: bool, body: bytes) -> None:
    async with rig(answers(answer), FakeGate(), Settings(replay_bytes=164), retry=retry) as r:
        assert (await r.ask(post(body))).body == b"busy"
        assert len(r.upstream.requests) == 1


async def test_an_unreachable_upstream_is_left_and_the_gate_entered_again() -> None:
    gate = FakeGate()

    async with rig(gate=gate, retry=True) as r:
        ports = [1, 1, r.upstream.port]

        def choose(exchange: Exchange) -> None:
            exchange.upstream = ("127.0.0.1", ports.pop(0))

        gate.on_enter = choose
        r.table.port = None
        assert (await r.ask(post(b"hello"))).status == 200
        assert [outcome for outcome, _ in gate.left] == [Outcome.UNREACHABLE, Outcome.UNREACHABLE, Outcome.SUCCESS]
        assert len(r.upstream.requests) == 1
