"""What the blocking and the asynchronous client both promise."""

from __future__ import annotations

import importlib.machinery
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from greenthread.kube import core, errors
from greenthread.kube.blocking import Client
from greenthread.kube.config import ClusterConfig
from greenthread.kube.resources import CRDS, GPUS, MODELS, NODES, PODS

from .scripted import Answer, Asked, event, status


def model(name: str, version: str = "1") -> dict[str, Any]:
    return {"metadata": {"namespace": "prod", "name": name, "resourceVersion": version}}


def test_paths_follow_the_api_conventions() -> None:
    assert PODS.path("prod") == "/api/v1/namespaces/prod/pods"
    assert PODS.path() == "/api/v1/pods"
    assert NODES.path(name="a") == "/api/v1/nodes/a"
    assert MODELS.path("prod", "x", "status") == "/apis/greenthread.ai/v1alpha1/namespaces/prod/models/x/status"
    assert CRDS.path("ignored", "a.b") == "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/a.b"
    assert PODS.path("a/b", "../c") == "/api/v1/namespaces/a%2Fb/pods/..%2Fc"
    with pytest.raises(ValueError, match="namespace"):
        PODS.path(None, "x")
    with pytest.raises(ValueError, match="empty"):
        PODS.path("prod", "")


def test_get_returns_the_object_and_sends_the_token(serve, connect) -> None:
    server = serve(lambda asked: Answer(body=model("a")))
    client = connect(server.url, token="secret")
    assert client.get(MODELS, "a", "prod") == model("a")
    assert server.asked[0].path == "/apis/greenthread.ai/v1alpha1/namespaces/prod/models/a"
    assert server.asked[0].headers["authorization"] == "Bearer secret"


def test_each_request_says_which_program_asks(serve, connect, monkeypatch: pytest.MonkeyPatch) -> None:
    core.user_agent.cache_clear()
    spec = importlib.machinery.ModuleSpec("controller.agent.__main__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    server = serve(lambda asked: Answer(body=model("a")))
    connect(server.url).get(MODELS, "a", "prod")
    core.user_agent.cache_clear()
    assert server.asked[0].headers["user-agent"] == "greenthread (controller.agent)"


def test_a_server_address_may_have_a_path(serve, connect) -> None:
    server = serve(lambda asked: Answer(body=model("a")))
    connect(server.url + "/k8s/clusters/c-1").get(MODELS, "a", "prod")
    assert server.asked[0].path.startswith("/k8s/clusters/c-1/apis/greenthread.ai/")


def test_a_token_file_is_read_again_for_every_request(serve, connect, tmp_path: Path) -> None:
    server = serve(lambda asked: Answer(body=model("a")))
    token = tmp_path / "token"
    client = connect(server.url, token_file=str(token))
    for word in ("one", "two"):
        token.write_text(word + "\n")
        client.get(MODELS, "a", "prod")
    assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer one", "Bearer two"]


def test_list_follows_the_pages_and_names_their_kind(serve, connect) -> None:
    pages = {
        "": {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [model("a")]},
        "more": {"metadata": {"resourceVersion": "7"}, "items": [model("b")]},
    }
    server = serve(lambda asked: Answer(body=pages[asked.params.get("continue", "")]))
    found = connect(server.url).list(MODELS, "prod", label_selector="a=b", field_selector="metadata.name!=c")
    assert [item["metadata"]["name"] for item in found.items] == ["a", "b"]
    assert {(item["apiVersion"], item["kind"]) for item in found.items} == {("greenthread.ai/v1alpha1", "Model")}
    assert found.resource_version == "7"
    first = server.asked[0].params
    assert first == {"limit": "500", "labelSelector": "a=b", "fieldSelector": "metadata.name!=c"}


def test_a_list_whose_token_expires_starts_again_but_not_forever(serve, connect) -> None:
    def reply(asked: Asked) -> Answer:
        if "continue" in asked.params:
            return status(410, "Expired")
        return Answer(body={"metadata": {"resourceVersion": "7", "continue": "x"}, "items": [model("a")]})

    server = serve(reply)
    with pytest.raises(errors.Gone):
        connect(server.url).list(MODELS)
    assert len(server.asked) == 2 * core.LIST_ATTEMPTS


def test_writes_use_the_right_method_type_and_parameters(serve, connect) -> None:
    server = serve(lambda asked: Answer(body=asked.body if isinstance(asked.body, dict) else {}))
    client = connect(server.url)
    client.create(MODELS, {"metadata": {"name": "a"}}, "prod", dry_run=True)
    client.replace(GPUS, {"metadata": {"name": "n-0", "namespace": "sys"}}, subresource="status")
    client.patch(MODELS, "a", {"spec": {}}, "prod")
    client.patch(GPUS, "n-0", [{"op": "test", "path": "/x", "value": 1}], "sys", "status", dry_run=True)
    client.delete(PODS, "p", "prod", uid="u", grace_seconds=0, propagation="Foreground")
    create, replace, merge, patch, delete = server.asked
    assert (create.method, create.path, create.params) == ("POST", MODELS.path("prod"), {"dryRun": "All"})
    assert create.body == {"apiVersion": "greenthread.ai/v1alpha1", "kind": "Model", "metadata": {"name": "a"}}
    assert (replace.method, replace.path) == ("PUT", GPUS.path("sys", "n-0", "status"))
    assert (merge.method, merge.headers["content-type"]) == ("PATCH", "application/merge-patch+json")
    assert patch.headers["content-type"] == "application/json-patch+json"
    assert patch.params == {"dryRun": "All"}
    assert delete.method == "DELETE"
    assert delete.body["preconditions"] == {"uid": "u"}
    assert (delete.body["gracePeriodSeconds"], delete.body["propagationPolicy"]) == (0, "Foreground")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (status(401, "Unauthorized"), errors.Unauthorized),
        (status(403, "Forbidden"), errors.Forbidden),
        (status(404, "NotFound", name="a"), errors.NotFound),
        (status(409, "Conflict"), errors.Conflict),
        (status(409, "AlreadyExists"), errors.AlreadyExists),
        (status(410, "Expired"), errors.Gone),
        (status(422, "Invalid"), errors.Invalid),
        (status(429, "TooManyRequests"), errors.TooManyRequests),
        (status(500, "InternalError"), errors.ApiError),
    ],
)
def test_each_status_is_its_exception_and_writes_are_sent_once(serve, connect, answer: Answer, kind: type) -> None:
    server = serve(lambda asked: answer)
    with pytest.raises(errors.ApiError) as caught:
        connect(server.url).patch(MODELS, "a", {}, "prod")
    assert type(caught.value) is kind
    assert caught.value.status == answer.status
    assert caught.value.reason == answer.body["reason"]
    assert len(server.asked) == 1


