"""Random bytes against the parsers, with h11 as the judge: what passes here, it reads in the same way."""

from __future__ import annotations

import h11
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy import Settings
from proxy.errors import HttpError, UpstreamError
from proxy.heads import Heads
from proxy.http1 import ChunkedDecoder, parse_request_head, parse_response_head
from tests.unit.proxy.harness import rig

BOUNDED = settings(max_examples=200, deadline=None)

spaces = st.sampled_from([b"", b" ", b"\t", b"  ", b"\x0b", b"\r", b"\n"])
names = st.sampled_from(
    [b"Content-Length", b"content-length", b"Transfer-Encoding", b"Host", b"Connection", b"Expect", b"X-A", b"X A", b""]
)
values = st.one_of(
    st.sampled_from(
        [b"5", b"5, 5", b"+5", b"0", b"chunked", b"Chunked", b"gzip, chunked", b"x", b"a:1", b"close", b""]
    ),
    st.binary(max_size=6),
)
fields = st.builds(lambda n, a, b, v, c: n + a + b":" + b + v + c, names, spaces, spaces, values, spaces)
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\n\r\n"])
verbs = st.sampled_from([b"GET", b"POST", b"get", b"G T", b"", b"POST "])
targets = st.sampled_from([b"/v1/echo", b"/", b"*", b"http://h/a", b"/a b", b"/%41", b"/\xc3", b"", b"x"])
versions = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "])
heads = st.builds(
    lambda verb, target, version, end, lines: (
        b"%b %b %b%b" % (verb, target, version, end) + b"".join(line + end for line, end in lines) + b"\r\n"
    ),
    verbs,
    targets,
    versions,
    ends,
    st.lists(st.tuples(st.one_of(fields, st.just(b"Host: x")), ends), max_size=5),
)


def framing_by_h11(head: bytes) -> tuple[str, str, int | None, bool]:
    """Method, target, length and chunked as h11 reads them. Raises h11.RemoteProtocolError."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(head)
    event = server.next_event()
    if not isinstance(event, h11.Request):
        raise h11.RemoteProtocolError(f"no request but {event}")
    headers = dict(event.headers)
    length = int(headers[b"content-length"]) if b"content-length" in headers else None
    return event.method.decode(), event.target.decode(), length, b"transfer-encoding" in headers


heads_seen = Heads(lambda head: parse_request_head(head, 100))


@BOUNDED
@given(heads)
@example(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n")
def test_an_accepted_head_means_the_same_to_h11(data: bytes) -> None:
    assume(b"\r\n\r\n" in data)
    end = data.index(b"\r\n\r\n")
    try:
        seen, content_length = heads_seen.read(data[:end])
    except HttpError:
        return
    ours = seen.parsed
    assert seen.match(data) == (content_length, end + 4)
    method, _, length, chunked = framing_by_h11(data[: end + 4])
    assert (ours.method, content_length, ours.chunked) == (method, length, chunked)
    assert (ours, content_length) == parse_request_head(data[:end], 100)


@BOUNDED
@given(st.lists(st.tuples(names, values), max_size=4))
def test_what_h11_writes_is_read(pairs: list[tuple[bytes, bytes]]) -> None:
    """The other way round: an honest client's head is accepted."""
    client = h11.Connection(h11.CLIENT)
    extra = [
        (b"x-" + n.lower().strip(), v.strip())
        for n, v in pairs
        if n.isascii() and n and b" " not in n and not v.strip().translate(None, bytes(range(32, 127)))
    ]
    try:
        event = h11.Request(method="POST", target="/a", headers=[("Host", "x"), ("Content-Length", "3"), *extra])
    except h11.LocalProtocolError:
        return
    ours, length = parse_request_head(client.send(event)[:-4], 100)
    assert (ours.method, ours.path, length) == ("POST", "/a", 3)
    assert len(ours.lines) == len(extra)


