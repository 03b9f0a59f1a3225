"""Whose process it is: from a pid of this node to the pod, by its cgroup or its environment."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

from greenthread.gpu import PodRef

#: Pods that are remembered by uid, also after their end: their processes may outlive them.
MOST_PODS = 10_000
#: Bytes of an environment that are read, and ancestors that are asked.
MOST_ENVIRONMENT, MOST_ANCESTORS = 256 * 1024, 64

# kubepods-burstable-pod0f1e2d3c_....slice (systemd) or /kubepods/burstable/pod0f1e2d3c-.../ (cgroupfs)
_UID = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")


class Owners:
    """Finds the pod of a process. A cgroup's word counts where it names a pod we know; else the environment's."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._pods: OrderedDict[str, PodRef] = OrderedDict()
        self._found: dict[tuple[int, str], PodRef] = {}

    def learn(self, uid: str, pod: PodRef) -> None:
        """A pod of this node, whatever becomes of it."""
        self._pods[uid] = pod
        self._pods.move_to_end(uid)
        while len(self._pods) > MOST_PODS:
            self._pods.popitem(last=False)

    def of(self, pids: frozenset[int]) -> dict[int, PodRef]:
        """The pods of these processes; processes of nobody we know are left out. Reads files of /proc."""
        found: dict[tuple[int, str], PodRef] = {}
        result: dict[int, PodRef] = {}
        for pid in pids:
            started = self._started(pid)
            if started is None:
                continue
            owner = self._found.get((pid, started)) or self._by_cgroup(pid) or self._by_environment(pid)
            if owner is not None:
                # a process stays what it is; only these are remembered, so that nothing piles up
                found[(pid, started)] = result[pid] = owner
        self._found = found
        return result

    def _by_cgroup(self, pid: int) -> PodRef | None:
        for match in _UID.finditer(self._read(pid, "cgroup")):
            owner = self._pods.get(match.group(1).replace("_", "-"))
            if owner is not None:
                return owner
        return None

    def _by_environment(self, pid: int) -> PodRef | None:
        for _ in range(MOST_ANCESTORS):
            env = dict(
                part.partition("=")[::2]
                for part in self._read(pid, "environ").split("\0")
                if part.startswith(("POD_UID=", "POD_NAME=", "POD_NAMESPACE="))
            )
            if env.get("POD_UID") in self._pods:
                return self._pods[env["POD_UID"]]
            if len(env) == 3:  # a pod that ended before this agent began
                return PodRef(env["POD_NAMESPACE"], env["POD_NAME"])
            fields = self._stat(pid)
            if fields is None or int(fields[1]) <= 1:
                return None
            pid = int(fields[1])
        return None

    def _started(self, pid: int) -> str | None:
        fields = self._stat(pid)
        return fields[19] if fields else None

    def _stat(self, pid: int) -> list[str] | None:
        # the name in parentheses may hold anything
        fields = self._read(pid, "stat").rpartition(")")[2].split()
        return fields if len(fields) > 19 else None

    def _read(self, pid: int, name: str) -> str:
        try:
            with open(self._proc / str(pid) / name, "rb") as file:
                return file.read(MOST_ENVIRONMENT).decode("utf-8", "replace")
        except OSError:
            return ""  # it ended, or is not ours to look at
