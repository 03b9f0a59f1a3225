"""History gives back what was there at any moment, in bounded memory, from memory and from a file."""

from __future__ import annotations

import copy
import gzip
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenthread.kube.resources import key_of
from tui import history as module
from tui.history import History, NoRecording, nothing
from tui.known import ALL_RECORDS, EVENTS_KEPT, Known, State, put
from tui.past import Past
from tui.patches import CannotTell, apply, difference
from tui.recorded import kept, recorded, worth_a_stop
from tui.recording import CannotRecord, Recorder, load, older

GIB = 2**30
START = 1_790_000_000.0
Object = dict[str, Any]

_json = st.recursive(
    st.integers(-3, 3) | st.text("ab", max_size=2) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(_json, _json)
def test_changes_lead_from_the_old_version_to_the_new(old: Any, new: Any) -> None:
    before = copy.deepcopy(old)
    try:
        changes = difference(old, new)
    except CannotTell:
        return
    if changes is None:
        assert old == new or new is None
    else:
        changes = json.loads(json.dumps(changes))
        assert apply(old, changes) == new
    assert old == before


def test_only_what_changed_is_told() -> None:
    old = {"status": {"occupants": [{"pod": "a", "state": "waking"}, {"pod": "b", "state": "serving"}], "x": 1, "y": 2}}
    new = {"status": {"occupants": [{"pod": "a", "state": "waking"}, {"pod": "b", "state": "sleeping"}], "x": 1}}
    assert difference(old, new) == {"status": {"y": None, "occupants": {"1": {"state": "sleeping"}}}}


def gpu(name: str, **status: Any) -> Object:
    full = {
        "node": "n",
        "index": int(name[-1]),
        "totalMemoryBytes": 96 * GIB,
        "stats": {"utilizationPercent": 1},
        **status,
    }
    meta = {"name": name, "namespace": "gt", "resourceVersion": "7", "managedFields": [{"manager": "x"}]}
    return {"apiVersion": "greenthread.ai/v1alpha1", "kind": "GPU", "metadata": meta, "status": full}


def pod(name: str, requests: int = 0, state: str = "serving") -> Object:
    report = json.dumps({"state": state, "requests": requests})
    labels = {"greenthread.ai/model": name}
    meta = {
        "name": f"{name}-0",
        "namespace": "prod",
        "labels": labels,
        "annotations": {"greenthread.ai/gpus": "0", "greenthread.ai/report": report, "x.y/z": "private"},
    }
    env = [{"name": "HF_TOKEN", "value": "hf_secret"}]
    spec = {"nodeName": "n", "containers": [{"name": "vllm", "image": "v", "env": env, "command": ["--key", "s3cret"]}]}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Running", "podIP": "10.0.0.1"}}


def model(name: str, **spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "prod"}, "spec": {"modelName": f"x/{name}", **spec}}


def event(name: str, number: int, reason: str = "Woke", at: float = START) -> Object:
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"metadata": {"name": f"{name}.{number}", "namespace": "prod", "uid": f"{name}{number}"}, "reason": reason,
            "involvedObject": {"kind": "Model", "name": name, "namespace": "prod"}, "message": f"number {number}",
            "lastTimestamp": when}  # fmt: skip


