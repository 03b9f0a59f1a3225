"""Reads manifests and applies them: the CRDs that come with the program, and what a person names with -f."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import AlreadyExists, ApiError
from greenthread.kube.resources import CONFIG_MAPS, CRDS, MODELS, NAMESPACES, SECRETS, Resource
from localcluster.state import ClusterError

Object = dict[str, Any]

KINDS = {(kind.api_version, kind.kind): kind for kind in (MODELS, SECRETS, CONFIG_MAPS, NAMESPACES, CRDS)}
#: Largest manifest in bytes, as etcd would have it.
MAX_FILE = 1536 * 1024


def packaged(name: str) -> Path:
    """The folder `manifests/<name>` of the wheel, or of the checkout that this runs from."""
    inside = Path(str(resources.files("greenthread"))) / "manifests" / name
    checkout = Path(__file__).parent.parent / "manifests" / name
    for folder in (inside, checkout):
        if folder.is_dir():
            return folder
    raise ClusterError(f"this installation lacks its manifests ({inside}): install it again")


def read(path: Path) -> list[Object]:
    """The objects of a file, or of all .yaml, .yml and .json files of a folder. Raises ClusterError."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml", ".json"))
            if not files:
                raise ClusterError(f"there is no .yaml or .json file in {path}")
            return [obj for file in files for obj in read(file)]
        if path.stat().st_size > MAX_FILE:
            raise ClusterError(f"{path} is larger than {MAX_FILE} bytes: this is no manifest")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClusterError(f"{path} is not text: {error.reason}") from error
    try:
        objects = [obj for obj in yaml.safe_load_all(text) if obj is not None]
    except yaml.YAMLError as error:
        raise ClusterError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return [_checked(obj, path) for obj in objects]


def _checked(obj: Any, path: Path) -> Object:
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata"), dict) or not obj["metadata"].get("name"):
        raise ClusterError(f"{path}: an object needs apiVersion, kind and metadata.name")
    if (obj.get("apiVersion"), obj.get("kind")) not in KINDS:
        known = ", ".join(kind for _, kind in KINDS)
        raise ClusterError(f"{path}: {obj.get('kind')} is not applied here (only {known}): use kubectl apply")
    return obj


async def apply(client: AsyncClient, obj: Object, namespace: str) -> None:
    """Create the object, or make an existing one like it (its status and server-set metadata stay).

    `namespace` is for objects that name none. Raises ClusterError with the API's words when it is refused.
    """
    resource: Resource = KINDS[(obj["apiVersion"], obj["kind"])]
    metadata: Object = dict(obj["metadata"])
    if resource.namespaced:
        metadata.setdefault("namespace", namespace)
    try:
        try:
            await client.create(resource, obj | {"metadata": metadata})
        except AlreadyExists:
            now = await client.get(resource, metadata["name"], metadata.get("namespace"))
            for field in ("labels", "annotations"):
                if metadata.get(field):
                    now["metadata"][field] = (now["metadata"].get(field) or {}) | metadata[field]
            await client.replace(resource, now | {key: obj[key] for key in obj if key not in ("metadata", "status")})
    except ApiError as error:
        raise ClusterError(f"{obj['kind']} {metadata['name']} is refused: {error}") from error
