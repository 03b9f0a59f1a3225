"""JSON patch, merge patch and strategic merge patch. All change the given target, or return a new one."""

import json
import re
from typing import Any

from .schema import Schema

_INDEX = re.compile(r"(?:0|[1-9]\d*)\Z")
_ABSENT: Any = object()


class PatchError(ValueError):
    """A patch that is malformed; the message says how."""


class PatchRefused(Exception):
    """A well-formed JSON patch that does not fit the object: a `test` that fails, a path that is not there."""


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def json_patch(target: Any, operations: Any, *, limit: int = 10_000) -> Any:
    """RFC 6902."""
    if not isinstance(operations, list):
        raise PatchError("a JSON patch is a list of operations")
    if len(operations) > limit:
        raise PatchError(f"The allowed maximum operations in a JSON patch is {limit}, got {len(operations)}")
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise PatchError("each operation of a JSON patch is an object with op and path")
        target = _apply(target, operation)
    return target


def _apply(target: Any, operation: dict[str, Any]) -> Any:
    op, path = operation.get("op"), operation["path"]
    tokens = _tokens(path)
    if op in ("add", "replace", "test") and "value" not in operation:
        if op != "test":
            raise PatchError(f"operation {op} needs a value")
        operation = {**operation, "value": None}
    if op == "test":
        found = _find(target, tokens, path, absent_ok=True)
        wanted = operation["value"]
        if found is _ABSENT:
            if wanted is None:
                return target
            raise PatchRefused(f"testing path {path} failed: it is not there")
        if not _equal(found, wanted):
            raise PatchRefused(f"testing value {path} failed")
        return target
    if op == "remove":
        return _remove(target, tokens, path)
    if op == "add":
        return _add(target, tokens, path, _copied(operation["value"]))
    if op == "replace":
        if not tokens:
            return _copied(operation["value"])
        parent = _find(target, tokens[:-1], path)
        if isinstance(parent, list):
            parent[_position(parent, tokens[-1], path, end=len(parent))] = _copied(operation["value"])
        elif isinstance(parent, dict):  # kube-apiserver, too, lets replace add a key
            parent[tokens[-1]] = _copied(operation["value"])
        else:
            raise PatchRefused(f"{path}: its parent is no object or list")
        return target
    if op in ("move", "copy"):
        source = operation.get("from")
        if not isinstance(source, str):
            raise PatchError(f"operation {op} needs from")
        value = _copied(_find(target, _tokens(source), source))
        if op == "move":
            target = _remove(target, _tokens(source), source)
        return _add(target, tokens, path, value)
    raise PatchError(f"unknown operation {op!r}; known are add, remove, replace, move, copy, test")


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value)) if isinstance(value, dict | list) else value


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) and json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _tokens(path: str) -> list[str]:
    if path == "":
        return []
    if not path.startswith("/"):
        raise PatchError(f"path {path!r} does not start with /")
    return [token.replace("~1", "/").replace("~0", "~") for token in path[1:].split("/")]


def _position(items: list[Any], token: str, path: str, *, end: int) -> int:
    if not _INDEX.match(token):
        raise PatchRefused(f"{path}: {token!r} is no index of a list")
    if int(token) >= end:
        raise PatchRefused(f"{path}: index {token} is past the end of a list of {len(items)}")
    return int(token)


def _find(target: Any, tokens: list[str], path: str, *, absent_ok: bool = False) -> Any:
    for depth, token in enumerate(tokens):
        last = depth == len(tokens) - 1
        if isinstance(target, dict):
            if token not in target:
                if last and absent_ok:
                    return _ABSENT
                raise PatchRefused(f"{path}: there is no {token!r}")
            target = target[token]
        elif isinstance(target, list):
            target = target[_position(target, token, path, end=len(target))]
        else:
            raise PatchRefused(f"{path}: there is no {token!r}")
    return target


