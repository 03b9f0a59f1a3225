"""Follows collections by watch, a thread each, so that a verb can wait for what it asked for."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Sequence

from greenthread.kube.blocking import Client
from greenthread.kube.core import Object
from greenthread.kube.errors import ApiError, Forbidden, Gone, KubeError
from greenthread.kube.resources import Key, Resource, key_of, resource_version
from greenthread.values import dataclass
from kubectl_greenthread.options import Session

RETRY = (0.2, 5.0)
"""Seconds before a lost watch is tried again: first and longest."""


@dataclass(frozen=True)
class Scope:
    """What to follow."""

    resource: Resource
    namespace: str | None = None
    label_selector: str = ""
    field_selector: str = ""
    optional: bool = False
    """Without the right to read it, it is just empty."""

    @property
    def arguments(self) -> tuple[Resource, str | None, str, str]:
        return (self.resource, self.namespace, self.label_selector, self.field_selector)


Change = tuple[Scope, str, Object] | tuple[Scope, str, list[Object]] | tuple[Scope, str, KubeError]


class Feed:
    """The objects of several scopes, kept true between two calls of `next`. Close it, or use it with `with`."""

    def __init__(self, session: Session, scopes: Sequence[Scope]) -> None:
        """Lists every scope once (raises as `Client.list` does), then watches from there."""
        gc.enable()
        self.objects: dict[Scope, dict[Key, Object]] = {}
        self.trouble = ""
        """Why the objects are not being kept true just now, for people; empty while they are."""
        self._changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._config = session.config
        for scope in scopes:
            try:
                found = session.client.list(*scope.arguments)
            except Forbidden:
                if not scope.optional:
                    raise
                self.objects[scope] = {}
                continue
            self.objects[scope] = {key_of(item): item for item in found.items}
            # daemons: a read that blocks must not keep the program from ending
            threading.Thread(target=self._follow, args=(scope, found.resource_version), daemon=True).start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def next(self, timeout: float) -> bool:
        """Waits for a change and takes it in; False when `timeout` seconds passed without one."""
        try:
            change = self._changes.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            return False
        self._take(change)
        return True

    def _take(self, change: Change) -> None:
        scope, kind, what = change
        self.trouble = ""
        if isinstance(what, KubeError):
            self.trouble = str(what)
        elif isinstance(what, list):
            self.objects[scope] = {key_of(item): item for item in what}
        elif kind == "DELETED":
            self.objects[scope].pop(key_of(what), None)
        elif kind in ("ADDED", "MODIFIED"):
            self.objects[scope][key_of(what)] = what

    def _follow(self, scope: Scope, version: str) -> None:
        import random

        client = Client(self._config)
        delay = RETRY[0]
        while not self._closed.is_set():
            try:
                if not version:
                    found = client.list(*scope.arguments)
                    self._changes.put((scope, "LISTED", found.items))
                    version = found.resource_version
                for event in client.watch(*scope.arguments, resource_version=version):
                    self._changes.put((scope, event.type, event.object))
                    version = resource_version(event.object) or version
                    delay = RETRY[0]
                    if self._closed.is_set():
                        return
            except Gone:
                version = ""
            except KubeError as error:
                self._changes.put((scope, "LOST", error))
                if isinstance(error, ApiError):
                    version = ""
            self._closed.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 spreads retries, keeps no secret
            delay = min(delay * 2, RETRY[1])
