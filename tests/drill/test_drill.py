"""A minute of the drill on the real API server, and that its judgement can fail."""

from __future__ import annotations

import os

import pytest

from greenthread.units import parse_duration
from tests.drill.drill import Drill, Result, report
from tests.drill.faults import Fault
from tests.drill.load import Load, Request
from tests.drill.processes import MIB, Life
from tests.testbeds.kube import GARBAGE_COLLECTION, RealApi
from tests.testbeds.programs import Missing, need, skip_or_fail

#: How long clients ask: `DRILL_TIME=5m`.
TIME = parse_duration(os.environ.get("DRILL_TIME", "60s"))


@pytest.mark.real
@pytest.mark.processes
@pytest.mark.timeout(TIME * 4 + 300)
def test_nothing_is_lost_while_parts_die() -> None:
    try:
        need("helm")  # makes the parts' accounts
        bed = RealApi(GARBAGE_COLLECTION)
    except Missing as missing:
        skip_or_fail(missing)
    with bed as api:
        result = Drill(api, TIME, seed=1).run()
    print(report(result))
    assert not result.mistakes, report(result)
    assert {fault.part for fault in result.faults} == {
        "sidecar", "engine", "gateway", "controller", "agent", "etcd", "kube-apiserver",
    }  # fmt: skip
    assert sum(request.outcome == "answered" for request in result.requests) > 100
    assert len(result.lives) >= 4, "most sidecars lived throughout"


KILLED = Fault("kill engine", "engine", "ada", 10.0, 13.0, killed=True)
STOPPED = Fault("stop engine 2 s", "engine", "ada", 10.0, 12.0)
GATEWAY = Fault("kill gateway", "gateway", "", 10.0, 13.0, killed=True)
SIDECAR = Fault("kill sidecar", "sidecar", "ada", 10.0, 13.0, killed=True)
API = Fault("kill etcd 2 s", "etcd", "", 10.0, 13.0)


@pytest.mark.parametrize(
    ("fault", "model", "direct", "began", "ended", "explained"),
    [
        (KILLED, "ada", False, 9, 10.05, True),
        (KILLED, "ada", False, 10.5, 10.6, True),
        (KILLED, "ada", False, 12, 12.5, False),
        (KILLED, "ada", False, 9, 9.8, False),
        (KILLED, "bob", False, 9, 10.05, False),
        (STOPPED, "ada", False, 11.9, 12.5, True),
        (STOPPED, "ada", False, 13.5, 14, False),
        (GATEWAY, "bob", False, 12.5, 12.6, True),
        (GATEWAY, "bob", True, 9, 11, False),
        (SIDECAR, "ada", False, 12.5, 12.6, False),
        (SIDECAR, "ada", True, 12.5, 12.6, True),
        (API, "ada", False, 9, 12, False),
    ],
)
def test_a_request_is_lost_to_a_fault_only_if_that_was_on_its_way(
    fault: Fault, model: str, direct: bool, began: float, ended: float, explained: bool
) -> None:
    assert fault.explains(model, direct, began, ended) is explained


def ended(error: dict[str, object], status: int, headers: dict[str, str] | None = None) -> Request:
    request = Request("test-1", "ada", "completions", False, False, 1.0, 2.0)
    Load._judge(request, error, status, headers)  # type: ignore[arg-type]
    return request


def test_only_an_error_that_says_why_and_when_to_come_back_is_a_refusal() -> None:
    again = {"retry-after": "3"}
    assert ended({"message": "no room", "code": "model_not_ready"}, 503, again).outcome == "refused"
    assert ended({"message": "no room", "type": "overloaded_error"}, 503, again).outcome == "refused"
    assert ended({"message": "no room", "code": "model_not_ready"}, 0).outcome == "refused", "in a stream"
    assert ended({"message": "no room", "code": "model_not_ready"}, 503, {}).outcome == "broken"
    assert ended({"message": "", "code": "model_not_ready"}, 503, again).outcome == "broken"
    assert ended({"message": "it broke", "code": "upstream_error"}, 502).outcome == "broken"
    assert ended({"message": "it broke", "code": "upstream_error"}, 0).outcome == "broken"
    assert ended({"message": "it broke", "type": "api_error"}, 0).outcome == "broken"
    assert ended({"message": "who?", "code": "model_not_found"}, 404, again).outcome == "broken"


def test_growth_is_seen() -> None:
    steady = Life("agent", 1, [1.0, 2.0, 3.0, 4.0], [50 * MIB, 51 * MIB, 50 * MIB, 51 * MIB], [9, 9, 9, 9])
    assert abs(steady.growth) < 2 * MIB
    assert steady.more_files == 0
    growing = Life("agent", 1, [1.0, 2.0, 3.0, 4.0], [n * 10 * MIB for n in range(4)], [10, 20, 30, 40])
    assert growing.growth == pytest.approx(30 * MIB)
    assert growing.more_files == 30
    assert growing.after(2.5).files == [30, 40]


def test_the_report_names_what_was_lost() -> None:
    result = Result(seconds=1, requests=[ended({"message": "it broke", "code": "upstream_error"}, 502)])
    result.lost = list(result.requests)
    assert "MISTAKE: test-1" in report(result)
    assert len(result.mistakes) == 1
