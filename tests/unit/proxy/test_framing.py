"""Message framing and syntax by RFC 9110 and RFC 9112: what is refused, and that nothing of it reaches the upstream."""

from __future__ import annotations

import json

import pytest

from proxy import Settings
from tests.unit.proxy.harness import GET, answers, post, rig

HEAD = b"POST /v1/echo HTTP/1.1\r\nHost: x\r\n"

# (what, reference, bytes, status)
REFUSED = [
    ("two different lengths", "9112 §6.3 5", HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    ("two equal lengths", "9112 §6.3 5", HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    ("a list of lengths", "9110 §8.6", HEAD + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    ("a negative length", "9110 §8.6", HEAD + b"Content-Length: -5\r\n\r\nhello", 400),
    ("a length with a sign", "9110 §8.6", HEAD + b"Content-Length: +5\r\n\r\nhello", 400),
    ("a hexadecimal length", "9110 §8.6", HEAD + b"Content-Length: 0x5\r\n\r\nhello", 400),
    ("an empty length", "9110 §8.6", HEAD + b"Content-Length: \r\n\r\n", 400),
    ("a length with a space", "9110 §8.6", HEAD + b"Content-Length: 1 0\r\n\r\nhellohello", 400),
    ("a length with an underscore", "9110 §8.6", HEAD + b"Content-Length: 1_0\r\n\r\nhellohello", 400),
    ("a length of other digits", "9110 §8.6", HEAD + "Content-Length: ٥\r\n\r\nhello".encode(), 400),
    ("a length past 18 digits", "9110 §8.6", HEAD + b"Content-Length: 9999999999999999999\r\n\r\n", 400),
    (
        "a length beside a coding",
        "9112 §6.1",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "a coding beside a length",
        "9112 §6.1",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "identity, which is gone",
        "9112 §7",
        HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
        400,
    ),
    ("an unknown coding", "9112 §6.1", HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    ("a coding under chunked", "9112 §6.1", HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("chunked not last", "9112 §6.3 4", HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    ("chunked twice", "9112 §6.1", HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "chunked twice in two fields",
        "9112 §6.1",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("a misspelt coding", "9112 §6.1", HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("a quoted coding", "9112 §6.1", HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    ("an empty coding", "9112 §6.1", HEAD + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
    (
        "a coding in HTTP/1.0",
        "9112 §6.1",
        b"POST /v1/echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("a space before the colon", "9112 §5.1", HEAD + b"Content-Length : 5\r\n\r\nhello", 400),
    ("a tab before the colon", "9112 §5.1", HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    ("a field without colon", "9112 §5", HEAD + b"Content-Length\r\n\r\n", 400),
    ("a field without name", "9112 §5", HEAD + b": 5\r\n\r\n", 400),
    ("a name that is no token", "9110 §5.1", HEAD + b"X(y): 5\r\n\r\n", 400),
    ("a name beyond ASCII", "9110 §5.1", HEAD + "Ünicode: 5\r\n\r\n".encode(), 400),
    ("a folded line", "9112 §5.2", HEAD + b"X-A: 1\r\n 2\r\n\r\n", 400),
    ("a folded line by tab", "9112 §5.2", HEAD + b"X-A: 1\r\n\t2\r\n\r\n", 400),
    ("a folded first line", "9112 §2.2", b"GET /v1/echo HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    ("a bare LF after the request line", "9112 §2.2", b"GET /v1/echo HTTP/1.1\nHost: x\r\n\r\n", 400),
    ("a bare LF between fields", "9112 §2.2", HEAD + b"X-A: 1\nX-B: 2\r\n\r\n", 400),
    ("bare LFs at the end", "9112 §2.2", b"GET /v1/echo HTTP/1.1\r\nHost: x\n\n", 400),
    ("a bare CR in a value", "9112 §2.2", HEAD + b"X-A: 1\rX-B: 2\r\n\r\n", 400),
    ("a CR CR LF", "9112 §2.2", HEAD + b"X-A: 1\r\r\nX-B: 2\r\n\r\n", 400),
    ("a NUL in a value", "9110 §5.5", HEAD + b"X-A: 1\x002\r\n\r\n", 400),
    ("a control byte in a value", "9110 §5.5", HEAD + b"X-A: 1\x0b2\r\n\r\n", 400),
    ("a DEL in a value", "9110 §5.5", HEAD + b"X-A: 1\x7f2\r\n\r\n", 400),
    ("a NUL in a name", "9110 §5.1", HEAD + b"X\x00A: 1\r\n\r\n", 400),
    ("no Host", "9112 §3.2", b"GET /v1/echo HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", "9112 §3.2", b"GET /v1/echo HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    ("a Host that is a list", "9112 §3.2", b"GET /v1/echo HTTP/1.1\r\nHost: x, y\r\n\r\n", 400),
    ("a Host with a path", "9112 §3.2", b"GET /v1/echo HTTP/1.1\r\nHost: x/sleep\r\n\r\n", 400),
    ("a Host with user information", "9110 §4.2.4", b"GET /v1/echo HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    ("a Host with a bad port", "9110 §7.2", b"GET /v1/echo HTTP/1.1\r\nHost: x:y\r\n\r\n", 400),
    ("two spaces in the request line", "9112 §3", b"GET  /v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a tab in the request line", "9112 §3", b"GET\t/v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a trailing space", "9112 §3", b"GET /v1/echo HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
    ("a space in the target", "9112 §3.2", b"GET /v1/echo x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("no version", "9112 §3", b"GET /v1/echo\r\nHost: x\r\n\r\n", 400),
    ("a version in small letters", "9112 §2.3", b"GET /v1/echo http/1.1\r\nHost: x\r\n\r\n", 400),
    ("a version of two digits", "9112 §2.3", b"GET /v1/echo HTTP/1.10\r\nHost: x\r\n\r\n", 400),
    ("HTTP/2.0", "9110 §15.6.6", b"GET /v1/echo HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    ("HTTP/2's preface", "9113 §3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("HTTP/0.9", "9110 §15.6.6", b"GET /v1/echo HTTP/0.9\r\nHost: x\r\n\r\n", 505),
    ("a method that is no token", "9110 §9.1", b"G@T /v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an empty method", "9110 §9.1", b" /v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("CONNECT", "9110 §9.3.6", b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("a target without slash", "9112 §3.2", b"GET v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an asterisk for GET", "9112 §3.2.4", b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a fragment in the target", "9112 §3.2", b"GET /v1/echo#x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a target beyond ASCII", "9112 §3.2", "GET /v1/écho HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400),
    ("another scheme", "9112 §3.2.2", b"GET ftp://x/v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an absolute form without host", "9110 §4.2.1", b"GET http:///v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a wrong escape", "3986 §2.1", b"GET /v1/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an escaped NUL", "3986 §7.3", b"GET /v1/%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an escaped line break", "3986 §7.3", b"GET /v1/%0d%0a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an overlong UTF-8 slash", "3629 §3", b"GET /v1/%c0%af HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("an unknown expectation", "9110 §10.1.1", HEAD + b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n", 417),
    ("a TLS hello", "", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32, 400),
    ("two empty lines first", "9112 §2.2", b"\r\n\r\nGET /v1/echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
]

CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
# (what, reference, bytes)
BAD_CHUNKS = [
    ("no size", "9112 §7.1", b"\r\nhello\r\n0\r\n\r\n"),
    ("a size that is not hexadecimal", "9112 §7.1", b"g\r\nhello\r\n0\r\n\r\n"),
    ("a size with 0x", "9112 §7.1", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("a negative size", "9112 §7.1", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("a size with plus", "9112 §7.1", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("a size with an underscore", "9112 §7.1", b"1_0\r\nhellohellohello!\r\n0\r\n\r\n"),
    ("a space before the size", "9112 §7.1", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("a space after the size", "9112 §7.1", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("a size past 15 digits", "9112 §7.1", b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ("a bare LF after the size", "9112 §2.2", b"5\nhello\r\n0\r\n\r\n"),
    ("a bare LF after the data", "9112 §2.2", b"5\r\nhello\n0\r\n\r\n"),
    ("data longer than its size", "9112 §7.1", b"4\r\nhello\r\n0\r\n\r\n"),
    ("a bare LF in an extension", "9112 §7.1.1", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("an extension without name", "9112 §7.1.1", b"5;\r\nhello\r\n0\r\n\r\n"),
    ("an endless extension", "9112 §7.1.1", b"5;a=" + b"x" * 400 + b"\r\nhello\r\n0\r\n\r\n"),
    ("a bare LF at the end", "9112 §2.2", b"0\n\n"),
    ("a malformed trailer", "9112 §7.1.2", b"0\r\nno colon\r\n\r\n"),
    ("a folded trailer", "9112 §7.1.2", b"0\r\nX-A: 1\r\n 2\r\n\r\n"),
    ("a control byte in a trailer", "9112 §7.1.2", b"0\r\nX-A: \x00\r\n\r\n"),
    ("endless trailers", "9112 §7.1.2", b"0\r\n" + b"X-A: 1\r\n" * 2000),
]


@pytest.mark.parametrize(("data", "status"), [pytest.param(d, s, id=f"{w} ({ref})") for w, ref, d, s in REFUSED])
async def test_refused(data: bytes, status: int) -> None:
    async with rig() as r:
        client = await r.client()
        answer = await client.ask(data)
        assert answer.status == status
        assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
        assert await client.closed(), "what follows a malformed request cannot be trusted"
        assert r.upstream.connections == 0


@pytest.mark.parametrize("split", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("data", [pytest.param(d, id=f"{w} ({ref})") for w, ref, d in BAD_CHUNKS])
async def test_malformed_chunks_are_refused(data: bytes, split: bool) -> None:
    async with rig() as r:
        client = await r.client()
        await client.send(CHUNKED)
        for piece in [data[i : i + 1] for i in range(len(data))] if split else [data]:
            await client.send(piece)
        answer = await client.answer()
        assert answer.status == 400
        assert await client.closed()
        assert r.upstream.requests == [], "a malformed body is never a complete request for the upstream"


@pytest.mark.parametrize(
    ("body", "decoded"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"005\r\nhello\r\n00\r\n\r\n", b"hello"),
        (b'5;a;b=c;d="e\\"f"\r\nhello\r\n0;x\r\n\r\n', b"hello"),
        (b"A\r\nhellohello\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n", b"hellohello!"),
        (b"0\r\n\r\n", b""),
    ],
)
@pytest.mark.parametrize("split", [False, True], ids=["at once", "byte by byte"])
async def test_chunked_requests_are_understood(body: bytes, decoded: bytes, split: bool) -> None:
    """RFC 9112 §7.1: extensions and trailers are dropped, the next request on the connection is found."""
    async with rig() as r:
        client = await r.client()
        data = CHUNKED + body
        for piece in [data[i : i + 1] for i in range(len(data))] if split else [data]:
            await client.send(piece)
        assert (await client.answer()).status == 200
        assert (await client.ask(post(b"next"))).status == 200
        assert [b for _, b in r.upstream.requests] == [decoded, b"next"]
        assert b"X-Sum" not in r.upstream.requests[0][0]


async def test_hop_by_hop_fields_are_not_passed_on() -> None:
    """RFC 9110 §7.6.1, in both directions, also those that Connection names."""
    script = answers(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n"
        b"X-Public: 2\r\nContent-Length: 0\r\n\r\n"
    )
    async with rig(script) as r:
        answer = await r.ask(
            b"GET /v1/echo HTTP/1.1\r\nHost: x\r\nConnection: X-One,, keep-alive\r\nConnection: x-TWO\r\nX-One: 1\r\n"
            b"X-Two: 2\r\nX-Three: 3\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
            b"Proxy-Connection: close\r\nProxy-Authorization: secret\r\n\r\n"
        )
        head = r.upstream.requests[0][0].lower()
        for name in (b"x-one", b"x-two", b"connection", b"keep-alive", b"te:", b"upgrade", b"http2", b"proxy-auth"):
            assert b"\r\n" + name not in head, name
        assert b"\r\nx-three: 3\r\n" in head
        assert "x-private" not in answer.headers
        assert "keep-alive" not in answer.headers
        assert answer.headers["x-public"] == "2"


async def test_connection_cannot_remove_framing_or_host() -> None:
    async with rig() as r:
        await r.ask(post(b"hello", extra=b"Connection: content-length, host, transfer-encoding\r\n"))
        head, body = r.upstream.requests[0]
        assert b"\r\nHost: x\r\n" in head
        assert body == b"hello"


async def test_upgrades_are_not_made() -> None:
    """RFC 9110 §7.8: a server may ignore Upgrade; the connection goes on in HTTP/1.1."""
    async with rig() as r:
        client = await r.client()
        upgrade = b"GET /v1/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert (await client.ask(upgrade)).status == 200
        assert (await client.ask(GET)).status == 200


async def test_an_upstream_that_switches_protocols_is_cut_off() -> None:
    async with rig(answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")) as r:
        assert (await r.ask(GET)).status == 502


async def test_the_absolute_forms_authority_is_the_host() -> None:
    """RFC 9112 §3.2.2: Host is replaced."""
    async with rig() as r:
        await r.ask(b"GET http://real:80/v1/echo?a=%2F HTTP/1.1\r\nHost: other\r\n\r\n")
        assert r.upstream.requests[0][0].startswith(b"GET /v1/echo?a=%2F HTTP/1.1\r\nHost: real:80\r\n")


async def test_via_is_added() -> None:
    """RFC 9110 §7.6.3."""
    async with rig() as r:
        await r.ask(b"GET /v1/echo HTTP/1.1\r\nHost: x\r\nVia: 1.1 front\r\n\r\n")
        assert b"\r\nVia: 1.1 front\r\nVia: 1.1 greenthread\r\n" in r.upstream.requests[0][0]


async def test_one_empty_line_before_a_request_is_ignored() -> None:
    """RFC 9112 §2.2."""
    async with rig() as r:
        client = await r.client()
        assert (await client.ask(b"\r\n" + GET)).status == 200
        assert (await client.ask(b"\r\n" + GET)).status == 200


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1\r\nHost: x\r\n", True),
        (b"HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", False),
        (b"HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Close\r\n", False),
        (b"HTTP/1.0\r\n", False),
        (b"HTTP/1.0\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.0\r\nConnection: close, keep-alive\r\n", False),
    ],
)
async def test_keeping_the_connection(head: bytes, kept: bool) -> None:
    """RFC 9112 §9.3."""
    async with rig() as r:
        client = await r.client()
        for path in (b"/health", b"/v1/echo"):
            client = await r.client()
            answer = await client.ask(b"GET %b %b\r\n" % (path, head))
            assert answer.status == 200
            assert answer.headers.get("connection", "") == (
                "close" if not kept else "keep-alive" if b"1.0" in head else ""
            )
            if kept:
                assert (await client.ask(b"GET /health %b\r\n" % head)).status == 200
            else:
                assert await client.closed()


async def test_http_1_0_gets_no_chunked_coding() -> None:
    """RFC 9112 §6.1: decoded, and ended by the connection."""
    script = answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"1\r\n!\r\n0\r\n\r\n")
    async with rig(script) as r:
        client = await r.client()
        await client.send(b"GET /v1/echo HTTP/1.0\r\n\r\n")
        assert (await client.reader.read()).endswith(b"Connection: close\r\n\r\nhello!")


@pytest.mark.parametrize(
    "head", [b"Content-Length: 11\r\n", b"Transfer-Encoding: chunked\r\n", b""], ids=["length", "chunked", "neither"]
)
async def test_head_has_no_body(head: bytes) -> None:
    """RFC 9112 §6.3 1."""
    async with rig(answers(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")) as r:
        client = await r.client()
        for _ in range(2):
            answer = await client.ask(GET.replace(b"GET", b"HEAD"), "HEAD")
            assert (answer.status, answer.body, answer.complete) == (200, b"", True)
        assert r.upstream.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_body(status: bytes) -> None:
    async with rig(answers(b"HTTP/1.1 " + status + b"\r\n\r\n")) as r:
        client = await r.client()
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.status, answer.body, answer.complete) == (int(status[:3]), b"", True)


async def test_options_for_the_server() -> None:
    """RFC 9110 §9.3.7."""
    async with rig() as r:
        client = await r.client()
        answer = await client.ask(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS")
        assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")
        assert (await client.ask(GET)).status == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\nX-A: 1\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"garbage\r\n\r\n",
        b"X" * 300_000,
    ],
)
async def test_a_malformed_answer_is_a_502(answer: bytes) -> None:
    async with rig(answers(answer)) as r:
        got = await r.ask(post())
        assert got.status == 502
        assert json.loads(got.body)["error"]["code"] == "upstream_error"
        assert len(r.upstream.requests) == 1, "it may have run: not sent again"


async def test_a_malformed_chunk_in_an_answer_ends_it_without_an_end() -> None:
    script = answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"zz\r\n", step=True)
    async with rig(script) as r:
        client = await r.client()
        await client.send(GET)
        assert (await client.reader.readuntil(b"hello\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        r.upstream.go.set()
        assert await client.reader.read() == b""


async def test_an_answer_malformed_from_its_first_bytes_is_a_502() -> None:
    async with rig(answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")) as r:
        assert (await r.ask(GET)).status == 502


async def test_what_follows_an_answer_is_not_the_next_answer() -> None:
    """Response splitting: surplus bytes of an upstream close its connection."""
    surplus = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with rig(answers(surplus)) as r:
        client = await r.client()
        for _ in range(2):
            assert (await client.ask(GET)).body == b"ok"
        assert r.upstream.connections == 2


async def test_interim_answers_of_the_upstream_end_here() -> None:
    script = answers(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n",
        b"Content-Length: 2\r\n\r\nok",
    )
    async with rig(script) as r:
        answer = await r.ask(GET)
        assert (answer.status, answer.body) == (200, b"ok")


async def test_anthropics_shape_on_messages() -> None:
    async with rig(settings=Settings(max_body_bytes=10)) as r:
        answer = await r.ask(post(b"x" * 11, path="/v1/messages"))
        assert answer.status == 413
        assert json.loads(answer.body)["error"]["type"] == "request_too_large"
        assert json.loads(answer.body)["type"] == "error"