sizes = st.sampled_from([b"5", b"0", b"05", b"a", b"A", b"1", b"0x1", b"-1", b" 5", b"5 ", b"", b"5;a=b", b"5;", b"g"])
breaks = st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r", b""])
chunked_bodies = st.builds(
    lambda chunks, tail: b"".join(size + a + data + b for size, a, data, b in chunks) + tail,
    st.lists(st.tuples(sizes, breaks, st.sampled_from([b"hello", b"x", b"0123456789", b""]), breaks), max_size=4),
    st.sampled_from([b"0\r\n\r\n", b"0\r\nX-T: 1\r\n\r\n", b"0\n\n", b"0\r\n", b"0\r\n\n", b"0\r\n\r\nGET /"]),
)


def decode(data: bytes, cuts: list[int]) -> tuple[bytes, bool, int]:
    decoder, pieces, at = ChunkedDecoder(), [], 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        if cut <= at:
            continue
        one, piece = decoder.is_one_chunk(data[at:cut]), data[at:cut]
        at += decoder.feed(piece, pieces)
        assert not one or (at == cut and decoder.is_one_chunk(piece)), "what is one chunk changes nothing"
        if decoder.done:
            break
    return b"".join(pieces), decoder.done, at


@BOUNDED
@given(chunked_bodies, st.lists(st.integers(0, 200), max_size=6))
@example(b"5\r\nhello\r\n0\r\n\r\n", [1, 2, 3, 4, 9, 10])
def test_an_accepted_chunked_body_means_the_same_to_h11(data: bytes, cuts: list[int]) -> None:
    try:
        body, done, used = decode(data, cuts)
    except ValueError:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    theirs, end = b"", False
    while True:
        event = server.next_event()
        if isinstance(event, h11.Data):
            theirs += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            end = True
        elif event is h11.NEED_DATA or event is h11.PAUSED:
            break
    assert (body, done) == (theirs, end)
    if done:
        assert data[used:] == server.trailing_data[0]


@BOUNDED
@given(chunked_bodies, st.lists(st.integers(0, 200), max_size=6))
def test_where_a_chunked_body_is_cut_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    def verdict(cuts: list[int]) -> object:
        try:
            return decode(data, cuts)
        except ValueError:
            return "malformed"

    assert verdict(cuts) == verdict([])


@BOUNDED
@given(st.one_of(st.binary(max_size=80), heads))
def test_parsers_raise_only_their_own_errors(data: bytes) -> None:
    for parse in (lambda: parse_request_head(data, 5), lambda: parse_response_head(data)):
        try:
            parse()
        except (HttpError, UpstreamError):
            pass


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(heads, chunked_bodies, st.binary(max_size=30)), min_size=1, max_size=4))
def test_whatever_is_sent_the_upstream_sees_only_valid_requests(pieces: list[bytes]) -> None:
    """A live proxy: every byte that reaches the upstream is a request that h11 reads, for a path of the table."""
    import uvloop

    async def run() -> None:
        received = bytearray()

        async def script(upstream, reader, writer):  # type: ignore[no-untyped-def]
            while data := await reader.read(65536):
                received.extend(data)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with rig(script, settings=Settings(linger_timeout=0.001, sweep_interval=0.001)) as r:
            client = await r.client()
            client.writer.write(b"".join(pieces))
            client.writer.write_eof()
            while await client.reader.read(65536):
                pass
        server = h11.Connection(h11.SERVER)
        server.receive_data(bytes(received))
        server.receive_data(b"")
        while True:
            try:
                event = server.next_event()
            except h11.RemoteProtocolError as e:
                assert "closed" in str(e) or "incomplete" in str(e), bytes(received)  # noqa: PT017
                break
            if isinstance(event, h11.Request):
                assert event.target.partition(b"?")[0] in (b"/v1/echo", b"/v1/messages")
            if event is h11.PAUSED:
                server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                server.send(h11.EndOfMessage())
                if server.our_state is not h11.DONE:
                    break
                server.start_next_cycle()
            if isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA:
                break

    uvloop.run(run())
