"""The recipes that come with the program: what they say of themselves, and what follows from it."""

from __future__ import annotations

import pytest
import yaml

from greenthread.model import Model
from kubectl_greenthread import recipes
from localcluster.engine.memory import CONTEXT_BYTES
from localcluster.engine.weights import weight_bytes

ALL = recipes.all_recipes()
each = pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)

DOCUMENTED = {
    "gpt-oss-20b": ("openai/gpt-oss-20b", 1, []),
    "llama-3-1-8b": ("meta-llama/Llama-3.1-8B-Instruct", 1, []),
    "qwen-3-4b-thinking-2507": ("Qwen/Qwen3-4B-Thinking-2507", 1, []),
    "qwen-3-5-35b-a3b": ("Qwen/Qwen3.5-35B-A3B", 1, ["--reasoning-parser", "qwen3", "--enable-auto-tool-choice",
                                                     "--tool-call-parser", "qwen3_coder"]),
    "kimi-vl-s3b-thinking-2506": ("moonshotai/Kimi-VL-A3B-Thinking-2506", 1, ["--trust-remote-code"]),
    "llama-3-1-70b": ("meta-llama/Llama-3.1-70B-Instruct", 2, []),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documented_recipes_are_as_they_were_published(name: str) -> None:
    model, gpus, args = DOCUMENTED[name]
    empty: dict[str, object] = {"fairness": {}, "kvCache": {}, "lora": {}, "sleep": {}, "staging": {}, "resources": {}}
    spec = {"modelName": model, "dtype": "bfloat16", "gpuMemoryUtilization": "0.90", "tensorParallelSize": gpus,
            "replicas": 1, "extraArgs": ["--enforce-eager", *args], **empty}  # fmt: skip
    metadata = {"name": name, "namespace": "greenthread-system"}
    whole = {"apiVersion": "greenthread.ai/v1alpha1", "kind": "Model", "metadata": metadata, "spec": spec}
    assert recipes.read(name).manifest == whole


def test_there_is_one_for_every_task_and_for_several_gpus() -> None:
    assert len(ALL) >= 30
    assert {recipe.task for recipe in ALL} == set(recipes.TASKS)
    assert {recipe.gpus for recipe in ALL} >= {1, 2, 4, 8}
    assert len({recipe.spec["modelName"] for recipe in ALL}) == len(ALL)


@each
def test_it_reads_alike_by_the_plugins_reader_and_by_yaml(recipe: recipes.Recipe) -> None:
    assert recipe.manifest == yaml.safe_load(recipe.text)
    assert recipe.manifest["metadata"]["name"] == recipe.name


@each
def test_it_says_what_it_is(recipe: recipes.Recipe) -> None:
    assert recipe.about.endswith(".")
    assert recipe.weights > 0
    assert recipe.least > 0
    assert Model.from_object(recipe.manifest).spec.model_name == recipe.spec["modelName"]


@each
def test_some_common_card_holds_it_as_it_is_written(recipe: recipes.Recipe) -> None:
    assert any(recipe.starts(card) for _, card in recipes.CARDS)


@each
def test_pooling_models_and_tool_callers_have_their_flags(recipe: recipes.Recipe) -> None:
    args = recipe.spec["extraArgs"]
    assert ("--runner" in args) == (recipe.task in ("embeddings", "rerank"))
    assert ("--tool-call-parser" in args) == ("--enable-auto-tool-choice" in args)
    if recipe.task == "tools":
        assert "--tool-call-parser" in args
    if recipe.task == "reasoning" and recipe.name not in DOCUMENTED:
        assert "--reasoning-parser" in args


def test_what_it_takes_is_its_share_and_the_context() -> None:
    assert pytest.approx(CONTEXT_BYTES / 2**30, abs=0.01) == recipes.CONTEXT
    recipe = recipes.read("gpt-oss-20b")
    assert recipe.takes(96) == pytest.approx(88.2)  # which is what was published for it
    assert recipe.needs == pytest.approx(12.8 + 5 + 1.8)
    assert recipe.starts(22.5)
    assert not recipe.starts(19)


@each
def test_the_smallest_share_starts_and_a_smaller_one_does_not(recipe: recipes.Recipe) -> None:
    for _, card in recipes.CARDS:
        share = recipe.smallest_share(card)
        if share is None:
            assert recipe.needs > card - 0.01 * card
            continue
        assert share * card >= recipe.needs - recipes.CONTEXT > (share - 0.01) * card - 1e-9
        assert share * card + recipes.CONTEXT <= card


@each
def test_the_simulated_engine_starts_where_the_recipe_says(recipe: recipes.Recipe) -> None:
    """And so a mistyped size shows: the simulation takes sizes from names, or knows them."""
    size = weight_bytes(recipe.spec["modelName"], recipe.spec["dtype"], recipe.spec.get("quantization", "")) / 2**30
    if recipe.name != "gpt-oss-20b":  # simulated with the two bytes that its dtype says; it has half a one
        assert recipe.weights / 1.7 < size < recipe.weights * 1.3
        for _, card in recipes.CARDS:
            assert not recipe.starts(card) or size / recipe.gpus < recipe.share * card
