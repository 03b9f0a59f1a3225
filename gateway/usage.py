"""The tokens that an answer says it took: the `usage` of OpenAI's and Anthropic's APIs, read from the answer's ends.

A stream tells them near its end; Anthropic's may tell those of the prompt in its first event. What stands further
inside a body is not looked for: an answer of megabytes costs no more than a small one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAME = b'"usage"'  # within the text of an answer its quotes are escaped
_NUMBER = rb"([0-9]{1,15})(?=[,} \n])"  # and it is whole: what follows is JSON, not the next chunk's frame
_OF_VLLM = re.compile(
    rb'"usage":\{"prompt_tokens":%b,"total_tokens":[0-9]{1,15},"completion_tokens":%b' % ((_NUMBER,) * 2)
)
_OPEN = re.compile(rb'"usage"\s{0,8}:\s{0,8}\{')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s{0,8}:\s{0,8}' + _NUMBER)
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s{0,8}:\s{0,8}' + _NUMBER)
_LONGEST = 1024  # bytes of a usage object
_LAST = 4096  # bytes of an answer of one piece that are looked at
_TRIES = 4


def tokens(first: bytes, last: Sequence[bytes] | None) -> tuple[int, int]:
    """Tokens of the prompt and of the completion, 0 for what is not told. `first`: the first piece of an answer's body;
    `last`: its last pieces, None when the first is all."""
    end = first if last is None else b"".join(last)
    at = end.rfind(_NAME, -_LAST if last is None else 0)
    found = _OF_VLLM.match(end, at) if at >= 0 else None
    if found is not None:
        prompt_digits, completion_digits = found.groups()
        return int(prompt_digits), int(completion_digits)
    at = _find(end, len(end))
    if at < 0:
        return 0, 0
    prompt = _PROMPT.search(end, at, at + _LONGEST)
    completion = _COMPLETION.search(end, at, at + _LONGEST)
    if prompt is None:  # Anthropic's message_delta need not repeat what message_start said
        at = _find(first, _LAST)
        prompt = _PROMPT.search(first, at, at + _LONGEST) if at >= 0 else None
    return int(prompt[1]) if prompt else 0, int(completion[1]) if completion else 0


def _find(data: bytes, stop: int) -> int:
    """Where the last usage object before `stop` begins; -1: there is none."""
    for _ in range(_TRIES):
        stop = data.rfind(_NAME, max(stop - _LAST, 0), stop)
        if stop < 0 or _OPEN.match(data, stop):
            return stop
    return -1
