"""HTTP/1.1 as a client speaks it: answers read from bytes as they come, and a blocking connection.

Written out because the standard library's client takes longer to import than most commands take.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Callable, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

MAX_HEAD = 64 * 1024
"""Most bytes of an answer's status line and header fields, or of a chunk's size and the trailer."""
CHUNK = 256 * 1024
"""Bytes to read at once."""

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\0]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")


class BadAnswer(OSError):
    """The server's bytes are not one whole HTTP answer."""


class Answer:
    """One answer, read as its bytes come: `status` and `headers` once they are there, the body in pieces."""

    def __init__(self, method: str, limit: float) -> None:
        """`limit`: most bytes of the body that may wait to be taken."""
        self.status = 0
        self.headers: dict[str, str] = {}
        """Names in lower case."""
        self.begun = False
        """Whether anything has come."""
        self.waiting = 0
        """Bytes of the body that came and were not taken."""
        self.done = False
        self._method, self._limit = method, limit
        self._pieces: list[bytes] = []
        self._rest = b""
        self._left = 0
        self._keep = False
        # reads the next element of the answer from the front of `_rest`; False: it is not all there yet
        self._step: Callable[[], bool] = self._head

    @property
    def rest(self) -> bytes:
        """What came after it: the beginning of the next answer, where several were asked for at once."""
        return self._rest if self.done else b""

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another exchange."""
        return self.done and self._keep and not self._rest

    @property
    def keep(self) -> bool:
        """Whether the server will keep the connection open after this answer."""
        return self._keep

    def feed(self, data: bytes) -> None:
        """Raises BadAnswer."""
        self.begun = True
        self._rest = self._rest + data if self._rest else data
        while self._rest and not self.done and self._step():
            pass

    def end(self) -> None:
        """The server sends no more; BadAnswer when something is missing."""
        self.done = self.done or self._step == self._until_close
        if not self.done:
            raise BadAnswer("the connection was closed before the answer was complete")

    def take(self) -> bytes:
        """The part of the body that came since the last time."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self.waiting = [], 0
        return data

    def _head(self) -> bool:
        end = self._rest.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            if len(self._rest) > MAX_HEAD:
                raise BadAnswer(f"the answer's header fields are longer than {MAX_HEAD} bytes")
            return False
        first, *lines = self._rest[:end].split(b"\r\n")
        self._rest = self._rest[end + 4 :]
        match = _STATUS.fullmatch(first)
        if match is None:
            raise BadAnswer(f"this is no HTTP/1.1 answer: {first[:80]!r}")
        status, fields = int(match[2]), _fields(lines)
        if status == 101:
            raise BadAnswer("the server switched to another protocol, unasked")
        if status < 200:
            return True  # the answer itself follows
        self.status, self.headers = status, fields
        self._keep = match[1] == b"1" and "close" not in fields.get("connection", "").lower()
        self._frame()
        return True

    def _frame(self) -> None:
        """Where the body ends."""
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        tunnel = self._method == "CONNECT" and self.status < 300
        if tunnel or self._method == "HEAD" or self.status in (204, 304):
            self.done = True
        elif coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise BadAnswer(f"the answer's length is not clear (transfer-encoding: {coding}, length {length})")
            self._step = self._chunk_size
        elif length is not None:
            if not (length.isascii() and length.isdecimal() and len(length) < 16):
                raise BadAnswer(f"the answer's length is not a number: {length[:80]!r}")
            self._left, self._step = int(length), self._length
            self.done = self._left == 0
        else:
            self._keep, self._step = False, self._until_close

    def _length(self) -> bool:
        self.done = self._data()
        return self.done

    def _data(self) -> bool:
        """Moves up to `_left` bytes to the body; True when there were as many."""
        data = self._rest if len(self._rest) <= self._left else self._rest[: self._left]
        self._rest = self._rest[len(data) :]
        self._left -= len(data)
        self._add(data)
        return not self._left

    def _add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.waiting += len(data)
        if self.waiting > self._limit:
            raise BadAnswer(f"the answer is larger than {self._limit} bytes")

    def _until_close(self) -> bool:
        self._add(self._rest)
        self._rest = b""
        return False

    def _line(self) -> bytes | None:
        line, found, rest = self._rest.partition(b"\r\n")
        if len(line) > MAX_HEAD:
            raise BadAnswer("a chunk's size, or a trailer, does not end")
        if not found:
            return None
        self._rest = rest
        return line

    def _chunk_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise BadAnswer(f"this is no size of a chunk: {line[:80]!r}")
        self._left = int(match[1], 16)
        self._step = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> bool:
        if self._left and not self._data():
            return False
        if len(self._rest) < 2:
            return False
        if not self._rest.startswith(b"\r\n"):
            raise BadAnswer("a chunk is longer than its size says")
        self._rest, self._step = self._rest[2:], self._chunk_size
        return True

    def _trailer(self) -> bool:
        line = self._line()
        self.done = line == b""
        return line is not None


def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise BadAnswer(f"this is no header field: {line[:80]!r}")
        name, value = match[1].decode("ascii").lower(), match[2].decode("latin-1")
        if name in fields and name in ("content-length", "transfer-encoding") and fields[name] != value:
            raise BadAnswer(f"the answer has two different fields {name}")
        fields[name] = value if name not in fields or fields[name] == value else f"{fields[name]}, {value}"
    return fields


