"""Objects, durable in SQLite and cached in memory, under one rising resourceVersion, with history for watches."""

import json
import sqlite3
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import gone

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is ""."""

FORMAT = 1
RESERVE = 1000
"""The file holds a resourceVersion that is not reached yet, raised by this much at a time; a start goes on from it."""
HISTORY = 5000
"""Changes kept for each resource; a watch that starts before them is told 410."""


class StorageError(Exception):
    """The state file cannot be used; the message says what to do."""


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return _encode(value).encode()


@dataclass(slots=True, frozen=True)
class Stored:
    """One version of an object. `obj` is never changed; `raw` is its JSON."""

    obj: Object
    raw: bytes
    version: int

    def copy(self) -> Object:
        """A deep copy that may be changed."""
        copied: Object = json.loads(self.raw)
        return copied


@dataclass(slots=True, frozen=True)
class Change:
    """What happened to one object. `before` is None for ADDED; for DELETED `after` is the last state."""

    type: str
    key: Key
    after: Stored
    before: Stored | None
    version: int
    lines: dict[Any, bytes] = field(default_factory=dict)
    """Serialized forms, shared by all watchers."""


class _Resource:
    def __init__(self) -> None:
        self.objects: dict[Key, Stored] = {}
        self.changes: deque[Change] = deque()
        self.oldest = 0
        # by the name of the one object that is watched, "" for all
        self.watchers: dict[str, dict[int, Callable[[Change], None]]] = {"": {}}


class Store:
    """All objects, by resource (a string such as `models.greenthread.ai`). Not for use by several threads."""

    def __init__(self, path: str | Path = ":memory:", *, history: int = HISTORY) -> None:
        self._history = history
        self._resources: dict[str, _Resource] = {}
        self._next_watcher = 0
        self.version = 0
        self._open(str(path))

    def _open(self, path: str) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found not in (0, FORMAT):
                raise StorageError(
                    f"{path} was written by another version of this program (format {found}, this one reads {FORMAT}): "
                    "use that version, or move the state folder away to start empty"
                )
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS objects (resource TEXT, namespace TEXT, name TEXT, version INTEGER,"
                " body BLOB, PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID")
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('version', 1)")
            self._db.execute(f"PRAGMA user_version={FORMAT}")
            self._db.execute("COMMIT")
            if path != ":memory:" and self._db.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise StorageError(f"{path} is damaged: move the state folder away to start empty")
            (self.version,) = self._db.execute("SELECT value FROM meta WHERE key='version'").fetchone()
            self._reserved = self.version
            for resource, namespace, name, version, body in self._db.execute("SELECT * FROM objects"):
                stored = Stored(json.loads(body), bytes(body), version)
                self._resource(resource).objects[(namespace, name)] = stored
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise StorageError(
                    f"{path} is in use by another process: stop that one first, or choose another state folder"
                ) from error
            raise StorageError(f"cannot open {path}: {error}") from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise StorageError(f"{path} is damaged ({error}): move the state folder away to start empty") from error
        for resource in self._resources.values():
            resource.oldest = self.version

    def _resource(self, name: str) -> _Resource:
        found = self._resources.get(name)
        if found is None:
            found = self._resources[name] = _Resource()
            found.oldest = self.version
        return found

    def close(self) -> None:
        """Closes the file; the store is of no use afterwards."""
        self._db.close()

    def get(self, resource: str, key: Key) -> Stored | None:
        return self._resource(resource).objects.get(key)

    def all(self, resource: str) -> dict[Key, Stored]:
        """The current objects, not to be changed."""
        return self._resource(resource).objects

    def put(self, resource: str, key: Key, obj: Object) -> Stored:
        """Stores `obj` (which now belongs to the store) under a new resourceVersion."""
        place = self._resource(resource)
        version = self.version + 1
        obj["metadata"]["resourceVersion"] = str(version)
        stored = Stored(obj, dumps(obj), version)
        self._write(version, "INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?)", (resource, *key, version, stored.raw))
        before = place.objects.get(key)
        place.objects[key] = stored
        self._publish(place, Change("MODIFIED" if before else "ADDED", key, stored, before, version))
        return stored

    def remove(self, resource: str, key: Key) -> Stored:
        """Removes an object that exists; returns its last state, under the resourceVersion of the removal."""
        place = self._resource(resource)
        before = place.objects[key]
        version = self.version + 1
        obj = before.copy()
        obj["metadata"]["resourceVersion"] = str(version)
        after = Stored(obj, dumps(obj), version)
        self._write(version, "DELETE FROM objects WHERE resource=? AND namespace=? AND name=?", (resource, *key))
        del place.objects[key]
        self._publish(place, Change("DELETED", key, after, before, version))
        return after

    def _write(self, version: int, statement: str, values: tuple[Any, ...]) -> None:
        if version > self._reserved:
            self._reserved = version + RESERVE
            self._db.execute("UPDATE meta SET value=? WHERE key='version'", (self._reserved,))
        self._db.execute(statement, values)  # a transaction of its own
        self.version = version

    def _publish(self, place: _Resource, change: Change) -> None:
        place.changes.append(change)
        if len(place.changes) > self._history:
            place.oldest = place.changes.popleft().version
        for name in ("", change.key[1]):
            for deliver in list(place.watchers.get(name, {}).values()):
                deliver(change)

    def drop_history(self, resource: str) -> None:
        """Forgets the changes of a resource, so that watches of old versions are told 410."""
        place = self._resource(resource)
        place.changes.clear()
        place.oldest = self.version

    def since(self, resource: str, version: int) -> Iterable[Change]:
        """The changes after `version`, oldest first; StatusError 410 if some are forgotten."""
        place = self._resource(resource)
        if version < place.oldest:
            raise gone(f"too old resource version: {version} ({place.oldest})")
        return _after(place.changes, version)

    def at(self, resource: str, version: int) -> dict[Key, Stored]:
        """The objects as they were at `version`; StatusError 410 if that is forgotten."""
        place = self._resource(resource)
        if version >= self.version:
            return place.objects
        undo = list(self.since(resource, version))
        if not undo:
            return place.objects
        objects = dict(place.objects)
        for change in reversed(undo):
            if change.before is None:
                objects.pop(change.key, None)
            else:
                objects[change.key] = change.before
        return objects

    def subscribe(self, resource: str, deliver: Callable[[Change], None], name: str = "") -> Callable[[], None]:
        """Calls `deliver` for each later change, inside the write that makes it. Returns the function that ends it.

        `name`: only for changes of objects of this name. A write then costs nothing for those who watch others.
        """
        places = self._resource(resource).watchers
        number = self._next_watcher
        self._next_watcher += 1
        places.setdefault(name, {})[number] = deliver

        def end() -> None:
            watchers = places.get(name, {})
            watchers.pop(number, None)
            if name and not watchers:
                places.pop(name, None)

        return end


def _after(changes: deque[Change], version: int) -> list[Change]:
    if not changes or changes[-1].version <= version:
        return []
    found = list(changes)
    return found[bisect_right(found, version, key=lambda change: change.version) :]
