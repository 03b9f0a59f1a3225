"""HTTP/1.1 as the asynchronous client reads it: whole answers or none, and no write sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from greenthread import http1, http_async
from greenthread.http1 import Answer, BadAnswer
from greenthread.kube import http
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Response
from greenthread.kube.errors import Unreachable
from greenthread.kube.http import HttpTransport
from greenthread.kube.resources import MODELS


def read(data: bytes, method: str = "GET", piece: int = 10**6, closed: bool = False, limit: float = math.inf) -> Answer:
    """Feeds an answer in pieces of so many bytes."""
    answer = Answer(method, limit)
    for at in range(0, len(data), piece):
        answer.feed(data[at : at + piece])
    if closed:
        answer.end()
    return answer


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a:\t2 \r\n\r\n"
    b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
)
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world"


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("data", [CHUNKED, LONG, b"HTTP/1.1 100 Continue\r\n\r\n" + LONG])
def test_an_answer_is_the_same_however_its_bytes_come(data: bytes, piece: int) -> None:
    answer = read(data, piece=piece)
    assert (answer.status, answer.take(), answer.done, answer.reusable) == (200, b"hello world", True, True)
    if data is CHUNKED:
        assert answer.headers["x-a"] == "1, 2"


def test_the_body_can_be_taken_as_it_comes() -> None:
    answer = Answer("GET", math.inf)
    answer.feed(CHUNKED[:-40])
    first = answer.take()
    answer.feed(CHUNKED[-40:])
    assert first
    assert first + answer.take() == b"hello world"


@pytest.mark.parametrize(
    ("data", "method"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "DELETE"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET"),
        (b"HTTP/1.1 200\r\n\r\n", "CONNECT"),
    ],
)
def test_an_answer_without_a_body_is_done_with_its_head(data: bytes, method: str) -> None:
    answer = read(data, method)
    assert (answer.done, answer.reusable, answer.take()) == (True, True, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
    ],
)
def test_a_connection_is_not_used_again_when_its_end_is_not_certain(data: bytes) -> None:
    answer = read(data, closed=True)
    assert (answer.take(), answer.done, answer.reusable) == (b"{}", True, False)


@pytest.mark.parametrize("end", range(len(CHUNKED)))
def test_a_chunked_answer_that_is_cut_off_is_no_answer(end: int) -> None:
    with pytest.raises(BadAnswer):
        read(CHUNKED[:end], closed=True)


@pytest.mark.parametrize("end", range(len(LONG)))
def test_an_answer_that_is_shorter_than_it_says_is_no_answer(end: int) -> None:
    with pytest.raises(BadAnswer, match="complete"):
        read(LONG[:end], closed=True)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\nB: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 9 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * http1.MAX_HEAD,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * http1.MAX_HEAD + b"x",
    ],
)
def test_what_is_not_clearly_one_answer_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        read(data, closed=True)


def test_a_body_is_bounded() -> None:
    assert read(LONG, limit=11).done
    with pytest.raises(BadAnswer, match="larger than 10 bytes"):
        read(LONG, limit=10)


# -- with connections -------------------------------------------------------------------------------------------------

Handler = Callable[["Talk"], Awaitable[None]]


class Talk:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        """The next request, head and body; b"" when the client left."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        return head + await self.reader.readexactly(int(length.partition(b":")[2]))

    async def answer(self, data: bytes = LONG) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


