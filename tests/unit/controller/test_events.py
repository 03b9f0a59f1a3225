"""Events are written in the order of each Model, and a slow API server loses none of a thousand Models' starts."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import Any

from controller.events import Recorder
from greenthread.kube.core import Object
from greenthread.kube.resources import Resource
from greenthread.model import Model
from tests.virtual import VirtualClock, run

from .builders import model_object


class SlowApi:
    """Takes 20 ms for a write."""

    def __init__(self) -> None:
        self.written: dict[str, list[str]] = defaultdict(list)
        self.at_once = self.most_at_once = 0

    async def create(self, resource: Resource, obj: Object) -> Object:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        self.written[obj["involvedObject"]["uid"]].append(obj["reason"])
        return obj


def test_a_thousand_models_start_at_once() -> None:
    async def main() -> None:
        api: Any = SlowApi()
        recorder = Recorder(api, VirtualClock(), "one")
        writing = asyncio.create_task(recorder.run())
        model = Model.from_object(model_object())
        models = [replace(model, uid=f"uid-{number}") for number in range(1000)]
        for reason in ("PodCreated", "Converting", "Ready"):
            for each in models:
                recorder.normal(each, reason, "said")
        await asyncio.sleep(20)
        writing.cancel()
        assert list(api.written.values()) == [["PodCreated", "Converting", "Ready"]] * 1000
        assert api.most_at_once == 4

    run(main())