def _add(target: Any, tokens: list[str], path: str, value: Any) -> Any:
    if not tokens:
        return value
    parent = _find(target, tokens[:-1], path)
    if isinstance(parent, list):
        if tokens[-1] == "-":
            parent.append(value)
        else:
            parent.insert(_position(parent, tokens[-1], path, end=len(parent) + 1), value)
    elif isinstance(parent, dict):
        parent[tokens[-1]] = value
    else:
        raise PatchRefused(f"{path}: its parent is no object or list")
    return target


def _remove(target: Any, tokens: list[str], path: str) -> Any:
    if not tokens:
        raise PatchRefused("the whole object cannot be removed")
    _find(target, tokens, path)
    parent = _find(target, tokens[:-1], path)
    if isinstance(parent, list):
        del parent[int(tokens[-1])]
    else:
        del parent[tokens[-1]]
    return target


# --- strategic merge ------------------------------------------------------------------------------------------------


def strategic_merge(target: Any, patch: Any, schema: Schema | None) -> Any:
    """Kubernetes' strategic merge: lists merge by the key that their schema names; `$patch` and its like are obeyed."""
    if not isinstance(patch, dict):
        raise PatchError("a strategic merge patch is an object")
    return _merge_object(target if isinstance(target, dict) else {}, patch, schema)


def _merge_object(target: dict[str, Any], patch: dict[str, Any], schema: Schema | None) -> dict[str, Any]:
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise PatchError(f"unknown $patch directive {directive!r}; known are replace, delete, merge")
    retain = patch.get("$retainKeys")
    if retain is not None:
        for key in [key for key in target if key not in retain]:
            del target[key]
    orders: dict[str, list[Any]] = {}
    for key, value in patch.items():
        if key in ("$patch", "$retainKeys"):
            continue
        if key.startswith("$setElementOrder/"):
            orders[key.split("/", 1)[1]] = value
            continue
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.split("/", 1)[1]
            if isinstance(target.get(name), list):
                target[name] = [item for item in target[name] if item not in value]
            continue
        child = schema.value(key) if schema is not None else None
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            here = target.get(key)
            target[key] = _merge_object(here if isinstance(here, dict) else {}, value, child)
        elif isinstance(value, list):
            here = target.get(key)
            target[key] = _merge_list(here if isinstance(here, list) else [], value, child)
        else:
            target[key] = value
    for key, order in orders.items():
        if isinstance(target.get(key), list):
            child = schema.value(key) if schema is not None else None
            target[key] = _ordered(target[key], order, _merge_key(child))
    return target


def _merge_key(schema: Schema | None) -> str | None:
    if schema is None or "merge" not in str(schema.raw.get("x-kubernetes-patch-strategy", "")):
        return None
    return str(schema.raw.get("x-kubernetes-patch-merge-key", "")) or ""


def _merge_list(target: list[Any], patch: list[Any], schema: Schema | None) -> list[Any]:
    key = _merge_key(schema)
    if key is None:
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    if not key:
        return target + [item for item in patch if item not in target]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and item.get("$patch") == "replace")]
    items = schema.items if schema is not None else None
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise PatchError(f"map: {json.dumps(item)} does not contain declared merge key: {key}")
        place = next((i for i, old in enumerate(target) if isinstance(old, dict) and old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if place is not None:
                del target[place]
        elif place is None:
            target.append(_merge_object({}, item, items))
        else:
            target[place] = _merge_object(target[place], item, items)
    return target


def _ordered(items: list[Any], order: list[Any], key: str | None) -> list[Any]:
    """Items named in `order` in that order; the others keep their place after the item they stood behind."""

    def identity(item: Any) -> str:
        return json.dumps(item.get(key) if key and isinstance(item, dict) else item)

    rank = {identity(item): position for position, item in enumerate(order)}
    named = iter(sorted((i for i in items if identity(i) in rank), key=lambda i: rank[identity(i)]))
    return [next(named) if identity(item) in rank else item for item in items]
