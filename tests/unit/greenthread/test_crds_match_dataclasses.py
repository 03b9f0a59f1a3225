"""The dataclasses of the vocabulary and the CRDs say the same: fields, defaults, states."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenthread.gpu import Gpu, Intent, Occupant, State, Stats, WakeLock
from greenthread.model import Condition, Model, ModelSpec, ModelStatus
from greenthread.names import GROUP, VERSION

Schema = dict[str, Any]


def crd(plural: str) -> Schema:
    manifest = Path(__file__).parents[3] / "manifests" / "crds" / f"{plural}.greenthread.ai.yaml"
    loaded: Schema = yaml.safe_load(manifest.read_text())
    return loaded


def schema(plural: str, *path: str) -> Schema:
    """The schema of a part of the object; `[]` goes into a list's items."""
    found = crd(plural)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for step in path:
        found = found["items"] if step == "[]" else found["properties"][step]
    return found


OCCUPANT = schema("gpus", "status", "occupants", "[]")
INTENT = schema("gpus", "status", "preemptionIntents", "[]")
LOCK = schema("gpus", "status", "wakeLock")
STATS = schema("gpus", "status", "stats")
SPEC = schema("models", "spec")
STATUS = schema("models", "status")

#: A value for each kind of text that differs from its default.
TEXTS = {
    "date-time": "2026-11-22T14:03:22.123456Z",
    "gpuMemoryUtilization": "0.25",
    "modelName": "openai/gpt-oss-20b",
    "namespace": "somewhere",
    "podName": "some-pod",
    "holder": "somewhere/some-pod",
    "gpus": "2,3",
    "maxSize": "10Gi",
    "victims": "somewhere/some-pod",
}


def sample(name: str, part: Schema) -> Any:
    """A value that the schema takes and that is not the default."""
    if "enum" in part:
        return next(value for value in part["enum"] if value not in (part.get("default"), "sleeping", ""))
    match part.get("type", "integer"):
        case "object":
            if "properties" in part:
                return {key: sample(key, child) for key, child in part["properties"].items()}
            return {"key": sample("value", part["additionalProperties"])}
        case "array":
            return [sample(name, part["items"])]
        case "boolean":
            return not part.get("default", False)
        case "integer":
            return 7
    if re.fullmatch(r"\d+(ms|s|m)", part.get("default", "")):
        return "77s"
    return TEXTS.get(part.get("format", name)) or TEXTS.get(name) or "some-text"


def defaulted(part: Schema, value: Any) -> Any:
    """What the API server makes of a value: defaults filled in."""
    if part.get("type") != "object" or "properties" not in part:
        return value
    whole = {key: child["default"] for key, child in part["properties"].items() if "default" in child}
    return {key: defaulted(part["properties"][key], child) for key, child in {**whole, **value}.items()}


def leaves(part: Schema, *path: str) -> Iterator[tuple[str, ...]]:
    """The paths of all fields that have no fields of their own."""
    for key, child in part.get("properties", {}).items():
        if "properties" in child:
            yield from leaves(child, *path, key)
        else:
            yield (*path, key)


def without(value: Any, path: tuple[str, ...]) -> Any:
    if len(path) == 1:
        return {key: child for key, child in value.items() if key != path[0]}
    return {**value, path[0]: without(value[path[0]], path[1:])}


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z]+)", r"_\1", name).lower()


def test_group_version_and_names() -> None:
    for plural in ("models", "gpus"):
        spec = crd(plural)["spec"]
        assert (spec["group"], spec["versions"][0]["name"]) == (GROUP, VERSION)


def test_the_defaults_of_a_model_are_the_same_in_both() -> None:
    bare = {"modelName": "openai/gpt-oss-20b"}
    assert ModelSpec.from_object(bare) == ModelSpec(model_name="openai/gpt-oss-20b")
    with_defaults = ModelSpec.from_object(defaulted(SPEC, bare))
    assert dataclasses.replace(with_defaults, resources={}) == ModelSpec.from_object(bare)
    assert with_defaults.resources == {"limits": {}, "requests": {}}


@pytest.mark.parametrize("path", [leaf for leaf in leaves(SPEC) if leaf != ("modelName",)], ids=".".join)
def test_every_field_of_a_models_spec_is_read(path: tuple[str, ...]) -> None:
    whole = sample("spec", SPEC)
    assert ModelSpec.from_object(without(whole, path)) != ModelSpec.from_object(whole)


def test_every_part_of_the_dataclass_of_a_spec_has_its_field() -> None:
    named = {snake(key): part for key, part in SPEC["properties"].items()}
    for field in dataclasses.fields(ModelSpec):
        value = getattr(ModelSpec.from_object({"modelName": "gpt2"}), field.name)
        if dataclasses.is_dataclass(value):
            inner = {part.name for part in dataclasses.fields(value)}
            assert inner == {snake(key) for key in named[field.name]["properties"]}
    assert {field.name for field in dataclasses.fields(ModelSpec)} == set(named)


def test_every_field_of_a_models_status_that_we_read_is_in_the_schema() -> None:
    known = {snake(key) for key in STATUS["properties"]}
    assert {field.name for field in dataclasses.fields(ModelStatus)} <= known
    conditions = schema("models", "status", "conditions", "[]")
    assert {field.name for field in dataclasses.fields(Condition)} <= set(conditions["properties"])
    whole = sample("status", STATUS)
    for field in dataclasses.fields(ModelStatus):
        [key] = [key for key in STATUS["properties"] if snake(key) == field.name]
        if key != "phase":  # its sample is its default
            read = Model.from_object({"metadata": {"name": "m"}, "spec": {"modelName": "x"}, "status": whole}).status
            assert read != ModelStatus.from_object(without(whole, (key,))), key


def test_the_states_are_the_same_in_both() -> None:
    assert set(OCCUPANT["properties"]["state"]["enum"]) == {str(state) for state in State}


@pytest.mark.parametrize(("kind", "part"), [(Occupant, OCCUPANT), (Intent, INTENT), (WakeLock, LOCK)])
def test_what_a_sidecar_writes_has_exactly_the_fields_of_the_schema(kind: Any, part: Schema) -> None:
    whole = sample("item", part)
    assert kind.from_object(whole).to_object() == whole
    assert set(whole) == set(part["properties"])


@pytest.mark.parametrize(("kind", "part"), [(Occupant, OCCUPANT), (Intent, INTENT)])
def test_what_a_sidecar_leaves_out_has_the_same_default(kind: Any, part: Schema) -> None:
    bare = {key: value for key, value in sample("item", part).items() if key in part["required"]}
    assert kind.from_object(defaulted(part, bare)) == kind.from_object(bare)


@pytest.mark.parametrize("path", list(leaves(STATS)), ids=".".join)
def test_every_measured_figure_is_read(path: tuple[str, ...]) -> None:
    whole = sample("stats", STATS)
    assert Stats.from_object(without(whole, path)) != Stats.from_object(whole)


def test_every_field_of_a_gpu_is_read() -> None:
    status = schema("gpus", "status")
    whole = {"metadata": {"name": "node-0"}, "status": sample("status", status)}
    for key in status["properties"]:
        if key != "availableMemoryBytes":  # the agent derives it, for people
            assert Gpu.from_object(without(whole, ("status", key))) != Gpu.from_object(whole), key
