"""The memory of the simulated GPUs: one SQLite file that all processes of the machine share.

A process owns what it allocates. When it ends, however it ends, its memory is free at that moment, as with a driver:
the dead are recognised by pid and start time whenever the ledger is read. An allocation that does not fit raises
`OutOfMemoryError` with the words torch uses, and leaves a row in `refusals`, so that a wrong claim is never silent.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.gpus.processes import ProcessId, is_alive, process_id

ENVIRONMENT = "GREENTHREAD_GPU_LEDGER"
"""Environment variable with the path of the ledger's file."""

DEFAULT_PRODUCT = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
GIB = 1024**3
DEFAULT_TOTAL_BYTES = 96 * GIB

_SCHEMA = """
CREATE TABLE devices (
    idx INTEGER PRIMARY KEY, uuid TEXT NOT NULL, product TEXT NOT NULL, total_bytes INTEGER NOT NULL,
    peak_bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE allocations (
    device INTEGER NOT NULL REFERENCES devices(idx), pid INTEGER NOT NULL, started INTEGER NOT NULL,
    tag TEXT NOT NULL, bytes INTEGER NOT NULL CHECK (bytes > 0), PRIMARY KEY (device, pid, started, tag)) WITHOUT ROWID;
CREATE TABLE states (
    pid INTEGER NOT NULL, started INTEGER NOT NULL, state INTEGER NOT NULL, PRIMARY KEY (pid, started)) WITHOUT ROWID;
CREATE TABLE away AS SELECT * FROM allocations;
CREATE TABLE load (
    pid INTEGER NOT NULL, started INTEGER NOT NULL, in_flight INTEGER NOT NULL,
    PRIMARY KEY (pid, started)) WITHOUT ROWID;
CREATE TABLE refusals (
    time REAL NOT NULL, pid INTEGER NOT NULL, device INTEGER NOT NULL, bytes INTEGER NOT NULL,
    free_bytes INTEGER NOT NULL, tag TEXT NOT NULL);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, pid INTEGER NOT NULL, model TEXT NOT NULL, path TEXT NOT NULL,
    began REAL NOT NULL, ended REAL, outcome TEXT NOT NULL DEFAULT 'running');
CREATE INDEX requests_by_request_id ON requests (request_id);
"""
_KEPT_REQUESTS = 100_000
_BUSY_SECONDS = 30.0


class LedgerError(Exception):
    """The ledger cannot be used; the message says what to do."""


class OutOfMemoryError(RuntimeError):
    """An allocation went past the end of a device; the text is torch's."""


