"""Whose process it is, from files as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controller.agent.processes import Owners
from greenthread.gpu import PodRef

UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
POD = PodRef("team", "m-0-abc")
SYSTEMD = (
    f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-x.scope\n"
)
CGROUPFS = f"12:devices:/kubepods/burstable/pod{UID}/4f5a\n0::/kubepods/burstable/pod{UID}/4f5a\n"
SEEN_FROM_A_POD = f"0::/../../kubepods-besteffort-pod{UID.replace('-', '_')}.slice/cri-containerd-x.scope\n"


def process(proc: Path, pid: int, parent: int = 1, cgroup: str = "0::/\n", started: int = 100, **env: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    fields = ["S", str(parent), *["0"] * 17, str(started), "0"]
    (folder / "stat").write_text(f"{pid} (VLLM::Engine Core) {' '.join(fields)}\n")
    (folder / "cgroup").write_text(cgroup)
    (folder / "environ").write_bytes(b"".join(f"{key}={value}\0".encode() for key, value in env.items()))


def owners(proc: Path, known: bool = True) -> Owners:
    made = Owners(proc)
    if known:
        made.learn(UID, POD)
    return made


@pytest.mark.parametrize("cgroup", [SYSTEMD, CGROUPFS, SEEN_FROM_A_POD], ids=["systemd", "cgroupfs", "namespace"])
def test_a_cgroup_names_the_pod(tmp_path: Path, cgroup: str) -> None:
    process(tmp_path, 7, cgroup=cgroup)
    assert owners(tmp_path).of(frozenset({7})) == {7: POD}


def test_on_one_machine_the_environment_of_an_ancestor_does(tmp_path: Path) -> None:
    process(tmp_path, 7, parent=1, POD_UID=UID)
    process(tmp_path, 8, parent=7)
    process(tmp_path, 9, parent=8)
    assert owners(tmp_path).of(frozenset({9})) == {9: POD}


def test_a_pod_that_ended_before_the_agent_began_is_known_by_its_name(tmp_path: Path) -> None:
    process(tmp_path, 7, cgroup=SYSTEMD, POD_UID=UID, POD_NAME="m-0-abc", POD_NAMESPACE="team")
    assert owners(tmp_path, known=False).of(frozenset({7})) == {7: POD}


def test_other_peoples_pods_and_programs_are_nobodys(tmp_path: Path) -> None:
    other = "ffffffff-4b5a-6978-8796-a5b4c3d2e1f0"
    process(tmp_path, 7, cgroup=SYSTEMD.replace(UID.replace("-", "_"), other), POD_UID=other)
    process(tmp_path, 8, HOME="/root")
    assert owners(tmp_path).of(frozenset({7, 8, 404})) == {}


def test_a_known_cgroup_counts_more_than_what_a_process_says_of_itself(tmp_path: Path) -> None:
    made = owners(tmp_path)
    made.learn("11111111-4b5a-6978-8796-a5b4c3d2e1f0", PodRef("team", "victim"))
    process(tmp_path, 7, cgroup=SYSTEMD, POD_UID="11111111-4b5a-6978-8796-a5b4c3d2e1f0")
    assert made.of(frozenset({7})) == {7: POD}


def test_a_recycled_pid_is_another_process(tmp_path: Path) -> None:
    made = owners(tmp_path)
    process(tmp_path, 7, cgroup=SYSTEMD)
    assert made.of(frozenset({7})) == {7: POD}
    process(tmp_path, 7, started=200)
    assert made.of(frozenset({7})) == {}


def test_a_real_process_and_its_child() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    env = {**os.environ, "POD_UID": UID, "POD_NAME": "m-0-abc", "POD_NAMESPACE": "team"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        (child,) = map(int, children)
        assert owners(Path("/proc"), known=False).of(frozenset({child, parent.pid})) == {child: POD, parent.pid: POD}
    finally:
        parent.communicate(b"\n")
