"""What both clients share: how a request is built, how an answer and a watch's lines are read. Pure."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache

from greenthread.kube.errors import Gone, Unreachable, error_from_answer, error_from_status
from greenthread.kube.resources import PODS, Resource, quoted, resource_version
from greenthread.values import dataclass, field, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAGE_SIZE = 500
"""Objects in one page of a list."""
LIST_ATTEMPTS = 3
"""How often a list starts anew when its continue token expired under it."""
REQUEST_TIMEOUT = 30.0
"""Seconds for a whole request that is not a watch."""
MAX_BODY = 128 * 1024 * 1024
"""Largest answer in bytes (500 objects at etcd's limit of 1.5 MiB are rarely near it)."""
MAX_LINE = 16 * 1024 * 1024
"""Longest line of a watch in bytes; etcd refuses objects a tenth of this."""
WATCH_SECONDS = 290
"""How long the server keeps a watch open before it ends it by itself."""
WATCH_SILENCE = 90.0
"""Seconds without a line after which a watch counts as dead; servers send a bookmark about once a minute."""

LOG_SILENCE = 3600.0
"""Seconds for which a log that is followed may say nothing."""

Object = dict[str, "Any"]
Patch = list[Object] | Object
"""A list is a JSON patch, a mapping a merge patch."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, in HTTP's words; `verb` and `resource` only serve messages."""

    method: str
    path: str
    verb: str
    resource: Resource
    params: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"

    def headers(self, authorization: str | None) -> dict[str, str]:
        """The header fields to send; `authorization` as the configuration gives it."""
        return headers(authorization, self.content_type if self.body is not None else "")


def headers(authorization: str | None, content_type: str = "") -> dict[str, str]:
    """The header fields of a request; `content_type` of its body, if it has one."""
    # identity: a list inside a cluster is cheaper to move than to deflate, and nobody here inflates
    fields = {"accept": "application/json", "accept-encoding": "identity", "user-agent": user_agent()}
    if content_type:
        fields["content-type"] = content_type
    if authorization:
        fields["authorization"] = authorization
    return fields


def query(params: Mapping[str, str]) -> str:
    """A URL's query."""
    return "&".join(f"{name}={quoted(value)}" for name, value in params.items())


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class ObjectList:
    """A list as it stood at `resource_version`; its items carry `apiVersion` and `kind`, which servers leave out."""

    items: list[Object]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK; a BOOKMARK's object has only a resourceVersion."""

    type: str
    object: Object


@cache
def user_agent() -> str:
    """Which of our programs asks, for the API server's audit log: `greenthread (controller.agent)`."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = module.name.removesuffix(".__main__") if module else sys.argv[0].rpartition("/")[2]
    return f"greenthread ({''.join(c for c in name if c.isascii() and (c.isalnum() or c in '._-'))})"


def _encode(obj: Any) -> bytes:
    return json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode()


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    params = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in params.items() if value}


def get_request(resource: Resource, name: str, namespace: str | None = None) -> Request:
    return Request("GET", resource.path(namespace, name), "get", resource)


def list_request(
    resource: Resource, namespace: str | None, label_selector: str, field_selector: str, token: str = ""
) -> Request:
    params = _selectors(label_selector, field_selector) | {"limit": str(PAGE_SIZE)}
    if token:
        params["continue"] = token
    return Request("GET", resource.path(namespace), "list", resource, params)


def watch_request(
    resource: Resource,
    namespace: str | None,
    label_selector: str,
    field_selector: str,
    version: str,
    seconds: int = WATCH_SECONDS,
) -> Request:
    params = _selectors(label_selector, field_selector)
    params |= {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
    if version:
        params["resourceVersion"] = version
    return Request("GET", resource.path(namespace), "watch", resource, params)


def log_request(namespace: str, pod: str, container: str, follow: bool, tail: int) -> Request:
    params = {"container": container, "tailLines": str(tail)} | ({"follow": "true"} if follow else {})
    return Request("GET", PODS.path(namespace, pod, "log"), "get", replace(PODS, plural="pods/log"), params)


def create_request(resource: Resource, obj: Object, namespace: str | None, dry_run: bool) -> Request:
    namespace = namespace or (obj.get("metadata") or {}).get("namespace")
    if resource.namespaced and not namespace:
        raise ValueError(f"{resource.kind}: a namespace is needed")
    params = {"dryRun": "All"} if dry_run else {}
    body = {"apiVersion": resource.api_version, "kind": resource.kind} | obj
    return Request("POST", resource.path(namespace), "create", resource, params, _encode(body))


def replace_request(resource: Resource, obj: Object, subresource: str) -> Request:
    metadata = obj["metadata"]
    path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
    body = {"apiVersion": resource.api_version, "kind": resource.kind} | obj
    return Request("PUT", path, "update", resource, {}, _encode(body))


def patch_request(
    resource: Resource,
    name: str,
    body: Patch,
    namespace: str | None,
    subresource: str,
    dry_run: bool,
) -> Request:
    kind = "json-patch" if isinstance(body, list) else "merge-patch"
    params = {"dryRun": "All"} if dry_run else {}
    path = resource.path(namespace, name, subresource)
    return Request("PATCH", path, "patch", resource, params, _encode(body), f"application/{kind}+json")


def delete_request(
    resource: Resource,
    name: str,
    namespace: str | None,
    uid: str | None,
    grace_seconds: int | None,
    propagation: str | None,
) -> Request:
    options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
    if uid is not None:
        options["preconditions"] = {"uid": uid}
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    if propagation is not None:
        options["propagationPolicy"] = propagation
    return Request("DELETE", resource.path(namespace, name), "delete", resource, {}, _encode(options))


def raise_for(response: Response, verb: str, resource: Resource, where: str) -> None:
    """Raises the ApiError that an answer's status stands for, if it is one of failure."""
    if not 200 <= response.status < 300:
        raise error_from_answer(response.status, response.headers, response.body, verb, resource, where)


def decode(request: Request, response: Response, where: str) -> Object:
    """The object in an answer; raises the ApiError that its status stands for."""
    raise_for(response, request.verb, request.resource, where)
    try:
        answer = json.loads(response.body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unreachable(
            f"the answer to {request.method} {request.path} is not a Kubernetes object: is this address an API server?"
        )
    return answer


class Pages:
    """Collects the pages of one list: ask for `request()` and give the answer to `add()` until it says it is whole."""

    def __init__(self, resource: Resource, namespace: str | None, label_selector: str, field_selector: str) -> None:
        self._resource = resource
        self._scope = (namespace, label_selector, field_selector)
        self._items: list[Object] = []
        self._token = ""
        self._version = ""
        self._restarts = 0

    def request(self) -> Request:
        return list_request(self._resource, *self._scope, token=self._token)

    def add(self, page: Object) -> bool:
        """Takes one page; True when it was the last."""
        for item in page.get("items") or []:
            item.setdefault("apiVersion", self._resource.api_version)
            item.setdefault("kind", self._resource.kind)
            self._items.append(item)
        # the first page names the moment of the whole list; later pages repeat it
        self._version = self._version or resource_version(page)
        self._token = str((page.get("metadata") or {}).get("continue") or "")
        return not self._token

    def start_again(self, error: Gone) -> None:
        """The continue token expired between two pages: begin anew, a few times."""
        self._restarts += 1
        if not self._token or self._restarts >= LIST_ATTEMPTS:
            raise error
        self._items, self._token, self._version = [], "", ""

    def result(self) -> ObjectList:
        return ObjectList(self._items, self._version)


def decode_line(line: bytes) -> WatchEvent:
    """One line of a watch; an ERROR event is raised as its ApiError (`Gone` when the resourceVersion is too old)."""
    try:
        event = json.loads(line)
        kind, obj = str(event["type"]), event["object"]
    except (ValueError, TypeError, KeyError):
        raise Unreachable(f"a watch sent a line that is no event: {line[:80]!r}") from None
    if not isinstance(obj, dict):
        raise Unreachable(f"a watch sent a line that is no event: {line[:80]!r}")
    if kind == "ERROR":
        raise error_from_status(obj)
    return WatchEvent(kind, obj)


class Lines:
    """Cuts a stream of bytes into lines of bounded length."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends and without empty ones."""
        *whole, rest = data.split(b"\n")
        lines = []
        for part in whole:
            line = b"".join([*self._parts, part]).rstrip()
            self._parts, self._size = [], 0
            if line:
                lines.append(line)
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        if self._size > self._limit:
            raise Unreachable(f"a watch sent a line of more than {self._limit} bytes")
        return lines


def no_answer(server: str, error: BaseException) -> Unreachable:
    """The message for a connection that failed, by what failed."""
    # imported by name so that this module stays free of ssl, which only TLS users pay for
    kind, text = type(error).__name__, str(error).strip()
    if kind == "SSLCertVerificationError" or "CERTIFICATE_VERIFY_FAILED" in text:
        return Unreachable(
            f"the API server at {server} has a certificate that is not trusted ({_short(text)}): "
            "check certificate-authority in the kubeconfig"
        )
    if kind.startswith("SSL") or "[SSL" in text:
        return Unreachable(f"no TLS connection to the API server at {server} ({_short(text)})")
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return Unreachable(f"the API server at {server} did not answer in time: is it running, is a firewall between?")
    if isinstance(error, ConnectionRefusedError) or "refused" in text or "All connection attempts failed" in text:
        return Unreachable(f"no API server listens at {server}: is the cluster running, is this the right context?")
    if kind == "gaierror" or "Name or service not known" in text or "name resolution" in text:
        return Unreachable(f"the name in {server} cannot be resolved: check the server address and your network")
    return Unreachable(f"no answer from the API server at {server}: {_short(text) or kind}")


def _short(text: str) -> str:
    return " ".join(text.split())[:160]
