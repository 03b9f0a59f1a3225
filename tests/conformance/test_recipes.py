"""Every recipe is taken with strict validation, and the second time it changes nothing.

On kube-apiserver by server-side apply; the local API, which has none, gets them by create and merge patch.
"""

from __future__ import annotations

import pytest

from tests.conformance.crd_api import MERGE_PATCH, Answer, Api, Object, manifests, path, send
from tests.testbeds.kube import RealApi

NAMESPACE = "greenthread-system"
APPLY = "application/apply-patch+yaml"


def applied(api: Api, manifest: Object, first: bool) -> Answer:
    where = path("models", NAMESPACE, manifest["metadata"]["name"])
    if isinstance(api, RealApi):
        return send(api, "PATCH", f"{where}?fieldManager=recipes&fieldValidation=Strict", manifest, APPLY)
    if first:
        return send(api, "POST", path("models", NAMESPACE) + "?fieldValidation=Strict", manifest)
    return send(api, "PATCH", f"{where}?fieldValidation=Strict", manifest, MERGE_PATCH)


@pytest.mark.parametrize(("name", "recipe"), list(manifests("recipes")))
def test_it_is_applied(crd_api: Api, name: str, recipe: Object) -> None:
    manifest = {**recipe, "metadata": {**recipe["metadata"], "name": f"applied-{name}"}}
    first = applied(crd_api, manifest, first=True).ok()
    said = {key: value for key, value in recipe["spec"].items() if value != {}}
    assert {key: first["spec"][key] for key in said} == said
    again = applied(crd_api, manifest, first=False).ok()
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_field_that_does_not_exist_is_refused(crd_api: Api) -> None:
    _, recipe = next(iter(manifests("recipes")))
    wrong = {**recipe, "metadata": {"name": "wrong"}, "spec": {**recipe["spec"], "gpuMemory": "1"}}
    answer = applied(crd_api, wrong, first=True)
    assert answer.status >= 400
    assert "gpuMemory" in answer.body["message"]
