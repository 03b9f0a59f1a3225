"""A history as a file: lines of JSON, compressed if its name ends in `.gz`."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tui.history import History, NoRecording

MOST_BYTES = 128 * 2**20
"""Of a file. When there is more, it becomes `FILE.1`, in place of an older one, and a new one begins."""
_GZIP = 31
_LONGEST = 64 * 2**20
"""Bytes of a line, at most."""
_PART = 2**20


class CannotRecord(Exception):
    """Says why, for people."""


def older(path: Path) -> Path:
    """Where what came before a recording is."""
    return path.with_name(f"{path.name}.1")


class Reader:
    """The lines of a recording, up to where it was cut."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.whole = 0
        """Bytes of the file up to the end of the last whole line, or compressed part, that was read."""

    def lines(self) -> Iterator[bytes]:
        """NoRecording for what has lines of no recording's length."""
        rest = b""
        for part in self._plain():
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > _LONGEST:
                raise NoRecording("it is no recording of this program")
            yield from lines

    def _plain(self) -> Iterator[bytes]:
        data = self._file.read(_PART)
        if data[:2] != b"\x1f\x8b":
            at = 0
            while data:
                if (end := data.rfind(b"\n")) >= 0:
                    self.whole = at + end + 1
                at += len(data)
                yield data
                data = self._file.read(_PART)
            return
        inflate, read = zlib.decompressobj(_GZIP), len(data)
        while data:
            try:
                yield inflate.decompress(data, 4 * _PART)
            except zlib.error:
                return  # it was cut, and something else came behind
            data = inflate.unconsumed_tail
            if inflate.eof:
                data = inflate.unused_data
                self.whole = read - len(data)
                inflate = zlib.decompressobj(_GZIP)
            if not data:
                data = self._file.read(_PART)
                read += len(data)


def load(path: Path, history: History) -> tuple[list[Mapping[str, Any]], int]:
    """Reads a recording, and what came before it, into a history.

    Returns what it tells of who recorded, oldest first, and how many of its bytes are whole: a cut last line is left
    out. NoRecording for another file; OSError if it cannot be read.
    """
    about: list[Mapping[str, Any]] = []
    whole = 0
    for part in (older(path), path):
        if part != path and not part.exists():
            continue
        with part.open("rb") as file:
            reader = Reader(file)
            for number, line in enumerate(reader.lines(), 1):
                try:
                    told = history.read(line)
                except NoRecording as error:
                    raise NoRecording(f"{part}, line {number}: {error}") from None
                if told is not None:
                    about.append(told)
            whole = reader.whole
    return about, whole


class Recorder:
    """Appends to a file, which nobody else may write to meanwhile. What it gets is written by `flush`."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        """CannotRecord if the file cannot be written, or another dashboard writes to it."""
        self.path, self._most = path, most_bytes
        self._packed = path.suffix == ".gz"
        self._pending: list[bytes] = []
        self._about = b""
        self._open()

    def keep(self, whole: int) -> None:
        """Cuts off what was not written to its end by another program."""
        self._file.truncate(whole)
        self._size = whole

    def write(self, line: bytes) -> None:
        """Takes a line."""
        if line.startswith(b'{"greenthread-recording":'):
            self._about = line
        elif self._size > self._most and line.startswith(b'{"t":') and b'"all":{' in line[:40]:
            self._next()
        self._pending.append(line)

    def flush(self) -> None:
        """Writes what is pending. CannotRecord when that fails, as with a full disk."""
        if not self._pending:
            return
        data = b"\n".join(self._pending) + b"\n"
        self._pending.clear()
        if self._packed:
            deflate = zlib.compressobj(6, wbits=_GZIP)
            data = deflate.compress(data) + deflate.flush()
        try:
            while data:
                written = self._file.write(data)
                data = data[written:]
                self._size += written
        except OSError as error:
            raise CannotRecord(f"{self.path} cannot be written any more: {error.strerror}") from None

    def close(self) -> None:
        """Writes what is pending. CannotRecord."""
        try:
            self.flush()
        finally:
            self._file.close()

    def _open(self) -> None:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._file = os.fdopen(descriptor, "ab", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRecord(f"{self.path} is being recorded to by another dashboard; name another file") from None
        except OSError as error:
            raise CannotRecord(f"{self.path} cannot be written: {error.strerror}") from None
        self._size = os.fstat(self._file.fileno()).st_size

    def _next(self) -> None:
        """Begins a new file, with a copy of who records."""
        self.flush()
        os.replace(self.path, older(self.path))
        self._file.close()
        self._open()
        self._pending.append(self._about)
