"""Objects survive a restart; versions only rise; what is forgotten is said so."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from localcluster.api.errors import StatusError
from localcluster.api.storage import Change, StorageError, Store


def obj(name: str, **more: object) -> dict:
    return {"metadata": {"name": name}, **more}


def test_objects_and_versions_survive_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "s"
    store = Store(file)
    store.put("things", ("ns", "a"), obj("a", x=1))
    store.put("things", ("ns", "b"), obj("b"))
    last = store.put("things", ("ns", "a"), obj("a", x=2)).version
    store.remove("things", ("ns", "b"))
    removed = store.version
    store.close()
    again = Store(file)
    assert {key: stored.obj["metadata"]["name"] for key, stored in again.all("things").items()} == {("ns", "a"): "a"}
    found = again.get("things", ("ns", "a"))
    assert found is not None
    assert (found.obj["x"], found.version) == (2, last)
    assert again.version >= removed > last
    assert again.put("things", ("ns", "c"), obj("c")).version > removed


def test_versions_rise_even_when_the_process_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "s"
    script = (
        "import os, signal, sys\n"
        "from localcluster.api.storage import Store\n"
        "store = Store(sys.argv[1])\n"
        "for number in range(1500):\n"
        "    store.put('things', ('', 'a'), {'metadata': {}, 'n': number})\n"
        "print(store.version, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True)
    reached = int(done.stdout)
    store = Store(file)
    found = store.get("things", ("", "a"))
    assert found is not None
    assert (found.obj["n"], found.version) == (1499, reached)
    assert store.version >= reached


def test_after_a_restart_the_past_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    first = store.put("things", ("", "a"), obj("a")).version
    store.put("things", ("", "a"), obj("a", x=1))
    store.close()
    again = Store(tmp_path / "s")
    with pytest.raises(StatusError) as refused:
        again.since("things", first)
    assert (refused.value.code, refused.value.reason) == (410, "Expired")
    assert list(again.since("things", again.version)) == []


def test_history_is_bounded() -> None:
    store = Store(history=3)
    versions = [store.put("things", ("", "a"), obj("a", n=n)).version for n in range(5)]
    assert [change.version for change in store.since("things", versions[1])] == versions[2:]
    with pytest.raises(StatusError):
        store.since("things", versions[0])


def test_the_past_can_be_seen_until_it_is_forgotten() -> None:
    store = Store(history=4)
    store.put("things", ("", "a"), obj("a", n=1))
    then = store.put("things", ("", "b"), obj("b")).version
    store.put("things", ("", "a"), obj("a", n=2))
    store.remove("things", ("", "b"))
    store.put("things", ("", "c"), obj("c"))
    past = store.at("things", then)
    assert {key[1]: stored.obj.get("n") for key, stored in past.items()} == {"a": 1, "b": None}
    store.put("things", ("", "d"), obj("d"))
    store.put("things", ("", "e"), obj("e"))
    with pytest.raises(StatusError):
        store.at("things", then)


def test_a_change_tells_what_was_before() -> None:
    store = Store()
    seen: list[Change] = []
    end = store.subscribe("things", seen.append)
    store.put("things", ("", "a"), obj("a", n=1))
    store.put("things", ("", "a"), obj("a", n=2))
    store.put("others", ("", "a"), obj("a"))
    store.remove("things", ("", "a"))
    end()
    store.put("things", ("", "a"), obj("a", n=3))
    assert [change.type for change in seen] == ["ADDED", "MODIFIED", "DELETED"]
    assert seen[1].before is not None
    assert (seen[1].before.obj["n"], seen[1].after.obj["n"]) == (1, 2)
    assert seen[2].after.obj["metadata"]["resourceVersion"] == str(seen[2].version)


def test_who_watches_one_object_hears_of_no_other() -> None:
    store = Store()
    seen: list[str] = []
    ends = [store.subscribe("things", lambda change: seen.append(change.key[1]), "a") for _ in range(2)]
    for name in ("a", "b"):
        store.put("things", ("ns", name), obj(name))
    assert seen == ["a", "a"]
    ends[0]()
    ends[0]()
    store.put("things", ("ns", "a"), obj("a"))
    assert seen == ["a", "a", "a"]
    ends[1]()
    store.put("things", ("ns", "a"), obj("a"))
    assert len(seen) == 3


def test_two_processes_cannot_share_a_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.put("things", ("", "a"), obj("a"))
    script = "import sys; from localcluster.api.storage import Store; Store(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "s")], capture_output=True, text=True)
    assert "StorageError" in done.stderr
    assert "is in use by another process" in done.stderr


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError, match=r"damaged.*move the state folder away"):
        Store(tmp_path / "s")


def test_a_file_with_a_damaged_object(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.put("things", ("", "a"), obj("a"))
    store.close()
    with sqlite3.connect(tmp_path / "s") as database:
        database.execute("UPDATE objects SET body = '{'")
    database.close()
    with pytest.raises(StorageError, match="damaged"):
        Store(tmp_path / "s")


def test_a_file_of_another_version(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="another version of this program"):
        Store(tmp_path / "s")
