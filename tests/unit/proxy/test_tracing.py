"""Spans of requests, by the SDK's own exporter in memory."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from proxy.tracing import Tracing, from_environment
from tests.unit.proxy.harness import GET, FakeGate, Rig, answers, post, rig, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = f"traceparent: 00-{TRACE}-{PARENT}-01\r\nTraceState: vendor=1,other=2\r\n".encode()
NOT_SAMPLED = f"traceparent: 00-{TRACE}-{PARENT}-00\r\n".encode()


class Traced:
    """Makes a rig's proxy trace, and reads its spans."""

    def __init__(self, sampler: Sampler = ParentBased(ALWAYS_ON)) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider, lambda exchange: {"gen_ai.request.model": "llama"})

    def on(self, r: Rig) -> None:
        r.server.exchange = self.tracing.exchange

    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()


@pytest.fixture
def traced() -> Traced:
    return Traced()


def fields(r: Rig, number: int = -1) -> dict[str, list[str]]:
    """The trace's header fields of a request as the upstream has them, by name as spelled."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"(?i)(trace\w+): ([^\r]*)", r.upstream.requests[number][0].decode()):
        found.setdefault(name, []).append(value)
    return found


async def test_without_tracing_the_fields_pass_as_they_are() -> None:
    async with rig() as r:
        await r.ask(post(extra=CLIENT))
        assert CLIENT in r.upstream.requests[0][0]
        await r.ask(post())
        assert fields(r) == {}


async def test_the_clients_trace_goes_on(traced: Traced) -> None:
    async with rig() as r:
        traced.on(r)
        answer = await r.ask(post(path="/v1/chat/completions", extra=CLIENT))
        assert answer.status == 200
        [span] = traced.spans()
        assert span.name == "POST /v1/chat/completions"
        assert span.kind is SpanKind.SERVER
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == PARENT
        assert dict(span.attributes) == {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "http.route": "/v1/chat/completions",
            "url.path": "/v1/chat/completions",
            "url.scheme": "http",
            "server.address": "x",
            "gen_ai.request.model": "llama",
        }
        [[parent], [state]] = fields(r).values()
        assert re.fullmatch(f"00-{TRACE}-{span.context.span_id:016x}-0[13]", parent)
        assert state == "vendor=1,other=2"


async def test_a_trace_begins_where_the_client_has_none(traced: Traced) -> None:
    async with rig() as r:
        traced.on(r)
        client = await r.client()
        for _ in range(3):  # heads that are alike are known after the first
            await client.ask(post())
        spans = traced.spans()
        assert len({span.context.trace_id for span in spans}) == 3
        assert {span.parent for span in spans} == {None}
        for number, span in enumerate(spans):
            assert list(fields(r, number)) == ["traceparent"]
            [parent] = fields(r, number)["traceparent"]
            assert parent.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")


@pytest.mark.parametrize("value", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01, x"])
async def test_a_malformed_parent_is_replaced(traced: Traced, value: str) -> None:
    async with rig() as r:
        traced.on(r)
        await r.ask(post(extra=f"traceparent: {value}\r\n".encode()))
        [span] = traced.spans()
        assert span.parent is None
        assert [parent.split("-")[2] for parent in fields(r)["traceparent"]] == [f"{span.context.span_id:016x}"]


async def test_what_the_client_decided_on_sampling_holds(traced: Traced) -> None:
    async with rig() as r:
        traced.on(r)
        await r.ask(post(extra=NOT_SAMPLED))
        assert traced.spans() == ()
        [parent] = fields(r)["traceparent"]
        version, trace, span, flags = parent.split("-")
        assert (version, trace, int(flags, 16) & 1) == ("00", TRACE, 0)
        assert span != PARENT


async def test_what_is_not_sampled_is_passed_on_as_such() -> None:
    traced = Traced(ParentBased(ALWAYS_OFF))
    async with rig() as r:
        traced.on(r)
        await r.ask(post())
        assert traced.spans() == ()
        assert int(fields(r)["traceparent"][0][-2:], 16) & 1 == 0
        await r.ask(post(extra=CLIENT))
        assert len(traced.spans()) == 1


async def test_no_secret_and_no_content_is_in_a_span(traced: Traced) -> None:
    async with rig() as r:
        traced.on(r)
        extra = b"Authorization: Bearer swordfish\r\nX-Api-Key: swordfish\r\nCookie: swordfish\r\n"
        await r.ask(
            b"POST /v1/echo?key=swordfish HTTP/1.1\r\nHost: x:81\r\nContent-Length: 9\r\n%b\r\nswordfish" % extra
        )
        [span] = traced.spans()
        assert "swordfish" not in span.to_json()
        assert span.attributes["server.port"] == 81


async def test_probes_are_no_spans_and_errors_are(traced: Traced) -> None:
    async with rig() as r:
        traced.on(r)
        await r.ask(GET)
        await r.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert traced.spans() == ()
        await r.ask(post(path="/nothing/here/" + "x" * 1000))
        [span] = traced.spans()
        assert (span.name, span.attributes["http.response.status_code"]) == ("POST", 404)
        assert len(span.attributes["url.path"]) == 256
        assert span.status.status_code is StatusCode.UNSET


async def test_an_upstream_that_fails_is_an_error(traced: Traced) -> None:
    async with rig(answers(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", close=True)) as r:
        traced.on(r)
        assert not (await r.ask(post())).complete
        await until(lambda: bool(traced.spans()))
        [span] = traced.spans()
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "upstream_error"
    async with rig(answers(b"nonsense", close=True)) as r:
        traced.on(r)
        assert (await r.ask(post())).status == 502
        assert traced.spans()[-1].attributes["error.type"] == "502"
        assert traced.spans()[-1].status.status_code is StatusCode.ERROR


async def test_a_wait_at_the_gate_is_told_and_who_leaves_is_no_error(traced: Traced) -> None:
    gate = FakeGate(open_=False)
    gate.on_enter = lambda exchange: setattr(exchange, "waited", 1.5)
    async with rig(gate=gate) as r:
        traced.on(r)
        client = await r.client()
        await client.send(post())
        await gate.asked.wait()
        gate.waiting[0].set_result(None)
        await client.answer()
        assert traced.spans()[0].attributes["greenthread.waited"] == pytest.approx(1.5, abs=0.5)
        gate.asked.clear()
        await client.send(post())
        await gate.asked.wait()
        client.close()
        await until(lambda: len(traced.spans()) == 2)
        span = traced.spans()[1]
        assert span.attributes["error.type"] == "client_gone"
        assert "http.response.status_code" not in span.attributes
        assert span.status.status_code is StatusCode.UNSET


async def test_a_request_that_was_not_run_goes_elsewhere_in_the_same_span(traced: Traced) -> None:
    async def once(upstream, reader, writer) -> None:  # type: ignore[no-untyped-def]
        await upstream.read_request(reader)
        not_run = b"X-GreenThread-Not-Run: true\r\n" if len(upstream.requests) == 1 else b""
        status = b"503 Service Unavailable" if not_run else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\n%bContent-Length: 0\r\n\r\n" % (status, not_run))

    async with rig(once, gate=FakeGate(), retry=True) as r:
        traced.on(r)
        assert (await r.ask(post(extra=CLIENT))).status == 200
        assert len(r.upstream.requests) == 2
        assert fields(r, 0) == fields(r, 1)
        assert len(traced.spans()) == 1


# how it is turned on


def test_it_is_off_without_an_endpoint() -> None:
    for env in ({}, {"OTEL_SERVICE_NAME": "x"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}):
        assert from_environment("x", lambda exchange: {}, env=env) is None
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert from_environment("x", lambda exchange: {}, env=on | {"OTEL_SDK_DISABLED": "true"}) is None


def test_without_the_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING):
        env = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}
        assert from_environment("x", lambda exchange: {}, env=env) is None
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set" in caplog.text
    assert "pip install 'greenthread[otel]'" in caplog.text


def test_off_nothing_is_imported() -> None:
    code = (
        "import sys, gateway.__main__, sidecar.__main__;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_collector_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.tracing.FLUSH_WITHIN", 0.05)
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    tracing = from_environment("x", lambda exchange: {})
    assert tracing is not None
    async with rig() as r:
        r.server.exchange = tracing.exchange
        assert (await r.ask(post())).status == 200
    async with asyncio.timeout(5):
        await tracing.close()
    silent.close()
