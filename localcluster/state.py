"""The state folder of one local cluster: one user at a time, and what is remembered from one start to the next."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from localcluster.supervisor.ports import Ports


class ClusterError(Exception):
    """The local cluster cannot run; the message says why and what to do."""


def default_folder() -> Path:
    """`$XDG_STATE_HOME/greenthread`, or `~/.local/state/greenthread`."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "greenthread"


@dataclass(frozen=True, slots=True)
class Folder:
    """Where things lie."""

    path: Path

    @property
    def api(self) -> Path:
        return self.path / "api"

    @property
    def kubeconfig(self) -> Path:
        return self.path / "kubeconfig"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def pods(self) -> Path:
        return self.path / "supervisor"

    @property
    def processes(self) -> Path:
        return self.path / "processes"

    @property
    def settings(self) -> Path:
        return self.path / "up.json"

    @property
    def ledger(self) -> Path:
        return self.path / "gpus.sqlite"

    def remembered(self) -> Remembered | None:
        """What the last start chose; None when there was none or its note cannot be read."""
        try:
            old = json.loads(self.settings.read_text())
            return Remembered(str(old["node"]), int(old["api_port"]), int(old["gateway_port"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def make(self) -> None:
        """Creates what is missing of it. Raises ClusterError when it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
            (self.path / "lock").touch(0o600)
        except OSError as error:
            raise ClusterError(
                f"the state folder {self.path} cannot be used: {error.strerror}; choose another with --state-dir"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. The lock ends with the process, however that ends.

        Raises ClusterError when another holds it.
        """
        with (self.path / "lock").open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read(20).strip()
                who = f" (pid {holder})" if holder.isdecimal() else ""
                raise ClusterError(
                    f"another `greenthread up`{who} uses {self.path}: stop it, or choose another --state-dir"
                ) from None
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                file.seek(0)
                file.truncate()


@dataclass(frozen=True, slots=True)
class Remembered:
    """Stays the same over restarts, so that objects and exported settings stay right."""

    node: str
    api_port: int
    gateway_port: int


def remember(folder: Folder, api_port: int | None, gateway_port: int | None) -> Remembered:
    """The node's name and the ports: those asked for, else those of last time, else free ones. Raises ClusterError."""
    before = folder.remembered() or Remembered(_node_name(socket.gethostname()), 0, 0)
    ports = Ports()
    now = Remembered(
        node=before.node,
        api_port=_port(ports, "--api-port", api_port, before.api_port),
        gateway_port=_port(ports, "--gateway-port", gateway_port, before.gateway_port),
    )
    try:
        folder.settings.write_text(json.dumps(asdict(now)))
    except OSError as error:
        raise ClusterError(f"{folder.settings} cannot be written: {error.strerror}") from error
    return now


def _port(ports: Ports, option: str, asked: int | None, before: int) -> int:
    try:
        found = ports.take(asked or before or None)
    except OSError as error:
        raise ClusterError(str(error)) from error
    if asked and found != asked:
        raise ClusterError(f"port {asked} is taken by another program: choose another with {option}")
    return found


def _node_name(hostname: str) -> str:
    """A DNS label from a host name."""
    label = re.sub(r"[^a-z0-9-]+", "-", hostname.partition(".")[0].lower()).strip("-")[:40].strip("-")
    return label or "this-machine"
