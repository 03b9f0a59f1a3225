"""kopf over real HTTP against the embedded API: it tells the controller everything and writes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from controller import operator
from controller.core import WATCHED
from greenthread.kube.config import ClusterConfig
from greenthread.kube.resources import MODELS, PODS, SERVICES
from localcluster.api.core import Api
from localcluster.api.server import Server

from .builders import make_model, new_cluster


class Listener:
    """In the controller's place: keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None, str]] = []
        self.news = asyncio.Event()

    def observe(self, resource: Any, kind: str | None, obj: Any) -> None:
        self.told.append((resource.plural, kind, obj["metadata"]["name"]))
        self.news.set()

    async def hears(self, *news: tuple[str, str | None, str]) -> None:
        async with asyncio.timeout(10):
            while not set(news) <= set(self.told):
                self.news.clear()
                await self.news.wait()


async def test_every_change_is_told_and_nothing_is_written(monkeypatch: Any) -> None:
    api, client = await new_cluster({"node-a": 1})
    requests: list[tuple[str, str, dict[str, str]]] = []
    handle = Api.handle

    def recorded(self: Api, request: Any) -> Any:
        if not request.headers.get("user-agent", "").startswith("greenthread"):
            requests.append((request.method, request.path, dict(request.query)))
        return handle(self, request)

    monkeypatch.setattr(Api, "handle", recorded)
    server = Server(api)
    port = await server.start()
    config = ClusterConfig(server=f"http://127.0.0.1:{port}", token="any")
    await make_model(client, "before")
    listener, stop = Listener(), asyncio.Event()
    watching = asyncio.create_task(operator.watch(listener, config, stop))  # type: ignore[arg-type]
    try:
        await listener.hears(("models", None, "before"), ("gpus", None, "node-a-0"))
        await make_model(client, "after")
        await client.patch(MODELS, "after", {"spec": {"replicas": 2}}, "team")
        await client.create(SERVICES, {"metadata": {"name": "foreign"}, "spec": {"ports": [{"port": 80}]}}, "team")
        ours = {"name": "ours", "labels": {"app.kubernetes.io/managed-by": "greenthread"}}
        await client.create(SERVICES, {"metadata": ours, "spec": {"ports": [{"port": 80}]}}, "team")
        spec = {"containers": [{"name": "x", "image": "x"}]}
        await client.create(PODS, {"metadata": {"name": "foreign"}, "spec": spec}, "team")
        await client.create(
            PODS, {"metadata": {"name": "p", "labels": {"greenthread.ai/model": "m"}}, "spec": spec}, "team"
        )
        await client.delete(MODELS, "before", "team")
        await listener.hears(
            ("models", "ADDED", "after"),
            ("models", "MODIFIED", "after"),
            ("models", "DELETED", "before"),
            ("services", "ADDED", "ours"),
            ("pods", "ADDED", "p"),
        )
    finally:
        watching.cancel()  # asked to stop it waits 5 s for every younger task, the server's too
        await asyncio.wait([watching])
        await server.stop()
    assert "foreign" not in {name for _, _, name in listener.told}
    assert {method for method, _, _ in requests} == {"GET"}
    watches = {path.rpartition("/")[2]: query for _, path, query in requests if query.get("watch")}
    assert watches.keys() == {resource.plural for resource in WATCHED}
    assert all(int(query["timeoutSeconds"]) == operator.SERVER_TIMEOUT for query in watches.values())
    after = await client.get(MODELS, "after", "team")
    assert "annotations" not in after["metadata"]
    assert "finalizers" not in after["metadata"]


def test_credentials_are_kopfs_too() -> None:
    token = operator.connection(ClusterConfig(server="https://x", token="t", ca=b"pem"))
    assert token.as_http_headers() == {"Authorization": "Bearer t"}
    assert token.ca_data == b"pem"
    certificate = operator.connection(ClusterConfig(server="https://x", client_certificate=b"c", client_key=b"k"))
    assert (certificate.certificate_data, certificate.private_key_data) == (b"c", b"k")
    assert certificate.as_http_headers() == {}
