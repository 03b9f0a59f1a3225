"""The command line that each recipe becomes is one that vLLM takes: asked of its own argument parser."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.pods import engine_command
from controller.settings import PodSettings
from greenthread.model import Model
from kubectl_greenthread import recipes
from localcluster.engine.arguments import parse
from tests.testbeds.programs import Missing, skip_or_fail
from tests.testbeds.vllm import wrong_arguments

FOUND = [recipe for recipe in recipes.all_recipes() if not recipe.is_command]


def words(manifest: dict[str, Any]) -> list[str]:
    """What follows `vllm serve`, as the kubelet hands it over."""
    program, verb, *rest = engine_command(Model.from_object(manifest), PodSettings())
    assert (program, verb) == ("vllm", "serve")
    return [word.replace("$(ENGINE_PORT)", "8000") for word in rest]


@pytest.mark.parametrize("recipe", FOUND, ids=lambda recipe: recipe.name)
def test_the_simulated_engine_takes_it(recipe: recipes.Recipe) -> None:
    found = parse(["serve", *words(yaml.safe_load(recipe.text))])
    assert found.model == recipe.spec["modelName"]
    assert found.tensor_parallel_size == recipe.gpus


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_real_vllm_takes_them_all_and_refuses_mistakes() -> None:
    mistakes = [["--tool-call-parser", "qwen4_coder"], ["--reasoning-parser", "glm46"], ["--no-such-flag"],
                ["--limit-mm-per-prompt", "{image: 4}"], ["--enable-auto-tool-choice"]]  # fmt: skip
    good = [words(yaml.safe_load(recipe.text)) for recipe in FOUND]
    try:
        said = wrong_arguments([*good, *([*good[0], *mistake] for mistake in mistakes[:-1]), ["m", *mistakes[-1]]])
    except Missing as missing:
        skip_or_fail(missing)
    assert {recipe.name: wrong for recipe, wrong in zip(FOUND, said, strict=False) if wrong} == {}
    assert all(said[len(good) :]), f"vLLM took a mistake: {said[len(good) :]}"
