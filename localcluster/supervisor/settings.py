"""What a supervisor is told: its node, its folders, its images."""

from __future__ import annotations

import fnmatch
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenthread.kube.config import ClusterConfig


@dataclass(frozen=True, slots=True)
class Image:
    """What stands for a container image on this machine."""

    #: Command of a container that names none.
    entrypoint: Sequence[str] = ()
    #: Environment that the image would bring; the container's own values win.
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """How one supervisor runs."""

    #: Name of its Node object, and the value of the label `kubernetes.io/hostname`.
    node: str
    #: Keeps the pods' volumes and the record of every process; one supervisor a folder.
    state: Path
    #: Logs: `<logs>/<namespace>_<pod>_<uid>/<container>/<restart>.log`.
    logs: Path
    #: Image name patterns (shell globs), first match wins.
    images: Mapping[str, Image] = field(default_factory=dict)
    #: Address the pods' ports are published under. A real API server takes no loopback address in an EndpointSlice.
    address: str = "127.0.0.1"
    #: Further labels of the Node.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Seconds before the first restart of a container that ended; doubles to `backoff_max`. Kubelets begin with 10.
    backoff: float = 10.0
    #: Seconds.
    backoff_max: float = 300.0
    #: Seconds a container must have run for its backoff to start anew, as kubelets have it.
    backoff_reset: float = 600.0
    #: A pod that names a ServiceAccount speaks to this API server, as that account, by a kubeconfig of its own.
    #: None: every pod speaks to whomever its image's environment names.
    accounts: ClusterConfig | None = None
    #: Seconds between two renewals of the node's Lease (a controller manager calls the node lost after 40).
    lease_seconds: float = 10.0

    def image(self, name: str) -> Image | None:
        """The image of that name, None when no pattern knows it."""
        return next((image for glob, image in self.images.items() if fnmatch.fnmatchcase(name, glob)), None)

    def node_labels(self) -> dict[str, str]:
        """The labels that a nodeSelector is compared with."""
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        return {
            "kubernetes.io/hostname": self.node,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": machine,
        } | dict(self.labels)


def parse_images(value: object) -> dict[str, Image]:
    """Images from `{glob: {"entrypoint": [...], "env": {...}}}`; ValueError says which entry is wrong."""
    if not isinstance(value, dict):
        raise ValueError('images must be an object {"glob": {"entrypoint": [...], "env": {...}}}')
    return {str(glob): _image(str(glob), entry) for glob, entry in value.items()}


def _image(glob: str, entry: Any) -> Image:
    if not isinstance(entry, dict) or not set(entry) <= {"entrypoint", "env"}:
        raise ValueError(f'image {glob!r}: write {{"entrypoint": [...], "env": {{...}}}}')
    entrypoint, env = entry.get("entrypoint", []), entry.get("env", {})
    if not isinstance(entrypoint, list) or not all(isinstance(word, str) for word in entrypoint):
        raise ValueError(f"image {glob!r}: entrypoint must be a list of words")
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise ValueError(f"image {glob!r}: env must map names to text")
    return Image(tuple(entrypoint), env)


def load_images(path: Path) -> dict[str, Image]:
    """Images from a JSON file; ValueError says what is wrong with it."""
    try:
        return parse_images(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
