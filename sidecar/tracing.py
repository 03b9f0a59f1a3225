"""The spans of a wake, made when it is over: of the steps that its record tells, in the trace of who asked for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from greenthread.clock import Clock, parse_time
from proxy.exchange import Exchange
from proxy.tracing import LONGEST, Attributes, TracedExchange, Tracing, fail, from_environment
from sidecar.door import Door
from sidecar.records import Record, Recorder
from sidecar.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span

#: Requests that waited for a wake which it remembers.
_WAITERS = 64
_WAKES = ("wake", "boot")


def tracing_of(settings: Settings) -> Tracing | None:
    """As the environment has it; None when it is off."""
    resource = {
        "k8s.pod.name": settings.pod.name,
        "k8s.namespace.name": settings.pod.namespace,
        "k8s.node.name": settings.node,
    }
    return from_environment("greenthread-sidecar", described(settings.model), resource, settings.env)


def described(model: str) -> Callable[[Exchange], Attributes]:
    """What a span says of a request, beside what the proxy knows: the model, and the state that it found."""

    def describe(exchange: Exchange) -> Attributes:
        found: Attributes = {"gen_ai.request.model": model}
        for line in exchange.response_lines or ():
            name, _, value = line.partition(b": ")
            if name == b"X-GreenThread-State":
                found["greenthread.state"] = value.decode("ascii")
        return found

    return describe


class WakeSpans:
    """Listens at the door for who waits and at the recorder for what happened.

    A wake that a request asked for is a child of that request's span, and linked to the others that waited; a wake
    that nobody's request asked for is a trace of its own, linked to all that waited.
    """

    def __init__(self, tracing: Tracing, model: str, clock: Clock) -> None:
        self._tracer, self._model, self._clock = tracing.tracer, model, clock
        self._waiting: list[TracedExchange] = []
        self._preempting: datetime | None = None

    def follow(self, door: Door, recorder: Recorder) -> None:
        door.on_wait, recorder.on_event, recorder.on_record = self.waits, self.happened, self.ended

    def waits(self, exchange: TracedExchange) -> None:
        """A request waits at the door."""
        self._waiting = [other for other in self._waiting if not other.finished]
        if exchange.span is not None and exchange.span.is_recording() and len(self._waiting) < _WAITERS:
            self._waiting.append(exchange)

    def happened(self, reason: str) -> None:
        """An Event of this reason is told."""
        if reason == "Preempting" and self._preempting is None:
            self._preempting = self._clock.now()

    def ended(self, record: Record) -> None:
        """A record is complete."""
        if record.kind not in _WAKES:
            return
        waiting = self._waiting
        # a failure turns them away, or they wait for the boot that follows
        self._waiting = waiting if record.error else []
        preempting, self._preempting = self._preempting, None
        asked = record.reason == "request"
        spans = [v.span for v in waiting if v.span is not None and (asked or record.error or not v.finished)]
        if not asked:
            self._emit(record, None, spans, preempting)
        elif spans:  # else nobody who asked is sampled
            self._emit(record, spans[0], spans[1:], preempting)

    def _emit(self, record: Record, parent: Span | None, others: list[Span], preempting: datetime | None) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        context = Context() if parent is None else trace.set_span_in_context(parent, Context())
        began = _nanoseconds(parse_time(record.at))
        links: list[Link] = [trace.Link(other.get_span_context()) for other in others]
        wake = self._tracer.start_span(record.kind, context, links=links, start_time=began)
        if wake.is_recording():
            wake.set_attributes(
                {
                    "gen_ai.request.model": self._model,
                    "greenthread.reason": record.reason,
                    "greenthread.gpus": record.gpus,
                    "greenthread.memory": record.memory,
                    "greenthread.waited_for": record.waited_for[:LONGEST],
                    "greenthread.victims": record.victims[:16],
                }
            )
            for other in others:
                if other.is_recording():
                    other.add_link(wake.get_span_context())
        below, at = trace.set_span_in_context(wake, Context()), began
        steps = dict(record.steps)
        if record.error and "engine" not in steps:
            since = began + round(sum(steps.values()) * 1e9)
            steps["engine"] = max(_nanoseconds(self._clock.now()) - since, 0) / 1e9
        for name, seconds in steps.items():
            end = at + round(seconds * 1e9)
            step = self._tracer.start_span(name, below, start_time=at)
            if name == "queue" and preempting is not None and at <= _nanoseconds(preempting) <= end:
                made_room = self._tracer.start_span(
                    "preempt",
                    trace.set_span_in_context(step, Context()),
                    start_time=_nanoseconds(preempting),
                    attributes={"greenthread.victims": record.victims[:16]},
                )
                made_room.end(end)
            if name == "engine" and record.error:
                fail(step, "engine_failed", record.error[:LONGEST])
            step.end(end)
            at = end
        if record.error:
            fail(wake, "engine_failed", record.error[:LONGEST])
        wake.end(at)


def _nanoseconds(moment: datetime) -> int:
    """Since 1970."""
    return round(moment.timestamp() * 1e6) * 1000
