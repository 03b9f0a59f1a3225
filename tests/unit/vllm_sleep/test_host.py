"""Host memory for what sleeps: how much may be taken, near which CPUs, and that it is really there."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import pytest

from vllm_sleep import host
from vllm_sleep.host import GIB, HUGE_PAGE, RESERVE, HostMemory, Region, available, cpus_near
from vllm_sleep.memory import StoreError

ENOMEM, EINVAL = 12, 22


def machine(root: Path, free_gib: float, **group: str) -> Path:
    """A root folder with what the kernel says of memory; `group`: files of the container's cgroup."""
    (root / "proc").mkdir()
    kib = int(free_gib * GIB / 1024)
    (root / "proc/meminfo").write_text(
        f"MemTotal:       99999999 kB\nMemFree:  1 kB\nMemAvailable:   {kib} kB\nSwapFree:  7 kB\n"
    )
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in group.items():
        (root / "sys/fs/cgroup" / f"memory.{name}").write_text(text + "\n")
    return root


def test_without_a_limit_of_its_own_the_host_s_memory_less_a_reserve(tmp_path: Path) -> None:
    assert available(machine(tmp_path, 100)) == 100 * GIB - RESERVE


def test_a_host_that_is_short_has_less_than_nothing(tmp_path: Path) -> None:
    assert available(machine(tmp_path, 5)) == 5 * GIB - RESERVE


def test_no_limit_in_a_container_is_the_host_s(tmp_path: Path) -> None:
    root = machine(tmp_path, 100, max="max", current="123", stat="anon 1\nfile 2")
    assert available(root) == 100 * GIB - RESERVE


def test_the_container_s_limit_counts_without_what_only_caches_files(tmp_path: Path) -> None:
    stat = f"anon {6 * GIB}\nfile {3 * GIB}\nfile_mapped {GIB}\nshmem 0"
    root = machine(tmp_path, 100, max=str(20 * GIB), current=str(9 * GIB), stat=stat)
    assert available(root) == 20 * GIB - 9 * GIB + 3 * GIB


def test_what_is_in_dev_shm_counts_as_file_in_the_cgroup_and_cannot_be_given_back(tmp_path: Path) -> None:
    stat = f"anon {5 * GIB}\nfile {4 * GIB}\nkernel 1\nshmem {3 * GIB}"
    root = machine(tmp_path, 100, max=str(20 * GIB), current=str(9 * GIB), stat=stat)
    assert available(root) == 20 * GIB - 9 * GIB + 1 * GIB


def test_the_smaller_of_host_and_container_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, 10, max=str(20 * GIB), current="0", stat="anon 0")
    assert available(root) == 10 * GIB - RESERVE


def test_a_limit_that_is_reached_leaves_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, 100, max=str(GIB), current=str(GIB + 4096), stat="file 0\nshmem 0")
    assert available(root) == -4096


def test_the_kernel_of_this_machine_is_understood() -> None:
    assert -RESERVE <= available() < 2**50


def pci(root: Path, cpulist: str, address: str = "0000:17:00.0") -> Path:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "local_cpulist").write_text(cpulist)
    return root


@pytest.mark.parametrize(
    ("cpulist", "near"),
    [
        ("0-3\n", {0, 1, 2, 3}),
        ("2\n", {2}),
        ("0-1,6,8-9\n", {0, 1, 6}),  # 8 and 9 are not ours
        ("8-15\n", set()),
        ("\n", set()),
        ("nonsense\n", set()),
        ("1-\n", {1}),
    ],
)
def test_cpus_near_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpulist: str, near: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cpus_near("0000:17:00.0", pci(tmp_path, cpulist)) == near


def test_the_runtime_s_upper_case_address_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert cpus_near("0000:AB:00.0", pci(tmp_path, "0\n", "0000:ab:00.0")) == {0}


def test_a_device_that_sys_does_not_know_has_no_near_cpus(tmp_path: Path) -> None:
    assert cpus_near("0000:99:00.0", tmp_path) == frozenset()


# Memory that is really there


def resident(region: Region) -> int:
    """Bytes of the region that the system has given."""
    pages = region.size // 4096
    vector = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(region.address), ctypes.c_size_t(region.size), vector) == 0
    return sum(flags & 1 for flags in vector) * 4096


