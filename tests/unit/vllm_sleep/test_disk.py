"""The file store on a real file system, around the page cache as it is in use; and disks that are full or lie."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vllm_sleep.fake_cuda import FakeDevice, FaultyOs, region_type
from vllm_sleep import disk, memory
from vllm_sleep.disk import DiskFile
from vllm_sleep.memory import ALIGNMENT, MemoryPath, Piece, StoreError

SIZES = (1, 4095, 4096, 4097, 3 * 4096 + 17, 70_000)


def folder_for_direct(tmp_path: Path) -> Path:
    """A folder whose file system takes O_DIRECT and files without a name."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_DIRECT
    try:
        os.close(os.open(tmp_path, flags, 0o600))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR):
            raise
        pytest.skip(f"the file system of {tmp_path} refuses O_DIRECT or O_TMPFILE: {error.strerror}")
    return tmp_path


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    device = FakeDevice(1 << 20, streams=4)
    yield device
    device.check()
    assert device.in_flight == 0
    assert not device.pinned
    assert not device.host


@pytest.fixture
def store(tmp_path: Path, device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskFile]:
    monkeypatch.setattr(memory, "PIECE", 4 * ALIGNMENT)
    monkeypatch.setattr(disk, "_PART", 2 * ALIGNMENT)
    monkeypatch.setattr(disk, "_SPARE", 0)
    store = DiskFile(folder_for_direct(tmp_path), 3, region_type(device))
    yield store
    store.clear()


def test_what_is_kept_comes_back_from_the_disk(store: DiskFile, device: FakeDevice, tmp_path: Path) -> None:
    blocks = [device.allocate(size, "weights") for size in SIZES]
    was = [device.content(block) for block in blocks]
    path = MemoryPath(device, {"file": store})
    assert path.sleep(blocks, ["weights"], "file").copied == sum(SIZES)
    path.wake(blocks)
    assert [device.content(block) for block in blocks] == was
    device.overwrite(blocks[5], 69_999, bytes([was[5][-1] ^ 1]))
    changed = device.content(blocks[5])
    assert path.sleep(blocks, ["weights"], "file").copied == 70_000 % (4 * ALIGNMENT)
    path.wake(blocks)
    assert device.content(blocks[5]) == changed
    assert not list(tmp_path.iterdir()), "the file has no name, so that it goes with the process"


def test_growing_keeps_what_is_saved(store: DiskFile, device: FakeDevice) -> None:
    blocks = [device.allocate(5000, "weights")]
    path = MemoryPath(device, {"file": store})
    path.sleep(blocks, ["weights"], "file")
    path.wake(blocks)
    blocks.append(device.allocate(300_000, "weights"))
    was = [device.content(block) for block in blocks]
    assert path.sleep(blocks, ["weights"], "file").copied == 300_000
    path.wake(blocks)
    assert [device.content(block) for block in blocks] == was


def test_room_is_taken_when_it_is_asked_for_and_given_back(store: DiskFile) -> None:
    store.reserve(1_000_001)
    assert store._file is not None
    taken = os.fstat(store._file)
    assert taken.st_blocks * 512 >= 1_000_001, "a full disk must show now, not at a write"
    assert taken.st_size == -(-1_000_001 // ALIGNMENT) * ALIGNMENT
    file = store._file
    store.clear()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)
    store.reserve(10)
    store.clear()


def test_a_disk_without_enough_room_is_refused_with_what_to_do(
    tmp_path: Path, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FaultyOs):
        def fstatvfs(self, file: int) -> os.statvfs_result:
            values = list(os.fstatvfs(file))
            values[1], values[4] = 4096, 5 * 2**30 // 4096  # 5 GiB left
            return os.statvfs_result(values)

    monkeypatch.setattr(disk, "os", Full(device.faults, ALIGNMENT))
    store = DiskFile(tmp_path, 3, region_type(device))
    with pytest.raises(StoreError) as refused:
        store.reserve(2 * 2**30)
    text = str(refused.value)
    assert f"{tmp_path} has 5.0G left" in text
    assert "needs 2.0G" in text
    assert "leaves 4G" in text
    assert "make room, or set staging.pinned to true" in text
    store.reserve(2**20)
    store.clear()


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"cannot keep a copy in {tmp_path / 'none'}: No such file"):
        DiskFile(tmp_path / "none").reserve(1)


