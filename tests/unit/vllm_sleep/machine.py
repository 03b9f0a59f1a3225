"""An engine that sleeps and wakes, beside a model of what must come back: the rules for hypothesis."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.vllm_sleep.fake_cuda import FakeBlock, FakeDevice, Faults, FaultyOs, region_type
from vllm_sleep import disk, host, memory
from vllm_sleep.memory import DeviceError, MemoryPath, StoreError

ALIGNMENT, PIECE, PART, PAGE = 512, 1536, 1024, 4096
DEVICE_SIZE = 64 * 1024
TAGS = ("weights", "kv_cache", "runtime", "default")
DEFERRABLE = ("weights", "kv_cache")
KEEP = ("weights", "runtime", "cudagraph")
#: Every call that can fail, of the device and of the system.
FAULTS = (
    *("map", "unmap", "fingerprints", "fetch", "load", "wait", "pin", "unpin"),
    *("region", "populate", "room", "open", "disk full", "fallocate", "write file", "read file", "file ends"),
    *("short write", "short read"),
)
HARMLESS = ("short write", "short read")
sizes = st.one_of(st.sampled_from([1, 511, 512, 1535, 1536, 1537, 4096, 4608]), st.integers(1, 9000))
faults = st.none() | st.tuples(st.sampled_from(FAULTS), st.integers(0, 8))


def small(patch: pytest.MonkeyPatch) -> None:
    """Makes pieces, parts and regions of a few bytes, so that blocks cross their borders."""
    patch.setattr(memory, "PIECE", PIECE)
    patch.setattr(memory, "ALIGNMENT", ALIGNMENT)
    patch.setattr(disk, "_PART", PART)
    patch.setattr(disk, "_SPARE", 0)
    patch.setattr(host, "HUGE_PAGE", PAGE)


class Engine:
    """A process with a memory path over a device, both stores and faults."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, streams: int = 3, threads: int = 2, seed: int = 0):
        small(patch)
        self.folder, self.threads = folder, threads
        self.faults = Faults()
        patch.setattr(disk, "os", FaultyOs(self.faults, ALIGNMENT))
        self.device = FakeDevice(DEVICE_SIZE, streams, seed, self.faults)
        self.blocks: list[FakeBlock] = []
        self.room = 1 << 30
        self.start()

    def start(self) -> None:
        """A new process."""
        region = region_type(self.device)
        self.host = host.HostMemory(
            room=lambda: -1 if self.faults.hit("room") else self.room - self.host.size, region=region
        )
        self.file = disk.DiskFile(self.folder, self.threads, region)
        self.path = MemoryPath(self.device, {"host": self.host, "file": self.file})

    def stop(self) -> None:
        self.faults.disarm()
        self.host.clear()
        self.file.clear()

    def add(self, size: int, tag: str = "weights") -> FakeBlock:
        block = self.device.allocate(size, tag)
        self.blocks.append(block)
        return block

    def sleep(self, store: str = "host", keep: tuple[str, ...] = KEEP) -> memory.Slept:
        return self.path.sleep(self.blocks, keep, store)

    def wake(self, tags: tuple[str, ...] | None = None) -> int:
        """As the backend chooses."""
        return self.path.wake([b for b in self.blocks if tags is None or b.tag in tags or b.tag not in DEFERRABLE])

    def contents(self) -> list[bytes]:
        return [self.device.content(block) for block in self.blocks]


