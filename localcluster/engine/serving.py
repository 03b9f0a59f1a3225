"""What all endpoints share: the model's name, faults on order, and an answer as a series of events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from localcluster.engine import faults
from localcluster.engine.answers import Answer, garble
from localcluster.engine.checks import Body
from localcluster.engine.engine import Engine, Work
from localcluster.engine.errors import ApiError, unknown_model
from localcluster.engine.http import BreakConnection, Request, Response

EVENT_STREAM = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one answer. `kind` is `reasoning`, `content` or `tool`."""

    index: int
    kind: str
    text: str


def model_name(engine: Engine, body: Body) -> str:
    """The model that the body names; the first of ours when it names none. ApiError 404 for another's."""
    name = body.get("model")
    names = engine.arguments.served_names
    if name is None or name == "":
        return names[0]
    if name not in names:
        raise unknown_model(str(name), names)
    return str(name)


@asynccontextmanager
async def working(engine: Engine, request: Request, prompt_tokens: int) -> AsyncIterator[Work]:
    """Run a request in the engine, under the fault that its header orders."""
    fault = ordered_fault(request)
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
    async with engine.work(request.path, request_id, prompt_tokens, fault) as work:
        if fault is not None and fault.kind == "crash":
            faults.crash()
        if fault is not None and fault.kind in ("hang", "slow"):
            await engine.hold_up(work, None if fault.kind == "hang" else fault.seconds)
        yield work


def ordered_fault(request: Request) -> faults.Fault | None:
    """The fault of the request's X-Simulate header. Raises ApiError for `status=…` and for what is unknown."""
    try:
        fault = faults.request_fault(request.headers.get("x-simulate", ""))
    except ValueError as error:
        raise ApiError(str(error)) from None
    if fault is not None and fault.status:
        kind = "InternalServerError" if fault.status >= 500 else "BadRequestError"
        raise ApiError("this status was ordered by X-Simulate", fault.status, kind)
    return fault


async def events(engine: Engine, work: Work, answers: list[Answer]) -> AsyncGenerator[Event, None]:
    """The tokens of the answers as they come. Ends early when the engine aborts (`work.aborted`)."""
    if work.garbage:
        answers[:] = [garble(answer) for answer in answers]
    work.finish_reason = "length" if all(answer.finish_reason == "length" for answer in answers) else "stop"
    rows = [
        [Event(index, kind, token) for kind, part in _parts(answer) for token in part]
        for index, answer in enumerate(answers)
    ]
    steps = [[row[place] for row in rows if place < len(row)] for place in range(max(map(len, rows), default=0))]
    broken = work.fault is not None and work.fault.kind == "break-stream"
    sent = 0
    async for event in engine.steps(work, steps):
        if broken and sent >= len(steps) // 2:
            raise BreakConnection
        sent += 1
        yield event


def _parts(answer: Answer) -> list[tuple[str, list[str]]]:
    return [("reasoning", answer.reasoning), ("content", answer.content), ("tool", answer.tool_arguments)]


@dataclass(slots=True)
class Finished:
    """One answer as far as it came."""

    reasoning: str
    content: str
    tool: str
    tool_arguments: str
    finish_reason: str
    stop_reason: str | None
    tokens: list[str]


async def collect(engine: Engine, work: Work, answers: list[Answer]) -> list[Finished]:
    """All of the answers, when they are complete."""
    said: list[dict[str, list[str]]] = [{"reasoning": [], "content": [], "tool": []} for _ in answers]
    async for event in events(engine, work, answers):
        said[event.index][event.kind].append(event.text)
    return [
        Finished(
            reasoning="".join(parts["reasoning"]),
            content="".join(parts["content"]),
            tool=answer.tool,
            tool_arguments="".join(parts["tool"]),
            finish_reason="abort" if work.aborted else answer.finish_reason,
            stop_reason=answer.stop_reason,
            tokens=[*parts["reasoning"], *parts["content"], *parts["tool"]],
        )
        for parts, answer in zip(said, answers, strict=True)
    ]


def usage(work: Work, details: bool = True) -> dict[str, Any]:
    """OpenAI's token counts."""
    counts: dict[str, Any] = {
        "prompt_tokens": work.prompt_tokens,
        "total_tokens": work.prompt_tokens + work.generated_tokens,
        "completion_tokens": work.generated_tokens,
    }
    if details:
        counts |= {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": None}
    return counts


def new_id(prefix: str) -> str:
    """An identifier such as vLLM makes."""
    return f"{prefix}{uuid.uuid4().hex[:16]}"


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())


def dump(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def data(value: Any) -> bytes:
    """One server-sent event without a name."""
    return f"data: {dump(value)}\n\n".encode()


def named(event: str, value: Any) -> bytes:
    """One server-sent event with a name."""
    return f"event: {event}\ndata: {dump(value)}\n\n".encode()


def openai_stream(chunks: AsyncGenerator[bytes, None]) -> Response:
    """A stream that ends with [DONE]; an engine that dies meanwhile is told in it."""

    async def stream() -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in chunks:
                yield chunk
        except ApiError as error:
            yield b"data: " + error.response().body + b"\n\n"
        yield b"data: [DONE]\n\n"

    return Response(content_type=EVENT_STREAM, stream=stream())
