"""Prints objects and plain data in kubectl's formats."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from greenthread.names import API_VERSION, GROUP
from kubectl_greenthread import jsonpath
from kubectl_greenthread.arguments import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from greenthread.kube.core import Object
    from kubectl_greenthread.options import Session


def out(text: str, end: str = "\n") -> None:
    """A line of the result, on stdout."""
    sys.stdout.write(text + end)


def tell(text: str) -> None:
    """A line for people, on stderr."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def print_data(session: Session, value: Any) -> None:
    """Plain data as JSON, YAML or by a template."""
    match session.output:
        case "json":
            out(json.dumps(value, indent=4, ensure_ascii=False))
        case "yaml":
            from greenthread.kube.write_yaml import write_yaml

            out(write_yaml(value), end="")
        case "jsonpath":
            out(_rendered(session.template, value), end="")


def print_objects(session: Session, objects: Sequence[Object], *, single: bool | None = None) -> None:
    """Objects as kubectl prints them: `single`: the one by itself (by default when there is one), else a List."""
    shown = [_shown(obj) for obj in objects]
    if session.output == "name":
        for obj in shown:
            group = obj["apiVersion"].partition("/")[0] if "/" in obj["apiVersion"] else ""
            out(f"{obj['kind'].lower()}{'.' + group if group else ''}/{obj['metadata']['name']}")
    elif session.output == "custom-columns":
        for line in custom_columns(session.template, shown, session.headers):
            out(line)
    else:
        whole = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": shown}
        alone = len(shown) == 1 if single is None else single
        print_data(session, shown[0] if alone and shown else whole)


def is_objects(session: Session) -> bool:
    """Whether -o asks for objects rather than for a table."""
    return session.output not in ("", "wide")


def _shown(obj: Object) -> Object:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {"apiVersion": API_VERSION, "kind": "Model", **obj, "metadata": metadata}


def _rendered(template: str, value: Any) -> str:
    try:
        return jsonpath.render(template, value)
    except jsonpath.BadPath as error:
        raise Usage(f"-o jsonpath: {error}") from None


def sorted_by(session: Session, objects: Sequence[Object]) -> list[Object]:
    """The objects in the order of --sort-by, a path as kubectl has it; those without the field come first."""
    if not session.sort_by:
        return list(objects)

    def key(obj: Object) -> tuple[int, float, str]:
        try:
            found = jsonpath.select(session.sort_by, obj)
        except jsonpath.BadPath as error:
            raise Usage(f"--sort-by: {error}") from None
        if not found:
            return (0, 0.0, "")
        if isinstance(found[0], int | float):
            return (1, float(found[0]), "")
        return (2, 0.0, jsonpath.text_of(found[0]))

    return sorted(objects, key=key)


def custom_columns(template: str, objects: Sequence[Object], headers: bool) -> list[str]:
    """`NAME:.metadata.name,PHASE:.status.phase` as a table like kubectl's. Raises Usage."""
    columns = []
    for part in template.split(","):
        title, colon, path = part.partition(":")
        if not (title and colon and path):
            raise Usage(f"-o custom-columns: {part!r} is not TITLE:.path")
        columns.append((title, path))
    rows = [[title for title, _ in columns]] if headers else []
    try:
        rows += [[_cell(jsonpath.select(path, obj)) for _, path in columns] for obj in objects]
    except jsonpath.BadPath as error:
        raise Usage(f"-o custom-columns: {error}") from None
    widths = [max(len(row[at]) for row in rows) + 3 for at in range(len(columns))] if rows else []
    return ["".join(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)) + row[-1] for row in rows]


def _cell(found: Sequence[Any]) -> str:
    return ",".join(jsonpath.text_of(value) if value is not None else "<nil>" for value in found) or "<none>"


def object_name(kind: str, name: str) -> str:
    """`model.greenthread.ai/NAME`."""
    return f"{kind}.{GROUP}/{name}"
