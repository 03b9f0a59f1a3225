"""A sidecar's control calls for each backend and level, carried out by a whole engine: it answers as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenthread.gpu import PodRef
from greenthread.model import Model
from sidecar.engine.vllm import VllmEngine
from sidecar.settings import Settings
from tests.real_vllm.engines import Engine

GREEDY = {"model": "tiny", "prompt": "import os", "max_tokens": 8, "temperature": 0.0}


class Alive:
    """The engine runs, and is not the sidecar's to start."""

    pid = 1


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "read-back"])
@pytest.mark.parametrize("backend", ["cumem", "greenthread"])
async def test_an_engine_sleeps_wakes_and_answers_as_before(
    engine: Engine, tmp_path: Path, backend: str, pinned: bool
) -> None:
    if (engine.kind, backend, pinned) == ("simulated", "greenthread", False):
        pytest.skip("it was started with vLLM's own backend, which drops the weights at level 2; on a CPU none does")
    settings = Settings(
        PodRef("ns", "p"), "u", "m", "node", (0,), str(tmp_path), engine_port=engine.port, sleep_backend=backend
    )
    process: Any = Alive()
    sidecars = VllmEngine(settings, print, process=process)
    spec: dict[str, Any] = {"modelName": "m/m", "staging": {"pinned": pinned}}
    sidecars.configure(Model.from_object({"metadata": {"name": "m", "namespace": "ns"}, "spec": spec}).spec)
    before = engine.post("/v1/completions", GREEDY).json()["choices"][0]["text"]
    for _ in range(2):
        await sidecars.sleep()
        assert engine.sleeping
        await sidecars.wake()
        assert not engine.sleeping
    assert engine.post("/v1/completions", GREEDY).json()["choices"][0]["text"] == before