def split_address(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path (without a final slash) of an http or https URL; ValueError for anything else."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("http", "https"):
        raise ValueError(f"{url!r} is not an address; write it like http://host:8000")
    authority, slash, path = rest.partition("/")
    path = path.partition("?")[0].partition("#")[0]
    authority = authority.rpartition("@")[2]
    if authority.startswith("["):
        host, _, after = authority[1:].partition("]")
        port = after.removeprefix(":")
    else:
        host, _, port = authority.partition(":")
    good = bool(host) and (not port or (port.isascii() and port.isdigit() and 0 < int(port) < 65536))
    if not good or not authority.isascii() or not authority.isprintable() or " " in authority:
        raise ValueError(f"{url!r} is not an address; write it like http://host:8000")
    return scheme, host, int(port) if port else (443 if scheme == "https" else 80), f"{slash}{path}".rstrip("/")


class Connection:
    """One blocking connection, opened by the first request; requests may be sent ahead of their answers.

    Errors are OSError (`BadAnswer` is one). Not for use by several threads at once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout: float,
        connect_timeout: float | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        proxy: tuple[str, int, Mapping[str, str]] | None = None,
    ) -> None:
        """`timeout`: seconds of silence; `server_name`: what the certificate is for, if not the host; `proxy`: an HTTP
        proxy's host, port and header fields, through which a tunnel is made."""
        self._host, self._port, self._timeout = host, port, timeout
        self._connect_timeout = timeout if connect_timeout is None else min(connect_timeout, timeout)
        self._tls, self._server_name, self._proxy = tls, server_name or host, proxy
        self._shown = f"[{host}]" if ":" in host else host
        self._authority = self._shown if port == (443 if tls else 80) else f"{self._shown}:{port}"
        self._wire: socket.socket | None = None
        self._owed: list[str] = []
        self._ahead = b""

    @property
    def is_open(self) -> bool:
        return self._wire is not None

    @property
    def is_idle(self) -> bool:
        """Open, with nothing owed. One with something to read has been closed by the server: a write would be lost."""
        if self._wire is None or self._owed or self._ahead:
            return False
        try:
            return not select.select([self._wire], [], [], 0)[0]
        except (OSError, ValueError):  # more than 1,024 open files, or closed
            return False

    def connect(self) -> None:
        """Opens the connection, with TLS if it has that."""
        to = self._proxy[:2] if self._proxy else (self._host, self._port)
        wire = socket.create_connection(to, self._connect_timeout)
        try:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._proxy:
                self._tunnel(wire, self._proxy)
            if self._tls is not None:
                wire = self._tls.wrap_socket(wire, server_hostname=self._server_name)
            wire.settimeout(self._timeout)
        except BaseException:
            wire.close()
            raise
        self._wire, self._owed, self._ahead = wire, [], b""

    def _tunnel(self, wire: socket.socket, proxy: tuple[str, int, Mapping[str, str]]) -> None:
        there = f"{self._shown}:{self._port}"
        lines = [f"CONNECT {there} HTTP/1.1", f"host: {there}", *(f"{name}: {text}" for name, text in proxy[2].items())]
        wire.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answer = Answer("CONNECT", MAX_HEAD)
        while not answer.status:
            data = wire.recv(1)  # what follows belongs to the server
            if not data:
                raise BadAnswer(f"the proxy {proxy[0]}:{proxy[1]} closed the connection")
            answer.feed(data)
        if answer.status >= 300:
            raise BadAnswer(f"the proxy {proxy[0]}:{proxy[1]} does not let us through to {there}: {answer.status}")

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> None:
        """Sends one request. `path` with its query; the host and the body's length are added."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        if any("\n" in line or "\r" in line for line in lines):
            raise ValueError("a request's line must not have a line end in it")
        if self._wire is None:
            self.connect()
        assert self._wire is not None
        self._wire.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        self._owed.append(method)

    def receive(self, limit: float) -> Answer:
        """The head of the answer to the oldest request that has none yet; `limit`: most bytes of its body that wait."""
        answer = Answer(self._owed.pop(0), limit)
        ahead, self._ahead = self._ahead, b""
        if ahead:
            answer.feed(ahead)
        while not answer.status:
            self._more(answer)
        return answer

    def read(self, answer: Answer) -> bytes:
        """The next part of its body, empty at the end."""
        while not answer.waiting and not answer.done:
            self._more(answer)
        data = answer.take()
        if answer.done and not self._ahead:
            self._ahead = answer.rest
        return data

    def read_all(self, answer: Answer) -> bytes:
        """The whole body, within the limit."""
        while not answer.done:
            self._more(answer)
        self._ahead = answer.rest
        return answer.take()

    def _more(self, answer: Answer) -> None:
        assert self._wire is not None
        data = self._wire.recv(CHUNK)
        if data:
            answer.feed(data)
        else:
            answer.end()
            if not answer.status:
                raise BadAnswer("the connection was closed without an answer")

    def shut(self) -> None:
        """Ends what another thread reads or writes here; that one gets an error."""
        if self._wire is not None:
            try:
                self._wire.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed already

    def close(self) -> None:
        """Closes it; the next request opens it again."""
        if self._wire is not None:
            self._wire.close()
        self._wire, self._owed, self._ahead = None, [], b""
