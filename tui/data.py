"""The cluster as the dashboard knows it: kept true by watches, with its history. Knows no widget."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from greenthread.clock import Clock, SystemClock
from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Object, Patch
from greenthread.kube.errors import ApiError, Forbidden
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS, Resource, key_of
from greenthread.names import DEFAULT_NAMESPACE, LABEL_MODEL
from tui.history import History
from tui.known import KINDS, SAMPLE, Known, Told, fill_of, read_event
from tui.past import survey
from tui.recorded import kept
from tui.recording import CannotRecord, Recorder
from tui.series import Seen
from tui.wakes import Key

__all__ = ["ClusterData", "Link", "Told", "fill_of", "read_event"]

_STUB = ("name", "namespace", "resourceVersion")
EVENTS_KNOWN = 1000
"""Events of which it is known that they were heard of; a new list may tell of older ones again."""


@dataclass(frozen=True, slots=True)
class Link:
    """How the connection to the cluster is. `age`: seconds since the server last said anything; None: never."""

    state: Literal["connecting", "live", "lost"]
    age: float | None
    #: Why it is lost, for people.
    trouble: str = ""
    #: What this user may not read, for people.
    missing: tuple[str, ...] = ()


class ClusterData(Known):
    """Four watches joined. `run()` keeps it going; everything else may be called from the same loop at any time."""

    def __init__(
        self,
        client: AsyncClient,
        namespace: str | None = None,
        fallback_namespace: str = "default",
        clock: Clock | None = None,
        history: History | None = None,
        recorder: Recorder | None = None,
        context: str = "",
    ) -> None:
        """`namespace`: of the Models, None for all; who may not read all sees `fallback_namespace`.

        `recorder` gets the history from now on; `context` names the cluster in it.
        """
        super().__init__(clock or SystemClock(), _loop_time, namespace)
        self.client = client
        self.history = history or History()
        self.notice = ""
        """What went wrong beside the connection, for people; who tells it empties it."""
        self.context = context
        self._recorder = recorder
        self._fallback = fallback_namespace
        self._reflectors: dict[str, Reflector] = {}
        self._changed: set[str] = set()
        self._begun = False

    async def run(self) -> None:
        """Follows the cluster until cancelled."""
        models = [self.namespace] if self.namespace else [None, self._fallback]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(MODELS, models))
            group.create_task(self._follow(GPUS, [None, DEFAULT_NAMESPACE]))
            group.create_task(self._follow(PODS, models, label_selector=LABEL_MODEL))
            group.create_task(self._follow(EVENTS, models, field_selector="involvedObject.kind=Model"))
            group.create_task(self._sample())
            group.create_task(self._begin())
            if self.history.segments:
                group.create_task(self._survey())
            if self._recorder is not None:
                group.create_task(self._record(self._recorder))

    def take_changes(self) -> set[str]:
        """Plurals of the kinds that changed since the last call, and "history"."""
        changed, self._changed = self._changed, set()
        return changed

    @property
    def link(self) -> Link:
        """The connection. Lost: no watch gets through; one alone that is refused leaves its kind out."""
        now = _loop_time()
        watched = self._reflectors
        readable = [r for r in watched.values() if not isinstance(r.error, Forbidden)]
        troubles = [r.error for r in readable if r.error is not None]
        contacts = [r.last_contact for r in readable if r.last_contact is not None]
        age = now - max(contacts) if contacts else None
        if troubles and len(troubles) == len(readable):
            return Link("lost", age, str(troubles[0]))
        # after an interruption a quiet watch is only known to be well when it next says something
        missing = tuple(f"{kind}: {r.error}" for kind, r in watched.items() if isinstance(r.error, ApiError))
        return Link("live" if contacts or missing else "connecting", age, "", missing)

    async def patch_model(self, key: Key, body: Patch) -> None:
        """Changes a Model; raises as `AsyncClient.patch` does."""
        answer = await self.client.patch(MODELS, key[1], body, namespace=key[0])
        reflector = self._reflectors[MODELS.plural]
        if reflector.update(answer):
            small = kept(MODELS.plural, answer)
            reflector.objects[key] = small
            self._take(MODELS, "MODIFIED", small)

    async def _follow(
        self, resource: Resource, scopes: Sequence[str | None], label_selector: str = "", field_selector: str = ""
    ) -> None:
        """Watches the widest scope that this user may read."""
        for scope in scopes:
            reflector = Reflector(
                self.client, resource, scope, label_selector, field_selector, functools.partial(self._heard, resource)
            )
            self._reflectors[resource.plural] = reflector
            task = asyncio.create_task(reflector.run())
            try:
                if scope is None and await self._refused(reflector):
                    if resource is MODELS:
                        self.namespace = scopes[-1]
                    continue
                await task
            finally:
                task.cancel()

    async def _refused(self, reflector: Reflector) -> bool:
        """Waits for the first list; True if this user may not make it."""
        while reflector.last_contact is None:
            if isinstance(reflector.error, Forbidden):
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await reflector.synced()
        return False

    def _heard(self, resource: Resource, kind: str, obj: Object) -> None:
        small = kept(resource.plural, obj)
        key = key_of(small)
        if kind != "DELETED":
            # what is not shown takes memory for nothing; of an Event the reflector needs only its version
            objects = self._reflectors[resource.plural].objects
            if resource is not EVENTS:
                objects[key] = small
            else:
                meta = small["metadata"]
                objects[key] = {"metadata": {name: meta[name] for name in _STUB if name in meta}}
                if len(objects) > EVENTS_KNOWN:
                    del objects[next(iter(objects))]
                if self.is_old(small):
                    return
        self._take(resource, kind, small)

    def _take(self, resource: Resource, kind: str, small: Object) -> None:
        self.hear(resource.plural, kind, small)
        self._changed.add(resource.plural)
        if self._begun:
            self.history.hear(resource.plural, kind, small, self.clock.now().timestamp())

    async def _begin(self) -> None:
        """History begins with everything that is there and may be read."""

        def heard_of(reflector: Reflector) -> bool:
            return reflector.last_contact is not None or isinstance(reflector.error, ApiError)

        # a reflector tells nobody of a refusal
        while len(self._reflectors) < len(KINDS) or not all(map(heard_of, self._reflectors.values())):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        now = self.clock.now().timestamp()
        self.history.begin(now, self.state(), context=self.context, namespace=self.namespace)
        self._begun = True

    async def _survey(self) -> None:
        """Measures what a recording holds from before, a little at a time."""
        before = Seen()
        began = _loop_time()
        for _ in survey(self.history, before):
            if _loop_time() - began > 0.01:
                await asyncio.sleep(0.02)
                began = _loop_time()
        self.seen.follow(before)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE)
            self.sample()
            self._changed.add("history")

    async def _record(self, recorder: Recorder) -> None:
        """Writes the recording, a second late at most."""
        self.history.write = recorder.write
        try:
            while True:
                await asyncio.sleep(1)
                recorder.flush()
        except CannotRecord as error:
            self.notice = f"{error}; the recording ends here"
        finally:
            self.history.write = _drop
            with suppress(CannotRecord):  # told already
                recorder.close()


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _drop(line: bytes) -> None:
    """Nobody records any more."""
