"""vLLM continues the trace that our proxies hand it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from localcluster.gpus.ledger import GIB, create
from proxy import ProxyServer
from proxy.tracing import Tracing
from tests.end_to_end.test_traces import CLIENT, TRACE, Collector
from tests.real_vllm.engines import Engine
from tests.testbeds.programs import Missing, need_vllm, skip_or_fail
from tests.unit.proxy.harness import Client, Table, post

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


async def test_the_engines_span_is_below_ours(tmp_path: Path) -> None:
    try:
        need_vllm()
    except Missing as missing:
        skip_or_fail(missing)
    collector = Collector()
    ledger = create(tmp_path / "gpus.db", count=1, total_bytes=96 * GIB)
    arguments = ("--otlp-traces-endpoint", f"{collector.url}/v1/traces")
    env = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with Engine("real", ledger, tmp_path, arguments, env) as engine:
        server = ProxyServer(Table(engine.port), tracing=Tracing(provider, lambda exchange: {}))
        client = Client(*await asyncio.open_connection("127.0.0.1", await server.start()))
        body = b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}'
        fields = f"Content-Type: application/json\r\ntraceparent: 00-{TRACE}-{CLIENT}-01\r\n".encode()
        assert (await client.ask(post(body, "/v1/chat/completions", fields))).status == 200
        client.close()
        await server.stop(grace=1)
        [ours] = memory.get_finished_spans()
        [theirs] = collector.trace(TRACE, 1).values()
        assert theirs.parent_span_id.hex() == f"{ours.context.span_id:016x}"
    collector.server.shutdown()
    ledger.close()
