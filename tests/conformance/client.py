"""A plain HTTP client for the conformance tests: every status, header and line of a watch can be seen."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.testbeds.admin import Admin

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
PARTIAL = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
PARTIAL_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"

Object = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: Any

    def ok(self) -> Object:
        """The object; fails when the request was refused."""
        assert 200 <= self.status < 300, f"{self.status}: {self.body}"
        return self.body  # type: ignore[no-any-return]

    def refused(self, status: int, reason: str) -> str:
        """The message of a Status that refuses; fails when it is not this one."""
        assert isinstance(self.body, dict), self.body
        assert (self.status, self.body.get("reason")) == (status, reason), self.body
        assert self.body["kind"] == "Status"
        assert self.body["apiVersion"] == "v1"
        assert self.body["status"] == "Failure"
        assert self.body["code"] == status
        return self.body["message"]  # type: ignore[no-any-return]

    def causes(self) -> set[tuple[str, str, str]]:
        """Reason, field and message of each cause, but for the notice that rules were left out."""
        found = self.body["details"].get("causes", ())
        return {(c["reason"], c["field"], c["message"]) for c in found if c["field"] != "<nil>"}

    @property
    def version(self) -> str:
        return str(self.body["metadata"]["resourceVersion"])


class Client:
    """Requests to one API server, over one connection that is kept."""

    def __init__(self, api: Admin, token: str | None = None) -> None:
        self.api = api
        self._token = api.token if token is None else token
        self._host = api.url.partition("://")[2]
        self._tls = ssl.create_default_context(cafile=str(api.ca_file))
        self._connection: http.client.HTTPSConnection | None = None

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(self._host, context=self._tls, timeout=20)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _headers(self, content: str, accept: str) -> dict[str, str]:
        headers = {"Content-Type": content, "Accept": accept}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def request(
        self, method: str, path: str, body: Any = None, *, content: str = JSON, accept: str = JSON, **query: Any
    ) -> Answer:
        """One request. A body of bytes is sent as it is. Query values None are left out."""
        given = {key: value for key, value in query.items() if value is not None}
        where = f"{path}?{urlencode(given)}" if given else path
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        for attempt in (1, 2):
            if self._connection is None:
                self._connection = self._connect()
            try:
                self._connection.request(method, where, data, self._headers(content, accept))
                response = self._connection.getresponse()
                text = response.read()
                break
            except (http.client.HTTPException, OSError):
                self._connection.close()
                self._connection = None
                if attempt == 2:
                    raise
        is_json = response.headers.get_content_type() == JSON or text.startswith(b'{"')
        return Answer(response.status, response.headers, json.loads(text) if is_json else text.decode())

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.request("POST", path, body, **options)

    def put(self, path: str, body: Any, **options: Any) -> Answer:
        return self.request("PUT", path, body, **options)

    def patch(self, path: str, body: Any, content: str = MERGE_PATCH, **options: Any) -> Answer:
        return self.request("PATCH", path, body, content=content, **options)

    def delete(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self.request("DELETE", path, body, **options)

    @contextmanager
    def watch(self, path: str, *, accept: str = JSON, **query: Any) -> Iterator[WatchStream]:
        """Opens a watch; `next` of the stream gives events."""
        connection = self._connect()
        try:
            where = f"{path}?{urlencode({'watch': 'true', **query})}"
            connection.request("GET", where, headers=self._headers(JSON, accept))
            response = connection.getresponse()
            if response.status != 200:
                raise AssertionError(f"{response.status}: {response.read()!r}")
            yield WatchStream(connection, response)
        finally:
            connection.close()

    def eventually(self, check: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        """The first true value of `check`, which is asked again and again."""
        deadline = time.monotonic() + seconds
        while True:
            value = check()
            if value:
                return value
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.02)

    def until_gone(self, path: str) -> None:
        self.eventually(lambda: self.get(path).status == 404, f"{path} goes")


class WatchStream:
    """The events of a watch, as (type, object)."""

    def __init__(self, connection: http.client.HTTPSConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def next(self, seconds: float = 10.0) -> tuple[str, Object]:
        """The next event; fails when none comes in time or the stream ends."""
        found = self.next_or_end(seconds)
        assert found is not None, "the watch ended"
        return found

    def next_or_end(self, seconds: float = 10.0) -> tuple[str, Object] | None:
        """The next event, or None when the stream ended."""
        self._connection.sock.settimeout(seconds)
        line = self._response.readline()
        if not line.strip():
            return None
        event = json.loads(line)
        return event["type"], event["object"]

    def names(self, count: int) -> list[tuple[str, str]]:
        """Type and object name of the next events."""
        events = [self.next() for _ in range(count)]
        return [(kind, obj["metadata"]["name"]) for kind, obj in events]
