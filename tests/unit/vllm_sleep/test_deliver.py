"""What an init container puts into vLLM's image: found by another Python's PYTHONPATH, and replaced as a whole."""

from __future__ import annotations

import importlib
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from vllm_sleep import deliver

ROOT = Path(__file__).parents[3]


def found(folder: Path) -> list[Distribution]:
    importlib.invalidate_caches()
    return [known for known in distributions(path=[str(folder)]) if known.name == "greenthread"]


def test_a_python_that_has_the_folder_on_its_path_finds_the_plugin(tmp_path: Path) -> None:
    assert deliver.main([str(tmp_path / "new" / "folder")]) == 0
    (known,) = found(tmp_path / "new" / "folder")
    points = [(point.group, point.name, point.value) for point in known.entry_points]
    assert points == [("vllm.general_plugins", "greenthread", "vllm_sleep.plugin:register")]


def test_it_is_the_entry_point_that_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"greenthread": "vllm_sleep.plugin:register"}


def test_every_module_goes_along_and_nothing_else(tmp_path: Path) -> None:
    deliver.deliver(tmp_path)
    there = {str(file.relative_to(tmp_path)) for file in (tmp_path / "vllm_sleep").rglob("*")}
    assert there == {f"vllm_sleep/{file.name}" for file in (ROOT / "vllm_sleep").glob("*.py")}


def test_what_an_earlier_version_delivered_is_gone(tmp_path: Path) -> None:
    deliver.deliver(tmp_path)
    old = tmp_path / "greenthread-0.0.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: greenthread\nVersion: 0.0.1\n")
    (old / "entry_points.txt").write_text("[vllm.general_plugins]\nold = vllm_sleep.gone:register\n")
    (tmp_path / "vllm_sleep" / "gone.py").write_text("")
    deliver.deliver(tmp_path)
    (known,) = found(tmp_path)
    assert known.version != "0.0.1"
    assert not (tmp_path / "vllm_sleep" / "gone.py").exists()


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_one_folder_has_to_be_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert deliver.main(arguments) == 2
    assert capsys.readouterr().err == "usage: deliver FOLDER\n"


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert deliver.main([str(file / "folder")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"cannot deliver into {file / 'folder'}: ")
    assert len(said.splitlines()) == 1
