"""A head that was seen before is recognized, and nothing else is taken for it."""

from __future__ import annotations

import pytest

from proxy import heads
from proxy.errors import HttpError
from proxy.heads import Heads
from proxy.http1 import ChunkedDecoder, RequestHead, parse_request_head
from tests.unit.proxy.harness import rig

HEAD = b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\nX-A: 1"


def fresh() -> Heads[RequestHead]:
    return Heads(lambda head: parse_request_head(head, 100))


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Content-length"])
@pytest.mark.parametrize("after", [b"", b"\r\nX-A: 1"])
def test_another_length_is_read_from_the_same_head(name: bytes, after: bytes) -> None:
    known = fresh()
    for digits in (b"5", b"0", b"007", b"1234567", b"41", b"5"):
        head = b"POST /v1/echo HTTP/1.1\r\nHost: x\r\n" + name + b": " + digits + after
        seen, length = known.read(head)
        assert length == int(digits)
        assert seen.match(head + b"\r\n\r\nbody") == (int(digits), len(head) + 4)
        assert seen.parsed == parse_request_head(head, 100)[0]


@pytest.mark.parametrize("wrong", [b"+5", b"-5", b"5 ", b" 5", b"5,5", b"5_0", b"0x5", b"", b"\xb2", b"1" * 19, b"5\n"])
def test_a_wrong_length_in_a_known_head_is_not_taken(wrong: bytes) -> None:
    known = fresh()
    seen, _ = known.read(HEAD % b"500")
    assert seen.match(HEAD % wrong + b"\r\n\r\n") is None
    if wrong.strip(b" ") != b"5":  # white space around a value is allowed
        with pytest.raises(HttpError):
            known.read(HEAD % wrong)


def test_a_head_that_goes_on_otherwise_is_another_one() -> None:
    seen, _ = fresh().read(HEAD % b"5")
    assert seen.match(HEAD % b"5" + b"\r\nTransfer-Encoding: chunked\r\n\r\n") is None
    assert seen.match(HEAD % b"5" + b"\r\n") is None
    assert seen.match((HEAD % b"5")[:40]) is None


def test_what_is_remembered_is_bounded() -> None:
    known = fresh()
    for number in range(3 * heads.LIMIT):
        known.read(b"GET / HTTP/1.1\r\nHost: x\r\nX-Id: %d" % number)
    assert len(known._known) <= heads.LIMIT
    before = len(known._known)
    known.read(b"GET / HTTP/1.1\r\nHost: x\r\nX-Id: " + b"y" * heads.LONGEST)
    assert len(known._known) == before, "a long head is not kept"


@pytest.mark.parametrize("wrong", [b"+3", b"3, 3", b"3_0", b"", b"0x3"])
async def test_a_connection_with_a_known_head_is_checked_as_strictly(wrong: bytes) -> None:
    request = b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n%b"
    async with rig() as r:
        client = await r.client()
        for body in (b"abc", b"abcd", b"x" * 1000, b"abc"):
            answer = await client.ask(request % (b"%d" % len(body), body))
            assert answer.status == 200
            assert r.upstream.requests[-1][1] == body
        assert (await client.ask(request % (wrong, b"abc"))).status == 400
        assert await client.closed()
        assert len(r.upstream.requests) == 4


@pytest.mark.parametrize(
    ("data", "one"),
    [
        (b"5\r\nhello\r\n", True),
        (b"5\r\nhello\r\n5\r\nhello\r\n", False),
        (b"5\r\nhello", False),
        (b"5\r\nhell\r\n", False),
        (b"5\r\nhellox\n", False),
        (b"4\r\nhello\r\n", False),
        (b"0\r\n\r\n", False),
        (b"+5\r\nhello\r\n", False),
        (b"hello", False),
    ],
)
def test_one_whole_chunk_is_recognized(data: bytes, one: bool) -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"5\r\nworld\r\n4\r\nfour\r\n")  # sizes that were seen before
    assert decoder.is_one_chunk(data) is one


def test_in_the_middle_of_a_chunk_no_piece_is_a_chunk() -> None:
    for begun in (b"5\r\n", b"5\r\nwo", b"5\r\nworld", b"5", b"0\r\n", b"0\r\n\r\n"):
        decoder = ChunkedDecoder()
        decoder.feed(b"5\r\nhello\r\n" + begun)
        assert not decoder.is_one_chunk(b"5\r\nhello\r\n")
