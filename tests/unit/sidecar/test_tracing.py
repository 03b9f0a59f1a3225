"""The spans of wakes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import StatusCode

from greenthread.names import ANNOTATION_WAKE
from proxy.tracing import Tracing
from sidecar.tracing import WakeSpans
from tests.unit.sidecar.test_lifecycle import in_world, state
from tests.unit.sidecar.world import GIB, Exchange, World


class Traced:
    """Follows a sidecar, and plays the proxy that gives requests their spans."""

    def __init__(self, world: World, name: str, sampler: Sampler = ParentBased(ALWAYS_ON)) -> None:
        self._world, self._name = world, name
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._tracing = Tracing(provider, lambda exchange: {})
        sidecar = world.sidecars[name]
        WakeSpans(self._tracing, name, world.clock).follow(sidecar.door, sidecar.recorder)

    async def request(self, name: str) -> Span:
        """A request that is answered, one way or the other."""
        exchange = Exchange()
        exchange.span = self._tracing.tracer.start_span(name)
        try:
            await self._world.request(self._name, exchange=exchange)
        finally:
            exchange.finished = True
            exchange.span.end()
        return exchange.span

    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, *names: str) -> list[ReadableSpan]:
        """The one span of each name."""
        found = []
        for name in names:
            [span] = [span for span in self.spans() if span.name == name]
            found.append(span)
        return found


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def seconds(span: ReadableSpan) -> float:
    return (span.end_time - span.start_time) / 1e9


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


@in_world
async def test_a_wake_is_told_under_the_request_that_asked_for_it(world):
    await world.model("a", 60 * GIB, sleep={"idleTimeout": "0s"})
    traced = Traced(world, "a")
    asker = asyncio.create_task(traced.request("asker"))
    await world.until(lambda: state(world, "a") == "waking")
    joiner = asyncio.create_task(traced.request("joiner"))
    asked, joined = await asker, await joiner
    late = await traced.request("late")
    wake, queue, claim, engine = traced.named("wake", "queue", "claim", "engine")
    assert {span.context.trace_id for span in (wake, queue, claim, engine)} == {asked.context.trace_id}
    assert parent(wake) == asked.context.span_id
    assert {parent(span) for span in (queue, claim, engine)} == {wake.context.span_id}
    assert seconds(engine) == pytest.approx(0.5, abs=0.01)
    assert wake.start_time == queue.start_time
    assert (queue.end_time, claim.end_time, engine.end_time) == (claim.start_time, engine.start_time, wake.end_time)
    record = world.sidecars["a"].recorder.records[-1]
    assert seconds(wake) == pytest.approx(record.total, abs=1e-6)
    assert wake.attributes["gen_ai.request.model"] == "a"
    assert wake.attributes["greenthread.reason"] == "request"
    assert wake.attributes["greenthread.gpus"] == "n/0"
    assert linked(wake) == {joined.context.span_id}
    assert linked(joined) == {wake.context.span_id}
    assert not linked(asked)
    assert not linked(late)
    assert not [span for span in traced.spans() if span.name == "preempt"]


@in_world
async def test_the_time_for_which_others_were_asked_to_make_room_is_a_span_of_its_own(world):
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s", "yieldAfter": "0s"})
    await world.model("b", 60 * GIB, fairness={"maxWaitTime": "2s", "minRuntime": "0s", "yieldAfter": "0s"})
    assert await world.request("a") == "ok"
    traced = Traced(world, "b")
    await traced.request("asker")
    wake, queue, preempt = traced.named("wake", "queue", "preempt")
    assert parent(preempt) == queue.context.span_id
    assert preempt.attributes["greenthread.victims"] == wake.attributes["greenthread.victims"] == ("a",)
    assert queue.start_time < preempt.start_time < preempt.end_time == queue.end_time
    assert "a" in wake.attributes["greenthread.waited_for"]


@in_world
async def test_a_wake_that_nobody_asked_for_by_a_request_is_a_trace_of_its_own(world):
    await world.model("a", 60 * GIB, sleep={"idleTimeout": "0s"})
    traced = Traced(world, "a")
    await world.annotate("a", ANNOTATION_WAKE)
    await world.until(lambda: state(world, "a") == "waking")
    joined = await traced.request("joiner")
    [wake] = traced.named("wake")
    assert wake.parent is None
    assert wake.context.trace_id != joined.context.trace_id
    assert wake.attributes["greenthread.reason"] == "asked to"
    assert linked(wake) == {joined.context.span_id}
    assert linked(joined) == {wake.context.span_id}


@in_world
async def test_a_failed_wake_and_the_boot_after_it(world):
    await world.model("a", 60 * GIB, sleep={"idleTimeout": "0s"})
    traced = Traced(world, "a")
    world.engines["a"].fail.append("wake")
    asked = await traced.request("asker")
    await world.until(lambda: any(span.name == "boot" for span in traced.spans()))
    [wake, boot] = traced.named("wake", "boot")
    assert parent(wake) == asked.context.span_id
    assert wake.status.status_code is StatusCode.ERROR
    assert wake.status.description == "wake failed"
    [failed] = [span for span in traced.spans() if span.name == "engine" and parent(span) == wake.context.span_id]
    assert failed.status.status_code is StatusCode.ERROR
    assert seconds(failed) == pytest.approx(0.5, abs=0.01)
    assert boot.parent is None
    assert boot.status.status_code is StatusCode.UNSET
    assert not linked(boot), "nobody waited for it"


@in_world
async def test_who_left_before_is_not_taken_for_who_asked(world):
    await world.model("a", 60 * GIB, fairness={"popular": True})
    await world.model("b", 60 * GIB)
    assert await world.request("a") == "ok"
    traced = Traced(world, "b")
    gone = asyncio.create_task(traced.request("gone"))
    await world.until(lambda: state(world, "b") == "pending")
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await world.until(lambda: state(world, "b") == "sleeping")
    world.sidecars["a"].lifecycle.wish_sleep(preempt=False)
    await world.until(lambda: state(world, "a") == "sleeping")
    asked = await traced.request("asker")
    [wake] = traced.named("wake")
    assert parent(wake) == asked.context.span_id
    assert not linked(wake)


@in_world
async def test_what_is_not_sampled_has_no_spans(world):
    await world.model("a", 60 * GIB)
    traced = Traced(world, "a", ParentBased(ALWAYS_OFF))
    await traced.request("asker")
    assert traced.spans() == ()
