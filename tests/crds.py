"""The product's CustomResourceDefinitions, read once: parsing them takes longer than most tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "manifests" / "crds"


def crds() -> list[dict[str, Any]]:
    """Each as an object of the caller's own."""
    found: list[dict[str, Any]] = json.loads(_read())
    return found


@cache
def _read() -> str:
    return json.dumps([yaml.safe_load(file.read_text()) for file in sorted(FOLDER.glob("*.yaml"))])
