"""An API without a socket, and requests to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from localcluster.api.core import Answer, Api
from localcluster.api.messages import Request, Response
from localcluster.api.storage import Store

MERGE = "application/merge-patch+json"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
THINGS = "/apis/test.example/v1/namespaces/default/things"


@dataclass
class HandClock:
    """A clock that a test moves."""

    at: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def now(self) -> datetime:
        return self.at

    def forward(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Local:
    """One API in memory (or on a file) with a hand-moved clock and a seeded source of names."""

    def __init__(self, path: Path | str = ":memory:", *, history: int = 5000, **options: Any) -> None:
        self.clock = HandClock()
        self.store = Store(path, history=history)
        self.api = Api(self.store, clock=self.clock, rng=Random(1), **options)

    def raw(self, method: str, path: str, body: Any = None, content: str = "application/json", **query: str) -> Answer:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return self.api.handle(Request(method, path, query, {"content-type": content}, data))

    def ask(
        self, method: str, path: str, body: Any = None, content: str = "application/json", **query: str
    ) -> tuple[int, Any]:
        answer = self.raw(method, path, body, content, **query)
        assert isinstance(answer, Response)
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(answer.body) if is_json else answer.body.decode()

    def ok(self, method: str, path: str, body: Any = None, content: str = "application/json", **query: str) -> Any:
        status, obj = self.ask(method, path, body, content, **query)
        assert status in (200, 201), obj
        return obj

    def add_things(self, **properties: Any) -> None:
        """Installs the CRD `things.test.example`; its spec has these properties, or is free."""
        spec: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        if properties:
            spec = {"type": "object", "properties": properties}
        self.ok("POST", CRDS, crd({"type": "object", "properties": {"spec": spec}}))


def crd(schema: dict[str, Any]) -> dict[str, Any]:
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.test.example"},
        "spec": {
            "group": "test.example",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [version],
        },
    }


def thing(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "test.example/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec}
