"""Every recipe is taken by server-side apply with strict validation, and the second time it changes nothing."""

from __future__ import annotations

import pytest

from tests.conformance.crd_api import Api, Object, manifests, path, send

APPLY = "application/apply-patch+yaml"
QUERY = "?fieldManager=recipes&fieldValidation=Strict"


@pytest.mark.parametrize(("name", "recipe"), list(manifests("recipes")))
def test_it_is_applied(crd_api: Api, name: str, recipe: Object) -> None:
    where = path("models", "greenthread-system", f"applied-{name}"[:50].rstrip("-")) + QUERY
    manifest = {**recipe, "metadata": {**recipe["metadata"], "name": where.rpartition("/")[2].partition("?")[0]}}
    first = send(crd_api, "PATCH", where, manifest, APPLY).ok()
    assert {key: first["spec"][key] for key in recipe["spec"] if recipe["spec"][key] != {}} == {
        key: value for key, value in recipe["spec"].items() if value != {}
    }
    again = send(crd_api, "PATCH", where, manifest, APPLY).ok()
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_field_that_does_not_exist_is_refused(crd_api: Api) -> None:
    _, recipe = next(iter(manifests("recipes")))
    wrong = {**recipe, "spec": {**recipe["spec"], "gpuMemory": "1"}}
    where = path("models", "greenthread-system", recipe["metadata"]["name"]) + QUERY
    answer = send(crd_api, "PATCH", where, wrong, APPLY)
    assert 400 <= answer.status < 500
    assert "gpuMemory" in answer.body["message"]
