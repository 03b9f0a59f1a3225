"""Images on one machine are configured, and a bad configuration says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster.supervisor.settings import Image, load_images, parse_images
from tests.unit.localcluster_supervisor.builders import settings


def test_the_first_matching_pattern_wins() -> None:
    images = parse_images({"vllm/*": {"entrypoint": ["vllm", "serve"]}, "*": {"entrypoint": ["other"]}})
    found = settings().__class__(node="n", state=Path(), logs=Path(), images=images)
    assert found.image("vllm/vllm-openai:v0.33") == Image(("vllm", "serve"), {})
    assert found.image("x") == Image(("other",), {})
    assert settings().image("x") is None


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ([], "images must be an object"),
        ({"a": []}, "image 'a': write"),
        ({"a": {"command": ["x"]}}, "image 'a': write"),
        ({"a": {"entrypoint": "vllm serve"}}, "entrypoint must be a list"),
        ({"a": {"env": {"X": 1}}}, "env must map names to text"),
    ],
)
def test_a_bad_configuration_is_refused(value: object, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_images(value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_images(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json"):
        load_images(tmp_path / "bad.json")


def test_the_node_has_the_label_that_selectors_use() -> None:
    labels = settings(labels={"gpu": "h100"}).node_labels()
    assert labels["kubernetes.io/hostname"] == "node-a"
    assert labels["gpu"] == "h100"