class Cluster:
    """Objects that change at random, and what was there after each change."""

    def __init__(self, history: History, seed: int = 0) -> None:
        self.history, self.rng = history, random.Random(seed)
        self.state: State = nothing()
        self.at = START
        self.moments: list[tuple[float, State]] = []

    def put(self, plural: str, obj: Object, kind: str = "MODIFIED") -> None:
        small = kept(plural, obj)
        if kind == "DELETED":
            self.state[plural].pop(key_of(small), None)
        else:
            put(self.state[plural], plural, key_of(small), recorded(plural, small))
        self.history.hear(plural, kind, small, self.at)

    def change(self) -> None:
        self.at = round(self.at + self.rng.choice([0.001, 0.05, 3.0]), 3)
        name = f"n-{self.rng.randrange(4)}"
        match self.rng.randrange(6):
            case 0:
                self.put("gpus", gpu(name, stats={"utilizationPercent": self.rng.randrange(100)}))
            case 1:
                occupants = [
                    {"namespace": "prod", "podName": f"{m}-0", "modelName": m, "state": "sleeping"} for m in "ab"
                ]
                self.put("gpus", gpu(name, occupants=occupants[: self.rng.randrange(3)]))
            case 2:
                self.put("gpus", gpu(name), "DELETED")
            case 3:
                self.put("pods", pod(self.rng.choice("ab"), self.rng.randrange(9)))
            case 4:
                self.put("models", model(self.rng.choice("ab"), replicas=self.rng.randrange(3)))
            case _:
                self.put("events", event("a", self.rng.randrange(10**9), at=self.at))
        self.moments.append((self.at, {kind: dict(objects) for kind, objects in self.state.items()}))


def test_any_moment_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 100)
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "CHECKPOINT", 10)
    history = History()
    history.begin(START, nothing())
    cluster = Cluster(history)
    for number in range(450):
        cluster.change()
        if number % 7 == 0:  # looked at while it grows
            at, state = cluster.rng.choice(cluster.moments)
            assert history.state(at) == state
    assert len(history.segments) >= 3
    for at, state in cluster.moments:
        assert history.state(at) == state
        assert history.state(at + 0.0005) == state
    assert history.state(START - 1) == nothing()
    at, state = cluster.moments[200]
    for line in history.lines(at, math_inf):
        module.advance(state, line)
    assert state == cluster.moments[-1][1]


math_inf = float("inf")


def test_history_is_bounded_by_changes_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 512)
    for bound in ({"most_changes": 1000}, {"most_bytes": 30_000}):
        history = History(**bound)
        history.begin(START, nothing())
        cluster = Cluster(history)
        for _ in range(4_000):
            cluster.change()
            cluster.moments.clear()
        assert history.changes <= 1000 + 512 if "most_changes" in bound else history.size <= 80_000
        assert history.began > START
        assert history.state(history.ended) == cluster.state


def test_of_events_the_newest_are_kept() -> None:
    history = History()
    history.begin(START, nothing())
    for number in range(EVENTS_KEPT + 100):
        history.hear("events", "ADDED", kept("events", event("a", number)), START + number)
    state = history.state(START + 10_000)
    assert len(state["events"]) == EVENTS_KEPT
    assert ("prod", "a.100") in state["events"]
    assert ("prod", "a.99") not in state["events"]


def test_no_secret_and_nothing_that_is_not_shown_is_kept() -> None:
    history = History()
    lines: list[bytes] = []
    history.write = lines.append
    args = ["--api-key", "s3cret", "--hf-token=s3cret", "--max-model-len", "8"]
    state = nothing()
    state["models"]["prod", "m"] = kept("models", model("m", extraArgs=args))
    history.begin(START, state, context="prod")
    history.hear("pods", "ADDED", kept("pods", pod("m")), START)
    history.hear("gpus", "ADDED", kept("gpus", gpu("n-0")), START)
    everything = b"\n".join(lines).decode()
    for word in ("secret", "s3cret", "private", "env", "command", "managedFields", "10.0.0.1"):
        assert word not in everything
    (found,) = history.state(START)["models"].values()
    assert found["spec"]["extraArgs"] == ["--api-key", "…", "--hf-token=…", "--max-model-len", "8"]
    (kept_pod,) = history.state(START)["pods"].values()
    assert kept_pod["spec"] == {"nodeName": "n", "containers": [{"name": "vllm"}]}


