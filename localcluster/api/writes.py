"""Writing: create, replace, patch, and what follows from a write."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from .bodies import Options, check, check_kind, tidy
from .builtin import fill_store
from .crds import CRDS
from .errors import (
    MODIFIED,
    StatusError,
    already_exists,
    bad_request,
    cause,
    conflict,
    forbidden,
    invalid,
    not_found,
    qualified,
)
from .messages import Request, Response, parse_json
from .patches import PatchError, PatchRefused, json_patch, merge, strategic_merge
from .resources import ResourceType
from .schema import apply_defaults, same
from .storage import Key, Object, Stored, dumps

if TYPE_CHECKING:
    from .core import Api

EVENT_LIFE = timedelta(hours=1)
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"


class Writes:
    """Answers POST, PUT and PATCH requests."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._events_checked = api.clock.now()

    def post(self, rt: ResourceType, request: Request, namespace: str, body: Object, duplicates: list[str]) -> Response:
        options = Options.of(request.query)
        warning = tidy(rt, body, options, duplicates)
        stored = self.create(rt, namespace, body, options)
        return self._api.reads.one(rt, request, stored, 201, warning)

    def create(self, rt: ResourceType, namespace: str, obj: Object, options: Options | None = None) -> Stored:
        """Creates an object that is already tidy; changes `obj`. StatusError if it cannot be."""
        meta = obj.setdefault("metadata", {})
        if rt.namespaced:
            if meta.get("namespace", namespace) != namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            meta["namespace"] = namespace
        elif meta.pop("namespace", ""):
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if meta.get("resourceVersion"):
            raise StatusError(500, "InternalError", "resourceVersion should not be set on objects to be created")
        generated = not meta.get("name") and bool(meta.get("generateName"))
        if generated:
            meta["name"] = meta["generateName"][:58] + "".join(self._api.rng.choice(_SUFFIX) for _ in range(5))
        for owned in (
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
            "resourceVersion",
        ):
            meta.pop(owned, None)
        if rt.status:
            obj.pop("status", None)
        meta["uid"] = self._api.new_uid()
        meta["creationTimestamp"] = self._api.now()
        if rt.counts_generation:
            meta["generation"] = 1
        else:
            meta.pop("generation", None)
        rt.prepare(obj, None, self._api.now())
        if rt.schema is not None and rt.status:
            apply_defaults(rt.schema, obj)
        if rt.namespaced:
            self._namespace_open(rt, namespace, meta.get("name", ""))
        check(rt, obj, None)
        key = (namespace, meta["name"])
        if self._api.store.get(rt.storage, key) is not None:
            if generated:
                raise StatusError(
                    409, "AlreadyExists",
                    f'{qualified(rt.group, rt.plural)} "{key[1]}" already exists, the server was not able to generate '
                    "a unique name for the object",
                )  # fmt: skip
            raise already_exists(rt.group, rt.plural, key[1])
        if rt.storage == CRDS:
            self._api.custom.admit(obj, None)
        if options is not None and options.dry_run:
            return unstored(rt, obj)
        return self.settle(rt, self._api.store.put(rt.storage, key, rt.to_stored(ordered(obj))), key)

    def settle(self, rt: ResourceType, stored: Stored, key: Key) -> Stored:
        """After a write: what follows from it. Returns the latest version of the object."""
        if rt.storage == "events":
            self._expire_events()
        if rt.storage == CRDS:
            self._api.custom.changed(stored.obj)
        if rt.storage == "namespaces":
            fill_store(self._api, key[1])
        self._api.collector.written(rt, key, stored)
        self._api.collector.run()
        return self._api.store.get(rt.storage, key) or stored

    def _namespace_open(self, rt: ResourceType, namespace: str, name: str) -> None:
        found = self._api.store.get("namespaces", ("", namespace))
        if found is None:
            raise not_found("", "namespaces", namespace)
        if found.obj["metadata"].get("deletionTimestamp"):
            error = forbidden(
                rt.group, rt.plural, name,
                f"unable to create new content in namespace {namespace} because it is being terminated",
            )  # fmt: skip
            assert error.details is not None
            error.details["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {namespace} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise error

    def put(
        self, rt: ResourceType, request: Request, key: Key, body: Object, duplicates: list[str], sub: str
    ) -> Response:
        options = Options.of(request.query)
        old = self._api.must_get(rt, key)
        warning = tidy(rt, body, options, duplicates)
        if not body["metadata"].get("resourceVersion") and not rt.unconditional_update:
            raise invalid(
                rt.group, rt.plural, key[1],
                [cause("FieldValueInvalid", "metadata.resourceVersion", "must be specified for an update", 0)],
            )  # fmt: skip
        stored = self.update(rt, key, old, body, sub, options)
        return self._api.reads.one(rt, request, stored, 200, warning)

    def patch(self, rt: ResourceType, request: Request, key: Key, sub: str) -> Response:
        options = Options.of(request.query)
        content = request.headers.get("content-type", "").partition(";")[0].strip()
        kinds = ["application/json-patch+json", "application/merge-patch+json"]
        if not rt.custom:
            kinds.append("application/strategic-merge-patch+json")
        if content == "application/apply-patch+yaml":
            raise StatusError(
                415,
                "UnsupportedMediaType",
                "server-side apply is not supported by this local API: use client-side apply (kubectl apply "
                "--server-side=false) or a JSON, merge or strategic merge patch",
            )
        if content not in kinds:
            raise StatusError(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: " + ", ".join(kinds),
            )
        patch, duplicates = parse_json(request.body)
        old = self._api.must_get(rt, key)
        target = self._api.reads.view(rt, old).copy()
        try:
            if content == kinds[0]:
                body = json_patch(target, patch)
            elif content == kinds[1]:
                if not isinstance(patch, dict):
                    raise PatchError("a merge patch is an object")
                body = merge(target, patch)
            else:
                body = strategic_merge(target, patch, rt.schema)
        except PatchError as error:
            raise bad_request(f"error decoding patch: {error}") from None
        except PatchRefused as error:
            raise StatusError(
                422,
                "Invalid",
                f"the server rejected our request due to an error in our request: {error}",
                {"name": key[1], "group": rt.group, "kind": rt.plural},
            ) from None
        except RecursionError:
            raise bad_request("the patch is nested too deeply") from None
        if not isinstance(body, dict):
            raise bad_request("the patched object must be an object")
        check_kind(rt, body)
        warning = tidy(rt, body, options, duplicates)
        stored = self.update(rt, key, old, body, sub, options)
        return self._api.reads.one(rt, request, stored, 200, warning)

    def update(
        self, rt: ResourceType, key: Key, old: Stored, obj: Object, sub: str = "", options: Options | None = None
    ) -> Stored:
        """Writes a tidy object in the place of `old`; changes `obj`. StatusError if it cannot be."""
        view = self._api.reads.view(rt, old)
        before = view.obj
        meta, was = obj["metadata"], before["metadata"]
        self._check_identity(rt, key, meta, was)
        for owned in ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "uid", "generation"):
            meta.pop(owned, None)
            if owned in was:
                meta[owned] = was[owned]
        meta["name"] = was["name"]
        for dropped in ("selfLink", "managedFields"):
            meta.pop(dropped, None)
        meta["resourceVersion"] = was["resourceVersion"]
        if sub:
            part = "spec" if sub == "finalize" else sub
            obj = {
                **before,
                "metadata": {**meta} if rt.status_writes_metadata else dict(was),
                part: obj.get(part, {} if part == "spec" else None),
            }
            if obj[part] is None:
                del obj[part]
            if rt.status_writes_metadata:
                for kept in ("ownerReferences", "finalizers"):
                    obj["metadata"].pop(kept, None)
                    if kept in was:
                        obj["metadata"][kept] = was[kept]
        elif rt.status:
            obj.pop("status", None)
            if "status" in before:
                obj["status"] = before["status"]
        if rt.storage == "namespaces" and sub != "finalize":
            obj["spec"] = before.get("spec", {})
        rt.prepare(obj, before, self._api.now())
        if rt.counts_generation and self._counts(rt, obj, before):
            obj["metadata"]["generation"] = was.get("generation", 0) + 1
        check(rt, obj, before, sub)
        if was.get("deletionTimestamp"):
            new = set(obj["metadata"].get("finalizers", ())) - set(was.get("finalizers", ()))
            if new:
                raise invalid(
                    rt.group, rt.kind, key[1],
                    [
                        cause(
                            "FieldValueForbidden", "metadata.finalizers",
                            "no new finalizers can be added if the object is being deleted, found new finalizers "
                            f"{json.dumps(sorted(new)).replace(', ', ' ')}".replace(",", ""),
                        )
                    ],
                )  # fmt: skip
        if rt.storage == CRDS and not sub:
            self._api.custom.admit(obj, before)
        dry = options is not None and options.dry_run
        if same(obj, before):
            return view if not dry else unstored(rt, obj)
        if dry:
            return unstored(rt, obj)
        obj["metadata"].pop("resourceVersion", None)
        stored = self._api.store.put(rt.storage, key, rt.to_stored(ordered(obj)))
        if was.get("deletionTimestamp") and may_go(rt, stored.obj):
            self._api.remove(rt, key)
            self._api.collector.run()
            return stored
        return self.settle(rt, stored, key)

    def _check_identity(self, rt: ResourceType, key: Key, meta: Object, was: Object) -> None:
        if meta.get("name", key[1]) != key[1]:
            raise bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({key[1]})")
        if rt.namespaced and meta.setdefault("namespace", key[0]) != key[0]:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if not rt.namespaced and meta.pop("namespace", ""):
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if meta.get("uid", was["uid"]) != was["uid"]:
            raise conflict(
                rt.group, rt.plural, key[1],
                f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {was['uid']}",
            )  # fmt: skip
        version = meta.get("resourceVersion")
        if version and version != was["resourceVersion"]:
            raise conflict(rt.group, rt.plural, key[1], MODIFIED)

    @staticmethod
    def _counts(rt: ResourceType, obj: Object, before: Object) -> bool:
        ignored = {"metadata", "apiVersion", "kind"} | ({"status"} if rt.status else set())
        return {k: v for k, v in obj.items() if k not in ignored} != {
            k: v for k, v in before.items() if k not in ignored
        }

    def _expire_events(self) -> None:
        now = self._api.clock.now()
        if now - self._events_checked < timedelta(minutes=1):
            return
        self._events_checked = now
        for key, stored in list(self._api.store.all("events").items()):
            made = datetime.fromisoformat(stored.obj["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
            last = stored.obj.get("lastTimestamp") or ""
            if last:
                made = max(made, datetime.fromisoformat(last.replace("Z", "+00:00")))
            if now - made > EVENT_LIFE:
                self._api.store.remove("events", key)


def may_go(rt: ResourceType, obj: Object) -> bool:
    meta = obj["metadata"]
    if meta.get("finalizers") or (rt.storage == "namespaces" and obj["spec"].get("finalizers")):
        return False
    return not (rt.graceful and meta.get("deletionGracePeriodSeconds", 0) > 0)


def unstored(rt: ResourceType, obj: Object) -> Stored:
    """What a dry run answers."""
    obj = ordered(obj)
    return Stored(obj, dumps(obj), 0)


def ordered(obj: Object) -> Object:
    """apiVersion, kind and metadata first."""
    head: Object = {key: obj[key] for key in ("apiVersion", "kind", "metadata") if key in obj}
    return {**head, **{key: value for key, value in obj.items() if key not in head}}
