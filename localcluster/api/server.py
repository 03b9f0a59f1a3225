"""The API on HTTP: aiohttp, on the loopback interface only."""

import asyncio
import base64
import contextlib
import errno
import json
import secrets
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web

from .audit import AuditLog
from .certificate import load_certificate, write_private
from .core import BODY_LIMIT, Api
from .errors import StatusError
from .messages import Forward, Log, Request, Response, status_response
from .watches import Watch, error_line

BOOKMARK_SECONDS = 30.0
PENDING_LIMIT = 8 * 1024 * 1024
"""Bytes that may wait for a slow watcher before its watch is ended (it then lists again)."""
CONTEXT = "greenthread-local"
_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "authorization",
    ]
)


class Server:
    """Serves one Api on 127.0.0.1."""

    def __init__(self, api: Api, audit: AuditLog | None = None) -> None:
        self._api, self._audit = api, audit
        self._runner: web.ServerRunner | None = None
        self._client: aiohttp.ClientSession | None = None
        self.port = 0

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> int:
        """Listens; returns the port. OSError if it is taken."""
        server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self.port

    async def stop(self) -> None:
        """Ends all watches and closes."""
        for rt in self._api.every_type():
            self._api.end_watches(rt.storage)
        if self._client is not None:
            await self._client.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, http: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await _body(http)
        except StatusError as error:
            return _plain(status_response(error))
        request = Request(
            http.method,
            http.rel_url.path,
            dict(http.rel_url.query),
            {key.lower(): value for key, value in http.headers.items()},
            body,
        )
        if self._audit is not None:
            self._audit.received(request)
        answer = self._api.handle(request)
        if isinstance(answer, Response):
            return _plain(answer)
        if isinstance(answer, Watch):
            return await _stream_watch(http, answer)
        if isinstance(answer, Log):
            return await _stream_log(http, answer)
        return await self._forward(http, answer, body)

    async def _forward(self, http: web.BaseRequest, target: Forward, body: bytes) -> web.StreamResponse:
        if self._client is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=5)
            self._client = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        query = f"?{http.rel_url.raw_query_string}" if http.rel_url.raw_query_string else ""
        headers = {k: v for k, v in http.headers.items() if k.lower() not in _HOP}
        try:
            async with self._client.request(
                http.method,
                f"http://{target.host}:{target.port}{target.path}{query}",
                data=body or None,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                out = web.StreamResponse(
                    status=answer.status, headers={k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
                )
                await out.prepare(http)
                async for chunk in answer.content.iter_any():
                    await out.write(chunk)
                await out.write_eof()
                return out
        except (TimeoutError, aiohttp.ClientError) as error:
            why = f"error trying to reach the pod at {target.host}:{target.port}: {error}"
            return _plain(status_response(StatusError(503, "ServiceUnavailable", why)))


async def _body(http: web.BaseRequest) -> bytes:
    body = bytearray()
    async for chunk in http.content.iter_any():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_LIMIT} bytes")
    return bytes(body)


def _plain(answer: Response) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def _stream_watch(http: web.BaseRequest, watch: Watch) -> web.StreamResponse:
    out = web.StreamResponse(headers={"Content-Type": "application/json"})
    pending = bytearray()
    wake = asyncio.Event()
    ended = False

    def deliver(line: bytes | None) -> None:
        nonlocal ended
        if line is None:
            ended = True
        else:
            pending.extend(line)
            if len(pending) > PENDING_LIMIT:
                ended = True
                watch.stop()
        wake.set()

    try:
        watch.start(deliver)
    except StatusError as error:
        pending.extend(error_line(error.status()))
        ended = True
    loop = asyncio.get_running_loop()
    until = loop.time() + watch.timeout
    try:
        await out.prepare(http)
        while True:
            if pending:
                chunk = bytes(pending)
                pending.clear()
                await out.write(chunk)
                continue
            if ended or loop.time() >= until:
                break
            wake.clear()
            try:
                async with asyncio.timeout(max(0.001, min(BOOKMARK_SECONDS, until - loop.time()))):
                    await wake.wait()
            except TimeoutError:
                line = watch.bookmark()
                if line is not None:
                    pending.extend(line)
        await out.write_eof()
    except (ConnectionError, asyncio.CancelledError):
        pass
    finally:
        watch.stop()
    return out


async def _stream_log(http: web.BaseRequest, log: Log) -> web.StreamResponse:
    out = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    await out.prepare(http)
    with contextlib.suppress(ConnectionError, FileNotFoundError):
        async for chunk in _log_chunks(log):
            await out.write(chunk)
    with contextlib.suppress(ConnectionError):
        await out.write_eof()
    return out


async def _log_chunks(log: Log) -> AsyncIterator[bytes]:
    left = log.limit_bytes
    with log.path.open("rb") as file:
        if log.tail_lines is not None:
            file.seek(_tail_offset(log.path, log.tail_lines))
        over = False
        while left is None or left > 0:
            chunk = file.read(65536 if left is None else min(65536, left))
            if chunk:
                left = None if left is None else left - len(chunk)
                yield chunk
            elif over or not log.follow:
                return
            elif not (over := log.over()):  # else what was written before the end is read first
                await asyncio.sleep(0.2)


def _tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    size = path.stat().st_size
    if lines == 0:
        return size
    with path.open("rb") as file:
        position, seen = size, 0
        while position > 0:
            step = min(65536, position)
            position -= step
            file.seek(position)
            block = file.read(step)
            for index in range(len(block) - 1, -1, -1):
                if block[index] == 10 and position + index != size - 1:
                    seen += 1
                    if seen == lines:
                        return position + index + 1
    return 0


def write_kubeconfig(path: Path, port: int, token: str, certificate: bytes) -> None:
    """Writes a kubeconfig (mode 0600) with the context `greenthread-local`."""
    cluster = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority-data": base64.b64encode(certificate).decode(),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": CONTEXT, "user": {"token": token}}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT, "namespace": "default"}}],
        "current-context": CONTEXT,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, (json.dumps(config, indent=2) + "\n").encode())


def load_token(path: Path) -> str:
    """The token of this state folder, made on first use (mode 0600)."""
    with contextlib.suppress(FileNotFoundError):
        token = path.read_text().strip()
        if token:
            return token
    token = secrets.token_urlsafe(32)
    write_private(path, (token + "\n").encode())
    return token


async def serve(api: Api, folder: Path, port: int, kubeconfig: Path, token: str, audit: AuditLog | None = None) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code. `folder` keeps the certificate."""
    server = Server(api, audit)
    tls, certificate = load_certificate(folder, api.clock.now())
    try:
        real = await server.start(port, tls)
    except OSError as error:
        why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        print(f"error: cannot listen on 127.0.0.1:{port}: {why}. Choose another --port, or 0 for any", file=sys.stderr)
        return 1
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        write_kubeconfig(kubeconfig, real, token, certificate)
    except OSError as error:
        print(f"error: cannot write {kubeconfig}: {error.strerror}", file=sys.stderr)
        await server.stop()
        return 1
    print(f"ready: https://127.0.0.1:{real} (kubeconfig {kubeconfig})", flush=True)
    await stop.wait()
    await server.stop()
    return 0
