"""What the tests of the CRDs share: requests as plain as can be, and what an API server answers to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
GIB = 2**30

JSON, JSON_PATCH, MERGE_PATCH = "application/json", "application/json-patch+json", "application/merge-patch+json"

Object = dict[str, Any]


class Api(Protocol):
    """An API server as administrator."""

    def request(self, method: str, path: str, body: Any = None, content_type: str = JSON) -> tuple[int, Any]: ...

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str: ...


@dataclass(frozen=True)
class Answer:
    """Status code and body of an answer."""

    status: int
    body: Any

    @property
    def causes(self) -> list[tuple[str, str]]:
        """Field and message of everything that was wrong, but for the notice that rules were left out."""
        found = [(cause["field"], cause["message"]) for cause in self.body.get("details", {}).get("causes", [])]
        return [cause for cause in found if cause[0] != "<nil>"]

    def ok(self) -> Object:
        """The object; the test fails when the write was refused."""
        assert self.status in (200, 201), f"refused: {json.dumps(self.body)[:2000]}"
        return self.body  # type: ignore[no-any-return]


def path(plural: str, namespace: str, name: str = "", subresource: str = "") -> str:
    parts = ["/apis/greenthread.ai/v1alpha1/namespaces", namespace, plural, name, subresource]
    return "/".join(part for part in parts if part)


def send(api: Api, method: str, where: str, body: Any = None, content_type: str = JSON) -> Answer:
    return Answer(*api.request(method, where, body, content_type))


def manifests(folder: str) -> Iterator[tuple[str, Object]]:
    """Name and content of each manifest of a folder, e.g. `recipes`."""
    for file in sorted((MANIFESTS / folder).glob("*.yaml")):
        yield file.stem, yaml.safe_load(file.read_text())


def prune(value: Any) -> Any:
    """Without the keys that are null."""
    if isinstance(value, Mapping):
        return {key: prune(child) for key, child in value.items() if child is not None}
    return value
