"""What the sidecar answers on its port: the API's paths go to the engine, a few are answered here, the rest is 404."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.endpoints import MODEL_PATHS
from proxy.http1 import RequestHead
from proxy.routes import Forward, Handle, Respond, Route
from sidecar.door import Door
from sidecar.metrics import Metrics, SidecarState


class FrontDoor:
    """The router of a sidecar. Paths are compared exactly, so no spelling reaches an engine's control path."""

    def __init__(
        self,
        door: Door,
        metrics: Metrics,
        engine: tuple[str, int],
        status: Callable[[], dict[str, Any]],
        models: Callable[[], list[dict[str, Any]]],
        state: Callable[[], tuple[SidecarState, bool]],
    ) -> None:
        """``engine``: its address. ``state``: the sidecar's state, and whether it has booted once."""
        self._metrics, self._status, self._models, self._state = metrics, status, models, state
        self._forward = {path: Forward(path, upstream=engine, gate=door) for path in MODEL_PATHS}
        # the engine listens on loopback: its metrics are scraped through here, as /metrics?target=engine
        self._engine_metrics = Forward("/metrics", upstream=engine)
        self._local: dict[str, Callable[[RequestHead], Respond]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/status": lambda _request: Respond.json(self._status()),
            "/metrics": self._scrape,
            "/v1/models": lambda _request: Respond.json({"object": "list", "data": self._models()}),
        }

    def route(self, request: RequestHead) -> Route:
        forward = self._forward.get(request.path)
        if forward is not None:
            if request.method == "POST":
                return forward
            return Respond.error(
                request, 405, f"{request.path} takes POST, not {request.method}", headers=[("Allow", "POST")]
            )
        answer = self._local.get(request.path)
        if answer is None:
            return Respond.error(request, 404, f"there is no {request.path} here")
        if request.method not in ("GET", "HEAD"):
            return Respond.error(
                request, 405, f"{request.path} takes GET, not {request.method}", headers=[("Allow", "GET, HEAD")]
            )

        if request.path == "/metrics" and request.query == "target=engine":
            return self._engine_metrics

        async def respond(head: RequestHead) -> Respond:
            return answer(head)

        return Handle(respond)

    def _health(self, request: RequestHead) -> Respond:
        if self._state()[1]:
            return Respond.json({"status": "ok"})
        return Respond.error(request, 503, "the engine is booting for the first time")

    def _ready(self, request: RequestHead) -> Respond:
        state, _booted = self._state()
        if state is SidecarState.SERVING:
            return Respond.json({"status": "serving"})
        return Respond.error(request, 503, f"the model is {state}")

    def _scrape(self, _request: RequestHead) -> Respond:
        return Respond(200, [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")], self._metrics.text())
