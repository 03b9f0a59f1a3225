"""The state folder remembers what must not change, and is used by one at a time."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from localcluster.state import ClusterError, Folder, default_folder, remember


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "state")
    made.make()
    return made


def test_the_default_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/greenthread")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_folder() == Path("/home/ada/.local/state/greenthread")


def test_nobody_else_may_look_into_it(folder: Folder) -> None:
    assert folder.path.stat().st_mode & 0o077 == 0


def test_node_and_ports_stay(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remember(folder, None, None)
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert remember(folder, None, None) == first


def test_a_remembered_port_that_is_taken_now_is_replaced(folder: Folder) -> None:
    first = remember(folder, None, None)
    with socket.create_server(("127.0.0.1", first.gateway_port)):
        second = remember(folder, None, None)
    assert second.gateway_port != first.gateway_port
    assert second.api_port == first.api_port


def test_a_port_asked_for_is_used_or_refused(folder: Folder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} is taken.*--gateway-port"):
            remember(folder, None, port)
    assert remember(folder, None, port).gateway_port == port


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"node": "a"}', '{"node": "a", "api_port": "x", "gateway_port": 1}']
)
def test_an_unreadable_note_is_as_good_as_none(folder: Folder, content: str) -> None:
    folder.settings.write_text(content)
    assert folder.remembered() is None
    assert remember(folder, None, None) == folder.remembered()


@pytest.mark.parametrize(
    ("hostname", "node"),
    [("Gpu-Box.example.org", "gpu-box"), ("my_machine", "my-machine"), ("___", "this-machine"), ("x" * 80, "x" * 40)],
)
def test_the_node_is_named_after_the_host(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, hostname: str, node: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    assert remember(folder, None, None).node == node


def test_the_lock_ends_with_its_process(folder: Folder) -> None:
    script = (
        "import sys; from pathlib import Path; from localcluster.state import Folder\n"
        f"with Folder(Path({str(folder.path)!r})).locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ClusterError, match=rf"pid {holder.pid}\) uses"), folder.locked():
            pass
        holder.kill()
    with folder.locked(), pytest.raises(ClusterError, match="another `greenthread up`"), folder.locked():
        pass
