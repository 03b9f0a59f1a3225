"""Traces on real processes, from the client through gateway and sidecar to the engine and a wake's steps, as a
collector receives them; and that without an endpoint there is nothing of it."""

from __future__ import annotations

import http.server
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from greenthread.kube.resources import MODELS
from greenthread.names import ANNOTATION_ENGINE
from tests.end_to_end.cluster import FAIRNESS, ONE, Cluster, manifest
from tests.testbeds.embedded import EmbeddedApi

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

ENGINE = [sys.executable, str(Path(__file__).parent / "telling_engine.py"), "$(ENGINE_PORT)"]
TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "swordfish"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.arrived = threading.Condition()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                with collector.arrived:
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                    collector.arrived.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[tuple[str, Span]]:
        """Each with the name of its service."""
        found = []
        for request in self.requests:
            for part in request.resource_spans:
                service = next(a.value.string_value for a in part.resource.attributes if a.key == "service.name")
                found += [(service, span) for scope in part.scope_spans for span in scope.spans]
        return found

    def trace(self, trace: str, count: int) -> dict[str, Span]:
        """A trace's spans by `service/name`, once there are so many."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self._of(trace)) >= count, 20), self._of(trace)
        found = self._of(trace)
        assert len(found) == count, list(found)
        return found

    def _of(self, trace: str) -> dict[str, Span]:
        spans = [(service, span) for service, span in self.spans() if span.trace_id.hex() == trace]
        found = {f"{service}/{span.name}": span for service, span in spans}
        assert len(found) == len(spans), "two spans of one name"
        return found


def attributes(span: Span) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


@contextmanager
def cluster_of_two(**env: str) -> Iterator[Cluster]:
    """`big` and `talker`, which do not fit beside each other; `talker`'s engine tells what reaches it."""
    with EmbeddedApi() as api, Cluster(api, nodes={ONE: 1}, part_env=env) as running:
        stubborn = {**FAIRNESS, "yieldAfter": "0s"}
        running.apply("big", gpuMemoryUtilization="0.90", fairness=stubborn)
        talker = manifest("talker", ONE, gpuMemoryUtilization="0.90", fairness=stubborn, extraArgs=ENGINE)
        talker["metadata"]["annotations"] = {ANNOTATION_ENGINE: "command"}
        running.kube.create(MODELS, talker)
        running.ready("big", "talker")
        yield running


def ask(running: Cluster, model: str, **headers: str) -> Any:
    answer = running.post(
        f"{running.gateway}/v1/chat/completions",
        {"model": model, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4},
        Authorization=f"Bearer {SECRET}",
        **headers,
    )
    assert answer.status == 200, answer.text
    return answer.json


def test_a_trace_reaches_from_the_client_to_the_engine_and_the_wakes_steps() -> None:
    collector = Collector()
    with cluster_of_two(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100") as running:
        ask(running, "big")  # it serves now: the other has to preempt it
        head = ask(running, "talker", traceparent=f"00-{TRACE}-{CLIENT}-01", tracestate="vendor=1")["head"]
        found = collector.trace(TRACE, 7)
        gateway = found["greenthread-gateway/POST /v1/chat/completions"]
        sidecar = found["greenthread-sidecar/POST /v1/chat/completions"]
        wake, queue, claim, engine, preempt = (
            found[f"greenthread-sidecar/{name}"] for name in ("wake", "queue", "claim", "engine", "preempt")
        )
        assert gateway.parent_span_id.hex() == CLIENT
        for child, parent in (
            (sidecar, gateway),
            (wake, sidecar),
            (queue, wake),
            (claim, wake),
            (engine, wake),
            (preempt, queue),
        ):
            assert child.parent_span_id == parent.span_id, (child.name, parent.name)
            assert parent.start_time_unix_nano <= child.start_time_unix_nano + 5_000_000, (child.name, parent.name)
            assert child.end_time_unix_nano <= parent.end_time_unix_nano + 5_000_000, (child.name, parent.name)
        assert {gateway.kind, sidecar.kind} == {Span.SPAN_KIND_SERVER}

        # the engine has the sidecar's part of the trace as its parent, and the client's state
        assert re.fullmatch(rf"00-{TRACE}-{sidecar.span_id.hex()}-0[13]", head["traceparent"])
        assert head["tracestate"] == "vendor=1"
        assert head["authorization"] == f"Bearer {SECRET}"

        for span in (gateway, sidecar):
            told = attributes(span)
            assert told["http.request.method"] == "POST"
            assert told["http.response.status_code"] == 200
            assert told["gen_ai.request.model"] == "talker"
        assert attributes(gateway)["gen_ai.usage.output_tokens"] == 4
        assert attributes(sidecar)["greenthread.state"] == "sleeping"
        assert attributes(sidecar)["greenthread.waited"] > 0
        assert attributes(preempt)["greenthread.victims"].values[0].string_value == "big"

        # without a client's trace one begins at the gateway
        head = ask(running, "talker")["head"]
        version, trace, parent, _ = head["traceparent"].split("-")
        again = collector.trace(trace, 2)
        assert version == "00"
        assert trace != TRACE
        assert not again["greenthread-gateway/POST /v1/chat/completions"].parent_span_id
        assert again["greenthread-sidecar/POST /v1/chat/completions"].span_id.hex() == parent
        assert "tracestate" not in head

        # what a client does not want traced is not
        head = ask(running, "talker", traceparent=f"00-{'1' * 32}-{CLIENT}-00")["head"]
        assert head["traceparent"].startswith(f"00-{'1' * 32}-")
        assert int(head["traceparent"][-2:], 16) & 1 == 0

        # boots that nobody's request asked for are traces of their own, with who was there
        boots = [span for _, span in collector.spans() if span.name == "boot"]
        assert {attributes(span)["gen_ai.request.model"] for span in boots} == {"big", "talker"}
        assert not any(span.parent_span_id for span in boots)
    assert not [span for _, span in collector.spans() if span.trace_id.hex() == "1" * 32]
    assert SECRET not in str(collector.requests)
    collector.server.shutdown()


def test_without_an_endpoint_no_head_is_touched_and_nothing_is_imported() -> None:
    with cluster_of_two(PYTHONPROFILEIMPORTTIME="1") as running:
        sent = f"00-{TRACE}-{CLIENT}-01"
        head = ask(running, "talker", traceparent=sent, tracestate="vendor=1")["head"]
        assert (head["traceparent"], head["tracestate"]) == (sent, "vendor=1")
        assert not {"traceparent", "tracestate"} & set(ask(running, "talker")["head"])
        logs = {log: log.read_text(errors="replace") for log in running.logs.rglob("*") if log.is_file()}
        for module in ("gateway.app", "sidecar.app"):
            those = [text for text in logs.values() if re.search(rf"import time:.* {re.escape(module)}\n", text)]
            assert those, f"no log of who imports {module}"
            assert not any("opentelemetry" in text for text in those)