@pytest.mark.parametrize("kind", ["open", "fallocate"])
def test_what_the_system_refuses_can_be_tried_again(
    tmp_path: Path, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(disk, "os", FaultyOs(device.faults, ALIGNMENT))
    monkeypatch.setattr(disk, "_SPARE", 0)
    store = DiskFile(tmp_path, 3, region_type(device))
    device.faults.arm(kind)
    with pytest.raises(StoreError, match="cannot keep a copy in"):
        store.reserve(100_000)
    store.reserve(100_000)
    store.clear()


@pytest.mark.parametrize(
    ("kind", "said"), [("read file", "cannot be used: Input/output error"), ("file ends", "ends early")]
)
def test_a_file_that_cannot_be_read_is_an_error_and_all_stays_asleep(
    store: DiskFile, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.setattr(disk, "os", FaultyOs(device.faults, ALIGNMENT))
    blocks = [device.allocate(50_000, "weights")]
    was = device.content(blocks[0])
    path = MemoryPath(device, {"file": store})
    path.sleep(blocks, ["weights"], "file")
    device.faults.arm(kind, 2)
    with pytest.raises(StoreError, match=said):
        path.wake(blocks)
    assert device.used == 0
    path.wake(blocks)
    assert device.content(blocks[0]) == was


@pytest.mark.parametrize("kind", ["short read", "short write"])
def test_a_call_that_moves_only_a_part_is_gone_on_with(
    store: DiskFile, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(disk, "os", FaultyOs(device.faults, ALIGNMENT))
    block = device.allocate(2 * ALIGNMENT, "weights")
    was = device.content(block)
    path = MemoryPath(device, {"file": store})
    device.faults.arm(kind)
    path.sleep([block], ["weights"], "file")
    path.wake([block])
    assert device.faults.fired == [kind]
    assert device.content(block) == was


def test_a_file_that_was_cut_short_is_seen(store: DiskFile, device: FakeDevice) -> None:
    block = device.allocate(8 * ALIGNMENT, "weights")
    path = MemoryPath(device, {"file": store})
    path.sleep([block], ["weights"], "file")
    assert store._file is not None
    os.ftruncate(store._file, 3 * ALIGNMENT)
    with pytest.raises(StoreError, match="ends early"):
        path.wake([block])
    assert device.used == 0


def test_nothing_to_write_takes_nothing(store: DiskFile, device: FakeDevice) -> None:
    """An engine that keeps nothing needs neither file nor buffers."""
    block = device.allocate(5000, "kv_cache")
    MemoryPath(device, {"file": store}).sleep([block], ["weights"], "file")
    assert not device.pinned
    assert store._file is None


def test_a_wake_that_fails_early_does_not_read_the_rest(store: DiskFile, device: FakeDevice) -> None:
    """What was handed to the threads before the device had no more memory is dropped, not carried out."""
    large, small = device.allocate(400_000, "weights"), device.allocate(4096, "weights")
    path = MemoryPath(device, {"file": store})
    path.sleep([large, small], ["weights"], "file")
    device.faults.arm("map", 1)
    before = device.calls["load"]
    with pytest.raises(memory.DeviceError):
        path.wake([large, small])
    parts = -(-400_000 // (2 * ALIGNMENT))
    assert device.calls["load"] - before < parts
    assert device.used == 0


def test_parts_cover_a_piece_without_gap_or_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_PART", 1000)
    parts = list(disk._parts(Piece(5, 2500, 8192)))
    assert [(part.address, part.size, part.offset) for part in parts] == [
        (5, 1000, 8192),
        (1005, 1000, 9192),
        (2005, 500, 10192),
    ]
