"""The tokens that the gateway reads from an engine's answers are those that the answers tell."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest

from gateway.usage import tokens
from tests.real_vllm.engines import Engine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 12}
TEXT = {"model": "tiny", "prompt": "Hello there", "max_tokens": 12}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | USAGE),
        ("/v1/completions", TEXT),
        ("/v1/completions", TEXT | USAGE),
        ("/v1/messages", CHAT),
        ("/v1/messages", CHAT | {"stream": True}),
        ("/v1/responses", {"model": "tiny", "input": "Hello there", "max_output_tokens": 12}),
    ],
    ids=["chat", "chat-stream", "text", "text-stream", "messages", "messages-stream", "responses"],
)
def test_they_are_read_from_the_ends_of_an_answer(engine: Engine, path: str, body: dict[str, Any]) -> None:
    with engine.http.stream("POST", path, json=body | {"ignore_eos": True}) as answer:
        pieces = list(answer.iter_raw())
        assert answer.status_code == 200
    found = tokens(pieces[0], deque(pieces, 8) if len(pieces) > 1 else None)
    text = b"".join(pieces).decode()
    if body.get("stream"):
        data = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        told: dict[str, int] = {}
        for event in data:
            told |= (event.get("message") or {}).get("usage") or {}
            told |= event.get("usage") or {}
    else:
        told = json.loads(text)["usage"]
    assert found == (
        told.get("prompt_tokens", told.get("input_tokens")),
        told.get("completion_tokens", told.get("output_tokens")),
    )
    assert found[0] > 0
    assert found[1] == 12


def test_a_stream_that_was_not_asked_to_tell_does_not(engine: Engine) -> None:
    with engine.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
        pieces = list(answer.iter_raw())
    assert tokens(pieces[0], deque(pieces, 8)) == (0, 0)
