"""Kubernetes Events on Models: what the controller did and why, for `kubectl describe model`."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from greenthread.clock import Clock
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import ApiError, KubeError, NotFound
from greenthread.kube.resources import EVENTS
from greenthread.model import Model
from greenthread.names import API_VERSION

log = logging.getLogger(__name__)

#: Different events that are remembered, to count a repetition instead of writing a new one.
MOST_KNOWN = 4096
#: Events of one Model at once, and seconds until it may have one more.
BURST, REFILL = 25, 30.0
#: Events that are written at once, and that may wait for each of these writers.
WRITERS, MOST_WAITING = 4, 1000
COMPONENT = "greenthread-controller"


Lane = asyncio.Queue[tuple[Model, str, str, str]]


@dataclass
class _Known:
    name: str
    count: int = 1


@dataclass
class _Bucket:
    tokens: float
    at: float = field(default=0.0)


class Recorder:
    """Writes events in the background: an event that cannot be written is logged and lost, and holds nobody up."""

    def __init__(self, client: AsyncClient, clock: Clock, instance: str) -> None:
        self._client, self._clock, self._instance = client, clock, instance
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lanes: list[Lane] = [asyncio.Queue(MOST_WAITING) for _ in range(WRITERS)]

    def normal(self, model: Model, reason: str, message: str) -> None:
        self._put(model, "Normal", reason, message)

    def warning(self, model: Model, reason: str, message: str) -> None:
        self._put(model, "Warning", reason, message)

    async def run(self) -> None:
        """Writes what was put, until cancelled."""
        async with asyncio.TaskGroup() as writers:
            for lane in self._lanes:
                writers.create_task(self._write_all(lane))

    async def _write_all(self, lane: Lane) -> None:
        while True:
            model, kind, reason, message = await lane.get()
            try:
                await self._write(model, kind, reason, message)
            except KubeError as error:
                log.warning("event %s of model %s/%s is lost: %s", reason, model.namespace, model.name, error)

    def _put(self, model: Model, kind: str, reason: str, message: str) -> None:
        log.info("model %s/%s: %s: %s", model.namespace, model.name, reason, message)
        if not self._allowed(model.uid):
            return
        try:
            # a Model's events stay in their order
            self._lanes[crc32(model.uid.encode()) % WRITERS].put_nowait((model, kind, reason, message[:1024]))
        except asyncio.QueueFull:
            log.warning("event %s of model %s/%s is lost: too many wait", reason, model.namespace, model.name)

    def _allowed(self, uid: str) -> bool:
        now = asyncio.get_running_loop().time()
        bucket = self._buckets.setdefault(uid, _Bucket(BURST, now))
        self._buckets.move_to_end(uid)
        while len(self._buckets) > MOST_KNOWN:
            self._buckets.popitem(last=False)
        bucket.tokens = min(bucket.tokens + (now - bucket.at) / REFILL, BURST)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    async def _write(self, model: Model, kind: str, reason: str, message: str) -> None:
        key = (model.uid, reason, message)
        now = self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            patch = {"count": known.count + 1, "lastTimestamp": now}
            try:
                await self._client.patch(EVENTS, known.name, patch, namespace=model.namespace)
                known.count += 1
                return
            except NotFound:
                pass  # events live for an hour
        name = f"{model.name}.{uuid.uuid4().hex[:16]}"
        event: dict[str, Any] = {
            "metadata": {"name": name, "namespace": model.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "Model",
                "namespace": model.namespace,
                "name": model.name,
                "uid": model.uid,
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": COMPONENT, "host": self._instance},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
        }
        try:
            await self._client.create(EVENTS, event)
        except ApiError as error:
            if error.status == 403 and "terminat" in error.message:
                return  # the namespace is going away, and its events with it
            raise
        self._known[key] = _Known(name)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
