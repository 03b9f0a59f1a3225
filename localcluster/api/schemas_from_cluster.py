"""Regenerates `schemas.json.gz`, the schemas of the built-in kinds, from a running kube-apiserver.

python -m localcluster.api.schemas_from_cluster --kubeconfig FILE
"""

import argparse
import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

from .builtin import builtin_types
from .openapi import SCHEMAS

_PREFIX = "#/components/schemas/"


def main() -> None:
    parser = argparse.ArgumentParser(description="Regenerate the schemas of the built-in kinds.")
    parser.add_argument("--kubeconfig", required=True)
    kubeconfig = parser.parse_args().kubeconfig

    def read(path: str) -> Any:
        command = ["kubectl", "--kubeconfig", kubeconfig, "get", "--raw", path]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    types = builtin_types()
    everything: dict[str, Any] = {}
    for group_version in sorted({f"apis/{t.group}/{t.version}" if t.group else f"api/{t.version}" for t in types}):
        everything |= read(f"/openapi/v3/{group_version}")["components"]["schemas"]
    served = {(t.group, t.version, t.kind) for t in types}
    kept: dict[str, Any] = {}
    todo = [name for name, schema in everything.items() if _kinds(schema) & served]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept[name] = _tidy(everything[name])
            todo += _references(kept[name])
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    SCHEMAS.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(kept)} schemas, {Path(SCHEMAS).stat().st_size} bytes")


def _kinds(schema: Any) -> set[tuple[str, str, str]]:
    kinds = schema.get("x-kubernetes-group-version-kind", ())
    return {(k["group"], k["version"], k["kind"]) for k in kinds} if len(kinds) == 1 else set()


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        found = [node["$ref"].removeprefix(_PREFIX)] if isinstance(node.get("$ref"), str) else []
        return found + [name for value in node.values() for name in _references(value)]
    return [name for value in node for name in _references(value)] if isinstance(node, list) else []


def _tidy(node: Any) -> Any:
    """Without the defaults that are only Go's zero values."""
    if isinstance(node, dict):
        zero = "default" in node and not node["default"]
        kept = {key: _tidy(value) for key, value in node.items() if not (key == "default" and zero)}
        if set(kept) == {"allOf"} and len(kept["allOf"]) == 1:
            return kept["allOf"][0]
        return kept
    return [_tidy(value) for value in node] if isinstance(node, list) else node


if __name__ == "__main__":
    main()
