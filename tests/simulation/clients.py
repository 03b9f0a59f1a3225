"""Clients and the engine's own HTTP: what is at the two ends of the real proxies."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simulation.machine import EngineHost

if TYPE_CHECKING:
    from tests.simulation.world import World

GATEWAY_PORT = 8080


@dataclass
class Ask:
    """One client's request and what became of it."""

    id: str
    model: str
    stream: bool
    began: float
    outcome: str = ""
    #: When it ended (loop's time).
    ended: float = math.inf

    def ends(self, outcome: str) -> None:
        assert not self.outcome, f"{self.id} is answered twice: {self.outcome}, {outcome}"
        self.outcome, self.ended = outcome, asyncio.get_running_loop().time()


class EngineConnection(asyncio.Protocol):
    """vLLM's side of a request: it runs it when it has come whole, and stops when the other side leaves."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self._data = b""
        self._task: asyncio.Task[None] | None = None
        self.transport: Any = None

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def left(self) -> bool:
        """Whether the other side has closed, and the news of it is on its way."""
        return bool(self.transport.peer.is_closing())

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._host.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if len(body) < length:
            return
        self._data = body[length:]
        request = json.loads(body[:length])
        self._host.run_request(request["user"])
        self._task = asyncio.get_running_loop().create_task(self._answer(request["user"], request["stream"]))

    async def _answer(self, name: str, stream: bool) -> None:
        rng = self._host.machine.rng
        breaks = rng.random() < self._host.machine.faults.broken_answer
        before_the_head = breaks and rng.random() < 0.5
        await asyncio.sleep(rng.choice([0.0, 0.05, 0.5]))
        if before_the_head:
            return self._break_off()
        if not stream:
            body = json.dumps({"id": name, "done": True}).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            if breaks:
                self.transport.write(head + body[:5])
                return self._break_off()
            return self.transport.write(head + body)  # type: ignore[no-any-return]
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(rng.choice([1, 4])):
            self._chunk(f'data: {{"id":"{name}"}}\n\n')
            await asyncio.sleep(rng.choice([0.0, 0.2, 1.0]))
        if breaks:
            return self._break_off()
        self._chunk("data: [DONE]\n\n")
        self.transport.write(b"0\r\n\r\n")
        return None

    def _break_off(self) -> None:
        self._host.on_break()
        self.transport.abort()

    def _chunk(self, text: str) -> None:
        self.transport.write(b"%x\r\n%s\r\n" % (len(text), text.encode()))


class ClientProtocol(asyncio.Protocol):
    """Reads one answer. ``done`` gets (status, body, whether it is whole)."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[int, bytes, bool]] = asyncio.get_running_loop().create_future()
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        status, body, whole = self._read()
        if whole and not self.done.done():
            self.done.set_result((status, body, True))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            status, body, _whole = self._read()
            self.done.set_result((status, body, False))

    def _read(self) -> tuple[int, bytes, bool]:
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return 0, b"", False
        status, lower = int(head[9:12]), head.lower()
        if b"\r\ntransfer-encoding: chunked" in lower:
            return status, body, body.endswith(b"0\r\n\r\n")
        _, _, rest = lower.partition(b"\r\ncontent-length:")
        return status, body, len(body) >= int(rest.split(b"\r\n")[0] or 0)


async def ask(world: World, request: Ask, patience: float) -> None:
    """One client. It connects again as long as nobody listens; it sends its request once."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    while True:
        try:
            transport, protocol = await loop.create_connection(ClientProtocol, "127.0.0.1", GATEWAY_PORT)
            break
        except OSError:
            if loop.time() > end:
                return request.ends("left")
            await asyncio.sleep(0.3)
    body = json.dumps({"model": request.model, "user": request.id, "stream": request.stream}).encode()
    path = b"/v1/chat/completions" if world.rng.random() < 0.3 else b"/%s/v1/chat/completions" % request.model.encode()
    transport.write(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (path, len(body), body)
    )
    try:
        async with asyncio.timeout_at(end if end < math.inf else None):
            status, answer, whole = await protocol.done
    except TimeoutError:
        transport.abort()
        return request.ends("left")
    transport.close()
    return request.ends(_told(request, status, answer, whole))


def _told(request: Ask, status: int, answer: bytes, whole: bool) -> str:
    """What the client makes of an answer: `answered`, `refused: …`, `broke: …`, or `nonsense: …`."""
    if status == 0:
        return "broke: no answer"
    if status != 200:
        try:
            said = json.loads(answer)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return f"nonsense: {status} {answer[:200]!r}"
        if status not in (502, 503) or not said:
            return f"nonsense: {status} {said}"
        return f"broke: 502 {said}" if status == 502 else f"refused: {said}"
    if not whole:
        return "broke: the answer broke off"
    finished = b"[DONE]" in answer if request.stream else answer.endswith(b"}")
    if finished and f'"{request.id}"'.encode() in answer:
        return "answered"
    _, error, said = answer.decode(errors="replace").partition('"error"')
    if error:  # told within a stream that had begun with a sign of life
        return f"{'broke: 502' if 'upstream_error' in said else 'refused:'} {said[:300]}"
    return f"nonsense: {answer[:200]!r}"
