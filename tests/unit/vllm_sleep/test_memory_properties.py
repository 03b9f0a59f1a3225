"""Random lives of an engine: sleeps, wakes, changed weights, refused calls, crashes (the rules are in machine.py)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.unit.vllm_sleep.machine import Sleeping

TestSleeping = Sleeping.TestCase
TestSleeping.settings = settings(
    max_examples=100, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
