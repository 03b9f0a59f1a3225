"""What is wanted of a model that does not serve: a wake for clients or a person, or the boot of its engine."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from greenthread.clock import Clock
from greenthread.fairness import Want
from greenthread.gpu import Gpu
from greenthread.model import ModelSpec
from sidecar.door import Door
from sidecar.settings import Settings


class Wants:
    """Knows who wants the model, whether its engine must boot first, and how many bytes that takes."""

    def __init__(self, settings: Settings, door: Door, clock: Clock, rng: random.Random) -> None:
        self._settings, self._door, self._clock, self._rng = settings, door, clock, rng
        self._file = Path(settings.run_dir) / "serving-memory"
        #: An engine that was measured can be woken; else it must boot.
        self.boot_ready = False
        #: When a person asked for a wake that has not been made yet.
        self.wished_wake: datetime | None = None
        #: Bytes on each GPU, measured at first boot (or known from an earlier pod of the same template).
        self.serving_memory = self._remembered() or settings.serving_memory
        self._boot_wanted_at = clock.now()
        self._boot_not_before = 0.0
        self._boot_failures = 0

    def current(self, spec: ModelSpec, gpus: Sequence[Gpu]) -> Want | None:
        """What is wanted now, with the age of the oldest wish; None: nobody wants it, or its boot has to pause.

        Requests that must not preempt count only while nothing else wants the model.
        """
        asked, boot = self._door.asked, not self.boot_ready
        real = [asked.since] if asked is not None and asked.preempts else []
        real += [self.wished_wake] if self.wished_wake is not None else []
        polite = asked is not None and not real and not boot
        if asked is not None and polite:
            real = [asked.since]
        if (boot and self.boot_pause > 0) or not (real or boot):
            return None
        return Want(
            pod=self._settings.pod,
            model=self._settings.model,
            need=self._boot_need(spec, gpus) if boot or self.serving_memory is None else self.serving_memory,
            since=min(real) if real else self._boot_wanted_at,
            max_wait=spec.fairness.max_wait_time,
            boot=not real,
            lock=not boot,
            preempts=not polite,
        )

    @property
    def by_somebody(self) -> bool:
        """Whether clients or a person want it, not only a boot."""
        return self._door.waiting > 0 or self.wished_wake is not None

    @property
    def boot_pause(self) -> float:
        """Seconds until the engine may be booted again after a failure."""
        return max(self._boot_not_before - asyncio.get_running_loop().time(), 0.0)

    def _boot_need(self, spec: ModelSpec, gpus: Sequence[Gpu]) -> int:
        """A boot takes its share of the device, and somewhat more (context, graphs) if that is to be had."""
        share = max((math.ceil(gpu.total * spec.gpu_memory_utilization) for gpu in gpus), default=0)
        if self.serving_memory is not None:
            return max(share, self.serving_memory)
        most = min((gpu.total - gpu.foreign for gpu in gpus), default=0)
        return max(share, min(share + self._settings.boot_slack, most))

    def booted(self, measured: int) -> None:
        """The engine is up and uses this many bytes on each GPU."""
        self.boot_ready = True
        self._boot_failures = 0
        self.serving_memory = measured
        self._file.write_text(str(measured))

    def boot_failed(self) -> None:
        """The engine failed or died: it must boot again, after a pause that grows."""
        self.boot_ready = False
        first, longest = self._settings.boot_backoff
        pause = min(first * 2**self._boot_failures, longest) * self._rng.uniform(0.8, 1.0)
        self._boot_failures = min(self._boot_failures + 1, 30)
        self._boot_wanted_at = self._clock.now()
        self._boot_not_before = asyncio.get_running_loop().time() + pause

    def _remembered(self) -> int | None:
        """What an earlier life of this sidecar measured."""
        try:
            return int(self._file.read_text())
        except (OSError, ValueError):
            return None