def test_retry_after_comes_from_the_header_or_the_details(serve, connect) -> None:
    answers = iter([Answer(429, b"busy", {"retry-after": "7"}), status(429, "TooManyRequests", retryAfterSeconds=3)])
    server = serve(lambda asked: next(answers))
    client = connect(server.url)
    for wanted in (7, 3):
        with pytest.raises(errors.TooManyRequests) as caught:
            client.get(MODELS, "a", "prod")
        assert caught.value.retry_after == wanted


def test_a_refused_login_says_whose_it_is_and_what_to_do(serve, connect) -> None:
    server = serve(lambda asked: status(401, "Unauthorized"))
    client = connect(server.url, context="dev", user="me", source="/home/me/.kube/config")
    with pytest.raises(errors.Unauthorized, match=r"user me of context dev in /home/me/.kube/config.*log in again"):
        client.get(MODELS, "a", "prod")


def test_a_missing_permission_names_verb_and_resource(serve, connect) -> None:
    server = serve(lambda asked: status(403, "Forbidden", 'User "me" cannot do that'))
    with pytest.raises(errors.Forbidden, match=r"no permission to list models.greenthread.ai: .*me.*ask for a role"):
        connect(server.url).list(MODELS)


@pytest.mark.parametrize(
    "answer", [Answer(404, b"404 page not found\n"), status(404, "NotFound", "could not find the requested resource")]
)
def test_missing_crds_are_told_from_a_missing_object(serve, connect, answer: Answer) -> None:
    server = serve(lambda asked: answer)
    with pytest.raises(errors.NoSuchKind, match=r"does not know models of greenthread.ai/v1alpha1: install .*CRDs"):
        connect(server.url).list(MODELS)


