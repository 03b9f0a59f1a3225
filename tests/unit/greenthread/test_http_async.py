"""One request on a connection of its own: a whole answer or an OSError, and never sent twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from greenthread.http1 import BadAnswer
from greenthread.http_async import Reply, ask_once

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers each connection's request with the same bytes and closes it; None: says nothing."""

    def __init__(self, reply: bytes | None) -> None:
        self.reply, self.port = reply, 0
        self.asked: list[bytes] = []
        self.left = asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        self.asked.append(head + await reader.readexactly(int(length or 0)))
        if self.reply is None:
            with contextlib.suppress(ConnectionError):
                await reader.read()
        else:
            writer.write(self.reply)
        writer.close()
        self.left.set()

    async def ask(self, method: str = "POST", body: bytes | None = None, limit: int = 100) -> Reply:
        return await ask_once("127.0.0.1", self.port, method, "/sleep?level=1", body, limit)


@contextlib.asynccontextmanager
async def serving(reply: bytes | None) -> AsyncIterator[Server]:
    made = Server(reply)
    listener = await asyncio.start_server(made.talk, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(10):
            yield made
    finally:
        listener.close()


async def test_a_request_is_sent_whole_and_says_that_it_is_the_only_one() -> None:
    async with serving(OK) as server:
        assert await server.ask(body=b'{"a": 1}') == Reply(200, b"{}")
        await server.ask()
        await server.ask("GET")
    with_body, without, get = server.asked
    assert with_body.startswith(b"POST /sleep?level=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % server.port)
    assert b"\r\nconnection: close\r\n" in with_body
    assert b"\r\ncontent-type: application/json\r\n" in with_body
    assert with_body.endswith(b'\r\ncontent-length: 8\r\n\r\n{"a": 1}')
    assert without.endswith(b"\r\ncontent-length: 0\r\n\r\n")
    assert b"content-" not in get


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "closed before the answer was complete"),
        (OK[:-1], "closed before the answer was complete"),
        (b"hello\r\n\r\n", "no HTTP/1.1 answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n" + b"x" * 101, "larger than 100 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "larger than 100 bytes"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error_and_the_request_is_not_sent_again(reply: bytes, why: str) -> None:
    async with serving(reply) as server:
        with pytest.raises(BadAnswer, match=why):
            await server.ask()
        assert len(server.asked) == 1


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    async with serving(b"HTTP/1.0 500 Oops\r\n\r\nno") as server:
        assert await server.ask() == Reply(500, b"no")


async def test_nobody_listens() -> None:
    async with serving(OK) as server:
        pass
    with pytest.raises(ConnectionRefusedError):
        await server.ask()


async def test_a_request_that_is_given_up_closes_its_connection() -> None:
    async with serving(None) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await server.ask()
        await server.left.wait()
