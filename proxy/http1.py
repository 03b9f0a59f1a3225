"""HTTP/1.1 message syntax and framing, strictly (RFC 9110, RFC 9112): heads, and the chunked coding.

The grammar is small enough to be checked whole in a few passes over the bytes that C code does (split, translate),
which costs less than a callback for each header field, and leaves nothing to a parser's leniency.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from proxy.errors import HttpError, UpstreamError
from proxy.paths import parse_target, valid_authority

_NOT_CONTROL = bytes(b for b in range(256) if b == 9 or (b >= 32 and b != 127))
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_REQUEST_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?", re.DOTALL)
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:=(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|" + _QUOTED + rb"))?)*"
)

MAX_CHUNK_LINE = 256  # bytes of a chunk's size with its extensions
MAX_TRAILER = 8192  # bytes of a trailer section

# What a field name means to a proxy.
_END_TO_END, _HOP, _HOST, _LENGTH, _CODING, _CONNECTION, _EXPECT, _TERM, _HEARTBEAT = range(9)
_KEPT_IN_RESPONSE = (_END_TO_END, _HOST, _EXPECT, _TERM)
_KINDS = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
    b"keep-alive": _HOP,
    b"proxy-connection": _HOP,
    b"proxy-authorization": _HOP,
    b"proxy-authenticate": _HOP,
    b"te": _HOP,
    b"upgrade": _HOP,
    b"http2-settings": _HOP,
    b"x-greenthread-max-wait": _TERM,
    b"x-greenthread-preempt": _TERM,
    b"x-greenthread-heartbeat": _HEARTBEAT,
}

# Clients repeat themselves: what has been checked once is looked up. Only valid spellings get in; all are bounded.
_CACHED = 1024
_kind_of: dict[bytes, int] = {}  # a field name as spelled → its kind
_request_lines: dict[bytes, tuple[str, str, str, int, bytes | None]] = {}  # → method, path, query, minor, authority
_status_lines: dict[bytes, tuple[int, int]] = {}  # → minor, status
_hosts: set[bytes] = set()
_chunk_sizes: dict[bytes, int] = {}


def _kind(name: bytes) -> int:
    """The kind of a field name; -1 when it is no token (then the message is malformed)."""
    if _TOKEN.fullmatch(name) is None:
        return -1
    kind = _KINDS.get(name.lower(), _END_TO_END)
    if len(_kind_of) < _CACHED:
        _kind_of[name] = kind
    return kind


@dataclass(slots=True)
class RequestHead:
    """A request without its body and the length of that. Shared by all requests with the same head: not changed."""

    method: str
    path: str
    """Canonical: percent-decoded once, no dot segments, no repeated slashes. "*" for `OPTIONS *`."""
    query: str
    """As sent, without the "?"."""
    minor: int
    """1 for HTTP/1.1, 0 for HTTP/1.0."""
    host: bytes
    lines: list[bytes] = field(repr=False)
    """The end-to-end header fields as sent (`Name: value`): without Host, framing and hop-by-hop fields."""
    chunked: bool
    keep_alive: bool
    expect_continue: bool
    terms: list[bytes] | None = None
    """The fields of proxy.terms as sent; None when there are none."""
    forwarded: tuple[Any, bytes] | None = field(default=None, repr=False, compare=False)
    """The route it took last, and the beginning of the head that went to the upstream then."""

    def get(self, name: str) -> str | None:
        """The value of an end-to-end header field (several are joined by ", "), None when absent."""
        wanted = name.lower().encode("ascii")
        values = []
        for line in self.lines:
            key, _, value = line.partition(b":")
            if key.lower() == wanted:
                values.append(value.strip(b" \t"))
        return b", ".join(values).decode("latin-1") if values else None


def _split(head: bytes) -> list[bytes] | None:
    """The lines of a head (without its final empty line); None when a control byte, bare CR or bare LF is in it."""
    lines = head.split(b"\r\n")
    if head.translate(None, _NOT_CONTROL) != b"\r\n" * (len(lines) - 1):
        return None
    return lines


def _connection_options(value: bytes, seen: set[bytes] | None) -> set[bytes]:
    options = {option.strip(b" \t").lower() for option in value.split(b",")}
    return options if seen is None else options | seen


def _without(lines: list[bytes], names: set[bytes]) -> list[bytes]:
    """`lines` without the fields that a Connection field named."""
    if not names - {b"close", b"keep-alive"}:
        return lines
    return [line for line in lines if line.partition(b":")[0].lower() not in names]


def _parse_request_line(line: bytes) -> tuple[str, str, str, int, bytes | None]:
    """Method, canonical path, query, minor version, authority of an absolute form. Raises HttpError."""
    words = line.split(b" ")
    if len(words) != 3 or not words[1]:
        raise HttpError(400, "The request line must be: method, one space, target, one space, HTTP/1.1.")
    verb, target, version = words
    if version == b"HTTP/1.1":
        minor = 1
    elif version == b"HTTP/1.0":
        minor = 0
    elif _REQUEST_VERSION.fullmatch(version):
        raise HttpError(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    else:
        raise HttpError(400, "The request line must end in HTTP/1.1.")
    if _TOKEN.fullmatch(verb) is None:
        raise HttpError(400, "The request method is not a token.")
    if verb == b"CONNECT":
        raise HttpError(405, "CONNECT is not supported: this server is no forward proxy.")
    path, query, authority = parse_target(target)
    if path == "*" and verb != b"OPTIONS":
        raise HttpError(400, "The request target '*' is for OPTIONS only.")
    start = (verb.decode("ascii"), path, query, minor, authority)
    if not query and len(line) < 256:
        if len(_request_lines) >= _CACHED:
            _request_lines.clear()
        _request_lines[line] = start
    return start


def parse_request_head(head: bytes, max_fields: int) -> tuple[RequestHead, int | None]:
    """Parse a request head (without its final CRLF CRLF): what it says, and its Content-Length.

    Raises HttpError for anything malformed or ambiguous.
    """
    lines = _split(head)
    if lines is None:
        raise HttpError(400, "The request head has a control character or a line that does not end in CRLF.")
    start = _request_lines.get(lines[0])
    if start is None:
        start = _parse_request_line(lines[0])
    method, path, query, minor, authority = start
    if len(lines) - 1 > max_fields:
        raise HttpError(431, f"The request has more than {max_fields} header fields.")

    keep: list[bytes] = []
    host: bytes | None = None
    length: int | None = None
    chunked = False
    expect = False
    terms: list[bytes] | None = None
    options: set[bytes] | None = None
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        kind = _kind_of.get(name, -1)
        if kind < 0:
            kind = _kind(name)
        if kind < 0 or not colon:
            raise HttpError(400, "A header field is malformed: it must be 'Name: value' on one line.")
        if kind == _END_TO_END:
            keep.append(line)
        elif kind == _HOST:
            if host is not None:
                raise HttpError(400, "The request has more than one Host field.")
            host = value.strip(b" \t")
            if host not in _hosts:
                if not valid_authority(host):
                    raise HttpError(400, "The Host field is not a host name with an optional port.")
                if len(_hosts) < _CACHED and len(host) < 256:
                    _hosts.add(host)
        elif kind == _LENGTH:
            value = value.strip(b" \t")
            if length is not None or _DIGITS.fullmatch(value) is None:
                raise HttpError(400, "The request must have one Content-Length of decimal digits.")
            length = int(value)
        elif kind == _CODING:
            if chunked or minor == 0 or value.strip(b" \t").lower() != b"chunked":
                raise HttpError(400, "The only transfer coding understood is one 'chunked', in HTTP/1.1.")
            chunked = True
        elif kind == _CONNECTION:
            options = _connection_options(value, options)
        elif kind >= _TERM:
            terms = [*(terms or ()), line]
        elif kind == _EXPECT:
            if value.strip(b" \t").lower() != b"100-continue":
                raise HttpError(417, "The only expectation understood is 100-continue.")
            expect = minor == 1
    if chunked and length is not None:
        raise HttpError(400, "The request has both Content-Length and Transfer-Encoding.")
    if host is None and minor == 1:
        raise HttpError(400, "The request has no Host field.")
    keep_alive = minor == 1
    if options:
        keep_alive = b"close" not in options and (keep_alive or b"keep-alive" in options)
        keep = _without(keep, options)
    request = RequestHead(
        method, path, query, minor, authority or host or b"", keep, chunked, keep_alive, expect, terms
    )
    return request, length


@dataclass(slots=True)
class ResponseHead:
    """An upstream's response without its body and the length of that. Shared by all responses with the same head."""

    status: int
    status_line: bytes
    lines: list[bytes]
    """The end-to-end header fields as sent, without framing and hop-by-hop fields."""
    chunked: bool
    keep_alive: bool
    heartbeat: bool = False
    """It began before the request was run: the body may say that it was not run after all."""
    text: bytes = field(init=False, repr=False)
    """Status line and `lines`, as they go on."""
    readable: bool = field(init=False, repr=False)
    """The body is an answer (2xx), and not encoded."""

    def __post_init__(self) -> None:
        self.text = b"\r\n".join([self.status_line, *self.lines, b""])
        self.readable = 200 <= self.status < 300 and self.get("content-encoding") is None

    def get(self, name: str) -> str | None:
        """The value of the first header field of this name, None when absent."""
        wanted = name.lower().encode("ascii")
        for line in self.lines:
            key, _, value = line.partition(b":")
            if key.lower() == wanted:
                return value.strip(b" \t").decode("latin-1")
        return None


