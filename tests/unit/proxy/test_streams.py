"""Streaming in both directions: chunk by chunk, with back-pressure, and what happens when one side goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from proxy import Outcome, Settings
from tests.unit.proxy.harness import GET, FakeGate, Upstream, answers, post, rig, send_until_blocked, until

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_each_chunk_passes_at_once() -> None:
    step = asyncio.Event()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read_request(reader)
        writer.write(SSE)
        for i in range(5):
            writer.write(chunk(b"data: %d\n\n" % i))
            await step.wait()  # nothing more until the client has this one
            step.clear()
        writer.write(b"0\r\n\r\n")

    async with rig(script) as r:
        client = await r.client()
        await client.send(post())
        await client.reader.readuntil(b"\r\n\r\n")
        for i in range(5):
            assert await client.reader.readuntil(b"\n\n\r\n") == chunk(b"data: %d\n\n" % i)
            step.set()
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"


async def test_chunks_cut_anywhere_come_out_whole() -> None:
    stream = SSE + b"".join(chunk(b"x" * n) for n in (1, 15, 16, 17, 300)) + b"0\r\nX-T: 1\r\n\r\n"

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await upstream.read_request(reader)
            for i in range(len(stream)):
                writer.write(stream[i : i + 1])
                await asyncio.sleep(0)

    async with rig(script) as r:
        client = await r.client()
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.body, answer.complete) == (b"x" * 349, True)
        assert r.upstream.connections == 1


async def test_an_upload_streams_before_it_is_complete() -> None:
    got = asyncio.Event()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(10) == chunk(b"first")
        got.set()
        assert await reader.readexactly(16) == chunk(b"second") + b"0\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with rig(script) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await got.wait()
        answer = await client.ask(b"6\r\nsecond\r\n0\r\n\r\n")
        assert answer.body == b"ok"


async def test_a_slow_reader_holds_back_the_upstream() -> None:
    """Memory stays bounded: what the upstream may send ahead is what the buffers between hold, not the whole answer."""
    total = 64 * 1024 * 1024
    sent = 0
    blocked = asyncio.Event()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await upstream.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = b"x" * 65536
        while sent < total:
            writer.write(piece)
            sent += len(piece)
            try:
                async with asyncio.timeout(0.3):
                    await writer.drain()
            except TimeoutError:
                blocked.set()
                await writer.drain()

    async with rig(script) as r:
        client = await r.client()
        await client.send(GET)
        await blocked.wait()
        assert sent < total / 2
        answer = await client.answer()
        assert (len(answer.body), answer.complete) == (total, True)


async def test_a_connection_whose_last_answer_was_taken_slowly_is_as_good_as_any() -> None:
    """The end of an answer may fill the client's buffer; the upstream's connection must not stay paused for that."""
    async with rig() as r:
        client = await r.client()
        for i in range(3):
            await client.send(post(b"%d" % i))
            await until(lambda: bool(r.server.pool.open))
            (upstream,) = r.server.pool.open
            (connection,) = r.server.connections
            write = connection._transport.write

            def full(data: bytes, upstream=upstream, connection=connection, write=write) -> None:  # type: ignore[no-untyped-def]
                write(data)
                if not data.startswith(b"HTTP"):  # the body fills the buffer
                    connection.pause_writing()
                    connection._server.loop.call_soon(connection.resume_writing)

            connection._transport = Tampered(connection._transport, full)  # type: ignore[assignment]
            assert (await client.answer()).status == 200
            await until(lambda: connection._writable)  # noqa: B023
            connection._transport = connection._transport.real  # type: ignore[attr-defined]
        assert r.upstream.connections == 1


class Tampered:
    """A transport whose `write` is another."""

    def __init__(self, real: asyncio.Transport, write: Callable[[bytes], None]) -> None:
        self.real, self.write = real, write

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


async def test_a_slow_upstream_holds_back_the_client() -> None:
    total = 64 * 1024 * 1024
    read_on = asyncio.Event()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await read_on.wait()
        await reader.readexactly(total)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with rig(script) as r:
        client = await r.client()
        client.writer.write(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % total)
        sent = await send_until_blocked(client, total)
        assert sent < total / 2
        read_on.set()
        await client.send(b"x" * (total - sent))
        assert (await client.answer()).body == b"ok"


@pytest.mark.parametrize("when", ["before the answer", "in the answer"])
async def test_a_client_that_leaves_closes_the_upstream_at_once(when: str) -> None:
    gate = FakeGate()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read_request(reader)
        if when == "in the answer":
            writer.write(SSE + chunk(b"data: 1\n\n"))
        await reader.readexactly(1)  # ends when the proxy closes

    async with rig(script, gate) as r:
        client = await r.client()
        await client.send(post())
        await r.upstream.reached.wait()
        if when == "in the answer":
            await client.reader.readuntil(b"data: 1")
        client.close()
        await r.upstream.gone.wait()
        await gate.done.wait()
        assert [outcome for outcome, _ in gate.left] == [Outcome.CLIENT_GONE]
        assert r.finished[0].status == (200 if when == "in the answer" else 499)


async def test_a_client_that_leaves_during_its_upload_closes_the_upstream() -> None:
    gate = FakeGate()
    async with rig(gate=gate) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        await r.upstream.reached.wait()
        client.close()
        await r.upstream.gone.wait()
        assert r.upstream.requests == []


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
        SSE + b"5\r\nhello\r\n",
        SSE + b"9\r\nhel",
        SSE,
    ],
)
async def test_an_upstream_that_breaks_off_ends_the_stream_without_its_end(begun: bytes) -> None:
    gate = FakeGate()
    async with rig(answers(begun, close=True), gate) as r:
        answer = await r.ask(post())
        assert answer.status == 200
        assert not answer.complete
        assert gate.left == [(Outcome.UPSTREAM_ERROR, 200)]


async def test_http_1_0_can_tell_by_a_reset() -> None:
    async with rig(answers(SSE + b"5\r\nhello\r\n", close=True)) as r:
        client = await r.client()
        await client.send(b"GET /v1/echo HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"])
async def test_an_upstream_that_breaks_before_its_answer_is_a_502(begun: bytes) -> None:
    gate = FakeGate()
    async with rig(answers(begun, close=True), gate) as r:
        client = await r.client()
        answer = await client.ask(post())
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_error")
        assert json.loads((await client.ask(post(path="/v1/messages"))).body)["error"]["type"] == "api_error"
        assert len(r.upstream.requests) == 2, "each ran once"
        assert [outcome for outcome, _ in gate.left] == [Outcome.UPSTREAM_ERROR] * 2


async def test_no_upstream_is_a_502() -> None:
    gate = FakeGate()
    async with rig(gate=gate) as r:
        r.table.port = 1
        client = await r.client()
        answer = await client.ask(post())
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_unreachable")
        assert gate.left == [(Outcome.UNREACHABLE, 0)]
        assert (await client.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200


async def test_an_idle_upstream_connection_is_dropped_before_the_upstream_would() -> None:
    async with rig() as r:
        client = await r.client()
        await client.ask(post())
        now = r.server.loop.time()
        r.server.sweep(now + 1.9)
        assert not r.upstream.gone.is_set()
        r.server.sweep(now + 2.1)
        await r.upstream.gone.wait()
        assert (await client.ask(post())).status == 200
        assert r.upstream.connections == 2


async def test_an_upstream_that_closes_when_idle_costs_nothing() -> None:
    """It says keep-alive and closes: the next request gets a new connection, none is run twice."""

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with rig(script) as r:
        client = await r.client()
        for _ in range(20):
            assert (await client.ask(post())).status == 200
            await until(lambda: not r.server.pool.open)
        assert len(r.upstream.requests) == 20


async def test_a_request_that_may_have_run_is_not_sent_again() -> None:
    """RFC 9110 §9.2.2: the upstream takes the second request off a kept connection and dies."""

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await upstream.read_request(reader)

    async with rig(script) as r:
        client = await r.client()
        assert (await client.ask(post(b"1"))).status == 200
        assert (await client.ask(post(b"2"))).status == 502
        assert [body for _, body in r.upstream.requests] == [b"1", b"2"]


async def test_an_answer_before_the_end_of_the_request() -> None:
    """RFC 9112 §9.5: the answer passes, then the connections end, since what is left of the body is not read."""
    gate = FakeGate()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await reader.read()

    async with rig(script, gate) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 1000)
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"big", "close")
        await r.upstream.gone.wait()
        assert gate.left == [(Outcome.SUCCESS, 413)]


async def test_a_stalled_reader_is_cut_off() -> None:
    gate = FakeGate()
    gone = asyncio.Event()

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read_request(reader)
        writer.write(SSE)
        try:
            while True:
                writer.write(chunk(b"x" * 65536))
                await writer.drain()
        finally:
            gone.set()

    async with rig(script, gate, Settings(stall_timeout=10)) as r:
        client = await r.client()
        await client.send(post())
        connection = next(iter(r.server.connections))
        await until(lambda: not connection._writable)
        r.server.sweep(r.server.loop.time() + 9)
        assert not gate.left
        r.server.sweep(r.server.loop.time() + 11)
        await gone.wait()
        assert [outcome for outcome, _ in gate.left] == [Outcome.CLIENT_GONE]
