"""Traces by OpenTelemetry: a span for each POST, in the client's trace or in one that begins here.

Configured by OpenTelemetry's own environment variables, and off without an endpoint: then nothing of it is imported,
and no header is touched. Spans are sent in the background by the SDK's own thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from proxy.exchange import CLIENT_GONE_STATUS, Exchange
from proxy.http1 import RequestHead
from proxy.routes import Outcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from proxy.client import ClientConnection
    from proxy.server import ProxyServer

logger = logging.getLogger(__name__)

Attributes = dict[str, str | int | float]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""One of them is set: tracing is on."""
LONGEST = 256  # characters of an attribute
FLUSH_WITHIN = 5.0  # seconds at the end for what has not been sent yet
_FIELDS = ("traceparent", "tracestate")
_NAMES = frozenset(name.encode("ascii") for name in _FIELDS)


class TracedExchange(Exchange):
    """A request with a span, which the next hop continues."""

    __slots__ = ("_tracing", "span")

    def __init__(
        self,
        tracing: Tracing,
        server: ProxyServer,
        client: ClientConnection,
        request: RequestHead,
        content_length: int | None,
    ) -> None:
        super().__init__(server, client, request, content_length)
        self._tracing = tracing
        self.span: Span | None = None
        """None for what is no POST: probes and scrapes."""

    def start(self, body: list[bytes], size: int) -> None:
        """Route the request."""
        if self.request.method == "POST":
            self.span = self._tracing.begin(self.request)
            self.request = continued(self.request, self.span)
        super().start(body, size)

    def on_upstream_error(self, why: str) -> None:
        """The upstream broke off."""
        if self.span is not None and self.head_sent and self.status:  # else the answer says it
            fail(self.span, "upstream_error")
        super().on_upstream_error(why)

    def _finish(self, outcome: Outcome) -> None:
        over, span = self.finished, self.span
        super()._finish(outcome)
        if span is not None and not over:
            self._tracing.end(self, span)


class Tracing:
    """Makes the spans of one server's requests."""

    def __init__(self, provider: TracerProvider, describe: Callable[[Exchange], Attributes]) -> None:
        """describe: what the owner knows of a request that is over, as attributes."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.provider = provider
        self.tracer = provider.get_tracer("greenthread")
        self.exchange = partial(TracedExchange, self)
        """Makes the exchanges of a server that traces."""
        self._describe = describe
        self._server_kind = trace.SpanKind.SERVER
        self._extract = TraceContextTextMapPropagator().extract

    def begin(self, request: RequestHead) -> Span:
        """The span of a request, in the client's trace if it has one."""
        sent = {name: value for name in _FIELDS if (value := request.get(name)) is not None}
        return self.tracer.start_span(request.method, self._extract(sent), self._server_kind)

    def end(self, exchange: Exchange, span: Span) -> None:
        """A request is over."""
        if span.is_recording():
            request, status, api_path = exchange.request, exchange.status, exchange.api_path
            attributes: Attributes = {
                "http.request.method": request.method,
                "url.scheme": "http",
                "url.path": request.path[:LONGEST],
                **_server(request.host),
                **self._describe(exchange),
            }
            if api_path is not None:
                span.update_name(f"{request.method} {api_path}")
                attributes["http.route"] = api_path
            if exchange.waited:
                attributes["greenthread.waited"] = round(exchange.waited, 6)
            if status == CLIENT_GONE_STATUS:
                attributes["error.type"] = "client_gone"
            else:
                attributes["http.response.status_code"] = status
                if status >= 500:
                    fail(span, str(status))
            span.set_attributes(attributes)
        span.end()

    async def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self.provider.shutdown()
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:  # the loop did not wait for it and is closed
                pass

        threading.Thread(target=shut_down, daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_WITHIN):
                await done.wait()
        except TimeoutError:
            logger.warning("spans that could not be sent within %g s are lost", FLUSH_WITHIN)


def continued(request: RequestHead, span: Span) -> RequestHead:
    """The same request with `span` as its part of the trace."""
    context = span.get_span_context()
    lines = [line for line in request.lines if line.partition(b":")[0].lower() not in _NAMES]
    lines.append(b"traceparent: 00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags))
    state = context.trace_state.to_header()
    if state:
        lines.append(b"tracestate: " + state.encode("latin-1"))
    return replace(request, lines=lines, forwarded=None)


def fail(span: Span, error: str, message: str | None = None) -> None:
    """What `span` is about has failed."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR, message)


def _server(host: bytes) -> Attributes:
    """Host field → who was asked."""
    text = host[:LONGEST].decode("latin-1")
    name, colon, port = text.rpartition(":")
    if colon and port.isdecimal():
        return {"server.address": name, "server.port": int(port)}
    return {"server.address": text}


def from_environment(
    service: str,
    describe: Callable[[Exchange], Attributes],
    resource: Mapping[str, str] | None = None,
    env: Mapping[str, str] = os.environ,
) -> Tracing | None:
    """Tracing as the environment has it; None when it is off.

    service: the service's name where OTEL_SERVICE_NAME has none. resource: more about this process.
    """
    endpoint = next((name for name in ENDPOINTS if env.get(name)), None)
    if endpoint is None or env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning(
            "%s is set, but there are no traces: %s. Install what they need by pip install 'greenthread[otel]'.",
            endpoint,
            error,
        )
        return None
    own = {"host.name": os.uname().nodename, **(resource or {})}
    if not env.get("OTEL_SERVICE_NAME"):
        own["service.name"] = service
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    logger.info("traces go to %s", env[endpoint])
    return Tracing(provider, describe)
