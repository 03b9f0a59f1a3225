"""The NVML functions over simulated GPUs: pynvml's names and shapes, the ledger's numbers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from localcluster.gpus import ledger as ledgers
from localcluster.gpus import nvml
from localcluster.gpus.ledger import GIB, Ledger, create


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    made = create(tmp_path / "gpus.db", count=2, total_bytes=96 * GIB, product="Simulated 96G")
    monkeypatch.setenv(ledgers.ENVIRONMENT, str(made.path))
    nvml.nvmlInit()
    yield made
    nvml.nvmlShutdown()
    made.close()


@pytest.mark.parametrize("name", nvml.__all__)
def test_every_name_is_pynvmls(name: str) -> None:
    ours, theirs = getattr(nvml, name), getattr(pynvml, name)
    if inspect.isclass(theirs) or not callable(theirs):
        assert ours is theirs
    else:
        our_parameters = inspect.signature(ours).parameters
        # pynvml wraps some functions for bytes; the wrapped one has the signature.
        their_parameters = inspect.signature(inspect.unwrap(theirs)).parameters
        if list(their_parameters) != ["args", "kwargs"]:
            assert [(p.name, p.default) for p in our_parameters.values()] == [
                (p.name, p.default) for p in their_parameters.values()
            ]


def test_devices(ledger: Ledger) -> None:
    assert nvml.nvmlDeviceGetCount() == 2
    handle = nvml.nvmlDeviceGetHandleByIndex(1)
    assert nvml.nvmlDeviceGetIndex(handle) == 1
    assert nvml.nvmlDeviceGetName(handle) == "Simulated 96G"
    assert nvml.nvmlDeviceGetUUID(handle) == ledger.device(1).uuid
    assert nvml.nvmlSystemGetDriverVersion().split(".")[0].isdigit()


def test_memory_and_processes(ledger: Ledger) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
    ledger.allocate(0, 20 * GIB)
    info = nvml.nvmlDeviceGetMemoryInfo(handle)
    assert (info.total, info.used, info.free) == (96 * GIB, 20 * GIB, 76 * GIB)
    assert isinstance(info, pynvml.c_nvmlMemory_t)
    second = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    assert (second.used, second.reserved) == (20 * GIB, 0)
    (process,) = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert (process.pid, process.usedGpuMemory) == (os.getpid(), 20 * GIB)


def test_load_shows_in_utilization_temperature_and_power(ledger: Ledger) -> None:
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    ledger.allocate(0, GIB)

    def measured() -> tuple[int, int, int]:
        return (
            nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            nvml.nvmlDeviceGetPowerUsage(handle),
        )

    idle = measured()
    ledger.report_load(1)
    one = measured()
    ledger.report_load(50)
    many = measured()
    assert idle[0] == 0
    assert all(low < middle < high for low, middle, high in zip(idle, one, many, strict=True))
    assert many[0] <= 100
    assert 20_000 < idle[2] < many[2] < 700_000


def test_errors_are_nvmls(ledger: Ledger) -> None:
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(2)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetTemperature(nvml.nvmlDeviceGetHandleByIndex(0), 1)


def test_nothing_works_before_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetCount()
    monkeypatch.setenv(ledgers.ENVIRONMENT, str(tmp_path / "absent.db"))
    with pytest.raises(pynvml.NVMLError_LibraryNotFound):
        nvml.nvmlInit()
