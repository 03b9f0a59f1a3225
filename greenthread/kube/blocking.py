"""The client for programs where start-up counts: blocking, standard library only."""

from __future__ import annotations

import http.client
import select
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

from greenthread.kube import core
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import Object, ObjectList, Patch, Request, Response, WatchEvent
from greenthread.kube.errors import Gone, Unreachable
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
        self._kept: http.client.HTTPConnection | None = None
        self._ssl = config.ssl_context() if config.server.startswith("https:") else None

    def close(self) -> None:
        """Closes the kept connection; the client may be used again."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        return self._ask(core.get_request(resource, name, namespace))

    def list(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        pages = core.Pages(resource, namespace, label_selector, field_selector)
        while True:
            try:
                if pages.add(self._ask(pages.request())):
                    return pages.result()
            except Gone as error:
                pages.start_again(error)

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
        connection = self._connection(core.WATCH_SILENCE)
        try:
            answer = self._send(connection, request)
            if answer.status != 200:
                core.decode(request, self._whole(answer), self.config.where)
            lines = core.Lines()
            while data := answer.read1(65536):
                for line in lines.feed(data):
                    yield core.decode_line(line)
        except (OSError, http.client.HTTPException) as error:
            raise core.no_answer(self.config.server, error) from error
        finally:
            connection.close()

    def _ask(self, request: Request) -> Object:
        return core.decode(request, self._round_trip(request), self.config.where)

    def _round_trip(self, request: Request) -> Response:
        connection = self._kept if self._kept is not None and _still_open(self._kept) else None
        if connection is None:
            self.close()
            connection = self._connection(self._timeout)
        self._kept = None
        try:
            response = self._whole(self._send(connection, request))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise core.no_answer(self.config.server, error) from error
        except BaseException:
            connection.close()
            raise
        self._kept = connection
        return response

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        server = urlsplit(self.config.server)
        proxy = urlsplit(self.config.proxy())
        host, port = server.hostname or "", server.port or (443 if self._ssl else 80)
        if self._ssl is None:
            connection = http.client.HTTPConnection(proxy.hostname or host, proxy.port or port, timeout=timeout)
        else:
            name = self.config.tls_server_name or host
            connection = _TlsConnection(
                proxy.hostname or host, proxy.port or port, timeout=timeout, context=self._ssl, name=name
            )
        if proxy.hostname:
            connection.set_tunnel(host, port, _proxy_headers(proxy.username, proxy.password))
        return connection

    def _send(self, connection: http.client.HTTPConnection, request: Request) -> http.client.HTTPResponse:
        path = urlsplit(self.config.server).path.rstrip("/") + request.path
        if request.params:
            path += "?" + urlencode(request.params)
        if connection.sock is None:
            timeout, connection.timeout = connection.timeout, min(CONNECT_TIMEOUT, self._timeout)
            connection.connect()
            connection.timeout = timeout
            wire: Any = connection.sock
            wire.settimeout(timeout)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        headers = request.headers(self.config.authorization())
        connection.request(request.method, path, request.body, headers)
        return connection.getresponse()

    def _whole(self, answer: http.client.HTTPResponse) -> Response:
        body = answer.read(core.MAX_BODY + 1)
        if len(body) > core.MAX_BODY:
            raise Unreachable(f"the API server's answer is larger than {core.MAX_BODY} bytes")
        answer.read()
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


class _TlsConnection(http.client.HTTPSConnection):
    """HTTPS that checks the certificate for a name other than the address (tls-server-name)."""

    def __init__(self, host: str, port: int, *, timeout: float, context: Any, name: str) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls = context
        self._name = name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def _proxy_headers(user: str | None, password: str | None) -> dict[str, str]:
    if not user:
        return {}
    import base64
    from urllib.parse import unquote

    word = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(word).decode()}


def _still_open(connection: http.client.HTTPConnection) -> bool:
    """An idle connection with something to read has been closed by the server: a write on it would be lost."""
    if connection.sock is None:
        return False
    try:
        return not select.select([connection.sock], [], [], 0)[0]
    except (OSError, ValueError):  # more than 1,024 open files, or closed
        return False
