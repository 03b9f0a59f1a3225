"""An engine that streams: every open stream gets one chunk every `interval` seconds, like tokens of one engine step.

`python -m benchmarks.proxy_bed.sse_upstream PORT`; `POST /anything?interval=0.02`.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

EVENT = (
    b'data: {"id":"chatcmpl-6f1f2a8d5e9b4c7f","object":"chat.completion.chunk","created":1763800000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 20:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_INTERVAL = re.compile(rb"interval=([0-9.]+)")


class Stream(asyncio.Protocol):
    """One connection; its first request begins the stream, which ends with the connection."""

    def __init__(self, clocks: dict[float, set[asyncio.Transport]]) -> None:
        self._clocks = clocks
        self._interval = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._interval:
            return
        match = _INTERVAL.search(data)
        self._interval = float(match[1]) if match else 1.0
        self._transport.write(HEAD)
        if self._interval not in self._clocks:
            self._clocks[self._interval] = set()
            self._tick(self._interval)
        self._clocks[self._interval].add(self._transport)

    def _tick(self, interval: float) -> None:
        streams = self._clocks[interval]
        for stream in streams:
            stream.write(CHUNK)
        asyncio.get_running_loop().call_later(interval, self._tick, interval)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._interval:
            self._clocks[self._interval].discard(self._transport)


async def serve(port: int) -> None:
    clocks: dict[float, set[asyncio.Transport]] = {}
    server = await asyncio.get_running_loop().create_server(lambda: Stream(clocks), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
