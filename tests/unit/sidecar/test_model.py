"""docs/protocol.pml is a model of this code: what both name must be the same on both sides."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

from greenthread.gpu import State

ROOT = Path(__file__).parents[3]
MODEL = (ROOT / "docs/protocol.pml").read_text()
PAGE = (ROOT / "docs/protocol.md").read_text()
MODULES = {
    "Lifecycle": "sidecar.lifecycle.Lifecycle",
    "Claims": "sidecar.claims.Claims",
    "Wants": "sidecar.wants.Wants",
    "Engine": "sidecar.engine.Engine",
    "Agent": "controller.agent.agent.Agent",
    "Intent": "greenthread.gpu.Intent",
    "fairness": "greenthread.fairness",
    "reasons": "sidecar.reasons",
    "cleanup": "controller.agent.cleanup",
}


def the(path):
    module, _, name = path.rpartition(".")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), name)


NAMES = sorted(
    set(re.findall(rf"\b((?:{'|'.join(MODULES)})\.(?!py\b)\w+)", MODEL + PAGE.partition("## Checked by model")[2]))
)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_model_names_exists(name):
    owner, attribute = name.split(".")
    assert re.search(rf"\b{attribute}\b", inspect.getsource(the(MODULES[owner])))


def test_the_model_names_the_functions_of_the_protocol():
    assert len(NAMES) > 30


def test_every_step_of_the_model_has_its_place_in_the_code():
    block = MODEL.partition("/* Where a sidecar is.")[2].partition("/* Why it leaves. */")[0]
    steps = set(re.findall(r"#define (\w+)", block)) - {"DOWN", "DEAD", "GONE"}
    table = PAGE.partition("| step of the model |")[2].partition("\n\n")[0]
    assert len(steps) > 15
    assert not [step for step in steps if f"`{step}`" not in table]


def test_an_occupant_has_the_states_of_the_model():
    block = MODEL.partition("/* Occupants' states. */")[2].partition("\n\n")[0]
    assert set(re.findall(r"#define (\w+)", block)) - {"NONE"} == {str(state).upper() for state in State}


def test_the_model_keeps_for_a_gpu_what_the_api_server_keeps():
    crd = yaml.safe_load((ROOT / "manifests/crds/gpus.greenthread.ai.yaml").read_text())
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    kept = MODEL.partition("/* ---- what the API server keeps")[2].partition("/* ---- what is so")[0]
    for field in ("occupants", "preemptionIntents", "wakeLock"):
        assert field in status
        assert field in kept
