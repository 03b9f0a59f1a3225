"""Startup, readiness and liveness probes, with Kubernetes' fields and defaults."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Object = dict[str, Any]

#: Bytes of an answer that are looked at: its status line.
STATUS_LINE = 4096


class Unhealthy(Exception):
    """A probe failed; the message says how."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and counts as Kubernetes defines and defaults them."""

    initial_delay: float
    period: float
    timeout: float
    successes: int
    failures: int

    @classmethod
    def of(cls, probe: Object) -> Timing:
        return cls(
            initial_delay=float(probe.get("initialDelaySeconds") or 0),
            period=float(probe.get("periodSeconds") or 10),
            timeout=float(probe.get("timeoutSeconds") or 1),
            successes=int(probe.get("successThreshold") or 1),
            failures=int(probe.get("failureThreshold") or 3),
        )


class Target(Protocol):
    """The container that is probed."""

    def port(self, port: int | str) -> int:
        """The number on this machine; raises Unhealthy for a name that it does not have."""

    async def execute(self, argv: list[str]) -> int:
        """Run a command as the container would, killed when cancelled; the exit status. Raises Unhealthy."""


async def check(probe: Object, target: Target, address: str, timeout: float) -> None:
    """Ask once. Raises Unhealthy."""
    try:
        async with asyncio.timeout(timeout):
            if "httpGet" in probe:
                await _http_get(probe["httpGet"], target, address)
            elif "tcpSocket" in probe:
                socket = probe["tcpSocket"]
                _, writer = await asyncio.open_connection(socket.get("host") or address, target.port(socket["port"]))
                writer.close()
            elif "exec" in probe:
                code = await target.execute(probe["exec"].get("command") or [])
                if code != 0:
                    raise Unhealthy(f"the command ended with status {code}")
            else:
                raise Unhealthy("this kind of probe is not supported on one machine; use httpGet, tcpSocket or exec")
    except TimeoutError:
        raise Unhealthy(f"no answer within {timeout:g} s") from None
    except OSError as error:
        raise Unhealthy(f"no connection: {error.strerror or error}") from error


async def _http_get(action: Object, target: Target, address: str) -> None:
    host = action.get("host") or address
    port = target.port(action["port"])
    path = action.get("path") or "/"
    context: ssl.SSLContext | None = None
    if action.get("scheme") == "HTTPS":  # as in Kubernetes, the certificate is not looked at
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=STATUS_LINE)
    try:
        fields = {
            "Host": f"{host}:{port}",
            "User-Agent": "kube-probe/greenthread",
            "Accept": "*/*",
            "Connection": "close",
        }
        fields |= {header["name"]: header["value"] for header in action.get("httpHeaders") or []}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        try:
            line = await reader.readline()
        except ValueError:
            raise Unhealthy("the answer is not HTTP") from None
    finally:
        writer.close()
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise Unhealthy("the answer is not HTTP")
    if not 200 <= int(words[1]) < 400:
        raise Unhealthy(f"status {int(words[1])}")


class Streak:
    """Turns single results into verdicts: so many successes or failures in a row."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._count = 0
        self._last: bool | None = None

    def add(self, success: bool) -> bool | None:
        """The verdict that this result completes, None while the row is too short."""
        self._count = self._count + 1 if success == self._last else 1
        self._last = success
        return success if self._count >= (self._timing.successes if success else self._timing.failures) else None


async def watch(probe: Object, target: Target, address: str, verdict: Callable[[bool, str], None]) -> None:
    """Ask again and again until cancelled; `verdict(healthy, message)` at every result that completes a row."""
    timing = Timing.of(probe)
    streak = Streak(timing)
    await asyncio.sleep(timing.initial_delay)
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        message = ""
        try:
            await check(probe, target, address, timing.timeout)
        except Unhealthy as error:
            message = str(error)
        result = streak.add(not message)
        if result is not None:
            verdict(result, message)
        await asyncio.sleep(max(0.0, timing.period - (loop.time() - began)))
