"""What the gateway knows of the cluster: which Models there are, under which names, and where their pods answer.

Kept by events of the watches; asked by every request, so answers are look-ups. No waiting, no I/O.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from greenthread.gpu import State
from greenthread.kube.resources import Key, key_of
from greenthread.model import Model
from greenthread.names import LABEL_MODEL

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]

LABEL_SERVICE = "kubernetes.io/service-name"
PORT_NAME = "http"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one pod's sidecar answers."""

    host: str
    port: int
    pod: Key
    """(namespace, name)."""
    leaving: bool = False
    """The pod is terminating but still serves: used only where there is nothing else."""
    address: tuple[str, int] = field(init=False, repr=False)
    """Host and port."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", (self.host, self.port))


def endpoints_of(slice_: Object) -> list[Endpoint]:
    """The usable endpoints of an EndpointSlice: ready ones, and terminating ones that still serve."""
    ports = slice_.get("ports") or []
    port = next((p for p in ports if p.get("name") == PORT_NAME), ports[0] if len(ports) == 1 else None)
    if port is None or not port.get("port") or slice_.get("addressType") == "FQDN":
        return []
    found = []
    for item in slice_.get("endpoints") or []:
        conditions = item.get("conditions") or {}
        ready = conditions.get("ready")
        leaving = bool(conditions.get("terminating"))
        usable = (ready is None or ready) or (leaving and bool(conditions.get("serving")))
        target = item.get("targetRef") or {}
        if usable and item.get("addresses"):
            pod = (target.get("namespace") or slice_["metadata"].get("namespace", ""), target.get("name", ""))
            found.append(Endpoint(item["addresses"][0], port["port"], pod, leaving))
    return found


def _age(model: Model) -> tuple[str, str]:
    """Order among Models of one name: the oldest first (as the controller has it)."""
    return (str(model.created_at or "9"), model.namespace)


class Directory:
    """Models by name and Hugging Face id, endpoints by Model, and which pods serve."""

    def __init__(self, on_change: Callable[[Key], None] = lambda key: None) -> None:
        """on_change: called with a Model's key when it, its endpoints, or its existence changed."""
        self.models: dict[Key, Model] = {}
        self._on_change = on_change
        self._by_name: dict[str, list[Model]] = {}
        self._by_id: dict[str, list[Model]] = {}
        self._indexed = True  # the two above are as `models` is
        self._slices: dict[Key, tuple[Key, list[Endpoint]]] = {}  # of a slice: its Service and endpoints
        self._of_service: dict[Key, set[Key]] = {}
        self._endpoints: dict[Key, list[Endpoint]] = {}  # what `endpoints` has answered since they changed
        self._serving_on: dict[Key, frozenset[Key]] = {}  # of a GPU: the pods that serve there
        self._serving: frozenset[Key] = frozenset()

    # from the watches

    def model_event(self, kind: str, obj: Object) -> None:
        """A Model was added, modified or deleted."""
        key = key_of(dict(obj))
        if kind == "DELETED":
            self.models.pop(key, None)
        else:
            try:
                self.models[key] = Model.from_object(obj)
            except (KeyError, ValueError, TypeError) as error:
                logger.warning("model %s/%s is not understood and left out: %r", *key, error)
                self.models.pop(key, None)
        self._indexed = False
        self._on_change(key)

    def _index(self) -> None:
        if self._indexed:
            return
        self._indexed = True
        self._by_name, self._by_id = {}, {}
        for model in sorted(self.models.values(), key=_age):
            self._by_name.setdefault(model.name, []).append(model)
            self._by_id.setdefault(model.spec.model_name, []).append(model)

    def slice_event(self, kind: str, obj: Object) -> None:
        """An EndpointSlice was added, modified or deleted."""
        key = key_of(dict(obj))
        old = self._slices.pop(key, None)
        if old is not None:
            self._of_service[old[0]].discard(key)
            if not self._of_service[old[0]]:
                del self._of_service[old[0]]
        labels = obj["metadata"].get("labels") or {}
        service_name = labels.get(LABEL_SERVICE) or labels.get(LABEL_MODEL)  # a Model's Service has its name
        service = (key[0], service_name) if service_name else None
        if kind != "DELETED" and service is not None:
            self._slices[key] = (service, endpoints_of(obj))
            self._of_service.setdefault(service, set()).add(key)
        both = {changed for changed in (service, old[0] if old is not None else None) if changed is not None}
        for changed in both:
            self._endpoints.pop(changed, None)
        for changed in both:
            self._on_change(changed)

    def gpu_event(self, kind: str, obj: Object) -> None:
        """A GPU was added, modified or deleted."""
        key = key_of(dict(obj))
        occupants = ((obj.get("status") or {}).get("occupants") or []) if kind != "DELETED" else []
        serving = frozenset(
            (o.get("namespace", ""), o.get("podName", "")) for o in occupants if o.get("state") == State.SERVING
        )
        if serving != self._serving_on.get(key, frozenset()):
            self._serving_on[key] = serving
            self._serving = frozenset().union(*self._serving_on.values())

    # for requests

    def endpoints(self, key: Key) -> list[Endpoint]:
        """Where a Model's pods answer; leaving ones only when there is nothing else."""
        known = self._endpoints.get(key)
        if known is not None:
            return known
        found = [endpoint for name in self._of_service.get(key, ()) for endpoint in self._slices[name][1]]
        staying = [endpoint for endpoint in found if not endpoint.leaving]
        if key in self._of_service:
            self._endpoints[key] = staying or found
        return staying or found

    def serves(self, endpoint: Endpoint) -> bool:
        """True when that pod's engine is awake: it holds GPU memory and serves."""
        return endpoint.pod in self._serving

    def model(self, namespace: str, name: str) -> Model | None:
        """The Model of this namespace and name."""
        return self.models.get((namespace, name))

    def named(self, name: str) -> Model | None:
        """The Model whose short address is `/<name>`: the oldest of that name."""
        self._index()
        found = self._by_name.get(name)
        return found[0] if found else None

    def find(self, name: str) -> Model | None:
        """The Model that a request's body means: by name, by Hugging Face id (one that serves, else the oldest), or by
        `namespace/name`."""
        model = self.named(name)
        if model is not None:
            return model
        same = self._by_id.get(name)
        if same:
            return next((m for m in same if any(map(self.serves, self.endpoints((m.namespace, m.name))))), same[0])
        namespace, slash, rest = name.partition("/")
        return self.model(namespace, rest) if slash else None

    def near(self, name: str) -> list[str]:
        """Up to three names that somebody who wrote `name` may have meant."""
        wanted = name[:256].lower()
        known: dict[str, str] = {}
        for model in self.listed():
            for spelling in (model.name, model.spec.model_name, model.spec.model_name.rpartition("/")[2]):
                spelling = spelling.lower()
                if spelling[:1] == wanted[:1] or wanted in spelling:  # comparing with all would take too long
                    known.setdefault(spelling, self.short_name(model))
        hits = difflib.get_close_matches(wanted, known, n=6, cutoff=0.5)
        if not hits and "/" in wanted:
            return self.near(wanted.rpartition("/")[2])
        return list(dict.fromkeys(known[hit] for hit in hits))[:3]

    def short_name(self, model: Model) -> str:
        """The name by which clients reach a Model: its own, or `namespace/name` when an older one has that."""
        return model.name if self.named(model.name) is model else f"{model.namespace}/{model.name}"

    def listed(self) -> Iterable[Model]:
        """All Models, by namespace and name."""
        return [self.models[key] for key in sorted(self.models)]
