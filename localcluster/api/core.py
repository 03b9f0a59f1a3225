"""The API itself: synchronous, without sockets. `Api.handle` takes a request and gives its answer."""

import hmac
import logging
import random
import sqlite3
import uuid
from datetime import UTC

from greenthread.clock import Clock, SystemClock

from . import discovery, pods
from .bodies import read_body
from .builtin import builtin_types, fill_store
from .crds import CustomTypes
from .deletion import Deletion
from .errors import StatusError, bad_request, no_such_path, not_found
from .gc import Collector
from .messages import Forward, Log, Request, Response, json_response, status_response, text_response
from .reads import Reads
from .resources import ResourceType
from .reviews import review
from .storage import Key, Store, Stored
from .watches import Watch
from .writes import Writes

_log = logging.getLogger(__name__)
BODY_LIMIT = 3 * 1024 * 1024
Answer = Response | Watch | Log | Forward


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
        self.rng = rng or random.SystemRandom()
        self.logs = logs
        self.types: dict[tuple[str, str], dict[str, ResourceType]] = {}
        for rt in builtin_types():
            self.types.setdefault((rt.group, rt.version), {})[rt.plural] = rt
        self.reads = Reads(self)
        self.writes = Writes(self)
        self.deletion = Deletion(self)
        self.create, self.update = self.writes.create, self.writes.update
        self.delete, self.remove = self.deletion.delete, self.deletion.remove
        self.end_watches = self.reads.end_watches
        self.custom = CustomTypes(self)
        self.collector = Collector(self)
        self.custom.load()
        self.collector.load()
        fill_store(self)

    def now(self) -> str:
        """The time as objects carry it: UTC, whole seconds."""
        return self.clock.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def new_uid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

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

    def must_get(self, rt: ResourceType, key: Key) -> Stored:
        stored = self.store.get(rt.storage, key)
        if stored is None:
            raise not_found(rt.group, rt.plural, key[1])
        return stored

    def handle(self, request: Request) -> Answer:
        """Answers a request; never raises for what a client did wrong."""
        try:
            answer = self._route(request)
        except StatusError as error:
            answer = status_response(error)
        except sqlite3.Error as error:
            _log.error("the state file cannot be written: %s", error)
            answer = status_response(
                StatusError(500, "InternalError", f"Internal error occurred: the state file cannot be written: {error}")
            )
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
            return json_response(201, review(self, rt, read_body(request, rt)[0]))
        if sub:
            return self._subresource(rt, request, (namespace, name), sub, rest)
        if name:
            key = (namespace, name)
            if method == "GET":
                if query.get("watch") in ("true", "1"):
                    return self.reads.watch(rt, request, namespace, name)
                return self.reads.one(rt, request, self.must_get(rt, key))
            if method == "PUT":
                body, duplicates = read_body(request, rt)
                return self.writes.put(rt, request, key, body, duplicates, "")
            if method == "PATCH":
                return self.writes.patch(rt, request, key, "")
            if method == "DELETE":
                return self.deletion.one(rt, request, key)
            raise self._not_supported(rt, method)
        if method == "GET":
            if query.get("watch") in ("true", "1"):
                return self.reads.watch(rt, request, namespace, "")
            return self.reads.list(rt, request, namespace)
        if method == "POST":
            body, duplicates = read_body(request, rt)
            return self.writes.post(rt, request, namespace, body, duplicates)
        if method == "DELETE":
            return self.deletion.many(rt, request, namespace)
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
                return self.reads.one(rt, request, self.must_get(rt, key))
            if method == "PUT":
                body, duplicates = read_body(request, rt)
                return self.writes.put(rt, request, key, body, duplicates, "status")
            if method == "PATCH":
                return self.writes.patch(rt, request, key, "status")
            raise self._not_supported(rt, method)
        if rt.storage == "pods" and sub in pods.SUBRESOURCES:
            return pods.subresource(self, rt, request, key, sub, rest)
        if rt.storage == "namespaces" and sub == "finalize" and method == "PUT":
            body, duplicates = read_body(request, rt)
            return self.writes.put(rt, request, key, body, duplicates, "finalize")
        if rt.storage == "pods" and sub in pods.REFUSED:
            raise StatusError(501, "NotImplemented", f"pods/{sub} is not supported by this local API")
        raise no_such_path()
