"""Which path goes where: a Model's own address, the address of all, and what the gateway answers itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.body import model_of
from gateway.directory import Directory
from gateway.holds import Holds
from gateway.settings import Settings
from greenthread.model import Model
from proxy.endpoints import MODEL_PATHS
from proxy.errors import HttpError
from proxy.http1 import RequestHead
from proxy.routes import Forward, Later, ReadBody, Respond, Route

PROBES = frozenset({"/health", "/ready", "/status"})
"""Of a sidecar, reached under a Model's address by GET."""

DOCS = 'use /<model>/v1/..., /<namespace>/<model>/v1/..., or /v1/... with "model" in the body'


class GatewayRouter:
    """Routes by exact match of the canonical path."""

    def __init__(
        self,
        directory: Directory,
        holds: Holds,
        settings: Settings,
        ready: Callable[[], str],
        scrape: Callable[[], Respond] | None,
    ) -> None:
        """ready: why the gateway cannot route yet, "" when it can. scrape: the metrics, None: not on this port."""
        self._directory = directory
        self._holds = holds
        self._settings = settings
        self._ready = ready
        self._scrape = scrape
        self._later = Later(holds.starting.wait)

    def route(self, request: RequestHead) -> Route:
        """The route of a request."""
        path = request.path
        if path == "/live":
            return self._get(request, lambda _request: Respond.json({"status": "ok"}))
        if path == "/health":
            return self._get(request, self._health)
        scrape = self._scrape
        if path == "/metrics" and scrape is not None:
            return self._get(request, lambda _request: scrape())
        if self._ready():
            return self._later
        if path in MODEL_PATHS:
            if request.method != "POST":
                return _wrong_method(request, "POST")
            return ReadBody(self._settings.body_limit, self._by_body)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            return self._get(request, self._models)
        return self._by_path(request)

    def _get(self, request: RequestHead, answer: Callable[[RequestHead], Respond]) -> Respond:
        if request.method not in ("GET", "HEAD"):
            return _wrong_method(request, "GET, HEAD")
        return answer(request)

    def _health(self, request: RequestHead) -> Respond:
        why = self._ready()
        if why:
            return Respond.error(request, 503, f"The gateway is starting: {why}.", "starting")
        return Respond.json({"status": "ok", "models": len(self._directory.models)})

    # one address for all

    def _by_body(self, request: RequestHead, body: bytes) -> Route:
        try:
            name = model_of(request, body)
        except HttpError as error:
            return Respond.error(request, error.status, error.message, error.code)
        model = self._directory.find(name)
        if model is None:
            return self._unknown(request, name)
        return self._forward(model, request.path)

    def _models(self, request: RequestHead) -> Respond:
        if request.path == "/v1/models":
            entries = [entry for model in self._directory.listed() for entry in self._entries(model)]
            unique = {entry["id"]: entry for entry in reversed(entries)}  # of one id, the first one's
            return Respond.json({"object": "list", "data": list(reversed(unique.values()))})
        name = request.path.removeprefix("/v1/models/")
        model = self._directory.find(name)
        if model is None:
            return self._unknown(request, name)
        return Respond.json(self._entry(model, name))

    def _entries(self, model: Model) -> list[dict[str, Any]]:
        names = dict.fromkeys((self._directory.short_name(model), model.spec.model_name))
        return [self._entry(model, name) for name in names]

    def _entry(self, model: Model, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(model.created_at.timestamp()) if model.created_at else 0,
            "owned_by": "greenthread",
            "root": model.spec.model_name,
            "parent": None if name == self._directory.short_name(model) else self._directory.short_name(model),
        }

    # one address for each

    def _by_path(self, request: RequestHead) -> Route:
        first, _, rest = request.path[1:].partition("/")
        second, _, more = rest.partition("/")
        for owner, path in (
            (self._directory.named(first), f"/{rest}"),
            (self._directory.model(first, second), f"/{more}"),
        ):
            if owner is not None and _is_public(path):
                return self._of_model(request, owner, path)
        if _is_public(f"/{rest}"):
            return self._unknown(request, first)
        if _is_public(f"/{more}"):
            return self._unknown(request, f"{first}/{second}")
        return Respond.error(request, 404, f"There is no {request.path[:200]} here: {DOCS}.", "not_found")

    def _of_model(self, request: RequestHead, model: Model, path: str) -> Route:
        if path in MODEL_PATHS:
            return self._forward(model, path) if request.method == "POST" else _wrong_method(request, "POST")
        if request.method not in ("GET", "HEAD"):
            return _wrong_method(request, "GET, HEAD")
        if path == "/v1/models":
            return Respond.json({"object": "list", "data": self._entries(model)})
        if path in PROBES:
            return self._probe(request, model, path)
        name = path.removeprefix("/v1/models/")
        entry = next((entry for entry in self._entries(model) if entry["id"] == name), None)
        return Respond.json(entry) if entry is not None else self._unknown(request, name)

    def _probe(self, request: RequestHead, model: Model, path: str) -> Route:
        """A sidecar's own answers: now or not at all, nobody waits for a pod to ask how it is."""
        key = (model.namespace, model.name)
        found = sorted(self._directory.endpoints(key), key=self._directory.serves)
        if not found:
            return Respond.error(request, 503, f"The model '{model.name}' has no pod that is ready.", "model_not_ready")
        return Forward(path, upstream=found[-1].address, tag=key)

    def _forward(self, model: Model, path: str) -> Forward:
        return self._holds.of((model.namespace, model.name)).forward(path)

    def _unknown(self, request: RequestHead, name: str) -> Respond:
        near = self._directory.near(name)
        hint = (
            f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else " GET /v1/models lists what there is."
        )
        return Respond.error(request, 404, f"The model '{name[:200]}' does not exist.{hint}", "model_not_found")


class MetricsRouter:
    """Of a port for who scrapes: the metrics, and nothing else."""

    def __init__(self, scrape: Callable[[], Respond]) -> None:
        self._scrape = scrape

    def route(self, request: RequestHead) -> Route:
        """The route of a request."""
        if request.path != "/metrics":
            return Respond.error(request, 404, "This port has /metrics alone.", "not_found")
        return self._scrape() if request.method in ("GET", "HEAD") else _wrong_method(request, "GET, HEAD")


def _is_public(path: str) -> bool:
    """A path that may follow a Model's prefix."""
    return path in MODEL_PATHS or path in PROBES or path == "/v1/models" or path.startswith("/v1/models/")


def _wrong_method(request: RequestHead, allowed: str) -> Respond:
    if request.method == "OPTIONS":
        return Respond(204, [("Allow", f"{allowed}, OPTIONS")])
    message = f"{request.method} is not possible here; use {allowed}."
    return Respond.error(request, 405, message, "method_not_allowed", [("Allow", f"{allowed}, OPTIONS")])