@dataclass(frozen=True, slots=True)
class Device:
    """One simulated GPU. Sizes in bytes."""

    index: int
    uuid: str
    product: str
    total_bytes: int
    peak_bytes: int
    """The most that was ever allocated at once."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one living process holds on one device, in bytes."""

    pid: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """An allocation that did not fit. `time` is seconds since the epoch."""

    time: float
    pid: int
    device: int
    bytes: int
    free_bytes: int
    tag: str


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that an engine began. `outcome` is `running`, `ok`, `error` or `aborted`."""

    request_id: str
    pid: int
    model: str
    path: str
    began: float
    ended: float | None
    outcome: str


def create(
    path: str | os.PathLike[str],
    count: int = 2,
    total_bytes: int = DEFAULT_TOTAL_BYTES,
    product: str = DEFAULT_PRODUCT,
) -> Ledger:
    """Make a ledger with `count` devices of `total_bytes` each, or open the one that is there with the same devices.

    A ledger with other devices is replaced, unless a living process holds memory in it: then LedgerError.
    """
    if not 1 <= count <= 1024:
        raise LedgerError(f"a ledger has 1 to 1024 devices, not {count}")
    if not 0 < total_bytes <= 2**50:
        raise LedgerError(f"a device has between 1 byte and 1 PiB of memory, not {total_bytes} bytes")
    file = Path(path)
    if file.exists():
        ledger = Ledger(file)
        if [(d.total_bytes, d.product) for d in ledger.devices()] == [(total_bytes, product)] * count:
            return ledger
        holders = sorted({usage.pid for device in ledger.devices() for usage in ledger.usage(device.index)})
        ledger.close()
        if holders:
            pids = ", ".join(map(str, holders))
            raise LedgerError(f"{file} has other devices, and processes still use them (pid {pids}): stop them first")
        for stale in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
            stale.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed, so that nobody ever opens half a ledger.
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    connection = sqlite3.connect(partial, isolation_level=None)
    try:
        connection.executescript(f"PRAGMA synchronous = OFF; BEGIN; {_SCHEMA} COMMIT;")
        connection.executemany(
            "INSERT INTO devices (idx, uuid, product, total_bytes) VALUES (?, ?, ?, ?)",
            [(index, _uuid(file, index), product, total_bytes) for index in range(count)],
        )
    finally:
        connection.close()
    partial.replace(file)
    return Ledger(file)


def open_ledger() -> Ledger:
    """The ledger that $GREENTHREAD_GPU_LEDGER names. Raises LedgerError when it is not set or not there."""
    path = os.environ.get(ENVIRONMENT)
    if not path:
        raise LedgerError(
            f"${ENVIRONMENT} is not set: point it to a ledger of simulated GPUs "
            "(python -m localcluster.gpus create FILE makes one)"
        )
    return Ledger(path)


class Ledger:
    """A connection to the ledger's file. Transactions are short; it may be used from several threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise LedgerError(f"there is no ledger of simulated GPUs at {self.path}")
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            # Nothing here must survive a power cut: the processes would not either.
            self._connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;")
            self._connection.execute("SELECT count(*) FROM devices")
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path} is not a ledger of simulated GPUs: {error}") from error
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection. Memory that this process holds stays allocated until it ends."""
        self._connection.close()

    # Devices and what is on them

    def devices(self) -> list[Device]:
        """All devices, by index."""
        rows = self._read("SELECT idx, uuid, product, total_bytes, peak_bytes FROM devices ORDER BY idx")
        return [Device(*row) for row in rows]

    def device(self, index: int) -> Device:
        """The device `index`. Raises LedgerError when there is none."""
        for device in self.devices():
            if device.index == index:
                return device
        raise LedgerError(f"there is no simulated GPU {index} in {self.path}")

    def usage(self, index: int) -> list[Usage]:
        """What each living process holds on device `index`, by pid."""
        rows = self._read(
            "SELECT pid, started, sum(bytes) FROM allocations WHERE device = ? GROUP BY pid, started ORDER BY pid",
            (index,),
        )
        return [Usage(pid, used) for pid, started, used in rows if is_alive(ProcessId(pid, started))]

    def used_bytes(self, index: int) -> int:
        """Bytes in use on device `index`."""
        return sum(usage.bytes for usage in self.usage(index))

    def free_bytes(self, index: int) -> int:
        """Bytes free on device `index`."""
        return self.device(index).total_bytes - self.used_bytes(index)

    # Allocations of this process

    def allocate(self, index: int, size: int, tag: str = "") -> None:
        """Add `size` bytes under `tag` on device `index` for this process.

        Raises OutOfMemoryError when they do not fit (and records the refusal), LedgerError for an unknown device.
        """
        if size <= 0:
            return
        me = process_id()
        with self._write() as connection:
            row = connection.execute("SELECT total_bytes FROM devices WHERE idx = ?", (index,)).fetchone()
            if row is None:
                raise LedgerError(f"there is no simulated GPU {index} in {self.path}")
            total = int(row[0])
            self._forget_the_dead(connection)
            held = {
                int(pid): int(used)
                for pid, used in connection.execute(
                    "SELECT pid, sum(bytes) FROM allocations WHERE device = ? GROUP BY pid ORDER BY pid", (index,)
                )
            }
            used = sum(held.values())
            if used + size <= total:
                connection.execute(
                    "INSERT INTO allocations (device, pid, started, tag, bytes) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes",
                    (index, me.pid, me.started, tag, size),
                )
                connection.execute("INSERT OR IGNORE INTO states VALUES (?, ?, 0)", me)
                connection.execute(
                    "UPDATE devices SET peak_bytes = max(peak_bytes, ?) WHERE idx = ?", (used + size, index)
                )
                return
            connection.execute(
                "INSERT INTO refusals VALUES (?, ?, ?, ?, ?, ?)", (time.time(), me.pid, index, size, total - used, tag)
            )
        raise OutOfMemoryError(_out_of_memory_text(index, size, total, held, me.pid))

    def free(self, index: int, tag: str | None = None, keep: int = 0) -> None:
        """Give back what this process holds on device `index` under `tag` (None: all of it), but for `keep` bytes."""
        me = process_id()
        with self._write() as connection:
            where = "device = ? AND pid = ? AND started = ? AND (? IS NULL OR tag = ?)"
            values = (index, me.pid, me.started, tag, tag)
            if keep > 0:
                statement = f"UPDATE allocations SET bytes = min(bytes, ?) WHERE {where}"  # noqa: S608
                connection.execute(statement, (keep, *values))
            else:
                connection.execute(f"DELETE FROM allocations WHERE {where}", values)  # noqa: S608

    def held_bytes(self, index: int, tag: str | None = None) -> int:
        """What this process holds on device `index` under `tag` (None: in all)."""
        me = process_id()
        rows = self._read(
            "SELECT coalesce(sum(bytes), 0) FROM allocations "
            "WHERE device = ? AND pid = ? AND started = ? AND (? IS NULL OR tag = ?)",
            (index, me.pid, me.started, tag, tag),
        )
        return int(rows[0][0])

    # Checkpoints, of any process

    def state(self, pid: int) -> int | None:
        """What was last set for this process, 0 at first; None when it never held anything of a device."""
        known = self._read("SELECT state, started FROM states WHERE pid = ?", (pid,))
        return next((int(state) for state, started in known if is_alive(ProcessId(pid, started))), None)

    def set_state(self, pid: int, state: int, away: bool) -> None:
        """`away`: what it holds is taken off the devices until it is set otherwise. OutOfMemoryError: another has it.

        ProcessLookupError: it has ended.
        """
        me = process_id(pid)
        with self._write() as connection:
            self._forget_the_dead(connection)
            source, target = ("allocations", "away") if away else ("away", "allocations")
            moved = connection.execute(
                f"SELECT device, sum(bytes) FROM {source} WHERE pid = ? AND started = ? GROUP BY device",  # noqa: S608
                (me.pid, me.started),
            ).fetchall()
            for device, size in [] if away else moved:
                total, used = connection.execute(
                    "SELECT total_bytes, (SELECT coalesce(sum(bytes), 0) FROM allocations WHERE device = idx) "
                    "FROM devices WHERE idx = ?",
                    (device,),
                ).fetchone()
                if used + size > total:
                    raise OutOfMemoryError(f"{_torch_size(size)} do not fit on GPU {device} again")
            which = (me.pid, me.started)
            connection.execute(f"INSERT INTO {target} SELECT * FROM {source} WHERE pid = ? AND started = ?", which)  # noqa: S608
            connection.execute(f"DELETE FROM {source} WHERE pid = ? AND started = ?", which)  # noqa: S608
            connection.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (*which, state))

    # Load, from which utilization, temperature and power follow

    def report_load(self, in_flight: int) -> None:
        """Say how many requests this process works on now."""
        me = process_id()
        with self._write() as connection:
            connection.execute(
                "INSERT INTO load VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET in_flight = excluded.in_flight",
                (me.pid, me.started, in_flight),
            )

    def in_flight(self, index: int) -> int:
        """Requests in flight in the living processes that hold memory on device `index`."""
        rows = self._read(
            "SELECT DISTINCT load.pid, load.started, load.in_flight FROM load "
            "JOIN allocations USING (pid, started) WHERE allocations.device = ?",
            (index,),
        )
        return sum(count for pid, started, count in rows if is_alive(ProcessId(pid, started)))

    # What tests ask

    def refusals(self) -> list[Refusal]:
        """Every allocation that was ever refused: empty when no claim was wrong."""
        rows = self._read("SELECT time, pid, device, bytes, free_bytes, tag FROM refusals ORDER BY time")
        return [Refusal(*row) for row in rows]

    def begin_request(self, request_id: str, model: str, path: str) -> int:
        """Record that this process begins a request; the returned number is for `end_request`."""
        with self._write() as connection:
            cursor = connection.execute(
                "INSERT INTO requests (request_id, pid, model, path, began) VALUES (?, ?, ?, ?, ?)",
                (request_id[:256], os.getpid(), model, path[:256], time.time()),
            )
            number = int(cursor.lastrowid or 0)
            if number % 1000 == 0:
                connection.execute("DELETE FROM requests WHERE id <= ?", (number - _KEPT_REQUESTS,))
            return number

    def end_request(self, number: int, outcome: str) -> None:
        """Record how a request ended: `ok`, `error` or `aborted`."""
        with self._write() as connection:
            connection.execute(
                "UPDATE requests SET ended = ?, outcome = ? WHERE id = ?", (time.time(), outcome, number)
            )

    def requests(self, request_id: str | None = None) -> list[RequestRecord]:
        """The requests that engines began (the last 100,000), oldest first; those of one X-Request-Id if given."""
        rows = self._read(
            "SELECT request_id, pid, model, path, began, ended, outcome FROM requests "
            "WHERE ? IS NULL OR request_id = ? ORDER BY id",
            (request_id, request_id),
        )
        return [RequestRecord(*row) for row in rows]

    # Inside

    def _read(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the writers' lock from its first statement, so that read-then-write is atomic."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @staticmethod
    def _forget_the_dead(connection: sqlite3.Connection) -> None:
        for table in ("allocations", "away", "states", "load"):
            for row in connection.execute(f"SELECT DISTINCT pid, started FROM {table}").fetchall():  # noqa: S608
                if not is_alive(ProcessId(*row)):
                    connection.execute(f"DELETE FROM {table} WHERE pid = ? AND started = ?", row)  # noqa: S608


def _uuid(file: Path, index: int) -> str:
    digits = hashlib.sha256(f"{file.resolve()}:{index}".encode()).hexdigest()
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"


def _out_of_memory_text(index: int, size: int, total: int, held: dict[int, int], pid: int) -> str:
    others = "".join(
        f"Process {other} has {_torch_size(used)} memory in use. " for other, used in held.items() if other != pid
    )
    mine = _torch_size(held.get(pid, 0))
    return (
        f"CUDA out of memory. Tried to allocate {_torch_size(size)}. GPU {index} has a total capacity of "
        f"{_torch_size(total)} of which {_torch_size(total - sum(held.values()))} is free. {others}"
        f"Including non-PyTorch memory, this process has {mine} memory in use. Of the allocated memory {mine} is "
        "allocated by PyTorch, and 0 bytes is reserved by PyTorch but unallocated."
    )


def _torch_size(size: int) -> str:
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} bytes"
