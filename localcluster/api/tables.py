"""The forms in which clients may ask for objects: whole, metadata only, or rows of a table."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from greenthread.clock import Clock

from .errors import bad_request
from .resources import Column, ResourceType
from .storage import Object, Stored, dumps
from .watches import Form

View = Callable[[ResourceType, Stored], Stored]
_MEDIA = re.compile(r"application/json\s*(;[^,]*)?|\*/\*|application/\*|application/yaml|text/yaml")


def wanted(accept: str) -> str:
    """`json`, `table` or `metadata`: the first form in the Accept header that there is. StatusError 406 for none."""
    from .errors import StatusError

    if not accept.strip():
        return "json"
    for choice in accept.split(","):
        kind, *parameters = [part.strip() for part in choice.split(";")]
        if kind not in ("application/json", "*/*", "application/*"):
            continue
        given = dict(p.partition("=")[::2] for p in parameters)
        if "as" not in given:
            return "json"
        if given.get("g") == "meta.k8s.io" and given.get("v") in ("v1", "v1beta1"):
            if given["as"] == "Table":
                return "table"
            if given["as"] in ("PartialObjectMetadata", "PartialObjectMetadataList"):
                return "metadata"
    raise StatusError(
        406, "NotAcceptable", "only the following media types are accepted: application/json, "
        "application/json;as=Table;v=v1;g=meta.k8s.io, application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    )  # fmt: skip


def form(kind: str, rt: ResourceType, view: View, clock: Clock, include: str) -> Form:
    """How single objects are written in one of these forms."""
    if kind == "table":

        def bookmark_table(version: int, annotations: dict[str, str]) -> Object:
            meta: Object = {"resourceVersion": str(version)}
            out = _head(rt, meta)
            if annotations:
                row = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                       "metadata": {**meta, "annotations": annotations}}  # fmt: skip
                out["rows"] = [{"cells": [None] * len(out["columnDefinitions"]), "object": row}]
            return out

        return Form(
            f"{rt.version}/table/{include}",
            lambda stored: dumps(table(rt, [stored], view, clock, include, {"resourceVersion": str(stored.version)})),
            bookmark_table,
        )
    if kind == "metadata":

        def bookmark_meta(version: int, annotations: dict[str, str]) -> Object:
            return _partial({"metadata": _bookmark_metadata(version, annotations)})

        return Form(f"{rt.version}/metadata", lambda stored: dumps(_partial(view(rt, stored).obj)), bookmark_meta)

    def bookmark(version: int, annotations: dict[str, str]) -> Object:
        return {"kind": rt.kind, "apiVersion": rt.api_version, "metadata": _bookmark_metadata(version, annotations)}

    return Form(f"{rt.group}/{rt.version}/json", lambda stored: view(rt, stored).raw, bookmark)


def _bookmark_metadata(version: int, annotations: dict[str, str]) -> Object:
    meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        meta["annotations"] = annotations
    return meta


def _partial(obj: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


NAME = Column("Name", lambda obj: obj["metadata"]["name"], format="name", description="Name of the object")
AGE = Column("Age", lambda obj: obj["metadata"].get("creationTimestamp"), "date", description="Time since creation")


def _columns(rt: ResourceType) -> tuple[Column, ...]:
    if rt.custom:
        return (NAME, *(rt.columns or (AGE,)))
    return rt.columns or (NAME, AGE)


def _head(rt: ResourceType, meta: Object) -> Object:
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": [
            {"name": c.name, "type": c.type, "format": c.format, "description": c.description, "priority": c.priority}
            for c in _columns(rt)
        ],
        "rows": [],
    }


def table(rt: ResourceType, items: list[Stored], view: View, clock: Clock, include: str, meta: Object) -> Object:
    """A Table object with a row for each item."""
    if include not in ("Metadata", "Object", "None"):
        raise bad_request(f'includeObject "{include}" is none of Metadata, Object, None')
    out = _head(rt, meta)
    columns = _columns(rt)
    now = clock.now()
    for stored in items:
        obj = view(rt, stored).obj
        cells = [_cell(column, obj, now) for column in columns]
        row: Object = {"cells": cells}
        if include == "Metadata":
            row["object"] = _partial(obj)
        elif include == "Object":
            row["object"] = obj
        out["rows"].append(row)
    return out


def _cell(column: Column, obj: Object, now: datetime) -> Any:
    value = column.read(obj)
    if column.type == "date":
        return age(value, now) if isinstance(value, str) else "<unknown>" if value is None else "<invalid>"
    if value is None:
        return None
    if column.type == "integer":
        try:
            return int(value)
        except (TypeError, ValueError):
            return None
    if column.type == "number":
        return float(value) if isinstance(value, int | float) else None
    if column.type == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, str):
        return value
    return dumps(value).decode()


def age(text: str, now: datetime) -> str:
    """How long ago a time was, as kubectl writes it: 45s, 3m12s, 5h, 12d."""
    try:
        then = datetime.fromisoformat(text.upper().replace("Z", "+00:00")).astimezone(UTC)
    except ValueError:
        return "<invalid>"
    seconds = int((now - then).total_seconds())
    if seconds < -1:
        return "<invalid>"
    return human_duration(max(seconds, 0))


def human_duration(seconds: int) -> str:
    """A duration in the two largest units that matter."""
    if seconds < 120:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = minutes // 60
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    years = days // 365
    if years < 8:
        return f"{years}y{days % 365}d" if days % 365 else f"{years}y"
    return f"{years}y"


# --- jsonpath -------------------------------------------------------------------------------------------------------

_STEP = re.compile(
    r"""\.(?P<name>(?:[^.\[\]\s()?*'"\\]|\\.)+)|\.\[|\[(?P<index>-?\d+)\]|\[(?P<all>\*)\]|\.(?P<star>\*)"""
    r"""|\[['"](?P<quoted>[^'"\]]+)['"]\]"""
    r"""|\[\?\(\s*@\.(?P<field>[\w.\-/]+)\s*(?P<op>==|!=)\s*(?P<value>"[^"]*"|'[^']*'|[\w.\-]+)\s*\)\]"""
)


def jsonpath(path: str) -> Callable[[Object], Any]:
    """Reads by the JSONPath of a printer column; the first match counts. ValueError if it is not understood."""
    steps: list[re.Match[str]] = []
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            raise ValueError(f"the JSONPath {path!r} is not understood at {path[position:]!r}")
        if match.group(0) == ".[":
            position += 1
            continue
        steps.append(match)
        position = match.end()
    if not steps:
        raise ValueError(f"the JSONPath {path!r} is empty")

    def read(obj: Object) -> Any:
        values: list[Any] = [obj]
        for step in steps:
            values = [found for value in values for found in _step(value, step)]
        return values[0] if values else None

    return read


def _step(value: Any, step: re.Match[str]) -> list[Any]:
    name = step.group("name") or step.group("quoted")
    if name is not None:
        name = re.sub(r"\\(.)", r"\1", name)
        return [value[name]] if isinstance(value, dict) and name in value else []
    if step.group("index") is not None:
        index = int(step.group("index"))
        return [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []
    if step.group("all") or step.group("star"):
        return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not isinstance(value, list):
        return []
    wanted = step.group("value").strip("\"'")
    found = []
    for item in value:
        here = item
        for key in step.group("field").split("."):
            here = here.get(key) if isinstance(here, dict) else None
        text = str(here).lower() if isinstance(here, bool) else str(here)
        if here is not None and (text == wanted) == (step.group("op") == "=="):
            found.append(item)
    return found
