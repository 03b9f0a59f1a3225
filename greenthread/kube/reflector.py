"""A local copy of a collection that a watch keeps true."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import aclosing

from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Object
from greenthread.kube.errors import ApiError, Gone, Unreachable
from greenthread.kube.resources import Key, Resource, is_newer, key_of, resource_version

log = logging.getLogger(__name__)

FIRST_DELAY, LAST_DELAY = 0.2, 5.0
"""Seconds before the first retry, and at most; doubled for each failure in a row, with jitter. Who waits for memory
waits for this too, so it is short."""
LONGEST_WISH = 10.0
"""Seconds: a server that says when to come back is obeyed up to this."""

OnEvent = Callable[[str, Object], None]


class Reflector:
    """`objects` is the collection as last seen; `on_event(type, object)` hears every change of it, in order.

    Types are ADDED, MODIFIED and DELETED. An event comes once for each version that was seen: after a relist only
    for what changed, and DELETED, with the last known object, for what vanished meanwhile. A version that `update`
    put in is not announced: its writer knows.
    """

    def __init__(
        self,
        client: AsyncClient,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        on_event: OnEvent | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.objects: dict[Key, Object] = {}
        self.last_contact: float | None = None
        """Time of the running loop when the server last said anything; None before the first list."""
        self.error: Exception | None = None
        """Why the copy is not being kept true just now; None while it is."""
        self._client = client
        self._resource = resource
        self._scope = (namespace, label_selector, field_selector)
        self._on_event = on_event
        self._rng = rng or random.Random()  # noqa: S311 spreads reconnects, keeps no secret
        self._version = ""
        self._synced = asyncio.Event()
        self._failures = 0
        self._fresh = False  # listed, and nothing heard from the watch since

    async def synced(self) -> None:
        """Returns after the first list is in."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keeps the copy true until cancelled; an exception of `on_event` ends it."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except Gone:
                # the server answers, so an outage is over and the list comes at once; but a list that is too old as
                # soon as it is there is a failure: else a confused server would be asked in a tight loop
                confused = not self._version or self._fresh
                self._failures = self._failures + 1 if confused else 0
                self._version = ""
            except (ApiError, Unreachable) as error:
                self._failures += 1
                if self._failures == 1:
                    log.warning("watch of %s interrupted: %s", self._resource.full_name, error)
                self.error = error
            if self._failures:
                await asyncio.sleep(self._delay())

    def _delay(self) -> float:
        most = min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(self._failures - 1, 20))
        wished = self.error.retry_after if isinstance(self.error, ApiError) else None
        return max(most * self._rng.uniform(0.5, 1.0), min(wished or 0.0, LONGEST_WISH))

    def _heard(self) -> None:
        self.last_contact = asyncio.get_running_loop().time()
        if self.error is not None:
            log.info("watch of %s goes on", self._resource.full_name)
        self.error = None
        self._failures = 0

    async def _list(self) -> None:
        found = await self._client.list(self._resource, *self._scope)
        self._heard()
        seen = {key_of(item): item for item in found.items}
        for key, old in list(self.objects.items()):
            # an answer to our own write may be newer than the list
            if key not in seen and not _newer_number(resource_version(old), found.resource_version):
                del self.objects[key]
                self._tell("DELETED", old)
        for obj in found.items:
            self._put(obj)
        self._version, self._fresh = found.resource_version, True
        self._synced.set()

    async def _watch(self) -> None:
        events, began = 0, asyncio.get_running_loop().time()
        stream = self._client.watch(self._resource, *self._scope, resource_version=self._version)
        async with aclosing(stream):
            async for event in stream:
                events += 1
                self._fresh = False
                self._heard()
                version = resource_version(event.object)
                if event.type == "DELETED":
                    self._remove(event.object)
                elif event.type in ("ADDED", "MODIFIED"):
                    self._put(event.object)
                self._version = version or self._version
        # the server ends a watch after its time; one that ends at once, again and again, is a fault
        lasted = asyncio.get_running_loop().time() - began
        self._failures = 0 if events or lasted > LAST_DELAY else self._failures + 1

    def _put(self, obj: Object) -> None:
        key = key_of(obj)
        old = self.objects.get(key)
        if old is not None and not is_newer(resource_version(obj), resource_version(old)):
            return
        self.objects[key] = obj
        self._tell("ADDED" if old is None else "MODIFIED", obj)

    def _remove(self, obj: Object) -> None:
        key = key_of(obj)
        old = self.objects.get(key)
        # made again by ourselves before the news of the deletion came
        if old is None or _newer_number(resource_version(old), resource_version(obj)):
            return
        del self.objects[key]
        self._tell("DELETED", obj)

    def _tell(self, kind: str, obj: Object) -> None:
        if self._on_event is not None:
            self._on_event(kind, obj)

    def update(self, obj: Object) -> bool:
        """Puts in the server's answer to one's own write, unless something newer is known; True if it was news."""
        key, version = key_of(obj), resource_version(obj)
        old = self.objects.get(key)
        if old is None and not _newer_number(version, self._version):
            return False  # it was deleted since, and the watch has said so
        if old is not None and not is_newer(version, resource_version(old)):
            return False
        self.objects[key] = obj
        return True


def _newer_number(version: str, than: str) -> bool:
    """As `is_newer`, but no where the two cannot be compared."""
    return version.isdecimal() and than.isdecimal() and int(version) > int(than)
