"""The client for programs where start-up counts: blocking, standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from greenthread.http1 import Answer, Connection, split_address
from greenthread.kube import core
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Object, ObjectList, Patch, Request, Response, WatchEvent
from greenthread.kube.errors import ApiError, Gone, KubeError
from greenthread.kube.resources import Resource

CONNECT_TIMEOUT = 10.0
"""Seconds to reach the server."""


class Client:
    """One API server over one kept connection; not for use by several threads at once, but for `watch`.

    Every method raises the errors of `greenthread.kube.errors`. Writes are sent once: after `Unreachable` the caller
    cannot know whether the server did it. `timeout`: seconds for which the server may be silent.
    """

    def __init__(self, config: ClusterConfig, timeout: float = core.REQUEST_TIMEOUT) -> None:
        self.config = config
        self._timeout = timeout
        self._tls = config.ssl_context() if config.server.startswith("https:") else None
        self._kept = self._connection(timeout)

    def close(self) -> None:
        """Closes the kept connection; the client may be used again."""
        self._kept.close()

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        return self._ask(core.get_request(resource, name, namespace))

    def list(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        return self._rest_of(core.Pages(resource, namespace, label_selector, field_selector))

    def create(self, resource: Resource, obj: Object, namespace: str | None = None, dry_run: bool = False) -> Object:
        return self._ask(core.create_request(resource, obj, namespace, dry_run))

    def replace(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        return self._ask(core.replace_request(resource, obj, subresource))

    def patch(
        self,
        resource: Resource,
        name: str,
        body: Patch,
        namespace: str | None = None,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """A list is sent as a JSON patch, a mapping as a merge patch."""
        return self._ask(core.patch_request(resource, name, body, namespace, subresource, dry_run))

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str | None = None,
    ) -> Object:
        return self._ask(core.delete_request(resource, name, namespace, uid, grace_seconds, propagation))

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> Iterator[WatchEvent]:
        """One watch on a connection of its own, until the server ends it; `Unreachable` after 90 s of silence.

        Safe beside other calls, also from another thread.
        """
        request = core.watch_request(resource, namespace, label_selector, field_selector, resource_version)
        lines = core.Lines()
        with self.open(request.method, request.path, request.params, timeout=core.WATCH_SILENCE) as stream:
            if stream.status != 200:
                core.decode(request, Response(stream.status, stream.headers, stream.read_all()), self.config.where)
            while data := stream.read():
                for line in lines.feed(data):
                    yield core.decode_line(line)

    def open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = core.REQUEST_TIMEOUT,
    ) -> Stream:
        """Any request, with an answer that is read as it comes, on a connection of its own; use it with `with`."""
        own = core.headers(self.config.authorization(), "application/json" if body is not None else "")
        return Stream(
            self._connection(timeout),
            method,
            self._path(path, params),
            {**own, **(headers or {})},
            body,
            lambda error: core.no_answer(self.config.server, error),
        )

    def lists(self, wanted: Sequence[Listing]) -> Sequence[ObjectList | ApiError]:
        """Several lists, asked for at once; what one of them is refused with takes its place."""
        pages = [core.Pages(*listing) for listing in wanted]
        found: Found = []
        first = self._together([each.request() for each in pages])
        for each, response in zip(pages, first, strict=True):
            request = each.request()
            try:
                done = each.add(core.decode(request, response, self.config.where))
                found.append(each.result() if done else self._rest_of(each))
            except ApiError as error:
                found.append(error)
        return found

    def _rest_of(self, pages: core.Pages) -> ObjectList:
        while True:
            try:
                if pages.add(self._ask(pages.request())):
                    return pages.result()
            except Gone as error:
                pages.start_again(error)

    def _ask(self, request: Request) -> Object:
        return core.decode(request, self._together([request])[0], self.config.where)

    def _together(self, requests: Sequence[Request]) -> Sequence[Response]:
        """The answers to requests, sent one after the other without waiting. Only reads are asked again when the
        server closes in between."""
        responses: Responses = []
        kept = self._kept
        if not kept.is_idle:
            kept.close()
        while len(responses) < len(requests):
            before = len(responses)
            try:
                sent = self._send_all(kept, requests[before:])
                for _ in range(sent):
                    answer = kept.receive(core.MAX_BODY)
                    responses.append(Response(answer.status, answer.headers, kept.read_all(answer)))
                    if not answer.keep:
                        kept.close()
                        break
                if before + sent < len(requests):
                    kept.close()
            except OSError as error:
                kept.close()
                if len(responses) == before:
                    raise core.no_answer(self.config.server, error) from error
            except BaseException:
                kept.close()
                raise
        return responses

    def _connection(self, timeout: float) -> Connection:
        _, host, port, _ = split_address(self.config.server)
        proxy = self.config.proxy()
        return Connection(
            host,
            port,
            timeout=timeout,
            connect_timeout=min(CONNECT_TIMEOUT, self._timeout),
            tls=self._tls,
            server_name=self.config.tls_server_name,
            proxy=_proxy(proxy) if proxy else None,
        )

    def _send_all(self, connection: Connection, requests: Sequence[Request]) -> int:
        """How many were sent: fewer when the server closes meanwhile, and there may be answers to the first ones."""
        for sent, request in enumerate(requests):
            try:
                self._send(connection, request)
            except OSError:
                if not sent:
                    raise
                return sent
        return len(requests)

    def _send(self, connection: Connection, request: Request) -> None:
        path = self._path(request.path, request.params)
        connection.send(request.method, path, request.headers(self.config.authorization()), request.body)

    def _path(self, path: str, params: Mapping[str, str]) -> str:
        base = split_address(self.config.server)[3]
        return f"{base}{path}?{core.query(params)}" if params else f"{base}{path}"


Found = list["ObjectList | ApiError"]
Responses = list[Response]
Listing = tuple[Resource, "str | None", str, str]
"""What to list: resource, namespace (None: all), label selector, field selector."""


class Stream:
    """A request that was sent, and its answer, read as it comes. OSErrors are raised as what `lost` makes of them."""

    def __init__(
        self,
        connection: Connection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        lost: Callable[[OSError], KubeError],
        limit: float = core.MAX_BODY,
    ) -> None:
        """`path` with its query; `limit`: most bytes of the answer's body that `read_all` takes."""
        self._connection, self._lost, self._limit = connection, lost, limit
        try:
            connection.send(method, path, headers, body)
        except OSError as error:
            connection.close()
            raise lost(error) from error
        except BaseException:
            connection.close()
            raise

    @cached_property
    def _answer(self) -> Answer:
        """Waits for the answer's head."""
        try:
            return self._connection.receive(self._limit)
        except OSError as error:
            raise self._lost(error) from error

    @property
    def status(self) -> int:
        """HTTP's."""
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""
        return self._answer.headers

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def shut(self) -> None:
        """Ends it from another thread."""
        self._connection.shut()

    def read(self) -> bytes:
        """The next part of the body, empty at the end."""
        try:
            return self._connection.read(self._answer)
        except OSError as error:
            raise self._lost(error) from error

    def read_all(self) -> bytes:
        """The whole body."""
        try:
            return self._connection.read_all(self._answer)
        except OSError as error:
            raise self._lost(error) from error


def _proxy(url: str) -> tuple[str, int, Mapping[str, str]]:
    from urllib.parse import unquote, urlsplit

    found = urlsplit(url)
    headers = {}
    if found.username:
        import base64

        word = f"{unquote(found.username)}:{unquote(found.password or '')}".encode()
        headers["proxy-authorization"] = "Basic " + base64.b64encode(word).decode()
    return found.hostname or "", found.port or 80, headers
