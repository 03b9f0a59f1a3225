"""What Tab offers without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubectl_greenthread.completing import FILES, answer, complete
from kubectl_greenthread.verbs import VERBS


@pytest.fixture(autouse=True)
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    contexts = [{"name": name, "context": {"cluster": "one", "user": "me"}} for name in ("dev", "prod", "prod-eu")]
    clusters = [{"name": "one", "cluster": {"server": "http://127.0.0.1:1"}}]
    path.write_text(json.dumps({"contexts": contexts, "clusters": clusters, "users": [{"name": "me"}]}))
    monkeypatch.setenv("KUBECONFIG", str(path))


def offered(*words: str) -> list[str]:
    return [name for name, _ in complete(words)[0]]


def test_verbs() -> None:
    assert offered("") == list(VERBS)
    assert offered("w") == ["wake"]
    assert offered("-n", "x", "un") == ["unpin"]
    assert offered("nonsense", "") == []


def test_options_with_what_they_do() -> None:
    assert offered("top", "--all") == ["--all-namespaces"]
    assert dict(complete(["sleep", "--y"])[0]) == {"--yes": "Do not ask before something running is disturbed."}
    assert "--watch" not in offered("top", "-w", "--")
    assert "--context" in offered("dashboard", "--")


def test_values_of_options() -> None:
    assert offered("top", "--context", "prod") == ["prod", "prod-eu"]
    assert offered("--context", "d") == ["dev"]
    assert offered("top", "--context=d") == ["--context=dev"]
    assert offered("top", "--user", "") == ["me"]
    assert offered("top", "-o", "j") == ["json", "jsonpath="]
    assert offered("top", "--sort-by", "q") == ["queue"]
    assert offered("events", "--reason", "Woke,Wai") == ["Woke,Waiting"]
    assert offered("logs", "-c", "") == ["engine", "sidecar"]
    assert offered("completion", "") == ["bash", "zsh", "fish"]


def test_files_are_the_shells_business() -> None:
    assert complete(["top", "--kubeconfig", ""]) == ([], FILES)


def test_a_cluster_that_does_not_answer_is_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["--context", "dev", "status", ""]) == ":4\n"
    assert capsys.readouterr() == ("", "")
