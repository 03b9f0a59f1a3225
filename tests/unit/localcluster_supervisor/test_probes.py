"""Probes: what counts as healthy, and how many results in a row make a verdict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from localcluster.supervisor.probes import Streak, Timing, Unhealthy, check


class FakeContainer:
    """Knows one named port; a command's status is its first word."""

    def __init__(self, number: int) -> None:
        self.number = number

    def port(self, port: int | str) -> int:
        if port == "http":
            return self.number
        if isinstance(port, int):
            return port
        raise Unhealthy(f"the pod has no port named {port!r}")

    async def execute(self, argv: list[str]) -> int:
        if argv == ["hang"]:
            await asyncio.Event().wait()
        return int(argv[0])


@pytest.fixture
async def target() -> AsyncIterator[FakeContainer]:
    """A server that answers `/<status>`; on `/close`, `/silent` and `/nonsense` it does that."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1].decode()
        try:
            if path == "/silent":
                await reader.read()
            elif path == "/nonsense":
                writer.write(b"SSH-2.0-x\r\n")
            elif path != "/close":
                writer.write(f"HTTP/1.1 {path[1:]} x\r\n\r\n".encode())
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield FakeContainer(server.sockets[0].getsockname()[1])
    server.close()


def http(path: str, port: int | str = "http") -> dict:
    return {"httpGet": {"path": path, "port": port}}


@pytest.mark.parametrize("path", ["/200", "/204", "/302", "/399"])
async def test_http_below_400_is_healthy(target: FakeContainer, path: str) -> None:
    await check(http(path), target, "127.0.0.1", 5)


@pytest.mark.parametrize(
    ("path", "why"),
    [("/400", "status 400"), ("/503", "status 503"), ("/close", "not HTTP"), ("/nonsense", "not HTTP")],
)
async def test_http_that_is_not_healthy(target: FakeContainer, path: str, why: str) -> None:
    with pytest.raises(Unhealthy, match=why):
        await check(http(path), target, "127.0.0.1", 5)


async def test_silence_ends_with_the_timeout(target: FakeContainer) -> None:
    with pytest.raises(Unhealthy, match=r"within 0\.05 s"):
        await check(http("/silent"), target, "127.0.0.1", 0.05)


async def test_ports(target: FakeContainer) -> None:
    await check({"tcpSocket": {"port": "http"}}, target, "127.0.0.1", 5)
    with pytest.raises(Unhealthy, match="no port named 'grpc'"):
        await check(http("/200", "grpc"), target, "127.0.0.1", 5)
    with pytest.raises(Unhealthy, match="no connection"):
        await check({"tcpSocket": {"port": 1}}, target, "127.0.0.1", 5)


async def test_commands(target: FakeContainer) -> None:
    await check({"exec": {"command": ["0"]}}, target, "127.0.0.1", 5)
    with pytest.raises(Unhealthy, match="status 2"):
        await check({"exec": {"command": ["2"]}}, target, "127.0.0.1", 5)
    with pytest.raises(Unhealthy, match="no answer"):
        await check({"exec": {"command": ["hang"]}}, target, "127.0.0.1", 0.05)


async def test_an_unsupported_kind_fails_and_says_so(target: FakeContainer) -> None:
    with pytest.raises(Unhealthy, match="httpGet, tcpSocket or exec"):
        await check({"grpc": {"port": 1}}, target, "127.0.0.1", 5)


def test_kubernetes_defaults() -> None:
    assert Timing.of({}) == Timing(initial_delay=0, period=10, timeout=1, successes=1, failures=3)


def test_a_verdict_needs_its_results_in_a_row() -> None:
    streak = Streak(Timing.of({"successThreshold": 2, "failureThreshold": 3}))
    results = [True, True, False, False, True, False, False, False, False, True, True]
    verdicts = [streak.add(result) for result in results]
    assert verdicts == [None, True, None, None, None, None, None, False, False, None, True]
