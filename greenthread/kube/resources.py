"""The kinds of objects that GreenThread reads and writes, and where they live in the API."""

from __future__ import annotations

from greenthread.names import GROUP, VERSION
from greenthread.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object: `Resource(GROUP, VERSION, "models", "Model")`; the core group is `""`."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`v1` or `greenthread.ai/v1alpha1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """`pods` or `models.greenthread.ai`, as kubectl and RBAC messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """URL path of a collection (no name), an object, or its subresource. No namespace: all namespaces."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", quoted(namespace)]
        elif self.namespaced and name is not None:
            raise ValueError(f"{self.kind} {name}: a namespace is needed")
        parts.append(self.plural)
        if name is not None:
            if not name:
                raise ValueError(f"{self.kind}: the name is empty")
            parts.append(quoted(name))
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quoted(text: str) -> str:
    """Text as a part of a URL's path or query."""
    if _PLAIN.issuperset(text):
        return text
    return "".join(char if char in _PLAIN else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)


MODELS = Resource(GROUP, VERSION, "models", "Model")
GPUS = Resource(GROUP, VERSION, "gpus", "GPU")
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("", "v1", "events", "Event")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
HTTP_ROUTES = Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
SELF_SUBJECT_ACCESS_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)

Key = tuple[str, str]
"""(namespace, name); the namespace of a cluster-wide object is `""`."""


def key_of(obj: dict[str, Any]) -> Key:
    """The (namespace, name) of an object."""
    metadata = obj["metadata"]
    return (metadata.get("namespace", ""), metadata["name"])


def resource_version(obj: dict[str, Any]) -> str:
    """The resourceVersion of an object or list, `""` when it has none."""
    return str((obj.get("metadata") or {}).get("resourceVersion", ""))


def is_newer(version: str, than: str) -> bool:
    """Whether one resourceVersion comes after another: as integers where both are digits, else whenever they differ."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than
