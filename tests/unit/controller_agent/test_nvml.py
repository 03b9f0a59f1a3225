"""Reading devices: the simulated ones, and drivers that fail."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from controller.agent.nvml import Devices, DriverError, Fault, Process, Reading
from localcluster.gpus import ledger

GIB = 2**30


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ledger.Ledger]:
    file = tmp_path / "gpus.sqlite"
    ledger.create(file, 2, 96 * GIB).close()
    monkeypatch.setenv(ledger.ENVIRONMENT, str(file))
    opened = ledger.open_ledger()
    yield opened
    opened.close()


def test_the_simulated_devices_read_like_real_ones(simulated: ledger.Ledger) -> None:
    import os

    devices = Devices("localcluster.gpus.nvml")
    simulated.allocate(1, 3 * GIB)
    first, second = devices.read()
    devices.close()
    assert isinstance(first, Reading)
    assert isinstance(second, Reading)
    assert (first.index, first.total, first.used, first.processes) == (0, 96 * GIB, 0, ())
    assert first.uuid.startswith("GPU-")
    assert second.used == 3 * GIB
    assert second.processes == (Process(os.getpid(), 3 * GIB),)
    assert None not in (first.utilization, first.temperature, first.power)


class Driver(types.ModuleType):
    """One device, with pynvml's errors."""

    def __init__(self) -> None:
        super().__init__("fake_driver")
        for name in ("NVMLError", "NVMLError_NotSupported", "NVMLError_NoPermission", "NVML_TEMPERATURE_GPU"):
            setattr(self, name, getattr(pynvml, name))
        self.fails: dict[str, int] = {}
        self.started = 0
        self.used = [7 * GIB, 7 * GIB]

    def call(self, name: str, value: Any) -> Any:
        if name in self.fails:
            raise pynvml.NVMLError(self.fails[name])
        return value

    def nvmlInit(self) -> None:
        self.call("init", None)
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.started -= 1

    def nvmlDeviceGetCount(self) -> int:
        return int(self.call("count", 1))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return int(self.call("handle", index))

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return b"GPU-1"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "H100"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return types.SimpleNamespace(total=96 * GIB, used=self.used.pop(0))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return self.call("processes", [types.SimpleNamespace(pid=7, usedGpuMemory=2**64 - 1)])

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self.call("utilization", types.SimpleNamespace(gpu=5))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        return self.call("temperature", 40)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self.call("power", 70_400)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "fake_driver", made)
    return made


def test_what_is_not_supported_is_unknown(driver: Driver) -> None:
    for name in ("utilization", "temperature", "power", "processes"):
        driver.fails[name] = pynvml.NVML_ERROR_NOT_SUPPORTED
    (reading,) = Devices("fake_driver").read()
    assert isinstance(reading, Reading)
    assert (reading.utilization, reading.temperature, reading.power, reading.processes) == (None, None, None, ())


def test_bytes_that_the_driver_does_not_tell_are_none(driver: Driver) -> None:
    (reading,) = Devices("fake_driver").read()
    assert isinstance(reading, Reading)
    assert reading.processes == (Process(7, None),)
    assert (reading.uuid, reading.power) == ("GPU-1", 70)


@pytest.mark.parametrize("used", [[5, 9], [9, 5]])
def test_memory_that_moves_while_it_is_read_counts_as_the_smaller(driver: Driver, used: list[int]) -> None:
    driver.used = list(used)
    (reading,) = Devices("fake_driver").read()
    assert isinstance(reading, Reading)
    assert reading.used == 5


def test_a_lost_device_is_a_fault_of_its_own(driver: Driver) -> None:
    driver.fails["handle"] = pynvml.NVML_ERROR_GPU_IS_LOST
    (fault,) = Devices("fake_driver").read()
    assert isinstance(fault, Fault)
    assert "lost" in fault.reason.lower()


def test_a_driver_that_fails_is_started_again(driver: Driver) -> None:
    devices = Devices("fake_driver")
    driver.fails["init"] = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    with pytest.raises(DriverError, match="NVML does not answer"):
        devices.read()
    driver.fails = {"count": pynvml.NVML_ERROR_UNKNOWN}
    with pytest.raises(DriverError):
        devices.read()
    assert driver.started == 0
    driver.fails = {}
    assert len(devices.read()) == 1
    devices.close()
    assert driver.started == 0


def test_a_missing_module_is_said() -> None:
    with pytest.raises(DriverError, match="no_such_module"):
        Devices("no_such_module")
