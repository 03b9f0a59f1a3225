"""The API itself: synchronous, without sockets. `Api.handle` takes a request and gives its answer."""

import base64
import binascii
import hmac
import json
import logging
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from greenthread.clock import Clock, SystemClock

from . import cel, discovery, metadata, pods, protobuf, tables
from .builtin import builtin_types, fill_store
from .crds import CRDS, CustomTypes
from .errors import (
    MODIFIED,
    StatusError,
    already_exists,
    bad_request,
    cause,
    conflict,
    forbidden,
    gone,
    invalid,
    no_such_path,
    not_found,
    qualified,
)
from .gc import Collector
from .messages import (
    Forward,
    Log,
    Request,
    Response,
    json_response,
    parse_json,
    parse_yaml,
    status_response,
    text_response,
)
from .patches import PatchError, PatchRefused, json_patch, merge, strategic_merge
from .resources import ResourceType
from .reviews import review
from .schema import apply_defaults, decode, drop_nulls, prune, same, validate
from .selectors import field_selector, label_selector
from .storage import Key, Object, Store, Stored, dumps
from .watches import Form, Watch

_log = logging.getLogger(__name__)
BODY_LIMIT = 3 * 1024 * 1024
EVENT_LIFE = timedelta(hours=1)
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_BLOCKING = ("FieldValueNotSupported", "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany",
             "FieldValueTypeInvalid")  # fmt: skip
"""After an error of these kinds the CEL rules are not evaluated."""
_UNCHECKED = cause(
    "FieldValueInvalid",
    "<nil>",
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation",
    None,
)
Answer = Response | Watch | Log | Forward


@dataclass(frozen=True, slots=True)
class Options:
    """The parameters of a write."""

    dry_run: bool = False
    validation: str = "Warn"

    @staticmethod
    def of(query: Any, body: Any = None) -> "Options":
        """From the query, or the body of a deletion. StatusError 422 for values that do not exist."""
        dry = query.get("dryRun", "")
        if isinstance(body, dict) and body.get("dryRun"):
            dry = ",".join(map(str, body["dryRun"])) if isinstance(body["dryRun"], list) else str(body["dryRun"])
        if dry not in ("", "All"):
            raise StatusError(
                422,
                "Invalid",
                f'Options.meta.k8s.io "" is invalid: dryRun: Unsupported value: {json.dumps(dry)}: '
                'supported values: "All"',
            )
        level = query.get("fieldValidation") or "Warn"
        if level not in ("Ignore", "Warn", "Strict"):
            raise StatusError(
                422,
                "Invalid",
                f'Options.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: {json.dumps(level)}: '
                'supported values: "", "Ignore", "Strict", "Warn"',
            )
        return Options(dry == "All", level)