def test_an_answer_that_is_no_kubernetes_object_is_refused(serve, connect) -> None:
    server = serve(lambda asked: Answer(body=b"<html>hello</html>"))
    with pytest.raises(errors.Unreachable, match="is this address an API server"):
        connect(server.url).get(MODELS, "a", "prod")


def test_an_answer_that_is_too_large_is_refused(serve, connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_BODY", 1000)
    server = serve(lambda asked: Answer(body=b"x" * 2000))
    with pytest.raises(errors.Unreachable, match="larger than 1000 bytes"):
        connect(server.url).get(MODELS, "a", "prod")


def test_nobody_listening_is_said_plainly(connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(errors.Unreachable, match=rf"no API server listens at http://127.0.0.1:{port}"):
        connect(f"http://127.0.0.1:{port}").get(MODELS, "a", "prod")


def test_a_silent_server_is_given_up(serve, connect) -> None:
    def hang(asked: Asked) -> Answer:
        server.closing.wait(10)
        return Answer(body={})

    server = serve(hang)
    with pytest.raises(errors.Unreachable, match="did not answer in time"):
        connect(server.url, timeout=0.2).get(MODELS, "a", "prod")


def test_an_answer_cut_off_in_the_middle_is_no_answer(serve, connect) -> None:
    server = serve(lambda asked: Answer(body=b"{}", headers={"content-length": "100", "connection": "close"}))
    with pytest.raises(errors.Unreachable):
        connect(server.url).get(MODELS, "a", "prod")


def test_one_connection_is_kept_and_a_closed_one_replaced(serve, connect) -> None:
    headers: dict[str, str] = {}
    server = serve(lambda asked: Answer(body={}, headers=dict(headers)))
    client = connect(server.url)
    client.get(MODELS, "a", "prod")
    headers["connection"] = "close"
    client.get(MODELS, "a", "prod")
    assert server.connections == 1
    client.patch(MODELS, "a", {}, "prod")
    assert len(server.asked) == 3


def test_a_watch_gives_events_and_bookmarks_until_the_server_ends_it(serve, connect) -> None:
    lines = event("ADDED", model("a", "5")) + event("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    # cut at odd places: lines are not chunks
    server = serve(lambda asked: Answer(chunks=[lines[:10], lines[10:60], lines[60:]]))
    seen = list(connect(server.url).watch(MODELS, "prod", label_selector="a=b", resource_version="4"))
    assert [(item.type, item.object["metadata"]["resourceVersion"]) for item in seen] == [
        ("ADDED", "5"),
        ("BOOKMARK", "9"),
    ]
    params = server.asked[0].params
    assert params["resourceVersion"] == "4"
    assert (params["watch"], params["allowWatchBookmarks"], params["labelSelector"]) == ("true", "true", "a=b")
    assert int(params["timeoutSeconds"]) > 0


@pytest.mark.parametrize("inside", [True, False])
def test_a_watch_from_too_far_back_is_gone(serve, connect, inside: bool) -> None:
    gone = status(410, "Expired", "too old resource version")
    server = serve(lambda asked: Answer(chunks=[event("ERROR", gone.body)]) if inside else gone)
    with pytest.raises(errors.Gone):
        list(connect(server.url).watch(MODELS, resource_version="1"))


def test_a_watch_that_goes_silent_ends(serve, connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "WATCH_SILENCE", 0.2)

    def chunks() -> Any:
        yield event("ADDED", model("a"))
        server.closing.wait(10)

    server = serve(lambda asked: Answer(chunks=chunks()))
    stream = connect(server.url).watch(MODELS)
    assert next(stream).type == "ADDED"
    with pytest.raises(errors.Unreachable, match="in time"):
        next(stream)


@pytest.mark.parametrize("line", [b"nonsense\n", b"{}\n", b'{"type":"ADDED","object":3}\n', b"[1]\n"])
def test_a_watch_line_that_is_no_event_is_refused(serve, connect, line: bytes) -> None:
    server = serve(lambda asked: Answer(chunks=[line]))
    with pytest.raises(errors.Unreachable, match="no event"):
        list(connect(server.url).watch(MODELS))


def test_a_line_without_end_is_refused() -> None:
    lines = core.Lines(limit=100)
    assert lines.feed(b"a\n" + b"x" * 100) == [b"a"]
    with pytest.raises(errors.Unreachable, match="more than 100 bytes"):
        lines.feed(b"x")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.crt, and server.crt for the name api.example, client.crt, each with its key."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "2")
    for name in ("server", "client"):
        (folder / "ext").write_text("subjectAltName=DNS:api.example\n")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.crt", "-days", "2", "-extfile", "ext")  # fmt: skip
    return folder


def _tls(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # a missing client certificate then fails the handshake itself
    return context


def test_tls_with_a_client_certificate_and_a_server_name(serve, connect, certificates: Path) -> None:
    server = serve(lambda asked: Answer(body={"ok": True}), _tls(certificates))
    client = connect(
        server.url,
        ca=(certificates / "ca.crt").read_bytes(),
        client_certificate=(certificates / "client.crt").read_bytes(),
        client_key=(certificates / "client.key").read_bytes(),
        tls_server_name="api.example",
    )
    assert client.get(NODES, "a") == {"ok": True}


@pytest.mark.parametrize("settings", [{}, {"tls_server_name": "other.example"}])
def test_a_certificate_for_another_name_is_not_trusted(serve, connect, certificates: Path, settings: Any) -> None:
    server = serve(lambda asked: Answer(body={}), _tls(certificates))
    client = connect(server.url, ca=(certificates / "ca.crt").read_bytes(), **settings)
    with pytest.raises(errors.Unreachable, match=r"not trusted.*certificate-authority"):
        client.get(NODES, "a")


def test_an_unknown_authority_is_not_trusted_unless_told(serve, connect, certificates: Path) -> None:
    server = serve(lambda asked: Answer(body={"ok": True}), _tls(certificates))
    own = {
        "client_certificate": (certificates / "client.crt").read_bytes(),
        "client_key": (certificates / "client.key").read_bytes(),
    }
    with pytest.raises(errors.Unreachable, match="not trusted"):
        connect(server.url, **own).get(NODES, "a")
    assert connect(server.url, insecure=True, **own).get(NODES, "a") == {"ok": True}


def test_a_missing_client_certificate_is_a_tls_failure(serve, connect, certificates: Path) -> None:
    server = serve(lambda asked: Answer(body={}), _tls(certificates))
    with pytest.raises(errors.Unreachable, match=r"TLS|no answer"):
        connect(server.url, insecure=True).get(NODES, "a")


def test_broken_certificates_are_named(connect) -> None:
    with pytest.raises(errors.ConfigError, match="certificate-authority"):
        connect("https://127.0.0.1:1", ca=b"not pem")
    with pytest.raises(errors.ConfigError, match="client certificate"):
        connect("https://127.0.0.1:1", insecure=True, client_certificate=b"x", client_key=b"y")


class Proxy:
    """Forwards every CONNECT to one port of this machine, and remembers what was asked for."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://me:secret@127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            self.asked.append(head.decode())
            server = socket.create_connection(("127.0.0.1", self._to))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # either side left

    def close(self) -> None:
        self._listener.close()


def test_the_kubeconfigs_proxy_is_used(serve, connect, certificates: Path) -> None:
    server = serve(lambda asked: Answer(body={"ok": True}), _tls(certificates))
    proxy = Proxy(server.port)
    client = connect(
        "https://api.example:6443",
        ca=(certificates / "ca.crt").read_bytes(),
        client_certificate=(certificates / "client.crt").read_bytes(),
        client_key=(certificates / "client.key").read_bytes(),
        proxy_url=proxy.url,
    )
    assert client.get(NODES, "a") == {"ok": True}
    proxy.close()
    assert proxy.asked[0].startswith("CONNECT api.example:6443 ")
    assert "basic bwu6c2vjcmv0" in proxy.asked[0].lower()


def test_a_connection_that_the_server_closed_while_idle_is_not_used_for_a_write(serve) -> None:
    server = serve(lambda asked: Answer(body={}, headers={"x-then": "close"}))
    client = Client(ClusterConfig(server.url), timeout=5)
    for _ in range(3):
        client.patch(MODELS, "a", {}, "prod")
        # wait for the server's close, as an idle client would see it
        assert client._kept._wire is not None
        client._kept._wire.recv(1, socket.MSG_PEEK)
    assert (len(server.asked), server.connections) == (3, 3)


def test_secrets_are_not_in_the_representation() -> None:
    config = ClusterConfig("https://x", token="tok-secret", basic=("me", "pw-secret"), client_key=b"key-secret")
    assert "secret" not in repr(config)
