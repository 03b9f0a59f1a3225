"""This pod's claims on its GPUs: reads the GPU objects by watch, writes its own entries by JSON patches that test what
the decision read. The API server is the arbiter; a refusal means: read again, decide again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from greenthread import fairness
from greenthread.clock import Clock
from greenthread.fairness import Want
from greenthread.gpu import Gpu, Intent, Occupant, PodRef, State, WakeLock
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Conflict, Invalid
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import GPUS

log = logging.getLogger(__name__)

Patch = list[dict[str, Any]]

#: How often one write of this pod's own entry is tried against others' writes before it is an error.
_ATTEMPTS = 20
#: Seconds for which a refused writer waits for the watch to tell what came between, before it reads the GPU itself.
_NEWS = 0.02


class Refused(Exception):
    """The API server did not take a write that rested on what was read."""


class Claims:
    """All reads and writes of GPU objects by one pod. ``on_change`` is called when others changed one of its GPUs."""

    def __init__(
        self,
        client: AsyncClient,
        namespace: str,
        gpu_names: Sequence[str],
        pod: PodRef,
        model: str,
        clock: Clock,
        on_change: Callable[[], None],
        on_conflict: Callable[[], None],
    ) -> None:
        self._client, self._namespace, self._clock = client, namespace, clock
        self._names = tuple(gpu_names)
        self.pod, self._model = pod, model
        self._on_change, self._on_conflict = on_change, on_conflict
        self._news = asyncio.Event()
        # each GPU as last read, beside the object it was read from
        self._parsed: dict[str, tuple[dict[str, Any], Gpu]] = {}
        self._reflectors = {
            name: Reflector(
                client,
                GPUS,
                namespace=namespace,
                field_selector=f"metadata.name={name}",
                on_event=self._changed,
            )
            for name in self._names
        }

    async def run(self) -> None:
        """Keeps the view of the GPUs until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors.values():
                group.create_task(reflector.run())

    async def synced(self) -> None:
        """Returns when the GPU objects were read; some may not exist yet, see ``missing``."""
        for reflector in self._reflectors.values():
            await reflector.synced()

    def _changed(self, _type: str, _obj: dict[str, Any]) -> None:
        self._news.set()
        self._on_change()

    def _object(self, name: str) -> dict[str, Any] | None:
        return self._reflectors[name].objects.get((self._namespace, name))

    def missing(self) -> list[str]:
        """Names of GPUs that no agent has registered (yet)."""
        return [name for name in self._names if not (self._object(name) or {}).get("status")]

    def gpus(self) -> tuple[Gpu, ...]:
        """The registered GPUs of this pod, ascending by index."""
        objects = ((name, self._object(name)) for name in self._names)
        return tuple(self._parse(name, obj) for name, obj in objects if obj is not None and obj.get("status"))

    def _parse(self, name: str, obj: dict[str, Any]) -> Gpu:
        """The object as a Gpu, read once: a decision looks at it many times."""
        known = self._parsed.get(name)
        if known is None or known[0] is not obj:
            known = self._parsed[name] = obj, Gpu.from_object(obj)
        return known[1]

    # -- the protocol's writes ------------------------------------------------------------------------------------

    async def claim(self, want: Want, occupant: Occupant) -> None:
        """Claims on every GPU in ascending order, or on none. Refused: some write was not taken, nothing is held.

        Each write rests on the rule for that GPU, read again: what came since the first one is not passed over.
        After any other error something may be held: see ``holding``. ``occupant`` is the entry to write (waking or
        converting, bytes reserved).
        """
        claimed: list[str] = []
        for name in self._names:
            try:
                await self._attempt(name, lambda obj, gpu: self._claim_patch(obj, gpu, want, occupant))
            except Refused:
                for held in reversed(claimed):
                    await self._own(held, lambda obj, gpu: self._turn_back_patch(obj, gpu, want, occupant))
                raise
            claimed.append(name)

    def holding(self) -> bool:
        """Whether an entry or a lock of this pod stands on some GPU that only a claim under way should have.

        Also a claim whose answer never came shows here, at the latest when the watch tells of it.
        """
        return any(self._holds(gpu) for gpu in self.gpus())

    def _holds(self, gpu: Gpu) -> bool:
        mine = gpu.occupant(self.pod)
        return (mine is not None and mine.state is not State.SLEEPING) or self._locks(gpu)

    def _locks(self, gpu: Gpu) -> bool:
        return gpu.wake_lock is not None and gpu.wake_lock.holder == self.pod

    async def turn_back(self, want: Want, occupant: Occupant) -> None:
        """What is held becomes an intent with the age of ``want``, in one write a GPU."""

        await self._everywhere(
            lambda obj, gpu: self._turn_back_patch(obj, gpu, want, occupant) if self._holds(gpu) else []
        )

    async def publish(self, occupant: Occupant) -> None:
        """Writes this pod's entry on every GPU, adds it where it is missing, and gives the wake lock back if held."""
        if occupant.state in (State.SERVING, State.DEACTIVATING):
            # Only where somebody deleted the GPU object: an entry that holds memory begins as a claim.
            claim = replace(occupant, state=State.CONVERTING)
            await self._everywhere(
                lambda obj, gpu: [] if gpu.occupant(self.pod) else self._entry_patch(obj, gpu, claim, unlock=False)
            )
        await self._everywhere(lambda obj, gpu: self._entry_patch(obj, gpu, occupant, unlock=True))

    async def release(self, occupant: Occupant) -> None:
        """Reservation to 0, lock free, own intent gone, own name struck from every intent, in one write a GPU."""
        entry = replace(occupant, state=State.SLEEPING, reserved=0)

        def patch(obj: dict[str, Any], gpu: Gpu) -> Patch:
            return [
                *self._strike_patch(obj, gpu),
                *self._remove_intent_patch(gpu),
                *self._entry_patch(obj, gpu, entry, unlock=True),
            ]

        await self._everywhere(patch)

    async def give_way(self, occupant: Occupant) -> None:
        """Goes to ``deactivating`` only if everybody's entries are still as read. Refused: decide again.

        Only the first GPU is conditional: from its write on, this pod is leaving.
        """
        first, *others = self._names

        def conditional(obj: dict[str, Any], gpu: Gpu) -> Patch:
            status = obj["status"]
            return [
                _test("/status/occupants", status.get("occupants")),
                _test("/status/preemptionIntents", status.get("preemptionIntents")),
                *self._entry_patch(obj, gpu, occupant, unlock=False),
            ]

        await self._attempt(first, conditional)
        for name in others:
            await self._own(name, lambda obj, gpu: self._entry_patch(obj, gpu, occupant, unlock=False))

    async def intend(self, want: Want, victims: Sequence[Occupant] | None) -> None:
        """Makes this pod's intent on every GPU say ``want``; ``victims`` None leaves those already named."""

        def patch(obj: dict[str, Any], gpu: Gpu) -> Patch:
            mine = gpu.intent(want.pod)
            tests: Patch = []
            if victims is None:
                named = mine.victims if mine else ()
            else:
                pods = {victim.pod for victim in victims}
                here = [(k, o) for k, o in enumerate(gpu.occupants) if o.pod in pods and o.state is State.SERVING]
                named = tuple(dict.fromkeys((*(mine.victims if mine else ()), *(o.pod for _, o in here))))
                for index, occupant in here:  # a name that comes after its bearer slept would preempt it in vain later
                    path = f"/status/occupants/{index}"
                    tests += [*_test_pod(path, occupant.pod), _test(f"{path}/state", str(State.SERVING))]
            intent = Intent(want.pod, self._model, want.need, want.since, named, want.boot, want.preempts)
            return [] if intent == mine else [*tests, *self._intent_patch(obj, gpu, intent)]

        await self._everywhere(patch)

    async def withdraw(self) -> None:
        """Removes this pod's intents."""
        await self._everywhere(lambda _obj, gpu: self._remove_intent_patch(gpu))

    async def leave(self) -> None:
        """Removes this pod's (released) entry and intents: the pod is going."""

        def patch(_obj: dict[str, Any], gpu: Gpu) -> Patch:
            ops = self._remove_intent_patch(gpu)
            index = _index(gpu.occupants, self.pod)
            if index is not None:
                ops += [*_test_pod(f"/status/occupants/{index}", self.pod), _remove(f"/status/occupants/{index}")]
            return ops

        await self._everywhere(patch)

    # -- patches: pure ------------------------------------------------------------------------------------------

    def _claim_patch(self, obj: dict[str, Any], gpu: Gpu, want: Want, occupant: Occupant) -> Patch:
        if not fairness.fits(want, gpu):
            raise Refused(f"{gpu.name} has no room for it and the older any more")
        status = obj["status"]
        ops: Patch = [_test("/status/preemptionIntents", status.get("preemptionIntents"))]
        if fairness.somebody_older(want, gpu):
            # The API server sees to it that this claim fits, but not that there is room for the older beside it; and a
            # boot's claim, which takes no lock, shows in the occupants alone.
            ops.append(_test("/status/occupants", status.get("occupants")))
        if want.lock:
            ops.append(_test("/status/wakeLock", status.get("wakeLock")))
            lock = WakeLock(self.pod, self._clock.now())
            ops.append({"op": "add", "path": "/status/wakeLock", "value": lock.to_object()})
        return [*ops, *self._remove_intent_patch(gpu), *self._entry_patch(obj, gpu, occupant, unlock=False)]

    def _turn_back_patch(self, obj: dict[str, Any], gpu: Gpu, want: Want, occupant: Occupant) -> Patch:
        asleep = replace(occupant, state=State.SLEEPING, reserved=0)
        intent = Intent(want.pod, self._model, want.need, want.since, (), want.boot, want.preempts)
        return [*self._intent_patch(obj, gpu, intent), *self._entry_patch(obj, gpu, asleep, unlock=True)]

    def _entry_patch(self, obj: dict[str, Any], gpu: Gpu, occupant: Occupant, unlock: bool) -> Patch:
        ops: Patch = []
        index = _index(gpu.occupants, self.pod)
        if index is None:
            if obj["status"].get("occupants") is None:
                ops.append({"op": "add", "path": "/status/occupants", "value": []})
            ops.append({"op": "add", "path": "/status/occupants/-", "value": occupant.to_object()})
        else:
            path = f"/status/occupants/{index}"
            ops += [
                *_test_pod(path, self.pod),
                {"op": "replace", "path": path, "value": occupant.to_object()},
            ]
        if unlock and self._locks(gpu):
            ops += [_test("/status/wakeLock/holder", str(self.pod)), _remove("/status/wakeLock")]
        return ops

    def _intent_patch(self, obj: dict[str, Any], gpu: Gpu, intent: Intent) -> Patch:
        index = _index(gpu.intents, self.pod)
        if index is not None:
            path = f"/status/preemptionIntents/{index}"
            return [*_test_pod(path, self.pod), {"op": "replace", "path": path, "value": intent.to_object()}]
        ops: Patch = []
        if obj["status"].get("preemptionIntents") is None:
            ops.append({"op": "add", "path": "/status/preemptionIntents", "value": []})
        return [*ops, {"op": "add", "path": "/status/preemptionIntents/-", "value": intent.to_object()}]

    def _remove_intent_patch(self, gpu: Gpu) -> Patch:
        index = _index(gpu.intents, self.pod)
        if index is None:
            return []
        path = f"/status/preemptionIntents/{index}"
        return [*_test_pod(path, self.pod), _remove(path)]

    def _strike_patch(self, obj: dict[str, Any], gpu: Gpu) -> Patch:
        ops: Patch = []
        for index, intent in enumerate(gpu.intents):
            if self.pod in intent.victims:
                path = f"/status/preemptionIntents/{index}"
                raw = obj["status"]["preemptionIntents"][index]["victims"]
                left = [victim for victim in raw if victim != str(self.pod)]
                ops += [
                    *_test_pod(path, intent.pod),
                    _test(f"{path}/victims", raw),
                    {"op": "replace", "path": f"{path}/victims", "value": left},
                ]
        return ops

    # -- writing ----------------------------------------------------------------------------------------------

    async def _everywhere(self, patch: Callable[[dict[str, Any], Gpu], Patch]) -> None:
        for name in self._names:
            await self._own(name, patch)

    async def _own(self, name: str, patch: Callable[[dict[str, Any], Gpu], Patch]) -> None:
        """Writes this pod's own entries: what others wrote meanwhile is no reason to give up."""
        for _ in range(_ATTEMPTS):
            try:
                await self._attempt(name, patch)
            except Refused as refused:
                last = refused
                continue
            return
        raise last

    async def _attempt(self, name: str, patch: Callable[[dict[str, Any], Gpu], Patch]) -> None:
        """One write on one GPU. Refused: the view is newer than what this write rested on."""
        obj = self._object(name)
        if obj is None or not obj.get("status"):
            obj = await self._read(name)
        ops = patch(obj, self._parse(name, obj))
        if not ops:
            return
        try:
            written = await self._client.patch(GPUS, name, ops, namespace=self._namespace, subresource="status")
        except (Conflict, Invalid) as error:
            self._on_conflict()
            await self._newer(name, obj)
            log.info("claim on %s refused: %s", name, error)
            raise Refused(str(error)) from error
        self._put(name, written)

    async def _newer(self, name: str, obj: dict[str, Any]) -> None:
        """Returns when the view has something else than ``obj``. The watch mostly tells it at once; else it is read."""
        try:
            async with asyncio.timeout(_NEWS):
                while self._object(name) is obj:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            await self._read(name)

    async def _read(self, name: str) -> dict[str, Any]:
        obj = await self._client.get(GPUS, name, namespace=self._namespace)
        self._put(name, obj)
        return obj

    def _put(self, name: str, obj: dict[str, Any]) -> None:
        before = self._object(name)
        if not self._reflectors[name].update(obj):
            return
        if before is None or self._others(before) != self._others(obj):
            self._on_change()  # the watch says nothing of a version that is known already

    def _others(self, obj: dict[str, Any]) -> dict[str, Any]:
        """The status less what this pod wrote: its own writes are no reason to decide again."""
        status = dict(obj.get("status") or {})
        for key in ("occupants", "preemptionIntents"):
            status[key] = [
                item
                for item in status.get(key) or ()
                if (item["podName"], item["namespace"]) != (self.pod.name, self.pod.namespace)
            ]
        if (status.get("wakeLock") or {}).get("holder") == str(self.pod):
            del status["wakeLock"]
        return status


def entry(
    pod: PodRef,
    model: str,
    state: State,
    reserved: int,
    *,
    popular: bool,
    last_accessed: datetime | None,
    became_serving_at: datetime | None,
    min_runtime: float,
) -> Occupant:
    """The occupant entry of a pod. ``protectedUntil`` follows from when it began to serve."""
    protected = became_serving_at + timedelta(seconds=min_runtime) if became_serving_at is not None else None
    return Occupant(pod, model, state, reserved, popular, last_accessed, became_serving_at, protected)


def _index(entries: Sequence[Occupant | Intent], pod: PodRef) -> int | None:
    return next((index for index, entry in enumerate(entries) if entry.pod == pod), None)


def _test(path: str, value: Any) -> dict[str, Any]:
    return {"op": "test", "path": path, "value": value}


def _test_pod(path: str, pod: PodRef) -> Patch:
    return [_test(f"{path}/podName", pod.name), _test(f"{path}/namespace", pod.namespace)]


def _remove(path: str) -> dict[str, Any]:
    return {"op": "remove", "path": path}