class Api:
    """The Kubernetes API over one Store. Not for use by several threads."""

    def __init__(
        self,
        store: Store,
        *,
        token: str | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        logs: pods.LogFinder | None = None,
    ) -> None:
        """`token`: what clients must present; None lets everybody in. `rng` makes uids and generated names."""
        self.store = store
        self.clock = clock or SystemClock()
        self._token = None if token is None else token.encode()
        self._rng = rng or random.SystemRandom()
        self.logs = logs
        self.types: dict[tuple[str, str], dict[str, ResourceType]] = {}
        for rt in builtin_types():
            self.types.setdefault((rt.group, rt.version), {})[rt.plural] = rt
        self.custom = CustomTypes(self)
        self.collector = Collector(self)
        self._watches: dict[str, set[Watch]] = {}
        self._events_checked = self.clock.now()
        self.custom.load()
        self.collector.load()
        fill_store(self)

    # --- what the other modules use ---

    def now(self) -> str:
        """The time as objects carry it: UTC, whole seconds."""
        return self.clock.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def new_uid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def type_of(self, group: str, version: str, plural: str) -> ResourceType | None:
        return self.types.get((group, version), {}).get(plural)

    def type_of_kind(self, api_version: str, kind: str) -> ResourceType | None:
        group, _, version = api_version.rpartition("/")
        for rt in self.types.get((group, version), {}).values():
            if rt.kind == kind:
                return rt
        return None

    def every_type(self) -> list[ResourceType]:
        return [rt for group in self.types.values() for rt in group.values()]

    def end_watches(self, storage: str) -> None:
        """Ends the watches of a resource that is no more."""
        for watch in list(self._watches.pop(storage, ())):
            watch.end()

    # --- requests ---

    def handle(self, request: Request) -> Answer:
        """Answers a request; never raises for what a client did wrong."""
        try:
            answer = self._route(request)
        except StatusError as error:
            answer = status_response(error)
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            answer = status_response(
                StatusError(500, "InternalError", "Internal error occurred: this is a bug; the API's log says more")
            )
        return answer

    def _route(self, request: Request) -> Answer:
        parts = [part for part in request.path.split("/") if part]
        open_to_all = discovery.open_answer(parts, request)
        if open_to_all is not None:
            return open_to_all
        self._authenticate(request)
        answer = discovery.answer(self, parts, request)
        if answer is not None:
            return answer
        if len(request.body) > BODY_LIMIT:
            raise StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_LIMIT} bytes")
        if parts[:2] == ["api", "v1"]:
            group, version, rest = "", "v1", parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return text_response(404, "404 page not found\n")
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        if not rest:
            return text_response(404, "404 page not found\n")
        rt = self.type_of(group, version, rest[0])
        if rt is None:
            if rest[0] == "watch":
                raise bad_request("the /watch/ prefix is not supported: use the watch=true parameter")
            return text_response(404, "404 page not found\n")
        if namespace and not rt.namespaced:
            raise no_such_path()
        name = rest[1] if len(rest) > 1 else ""
        sub = rest[2] if len(rest) > 2 else ""
        if rt.namespaced and not namespace and (name or request.method == "POST"):
            raise no_such_path()
        return self._dispatch(rt, request, namespace, name, sub, rest[3:])

    def _authenticate(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            raise StatusError(401, "Unauthorized", "Unauthorized")

    def _dispatch(
        self, rt: ResourceType, request: Request, namespace: str, name: str, sub: str, rest: list[str]
    ) -> Answer:
        method, query = request.method, request.query
        if "create" in rt.verbs and len(rt.verbs) == 1:
            if method != "POST" or name:
                raise self._not_supported(rt, method)
            return json_response(201, review(self, rt, self._body(request, rt)[0]))
        if sub:
            return self._subresource(rt, request, (namespace, name), sub, rest)
        if name:
            key = (namespace, name)
            if method == "GET":
                if query.get("watch") in ("true", "1"):
                    return self._watch(rt, request, namespace, name)
                return self._one(rt, request, self.must_get(rt, key))
            if method == "PUT":
                body, duplicates = self._body(request, rt)
                return self._replace(rt, request, key, body, duplicates, "")
            if method == "PATCH":
                return self._patch(rt, request, key, "")
            if method == "DELETE":
                return self._delete(rt, request, key)
            raise self._not_supported(rt, method)
        if method == "GET":
            if query.get("watch") in ("true", "1"):
                return self._watch(rt, request, namespace, "")
            return self._list(rt, request, namespace)
        if method == "POST":
            body, duplicates = self._body(request, rt)
            return self._create(rt, request, namespace, body, duplicates)
        if method == "DELETE":
            return self._delete_all(rt, request, namespace)
        raise self._not_supported(rt, method)

    def _not_supported(self, rt: ResourceType, method: str) -> StatusError:
        return StatusError(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
            {"group": rt.group, "kind": rt.plural} if rt.group else {"kind": rt.plural},
        )

    def _subresource(self, rt: ResourceType, request: Request, key: Key, sub: str, rest: list[str]) -> Answer:
        method = request.method
        if sub == "status" and rt.status and not rest:
            if method == "GET":
                return self._one(rt, request, self.must_get(rt, key))
            if method == "PUT":
                body, duplicates = self._body(request, rt)
                return self._replace(rt, request, key, body, duplicates, "status")
            if method == "PATCH":
                return self._patch(rt, request, key, "status")
            raise self._not_supported(rt, method)
        if rt.storage == "pods" and sub in pods.SUBRESOURCES:
            return pods.subresource(self, rt, request, key, sub, rest)
        if rt.storage == "namespaces" and sub == "finalize" and method == "PUT":
            body, duplicates = self._body(request, rt)
            return self._replace(rt, request, key, body, duplicates, "finalize")
        if rt.storage == "pods" and sub in pods.REFUSED:
            raise StatusError(501, "NotImplemented", f"pods/{sub} is not supported by this local API")
        raise no_such_path()

    # --- bodies and objects ---

    def _body(self, request: Request, rt: ResourceType) -> tuple[Object, list[str]]:
        content = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if content in ("application/json", "", "text/plain"):
            value, duplicates = self._parsed(request, rt)
        elif content in ("application/yaml", "application/x-yaml", "text/yaml"):
            value, duplicates = parse_yaml(request.body)
        elif content == protobuf.MEDIA:
            value, duplicates = protobuf.decode(request.body), []
        else:
            raise StatusError(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: application/json, "
                "application/yaml",
            )
        if not isinstance(value, dict):
            raise bad_request(f"the body must be an object of kind {rt.kind}")
        self._check_kind(rt, value)
        return value, duplicates

    @staticmethod
    def _parsed(request: Request, rt: ResourceType) -> tuple[Any, list[str]]:
        try:
            return parse_json(request.body)
        except StatusError as error:
            raise bad_request(
                f"the object provided is unrecognized (must be of type {rt.kind}): couldn't get version/kind; json parse "
                f"error: {error.message}"
            ) from None

    def _check_kind(self, rt: ResourceType, body: Object) -> None:
        api_version, kind = body.get("apiVersion", ""), body.get("kind", "")
        if rt.custom and (not kind or not api_version):
            missing = "Kind" if not kind else "apiVersion"
            text = json.dumps(body, separators=(",", ":"))[:200]
            raise bad_request(
                f"the object provided is unrecognized (must be of type {rt.kind}): Object '{missing}' is missing in "
                f"'{text}' ({text})"
            )
        if api_version and api_version != rt.api_version:
            raise bad_request(
                f"the API version in the data ({api_version}) does not match the expected API version "
                f"({rt.api_version})"
            )
        if kind and kind != rt.kind:
            if not rt.custom:
                raise bad_request(f"the kind in the data ({kind}) does not match the expected kind ({rt.kind})")
            name = (body.get("metadata") or {}).get("name", "") if isinstance(body.get("metadata"), dict) else ""
            raise invalid(rt.group, kind, str(name), [cause("FieldValueInvalid", "kind", f"must be {rt.kind}", kind)])
        body["apiVersion"], body["kind"] = rt.api_version, rt.kind

    def _tidy(self, rt: ResourceType, obj: Object, options: Options, duplicates: list[str]) -> dict[str, str]:
        """Shape, pruning, defaults. Returns the warning header; StatusError 400 in strict mode."""
        problems = [f'duplicate field "{key}"' for key in duplicates]
        version = f'{rt.kind} in version "{rt.version}"'
        if rt.schema is not None and not rt.custom:
            wrong = decode(rt.schema, obj)
            if wrong is not None:
                raise bad_request(f"{version} cannot be handled as a {rt.kind}: {wrong}")
        unknown = metadata.shape(obj, version)
        if rt.schema is not None:
            prune(rt.schema, obj, "", unknown, root=True)
        problems += [f'unknown field "{path}"' for path in unknown]
        if problems and options.validation == "Strict":
            raise bad_request(
                f"{version} cannot be handled as a {rt.kind}: strict decoding error: " + ", ".join(problems)
            )
        if rt.schema is not None:
            apply_defaults(rt.schema, obj)
            if rt.custom:
                drop_nulls(rt.schema, obj)
        if problems and options.validation == "Warn":
            return {"Warning": ", ".join(f"299 - {json.dumps(problem)}" for problem in problems)}
        return {}

    def _check(self, rt: ResourceType, obj: Object, old: Object | None, sub: str = "") -> None:
        """StatusError 422 if the object is not valid; of a subresource only that part is checked by schema."""
        name = obj["metadata"].get("name", "")
        rule = rt.name_rule or metadata.dns_subdomain
        found = metadata.check(obj, None if old is not None else rule(name), custom=rt.custom)
        if rt.schema is not None and rt.custom:
            part = rt.schema.properties.get(sub) if sub else None
            if not sub:
                found += validate(rt.schema, obj, "", old, root=True)
            elif part is not None and sub in obj:
                wrong = validate(part, obj[sub], "", (old or {}).get(sub))
                found += [w if w.field == "<nil>" else replace(w, field=f"{sub}.{w.field}".rstrip(".")) for w in wrong]
            if any(problem.kind in _BLOCKING for problem in found):
                found.append(_UNCHECKED)
            else:
                found += cel.validate(rt.schema, obj, old)
        found += rt.check(obj, old)
        if found:
            raise invalid(rt.group, rt.kind, name, found)

    def must_get(self, rt: ResourceType, key: Key) -> Stored:
        stored = self.store.get(rt.storage, key)
        if stored is None:
            raise not_found(rt.group, rt.plural, key[1])
        return stored

    # --- writes ---

    def _create(
        self, rt: ResourceType, request: Request, namespace: str, body: Object, duplicates: list[str]
    ) -> Response:
        options = Options.of(request.query)
        warning = self._tidy(rt, body, options, duplicates)
        stored = self.create(rt, namespace, body, options)
        return self._one(rt, request, stored, 201, warning)

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
            meta["name"] = meta["generateName"][:58] + "".join(self._rng.choice(_SUFFIX) for _ in range(5))
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
        meta["uid"] = self.new_uid()
        meta["creationTimestamp"] = self.now()
        if rt.counts_generation:
            meta["generation"] = 1
        else:
            meta.pop("generation", None)
        rt.prepare(obj, None, self.now())
        if rt.schema is not None and rt.status:
            apply_defaults(rt.schema, obj)
        if rt.namespaced:
            self._namespace_open(rt, namespace, meta.get("name", ""))
        self._check(rt, obj, None)
        key = (namespace, meta["name"])
        if self.store.get(rt.storage, key) is not None:
            if generated:
                raise StatusError(
                    409, "AlreadyExists",
                    f'{qualified(rt.group, rt.plural)} "{key[1]}" already exists, the server was not able to generate '
                    "a unique name for the object",
                )  # fmt: skip
            raise already_exists(rt.group, rt.plural, key[1])
        if rt.storage == CRDS:
            self.custom.admit(obj, None)
        if options is not None and options.dry_run:
            return _unstored(rt, obj)
        return self._settle(rt, self.store.put(rt.storage, key, rt.to_stored(_ordered(obj))), key)

    def _settle(self, rt: ResourceType, stored: Stored, key: Key) -> Stored:
        """After a write: what follows from it. Returns the latest version of the object."""
        if rt.storage == "events":
            self._expire_events()
        if rt.storage == CRDS:
            self.custom.changed(stored.obj)
        if rt.storage == "namespaces":
            fill_store(self, key[1])
        self.collector.written(rt, key, stored)
        self.collector.run()
        return self.store.get(rt.storage, key) or stored

    def _namespace_open(self, rt: ResourceType, namespace: str, name: str) -> None:
        found = self.store.get("namespaces", ("", namespace))
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

    def _replace(
        self, rt: ResourceType, request: Request, key: Key, body: Object, duplicates: list[str], sub: str
    ) -> Response:
        options = Options.of(request.query)
        old = self.must_get(rt, key)
        warning = self._tidy(rt, body, options, duplicates)
        if not body["metadata"].get("resourceVersion") and not rt.unconditional_update:
            raise invalid(
                rt.group, rt.plural, key[1],
                [cause("FieldValueInvalid", "metadata.resourceVersion", "must be specified for an update", 0)],
            )  # fmt: skip
        stored = self.update(rt, key, old, body, sub, options)
        return self._one(rt, request, stored, 200, warning)

    def _patch(self, rt: ResourceType, request: Request, key: Key, sub: str) -> Response:
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
        old = self.must_get(rt, key)
        target = self._view(rt, old).copy()
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
        self._check_kind(rt, body)
        warning = self._tidy(rt, body, options, duplicates)
        stored = self.update(rt, key, old, body, sub, options)
        return self._one(rt, request, stored, 200, warning)

    def update(
        self, rt: ResourceType, key: Key, old: Stored, obj: Object, sub: str = "", options: Options | None = None
    ) -> Stored:
        """Writes a tidy object in the place of `old`; changes `obj`. StatusError if it cannot be."""
        view = self._view(rt, old)
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
        rt.prepare(obj, before, self.now())
        if rt.counts_generation and self._counts(rt, obj, before):
            obj["metadata"]["generation"] = was.get("generation", 0) + 1
        self._check(rt, obj, before, sub)
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
            self.custom.admit(obj, before)
        dry = options is not None and options.dry_run
        if same(obj, before):
            return view if not dry else _unstored(rt, obj)
        if dry:
            return _unstored(rt, obj)
        obj["metadata"].pop("resourceVersion", None)
        stored = self.store.put(rt.storage, key, rt.to_stored(_ordered(obj)))
        if was.get("deletionTimestamp") and self._may_go(rt, stored.obj):
            self.remove(rt, key)
            self.collector.run()
            return stored
        return self._settle(rt, stored, key)

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

    # --- deletion ---

    def _delete(self, rt: ResourceType, request: Request, key: Key) -> Response:
        body: Any = {}
        if request.body.strip():
            body = parse_json(request.body)[0]
            if not isinstance(body, dict):
                raise bad_request("the body of a deletion is DeleteOptions")
        options = Options.of(request.query, body)
        stored = self.must_get(rt, key)
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
        self.collector.run()
        if here or rt.returns_deleted:
            return self._one(rt, request, result)
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
        stored = self.must_get(rt, key)
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
            return self.remove(rt, key), False
        was = meta.get("deletionTimestamp")
        if was is None or (rt.graceful and seconds < meta.get("deletionGracePeriodSeconds", 0)):
            at = self.clock.now().astimezone(UTC) + timedelta(seconds=seconds)
            meta["deletionTimestamp"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
            meta["deletionGracePeriodSeconds"] = seconds
            if meta.get("generation") and was is None:
                meta["generation"] += 1
        if finalizers:
            meta["finalizers"] = finalizers
        else:
            meta.pop("finalizers", None)
        if rt.storage == "namespaces":
            obj.setdefault("status", {})["phase"] = "Terminating"
        if dry_run:
            return _unstored(rt, obj), True
        if dumps(obj) == stored.raw:
            return stored, True
        stored = self.store.put(rt.storage, key, obj)
        self._settle(rt, stored, key)
        return stored, True

    @staticmethod
    def _grace(pod: Object, wanted: int | None) -> int:
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if wanted is None else wanted
        if not pod["spec"].get("nodeName") or pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
            return 0
        return max(int(seconds), 1) if seconds < 0 else int(seconds)

    def _may_go(self, rt: ResourceType, obj: Object) -> bool:
        meta = obj["metadata"]
        if meta.get("finalizers") or (rt.storage == "namespaces" and obj["spec"].get("finalizers")):
            return False
        return not (rt.graceful and meta.get("deletionGracePeriodSeconds", 0) > 0)

    def remove(self, rt: ResourceType, key: Key) -> Stored:
        """Takes an object out of the store at once. Call `collector.run()` when done."""
        last = self.store.remove(rt.storage, key)
        self.collector.removed(rt, key, last)
        if rt.storage == CRDS:
            self.custom.removed(last.obj)
        return last

    def _delete_all(self, rt: ResourceType, request: Request, namespace: str) -> Response:
        body: Any = parse_json(request.body)[0] if request.body.strip() else {}
        options = Options.of(request.query, body)
        chosen = self._select(rt, request, namespace, self.store.all(rt.storage))
        policy = (body.get("propagationPolicy") if isinstance(body, dict) else "") or request.query.get(
            "propagationPolicy", ""
        )
        items = []
        for key, _ in chosen:
            if self.store.get(rt.storage, key) is not None:
                items.append(self.delete(rt, key, policy=policy, dry_run=options.dry_run)[0])
                self.collector.run()
        return self._many(rt, request, items, {"resourceVersion": str(self.store.version)})

    def _expire_events(self) -> None:
        now = self.clock.now()
        if now - self._events_checked < timedelta(minutes=1):
            return
        self._events_checked = now
        for key, stored in list(self.store.all("events").items()):
            made = datetime.fromisoformat(stored.obj["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
            last = stored.obj.get("lastTimestamp") or ""
            if last:
                made = max(made, datetime.fromisoformat(last.replace("Z", "+00:00")))
            if now - made > EVENT_LIFE:
                self.store.remove("events", key)

    # --- reads ---

    def _view(self, rt: ResourceType, stored: Stored) -> Stored:
        """The object as this version of the resource shows it."""
        if not rt.stored_as:
            return stored
        obj = rt.from_stored(stored.copy())
        obj["apiVersion"], obj["kind"] = rt.api_version, rt.kind
        return Stored(obj, dumps(obj), stored.version)

    def _form(self, rt: ResourceType, request: Request) -> Form:
        wanted = tables.wanted(request.headers.get("accept", ""))
        return tables.form(wanted, rt, self._view, self.clock, request.query.get("includeObject", "Metadata"))

    def _one(
        self,
        rt: ResourceType,
        request: Request,
        stored: Stored,
        code: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Response:
        return json_response(code, self._form(rt, request).render(stored), headers)

    def _select(
        self, rt: ResourceType, request: Request, namespace: str, objects: dict[Key, Stored]
    ) -> list[tuple[Key, Stored]]:
        test = self._test(rt, request)
        found = [
            (key, stored)
            for key, stored in objects.items()
            if (not namespace or key[0] == namespace) and (test is None or test(stored.obj))
        ]
        found.sort(key=lambda item: item[0])
        return found

    def _test(self, rt: ResourceType, request: Request) -> Callable[[Object], bool] | None:
        by_label = label_selector(request.query.get("labelSelector", ""))
        by_field = field_selector(request.query.get("fieldSelector", ""), rt.selectable())
        if by_field is not None and rt.stored_as:
            plain, convert = by_field, rt.from_stored
            by_field = lambda obj: plain(convert(dict(obj)))  # noqa: E731
        if by_label is None:
            return by_field

        def labelled(obj: Object) -> bool:
            assert by_label is not None
            return by_label(obj["metadata"].get("labels") or {})

        if by_field is None:
            return labelled
        return lambda obj: labelled(obj) and by_field(obj)

    def _version(self, request: Request) -> int | None:
        text = request.query.get("resourceVersion", "")
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise bad_request(f'invalid resource version "{text}"')
        return int(text)

    def _list(self, rt: ResourceType, request: Request, namespace: str) -> Response:
        query = request.query
        version = self._version(request)
        match = query.get("resourceVersionMatch", "")
        limit = _count(query.get("limit", ""), "limit")
        token = query.get("continue", "")
        after: Key | None = None
        self._check_list_options(version, match, token, query)
        at = self.store.version
        if token:
            at, after = _decode_continue(token)
        elif match == "Exact" and version is not None:
            at = version
        elif version is not None and version > self.store.version:
            raise _too_large(version, self.store.version)
        if at > self.store.version:
            raise _too_large(at, self.store.version)
        try:
            objects = self.store.at(rt.storage, at)
        except StatusError:
            if not token:
                raise
            raise gone(
                "The provided continue parameter is too old to display a consistent list result. You must start a new "
                "list without the continue parameter."
            ) from None
        chosen = self._select(rt, request, namespace, objects)
        if after is not None:
            chosen = [item for item in chosen if item[0] > after]
        meta: Object = {"resourceVersion": str(at)}
        if limit and len(chosen) > limit:
            meta["continue"] = _encode_continue(at, chosen[limit - 1][0])
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                meta["remainingItemCount"] = len(chosen) - limit
            chosen = chosen[:limit]
        return self._many(rt, request, [stored for _, stored in chosen], meta)

    @staticmethod
    def _check_list_options(version: int | None, match: str, token: str, query: Any) -> None:
        def wrong(message: str) -> StatusError:
            return StatusError(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {message}')

        if match not in ("", "Exact", "NotOlderThan"):
            raise wrong(
                f'resourceVersionMatch: Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
            )
        if match and version is None:
            raise wrong(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
        if match and token:
            raise wrong("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided")
        if match == "Exact" and version == 0:
            raise wrong(
                'resourceVersionMatch: Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
            )
        if token and version:
            raise bad_request("specifying resource version is not allowed when using continue")
        if query.get("sendInitialEvents") and query.get("watch") not in ("true", "1"):
            raise wrong("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list")

    def _many(self, rt: ResourceType, request: Request, items: list[Stored], meta: Object) -> Response:
        wanted = tables.wanted(request.headers.get("accept", ""))
        if wanted == "table":
            table = tables.table(
                rt, items, self._view, self.clock, request.query.get("includeObject", "Metadata"), meta
            )
            return json_response(200, table)
        form = self._form(rt, request)
        head = {"apiVersion": rt.api_version, "kind": rt.list_kind, "metadata": meta}
        if wanted == "metadata":
            head = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": meta}
        body = dumps(head)[:-1] + b',"items":[' + b",".join(form.render(item) for item in items) + b"]}"
        return json_response(200, body)

    def _watch(self, rt: ResourceType, request: Request, namespace: str, name: str) -> Watch:
        query = request.query
        version = self._version(request)
        test = self._test(rt, request)
        initial_events = query.get("sendInitialEvents")
        match = query.get("resourceVersionMatch", "")

        def wrong(message: str) -> StatusError:
            return StatusError(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {message}')

        if initial_events in ("true", "1", "false", "0"):
            if match != "NotOlderThan":
                raise wrong(
                    "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to "
                    "NotOlderThan"
                )
            if initial_events in ("true", "1") and query.get("allowWatchBookmarks") not in ("true", "1"):
                pass  # allowed: the client then never learns where the initial events end
        elif match:
            raise wrong(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents "
                "is provided"
            )
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        send = initial_events in ("true", "1") or (initial_events is None and not version)
        if initial_events in ("true", "1") and version and version > self.store.version:
            raise _too_large(version, self.store.version)
        since = self.store.version if send or version is None else version
        initial = []
        if send:
            initial = [s for key, s in self._select(rt, request, namespace, self.store.all(rt.storage))
                       if not name or key[1] == name]  # fmt: skip
        timeout = _count(query.get("timeoutSeconds", ""), "timeoutSeconds")
        watch = Watch(
            self.store,
            rt.storage,
            self._form(rt, request),
            namespace=namespace,
            name=name,
            test=test,
            since=since,
            initial=initial,
            initial_end=bookmarks and initial_events in ("true", "1"),
            bookmarks=bookmarks,
            timeout=float(timeout or self._rng.randint(1800, 3600)),
        )
        self._watches.setdefault(rt.storage, set()).add(watch)
        watch.on_stop = lambda: self._watches.get(rt.storage, set()).discard(watch)
        return watch


def _unstored(rt: ResourceType, obj: Object) -> Stored:
    """What a dry run answers."""
    obj = _ordered(obj)
    return Stored(obj, dumps(obj), 0)


def _ordered(obj: Object) -> Object:
    """apiVersion, kind and metadata first."""
    head = {key: obj[key] for key in ("apiVersion", "kind", "metadata") if key in obj}
    return {**head, **{key: value for key, value in obj.items() if key not in head}}


def _count(text: str, name: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.lstrip("-").isdigit() or len(text) > 12:
        raise bad_request(f'invalid {name} "{text}": a whole number is wanted')
    return max(int(text), 0)


def _too_large(wanted: int, current: int) -> StatusError:
    return StatusError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {wanted}, current: {current}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )


def _encode_continue(version: int, last: Key) -> str:
    token = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": list(last)})
    return base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def _decode_continue(text: str) -> tuple[int, Key]:
    try:
        token = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        namespace, name = token["start"]
        return int(token["rv"]), (str(namespace), str(name))
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise bad_request("continue key is not valid: start a new list without it") from None
