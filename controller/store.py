"""What the controller knows of the cluster: its copy of the Models, their pods and Services, and the GPUs.

Whatever brings the news (kopf's watches, full lists, answers to our own writes), nothing older replaces anything newer,
and the Models that a change concerns are told to `on_change`, or to `on_state` where what is to be done cannot have
changed: no more than the state of engines, or the status itself.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from controller.pod_view import PodView
from greenthread.gpu import Gpu
from greenthread.kube.core import ObjectList
from greenthread.kube.resources import GPUS, MODELS, PODS, SERVICES, Key, Resource, is_newer, key_of, resource_version
from greenthread.model import Model
from greenthread.names import ANNOTATION_FAULT, ANNOTATION_PREEMPT, ANNOTATION_SLEEP, ANNOTATION_WAKE, LABEL_MODEL

log = logging.getLogger(__name__)

Object = dict[str, Any]
K = TypeVar("K")

#: Uids of deleted objects that are remembered, so that a list begun before does not bring them back.
MOST_GONE = 10_000
_WISHES = frozenset((ANNOTATION_WAKE, ANNOTATION_SLEEP, ANNOTATION_PREEMPT))


class Store:
    def __init__(self, on_change: Callable[[Key], None], on_state: Callable[[Key], None]) -> None:
        self._on_change, self._on_state = on_change, on_state
        self._objects: dict[Resource, dict[Key, Object]] = {kind: {} for kind in (MODELS, PODS, GPUS, SERVICES)}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._models: dict[Key, Model] = {}
        self._same_name: dict[str, set[Key]] = {}
        self._pods: dict[Key, dict[Key, PodView]] = {}  # by the Model's key
        self._gpus: dict[Key, Gpu] = {}
        self._gpus_of: dict[Key, set[Key]] = {}  # by the Model's key: those that name it
        self._gpus_on: dict[str, set[Key]] = {}  # by node
        self._faults: dict[Key, str] = {}
        #: Models without a place for a replica: every change of the GPUs concerns them.
        self.unplaced: set[Key] = set()

    # reading

    def object(self, resource: Resource, key: Key) -> Object | None:
        """The object as last seen; of pods and GPUs only the metadata, since the rest is kept as a value."""
        return self._objects[resource].get(key)

    def model(self, key: Key) -> Model | None:
        return self._models.get(key)

    def models(self) -> Iterable[Model]:
        return self._models.values()

    def models_named(self, name: str) -> list[Model]:
        """Models of that name in all namespaces that are not being deleted."""
        found = (self._models.get(key) for key in self._same_name.get(name, ()))
        return [model for model in found if model is not None and not model.deleting]

    def pods_of(self, key: Key) -> list[PodView]:
        return list(self._pods.get(key, {}).values())

    def pods(self) -> Iterator[tuple[Key, PodView]]:
        """Every pod with its Model's key."""
        for key, pods in self._pods.items():
            for pod in pods.values():
                yield key, pod

    def gpus(self) -> Iterable[Gpu]:
        return self._gpus.values()

    def gpus_of(self, key: Key) -> list[Gpu]:
        """The GPUs that name this Model, by node and index."""
        found = (self._gpus[gpu] for gpu in self._gpus_of.get(key, ()))
        return sorted(found, key=lambda gpu: (gpu.node, gpu.index))

    def has_gpus(self, node: str) -> bool:
        return node in self._gpus_on

    def fault(self, gpu: Gpu) -> str:
        """Why the agent calls the device unusable, or ""."""
        return self._faults.get((gpu.namespace, gpu.name), "")

    # news

    def put(self, resource: Resource, obj: Object) -> bool:
        """Takes in an object unless something newer, or its end, is known; True if it was news."""
        key, objects = key_of(obj), self._objects[resource]
        old = objects.get(key)
        if obj["metadata"].get("uid") in self._gone:
            return False
        if old is not None and not is_newer(resource_version(obj), resource_version(old)):
            return False
        obj["metadata"].pop("managedFields", None)  # half of an object's size, and nobody asks for it
        # a pod is large, and there is one for each replica in the cluster
        objects[key] = {"metadata": obj["metadata"]} if resource in (PODS, GPUS) else obj
        self._tell(resource, key, old, obj)
        return True

    def remove(self, resource: Resource, obj: Object) -> None:
        """Takes in that this object (this uid) is no more."""
        uid = obj["metadata"].get("uid", "")
        self._gone[uid] = None
        while len(self._gone) > MOST_GONE:
            self._gone.popitem(last=False)
        key = key_of(obj)
        old = self._objects[resource].get(key)
        if old is not None and old["metadata"].get("uid", "") == uid:
            del self._objects[resource][key]
            self._tell(resource, key, old, None)

    def replace_all(self, resource: Resource, found: ObjectList) -> None:
        """Takes in a full list: what is not in it, and is not newer than it, has vanished unnoticed."""
        seen = {key_of(item) for item in found.items}
        for key, old in list(self._objects[resource].items()):
            # the answer to one of our own writes may be newer than the list
            version = resource_version(old)
            newer = version.isdecimal() and is_newer(version, found.resource_version)
            if key not in seen and not newer:
                self.remove(resource, old)
        for item in found.items:
            self.put(resource, item)

    # whom it concerns

    def _tell(self, resource: Resource, key: Key, old: Object | None, new: Object | None) -> None:
        if resource is MODELS:
            self._model_changed(key, old, new)
        elif resource is PODS:
            after = None if new is None else PodView.from_object(new)
            for name in dict.fromkeys((_model_name(old), _model_name(new))):
                if not name:
                    continue
                owner = (key[0], name)
                mine = self._pods.setdefault(owner, {})
                before = mine.get(key)
                if after is None:
                    mine.pop(key, None)
                else:
                    mine[key] = after
                if not mine:
                    del self._pods[owner]
                # a sidecar's report has counters, which say nothing here
                if before != after or _owners(old) != _owners(new):
                    self._on_change(owner)
        elif resource is SERVICES:
            self._on_change(key)
        else:
            self._gpu_changed(key, old, new)

    def _model_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        if new is None:
            self._models.pop(key, None)
            self.unplaced.discard(key)
            self._same_name.get(key[1], set()).discard(key)
            if not self._same_name.get(key[1]):
                self._same_name.pop(key[1], None)
        else:
            before = self._models.get(key)
            try:
                self._models[key] = Model.from_object(new)
            except (KeyError, ValueError) as error:
                log.error("model %s/%s is none that its CRD allows, and is left alone: %s", *key, error)
                return
            self._same_name.setdefault(key[1], set()).add(key)
            if before is not None and before.deleting == self._models[key].deleting:
                tell = self._on_state if old is not None and _asked(old) == _asked(new) else self._on_change
                tell(key)
                return
        # the short address may change hands
        self._on_change(key)
        for other in self._same_name.get(key[1], set()) - {key}:
            self._on_change(other)

    def _gpu_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        before = self._gpus.get(key)
        fault_before = self._faults.get(key, "")
        if new is None:
            self._gpus.pop(key, None)
            self._faults.pop(key, None)
        else:
            self._gpus[key] = Gpu.from_object(new)
            self._faults[key] = (new["metadata"].get("annotations") or {}).get(ANNOTATION_FAULT, "")
        after = self._gpus.get(key)
        _move(self._gpus_on, key, _node(before), _node(after))
        _move(self._gpus_of, key, _named(before), _named(after))
        entries_before, entries_after = _entries(before), _entries(after)
        for entry in entries_before ^ entries_after:
            self._on_state((entry[0], entry[1]))
        if _device(before) != _device(after) or fault_before != self._faults.get(key, ""):
            for waiting in self.unplaced:
                self._on_change(waiting)
            node = after.node if after else before.node if before else ""
            for owner, pod in self.pods():
                if pod.node == node:
                    self._on_change(owner)