class Sleeping(RuleBasedStateMachine):
    """What was kept comes back as it was; what failed can be tried again; nothing is lost, nothing leaks."""

    @initialize(streams=st.integers(1, 4), threads=st.integers(1, 3), seed=st.integers(0, 1000))
    def begin(self, streams: int, threads: int, seed: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.folder = Path(tempfile.mkdtemp(prefix="greenthread-sleep-"))
        self.engine = Engine(self.folder, self.patch, streams, threads, seed)
        self.device = self.engine.device
        self.add(sizes=[5000, 3000], tags=["weights", "kv_cache"])

    def forget_model(self) -> None:
        #: What each kept block that is asleep must hold when it is awake again.
        self.asleep: dict[FakeBlock, bytes] = {}
        #: What the last sleep left in its store; None: nobody knows.
        self.saved: dict[FakeBlock, bytes] | None = None
        self.last: tuple[str, tuple[str, ...]] | None = None

    def add(self, sizes: list[int], tags: list[str]) -> None:
        for size, tag in zip(sizes, tags, strict=True):
            self.engine.add(size, tag)
        self.forget_model()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            self.engine.stop()
            self.device.check()
            assert not self.device.pinned, "pinned memory was leaked"
            assert not self.device.host, "host memory was leaked"
            assert self.engine.host.size == 0
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)

    # The engine's life

    @rule(size=sizes, tag=st.sampled_from(TAGS))
    def allocate(self, size: int, tag: str) -> None:
        if self.device.used + self.device.others + size <= DEVICE_SIZE and len(self.engine.blocks) < 8:
            self.engine.add(size, tag)
            self.saved = None

    @precondition(lambda self: self.engine.blocks)
    @rule(number=st.integers(0, 7))
    def free(self, number: int) -> None:
        block = self.engine.blocks.pop(number % len(self.engine.blocks))
        self.device.free(block)
        self.asleep.pop(block, None)
        self.saved = None

    @precondition(lambda self: any(block.mapped for block in self.engine.blocks))
    @rule(number=st.integers(0, 7), at=st.integers(0, 8999), length=st.integers(1, 9000), data=st.binary(min_size=1))
    def change(self, number: int, at: int, length: int, data: bytes) -> None:
        """A weight update, a merged adapter, the KV cache in use."""
        awake = [block for block in self.engine.blocks if block.mapped]
        block = awake[number % len(awake)]
        at %= block.size
        length = min(length, block.size - at)
        self.device.overwrite(block, at, (data * length)[:length])

    @rule()
    def permute(self) -> None:
        """Experts change places."""
        awake = [block for block in self.engine.blocks if block.mapped]
        for one, other in itertools.pairwise(awake):
            half = min(one.size, other.size)
            first, second = self.device.content(one)[:half], self.device.content(other)[:half]
            self.device.overwrite(one, 0, second)
            self.device.overwrite(other, 0, first)

    @rule(size=st.integers(0, DEVICE_SIZE))
    def others(self, size: int) -> None:
        """Other processes use the device, when there is room."""
        self.device.others = min(size, DEVICE_SIZE - self.device.used)

    # Sleep

    @rule(store=st.sampled_from(["host", "file"]), kv=st.booleans(), fault=faults)
    def sleep(self, store: str, kv: bool, fault: tuple[str, int] | None) -> None:
        keep = (*KEEP, "kv_cache") if kv else KEEP
        awake = {block: self.device.content(block) for block in self.engine.blocks if block.mapped}
        kept = {block: content for block, content in awake.items() if block.tag in keep}
        calls = self.arm(fault)
        slept, refused = None, ""
        try:
            slept = self.engine.sleep(store, keep)
        except (DeviceError, StoreError) as error:
            refused = str(error)
        fired = self.disarm()
        self.settled()
        if slept is None:
            assert fired, f"nothing was made to fail, and yet: {refused}"
            if "unmap" not in fired:
                for block, content in awake.items():
                    assert block.mapped
                    assert self.device.content(block) == content
            for block, content in kept.items():
                if not block.mapped:
                    self.asleep[block] = content
            self.saved = None
            return
        assert not any(block.mapped for block in self.engine.blocks)
        assert self.device.used == 0
        assert slept.freed == sum(block.size for block in awake)
        assert slept.kept == sum(block.size for block in kept)
        if self.saved is not None and self.last == (store, keep) and kept.keys() == self.saved.keys():
            changed = sum(_changed(self.saved[block], content) for block, content in kept.items())
            assert slept.copied == changed, "what has not changed is not copied"
            if not changed:
                assert self.device.calls["fetch"] == calls["fetch"]
        everything = len(awake) == len(self.engine.blocks)
        if everything:
            room = sum(-(-size // ALIGNMENT) * ALIGNMENT for block in kept for size in _pieces(block.size))
            assert self.engine.host.size <= (-(-room // PAGE) * PAGE if store == "host" else 0)
        self.asleep.update(kept)
        self.saved = dict(kept) if everything else None
        self.last = (store, keep)

    # Wake

    @rule(tags=st.sampled_from([None, None, None, ("weights",), ("kv_cache",)]), fault=faults)
    def wake(self, tags: tuple[str, ...] | None, fault: tuple[str, int] | None) -> None:
        blocks = self.engine.blocks
        before = {block for block in blocks if block.mapped}
        chosen = {b for b in blocks if not b.mapped and (tags is None or b.tag in tags or b.tag not in DEFERRABLE)}
        needed = sum(block.size for block in chosen)
        fits = self.device.used + self.device.others + needed <= DEVICE_SIZE
        self.arm(fault)
        copied, refused = None, ""
        try:
            copied = self.engine.wake(tags)
        except (DeviceError, StoreError) as error:
            refused = str(error)
        fired = self.disarm()
        self.settled()
        if copied is None:
            assert fired or not fits, f"nothing was made to fail, and yet: {refused}"
            if "unmap" in fired:
                self.crash()
                return
            assert {block for block in blocks if block.mapped} == before
            return
        assert {block for block in blocks if block.mapped} == before | chosen
        back = {block: self.asleep.pop(block) for block in chosen if block in self.asleep}
        assert copied == sum(block.size for block in back), "what is not kept comes back empty"
        for block, content in back.items():
            assert self.device.content(block) == content

    @rule()
    def wake_all(self) -> None:
        """Once others have gone, whatever failed before, everything comes back."""
        self.device.others = 0
        if self.device.used + sum(b.size for b in self.engine.blocks if not b.mapped) <= DEVICE_SIZE:
            self.wake(None, None)
            assert all(block.mapped for block in self.engine.blocks)

    @rule()
    def crash(self) -> None:
        """The process ends, another starts."""
        file, self.engine.file._file = self.engine.file._file, None
        if file is not None:
            os.close(file)
        self.device.end_process()
        assert not list(self.folder.iterdir()), "a file outlives the process"
        self.engine.blocks = []
        self.engine.start()
        self.device.others = 0
        self.add(sizes=[4000, 2000], tags=["weights", "kv_cache"])

    # What always holds

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "engine"):
            self.device.check()
            assert self.device.in_flight == 0

    def settled(self) -> None:
        self.device.check()
        assert self.device.in_flight == 0

    def arm(self, fault: tuple[str, int] | None) -> dict[str, int]:
        self.engine.faults.disarm()
        if fault is not None:
            self.engine.faults.arm(*fault)
        return dict(self.device.calls) | {"fetch": self.device.calls["fetch"]}

    def disarm(self) -> list[str]:
        fired = [kind for kind in self.engine.faults.fired if kind not in HARMLESS]
        self.engine.faults.disarm()
        return fired


def _pieces(size: int) -> list[int]:
    return [min(PIECE, size - start) for start in range(0, size, PIECE)]


def _changed(old: bytes, new: bytes) -> int:
    """Bytes of the pieces that differ."""
    starts = range(0, len(old), PIECE)
    return sum(len(old[at : at + PIECE]) for at in starts if old[at : at + PIECE] != new[at : at + PIECE])
