"""A watch: the changes of one resource as lines of JSON, filtered by selectors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .storage import Change, Key, Object, Store, Stored, dumps

Deliver = Callable[[bytes | None], None]
"""Takes one line, or None when the watch ended."""


@dataclass(frozen=True, slots=True)
class Form:
    """How objects are written for one kind of client. `name` tells the serialized lines of a change apart."""

    name: str
    render: Callable[[Stored], bytes]
    bookmark: Callable[[int, dict[str, str]], Object]


class Watch:
    """The answer to a watch request. `start` delivers what is due and then every change, until `stop`."""

    def __init__(
        self,
        store: Store,
        storage: str,
        form: Form,
        *,
        namespace: str,
        name: str,
        test: Callable[[Object], bool] | None,
        since: int,
        initial: list[Stored],
        initial_end: bool,
        bookmarks: bool,
        timeout: float,
    ) -> None:
        self.timeout = timeout
        """Seconds after which whoever drives this watch must stop it."""
        self._store = store
        self._storage = storage
        self._form = form
        self._namespace = namespace
        self._name = name
        self._test = test
        self._since = since
        self._initial = initial
        self._initial_end = initial_end
        self._bookmarks = bookmarks
        self._deliver: Deliver | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self.on_stop: Callable[[], None] = lambda: None

    def start(self, deliver: Deliver) -> None:
        """Delivers the initial events and past changes now, and later changes inside the writes that make them.

        Raises StatusError 410 if the past changes are forgotten.
        """
        past = list(self._store.since(self._storage, self._since)) if self._since < self._store.version else []
        self._deliver = deliver
        self._unsubscribe = self._store.subscribe(self._storage, self._changed, self._name)
        for stored in self._initial:
            deliver(b'{"type":"ADDED","object":' + self._form.render(stored) + b"}\n")
        if self._initial_end:
            deliver(self._bookmark(self._since, {"k8s.io/initial-events-end": "true"}))
        self._initial = []
        for change in past:
            self._changed(change)

    def stop(self) -> None:
        """Ends the watch; nothing is delivered afterwards."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._deliver = None
        self.on_stop()

    def end(self) -> None:
        """Ends the watch and tells its client so."""
        deliver = self._deliver
        self.stop()
        if deliver is not None:
            deliver(None)

    def bookmark(self) -> bytes | None:
        """A line that says how far this watch has come; None if its client wants none."""
        return self._bookmark(self._store.version, {}) if self._bookmarks else None

    def _bookmark(self, version: int, annotations: dict[str, str]) -> bytes:
        return b'{"type":"BOOKMARK","object":' + dumps(self._form.bookmark(version, annotations)) + b"}\n"

    def _wants(self, key: Key, obj: Object) -> bool:
        return self._test is None or self._test(obj)

    def _changed(self, change: Change) -> None:
        if change.version <= self._since or self._deliver is None:
            return
        if (self._namespace and change.key[0] != self._namespace) or (self._name and change.key[1] != self._name):
            return
        kind = change.type
        stored = change.after
        if self._test is not None:
            was = change.before is not None and self._test(change.before.obj)
            now = change.type != "DELETED" and self._test(change.after.obj)
            if not was and not now:
                return
            kind = "MODIFIED" if was and now else "ADDED" if now else "DELETED"
            if kind == "DELETED" and change.type != "DELETED":
                stored = _last_that_matched(change)
        mark = (self._form.name, kind)
        line = change.lines.get(mark)
        if line is None:
            line = b'{"type":"%s","object":%s}\n' % (kind.encode(), self._form.render(stored))
            change.lines[mark] = line
        self._deliver(line)


def _last_that_matched(change: Change) -> Stored:
    """What a watcher sees of an object that left its selector: the object as it was, at the version of the change."""
    assert change.before is not None
    obj = change.before.copy()
    obj["metadata"]["resourceVersion"] = str(change.version)
    return Stored(obj, dumps(obj), change.version)


def error_line(status: dict[str, Any]) -> bytes:
    """The ERROR event that carries a Status."""
    return b'{"type":"ERROR","object":' + dumps(status) + b"}\n"
