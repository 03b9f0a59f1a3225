"""What the demonstration sees and does: requests through the OpenAI SDK, facts from the Kubernetes API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai

from greenthread.gpu import Gpu, Occupant, State
from greenthread.kube.aio import AsyncClient
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import EVENTS, GPUS, MODELS, PODS
from greenthread.model import Model
from greenthread.names import ANNOTATION_RECORD, DEFAULT_NAMESPACE, LABEL_MODEL
from greenthread.snapshot import Report

Object = dict[str, Any]

#: Seconds for a request from its first byte to its last: a wait for room, a wake, the answer.
REQUEST_TIMEOUT = 90.0


class Wrong(Exception):
    """The demonstration cannot go on; the message says what did not happen."""


@dataclass(slots=True)
class Answer:
    """One streamed answer; seconds since it was asked for."""

    model: str
    first_token: float = 0.0
    last_token: float = 0.0
    pieces: list[str] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    @property
    def complete(self) -> bool:
        return not self.error and self.finish_reason in ("stop", "length") and bool(self.pieces)


@dataclass(frozen=True, slots=True)
class Story:
    """A sidecar's record of a wake, boot or sleep, as the Event on the Model carries it."""

    model: str
    reason: str
    text: str
    record: Object


class Stage:
    """One cluster, watched."""

    def __init__(self, client: AsyncClient, gateway_url: str) -> None:
        #: Hears every record as it comes.
        self.on_story: Callable[[Story], None] = lambda story: None
        self._changed = asyncio.Event()
        self._stories: list[Story] = []
        self._openai = openai.AsyncOpenAI(
            base_url=f"{gateway_url}/v1", api_key="none", max_retries=0, timeout=REQUEST_TIMEOUT
        )
        self._models = Reflector(client, MODELS, on_event=lambda *_: self._changed.set())
        self._gpus = Reflector(client, GPUS, on_event=lambda *_: self._changed.set())
        self._pods = Reflector(client, PODS, DEFAULT_NAMESPACE, on_event=lambda *_: self._changed.set())
        self._events = Reflector(client, EVENTS, DEFAULT_NAMESPACE, on_event=self._on_event)

    async def watch(self) -> None:
        """Keeps everything up to date until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in (self._models, self._gpus, self._pods, self._events):
                group.create_task(reflector.run())

    def models(self) -> dict[str, Model]:
        found = (Model.from_object(obj) for obj in self._models.objects.values())
        return {model.name: model for model in found}

    def gpus(self) -> list[Gpu]:
        found = (Gpu.from_object(obj) for obj in self._gpus.objects.values())
        return sorted(found, key=lambda gpu: gpu.index)

    def on_gpu(self, model: str) -> list[Occupant]:
        """The model's entries on the GPU objects."""
        return [occupant for gpu in self.gpus() for occupant in gpu.occupants if occupant.model == model]

    def is_in(self, model: str, state: State) -> bool:
        """Whether the GPU objects say so, on every GPU that the model has."""
        entries = self.on_gpu(model)
        return bool(entries) and all(entry.state is state for entry in entries)

    def at_rest(self) -> bool:
        """Whether every sidecar says that nothing is in flight or queued; they tell every few seconds."""
        pods = [pod for pod in self._pods.objects.values() if LABEL_MODEL in (pod["metadata"].get("labels") or {})]
        reports = [Report.from_pod(pod) for pod in pods]
        return all(report is not None and not report.in_flight and not report.queued for report in reports)

    def stories(self, model: str, reason: str) -> list[Story]:
        return [story for story in self._stories if (story.model, story.reason) == (model, reason)]

    async def until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something is so. Raises Wrong when it is not within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Wrong(f"{what} did not happen within {seconds:g} s") from None

    async def ask(self, model: str, question: str, tokens: int, on_first: Callable[[], None] = lambda: None) -> Answer:
        """Stream a chat completion of that many tokens; failures are in the answer."""
        answer = Answer(model)
        began = time.monotonic()
        try:
            stream = await self._openai.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                stream=True,
                max_tokens=tokens,
                extra_body={"min_tokens": tokens},
            )
            async for chunk in stream:
                if not chunk.choices:
                    continue
                choice = chunk.choices[0]
                # thinking models begin with their thoughts
                piece = choice.delta.content or getattr(choice.delta, "reasoning", None)
                if piece:
                    answer.last_token = time.monotonic() - began
                    if not answer.pieces:
                        answer.first_token = answer.last_token
                        on_first()
                    answer.pieces.append(piece)
                answer.finish_reason = choice.finish_reason or answer.finish_reason
        except (openai.OpenAIError, OSError) as error:
            answer.error = " ".join(str(error).split())
        return answer

    async def close(self) -> None:
        await self._openai.close()

    def _on_event(self, kind: str, event: Object) -> None:
        self._changed.set()
        text = (event["metadata"].get("annotations") or {}).get(ANNOTATION_RECORD)
        about = event.get("involvedObject") or {}
        if kind == "ADDED" and about.get("kind") == "Model":
            record = json.loads(text) if text else {}
            story = Story(about["name"], event.get("reason", ""), event.get("message", ""), record)
            self._stories.append(story)
            self.on_story(story)
