"""vLLM's control calls: which, in what order, and what a wrong answer is to people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greenthread.gpu import PodRef
from greenthread.http_async import Reply
from greenthread.model import Model
from sidecar.engine import EngineError
from sidecar.engine.vllm import VllmEngine
from sidecar.settings import Settings


class Asked:
    """An engine's HTTP, played: remembers the calls, answers what it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.reply: Reply | OSError = Reply(200, b"{}")

    async def __call__(self, method: str, target: str, body: bytes | None) -> Reply:
        self.calls.append((method, target, None if body is None else json.loads(body)))
        if isinstance(self.reply, OSError):
            raise self.reply
        return self.reply


def engine_in(folder: Path, asked: Asked) -> VllmEngine:
    settings = Settings(PodRef("ns", "p"), "u", "m", "node", (0,), str(folder))
    return VllmEngine(settings, lambda text: None, ask=asked)


def pinned(value: bool) -> Any:
    spec = {"modelName": "m/m", "staging": {"pinned": value}}
    return Model.from_object({"metadata": {"name": "m", "namespace": "ns"}, "spec": spec}).spec


async def test_sleep_aborts_what_is_in_flight_and_a_pinned_model_keeps_its_weights_in_host_memory(
    tmp_path: Path,
) -> None:
    asked = Asked()
    engine = engine_in(tmp_path, asked)
    engine.configure(pinned(True))
    await engine.sleep()
    await engine.wake()
    assert asked.calls == [("POST", "/sleep?level=1&mode=abort", None), ("POST", "/wake_up", None)]


async def test_weights_that_were_dropped_are_read_again_before_the_cache_is_made(tmp_path: Path) -> None:
    asked = Asked()
    engine = engine_in(tmp_path, asked)
    engine.configure(pinned(False))
    await engine.sleep()
    engine.configure(pinned(True))  # how it went to sleep counts, not what is wished by now
    await engine.wake()
    assert asked.calls == [
        ("POST", "/sleep?level=2&mode=abort", None),
        ("POST", "/wake_up?tags=weights", None),
        ("POST", "/collective_rpc", {"method": "reload_weights"}),
        ("POST", "/wake_up?tags=kv_cache", None),
    ]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (ConnectionRefusedError("refused"), "the engine does not answer /sleep: refused"),
        (ConnectionResetError(), "the engine does not answer /sleep: ConnectionResetError"),
        (Reply(500, b"out of \xff" + b"x" * 1000), "the engine answered /sleep with 500: out of �" + "x" * 492),
        (Reply(200, b"<html>"), "the engine answered /sleep with something that is not JSON"),
    ],
)
async def test_a_call_that_went_wrong_is_sent_once_and_stays_in_the_journal(
    tmp_path: Path, reply: Reply | OSError, message: str
) -> None:
    asked = Asked()
    asked.reply = reply
    engine = engine_in(tmp_path, asked)
    with pytest.raises(EngineError) as caught:
        await engine.sleep()
    assert str(caught.value) == message
    assert len(asked.calls) == 1
    assert engine._under_way() == "sleep"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}"])
async def test_an_answer_needs_no_body(tmp_path: Path, body: bytes) -> None:
    asked = Asked()
    asked.reply = Reply(200, body)
    engine = engine_in(tmp_path, asked)
    await engine.sleep()
    assert engine._under_way() is None