class Libc:
    """The C library, but the kernel refuses to populate."""

    def __init__(self, errno: int) -> None:
        self._errno = errno

    def madvise(self, address: int, size: int, advice: int) -> int:
        assert advice == host._MADV_POPULATE_WRITE
        ctypes.set_errno(self._errno)
        return -1


def test_a_region_is_whole_huge_pages_at_a_huge_page_and_not_taken_yet() -> None:
    region = Region(HUGE_PAGE + 1)
    assert region.size == 2 * HUGE_PAGE
    assert region.address % HUGE_PAGE == 0
    assert resident(region) == 0
    region.close()


@pytest.mark.parametrize("old_kernel", [False, True])
def test_populate_takes_every_page_and_leaves_this_thread_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, old_kernel: bool
) -> None:
    monkeypatch.setattr(host, "_POPULATE", HUGE_PAGE)
    region = Region(3 * HUGE_PAGE)
    if old_kernel:
        monkeypatch.setattr(host, "_libc", Libc(EINVAL))
    mine = os.sched_getaffinity(0)
    region.populate(frozenset({min(mine)}))
    assert resident(region) == region.size
    assert os.sched_getaffinity(0) == mine
    region.close()


def test_cpus_that_are_no_longer_ours_do_not_keep_the_memory_away() -> None:
    region = Region(HUGE_PAGE)
    region.populate(frozenset({8191}))
    assert resident(region) == region.size
    region.close()


def test_memory_that_the_kernel_refuses_is_an_error_that_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory(room=lambda: 1 << 40)
    region = Region(HUGE_PAGE)
    monkeypatch.setattr(host, "_libc", Libc(ENOMEM))
    with pytest.raises(StoreError, match=r"does not give 0\.0G of memory: Cannot allocate memory"):
        region.populate(frozenset())
    region.close()
    assert memory.size == 0


def test_more_than_there_is_room_for_is_refused_with_what_to_do() -> None:
    memory = HostMemory(room=lambda: 3 * GIB)
    with pytest.raises(StoreError) as refused:
        memory.reserve(13 * GIB)
    text = str(refused.value)
    assert "needs 13.0G more" in text
    assert "3.0G may be taken" in text
    assert "raise the engine's memory limit" in text
    assert "staging.pinned: false" in text
    assert memory.size == 0


def test_a_host_without_room_is_said_to_have_none_not_less() -> None:
    with pytest.raises(StoreError, match=r" 0\.0G may be taken"):
        HostMemory(room=lambda: -5 * GIB).reserve(1)


def test_an_address_space_that_is_too_small_is_an_error_of_the_store() -> None:
    memory = HostMemory(room=lambda: 1 << 62)
    with pytest.raises(StoreError, match="the system does not give"):
        memory.reserve(1 << 58)
    assert memory.size == 0


class Counted(Region):
    """Regions that are counted."""

    open = 0

    def __init__(self, size: int) -> None:
        super().__init__(size)
        Counted.open += 1

    def close(self) -> None:
        Counted.open -= 1
        super().close()


def test_memory_that_somebody_else_took_at_the_same_time_is_given_back() -> None:
    left = iter([HUGE_PAGE, -1])
    memory = HostMemory(room=lambda: next(left), region=Counted)
    with pytest.raises(StoreError, match="ran short"):
        memory.reserve(HUGE_PAGE)
    assert (memory.size, Counted.open) == (0, 0)


def test_it_grows_by_what_is_missing_and_is_given_back_as_a_whole() -> None:
    memory = HostMemory(room=lambda: 1 << 40, region=Counted)
    memory.reserve(HUGE_PAGE)
    memory.reserve(HUGE_PAGE // 2)
    assert (memory.size, Counted.open) == (HUGE_PAGE, 1)
    memory.reserve(HUGE_PAGE + 1)
    assert (memory.size, Counted.open) == (2 * HUGE_PAGE, 2)
    memory.clear()
    assert (memory.size, Counted.open) == (0, 0)
    memory.clear()


def test_two_threads_that_reserve_at_once_take_it_once() -> None:
    """The one ahead of the first sleep, and the first sleep."""
    memory = HostMemory(room=lambda: 1 << 40, region=Counted)
    start, errors = threading.Barrier(4), []

    def take(size: int) -> None:
        start.wait()
        try:
            memory.reserve(size)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=take, args=(size * HUGE_PAGE,)) for size in (4, 4, 2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert memory.size == 4 * HUGE_PAGE
    assert Counted.open <= 2
    memory.clear()
    assert Counted.open == 0
