"""Garbage collection: what has lost its owners goes, and so does what is in a namespace that ends."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .crds import CRDS
from .resources import ResourceType
from .storage import Key, Object, Stored

if TYPE_CHECKING:
    from .core import Api

Place = tuple[str, Key]
"""(storage, key)"""
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
"""Holds a CRD until its objects are gone."""
ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"


class Collector:
    """Follows owner references. `written` and `removed` note what happened, `run` does what follows."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._owners: dict[Place, frozenset[str]] = {}
        self._dependents: dict[str, set[Place]] = {}
        self._uids: dict[str, Place] = {}
        self._todo: deque[Place] = deque()
        self._types: dict[str, ResourceType] = {}
        self._running = False

    def load(self) -> None:
        """Reads the references of everything in the store, and finishes what a stop interrupted."""
        for rt in self._api.every_type():
            if rt.stored_as or "list" not in rt.verbs:
                continue
            for key, stored in list(self._api.store.all(rt.storage).items()):
                self.written(rt, key, stored)
        self.run()

    def written(self, rt: ResourceType, key: Key, stored: Stored) -> None:
        place = (rt.storage, key)
        self._types[rt.storage] = rt
        meta = stored.obj["metadata"]
        self._uids[meta["uid"]] = place
        owners = frozenset(str(owner.get("uid")) for owner in meta.get("ownerReferences", ()))
        if owners != self._owners.get(place, frozenset()):
            self._unlink(place)
            self._owners[place] = owners
            for uid in owners:
                self._dependents.setdefault(uid, set()).add(place)
            self._todo.append(place)
        if meta.get("deletionTimestamp"):
            self._todo.append(place)

    def removed(self, rt: ResourceType, key: Key, last: Stored) -> None:
        place = (rt.storage, key)
        uid = last.obj["metadata"]["uid"]
        self._uids.pop(uid, None)
        for owner in self._unlink(place):
            if owner in self._uids:
                self._todo.append(self._uids[owner])
        self._todo.extend(sorted(self._dependents.get(uid, ())))
        if rt.custom:
            self._todo.append((CRDS, ("", rt.storage)))
        namespace = self._api.store.get("namespaces", ("", key[0])) if key[0] else None
        if namespace is not None and namespace.obj["metadata"].get("deletionTimestamp"):
            self._todo.append(("namespaces", ("", key[0])))

    def _unlink(self, place: Place) -> frozenset[str]:
        owners = self._owners.pop(place, frozenset())
        for uid in owners:
            left = self._dependents.get(uid, set())
            left.discard(place)
            if not left:
                self._dependents.pop(uid, None)
        return owners

    def run(self) -> None:
        """Works until nothing is left to do."""
        if self._running:
            return
        self._running = True
        try:
            while self._todo:
                self._look(self._todo.popleft())
        finally:
            self._running = False

    def _look(self, place: Place) -> None:
        storage, key = place
        stored = self._api.store.get(storage, key)
        rt = self._types.get(storage)
        if stored is None or rt is None:
            return
        meta = stored.obj["metadata"]
        if meta.get("deletionTimestamp"):
            if storage == "namespaces":
                self._end_namespace(rt, key, stored.obj)
            elif CLEANUP in meta.get("finalizers", ()):
                self._end_resource(rt, key, stored)
            elif ORPHAN in meta.get("finalizers", ()):
                self._orphan(rt, key, stored)
            elif FOREGROUND in meta.get("finalizers", ()):
                self._foreground(rt, key, stored)
            return
        owners = meta.get("ownerReferences", ())
        if not owners or any(self._there(owner, key[0]) for owner in owners):
            return
        policy = ""
        if FOREGROUND in meta.get("finalizers", ()):
            policy = "Foreground"
        elif ORPHAN in meta.get("finalizers", ()):
            policy = "Orphan"
        self._api.delete(rt, key, policy=policy)

    def _there(self, owner: Object, namespace: str) -> bool:
        place = self._uids.get(str(owner.get("uid")))
        if place is None:  # of a kind that is not served here nothing is known
            return self._api.type_of_kind(str(owner.get("apiVersion")), str(owner.get("kind"))) is None
        storage, key = place
        rt = self._types[storage]
        same_kind = owner.get("kind") == rt.kind and str(owner.get("apiVersion")).rpartition("/")[0] == rt.group
        if not same_kind or owner.get("name") != key[1] or (key[0] and key[0] != namespace):
            return False
        stored = self._api.store.get(storage, key)
        if stored is None:
            return False
        meta = stored.obj["metadata"]
        return not (meta.get("deletionTimestamp") and FOREGROUND in meta.get("finalizers", ()))

    def _drop_finalizer(self, rt: ResourceType, key: Key, stored: Stored, finalizer: str) -> None:
        obj = stored.copy()
        obj["metadata"]["finalizers"].remove(finalizer)
        self._api.update(rt, key, stored, obj)

    def _orphan(self, rt: ResourceType, key: Key, stored: Stored) -> None:
        uid = stored.obj["metadata"]["uid"]
        for storage, place in sorted(self._dependents.get(uid, ())):
            child = self._api.store.get(storage, place)
            if child is not None:
                obj = child.copy()
                obj["metadata"]["ownerReferences"] = [
                    owner for owner in obj["metadata"]["ownerReferences"] if owner.get("uid") != uid
                ]
                if not obj["metadata"]["ownerReferences"]:
                    del obj["metadata"]["ownerReferences"]
                self._api.update(self._types[storage], place, child, obj)
        self._drop_finalizer(rt, key, stored, ORPHAN)

    def _foreground(self, rt: ResourceType, key: Key, stored: Stored) -> None:
        uid = stored.obj["metadata"]["uid"]
        blocked = False
        for storage, place in sorted(self._dependents.get(uid, ())):
            child = self._api.store.get(storage, place)
            if child is None:
                continue
            owners = child.obj["metadata"].get("ownerReferences", ())
            blocks = any(owner.get("uid") == uid and owner.get("blockOwnerDeletion") for owner in owners)
            if not child.obj["metadata"].get("deletionTimestamp") and not any(
                self._there(owner, place[0]) for owner in owners
            ):
                self._api.delete(self._types[storage], place, policy="Foreground" if blocks else "")
            if blocks and self._api.store.get(storage, place) is not None:
                blocked = True
        now = self._api.store.get(rt.storage, key)
        if not blocked and now is not None and FOREGROUND in now.obj["metadata"].get("finalizers", ()):
            self._drop_finalizer(rt, key, now, FOREGROUND)

    def _end_resource(self, rt: ResourceType, key: Key, crd: Stored) -> None:
        """Deletes the objects of a CRD that is deleted, and lets it go when none is left."""
        kinds = [kind for kind in self._api.every_type() if kind.storage == key[1] and not kind.stored_as]
        for kind in kinds:
            for place, stored in list(self._api.store.all(kind.storage).items()):
                if not stored.obj["metadata"].get("deletionTimestamp"):
                    self._api.delete(kind, place)
        now = self._api.store.get(rt.storage, key)
        if now is not None and not (kinds and self._api.store.all(key[1])):
            self._drop_finalizer(rt, key, now, CLEANUP)

    def _end_namespace(self, rt: ResourceType, key: Key, namespace: Object) -> None:
        left = False
        for kind in self._api.every_type():
            if kind.stored_as or not kind.namespaced or "list" not in kind.verbs:
                continue
            for place in [k for k in self._api.store.all(kind.storage) if k[0] == key[1]]:
                stored = self._api.store.get(kind.storage, place)
                if stored is not None and not stored.obj["metadata"].get("deletionTimestamp"):
                    self._api.delete(kind, place)
                left = left or self._api.store.get(kind.storage, place) is not None
        if left:
            return
        stored = self._api.store.get(rt.storage, key)
        if stored is None:
            return
        if stored.obj["spec"].get("finalizers") == ["kubernetes"]:
            obj = stored.copy()
            obj["spec"]["finalizers"] = []
            self._api.update(rt, key, stored, obj, "finalize")
