"""Which tokens are read from the ends of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.usage import tokens

COUNTS = {"prompt_tokens": 12, "total_tokens": 52, "completion_tokens": 40}
DETAILS = {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": None}


def whole(value: Any, **how: Any) -> tuple[int, int]:
    return tokens(json.dumps(value, **how).encode(), None)


def event(value: Any, name: str = "") -> bytes:
    data = (f"event: {name}\n" if name else "") + f"data: {json.dumps(value)}\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data.encode())


def pieces(*events: bytes) -> tuple[int, int]:
    return tokens(events[0], events)


@pytest.mark.parametrize("how", [{}, {"separators": (",", ":")}, {"indent": 2}], ids=["spaced", "compact", "indented"])
@pytest.mark.parametrize(
    ("usage", "found"),
    [
        (COUNTS, (12, 40)),
        (COUNTS | DETAILS, (12, 40)),
        (DETAILS | COUNTS, (12, 40)),
        ({"prompt_tokens": 7, "total_tokens": 7}, (7, 0)),
        ({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 9}, (3, 9)),
        ({"cache_read_input_tokens": 99, "input_tokens": 3, "output_tokens": 9}, (3, 9)),
        ({"type": "duration", "seconds": 3}, (0, 0)),
        ({}, (0, 0)),
        (None, (0, 0)),
        ("usage", (0, 0)),
    ],
)
def test_a_whole_answer(how: dict[str, Any], usage: Any, found: tuple[int, int]) -> None:
    assert whole({"id": "x", "choices": [{"text": "hi"}], "usage": usage, "prompt_logprobs": None}, **how) == found


def test_what_the_model_wrote_is_no_usage() -> None:
    said = '"usage": {"prompt_tokens": 1000, "completion_tokens": 1000}'
    logprobs = [{"token": "usage", "logprob": 0.0}]
    assert whole({"choices": [{"text": said, "logprobs": logprobs}]}) == (0, 0)
    assert whole({"usage": COUNTS, "choices": [{"text": said, "logprobs": logprobs}]}) == (12, 40)


def test_far_from_the_end_it_is_not_looked_for() -> None:
    assert whole({"usage": COUNTS, "results": ["x" * 10_000]}) == (0, 0)
    assert whole({"results": ["x" * 100_000], "usage": COUNTS}) == (12, 40)


def test_the_end_of_a_stream() -> None:
    said = {"choices": [{"delta": {"content": "hi"}}], "usage": None}
    last = (event({"choices": [], "usage": COUNTS}), b"c\r\ndata: [DONE]\n\n\r\n", b"0\r\n\r\n")
    assert pieces(event(said), event(said), *last) == (12, 40)
    # the same in other pieces, the usage torn apart
    together = b"".join(last)
    for at in range(1, len(together)):
        assert pieces(event(said), together[:at], together[at:]) == (12, 40)


def test_usage_in_every_event_counts_once() -> None:
    events = [event({"choices": [{}], "usage": COUNTS | {"completion_tokens": count}}) for count in range(1, 41)]
    assert tokens(events[0], events[-8:]) == (12, 40)


def test_a_number_that_a_chunk_ends_in_is_not_taken_for_whole() -> None:
    first, second = b'{"usage":{"prompt_tokens":1', b'2,"total_tokens":3,"completion_tokens":40}}'
    framed = [b"%x\r\n%b\r\n" % (len(part), part) for part in (first, second)]
    assert pieces(*framed, b"0\r\n\r\n") == (0, 40)


@pytest.mark.parametrize(
    ("at_the_end", "found"),
    [({"output_tokens": 15}, (25, 15)), ({"input_tokens": 26, "output_tokens": 15}, (26, 15))],
    ids=["as Anthropic", "as vLLM"],
)
def test_an_anthropic_stream(at_the_end: dict[str, int], found: tuple[int, int]) -> None:
    message = {"id": "msg", "content": [], "usage": {"input_tokens": 25, "output_tokens": 1}}
    first = event({"type": "message_start", "message": message}, "message_start")
    said = event({"type": "content_block_delta", "delta": {"text": "hi"}}, "content_block_delta")
    last = (event({"type": "message_delta", "usage": at_the_end}), event({"type": "message_stop"}), b"0\r\n\r\n")
    assert tokens(first, (*[said] * 5, *last)) == found
    assert pieces(first, said, *last) == found


def test_a_stream_that_broke_off_tells_nothing() -> None:
    said = event({"choices": [{"delta": {"content": "hi"}}]})
    assert pieces(said, said, said) == (0, 0)
