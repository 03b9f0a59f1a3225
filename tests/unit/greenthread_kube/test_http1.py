"""The blocking connection: answers in order, whatever the server does with it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from greenthread.http1 import BadAnswer, Connection, split_address
from greenthread.kube.blocking import Client
from greenthread.kube.config import ClusterConfig
from greenthread.kube.core import ObjectList
from greenthread.kube.errors import Forbidden, Unreachable
from greenthread.kube.resources import GPUS, MODELS, PODS
from tests.unit.greenthread_kube.scripted import Answer, Asked, Server, status


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://a", ("http", "a", 80, "")),
        ("https://a:8443/b/", ("https", "a", 8443, "/b")),
        ("HTTPS://user@[::1]:9/x?y#z", ("https", "::1", 9, "/x")),
    ],
)
def test_addresses(url: str, wanted: tuple[str, str, int, str]) -> None:
    assert split_address(url) == wanted


@pytest.mark.parametrize("url", ["a", "ftp://a", "http://", "http://a:b", "http://a:0", "http://a:99999", "http://a b"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        split_address(url)


class Raw:
    """A server that sends `said` to everybody, in pieces of `piece` bytes, and closes."""

    def __init__(self, said: bytes, piece: int = 1 << 20) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._said, self._piece = said, piece
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                wire, _ = self._socket.accept()
            except OSError:
                return
            with wire:
                wire.recv(65536)
                for at in range(0, len(self._said), self._piece):
                    wire.sendall(self._said[at : at + self._piece])
                wire.shutdown(socket.SHUT_WR)
                while wire.recv(65536):  # to close over something unread would break the connection
                    pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def raw() -> Iterator[object]:
    servers: list[Raw] = []

    def start(said: bytes, piece: int = 1 << 20) -> Connection:
        servers.append(Raw(said, piece))
        return Connection("127.0.0.1", servers[-1].port, timeout=5)

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_answers_to_requests_sent_ahead_come_in_order(raw, piece: int) -> None:
    said = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntw\r\n1\r\no\r\n0\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end"
    )
    connection = raw(said, piece)
    for _ in range(4):
        connection.send("GET", "/", {})
    found = []
    for _ in range(4):
        answer = connection.receive(100)
        found.append((answer.status, connection.read_all(answer)))
    assert found == [(200, b"one"), (404, b"two"), (204, b""), (200, b"until the end")]
    connection.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nearly", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nx"],
)
def test_what_is_no_whole_answer_is_an_error(raw, said: bytes) -> None:
    connection = raw(said)
    connection.send("GET", "/", {})
    with pytest.raises(BadAnswer):
        connection.read_all(connection.receive(100))
    connection.close()


def test_an_answer_larger_than_the_limit_is_an_error(raw) -> None:
    connection = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + b"x" * 200)
    connection.send("GET", "/", {})
    with pytest.raises(BadAnswer, match="larger than 100"):
        connection.read_all(connection.receive(100))


def test_a_line_end_in_a_field_is_not_sent() -> None:
    with pytest.raises(ValueError, match="line end"):
        Connection("127.0.0.1", 1, timeout=1).send("GET", "/", {"x": "a\r\nb: c"})


def listing(name: str) -> Answer:
    return Answer(body={"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": name}}]})


@pytest.mark.parametrize("then", ["keep-alive", "close"])
def test_several_lists_at_once_also_from_a_server_that_closes_after_each(serve, then: str) -> None:
    def reply(asked: Asked) -> Answer:
        if asked.path.endswith("/gpus"):
            return status(403, "Forbidden", "no")
        answer = listing(asked.path.rpartition("/")[2])
        answer.headers["connection"] = then
        return answer

    server: Server = serve(reply)
    client = Client(ClusterConfig(server.url), timeout=5)
    models, gpus, pods = client.lists([(MODELS, None, "", ""), (GPUS, None, "", ""), (PODS, "ns", "a=b", "")])
    assert isinstance(models, ObjectList)
    assert isinstance(pods, ObjectList)
    assert isinstance(gpus, Forbidden)
    assert [models.items[0]["metadata"]["name"], pods.items[0]["metadata"]["name"]] == ["models", "pods"]
    assert server.connections == (1 if then == "keep-alive" else 2)
    assert server.asked[-1].params["labelSelector"] == "a=b"


@pytest.mark.parametrize("said", ["keep-alive", "close"])
def test_who_closes_while_lists_are_sent_has_answered_the_first(serve, monkeypatch, said: str) -> None:
    def reply(asked: Asked) -> Answer:
        answer = listing(asked.path.rpartition("/")[2])
        answer.headers["connection"] = said
        return answer

    server: Server = serve(reply)
    send, calls = Connection.send, iter(range(100))

    def breaks_once(self: Connection, *request: Any) -> None:
        if next(calls) == 1:
            raise BrokenPipeError(32, "Broken pipe")
        send(self, *request)

    monkeypatch.setattr(Connection, "send", breaks_once)
    client = Client(ClusterConfig(server.url), timeout=5)
    models, pods = client.lists([(MODELS, None, "", ""), (PODS, None, "", "")])
    assert isinstance(models, ObjectList)
    assert isinstance(pods, ObjectList)
    assert [models.items[0]["metadata"]["name"], pods.items[0]["metadata"]["name"]] == ["models", "pods"]
    assert server.connections == 2


def test_lists_of_a_server_that_is_gone_say_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="no API server listens"):
        Client(ClusterConfig(f"http://127.0.0.1:{port}"), timeout=5).lists([(MODELS, None, "", "")])
