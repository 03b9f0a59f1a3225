"""Requests and responses, as the core of the API sees them."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import StatusError, bad_request
from .storage import dumps


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `headers` have lower-case names; `query` has the last value of each parameter."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """One complete HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Log:
    """The answer to a request for a container's log: whoever holds the sockets reads the file."""

    path: Path
    over: Callable[[], bool]
    """Whether the run that writes this log has ended: nothing follows what is there then."""
    follow: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """The answer to a request for a pod's proxy: the request goes to this address."""

    host: str
    port: int
    path: str


def json_response(code: int, obj: Any, headers: dict[str, str] | None = None) -> Response:
    body = obj if isinstance(obj, bytes) else dumps(obj)
    return Response(code, {"Content-Type": "application/json", **(headers or {})}, body)


def text_response(code: int, text: str) -> Response:
    return Response(code, {"Content-Type": "text/plain; charset=utf-8"}, text.encode())


def status_response(error: StatusError) -> Response:
    headers = {}
    retry = (error.details or {}).get("retryAfterSeconds")
    if retry:
        headers["Retry-After"] = str(retry)
    if error.code == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="greenthread"'
    return json_response(error.code, error.status(), headers)


_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _integer(text: str) -> int | float:
    number = int(text)
    return number if -(2**63) <= number < 2**63 else float(number)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


class _Doubled(dict[str, Any]):
    """An object in which keys came twice."""

    keys_twice: tuple[str, ...] = ()


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(items)
    if len(obj) == len(items):
        return obj
    doubled = _Doubled(obj)
    names = [key for key, _ in items]
    doubled.keys_twice = tuple(dict.fromkeys(key for key in names if names.count(key) > 1))
    return doubled


def _doubled(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        if isinstance(value, _Doubled):
            yield from (prefix + key for key in value.keys_twice)
        for key, item in value.items():
            yield from _doubled(item, prefix + key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _doubled(item, f"{path}[{index}]")


def parse_json(body: bytes) -> tuple[Any, list[str]]:
    """A JSON document and the paths of keys that are twice in one object. StatusError 400 if it is malformed."""
    options: dict[str, Any] = {"object_pairs_hook": _pairs, "parse_constant": _refuse_constant}
    if _LONG_NUMBER.search(body):
        options["parse_int"] = _integer
    try:
        value = json.loads(body, **options)
        duplicates = list(_doubled(value, ""))
        if duplicates or _SURROGATE.search(body):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    except ValueError as error:
        raise bad_request(f"the body is not valid JSON: {error}") from None
    return value, duplicates


def parse_yaml(body: bytes) -> tuple[Any, list[str]]:
    """A YAML document, as JSON would hold it. StatusError 400 if it is malformed."""
    import yaml

    try:
        value = yaml.load(body, Loader=_yaml_loader())  # noqa: S506 - a SafeLoader that is stricter still
        return json.loads(json.dumps(value)), []
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise bad_request(f"the body is not valid YAML: {error}") from None


def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Times stay text, as in JSON; aliases are refused, since they can grow without bound."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases are not supported")
            return super().compose_node(parent, index)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
