"""Follows this pod's Model: its live settings, and what people ask of it by annotations."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from greenthread.clock import Clock, parse_time
from greenthread.gpu import PodRef
from greenthread.kube.aio import AsyncClient
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import MODELS
from greenthread.model import Model
from greenthread.names import ANNOTATION_PREEMPT, ANNOTATION_SLEEP, ANNOTATION_WAKE, WISH_EXPIRES

log = logging.getLogger(__name__)


class Wishes:
    """Calls ``on_model`` at every version of the Model, and ``on_wish(annotation, time)`` once for each new wish."""

    def __init__(
        self,
        client: AsyncClient,
        model: PodRef,
        run_dir: str,
        clock: Clock,
        on_model: Callable[[Model], None],
        on_wish: Callable[[str, datetime], None],
    ) -> None:
        """``model``: the Model's namespace and name."""
        self._clock, self._on_model, self._on_wish = clock, on_model, on_wish
        self._file = Path(run_dir) / "wishes.json"
        self._handled = self._load()
        self._known = asyncio.Event()
        self._reflector = Reflector(
            client,
            MODELS,
            namespace=model.namespace,
            field_selector=f"metadata.name={model.name}",
            on_event=self._event,
        )

    async def run(self) -> None:
        """Follows until cancelled."""
        await self._reflector.run()

    async def known(self) -> None:
        """Returns when the Model was read."""
        await self._known.wait()

    def _event(self, kind: str, obj: dict[str, Any]) -> None:
        if kind == "DELETED":
            return  # the pod follows
        try:
            model = Model.from_object(obj)
        except (KeyError, ValueError) as error:
            log.error("the Model cannot be read, its last version stays in force: %s", error)
            return
        self._on_model(model)
        self._known.set()
        for name in (ANNOTATION_WAKE, ANNOTATION_SLEEP, ANNOTATION_PREEMPT):
            self._look(name, model.annotations.get(name, ""))

    def _look(self, name: str, value: str) -> None:
        if not value or self._handled.get(name) == value:
            return
        self._handled[name] = value
        self._file.write_text(json.dumps(self._handled))
        try:
            at = parse_time(value)
        except ValueError as error:
            log.warning("annotation %s: %s", name, error)
            return
        if abs((self._clock.now() - at).total_seconds()) <= WISH_EXPIRES:
            self._on_wish(name, at)
        else:
            log.info("annotation %s of %s is too old to be obeyed", name, value)

    def _load(self) -> dict[str, str]:
        """What an earlier life of this sidecar has handled."""
        try:
            return dict(json.loads(self._file.read_text()))
        except (OSError, ValueError):
            return {}
