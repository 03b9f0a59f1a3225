"""Pipelining, 100-continue, bodies that are read first, limits of size and time, and the graceful stop."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy import Exchange, Forward, Handle, Later, ReadBody, Refuse, RequestHead, Respond, Route, Settings
from tests.unit.proxy.harness import GET, FakeGate, Rig, Upstream, answers, post, rig, until

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_pipelined_requests_are_answered_in_order() -> None:
    """RFC 9112 §9.3.2."""

    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await upstream.read_request(reader)
            await asyncio.sleep(0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with rig(script) as r:
        client = await r.client()
        await client.send(post(b"1") + HEALTH + post(b"two") + post(b"") + HEALTH + post(b"3"))
        got = [(await client.answer()).body for _ in range(6)]
        assert got == [b"1", b'{"status": "ok"}', b"two", b"", b'{"status": "ok"}', b"3"]


class Large:
    """Every request is answered here, at length."""

    body = b"~" * 100_000

    def route(self, request: RequestHead) -> Route:
        return Respond(200, [("Content-Type", "text/plain")], self.body)


async def test_many_pipelined_requests_with_a_client_that_does_not_read() -> None:
    """No request is started while the last answers have not been taken."""
    count = 3000
    async with rig(router=lambda port: Large()) as r:
        client = await r.client()
        client.writer.write(HEALTH * count)
        await until(lambda: any(not c._writable for c in r.server.connections))
        assert r.server.counters.requests < count / 2
        left = count * len(Large.body)
        while left > 0:
            left -= (await client.reader.read(1 << 20)).count(b"~")
        assert (left, r.server.counters.requests) == (0, count)


async def test_requests_in_small_pieces() -> None:
    async with rig() as r:
        client = await r.client()
        data = post(b"hello") + HEALTH
        for i in range(len(data)):
            await client.send(data[i : i + 1])
        assert (await client.answer()).body == b'{"ok":true}'
        assert (await client.answer()).body == b'{"status": "ok"}'


@pytest.mark.parametrize("encoding", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_100_continue(encoding: bytes) -> None:
    """RFC 9110 §10.1.1: sent when the body is wanted; Expect is not passed on."""
    gate = FakeGate(open_=False)
    async with rig(gate=gate) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\n" + encoding + b"\r\n")
        await gate.asked.wait()
        gate.waiting[0].set_result(None)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello" if b"Length" in encoding else b"5\r\nhello\r\n0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert r.upstream.requests[0][1] == b"hello"
        assert b"xpect" not in r.upstream.requests[0][0]


async def test_no_100_continue_for_a_request_that_is_refused() -> None:
    async with rig() as r:
        client = await r.client()
        await client.send(post(b"", path="/nowhere").replace(b"th: 0", b"th: 5\r\nExpect: 100-continue"))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert await client.closed()


async def test_no_100_continue_when_the_body_has_come() -> None:
    async with rig() as r:
        answer = await r.ask(post(b"hello", extra=b"Expect: 100-continue\r\n"))
        assert answer.status == 200


async def test_the_body_of_a_request_answered_here_is_dropped() -> None:
    async with rig() as r:
        client = await r.client()
        assert (await client.ask(post(b"x" * 1000, path="/nowhere"))).status == 404
        await client.send(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf.")
        assert (await client.answer()).status == 404
        await client.send(b"rest." + HEALTH)
        assert (await client.answer()).status == 200


class Bodies:
    """Routes by the body: `echo` is forwarded, anything else answered here."""

    def __init__(self, port: int) -> None:
        self.port = port

    def route(self, request: RequestHead) -> Route:
        return ReadBody(20, self.then)

    def then(self, request: RequestHead, body: bytes) -> Route:
        if body == b"broken":
            raise RuntimeError("a mistake of the router")
        if body.startswith(b"echo"):
            return Forward("/v1/echo", ("127.0.0.1", self.port))
        return Respond.error(request, 404, f"{len(body)} bytes", "x")


CHUNKS = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\necho\r\n"


async def test_a_body_is_read_and_then_forwarded_once() -> None:
    async with rig(router=Bodies) as r:
        client = await r.client()
        assert (await client.ask(post(b"echo 1"))).status == 200
        await client.send(CHUNKS)
        assert (await client.ask(b"2\r\n 2\r\n0\r\n\r\n" + post(b"other"))).status == 200
        assert (await client.answer()).status == 404
        assert [body for _, body in r.upstream.requests] == [b"echo 1", b"echo 2"]
        assert b"Content-Length: 6\r\n" in r.upstream.requests[1][0]
        assert r.server.collected_bytes == 0


async def test_too_large_a_body_to_be_read_first() -> None:
    async with rig(router=Bodies) as r:
        answer = await r.ask(post(b"x" * 21))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (413, "request_too_large")
        client = await r.client()
        await client.send(CHUNKS)
        assert (await client.ask(b"11\r\n" + b"x" * 17 + b"\r\n")).status == 413
        assert await client.closed()
        assert r.server.collected_bytes == 0


async def test_all_bodies_together_are_bounded() -> None:
    async with rig(router=Bodies, settings=Settings(max_collected_bytes=30)) as r:
        first = await r.client()
        await first.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n" + b"x" * 19)
        await until(lambda: r.server.collected_bytes == 19)
        answer = await r.ask(post(b"x" * 12))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (await first.ask(b"x")).status == 404
        assert r.server.collected_bytes == 0


async def test_a_broken_router_is_a_500_and_the_next_request_is_served(caplog: pytest.LogCaptureFixture) -> None:
    async with rig(router=Bodies) as r:
        client = await r.client()
        answer = await client.ask(post(b"broken"))
        assert (answer.status, json.loads(answer.body)["error"]["type"]) == (500, "server_error")
        assert b"mistake of the router" not in answer.body
        assert "a mistake of the router" in caplog.text
        assert (await client.ask(post(b"echo"))).status == 200


async def test_a_handler_is_cancelled_when_its_client_leaves() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(request: RequestHead) -> Respond:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    class Slow:
        def route(self, request: RequestHead) -> Route:
            return Handle(slow)

    async with rig(router=lambda port: Slow()) as r:
        client = await r.client()
        await client.send(GET)
        await started.wait()
        client.close()
        await cancelled.wait()


async def test_a_router_may_be_asked_again_later_and_the_body_waits_too() -> None:
    go, begun, bodies = asyncio.Event(), asyncio.Event(), []

    async def wait(exchange: Exchange) -> None:
        begun.set()
        await go.wait()

    def read(request: RequestHead, body: bytes) -> Route:
        bodies.append(body)
        return Respond(200)

    class Opening:
        def route(self, request: RequestHead) -> Route:
            return ReadBody(10, read) if go.is_set() else Later(wait)

    async with rig(router=lambda port: Opening()) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        await begun.wait()
        for piece in (b"0", b"1", b"2", b"3", b"4"):
            await client.send(piece)
            await asyncio.sleep(0)
        go.set()
        await client.send(b"56789")
        assert (await client.answer()).status == 200
    assert bodies == [b"0123456789"]


@pytest.mark.parametrize(("error", "status"), [(Refuse(429, "Not now.", 3), 429), (ValueError("oops"), 500)])
async def test_what_a_wait_raises_is_the_answer(error: Exception, status: int) -> None:
    async def wait(exchange: Exchange) -> None:
        raise error

    class Never:
        def route(self, request: RequestHead) -> Route:
            return Later(wait)

    async with rig(router=lambda port: Never()) as r:
        answer = await (await r.client()).ask(GET)
        assert answer.status == status
        assert b"oops" not in answer.body


LIMITS = Settings(max_head_bytes=2000, max_header_fields=10, max_body_bytes=1000)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /v1/echo HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 3000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 3000, 431),
        (b"GET /v1/echo HTTP/1.1\r\nHost: x\r\n" + b"X-A: 1\r\n" * 10 + b"\r\n", 431),
        (post(b"x" * 1001), 413),
        (CHUNKS.replace(b"/a", b"/v1/echo") + b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n", 413),
        (b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n", 413),
    ],
)
async def test_limits_of_size(data: bytes, status: int) -> None:
    """RFC 6585 §5 (431), RFC 9110 §15.5.14 (413)."""
    async with rig(settings=LIMITS) as r:
        client = await r.client()
        answer = await client.ask(data)
        assert answer.status == status
        assert "message" in json.loads(answer.body)["error"]
        assert await client.closed()
        assert r.upstream.requests == []


async def test_within_the_limits() -> None:
    async with rig(settings=LIMITS) as r:
        assert (await r.ask(post(b"x" * 1000, extra=b"X-A: 1\r\n" * 8))).status == 200


async def test_a_large_refused_upload_still_gets_its_answer() -> None:
    """The rest is read and dropped for a while: closing with unread bytes would reset the answer away."""
    async with rig(settings=LIMITS) as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        assert (await client.answer()).status == 413


async def test_the_number_of_connections_is_limited() -> None:
    """RFC 9110 §15.6.4 (503)."""
    async with rig(settings=Settings(max_connections=2)) as r:
        first, second = await r.client(), await r.client()
        assert (await first.ask(HEALTH)).status == (await second.ask(HEALTH)).status == 200
        third = await r.client()
        answer = await third.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "overloaded")
        assert await third.closed()
        assert (await first.ask(HEALTH)).status == 200


async def _arrived(r: Rig, size: int) -> None:
    connection = next(iter(r.server.connections))
    await until(lambda: len(connection._buffer) + connection._body_bytes >= size)


async def test_a_slow_head_is_a_408() -> None:
    """RFC 9110 §15.5.9: a slow sender is cut off, whatever it dribbles."""
    async with rig() as r:
        client = await r.client()
        await client.send(b"GET /v1/echo HT")
        await _arrived(r, 15)
        begun = r.server.loop.time()
        r.server.sweep(begun + 14)
        await client.send(b"TP/1.1\r\n")
        await _arrived(r, 23)
        r.server.sweep(begun + 15.5)  # more bytes do not prolong it
        assert (await client.answer()).status == 408
        assert await client.closed()


async def test_a_slow_body_is_a_408() -> None:
    async with rig() as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx")
        await r.upstream.reached.wait()
        await client.send(b"y" * 100)
        await _arrived(r, 101)
        r.server.sweep(r.server.loop.time() + 31)
        assert (await client.answer()).status == 408
        await r.upstream.gone.wait()
        assert r.upstream.requests == []


async def test_a_body_at_a_fair_pace_is_read_on() -> None:
    async with rig() as r:
        client = await r.client()
        await client.send(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n")
        await r.upstream.reached.wait()
        await client.send(b"y" * 10000)
        await _arrived(r, 10000)
        r.server.sweep(r.server.loop.time() + 31)
        assert (await client.ask(b"y" * 10000)).status == 200


async def test_idle_connections_are_closed_quietly() -> None:
    async with rig() as r:
        client = await r.client()
        assert (await client.ask(HEALTH)).status == 200
        r.server.sweep(r.server.loop.time() + 74)
        assert (await client.ask(HEALTH)).status == 200
        r.server.sweep(r.server.loop.time() + 76)
        assert await client.closed()


async def test_a_graceful_stop() -> None:
    """What is in flight finishes, idle connections close, new ones are refused."""
    async with rig(answers(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", b"cd", step=True)) as r:
        busy, idle = await r.client(), await r.client()
        assert (await idle.ask(HEALTH)).status == 200
        await busy.send(post())
        await busy.reader.readuntil(b"ab")
        stopping = asyncio.create_task(r.server.stop(grace=30))
        await until(lambda: r.server.draining)
        r.server.sweep(r.server.loop.time() + 3)
        assert await idle.closed()
        with pytest.raises(ConnectionRefusedError):
            await r.client()
        assert not stopping.done()
        r.upstream.go.set()
        assert await busy.reader.readexactly(2) == b"cd"
        await stopping
        assert await busy.closed()


async def test_a_request_that_crosses_the_stop_is_answered() -> None:
    """On a connection that was used just now: its sender could not know whether a reset request was run."""
    async with rig() as r:
        client = await r.client()
        assert (await client.ask(post(b"1"))).status == 200
        stopping = asyncio.create_task(r.server.stop(grace=30))
        await until(lambda: r.server.draining)
        answer = await client.ask(post(b"2"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        client.close()
        await stopping


async def test_a_stop_past_its_grace_cuts_off() -> None:
    async with rig(answers(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", b"cd", step=True)) as r:
        client = await r.client()
        await client.send(post())
        await client.reader.readuntil(b"ab")
        await r.server.stop(grace=0)
        assert await client.closed()
        assert not r.server.pool.open
