"""What clients send and engines answer stands in no log: neither a body nor a key, on no path a request can take."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

import pytest

from proxy.routes import Refuse
from tests.parts.path.world import MODEL, Path, path
from tests.unit.proxy.harness import Script, Upstream, answer_ok, answers, until

BODY_MARK, KEY_MARK, ANSWER_MARK, QUERY_MARK = "secret-body", "secret-key", "secret-answer", "secret-query"
MARKS = (BODY_MARK, KEY_MARK, ANSWER_MARK, QUERY_MARK)


def ask(target: str, value: object, extra: str = "") -> bytes:
    """A request with a mark wherever a client puts what is its own."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = (
        f"POST {target}?api_key={QUERY_MARK} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY_MARK}\r\n"
        f"x-api-key: {KEY_MARK}\r\nCookie: session={KEY_MARK}\r\nContent-Type: application/json\r\n{extra}"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


CHAT = {"model": MODEL, "messages": [{"role": "user", "content": BODY_MARK}]}
STREAM = {**CHAT, "stream": True}
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n"secret-answer"'


def break_off(begun: bytes) -> Script:
    async def script(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read_request(reader)
        writer.write(begun)

    return script


SCRIPTS = {
    "success": answers(OK),
    "an engine's error": answers(OK.replace(b"200 OK", b"500 Oops")),
    "an answer that is not HTTP": answers(b"secret-answer\r\n\r\n"),
    "a malformed field": answers(b"HTTP/1.1 200 OK\r\nX secret-answer: 1\r\n\r\n"),
    "a malformed chunk": answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret-answer\r\n"),
    "it breaks off at once": break_off(b""),
    "it breaks off in its head": break_off(b"HTTP/1.1 200 OK\r\nX-A: secret-answer"),
    "it breaks off in its answer": break_off(OK[:-3]),
}


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.fixture(autouse=True)
def all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def check(caplog: pytest.LogCaptureFixture) -> None:
    text = "\n".join(logging.Formatter("%(message)s").format(record) for record in caplog.records) + caplog.text
    assert [mark for mark in MARKS if mark in text] == []


async def _ask_everywhere(p: Path, target: str, value: object, extra: str = "") -> list[bytes]:
    return [
        await exchange(port, ask(prefix + target, value, extra))
        for port, prefix in p.ports().values()
    ]  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
async def test_whatever_the_engine_does(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with path(SCRIPTS[name]) as p:
        for value in (CHAT, STREAM):
            answered = await _ask_everywhere(p, "/v1/chat/completions", value)
            assert all(answered) or "breaks off" in name
        assert any(BODY_MARK.encode() in body for _, body in p.engine.requests), "the marks were on the way"
    if name not in ("success", "an engine's error"):
        assert "failed during POST" in caplog.text, "something was logged"
    check(caplog)


WRONG: dict[str, tuple[str, object, str]] = {
    "an unknown path": ("/v1/secret", CHAT, ""),
    "a control path": ("/sleep", CHAT, ""),
    "an unknown model": ("/v1/chat/completions", {**CHAT, "model": "nobody"}, ""),
    "not JSON": ("/v1/chat/completions", BODY_MARK.encode(), ""),
    "JSON that is no object": ("/v1/chat/completions", [BODY_MARK], ""),
    "nested too deeply": ("/v1/chat/completions", b"[" * 100_000 + BODY_MARK.encode(), ""),
    "no UTF-8": ("/v1/chat/completions", b"\xff" + BODY_MARK.encode(), ""),
    "malformed terms": ("/v1/chat/completions", CHAT, f"X-GreenThread-Max-Wait: {KEY_MARK}\r\n"),
    "a malformed field": ("/v1/chat/completions", CHAT, f"{KEY_MARK} x: 1\r\n"),
    "a control byte": ("/v1/chat/completions", CHAT, f"X-Key: {KEY_MARK}\x00\r\n"),
    "two lengths": ("/v1/chat/completions", CHAT, "Content-Length: 5\r\n"),
    "an unknown expectation": ("/v1/chat/completions", CHAT, f"Expect: {KEY_MARK}\r\n"),
    "too large a head": ("/v1/chat/completions", CHAT, f"X-Key: {KEY_MARK * 9000}\r\n"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_whatever_is_wrong_with_the_request(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with path() as p:
        for answer in await _ask_everywhere(p, *WRONG[name]):
            assert answer.startswith(b"HTTP/1.1 ")
            assert KEY_MARK.encode() not in answer, "nor does an error repeat a key"
    check(caplog)


@pytest.mark.parametrize("value", [CHAT, STREAM], ids=["plain", "streaming"])
async def test_while_it_waits(value: object, caplog: pytest.LogCaptureFixture) -> None:
    """Refused, too late, gone, and with a heartbeat."""
    async with path(awake=False, heartbeat=0.02, timeout=0.2) as p:
        for answer in await _ask_everywhere(p, "/v1/chat/completions", value):
            assert b"llama needs 20.0G" in answer, answer
        _, writer = await asyncio.open_connection("127.0.0.1", p.gateway_port)
        writer.write(ask("/v1/chat/completions", value))
        await until(lambda: p.door.waiting == 1)
        writer.close()
        await until(lambda: p.door.waiting == 0)
    check(caplog)


async def test_an_engine_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    async with path() as p:
        p.door.leave = lambda *_: None  # type: ignore[method-assign]
        front: object = p.sidecar.router
        forward = front._forward["/v1/chat/completions"]  # type: ignore[attr-defined]
        object.__setattr__(forward, "upstream", ("127.0.0.1", 1))
        for answer in await _ask_everywhere(p, "/v1/chat/completions", CHAT):
            assert answer.startswith(b"HTTP/1.1 502")
    assert "no connection to upstream" in caplog.text
    check(caplog)


MISTAKES: dict[str, Callable[[Path], None]] = {
    "the door": lambda p: setattr(p.door, "try_enter", _raise),
    "the door, waiting": lambda p: setattr(p.door, "enter", _raise),
    "the sidecar's router": lambda p: setattr(p.sidecar.router, "route", _raise),
    "the gateway's router": lambda p: setattr(p.gateway.gateway.server.router, "route", _raise),
    "the way out": lambda p: setattr(p.door, "leave", _raise),
}


def _raise(*_: object) -> None:
    raise KeyError("a mistake of ours")


@pytest.mark.parametrize("where", MISTAKES)
async def test_a_mistake_of_ours(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its traceback is logged: without what the request carried."""
    async with path(answer_ok, awake=where != "the door, waiting") as p:
        MISTAKES[where](p)
        await _ask_everywhere(p, "/v1/chat/completions", CHAT)
    assert "a mistake of ours" in caplog.text
    check(caplog)


async def test_a_request_that_is_turned_away(caplog: pytest.LogCaptureFixture) -> None:
    async with path(awake=False) as p:
        for port, prefix in p.ports().values():
            task = asyncio.create_task(exchange(port, ask(prefix + "/v1/chat/completions", CHAT)))
            await until(lambda: p.door.waiting == 1)
            p.door.turn_away("the model could not wake: the engine failed")
            assert b"could not wake" in await task
        assert isinstance(p.door._refusal("x"), Refuse)
    check(caplog)
