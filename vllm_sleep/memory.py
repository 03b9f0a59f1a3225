"""The memory path: what of an engine's device memory is saved before it is unmapped, and how it comes back.

Weights do not change between two sleeps, as a rule. So what was saved once stays saved, and a sleep copies only the
pieces whose fingerprint on the device differs from the saved one's; whoever changed them (a weight update, a LoRA
adapter merged in place, experts moved about) need not tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

PIECE = 64 * 2**20
"""Bytes that are fingerprinted as one, and saved anew when they changed."""
ALIGNMENT = 4096
"""Of a piece's offset in a store: what O_DIRECT wants."""


class Block(Protocol):
    """One allocation on the device, mapped or not. Its address stays reserved while it is not."""

    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def tag(self) -> str: ...

    #: False: no memory behind the address.
    mapped: bool


class Device(Protocol):
    """One GPU, as the memory path uses it. Addresses are integers, sizes bytes. Any call may raise DeviceError."""

    streams: int
    """Copies on different streams may overlap; on one they run in order. Numbered from 0."""

    def map(self, block: Block) -> None:
        """Puts memory, of any content, behind the block's address. OutOfDeviceMemory when there is none."""

    def unmap(self, block: Block) -> None:
        """Gives the memory back to the driver. Nothing may be in flight on it."""

    def fingerprints(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Of each (address, size) a number that differs, but for chance of about 2⁻⁶⁴, when the content does."""

    def fetch(self, host: int, address: int, size: int, stream: int) -> None:
        """Begins a copy from the device to pinned host memory."""

    def load(self, address: int, host: int, size: int, stream: int) -> None:
        """Begins a copy from pinned host memory to the device."""

    def wait(self, stream: int) -> None:
        """Returns when all copies of the stream are done. DeviceError when one failed."""

    def pin(self, host: int, size: int) -> None:
        """Locks host memory for direct copies."""

    def unpin(self, host: int) -> None:
        """Undoes `pin`."""


class DeviceError(Exception):
    """CUDA refused a call; the message names it."""


class OutOfDeviceMemory(DeviceError):
    """No memory left on the device: another process has it."""


class StoreError(Exception):
    """The store has no room, or cannot be read or written; the message says what to do."""


@contextmanager
def settled(device: Device) -> Iterator[None]:
    """On leaving, nothing is in flight on any stream of the device. Raises the first error."""
    try:
        yield
    finally:
        errors = []
        for stream in range(device.streams):
            try:
                device.wait(stream)
            except DeviceError as error:
                errors.append(error)
        if errors:
            raise errors[0]


@dataclass(slots=True)
class Piece:
    """A span of a block and where the store keeps it."""

    address: int
    size: int
    offset: int
    #: Of what is saved; None: nothing yet.
    fingerprint: int | None = None


class Store(Protocol):
    """Where saved pieces are: host memory, or a file. Keeps no books; `Saved` does."""

    def reserve(self, size: int) -> None:
        """Makes room for `size` bytes in all, at least; what is saved stays. StoreError when it cannot be had."""

    def write(self, device: Device, pieces: Sequence[Piece]) -> None:
        """Copies from the device; done on return. Offsets lie within the room reserved."""

    def read(self, device: Device, pieces: Iterable[Piece]) -> None:
        """Copies to the device; done on return, also when an error is raised. `pieces` may yield late: each is to be
        begun before the next is asked for."""

    def clear(self) -> None:
        """Gives its room back."""


class Saved:
    """What one store holds of which block."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pieces: dict[tuple[int, int], list[Piece]] = {}
        self._end = 0

    def __contains__(self, block: Block) -> bool:
        pieces = self._pieces.get((block.address, block.size), ())
        return bool(pieces) and all(piece.fingerprint is not None for piece in pieces)

    def pieces(self, block: Block) -> list[Piece]:
        """KeyError when it is not held."""
        return self._pieces[block.address, block.size]

    def save(self, device: Device, blocks: Sequence[Block]) -> int:
        """Makes the store hold these mapped blocks as they are now; returns how many bytes had to be copied."""
        for block in blocks:
            key = (block.address, block.size)
            if key not in self._pieces:
                self._pieces[key] = self._cut(block)
        self.store.reserve(self._end)
        pieces = [piece for block in blocks for piece in self.pieces(block)]
        now = device.fingerprints([(piece.address, piece.size) for piece in pieces])
        changed = [(piece, seen) for piece, seen in zip(pieces, now, strict=True) if piece.fingerprint != seen]
        for piece, _ in changed:
            piece.fingerprint = None  # half a copy is none
        if changed:
            self.store.write(device, [piece for piece, _ in changed])
        for piece, seen in changed:
            piece.fingerprint = seen
        return sum(piece.size for piece, _ in changed)

    def keep_only(self, blocks: Sequence[Block]) -> None:
        """Forgets blocks that are not among these any more."""
        here = {(block.address, block.size) for block in blocks}
        gone = self._pieces.keys() - here
        room = sum(aligned(piece.size) for pieces in self._pieces.values() for piece in pieces)
        if (gone or room < self._end) and all(block.mapped for block in blocks if block in self):
            self.clear()  # all can be saved anew, and a store without holes is simple
        else:
            self._drop(gone)

    def forget(self, blocks: Iterable[Block]) -> None:
        self._drop({(block.address, block.size) for block in blocks})

    def clear(self) -> None:
        self._pieces.clear()
        self._end = 0
        self.store.clear()

    def _drop(self, keys: Collection[tuple[int, int]]) -> None:
        held = bool(self._pieces)
        for key in keys:
            self._pieces.pop(key, None)
        if held and not self._pieces:
            self.clear()

    def _cut(self, block: Block) -> list[Piece]:
        pieces = []
        for start in range(0, block.size, PIECE):
            size = min(PIECE, block.size - start)
            pieces.append(Piece(block.address + start, size, self._end))
            self._end += aligned(size)
        return pieces


def aligned(size: int) -> int:
    """The room that a piece of this size takes in a store."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Slept:
    """Bytes of one sleep: unmapped, kept in the store, copied there now."""

    freed: int
    kept: int
    copied: int


class MemoryPath:
    """Sleep and wake of one device's blocks. One owner calls it, one call at a time. A block is saved in one store."""

    def __init__(self, device: Device, stores: Mapping[str, Store]) -> None:
        self._device = device
        self._saved = {name: Saved(store) for name, store in stores.items()}
        self._broken: DeviceError | None = None

    def sleep(self, blocks: Sequence[Block], keep: Collection[str], store: str) -> Slept:
        """Saves the mapped blocks whose tag is in `keep`, then unmaps all. StoreError or DeviceError before anything
        is unmapped: the engine is awake as it was. When it is `unmap` that fails, some blocks are asleep already:
        a wake maps them again, another sleep goes on."""
        self._check()
        for saved in self._saved.values():
            # what comes back must be of now: what should come back empty is forgotten, though it was once saved
            saved.keep_only([block for block in blocks if block.tag in keep or not block.mapped])
        mapped = [block for block in blocks if block.mapped]
        kept = [block for block in mapped if block.tag in keep]
        saved = self._saved[store]
        copied = saved.save(self._device, kept)
        for other in self._saved.values():
            if other is not saved:
                other.forget(mapped)  # an older copy
        for block in mapped:
            self._device.unmap(block)
            block.mapped = False
        return Slept(sum(block.size for block in mapped), sum(block.size for block in kept), copied)

    def wake(self, blocks: Sequence[Block]) -> int:
        """Maps these blocks again, filled where they were saved; returns how many bytes were copied.

        DeviceError or StoreError: they are all unmapped again, and nothing that was saved is lost. Should a block not
        even let itself be unmapped again, nobody knows its content, and every later call is refused.
        """
        self._check()
        asleep = [block for block in blocks if not block.mapped]
        # the largest first: its copy runs while the others are mapped, and last, while all copies run, what is empty
        asleep.sort(key=lambda block: -block.size)
        held = {name: [block for block in asleep if block in saved] for name, saved in self._saved.items()}
        empty = [block for block in asleep if not any(block in saved for saved in self._saved.values())]
        try:
            for name, filled in held.items():
                if filled:
                    self._saved[name].store.read(self._device, self._mapping(self._saved[name], filled, empty))
            for block in asleep:
                if not block.mapped:
                    self._map(block)
        except BaseException:
            for block in asleep:
                if block.mapped:
                    try:
                        self._device.unmap(block)
                        block.mapped = False
                    except DeviceError as error:
                        self._broken = error
            raise
        return sum(block.size for filled in held.values() for block in filled)

    def _check(self) -> None:
        if self._broken is not None:
            raise DeviceError(f"the engine has to be started afresh: a wake failed, and then {self._broken}")

    def _mapping(self, saved: Saved, filled: Iterable[Block], empty: Iterable[Block]) -> Iterator[Piece]:
        for block in filled:
            self._map(block)
            yield from saved.pieces(block)
        for block in empty:
            if not block.mapped:
                self._map(block)

    def _map(self, block: Block) -> None:
        self._device.map(block)
        block.mapped = True