@contextlib.asynccontextmanager
async def serving(*handlers: Handler) -> AsyncIterator[tuple[HttpTransport, list[Talk]]]:
    """A server whose connections are handled by one handler each, in order; and a transport to it."""
    talks: list[Talk] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(Talk(reader, writer))
        with contextlib.suppress(ConnectionError):
            await handlers[len(talks) - 1](talks[-1])

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    transport = HttpTransport(ClusterConfig(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    try:
        yield transport, talks
    finally:
        await transport.close()
        server.close()
        for talk in talks:
            talk.close()


async def ask(transport: HttpTransport, method: str = "GET", timeout: float = 5.0) -> Response:
    return await transport.request(method, "/x", {}, {}, b"{}" if method == "PATCH" else None, timeout)


async def echo(talk: Talk) -> None:
    """Answers whatever it is asked."""
    while await talk.request():
        await talk.answer()


async def once_then_close_on_the_next(talk: Talk) -> None:
    await talk.request()
    await talk.answer()
    await talk.request()
    talk.close()


async def test_a_write_that_meets_a_closing_connection_is_not_sent_again() -> None:
    async with serving(once_then_close_on_the_next, echo) as (transport, talks):
        await ask(transport, "PATCH")
        with pytest.raises(Unreachable, match="closed"):
            await ask(transport, "PATCH")
        assert len(talks) == 1


async def test_a_read_that_meets_a_closing_connection_asks_again_on_another() -> None:
    async with serving(once_then_close_on_the_next, echo) as (transport, talks):
        await ask(transport)
        assert (await ask(transport)).body == b"hello world"
        assert len(talks) == 2


async def test_a_read_is_not_asked_again_when_an_answer_had_begun() -> None:
    async def half(talk: Talk) -> None:
        await talk.request()
        await talk.answer()
        await talk.request()
        await talk.answer(LONG[:-3])
        talk.close()

    async with serving(half, echo) as (transport, talks):
        await ask(transport)
        with pytest.raises(Unreachable, match="complete"):
            await ask(transport)
        assert len(talks) == 1


async def test_a_read_is_not_asked_again_when_a_fresh_connection_fails() -> None:
    async def leave(talk: Talk) -> None:
        await talk.request()
        talk.close()

    async with serving(leave, echo) as (transport, talks):
        with pytest.raises(Unreachable):
            await ask(transport)
        assert len(talks) == 1


async def test_a_connection_closed_while_idle_is_not_used_even_before_the_loop_knows() -> None:
    closed = asyncio.Event()

    async def one(talk: Talk) -> None:
        await talk.request()
        await talk.answer()
        talk.close()
        closed.set()

    async with serving(one, echo) as (transport, talks):
        await ask(transport)
        await closed.wait()
        # the close is on its way through the loop, or in the socket only
        assert (await ask(transport, "PATCH")).status == 200
        assert len(talks) == 2


async def test_a_request_that_is_given_up_takes_its_connection_along() -> None:
    async def silent(talk: Talk) -> None:
        assert await talk.request()
        await talk.reader.read()

    async with serving(silent, echo) as (transport, talks):
        with pytest.raises(Unreachable, match="in time"):
            await ask(transport, timeout=0.05)
        assert (await ask(transport)).status == 200
        assert len(talks) == 2


async def test_requests_at_once_have_a_connection_each_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEEP_IDLE", 2)
    async with serving(*[echo] * 10) as (transport, talks):
        await asyncio.gather(*(ask(transport) for _ in range(5)))
        assert len(talks) == 5
        await asyncio.gather(*(ask(transport) for _ in range(3)))
        assert len(talks) == 6


async def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo, echo) as (transport, talks):
        await ask(transport)
        monkeypatch.setattr(http, "KEEP_SECONDS", 0.0)
        await ask(transport)
        assert len(talks) == 2


async def test_something_said_unasked_ends_the_connection() -> None:
    async def chatty(talk: Talk) -> None:
        await talk.request()
        await talk.answer()
        await talk.answer(LONG)
        await talk.reader.read()

    async with serving(chatty, echo) as (transport, talks):
        first = await ask(transport)
        assert first.body == b"hello world"
        assert (await ask(transport, "PATCH")).status == 200
        assert len(talks) <= 2


async def test_a_slow_reader_of_a_watch_holds_the_server_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_async, "AHEAD", 1000)
    line = b"x" * 99 + b"\n"
    sent = 0

    async def pour(talk: Talk) -> None:
        nonlocal sent
        await talk.request()
        talk.writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(200):
            talk.writer.write(line * 1000)
            await talk.writer.drain()
            sent += 1000
        talk.close()

    async with serving(pour) as (transport, _talks):
        stream: Any = transport.stream("GET", "/x", {}, {}, 5.0)
        assert await anext(stream) == line.strip()
        for _ in range(50):  # the server is given every chance to run ahead
            await asyncio.sleep(0)
        before = sent
        assert before < 200_000
        count = 1
        async for _ in stream:
            count += 1
        assert count == sent == 200_000


async def test_a_watch_that_breaks_off_says_so_after_what_was_whole() -> None:
    async def cut(talk: Talk) -> None:
        await talk.request()
        await talk.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
        talk.close()

    async with serving(cut) as (transport, _talks):
        stream = transport.stream("GET", "/x", {}, {}, 5.0)
        assert await anext(stream) == b"one"
        with pytest.raises(Unreachable, match="complete"):
            await anext(stream)


async def test_a_watch_that_nobody_reads_any_more_is_closed() -> None:
    left = asyncio.Event()

    async def endless(talk: Talk) -> None:
        await talk.request()
        await talk.answer(b"HTTP/1.1 200 OK\r\n\r\none\n")
        with contextlib.suppress(ConnectionError):
            await talk.reader.read()
        left.set()

    async with serving(endless) as (transport, _talks):
        stream = transport.stream("GET", "/x", {}, {}, 5.0)
        assert await anext(stream) == b"one"
        await stream.aclose()
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_proxy_that_refuses_is_named() -> None:
    async def refuse(talk: Talk) -> None:
        assert (await talk.request()).startswith(b"CONNECT api.example:6443 HTTP/1.1\r\n")
        await talk.answer(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    async with serving(refuse) as (transport, _talks):
        proxy = transport._config.server
        client = AsyncClient(ClusterConfig("https://api.example:6443", insecure=True, proxy_url=proxy))
        with pytest.raises(Unreachable, match=r"the proxy 127.0.0.1:\d+ does not let us through .*407"):
            await client.get(MODELS, "a", "prod")
