"""What a request and its answer look like on the other side."""

from __future__ import annotations

from tests.unit.proxy.harness import GET, answers, post, rig


async def test_a_request_is_forwarded_and_its_answer_comes_back() -> None:
    async with rig() as r:
        answer = await r.ask(post(b"hello"))
        assert (answer.status, answer.body) == (200, b'{"ok":true}')
        head, body = r.upstream.requests[0]
        assert head.startswith(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\n")
        assert body == b"hello"


async def test_connections_are_kept_on_both_sides() -> None:
    async with rig() as r:
        client = await r.client()
        for i in range(5):
            assert (await client.ask(post(b"%d" % i))).status == 200
        assert r.upstream.connections == 1
        assert [body for _, body in r.upstream.requests] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_chunked_answer_passes() -> None:
    pieces = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"6\r\n world\r\n0\r\n\r\n"]
    async with rig(answers(*pieces)) as r:
        client = await r.client()
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.body, answer.complete) == (b"hello world", True)
        assert r.upstream.connections == 1


async def test_an_answer_that_ends_with_its_connection_is_chunked_for_the_client() -> None:
    async with rig(answers(b"HTTP/1.1 200 OK\r\n\r\nhello", close=True)) as r:
        client = await r.client()
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.body, answer.complete) == (b"hello", True)
            assert answer.headers["transfer-encoding"] == "chunked"


async def test_local_answers() -> None:
    async with rig() as r:
        client = await r.client()
        assert (await client.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).body == b'{"status": "ok"}'
        head = await client.ask(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD")
        assert head.headers["content-length"] == "16"
        missing = await client.ask(b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n")
        assert missing.status == 404
        assert r.upstream.connections == 0
