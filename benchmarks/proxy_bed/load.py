"""The load: load.c for what is timed, Python for what is only counted."""

from __future__ import annotations

import asyncio
import http.client
import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import uvloop

from benchmarks.proxy_bed.subject import MODEL, Subject

#: What OpenAI's Python SDK sends with each request.
SDK_HEADERS = (
    ("Accept-Encoding", "gzip, deflate"),
    ("Connection", "keep-alive"),
    ("Accept", "application/json"),
    ("Content-Type", "application/json"),
    ("User-Agent", "OpenAI/Python 2.8.1"),
    ("X-Stainless-Lang", "python"),
    ("X-Stainless-Package-Version", "2.8.1"),
    ("X-Stainless-OS", "Linux"),
    ("X-Stainless-Arch", "x64"),
    ("X-Stainless-Runtime", "CPython"),
    ("X-Stainless-Runtime-Version", "3.11.2"),
    ("Authorization", "Bearer sk-proj-0123456789abcdefghijklmnopqrstuvwxyz"),
    ("X-Stainless-Async", "false"),
    ("x-stainless-retry-count", "0"),
    ("x-stainless-read-timeout", "600"),
)

_QUESTION = "Explain to somebody who knows operating systems how a paged key-value cache works and why it helps. "

#: Bodies of different lengths, so that no two requests in a row have the same head.
BODIES = tuple(
    json.dumps(
        {
            "messages": [
                {"role": "system", "content": "You are a helpful assistant. Answer briefly and say when unsure."},
                {"role": "user", "content": (_QUESTION * 9)[: 700 + 3 * number]},
            ],
            "model": MODEL,
            "max_tokens": 256,
            "temperature": 0.2,
        }
    )
    for number in range(67)
)


def chat_request(body: str, path: str = "/v1/chat/completions") -> str:
    """One request, as bytes on the wire."""
    fields = [("Host", "127.0.0.1"), *SDK_HEADERS, ("Content-Length", str(len(body)))]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"POST {path} HTTP/1.1\r\n{head}\r\n{body}"


@dataclass(frozen=True)
class Run:
    """What one run found."""

    #: Requests that were answered, or chunks.
    requests: int
    seconds: float
    #: Latency, milliseconds.
    p50: float
    p99: float
    #: CPU seconds of the proxy; 0 when none was measured.
    cpu: float

    @property
    def rps(self) -> float:
        return self.requests / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.requests / self.cpu


def requests_file() -> bytes:
    """What load.c sends, in its format."""
    requests = [chat_request(body).encode() for body in BODIES]
    return b"".join(len(request).to_bytes(4, "little") + request for request in requests)


def measure(
    engine: int, port: int, clients: int, seconds: float, subject: Subject | None = None, interval: float = 0.0
) -> Run:
    """Let the engine ask `port`: requests, or, with `interval`, streams with a chunk that often.

    RuntimeError when one was not answered as it should.
    """
    kind = "streams" if interval else "measure"
    pid = subject.pid if subject else 0
    query = f"port={port}&pid={pid}&clients={clients}&seconds={seconds}&interval={interval}"
    connection = http.client.HTTPConnection("127.0.0.1", engine, timeout=seconds + 30)
    connection.request("GET", f"/{kind}?{query}")
    found = json.loads(connection.getresponse().read())
    connection.close()
    run = Run(found["requests"] or found["chunks"], found["seconds"], found["p50"], found["p99"], found["cpu"])
    if found["failed"] or not run.requests:
        raise RuntimeError(f"port {port}: {found}")
    return run


class Streams:
    """Open streams through a proxy, for a look at its memory."""

    def __init__(self, port: int, count: int, interval: float) -> None:
        """`interval`: seconds between two chunks of one stream."""
        self._selector = selectors.DefaultSelector()
        body = json.dumps({"model": MODEL, "prompt": "Hello", "stream": True, "max_tokens": 4096})
        data = chat_request(body, f"/v1/completions?interval={interval}").encode()
        self.chunks = 0
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(data)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def read(self, seconds: float) -> None:
        """Read for so long. RuntimeError when a stream ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                data = cast(socket.socket, key.fileobj).recv(1 << 16)
                if not data:
                    raise RuntimeError("a stream has ended")
                self.chunks += data.count(b"data: ")

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            cast(socket.socket, key.fileobj).close()
        self._selector.close()


@contextmanager
def streams(port: int, count: int, interval: float) -> Iterator[Streams]:
    """`Streams` that end with the block."""
    opened = Streams(port, count, interval)
    try:
        yield opened
    finally:
        opened.close()


class _StormClient(asyncio.Protocol):
    def __init__(self, request: bytes, answers: asyncio.Queue[bytes]) -> None:
        self._request, self._answers, self._data = request, answers, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._data.endswith(b"}") and b"\r\n\r\n" in self._data:
            self._answers.put_nowait(self._data[:12])

    def connection_lost(self, exc: Exception | None) -> None:
        self._answers.put_nowait(b"")


def storm(port: int, clients: int, timeout: float) -> int:
    """So many clients ask at once, each on a connection of its own; how many got a 200."""

    async def ask() -> int:
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        request = chat_request(BODIES[0]).encode()
        made = [
            loop.create_connection(lambda: _StormClient(request, answers), "127.0.0.1", port) for _ in range(clients)
        ]
        transports = [transport for transport, _ in await asyncio.gather(*made)]
        good = 0
        try:
            async with asyncio.timeout(timeout):
                for _ in range(clients):
                    good += await answers.get() == b"HTTP/1.1 200"
        finally:
            for transport in transports:
                transport.abort()
        return good

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask())
