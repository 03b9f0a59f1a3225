"""A feed keeps its objects true, whatever happens to its watches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenthread.kube.errors import Forbidden
from greenthread.kube.resources import MODELS
from kubectl_greenthread import feed
from kubectl_greenthread.feed import Feed, Scope
from kubectl_greenthread.options import Session
from kubectl_greenthread.terminal import Terminal
from tests.unit.greenthread_kube.scripted import Answer, Asked, Server, event, status

from .cluster import write_kubeconfig

SCOPE = Scope(MODELS)


def model(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": name, "resourceVersion": str(version)}}


def listing(version: int, *names: str) -> Answer:
    items = [model(name, version) for name in names]
    return Answer(body={"metadata": {"resourceVersion": str(version)}, "items": items})


class Script:
    """Plays its answers in order; the last watch stays open until the end."""

    def __init__(self, lists: list[Answer], watches: list[Answer]) -> None:
        self.lists, self.watches = lists, watches
        self.watched_from: list[str] = []
        self.over = threading.Event()

    def __call__(self, asked: Asked) -> Answer:
        if "watch" not in asked.params:
            return self.lists.pop(0)
        self.watched_from.append(asked.params["resourceVersion"])
        return self.watches.pop(0) if self.watches else Answer(chunks=self._silence())

    def _silence(self) -> Iterator[bytes]:
        self.over.wait(10)
        yield from ()


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(feed, "RETRY", (0.0, 0.0))
    opened: list[tuple[Script, Server]] = []

    def start(lists: list[Answer], watches: list[Answer]) -> tuple[Feed, Script]:
        script = Script(lists, watches)
        server = Server(script)
        opened.append((script, server))
        session = Session(Terminal(), kubeconfig=str(write_kubeconfig(tmp_path / "config", server.url)))
        return Feed(session, [SCOPE]), script

    yield start
    for script, server in opened:
        script.over.set()
        server.close()


def names(found: Feed) -> set[str]:
    return {name for _, name in found.objects[SCOPE]}


def test_it_takes_in_changes_one_by_one(started: Any) -> None:
    lines = event("ADDED", model("b", 6)) + event("DELETED", model("a", 7))
    found, _ = started([listing(5, "a")], [Answer(chunks=[lines])])
    with found:
        assert names(found) == {"a"}
        assert found.next(5)
        assert names(found) == {"a", "b"}
        assert found.next(5)
        assert names(found) == {"b"}
        assert not found.next(0)


def test_after_410_it_lists_again(started: Any) -> None:
    found, script = started(
        [listing(5, "a"), listing(9, "c")], [Answer(chunks=[event("ERROR", status(410, "Gone").body)])]
    )
    with found:
        assert found.next(5)
        assert names(found) == {"c"}
    assert script.watched_from[0] == "5"


def test_a_watch_that_ends_goes_on_where_it_was_and_trouble_is_told(started: Any) -> None:
    watches = [Answer(chunks=[event("MODIFIED", model("a", 8))]), Answer(chunks=[b"nonsense\n"]),
               Answer(chunks=[event("ADDED", model("b", 9))])]  # fmt: skip
    found, script = started([listing(5, "a")], watches)
    with found:
        assert found.next(5)
        assert found.next(5)
        assert "no event" in found.trouble
        assert found.next(5)
        assert (names(found), found.trouble) == ({"a", "b"}, "")
    assert script.watched_from[:3] == ["5", "8", "8"]


def test_what_may_not_be_read_is_said_at_once(started: Any) -> None:
    with pytest.raises(Forbidden):
        started([status(403, "Forbidden")], [])


def test_what_is_optional_is_empty_without_the_right_to_read_it(tmp_path: Path) -> None:
    server = Server(lambda asked: status(403, "Forbidden"))
    session = Session(Terminal(), kubeconfig=str(write_kubeconfig(tmp_path / "config", server.url)))
    scope = Scope(MODELS, optional=True)
    with Feed(session, [scope]) as found:
        assert found.objects[scope] == {}
        assert not found.next(0)
    server.close()
