"""Reading: single objects, lists, pages and watches, in the forms that clients ask for."""

from __future__ import annotations

import base64
import binascii
import builtins
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import tables
from .errors import StatusError, bad_request, gone
from .messages import Request, Response, json_response
from .resources import ResourceType
from .selectors import field_selector, label_selector, only_name
from .storage import Key, Object, Stored, dumps
from .watches import Form, Watch

if TYPE_CHECKING:
    from .core import Api


class Reads:
    """Answers GET requests."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._watches: dict[str, set[Watch]] = {}

    def end_watches(self, storage: str) -> None:
        """Ends the watches of a resource that is no more."""
        for watch in list(self._watches.pop(storage, ())):
            watch.end()

    def view(self, rt: ResourceType, stored: Stored) -> Stored:
        """The object as this version of the resource shows it."""
        if not rt.stored_as:
            return stored
        obj = rt.from_stored(stored.copy())
        obj["apiVersion"], obj["kind"] = rt.api_version, rt.kind
        return Stored(obj, dumps(obj), stored.version)

    def _form(self, rt: ResourceType, request: Request) -> Form:
        wanted = tables.wanted(request.headers.get("accept", ""))
        return tables.form(wanted, rt, self.view, self._api.clock, request.query.get("includeObject", "Metadata"))

    def one(
        self,
        rt: ResourceType,
        request: Request,
        stored: Stored,
        code: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Response:
        return json_response(code, self._form(rt, request).render(stored), headers)

    def select(
        self, rt: ResourceType, request: Request, namespace: str, objects: dict[Key, Stored]
    ) -> builtins.list[tuple[Key, Stored]]:
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

    def list(self, rt: ResourceType, request: Request, namespace: str) -> Response:
        query = request.query
        version = self._version(request)
        match = query.get("resourceVersionMatch", "")
        limit = _count(query.get("limit", ""), "limit")
        token = query.get("continue", "")
        after: Key | None = None
        self._check_list_options(version, match, token, query)
        at = self._api.store.version
        if token:
            at, after = _decode_continue(token)
        elif match == "Exact" and version is not None:
            at = version
        elif version is not None and version > self._api.store.version:
            raise _too_large(version, self._api.store.version)
        if at > self._api.store.version:
            raise _too_large(at, self._api.store.version)
        try:
            objects = self._api.store.at(rt.storage, at)
        except StatusError:
            if not token:
                raise
            raise gone(
                "The provided continue parameter is too old to display a consistent list result. You must start a new "
                "list without the continue parameter."
            ) from None
        chosen = self.select(rt, request, namespace, objects)
        if after is not None:
            chosen = [item for item in chosen if item[0] > after]
        meta: Object = {"resourceVersion": str(at)}
        if limit and len(chosen) > limit:
            meta["continue"] = _encode_continue(at, chosen[limit - 1][0])
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                meta["remainingItemCount"] = len(chosen) - limit
            chosen = chosen[:limit]
        return self.many(rt, request, [stored for _, stored in chosen], meta)

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

    def many(self, rt: ResourceType, request: Request, items: builtins.list[Stored], meta: Object) -> Response:
        wanted = tables.wanted(request.headers.get("accept", ""))
        if wanted == "table":
            table = tables.table(
                rt, items, self.view, self._api.clock, request.query.get("includeObject", "Metadata"), meta
            )
            return json_response(200, table)
        form = self._form(rt, request)
        head = {"apiVersion": rt.api_version, "kind": rt.list_kind, "metadata": meta}
        if wanted == "metadata":
            head = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": meta}
        body = dumps(head)[:-1] + b',"items":[' + b",".join(form.render(item) for item in items) + b"]}"
        return json_response(200, body)

    def watch(self, rt: ResourceType, request: Request, namespace: str, name: str) -> Watch:
        query = request.query
        version = self._version(request)
        test = self._test(rt, request)
        name = name or only_name(query.get("fieldSelector", ""))
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
        if initial_events in ("true", "1") and version and version > self._api.store.version:
            raise _too_large(version, self._api.store.version)
        since = self._api.store.version if send or version is None else version
        initial = []
        if send:
            initial = [s for key, s in self.select(rt, request, namespace, self._api.store.all(rt.storage))
                       if not name or key[1] == name]  # fmt: skip
        timeout = _count(query.get("timeoutSeconds", ""), "timeoutSeconds")
        watch = Watch(
            self._api.store,
            rt.storage,
            self._form(rt, request),
            namespace=namespace,
            name=name,
            test=test,
            since=since,
            initial=initial,
            initial_end=bookmarks and initial_events in ("true", "1"),
            bookmarks=bookmarks,
            timeout=float(timeout or self._api.rng.randint(1800, 3600)),
        )
        self._watches.setdefault(rt.storage, set()).add(watch)
        watch.on_stop = lambda: self._watches.get(rt.storage, set()).discard(watch)
        return watch


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
