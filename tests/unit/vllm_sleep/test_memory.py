"""Sleep and wake over a fake device, case by case: what comes back, what is copied, and what refused calls leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vllm_sleep.fake_cuda import Misuse
from tests.unit.vllm_sleep.machine import DEVICE_SIZE, KEEP, PAGE, PART, PIECE, Engine
from vllm_sleep.memory import DeviceError, OutOfDeviceMemory, StoreError


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = Engine(tmp_path, monkeypatch)
    yield engine
    engine.device.check()
    assert engine.device.in_flight == 0
    engine.stop()
    engine.device.check()
    assert not engine.device.pinned
    assert not engine.device.host


BOTH = pytest.mark.parametrize("store", ["host", "file"])
SIZES = (1, PIECE - 1, PIECE, PIECE + 1, PAGE, 5000)


@BOTH
def test_what_is_kept_comes_back_as_it_was_and_the_rest_empty(engine: Engine, store: str) -> None:
    for size in SIZES:
        engine.add(size)
    cache = engine.add(3000, "kv_cache")
    before = engine.contents()
    slept = engine.sleep(store)
    assert (slept.freed, slept.kept, slept.copied) == (sum(SIZES) + 3000, sum(SIZES), sum(SIZES))
    assert engine.device.used == 0
    assert engine.wake() == sum(SIZES)
    after = engine.contents()
    assert after[:-1] == before[:-1]
    assert cache.mapped
    assert after[-1] != before[-1]


@BOTH
def test_a_second_sleep_copies_only_what_has_changed(engine: Engine, store: str) -> None:
    first, second = engine.add(5000), engine.add(2 * PIECE)
    engine.sleep(store)
    engine.wake()
    fetched = engine.device.calls["fetch"]
    assert engine.sleep(store).copied == 0
    assert engine.device.calls["fetch"] == fetched
    engine.wake()
    engine.device.overwrite(second, PIECE, b"\0")
    was = engine.device.content(second)
    assert engine.sleep(store).copied == PIECE
    engine.wake()
    assert engine.device.content(second) == was
    assert first.mapped


@BOTH
def test_a_block_at_an_address_used_before_is_saved_anew(engine: Engine, store: str) -> None:
    old = engine.add(4000)
    engine.sleep(store)
    engine.wake()
    engine.blocks.remove(old)
    engine.device.free(old)
    new = engine.add(4000)
    assert new.address == old.address
    was = engine.contents()
    assert engine.sleep(store).copied == 4000
    engine.wake()
    assert engine.contents() == was


def test_a_piece_may_lie_across_two_regions(engine: Engine) -> None:
    engine.add(100)  # so that pieces do not end where regions do
    engine.sleep("host")
    engine.wake()
    for size in (9000, 5000):
        regions = len(engine.device.host)
        engine.add(size)
        was = engine.contents()
        engine.sleep("host")
        assert len(engine.device.host) == regions + 1
        engine.wake()
        assert engine.contents() == was


def test_the_copy_of_the_other_store_is_given_back(engine: Engine) -> None:
    engine.add(5000)
    engine.sleep("host")
    engine.wake()
    assert engine.sleep("file").copied == 5000
    assert engine.host.size == 0
    engine.wake()
    engine.device.overwrite(engine.blocks[0], 0, b"new")
    was = engine.contents()
    engine.sleep("host")
    engine.wake()
    assert engine.contents() == was


@BOTH
def test_a_partial_wake_leaves_the_rest_asleep(engine: Engine, store: str) -> None:
    weights, cache, runtime = engine.add(4000), engine.add(2000, "kv_cache"), engine.add(700, "runtime")
    was = engine.contents()
    engine.sleep(store, (*KEEP, "kv_cache"))
    engine.wake(("kv_cache",))
    assert (weights.mapped, cache.mapped, runtime.mapped) == (False, True, True)
    assert engine.device.content(cache) == was[1]
    assert engine.device.content(runtime) == was[2]
    engine.wake(("weights",))
    assert engine.contents() == was


def test_blocks_of_one_engine_can_sleep_in_both_stores(engine: Engine) -> None:
    weights, runtime, cache = engine.add(4000), engine.add(700, "runtime"), engine.add(2000, "kv_cache")
    was = engine.contents()
    engine.sleep("host")
    engine.wake(("kv_cache",))  # the weights stay in the host's memory
    assert engine.sleep("file").copied == runtime.size
    assert engine.wake() == weights.size + runtime.size
    assert cache.mapped
    assert engine.contents()[:2] == was[:2]


@pytest.mark.parametrize("store", ["host", "file"])
@pytest.mark.parametrize("kind", ["map", "load", "wait", "read file", "file ends"])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_a_refused_wake_leaves_everything_asleep_and_can_be_tried_again(
    engine: Engine, store: str, kind: str, skip: int
) -> None:
    if store == "host" and "file" in kind:
        return
    for size in (5000, 4000, 3000):
        engine.add(size)
    was = engine.contents()
    engine.sleep(store)
    engine.faults.arm(kind, skip)
    with pytest.raises((DeviceError, StoreError)):
        engine.wake()
    assert engine.device.used == 0
    assert not any(block.mapped for block in engine.blocks)
    engine.wake()
    assert engine.contents() == was


@BOTH
def test_a_wake_while_others_have_the_memory_says_so(engine: Engine, store: str) -> None:
    engine.add(5000)
    engine.add(3000, "kv_cache")
    was = engine.contents()
    engine.sleep(store)
    engine.device.others = DEVICE_SIZE - 7999
    with pytest.raises(OutOfDeviceMemory):
        engine.wake()
    assert engine.device.used == 0
    engine.device.others = 0
    engine.wake()
    assert engine.contents()[0] == was[0]


STORES_FAULTS = [
    *(("host", kind) for kind in ("fingerprints", "fetch", "wait", "pin", "region", "populate", "room")),
    *(("file", kind) for kind in ("fingerprints", "fetch", "wait", "pin", "region", "open", "disk full", "fallocate")),
    ("file", "write file"),
]


@pytest.mark.parametrize(("store", "kind"), STORES_FAULTS)
def test_a_refused_sleep_leaves_the_engine_awake_as_it_was(engine: Engine, store: str, kind: str) -> None:
    engine.add(5000)
    engine.add(4000)
    was = engine.contents()
    engine.faults.arm(kind)
    with pytest.raises((DeviceError, StoreError)):
        engine.sleep(store)
    assert engine.contents() == was
    # the sidecar may ask for the other store, or try again
    engine.sleep("file" if store == "host" else "host")
    engine.wake()
    assert engine.contents() == was
    engine.sleep(store)
    engine.wake()
    assert engine.contents() == was


@BOTH
def test_half_a_copy_is_not_trusted(engine: Engine, store: str) -> None:
    """A sleep that failed while it copied has left anything in the store."""
    block = engine.add(5 * PIECE)
    engine.sleep(store)
    engine.wake()
    saved = engine.contents()
    engine.device.overwrite(block, 0, bytes(5 * PIECE))
    engine.faults.arm("wait", 1)
    with pytest.raises(DeviceError):
        engine.sleep(store)
    engine.device.overwrite(block, 0, saved[0])  # as it was when it was last saved
    assert engine.sleep(store).copied > 0
    engine.wake()
    assert engine.contents() == saved


# What random lives found


@pytest.mark.timeout(20)
def test_the_file_can_be_used_after_the_driver_refused_to_pin_every_buffer(engine: Engine) -> None:
    engine.add(3 * PART)
    was = engine.contents()
    for _ in range(engine.threads + 1):
        engine.faults.arm("pin")
        with pytest.raises(StoreError, match="pin"):
            engine.sleep("file")
    engine.sleep("file")
    engine.wake()
    assert engine.contents() == was


@BOTH
def test_a_store_whose_memory_could_not_be_unpinned_is_empty_and_of_use(engine: Engine, store: str) -> None:
    engine.add(5000)
    engine.sleep(store)
    engine.wake()
    engine.add(9000)  # a second region
    engine.sleep(store)
    engine.wake()
    was = engine.contents()
    engine.faults.arm("unpin", 1)
    with pytest.raises(DeviceError):
        engine.sleep("file" if store == "host" else "host")  # gives the first store back
    assert engine.contents() == was
    assert store == "file" or engine.host.size == 0
    engine.sleep(store)
    engine.wake()
    assert engine.contents() == was


def test_what_is_kept_now_and_then_takes_its_room_once(engine: Engine) -> None:
    engine.add(PAGE)
    engine.add(PAGE, "kv_cache")
    for _ in range(5):
        engine.sleep("host", (*KEEP, "kv_cache"))
        engine.wake()
        assert engine.host.size == 2 * PAGE
        engine.sleep("host")
        assert engine.host.size == PAGE
        engine.wake()


def test_room_of_what_went_while_others_slept_is_given_back_later(engine: Engine) -> None:
    engine.add(PAGE)
    was = engine.contents()
    engine.add(PAGE, "runtime")
    engine.sleep("host")
    engine.wake(())
    runtime = engine.blocks.pop()
    engine.device.free(runtime)
    engine.sleep("host")
    assert engine.wake() == PAGE, "what slept on is still held"
    assert engine.contents() == was
    engine.sleep("host")
    assert engine.host.size == PAGE
    engine.wake()
    assert engine.contents() == was


@BOTH
def test_what_could_not_be_unmapped_after_a_failed_wake_is_never_saved(engine: Engine, store: str) -> None:
    """Its content is nobody's: saved over the good copy it would become the weights."""
    engine.add(5000)
    engine.add(4000)
    engine.sleep(store)
    engine.faults.arm("map", 1)
    engine.faults.arm("unmap")
    with pytest.raises(DeviceError, match="cuMemMap"):
        engine.wake()
    for call in (engine.wake, lambda: engine.sleep(store)):
        with pytest.raises(DeviceError, match="started afresh"):
            call()


