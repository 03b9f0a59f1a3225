"""Part c. A process under vllm_sleep's launcher is taken off the GPU by the driver, and put back."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

from benchmarks.gpu.device import need_gpu
from benchmarks.gpu.launched import Launched
from benchmarks.gpu.nvml import Nvml
from benchmarks.gpu.part import Case, Clock, Options, Row, Skip
from benchmarks.gpu.stats import GB, GIB, most, spread
from vllm_sleep import host

PLAIN = (0, 1, 4, 8)
"""GB of ordinary memory that the driver has to carry."""
PINNED = 13
ASLEEP = "asleep, 13 GB of weights in pinned memory"
ANSWER = 90.0
"""Seconds for one call."""


def cases(options: Options, clock: Clock, notes: Row) -> list[Case]:
    bench = Bench(Nvml(), options, clock)
    need_gpu()  # and no more: who measures must hold nothing of it
    reason = bench.cannot()
    if reason:
        raise Skip(f"the launcher says: {reason}")
    plain = [Case(f"{size} GB", 20 + 6 * size, partial(bench.case, plain=size)) for size in PLAIN]
    return [
        plain[0],
        Case(ASLEEP, 35, lambda: bench.case(weights=PINNED)),
        Case(f"0 GB, {PINNED} GB of host memory pinned", 30, lambda: bench.case(pinned=PINNED)),
        *plain[1:],
    ]


class Bench:
    def __init__(self, nvml: Nvml, options: Options, clock: Clock) -> None:
        self._nvml, self._options, self._clock = nvml, options, clock

    def cannot(self) -> str:
        """Why the driver cannot, "" when it can."""
        with Launched(sys.executable, ["sleep", "600"], self._log()) as launched:
            deadline = time.monotonic() + 20
            while not launched.launcher.exists() and launched.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            _, state = launched.call("state", ANSWER)
        return "" if state["checkpoint"] else str(state["reason"])

    def case(self, **sizes: int) -> Row:
        """`sizes` of the tenant, in GB."""
        needed = (sizes.get("pinned", 0) + sizes.get("weights", 0) + sizes.get("plain", 0)) * GB // self._options.shrink
        given = self._options.host_memory
        room = given if given is not None else host.available()
        if needed + 2 * GIB // self._options.shrink > room:
            return {"left_out": f"the host may give {room / GB:.0f} GB"}
        what = json.dumps({name: size * GB // self._options.shrink for name, size in sizes.items()})
        command = [sys.executable, "-m", "benchmarks.gpu.tenant", what]
        idle = self._nvml.used()  # others' memory, and what the driver takes for itself
        with Launched(sys.executable, command, self._log(), talk=True) as tenant:
            began = time.perf_counter()
            tenant.hear(ANSWER)
            row: Row = {"boot_s": round(time.perf_counter() - began, 1), "before_bytes": self._of(tenant)}
            rounds: list[dict[str, Any]] = []
            for _ in range(3):
                rounds.append(self._round(tenant, asleep="weights" in sizes))
                if self._clock.left() < 15:
                    row["cut"] = True
                    break
        for name in ("sleep_s", "checkpoint_s", "restore_s", "wake_s"):
            row[name] = [round(found[name], 4) for found in rounds if name in found]
        later = rounds[1:] or rounds
        row["checkpoint"] = spread([found["checkpoint_s"] for found in later])
        row["restore"] = spread([found["restore_s"] for found in later])
        row["asleep_bytes"] = most([r["asleep"] for r in rounds], row["before_bytes"])
        row["asleep_device_bytes"] = max(r["device"] for r in rounds) - idle
        row["restored_bytes"] = rounds[-1]["restored"]
        row["replays_right"] = all(r["same"] for r in rounds)
        return row

    def _round(self, tenant: Launched, asleep: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if asleep:
            found["sleep_s"] = tenant.ask("sleep", ANSWER)["s"]
        found["checkpoint_s"] = tenant.call("checkpoint", ANSWER)[0]
        found["asleep"], found["device"] = self._of(tenant), self._nvml.used()
        found["restore_s"] = tenant.call("restore", ANSWER)[0]
        if asleep:
            found["wake_s"] = tenant.ask("wake", ANSWER)["s"]
        found["same"] = tenant.ask("check", ANSWER)["same"]
        found["restored"] = self._of(tenant)
        return found

    def _of(self, tenant: Launched) -> int | None:
        return self._nvml.of([*tenant.pids(), tenant.process.pid])

    def _log(self) -> Any:
        self._options.work.mkdir(parents=True, exist_ok=True)
        return self._options.work / "tenant.log"
