"""The sleep backend in vLLM's own Python: found by its entry point, its kernel right, driven as by the worker."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localcluster.gpus.ledger import GIB, create
from tests.real_vllm.engines import Engine
from tests.testbeds.programs import Missing, need_vllm, skip_or_fail

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "in_vllm"


@pytest.fixture(scope="module")
def python() -> Path:
    """vLLM's."""
    try:
        return need_vllm().with_name("python")
    except Missing as missing:
        skip_or_fail(missing)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the init container leaves it."""
    folder = tmp_path_factory.mktemp("delivered")
    subprocess.run([sys.executable, "-m", "vllm_sleep.deliver", str(folder)], check=True, cwd=ROOT)
    return folder


def passes(python: Path, script: str, path: Path, *arguments: str, **environment: str) -> None:
    """Runs the script with `path` as its only other source of modules; it says `ok` at its end."""
    done = subprocess.run(
        # not its own folder: a script there has the name of a module that it wants
        [str(python), "-P", str(SCRIPTS / script), *arguments],
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "ok"


def test_equal_contents_have_equal_numbers_and_others_have_others(python: Path, tmp_path: Path) -> None:
    passes(python, "fingerprints.py", ROOT, TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))


def test_the_kernel_compiles_for_the_gpus_of_data_centres(python: Path, tmp_path: Path) -> None:
    passes(python, "compiles.py", ROOT, TRITON_CACHE_DIR=str(tmp_path))


def test_vllm_finds_the_delivered_plugin_by_its_entry_point(python: Path, delivered: Path) -> None:
    passes(python, "plugin.py", delivered)


def test_the_backend_does_what_the_worker_asks(python: Path, tmp_path: Path) -> None:
    passes(python, "backend.py", ROOT, str(tmp_path))


def test_without_a_driver_the_bindings_are_an_answer_not_a_crash(python: Path) -> None:
    done = subprocess.run(
        [str(python), "-c", "from vllm_sleep.launch import Helper; print(Helper().answer({'call': 'state'}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = ast.literal_eval(done.stdout)
    assert answer["checkpoint"] is False
    assert answer["reason"].startswith("CUDA's driver cannot be called: ")


def test_vllm_starts_with_the_plugin_and_without_a_complaint(
    python: Path, delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(delivered))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    ledger = create(tmp_path / "gpus.db", count=1, total_bytes=96 * GIB)
    with Engine("real", ledger, tmp_path) as engine:
        assert engine.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2}).status_code == 200
        log = engine.log.read_text()
    ledger.close()
    assert "- greenthread -> vllm_sleep.plugin:register" in log
    assert "Failed to load plugin" not in log
    assert "Traceback" not in log
