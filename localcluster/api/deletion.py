"""Deletion: at once, after finalizers, or after the grace that a pod is given."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from .bodies import Options
from .crds import CRDS
from .errors import bad_request, cause, conflict, forbidden, invalid
from .messages import Request, Response, json_response, parse_json
from .resources import ResourceType
from .storage import Key, Object, Stored, dumps
from .writes import unstored

if TYPE_CHECKING:
    from .core import Api


class Deletion:
    """Answers DELETE requests."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def one(self, rt: ResourceType, request: Request, key: Key) -> Response:
        body: Any = {}
        if request.body.strip():
            body = parse_json(request.body)[0]
            if not isinstance(body, dict):
                raise bad_request("the body of a deletion is DeleteOptions")
        options = Options.of(request.query, body)
        stored = self._api.must_get(rt, key)
        meta = stored.obj["metadata"]
        wanted = body.get("preconditions") or {}
        for field, name, what in (
            ("uid", "UID", "deleted and then recreated"),
            ("resourceVersion", "ResourceVersion", "modified"),
        ):
            if wanted.get(field) and wanted[field] != meta[field]:
                raise conflict(
                    rt.group, rt.kind, key[1],
                    f"the {name} in the precondition ({wanted[field]}) does not match the {name} in record "
                    f"({meta[field]}). The object might have been {what}",
                )  # fmt: skip
        grace = body.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        policy = body.get("propagationPolicy") or request.query.get("propagationPolicy") or ""
        if body.get("orphanDependents") is True:
            policy = "Orphan"
        if policy not in ("", "Background", "Foreground", "Orphan"):
            raise invalid(
                "meta.k8s.io", "DeleteOptions", "",
                [
                    cause(
                        "FieldValueInvalid", "propagationPolicy",
                        'DeletionPropagation need to be one of "Foreground","Background","Orphan" or nil', policy,
                    )
                ],
            )  # fmt: skip
        try:
            seconds = None if grace is None else int(grace)
        except (TypeError, ValueError):
            raise bad_request(f"gracePeriodSeconds {grace!r} is no number") from None
        result, here = self.delete(rt, key, policy=policy, grace=seconds, dry_run=options.dry_run)
        self._api.collector.run()
        if here or rt.returns_deleted:
            return self._api.reads.one(rt, request, result)
        details = {"name": key[1], "group": rt.group, "kind": rt.plural, "uid": meta["uid"]}
        return json_response(
            200,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": {k: v for k, v in details.items() if v},
            },
        )

    def delete(
        self, rt: ResourceType, key: Key, *, policy: str = "", grace: int | None = None, dry_run: bool = False
    ) -> tuple[Stored, bool]:
        """Deletes an object, or marks it for deletion. Returns its last state and whether it is still there."""
        stored = self._api.must_get(rt, key)
        obj = stored.copy()
        meta = obj["metadata"]
        if rt.storage == "namespaces" and key[1] in ("default", "kube-system"):
            raise forbidden(rt.group, rt.plural, key[1], "this namespace may not be deleted")
        finalizers = [f for f in meta.get("finalizers", []) if f not in ("orphan", "foregroundDeletion")]
        if policy == "Orphan":
            finalizers.append("orphan")
        elif policy == "Foreground":
            finalizers.append("foregroundDeletion")
        elif not policy:
            finalizers = list(meta.get("finalizers", []))
        seconds = self._grace(obj, grace) if rt.graceful else 0
        pending = (
            bool(finalizers) or seconds > 0 or (rt.storage == "namespaces" and bool(obj["spec"].get("finalizers")))
        )
        if not pending:
            if dry_run:
                return stored, False
            if rt.graceful and self._mark(rt, meta, seconds):
                # whoever runs it hears how little time it has
                self._api.store.put(rt.storage, key, obj)
            return self.remove(rt, key), False
        self._mark(rt, meta, seconds)
        if finalizers:
            meta["finalizers"] = finalizers
        else:
            meta.pop("finalizers", None)
        if rt.storage == "namespaces":
            obj.setdefault("status", {})["phase"] = "Terminating"
        if dry_run:
            return unstored(rt, obj), True
        if dumps(obj) == stored.raw:
            return stored, True
        stored = self._api.store.put(rt.storage, key, obj)
        self._api.writes.settle(rt, stored, key)
        return stored, True

    def _mark(self, rt: ResourceType, meta: Object, seconds: int) -> bool:
        """Writes down that it is to be deleted; a later deletion only shortens the grace. False: nothing changed."""
        was = meta.get("deletionTimestamp")
        if was is not None and not (rt.graceful and seconds < meta.get("deletionGracePeriodSeconds", 0)):
            return False
        at = self._api.clock.now().astimezone(UTC) + timedelta(seconds=seconds)
        meta["deletionTimestamp"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        meta["deletionGracePeriodSeconds"] = seconds
        if meta.get("generation") and was is None:
            meta["generation"] += 1
        return True

    @staticmethod
    def _grace(pod: Object, wanted: int | None) -> int:
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if wanted is None else wanted
        if not pod["spec"].get("nodeName") or pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
            return 0
        return max(int(seconds), 1) if seconds < 0 else int(seconds)

    def remove(self, rt: ResourceType, key: Key) -> Stored:
        """Takes an object out of the store at once. Call `collector.run()` when done."""
        last = self._api.store.remove(rt.storage, key)
        self._api.collector.removed(rt, key, last)
        if rt.storage == CRDS:
            self._api.custom.removed(last.obj)
        return last

    def many(self, rt: ResourceType, request: Request, namespace: str) -> Response:
        body: Any = parse_json(request.body)[0] if request.body.strip() else {}
        options = Options.of(request.query, body)
        chosen = self._api.reads.select(rt, request, namespace, self._api.store.all(rt.storage))
        policy = (body.get("propagationPolicy") if isinstance(body, dict) else "") or request.query.get(
            "propagationPolicy", ""
        )
        items = []
        for key, _ in chosen:
            if self._api.store.get(rt.storage, key) is not None:
                items.append(self.delete(rt, key, policy=policy, dry_run=options.dry_run)[0])
                self._api.collector.run()
        return self._api.reads.many(rt, request, items, {"resourceVersion": str(self._api.store.version)})