@pytest.mark.parametrize(
    ("old", "new", "worth"),
    [
        (gpu("n-0"), gpu("n-0", stats={"utilizationPercent": 99}), False),
        (gpu("n-0"), gpu("n-0", foreignMemoryBytes=GIB), False),
        (gpu("n-0"), gpu("n-0", occupants=[]), True),
        (gpu("n-0", occupants=[{"state": "serving", "lastAccessed": "1"}]),
         gpu("n-0", occupants=[{"state": "serving", "lastAccessed": "2"}]), False),
        (gpu("n-0", occupants=[{"state": "serving", "lastAccessed": "1"}]),
         gpu("n-0", occupants=[{"state": "sleeping", "lastAccessed": "2"}]), True),
        (gpu("n-0"), gpu("n-0", wakeLock={"holder": "prod/a-0"}), True),
        (pod("m", 1), pod("m", 2), False),
        (pod("m", 1, "serving"), pod("m", 1, "sleeping"), True),
        (model("m"), model("m", replicas=2), True),
    ],
)  # fmt: skip
def test_one_stops_where_more_happened_than_measurements(old: Object, new: Object, worth: bool) -> None:
    plural = {"GPU": "gpus"}.get(
        old.get("kind", ""), "pods" if "spec" in old and "containers" in old["spec"] else "models"
    )
    assert worth_a_stop(plural, difference(old, new), old, new) is worth
    history = History()
    history.begin(START, nothing())
    history.hear(plural, "ADDED", kept(plural, old), START + 1)
    history.hear(plural, "MODIFIED", kept(plural, new), START + 2)
    assert history.stop(START + 1.5, 1) == (START + 2 if worth else None)
    assert history.stop(START + 3, -1) == (START + 2 if worth else START + 1)