def _asked(model: Object) -> tuple[Any, ...]:
    """Everything of a Model but its status, and wishes that are its sidecars' business."""
    meta = {name: value for name, value in model["metadata"].items() if name != "resourceVersion"}
    annotations = meta.pop("annotations", None) or {}
    return meta, {name: text for name, text in annotations.items() if name not in _WISHES}, model.get("spec")


def _model_name(pod: Object | None) -> str | None:
    return None if pod is None else (pod["metadata"].get("labels") or {}).get(LABEL_MODEL)


def _owners(obj: Object | None) -> Any:
    return None if obj is None else obj["metadata"].get("ownerReferences")


def _entries(gpu: Gpu | None) -> set[tuple[Any, ...]]:
    """What a Model's status says of a GPU; stats and times of use are none of it."""
    if gpu is None:
        return set()
    occupants = {(o.pod.namespace, o.model, o.pod.name, o.state, o.reserved) for o in gpu.occupants}
    waiting = {(i.pod.namespace, i.model, i.pod.name, "waits", i.requested) for i in gpu.intents}
    return occupants | waiting


def _named(gpu: Gpu | None) -> set[Key]:
    """The Models that a GPU names."""
    if gpu is None:
        return set()
    holders = {(occupant.pod.namespace, occupant.model) for occupant in gpu.occupants}
    return holders | {(intent.pod.namespace, intent.model) for intent in gpu.intents}


def _node(gpu: Gpu | None) -> set[str]:
    return {gpu.node} if gpu is not None and gpu.node else set()


def _move(index: dict[K, set[Key]], key: Key, before: set[K], after: set[K]) -> None:
    """Makes an index name an object under `after` and no longer under the rest of `before`."""
    for name in before - after:
        index[name].discard(key)
        if not index[name]:
            del index[name]
    for name in after - before:
        index.setdefault(name, set()).add(key)


def _device(gpu: Gpu | None) -> tuple[Any, ...]:
    return () if gpu is None else (gpu.node, gpu.index, gpu.total)
