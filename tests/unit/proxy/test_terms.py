"""What a request may ask for by its header fields, and what the next hop is told of it."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import HttpError
from proxy.terms import NO_TERMS, Terms, parse_terms
from tests.unit.proxy.harness import FakeGate, post, rig


@pytest.mark.parametrize(
    ("lines", "terms"),
    [
        ([], NO_TERMS),
        ([b"X-GreenThread-Max-Wait: 3s"], Terms(max_wait=3)),
        ([b"x-greenthread-max-wait:\t1m30s "], Terms(max_wait=90)),
        ([b"X-GREENTHREAD-MAX-WAIT:0s"], Terms(max_wait=0)),
        ([b"X-GreenThread-Max-Wait: 250ms"], Terms(max_wait=0.25)),
        ([b"X-GreenThread-Preempt: never"], Terms(preempts=False)),
        ([b"X-GreenThread-Heartbeat: off"], Terms(heartbeat=False)),
        (
            [b"X-GreenThread-Max-Wait: 1h", b"X-GreenThread-Preempt: never", b"X-GreenThread-Heartbeat: off"],
            Terms(3600, preempts=False, heartbeat=False),
        ),
    ],
)
def test_read(lines: list[bytes], terms: Terms) -> None:
    assert parse_terms(lines) == terms


WRONG = [
    [b"X-GreenThread-Max-Wait: 3"],
    [b"X-GreenThread-Max-Wait: -3s"],
    [b"X-GreenThread-Max-Wait: 3 s"],
    [b"X-GreenThread-Max-Wait: soon"],
    [b"X-GreenThread-Max-Wait:"],
    [b"X-GreenThread-Max-Wait: " + b"9" * 5000 + b"s"],
    [b"X-GreenThread-Max-Wait: 3s", b"x-greenthread-max-wait: 4s"],
    [b"X-GreenThread-Preempt: always"],
    [b"X-GreenThread-Preempt: Never"],
    [b"X-GreenThread-Preempt:"],
    [b"X-GreenThread-Preempt: never", b"X-GreenThread-Preempt: never"],
    [b"X-GreenThread-Heartbeat: on"],
    [b"X-GreenThread-Heartbeat: 5s"],
]


@pytest.mark.parametrize("lines", WRONG)
def test_what_is_wrong_says_what_to_write(lines: list[bytes]) -> None:
    with pytest.raises(HttpError, match=r"(?i)X-GreenThread-") as caught:
        parse_terms(lines)
    assert caught.value.status == 400


@given(
    st.lists(
        st.builds(
            lambda name, value: name + b":" + value,
            st.sampled_from([b"X-GreenThread-Max-Wait", b"x-greenthread-preempt", b"X-GREENTHREAD-HEARTBEAT"]),
            st.one_of(st.sampled_from([b" 3s", b"0s", b" never", b"off\t", b"1h1h"]), st.binary(max_size=40)),
        ),
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_sent_is_understood_or_a_400_and_passed_on_as_it_was_understood(lines: list[bytes]) -> None:
    try:
        terms = parse_terms(lines)
    except HttpError as error:
        assert error.status == 400  # noqa: PT017
        return
    assert terms.max_wait >= 0
    again = parse_terms(terms.lines(0.0))
    assert (again.preempts, again.heartbeat) == (terms.preempts, terms.heartbeat)
    assert again.max_wait == pytest.approx(terms.max_wait, abs=0.001)


def test_the_next_hop_may_let_it_wait_for_what_is_left() -> None:
    assert NO_TERMS.lines(5) == []
    assert Terms(3).lines(1.25) == [b"X-GreenThread-Max-Wait: 1.75s"]
    assert Terms(3).lines(4) == [b"X-GreenThread-Max-Wait: 0s"]
    assert parse_terms(Terms(math.inf, preempts=False, heartbeat=False).lines(9)) == Terms(
        preempts=False, heartbeat=False
    )


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/messages", "/health"])
async def test_malformed_terms_are_a_400_also_while_the_model_serves(path: str) -> None:
    gate = FakeGate()
    async with rig(gate=gate) as r:
        client = await r.client()
        answer = await client.ask(post(path=path, extra=b"X-GreenThread-Max-Wait: soon\r\n"))
        assert answer.status == 400
        assert "a duration like 500ms" in json.loads(answer.body)["error"]["message"]
        assert (await client.ask(post())).status == 200, "the connection goes on"
        assert len(r.upstream.requests) == 1


async def test_terms_are_passed_on_less_what_was_waited() -> None:
    gate = FakeGate(open_=False)
    async with rig(gate=gate) as r:
        client = await r.client()
        await client.send(post(extra=b"x-greenthread-preempt: never\r\nX-GreenThread-Max-Wait: 1m\r\n"))
        await gate.asked.wait()
        await asyncio.sleep(0.05)
        gate.waiting[0].set_result(None)
        assert (await client.answer()).status == 200
        head = r.upstream.requests[0][0]
        assert b"\r\nX-GreenThread-Preempt: never\r\n" in head
        left = float(head.split(b"X-GreenThread-Max-Wait: ")[1].split(b"s\r\n")[0])
        assert 59 < left <= 59.95
