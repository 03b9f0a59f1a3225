"""Answers as they stream, and what goes wrong on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from greenthread.chat import Chat, ChatError, Kind
from greenthread.kube.blocking import Client
from greenthread.kube.config import ClusterConfig
from greenthread.kube.errors import KubeError, Unreachable
from greenthread.prometheus import Prometheus, PrometheusError, find, model_numbers, sparkline
from greenthread.reach import Address, NoGateway, find_gateway
from tests.unit.greenthread_kube.scripted import Answer, Asked, Server, status

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Asked], Answer]], Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[Asked], Answer]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def chat(server: Server, through_api: bool = False) -> Chat:
    client = Client(ClusterConfig(server.url, token="secret"), timeout=5)
    path = "/api/v1/namespaces/gt/services/gateway:http/proxy" if through_api else ""
    return Chat(client, Address(f"{server.url}{path}", "a test", path), "ns", "llama")


def chunk(**delta: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


STREAM = [
    b": waiting for memory\n\n",
    chunk(role="assistant", content=""),
    chunk(reasoning_content="hm"),
    chunk(content="Hel") + chunk(content="lo")[:9],
    chunk(content="lo")[9:],
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\r\n\r\n',
    b'data: {"choices": [], "usage": {"completion_tokens": 2, "details": null}}\n\ndata: [DONE]\n\n',
]


@pytest.mark.parametrize("through_api", [False, True])
def test_pieces_come_in_order(serve, through_api: bool) -> None:
    server = serve(lambda asked: Answer(chunks=STREAM, headers={"server-timing": "wake;dur=540"}))
    pieces = list(chat(server, through_api).ask(MESSAGES, temperature=0))
    assert [(piece.kind, piece.text) for piece in pieces] == [
        (Kind.BEGIN, "wake;dur=540"), (Kind.COMMENT, "waiting for memory"), (Kind.THINKING, "hm"), (Kind.TEXT, "Hel"),
        (Kind.TEXT, "lo"), (Kind.END, "stop"),
    ]  # fmt: skip
    assert pieces[-1].usage == {"completion_tokens": 2}
    [asked] = server.asked
    prefix = "/api/v1/namespaces/gt/services/gateway:http/proxy" if through_api else ""
    assert (asked.method, asked.path) == ("POST", f"{prefix}/ns/llama/v1/chat/completions")
    assert (asked.body["stream"], asked.body["temperature"], asked.body["messages"]) == (True, 0, MESSAGES)
    # the cluster's token is for the API server alone
    assert asked.headers.get("authorization") == ("Bearer secret" if through_api else None)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(503, {"error": {"message": "big is pinned", "code": 503}}, {"retry-after": "5"}), "big is pinned"),
        (status(403, "Forbidden", "you may not"), "you may not"),
        (Answer(502, b"<html>bad</html>"), "the gateway answered 502: <html>bad</html>"),
        (Answer(chunks=[chunk(content="Hel")]), "cut off"),
        (Answer(chunks=[b'data: {"error": {"message": "the engine died"}}\n\n']), "the engine died"),
        (Answer(chunks=[b"data: nonsense\n\n"]), "not JSON"),
    ],
)
def test_what_goes_wrong_is_said(serve, answer: Answer, message: str) -> None:
    with pytest.raises(ChatError, match=message) as caught:
        list(chat(serve(lambda asked: answer)).ask(MESSAGES))
    if answer.headers:
        assert (caught.value.status, caught.value.retry_after) == (503, 5.0)


def test_stop_ends_a_wait_from_another_thread(serve) -> None:
    arrived = threading.Event()

    def silence() -> Iterator[bytes]:
        server.closing.wait(10)
        yield b""

    def reply(asked: Asked) -> Answer:
        arrived.set()
        return Answer(chunks=silence())

    server = serve(reply)
    talk = chat(server)
    pieces: list[object] = []
    reader = threading.Thread(target=lambda: pieces.extend(talk.ask(MESSAGES)))
    reader.start()
    assert arrived.wait(5)
    while reader.is_alive():
        talk.stop()
        reader.join(0.05)
    assert len(pieces) <= 1


def objects(server_objects: dict[str, object]) -> Callable[[Asked], Answer]:
    def reply(asked: Asked) -> Answer:
        found = server_objects.get(asked.path)
        return status(404, "NotFound", name="x") if found is None else Answer(body=found)

    return reply


EMPTY = {"metadata": {"resourceVersion": "1"}, "items": []}
SERVICE = {"metadata": {"name": "greenthread-apiserver", "namespace": "greenthread-system"},
           "spec": {"ports": [{"name": "http", "port": 80}]}}  # fmt: skip
AT_SERVICE = "/api/v1/namespaces/greenthread-system/services/greenthread-apiserver"
AT_GATEWAY = "/apis/gateway.networking.k8s.io/v1/namespaces/greenthread-system/gateways/greenthread"


def reach(server: Server) -> Address:
    return find_gateway(Client(ClusterConfig(server.url), timeout=5))


def test_the_gateway_of_a_cluster_is_found_by_what_it_announces(serve) -> None:
    pods, models = "/api/v1/namespaces/greenthread-system/pods", "/apis/greenthread.ai/v1alpha1/models"
    services = "/api/v1/namespaces/greenthread-system/services"
    known: dict[str, object] = {pods: EMPTY, models: EMPTY, "/api/v1/services": EMPTY, services: EMPTY}
    server = serve(objects(known))
    with pytest.raises(NoGateway, match="--url"):
        reach(server)
    known[AT_SERVICE] = SERVICE
    assert reach(server).path == f"{AT_SERVICE}:http/proxy"
    known[AT_SERVICE] = SERVICE | {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
    assert reach(server).url == "http://192.0.2.7:80"
    listener = {"protocol": "HTTPS", "port": 8443}
    known[AT_GATEWAY] = {
        "metadata": {},
        "spec": {"listeners": [listener]},
        "status": {"addresses": [{"value": "fd00::1"}]},
    }
    assert reach(server).url == "https://[fd00::1]:8443"
    known[models] = {**EMPTY, "items": [{"metadata": {}, "status": {"url": "http://127.0.0.1:4321/a/v1"}}]}
    assert reach(server).url == "http://127.0.0.1:4321"
    found = find_gateway(Client(ClusterConfig(server.url), timeout=5), "http://mine:1/v1")
    assert found.url == "http://mine:1"


def test_no_address_is_refused(serve) -> None:
    with pytest.raises(NoGateway, match="write it like"):
        find_gateway(Client(ClusterConfig("http://127.0.0.1:1")), "mine:1")


def vector(*samples: tuple[str, str, str]) -> dict[str, object]:
    result = [
        {"metric": {"namespace": "ns", "model": model, "ask": ask}, "value": [0, value]}
        for model, ask, value in samples
    ]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


def test_prometheus_knows_models(serve) -> None:
    matrix = {
        "resultType": "matrix",
        "result": [{"metric": {"namespace": "ns", "model": "a"}, "values": [[1, "0"], [2, "3"]]}],
    }

    def reply(asked: Asked) -> Answer:
        if asked.path.endswith("query_range"):
            return Answer(body={"status": "success", "data": matrix})
        return Answer(body=vector(("a", "rate", "1.5"), ("a", "p50", "0.5"), ("a", "p99", "NaN"), ("b", "rate", "0")))

    server = serve(reply)
    client = Client(ClusterConfig(server.url))
    address = find(client, server.url, {})
    assert address is not None
    known = model_numbers(Prometheus(client, address), 1000.0)
    assert known["ns", "a"].requests == 1.5
    assert (known["ns", "a"].wake_p50, known["ns", "a"].wake_p99, known["ns", "a"].history) == (0.5, None, (0.0, 3.0))
    assert known["ns", "b"].history == ()


@pytest.mark.parametrize(
    "answer",
    [Answer(500, b"oh"), Answer(200, b"<html>"), Answer(body={"status": "error", "error": "bad"}), Answer(body=[]),
     Answer(body={"status": "success", "data": {"resultType": "vector", "result": [{}]}}),
     Answer(body={"status": "success", "data": {"resultType": "scalar", "result": []}})],
)  # fmt: skip
def test_a_wrong_prometheus_is_an_error_of_its_own(serve, answer: Answer) -> None:
    server = serve(lambda asked: answer)
    with pytest.raises(PrometheusError, match="rometheus"):
        Prometheus(Client(ClusterConfig(server.url)), Address(server.url, "a test")).query("up")


def test_where_prometheus_is_looked_for(serve) -> None:
    found = {
        **EMPTY,
        "items": [{"metadata": {"name": "prom", "namespace": "mon"}, "spec": {"ports": [{"port": 9090}]}}],
    }
    server = serve(
        lambda asked: Answer(body=found if "kube-prometheus-stack" in asked.params["labelSelector"] else EMPTY)
    )
    config = ClusterConfig(server.url)
    address = find(Client(config), "", {})
    assert address is not None
    assert address.path == "/api/v1/namespaces/mon/services/prom:9090/proxy"
    assert find(Client(config), "", {"GREENTHREAD_PROMETHEUS": "none"}) is None
    extended = ClusterConfig(server.url, extension={"prometheus": "http://p:1/"})
    address = find(Client(extended), "", {})
    assert address is not None
    assert (address.url, address.path) == ("http://p:1", "")
    with pytest.raises(KubeError, match="write it like"):
        find(Client(config), "p", {})


def test_no_prometheus_at_the_address() -> None:
    with pytest.raises(PrometheusError, match="by a test"):
        Prometheus(Client(ClusterConfig("http://127.0.0.1:1")), Address("http://127.0.0.1:1", "a test")).query("up")
    with pytest.raises(Unreachable):
        Address("http://127.0.0.1:1", "a test").open(Client(ClusterConfig("http://127.0.0.1:1")), "GET", "/")


def test_sparklines_are_to_scale() -> None:
    assert sparkline([0, 1, 2, 4], 4) == "▁▃▅█"
    assert sparkline([0, 0], 8) == "▁▁"
    assert sparkline([9, 1, 2], 2) == "▅█"
    assert sparkline([], 3) == ""
