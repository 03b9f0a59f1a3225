"""The API on HTTP: addresses, files, logs, the pods' proxy."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from localcluster.api.audit import AuditLog
from localcluster.api.certificate import load_certificate
from localcluster.api.pods import log_folder
from localcluster.api.server import Server, load_token, write_kubeconfig
from tests.parts.localcluster_api.builders import THINGS, HandClock, Local, thing

PODS = "/api/v1/namespaces/default/pods"


def add_pod(local: Local, **annotations: str) -> str:
    ports = [{"name": "http", "containerPort": 8080}]
    spec = {"nodeName": "n1", "containers": [{"name": "main", "image": "i", "ports": ports}]}
    made = local.ok("POST", PODS, {"metadata": {"name": "p", "annotations": annotations}, "spec": spec})
    return str(made["metadata"]["uid"])


@asynccontextmanager
async def served(local: Local) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    server = Server(local.api)
    port = await server.start()
    async with aiohttp.ClientSession() as session:
        yield session, f"http://127.0.0.1:{port}"
    await server.stop()


async def test_the_log_of_a_container(tmp_path: Path) -> None:
    local = Local(logs=log_folder(tmp_path))
    folder = tmp_path / f"default_p_{add_pod(local)}" / "main"
    folder.mkdir(parents=True)
    async with served(local) as (session, base):

        async def log(**query: str) -> tuple[int, str]:
            async with session.get(f"{base}{PODS}/p/log", params=query) as answer:
                return answer.status, await answer.text()

        status, text = await log()
        assert status == 400
        assert 'container \\"main\\" in pod \\"p\\" is waiting to start' in text
        (folder / "0.log").write_text("old\n")
        (folder / "1.log").write_text("one\ntwo\nthree\n")
        assert await log() == (200, "one\ntwo\nthree\n")
        assert await log(tailLines="2") == (200, "two\nthree\n")
        assert await log(tailLines="0") == (200, "")
        assert await log(limitBytes="5") == (200, "one\nt")
        assert await log(previous="true") == (200, "old\n")
        assert (await log(container="other"))[0] == 400
        assert (await log(tailLines="x"))[0] == 400


async def test_a_log_that_is_followed(tmp_path: Path) -> None:
    local = Local(logs=log_folder(tmp_path))
    folder = tmp_path / f"default_p_{add_pod(local)}" / "main"
    folder.mkdir(parents=True)
    (folder / "0.log").write_text("one\n")
    async with (
        served(local) as (session, base),
        session.get(f"{base}{PODS}/p/log", params={"follow": "true"}) as answer,
    ):
        assert await answer.content.readline() == b"one\n"
        with (folder / "0.log").open("a") as file:
            file.write("two\n")
        assert await asyncio.wait_for(answer.content.readline(), 5) == b"two\n"
        # it ends when the container has ended
        ended = [{"name": "main", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]
        patch = {"status": {"phase": "Succeeded", "containerStatuses": ended}}
        local.ok("PATCH", f"{PODS}/p/status", patch, "application/merge-patch+json")
        assert await asyncio.wait_for(answer.content.read(), 5) == b""


async def test_the_proxy_of_a_pod() -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.text()
        return web.json_response({"path": request.path_qs, "method": request.method, "body": body}, status=202)

    runner = web.ServerRunner(web.Server(echo))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    local = Local(token="secret")
    local.api._token = None
    add_pod(local, **{"greenthread.ai/ports": json.dumps({"http": port})})
    async with served(local) as (session, base):
        async with session.get(f"{base}{PODS}/p:http/proxy/status") as answer:
            assert answer.status == 503  # the pod has no address yet
        local.ok("PATCH", f"{PODS}/p/status", {"status": {"podIP": "127.0.0.1"}}, "application/merge-patch+json")
        async with session.post(f"{base}{PODS}/p:http/proxy/v1/chat?x=a%20b", data="hello") as answer:
            assert answer.status == 202
            assert await answer.json() == {"path": "/v1/chat?x=a%20b", "method": "POST", "body": "hello"}
        for name in ("p", "p:8080"):
            async with session.get(f"{base}{PODS}/{name}/proxy/") as answer:
                assert (await answer.json())["path"] == "/"
        async with session.get(f"{base}{PODS}/p:nothing/proxy/") as answer:
            assert answer.status == 503
        await runner.cleanup()
        async with session.get(f"{base}{PODS}/p:http/proxy/") as answer:
            assert answer.status == 503
            assert "error trying to reach the pod" in (await answer.json())["message"]


async def test_a_watch_ends_with_the_server_and_after_its_time() -> None:
    local = Local()
    local.add_things()
    async with served(local) as (session, base), session.get(f"{base}{THINGS}", params={"watch": "true"}) as answer:
        local.ok("POST", THINGS, thing("a"))
        event = json.loads(await answer.content.readline())
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "a")
        local.api.end_watches("things.test.example")
        assert await answer.content.read() == b""


async def test_a_body_without_end_is_cut_off() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    async with (
        served(Local()) as (session, base),
        session.post(f"{base}/api/v1/namespaces", data=endless()) as answer,
    ):
        assert answer.status == 413


async def test_the_audit_log_says_who_asked_what(tmp_path: Path) -> None:
    local = Local()
    log = AuditLog(tmp_path / "audit", HandClock())
    server = Server(local.api, log)
    url = f"http://127.0.0.1:{await server.start()}"
    async with aiohttp.ClientSession(headers={"User-Agent": "me", "Authorization": "Bearer secret"}) as session:
        for method, path in (
            ("GET", "/version"),
            ("GET", PODS),
            ("PATCH", f"{PODS}/p/status"),
            ("GET", "/apis/coordination.k8s.io/v1/leases?watch=1&timeoutSeconds=1"),
        ):
            async with session.request(method, url + path, data=b"secret" if method == "PATCH" else None) as answer:
                await answer.read()
    await server.stop()
    log.close()
    text = (tmp_path / "audit").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [(event["userAgent"], event["verb"], event["objectRef"]) for event in events] == [
        ("me", "get", {}),
        ("me", "list", {"namespace": "default", "resource": "pods"}),
        ("me", "patch", {"namespace": "default", "resource": "pods", "name": "p", "subresource": "status"}),
        ("me", "watch", {"apiGroup": "coordination.k8s.io", "resource": "leases"}),
    ]
    assert "secret" not in text


def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    token = load_token(tmp_path / "token")
    assert len(token) >= 32
    assert load_token(tmp_path / "token") == token
    _, certificate = load_certificate(tmp_path, HandClock().now())
    write_kubeconfig(tmp_path / "kubeconfig", 1234, token, certificate)
    for name in ("token", "kubeconfig", "server.pem"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    config = json.loads((tmp_path / "kubeconfig").read_text())
    assert config["current-context"] == "greenthread-local"
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1234"


def test_the_certificate_is_kept_until_it_nears_its_end(tmp_path: Path) -> None:
    clock = HandClock()
    first = load_certificate(tmp_path, clock.now())[1]
    assert load_certificate(tmp_path, clock.now())[1] == first
    clock.forward(3650 * 86400 - 86400)
    assert load_certificate(tmp_path, clock.now())[1] != first


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "localcluster.api", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_what_keeps_it_from_starting_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start("--state-dir", str(tmp_path / "a"), "--port", str(port))
    assert done.returncode == 1
    assert (
        done.stderr == f"error: cannot listen on 127.0.0.1:{port}: it is in use. Choose another --port, or 0 for any\n"
    )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "objects.sqlite").write_bytes(b"nonsense" * 1000)
    done = start("--state-dir", str(tmp_path / "b"))
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert "move the state folder away" in done.stderr
    assert done.stderr.count("\n") == 1
    (tmp_path / "c").write_text("a file")
    done = start("--state-dir", str(tmp_path / "c"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot use the state folder" in done.stderr