def test_an_unmap_that_fails_can_be_finished_by_another_sleep_or_undone_by_a_wake(engine: Engine) -> None:
    for size in (3000, 2000, 1000):
        engine.add(size)
    was = engine.contents()
    for finish in (lambda: engine.sleep("host"), lambda: None):
        engine.faults.arm("unmap", 1)
        with pytest.raises(DeviceError):
            engine.sleep("host")
        finish()
        engine.wake()
        assert engine.contents() == was


# The fake itself: a test that relies on it must be able to fail


def test_the_fake_sees_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tmp_path, monkeypatch)
    device, block = engine.device, engine.add(5000)
    region = engine.host._region(PAGE)
    wrongs = [
        lambda: device.map(block),
        lambda: device.fetch(region.address, block.address, 10, 0),  # not pinned
        lambda: device.fetch(region.address, block.address + 4995, 10, 0),
        lambda: device.unpin(region.address),
        lambda: device.fingerprints([(block.address, 5001)]),
    ]
    for wrong in wrongs:
        with pytest.raises(Misuse):
            wrong()
    device.pin(region.address, region.size)
    with pytest.raises(Misuse):
        region.close()
    device.host_taken(region.address, region.size)
    device.by_chance = 0
    device.load(block.address, region.address, 4000, 0)
    for wrong in (
        lambda: device.unmap(block),
        lambda: device.fingerprints([(block.address, 10)]),
        lambda: device.fetch(region.address + 3000, block.address + 4500, 10, 1),
        lambda: device.unpin(region.address),
    ):
        with pytest.raises(Misuse):
            wrong()
    from ctypes import memset

    memset(region.address, 7, 10)  # the source of a copy that is in flight
    with pytest.raises(Misuse, match="changed meanwhile"):
        device.wait(0)
    device.unmap(block)
    with pytest.raises(Misuse):
        device.unmap(block)
    with pytest.raises(Misuse):
        device.content(block)
    with pytest.raises(Misuse):
        device.check()