def filled(changes: int = 60) -> tuple[History, Cluster, list[bytes]]:
    history, lines = History(), []
    history.write = lines.append
    history.begin(START, nothing(), context="prod-eu")
    cluster = Cluster(history)
    for _ in range(changes):
        cluster.change()
    return history, cluster, lines


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_a_recording_is_read_as_it_was_seen(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for session in range(2):
        again = History()
        recorder = Recorder(path)
        _, whole = load(path, again)
        recorder.keep(whole)
        again.write = recorder.write
        again.begin(START + 10_000 * session, nothing(), context=f"number {session}")
        cluster = Cluster(again, session)
        cluster.at = START + 10_000 * session
        for number in range(300):
            cluster.change()
            if number % 50 == 0:
                recorder.flush()
        recorder.close()
        with path.open("ab") as file:  # killed while it wrote
            file.write(gzip.compress(b'{"t":1,"k":"mod')[:-9] if name.endswith("gz") else b'{"t":1,"k":"mod')
    history = History()
    about, _ = load(path, history)
    assert [told["context"] for told in about] == ["number 0", "number 1"]
    for at, state in cluster.moments:
        assert history.state(at) == state
    assert history.state(START + 9_999) != nothing()
    assert not history.is_one(START + 9_999, START + 10_001)
    assert path.stat().st_mode & 0o077 == 0


@given(st.integers(0, 10**6))
def test_a_recording_cut_anywhere_is_read_up_to_there(where: int) -> None:
    import tempfile

    _, cluster, lines = filled(30)
    data = b"\n".join(lines) + b"\n"
    where %= len(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r"
        path.write_bytes(data[:where])
        history = History()
        _, whole = load(path, history)
        assert whole == data.rfind(b"\n", 0, where) + 1
        if history.segments:
            at = history.ended
            known = [state for moment, state in cluster.moments if moment <= at]
            assert history.state(at) == (known[-1] if known else nothing())


@pytest.mark.parametrize(
    "text",
    ["hello\n", '{"a":1}\n', '[1]\n', '{"t":1,"k":"gpus","n":"a/b"}\n', '{"t":"x","all":{}}\n', "\0" * 100 + "\n"],
)  # fmt: skip
def test_another_file_is_refused_with_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r"
    path.write_text(text)
    with pytest.raises(NoRecording, match=r"r, line 1: "):
        load(path, History())


def test_a_newer_recording_is_refused_with_its_version(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_text('{"greenthread-recording":2,"t":1}\n')
    with pytest.raises(NoRecording, match="it has format 2, this program reads 1"):
        load(path, History())


def test_two_dashboards_do_not_write_one_file(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "r")
    with pytest.raises(CannotRecord, match="another dashboard"):
        Recorder(tmp_path / "r")
    first.close()
    Recorder(tmp_path / "r").close()
    with pytest.raises(CannotRecord, match="cannot be written: Is a directory"):
        Recorder(tmp_path)


def test_a_recording_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 50)
    path = tmp_path / "r"
    recorder = Recorder(path, most_bytes=30_000)
    history = History()
    history.write = recorder.write
    history.begin(START, nothing(), context="prod-eu")
    cluster = Cluster(history)
    for number in range(1500):
        cluster.change()
        if number % 20 == 0:
            recorder.flush()
    recorder.close()
    assert path.stat().st_size + older(path).stat().st_size < 180_000
    again = History()
    about, _ = load(path, again)
    assert about[-1]["context"] == "prod-eu"
    assert again.began > START
    assert again.state(cluster.at) == cluster.state


def test_the_past_knows_what_was_known_then() -> None:
    history = History()
    history.begin(START, nothing())

    def tell(plural: str, obj: Object, after: float) -> None:
        history.hear(plural, "MODIFIED", kept(plural, obj), START + after)

    tell("models", model("a"), 0)
    occupants = [
        {"namespace": "prod", "podName": "a-0", "modelName": "a", "state": "serving", "reservedMemoryBytes": GIB}
    ]
    tell("gpus", gpu("n-0", occupants=occupants), 0)
    for second in range(0, 61, 5):
        tell("pods", pod("a", 10 * second), second + 0.5)
        tell("gpus", gpu("n-0", occupants=occupants, stats={"utilizationPercent": second}), second + 0.5)
        if second == 20:
            tell("events", event("a", 1, "Woke", START + 20), 20.5)
    tell("gpus", gpu("n-0", occupants=[]), 70)
    tell("events", event("a", 2, "Preempted", START + 70), 70)
    past = Past(history)
    past.seek(START + 61)
    (row,) = past.known.snapshot().models
    assert row.state == "serving"
    assert past.known.rate(("prod", "a")) == pytest.approx(10, rel=0.1)
    assert list(past.known.utilization("n-0"))[-3:] == [45, 50, 55]
    assert [told.reason for told in past.known.events] == ["Woke"]
    assert [told.reason for told in past.later(5)] == ["Preempted"]
    assert past.step(1)
    assert past.moment == START + 70
    assert past.known.snapshot().models[0].state == "staging"
    assert past.later(5) == []
    assert not past.step(1)
    assert past.step(-1)
    assert past.moment == START + 20.5
    assert past.known.snapshot().gpus[0].gpu.stats.utilization == 20  # type: ignore[union-attr]
    past.seek(START - 100)
    assert past.moment == START


def test_records_of_a_large_cluster_are_bounded_and_the_newest_of_each_model_is_kept() -> None:
    class Clock:
        def now(self) -> datetime:
            return datetime.fromtimestamp(START, UTC)

    known = Known(Clock(), lambda: START)
    for number in range(300):
        name = f"m{number}"
        known.hear("models", "ADDED", model(name))
        for turn in range(12):
            told = event(name, turn, at=START + number + turn)
            told["metadata"]["annotations"] = {"greenthread.ai/record": json.dumps({"kind": "wake", "turn": turn})}
            known.hear("events", "ADDED", told)
    known.sample()
    kept = [known.records(("prod", f"m{number}")) for number in range(300)]
    assert sum(map(len, kept)) <= ALL_RECORDS + 300
    assert all(records and records[0].record == {"kind": "wake", "turn": 11} for records in kept)
    assert known.is_old(event("m0", 99, at=START))
    assert not known.is_old(event("m0", 99, at=START + 1000))
