"""NVML, played: the processes of the one device."""

from collections import namedtuple

Process = namedtuple("Process", "pid usedGpuMemory")

processes: list[tuple[int, int]] = []


class NVMLError(Exception):
    pass


def nvmlInit() -> None:
    pass


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[Process]:
    return [Process(*entry) for entry in processes]
