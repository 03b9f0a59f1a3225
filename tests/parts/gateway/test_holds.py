"""Requests for a Model without a pod that can take them, and the choice among pods."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.app import Gateway
from gateway.settings import Settings
from greenthread.kube.aio import AsyncClient
from greenthread.kube.resources import ENDPOINT_SLICES, MODELS
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.server import Server
from localcluster.api.storage import Store
from tests.parts.gateway.test_routes import CHAT, error, pod
from tests.parts.gateway.world import (
    SYSTEM,
    Ticking,
    World,
    install,
    model_object,
    play,
    reply_json,
    request,
    slice_object,
    world,
)
from tests.unit.proxy.harness import Answer, Client

KEY = (SYSTEM, "llama")


async def asked(w: World, count: int = 1) -> list[asyncio.Task[Answer]]:
    """Requests that are held."""
    before = w.gateway.holds.held
    tasks = [asyncio.create_task(w.post(f"/llama{CHAT}", {"n": i})) for i in range(count)]
    await w.until(lambda: w.gateway.holds.held == before + count)
    return tasks


async def test_a_request_is_held_until_an_endpoint_appears() -> None:
    async with world() as w:
        await w.model("llama")
        tasks = await asked(w, 5)
        await w.sidecar("llama")
        answers = await asyncio.gather(*tasks)
        assert [pod(a) for a in answers] == ["llama-0"] * 5
        assert answers[0].headers["server-timing"].startswith("hold;dur=")
        assert w.gateway.holds.held == 0


async def test_held_for_too_long_is_a_503_with_the_reason() -> None:
    async with world(hold_timeout=0.05) as w:
        await w.model("llama")
        condition = {
            "type": "Ready", "status": "False", "reason": "Booting", "message": "first boot, 40 s left",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        await w.status("llama", phase="Staging", conditions=[condition])
        await w.until(lambda: w.gateway.directory.models[KEY].status.phase == "Staging")
        answer = await w.post(f"/llama{CHAT}", {})
        assert (answer.status, error(answer)["code"]) == (503, "model_not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        assert "phase Staging: first boot, 40 s left" in error(answer)["message"]
        anthropic = await w.post("/llama/v1/messages", {})
        assert error(anthropic)["type"] == "overloaded_error"


async def test_the_number_of_held_requests_is_limited() -> None:
    async with world(max_held=2) as w:
        await w.model("llama")
        await asked(w, 2)
        answer = await w.post(f"/llama{CHAT}", {})
        assert (answer.status, error(answer)["code"]) == (503, "overloaded")
        await w.sidecar("llama")


async def test_nobody_waits_in_vain() -> None:
    async with world() as w:
        await w.model("llama")
        (task,) = await asked(w)
        await w.status("llama", phase="Failed")
        answer = await task
        assert (answer.status, error(answer)["code"]) == (503, "model_failed")
        await w.status("llama", phase="Pending")
        await w.until(lambda: w.gateway.directory.models[KEY].status.phase == "Pending")
        (task,) = await asked(w)
        await w.client.delete(MODELS, "llama", SYSTEM)
        assert error(await task)["code"] == "model_not_found"
        await w.model("empty", replicas=0)
        answer = await w.post(f"/empty{CHAT}", {})
        assert (answer.status, "replicas: 0" in error(answer)["message"]) == (503, True)


async def test_a_held_client_that_leaves_is_dropped() -> None:
    async with world() as w:
        await w.model("llama")
        client = await w.connect()
        await client.send(request(f"/llama{CHAT}", {}))
        await w.until(lambda: w.gateway.holds.held == 1)
        client.close()
        await w.until(lambda: w.gateway.holds.held == 0)
        sidecar = await w.sidecar("llama")
        assert sidecar.requests == []


async def test_an_endpoint_that_cannot_be_connected_to_is_passed_over() -> None:
    async with world() as w:
        await w.model("llama")
        await w.slice("llama", "dead", 1)
        await w.sidecar("llama", "alive")
        for _ in range(3):
            assert pod(await w.post(f"/llama{CHAT}", {})) == "alive"


async def test_an_endpoint_that_cannot_be_connected_to_is_tried_again() -> None:
    async with world(avoid_unreachable=0.02, hold_timeout=0.3) as w:
        await w.model("llama")
        await w.slice("llama", "dead", 1)
        answer = await w.post(f"/llama{CHAT}", {})
        assert (answer.status, error(answer)["code"]) == (503, "model_not_ready")
        assert "cannot be connected to" in error(answer)["message"]


async def test_not_run_goes_to_another_endpoint_or_waits_for_one() -> None:
    def leaving(head: bytes, body: bytes) -> bytes:
        return reply_json({}, "503 Service Unavailable", "X-GreenThread-Not-Run: true\r\n")

    async with world() as w:
        await w.model("llama")
        old = await w.sidecar("llama", "old")
        old.reply = leaving
        for path, value in ((f"/llama{CHAT}", {"a": "x" * 100_000}), (CHAT, {"model": "llama", "a": "x" * 3_000_000})):
            task = asyncio.create_task(w.post(path, value))
            await w.until(lambda: w.gateway.holds.held == 1)
            new = await w.sidecar("llama", "new")
            assert pod(await task) == "new"
            assert json.loads(new.requests[-1][1]) == value
            await w.remove_slice("llama", "new")
            w.gateway.holds.of(KEY)._avoid.clear()
        assert len(old.requests) == 2


async def test_a_pod_that_serves_is_preferred_then_the_least_busy() -> None:
    async with world() as w:
        await w.model("llama")
        a, b = await w.sidecar("llama", "a"), await w.sidecar("llama", "b")
        for name in ("b", "a"):
            await w.serving(name)
            assert [pod(await w.post(f"/llama{CHAT}", {})) for _ in range(3)] == [name] * 3
        await w.serving("a", "b")
        go = asyncio.Event()
        for sidecar in (a, b):
            script = sidecar.upstream.script

            async def slow(upstream, reader, writer, script=script):  # type: ignore[no-untyped-def]
                await go.wait()
                await script(upstream, reader, writer)

            sidecar.upstream.script = slow
        w.gateway.server.pool.close()
        tasks = [asyncio.create_task(w.post(f"/llama{CHAT}", {})) for _ in range(6)]
        gate = w.gateway.holds.of(KEY)
        await w.until(lambda: sum(gate.in_flight.values()) == 6)
        assert sorted(gate.in_flight.values()) == [3, 3]
        go.set()
        await asyncio.gather(*tasks)
        assert gate.in_flight == {}


async def test_ready_endpoints_first_terminating_ones_if_there_is_nothing_else() -> None:
    async with world() as w:
        await w.model("llama")
        await w.sidecar("llama", "booting", ready=False, serving=False)
        (task,) = await asked(w)
        await w.sidecar("llama", "leaving", ready=False, serving=True, terminating=True)
        assert pod(await task) == "leaving"
        await w.sidecar("llama", "fresh")
        assert pod(await w.post(f"/llama{CHAT}", {})) == "fresh"


class Slow(InProcess):
    """A way to an API that answers no list until it is told to."""

    def __init__(self, api: Api) -> None:
        super().__init__(api)
        self.go = asyncio.Event()

    async def request(self, method: str, *given: Any) -> Any:
        if method == "GET":
            await self.go.wait()
        return await super().request(method, *given)


@asynccontextmanager
async def starting(**options: Any) -> AsyncIterator[tuple[World, Slow]]:
    """A gateway that knows nothing of a cluster with one model yet, until `go` is set."""
    api = Api(Store(":memory:"))
    client = AsyncClient(InProcess(api))
    await install(client)
    sidecar = await play("llama-0")
    await client.create(MODELS, model_object("llama"))
    await client.create(ENDPOINT_SLICES, slice_object("llama", "llama-0", sidecar.upstream.port))
    slow = Slow(api)
    gateway = Gateway(Settings(port=0, grace=1.0, **options), AsyncClient(slow))
    made = World(client, gateway, Ticking(), await gateway.start(), [sidecar])
    try:
        async with asyncio.timeout(60):
            yield made, slow
    finally:
        for connection in made.clients:
            connection.close()
        await gateway.stop()
        sidecar.stop()


async def test_a_gateway_that_starts_holds_requests_until_it_knows_the_cluster() -> None:
    async with starting() as (w, slow):
        large = {"model": "llama", "prompt": "x" * 200_000}  # more than is read of a body that waits
        tasks = [
            asyncio.create_task(request)
            for request in (
                w.post(f"/llama{CHAT}", {}),
                w.post(CHAT, {"model": "llama"}),
                w.post(CHAT, large),
                w.get("/v1/models"),
                w.post(f"/nobody{CHAT}", {}),
            )
        ]
        await w.until(lambda: w.gateway.holds.held == 5)
        assert (await w.get("/health")).status == 503
        assert (await w.get("/live")).status == 200
        slow.go.set()
        named, by_body, long, models, unknown = await asyncio.gather(*tasks)
        assert [pod(answer) for answer in (named, by_body, long)] == ["llama-0"] * 3
        assert named.headers["server-timing"].startswith("start;dur=")
        assert {json.loads(body).get("prompt") for _, body in w.sidecars[0].requests} == {None, "x" * 200_000}
        assert (models.status, unknown.status) == (200, 404)
        assert w.gateway.holds.held == 0
        assert (await w.get("/health")).status == 200


async def test_a_gateway_that_does_not_come_to_know_the_cluster_says_so() -> None:
    async with starting(hold_timeout=0.05, max_held=1) as (w, _):
        answer = await w.post(f"/llama{CHAT}", {})
        assert (answer.status, error(answer)["code"], answer.headers["retry-after"]) == (503, "starting", "1")
        assert "it has not read the endpointslices and models yet" in error(answer)["message"]
    async with starting(max_held=1) as (w, _):
        at_once = request(f"/llama{CHAT}", {}).replace(b"Host: x", b"Host: x\r\nX-GreenThread-Max-Wait: 0s")
        assert error(await w.ask(at_once))["code"] == "starting"
        held = asyncio.create_task(w.post(f"/llama{CHAT}", {}))
        await w.until(lambda: w.gateway.holds.held == 1)
        assert error(await w.post(f"/llama{CHAT}", {}))["code"] == "overloaded"
        w.gateway.holds.stop()
        answer = await held
        assert (answer.status, error(answer)["code"]) == (503, "restarting")
        assert error(await w.post(f"/llama{CHAT}", {}))["code"] == "restarting"


async def test_who_leaves_a_gateway_that_starts_is_held_no_longer() -> None:
    async with starting() as (w, slow):
        client = await w.connect()
        await client.send(request(f"/llama{CHAT}", {}))
        await w.until(lambda: w.gateway.holds.held == 1)
        client.close()
        await w.until(lambda: w.gateway.holds.held == 0)
        slow.go.set()
        await w.gateway.ready()
        assert pod(await w.post(f"/llama{CHAT}", {})) == "llama-0"
        assert len(w.sidecars[0].requests) == 1


async def test_a_stop_tells_who_is_held_and_lets_the_rest_finish() -> None:
    async with world() as w:
        await w.model("llama")
        await w.model("qwen")
        sidecar = await w.sidecar("qwen")
        script, go = sidecar.upstream.script, asyncio.Event()

        async def slow(upstream, reader, writer):  # type: ignore[no-untyped-def]
            await go.wait()
            await script(upstream, reader, writer)

        sidecar.upstream.script = slow
        busy = asyncio.create_task(w.post(f"/qwen{CHAT}", {}))
        (held,) = await asked(w)
        await w.until(lambda: sidecar.upstream.connections == 1)
        stopping = asyncio.create_task(w.gateway.stop())
        answer = await held
        assert (answer.status, error(answer)["code"], answer.headers["connection"]) == (503, "restarting", "close")
        assert not stopping.done()
        go.set()
        assert pod(await busy) == "qwen-0"
        await stopping


async def test_metrics() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async def scrape() -> dict[tuple[str, str, str], float]:
        families = text_string_to_metric_families((await w.get("/metrics")).body.decode())
        samples = [sample for family in families for sample in family.samples]
        return {(s.name, s.labels.get("model", "-"), s.labels.get("code", "-")): s.value for s in samples}

    async with world() as w:
        await w.model("llama")
        await w.sidecar("llama")
        for _ in range(3):
            await w.post(f"/llama{CHAT}", {})
        for i in range(50):
            await w.post(f"/nobody{i}{CHAT}", {})
        found = await scrape()
        assert found["gthread_apiserver_requests_total", f"{SYSTEM}/llama", "200"] == 3
        assert found["gthread_apiserver_requests_total", "", "404"] == 50, "unknown names make no series"
        assert found["gthread_apiserver_request_duration_seconds_count", f"{SYSTEM}/llama", "-"] == 3
        assert found["gthread_apiserver_in_flight_requests", "-", "-"] == 1, "this very scrape"
        assert found["gthread_apiserver_models", "-", "-"] == 1
        await w.client.delete(MODELS, "llama", SYSTEM)
        await w.until(lambda: not w.gateway.directory.models)
        assert not any(f"{SYSTEM}/llama" in key for key in await scrape()), "a deleted model's series go with it"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"HTTP_PORT": "x"}, "HTTP_PORT='x' is not a port"),
        ({"HOLD_TIMEOUT": "5 minutes"}, "HOLD_TIMEOUT='5 minutes'"),
        ({"KUBECONFIG": "/nonexistent"}, "gateway: "),
    ],
)
async def test_what_is_wrong_at_the_start_is_one_line(env: dict[str, str], words: str) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env={"PATH": "/usr/bin", **env}, stderr=asyncio.subprocess.PIPE
    )
    _, said = await program.communicate()
    assert program.returncode == 1
    assert words in said.decode()
    assert "Traceback" not in said.decode()


@pytest.mark.processes
async def test_the_program_drains_on_sigterm(tmp_path: Path) -> None:
    """`python -m gateway` against the API over HTTP: a request in flight is finished, then it ends with 0."""
    api = Api(Store(":memory:"), token="t")
    server = Server(api)
    api_port = await server.start()
    kubeconfig = tmp_path / "kubeconfig"
    scheme = {"clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{api_port}"}}]}
    user = {"users": [{"name": "u", "user": {"token": "t"}}], "current-context": "x"}
    context = {"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}
    kubeconfig.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **scheme, **user, **context}))
    client = AsyncClient(InProcess(api, token="t"))
    await install(client)
    sidecar = await play("llama-0")
    go, script = asyncio.Event(), sidecar.upstream.script

    async def slow(upstream, reader, writer):  # type: ignore[no-untyped-def]
        sidecar.upstream.reached.set()
        await go.wait()
        await script(upstream, reader, writer)

    sidecar.upstream.script = slow
    await client.create(MODELS, model_object("llama"))
    await client.create(ENDPOINT_SLICES, slice_object("llama", "llama-0", sidecar.upstream.port))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"PATH": "/usr/bin", "KUBECONFIG": str(kubeconfig), "HTTP_PORT": str(port)}
    program = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", env=env)
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    raw = Client(*await asyncio.open_connection("127.0.0.1", port))
                    if (await raw.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200:
                        break
                except OSError:
                    await asyncio.sleep(0.05)
            await raw.send(request(f"/llama{CHAT}", {}))
            await sidecar.upstream.reached.wait()
            program.send_signal(signal.SIGTERM)
            while True:  # it no longer listens
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    await asyncio.sleep(0.02)
                except OSError:
                    break
            go.set()
            assert pod(await raw.answer()) == "llama-0"
            raw.close()
            assert await program.wait() == 0
    finally:
        if program.returncode is None:
            program.kill()
        sidecar.stop()
        await server.stop()
