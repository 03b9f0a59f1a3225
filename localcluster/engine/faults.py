"""Faults on order, so that tests can see what the rest does about them.

- a request: header `X-Simulate: slow=2s | crash | hang | garbage | break-stream | status=500`
- control calls: `POST /simulate {"wake": "fail | hang | slow:2s | crash", "sleep": …, "times": 1}`
- the boot: `GREENTHREAD_SIM_FAULTS="boot=fail | hang | slow:2s | crash"`
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from typing import Any

from greenthread.units import parse_duration

CONTROLS = ("boot", "wake", "sleep")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `slow` has seconds, `status` an HTTP status."""

    kind: str
    seconds: float = 0.0
    status: int = 0


class SimulatedFailure(Exception):
    """The step fails because a fault was ordered."""


def request_fault(text: str) -> Fault | None:
    """Read an `X-Simulate` header. ValueError says what can be written."""
    kind, _, value = text.strip().partition("=")
    if not kind:
        return None
    if kind in ("crash", "hang", "garbage", "break-stream") and not value:
        return Fault(kind)
    if kind == "slow":
        return Fault(kind, seconds=parse_duration(value))
    if kind == "status" and value.isdigit() and 400 <= int(value) <= 599:
        return Fault(kind, status=int(value))
    raise ValueError(
        f"X-Simulate: {text!r} is unknown; write slow=2s, crash, hang, garbage, break-stream or status=500 (400 to 599)"
    )


def control_fault(text: str) -> Fault:
    """Read a fault of a boot, wake or sleep. ValueError says what can be written."""
    kind, _, value = text.partition(":")
    if kind in ("fail", "hang", "crash") and not value:
        return Fault(kind)
    if kind == "slow":
        return Fault(kind, seconds=parse_duration(value))
    raise ValueError(f"the fault {text!r} is unknown; write fail, hang, slow:2s or crash")


class ControlFaults:
    """The faults ordered for the next boots, wakes and sleeps."""

    def __init__(self, boot: str = "") -> None:
        self._pending: dict[str, tuple[Fault, int]] = {}
        for part in filter(None, (part.strip() for part in boot.split(","))):
            step, _, text = part.partition("=")
            if step not in CONTROLS:
                raise ValueError(f"GREENTHREAD_SIM_FAULTS={boot!r}: write for example boot=fail or wake=slow:2s")
            self._pending[step] = (control_fault(text), 1)

    def order(self, body: Any) -> dict[str, Any]:
        """Take the body of `POST /simulate`; returns what is ordered now. ValueError says what is wrong with it."""
        if not isinstance(body, dict) or not set(body) <= {"wake", "sleep", "times"}:
            raise ValueError('write {"wake": "fail", "sleep": "slow:2s", "times": 1}: each is optional')
        times = body.get("times", 1)
        if not isinstance(times, int) or not 1 <= times <= 1000:
            raise ValueError("times is a number from 1 to 1000")
        ordered = {step: (control_fault(str(body[step])), times) for step in ("wake", "sleep") if body.get(step)}
        for step in ("wake", "sleep"):
            if step in body and not body[step]:
                self._pending.pop(step, None)
        self._pending.update(ordered)
        return {step: {"fault": fault.kind, "times": left} for step, (fault, left) in self._pending.items()}

    async def strike(self, step: str) -> None:
        """Do what was ordered for this step: nothing, wait, never return, die, or raise SimulatedFailure."""
        if step not in self._pending:
            return
        fault, left = self._pending.pop(step)
        if left > 1:
            self._pending[step] = (fault, left - 1)
        if fault.kind == "fail":
            raise SimulatedFailure(f"{step} failed, as it was told to")
        await suffer(fault)


async def suffer(fault: Fault) -> None:
    """The faults that requests and control calls have in common."""
    if fault.kind == "crash":
        crash()
    if fault.kind == "hang":
        await asyncio.Event().wait()
    await asyncio.sleep(fault.seconds)


def crash() -> None:
    """End at once, as a segmentation fault would: no farewell to anybody."""
    os.kill(os.getpid(), signal.SIGKILL)
