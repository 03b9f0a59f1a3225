"""What a YAML reader may forgive and kubectl's kustomize does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
FILES = sorted(file for file in MANIFESTS.rglob("*.yaml") if "templates" not in file.parts)


def repeated(node: yaml.Node | None) -> list[str]:
    """Keys that a mapping has twice, with their lines."""
    found = []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        found = [f"{key.value}, line {key.start_mark.line + 1}" for key, _ in node.value if keys.count(key.value) > 1]
        for _, value in node.value:
            found += repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            found += repeated(value)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(MANIFESTS)))
def test_no_key_stands_twice(file: Path) -> None:
    assert [key for node in yaml.compose_all(file.read_text(encoding="utf-8")) for key in repeated(node)] == []
