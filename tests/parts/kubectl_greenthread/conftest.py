from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kubectl_greenthread.main import run
from tests.unit.greenthread_kube.scripted import Answer, Asked, Server

from .cluster import ApiThread, Cluster, write_kubeconfig


@dataclass
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> object:
        return json.loads(self.out)


Plugin = Callable[..., Ran]


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the plugin remembers about clusters must not outlive the tests, nor be the developer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GREENTHREAD_PROMETHEUS", raising=False)
        yield


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One embedded API with our CRDs, for all tests; see `cluster` and `screens`."""
    thread = ApiThread()
    path = tmp_path_factory.mktemp("cluster") / "config"
    cluster = Cluster(write_kubeconfig(path, f"http://127.0.0.1:{thread.port}"))
    cluster.install_crds()
    yield cluster
    thread.close()


@pytest.fixture
def cluster(served: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster without objects, as the plugin's default."""
    served.clear()
    monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
    return served


@pytest.fixture
def plugin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """plugin("top", "-A", width=80) runs one command line in this process."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(*args: str, width: int | None = None) -> Ran:
        monkeypatch.setenv("COLUMNS", str(width or ""))
        capsys.readouterr()
        code = run(list(args), "kubectl greenthread")
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def scripted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[Asked], Answer]], Server]]:
    """scripted(reply) makes a scripted server the plugin's default cluster."""
    servers: list[Server] = []

    def start(reply: Callable[[Asked], Answer]) -> Server:
        servers.append(Server(reply))
        path = write_kubeconfig(tmp_path / "config", servers[-1].url)
        monkeypatch.setenv("KUBECONFIG", str(path))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