def _parse_status_line(line: bytes) -> tuple[int, int]:
    """Minor version and status code. Raises UpstreamError."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise UpstreamError("it does not answer in HTTP/1.1")
    found = (int(match[1]), int(match[2]))
    if len(_status_lines) < _CACHED and len(line) < 64:
        _status_lines[line] = found
    return found


def parse_response_head(head: bytes) -> tuple[ResponseHead, int | None]:
    """Parse a response head (without its final CRLF CRLF): what it says, and its Content-Length.

    Raises UpstreamError for anything malformed or ambiguous.
    """
    lines = _split(head)
    if lines is None:
        raise UpstreamError("it does not answer in HTTP/1.1")
    minor, status = _status_lines.get(lines[0]) or _parse_status_line(lines[0])
    keep: list[bytes] = []
    length: int | None = None
    chunked = heartbeat = False
    options: set[bytes] | None = None
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        kind = _kind_of.get(name, -1)
        if kind < 0:
            kind = _kind(name)
        if kind < 0 or not colon:
            raise UpstreamError("it sent a malformed header field")
        if kind in _KEPT_IN_RESPONSE:
            keep.append(line)
        elif kind == _LENGTH:
            value = value.strip(b" \t")
            if length is not None or _DIGITS.fullmatch(value) is None:
                raise UpstreamError("it sent a wrong Content-Length")
            length = int(value)
        elif kind == _CODING:
            if chunked or minor == 0 or value.strip(b" \t").lower() != b"chunked":
                raise UpstreamError("it sent an unknown transfer coding")
            chunked = True
        elif kind == _CONNECTION:
            options = _connection_options(value, options)
        elif kind == _HEARTBEAT:
            keep.append(line)
            heartbeat = True
    if chunked and length is not None:
        raise UpstreamError("it sent both Content-Length and Transfer-Encoding")
    keep_alive = minor == 1
    if options:
        keep_alive = keep_alive and b"close" not in options
        keep = _without(keep, options)
    status_line = lines[0] if minor == 1 else b"HTTP/1.1" + lines[0][8:]
    return ResponseHead(status, status_line, keep, chunked, keep_alive, heartbeat), length


def _chunk_size(line: bytes) -> int:
    """Bytes of a chunk whose first line is `line`. Raises ValueError."""
    match = _CHUNK_LINE.fullmatch(line) if len(line) <= MAX_CHUNK_LINE else None
    if match is None:
        raise ValueError("a chunk size is malformed")
    size = int(match[1], 16)
    if len(_chunk_sizes) < _CACHED and len(line) < 8:
        _chunk_sizes[line] = size
    return size


# What a ChunkedDecoder expects next.
_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class ChunkedDecoder:
    """Follows a chunked body through pieces of any size. Raises ValueError (with the reason) where it is malformed."""

    __slots__ = ("_left", "_line", "_state", "_trailer")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0  # bytes of the chunk, or of the CRLF after it
        self._line = b""  # the beginning of a line that is not complete
        self._trailer = 0

    @property
    def done(self) -> bool:
        """True when the last chunk and the trailer section have been seen."""
        return self._state == _DONE

    def is_one_chunk(self, data: bytes) -> bool:
        """The common case of a stream: `data` is one chunk of the body, and whole. Then nothing has changed."""
        if self._state != _SIZE or self._line:
            return False
        end = data.find(b"\r\n", 0, 10)
        if end < 0:
            return False
        size = _chunk_sizes.get(data[:end], 0)  # of valid lines only
        return size > 0 and end + 4 + size == len(data) and data.endswith(b"\r\n")

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """Read `data`, append decoded pieces to `payload` if given. Returns how much of `data` belongs to the body."""
        position, end = 0, len(data)
        state = self._state
        while position < end and state != _DONE:
            if state == _DATA:
                stop = min(end, position + self._left)
                if payload is not None:
                    payload.append(data[position:stop])
                self._left -= stop - position
                position = stop
                if self._left == 0:
                    state, self._left = _DATA_END, 2
                continue
            if state == _DATA_END:
                piece = data[position : position + self._left]
                if not b"\r\n"[-self._left :].startswith(piece):
                    raise ValueError("a chunk is longer than its size")
                self._left -= len(piece)
                position += len(piece)
                if self._left == 0:
                    state = _SIZE
                continue
            line_end = data.find(b"\r\n", position) if not self._line else -1
            if line_end >= 0:
                line = data[position:line_end]
                position = line_end + 2
            else:
                # A line in pieces: collect up to its end. Rare, so simple.
                newline = data.find(b"\n", position)
                stop = newline + 1 if newline >= 0 else end
                self._line += data[position:stop]
                position = stop
                limit = MAX_TRAILER if state == _TRAILER else MAX_CHUNK_LINE
                if len(self._line) > limit:
                    raise ValueError("a line of the chunked coding is too long")
                if newline < 0:
                    break
                if self._line[-2:] != b"\r\n":
                    raise ValueError("a line of the chunked coding does not end in CRLF")
                line, self._line = self._line[:-2], b""
            if state == _SIZE:
                size = _chunk_sizes.get(line)
                if size is None:
                    size = _chunk_size(line)
                self._left = size
                state = _DATA if self._left else _TRAILER
            elif not line:
                state = _DONE
            else:
                self._trailer += len(line) + 2
                name, colon, _ = line.partition(b":")
                if self._trailer > MAX_TRAILER or not colon or _TOKEN.fullmatch(name) is None:
                    raise ValueError("the trailer section is malformed or too long")
                if line.translate(None, _NOT_CONTROL):
                    raise ValueError("the trailer section has a control character")
        self._state = state
        return position
