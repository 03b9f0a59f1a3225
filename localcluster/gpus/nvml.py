"""NVML's functions over the simulated GPUs: the part of `pynvml` that the product calls, name for name.

Select it with `GREENTHREAD_NVML=localcluster.gpus.nvml`. Structures and errors are pynvml's own, so that no
code can tell the difference by type. Utilization, temperature and power follow from the load that engines report.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from pynvml import (
    NVML_ERROR_INVALID_ARGUMENT,
    NVML_ERROR_UNINITIALIZED,
    NVML_ERROR_UNKNOWN,
    NVML_TEMPERATURE_GPU,
    NVMLError,
    NVMLError_DriverNotLoaded,
    NVMLError_GpuIsLost,
    NVMLError_InvalidArgument,
    NVMLError_LibraryNotFound,
    NVMLError_NoPermission,
    NVMLError_NotFound,
    NVMLError_NotSupported,
    NVMLError_Uninitialized,
    NVMLError_Unknown,
    c_nvmlMemory_t,
    c_nvmlMemory_v2_t,
    c_nvmlProcessInfo_t,
    c_nvmlUtilization_t,
    nvmlMemory_v2,
)

from localcluster.gpus.ledger import Device, Ledger, LedgerError, open_ledger

__all__ = [
    "NVML_TEMPERATURE_GPU",
    "NVMLError",
    "NVMLError_DriverNotLoaded",
    "NVMLError_GpuIsLost",
    "NVMLError_InvalidArgument",
    "NVMLError_LibraryNotFound",
    "NVMLError_NoPermission",
    "NVMLError_NotFound",
    "NVMLError_NotSupported",
    "NVMLError_Uninitialized",
    "NVMLError_Unknown",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetName",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetUtilizationRates",
    "nvmlInit",
    "nvmlMemory_v2",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
]

_DRIVER_VERSION = "580.95.05"
_IDLE_WATTS, _FULL_WATTS = 68.0, 590.0
_IDLE_CELSIUS, _FULL_CELSIUS = 34.0, 76.0

_ledger: Ledger | None = None
_initialized = 0

P = ParamSpec("P")
R = TypeVar("R")


def _needs_init(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if _ledger is None:
            raise NVMLError(NVML_ERROR_UNINITIALIZED)
        try:
            return function(*args, **kwargs)
        except LedgerError as error:
            raise NVMLError(NVML_ERROR_UNKNOWN) from error

    return checked


def _open() -> Ledger:
    assert _ledger is not None
    return _ledger


def nvmlInit() -> None:
    """Open the ledger that $GREENTHREAD_GPU_LEDGER names. NVMLError_LibraryNotFound when there is none."""
    global _ledger, _initialized
    if _ledger is None:
        try:
            _ledger = open_ledger()
        except LedgerError as error:
            raise NVMLError_LibraryNotFound() from error
    _initialized += 1


def nvmlShutdown() -> None:
    """Close the ledger when every nvmlInit has had its nvmlShutdown."""
    global _ledger, _initialized
    if _ledger is None:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    _initialized -= 1
    if _initialized == 0:
        _ledger.close()
        _ledger = None


@_needs_init
def nvmlSystemGetDriverVersion() -> str:
    """The driver that is imitated."""
    return _DRIVER_VERSION


@_needs_init
def nvmlDeviceGetCount() -> int:
    """How many devices the ledger has."""
    return len(_open().devices())


@_needs_init
def nvmlDeviceGetHandleByIndex(index: int) -> Device:
    """The handle of a device. NVMLError_InvalidArgument when there is none of that index."""
    for device in _open().devices():
        if device.index == index:
            return device
    raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)


@_needs_init
def nvmlDeviceGetIndex(handle: Device) -> int:
    """The device's index."""
    return handle.index


@_needs_init
def nvmlDeviceGetUUID(handle: Device) -> str:
    """`GPU-…`."""
    return handle.uuid


@_needs_init
def nvmlDeviceGetName(handle: Device) -> str:
    """The product's name."""
    return handle.product


@_needs_init
def nvmlDeviceGetMemoryInfo(handle: Device, version: int | None = None) -> Any:
    """`total`, `free` and `used` bytes; with `version=nvmlMemory_v2` also `reserved`."""
    info = c_nvmlMemory_v2_t() if version else c_nvmlMemory_t()
    if version:
        info.version = version
    info.total = handle.total_bytes
    info.used = _open().used_bytes(handle.index)
    info.free = info.total - info.used
    return info


@_needs_init
def nvmlDeviceGetComputeRunningProcesses(handle: Device) -> list[Any]:
    """One entry (`pid`, `usedGpuMemory` in bytes) for each living process that holds memory."""
    found = []
    for usage in _open().usage(handle.index):
        info = c_nvmlProcessInfo_t()
        info.pid, info.usedGpuMemory = usage.pid, usage.bytes
        # No MIG: the driver says so by all ones.
        info.gpuInstanceId = info.computeInstanceId = 0xFFFFFFFF
        found.append(info)
    return found


@_needs_init
def nvmlDeviceGetUtilizationRates(handle: Device) -> Any:
    """`gpu` and `memory` in percent."""
    rates = c_nvmlUtilization_t()
    rates.gpu = round(_busy(handle) * 100)
    rates.memory = round(_busy(handle) * 62)
    return rates


@_needs_init
def nvmlDeviceGetTemperature(handle: Device, sensor: int) -> int:
    """Degrees Celsius. Only the sensor NVML_TEMPERATURE_GPU exists."""
    if sensor != NVML_TEMPERATURE_GPU:
        raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)
    return round(_IDLE_CELSIUS + _busy(handle) * (_FULL_CELSIUS - _IDLE_CELSIUS))


@_needs_init
def nvmlDeviceGetPowerUsage(handle: Device) -> int:
    """Milliwatts."""
    return round((_IDLE_WATTS + _busy(handle) * (_FULL_WATTS - _IDLE_WATTS)) * 1000)


def _busy(handle: Device) -> float:
    """The share of the device that is busy: one request keeps it about half busy, each further one half of the rest,
    since engines batch."""
    return float(1 - 0.55 ** _open().in_flight(handle.index)) * 0.99
