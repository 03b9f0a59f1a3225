"""What NVML says of this node's devices. Blocking, short calls; nothing here decides."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class DriverError(Exception):
    """NVML as a whole does not answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that holds memory of a device; `used` in bytes, None where the driver does not tell."""

    pid: int
    used: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at one device. Bytes, percent, °C, W; None for what this device does not measure."""

    index: int
    uuid: str
    product: str
    total: int
    used: int
    processes: tuple[Process, ...]
    utilization: int | None = None
    temperature: int | None = None
    power: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A device that cannot be read."""

    index: int
    reason: str


class Devices:
    """The node's devices. `read` starts the driver's library when needed, and again after it failed."""

    def __init__(self, module: str) -> None:
        """Raises DriverError when there is no such module: waiting will not bring it."""
        try:
            self._nvml: Any = importlib.import_module(module)
        except ImportError as error:
            raise DriverError(f"the NVML module {module} cannot be imported: {error}") from None
        self._started = False

    def read(self) -> list[Reading | Fault]:
        """Every device, by index. Raises DriverError when NVML as a whole does not answer."""
        try:
            if not self._started:
                self._nvml.nvmlInit()
                self._started = True
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            self.close()
            raise DriverError(f"NVML does not answer: {error}") from None
        return [self._device(index) for index in range(count)]

    def close(self) -> None:
        """Lets go of the driver's library."""
        if self._started:
            self._started = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _device(self, index: int) -> Reading | Fault:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            # Memory is read before and after the processes, and the smaller value counts: what one of them takes or
            # gives back meanwhile must not look like somebody else's.
            before = nvml.nvmlDeviceGetMemoryInfo(handle)
            processes = self._optional(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
            after = nvml.nvmlDeviceGetMemoryInfo(handle)
            return Reading(
                index=index,
                uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                product=_text(nvml.nvmlDeviceGetName(handle)),
                total=int(after.total),
                used=min(int(before.used), int(after.used)),
                processes=tuple(Process(int(p.pid), _bytes(p.usedGpuMemory)) for p in processes),
                utilization=self._optional(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
                temperature=self._optional(
                    lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
                ),
                power=self._optional(lambda: round(nvml.nvmlDeviceGetPowerUsage(handle) / 1000)),
            )
        except nvml.NVMLError as error:
            return Fault(index, f"NVML: {error}")

    def _optional(self, call: Callable[[], T]) -> T | None:
        """What a device need not be able to tell."""
        try:
            return call()
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_NoPermission):
            return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _bytes(value: int | None) -> int | None:
    # NVML writes all ones for "not available"
    return None if value is None or value >= 2**63 else int(value)
