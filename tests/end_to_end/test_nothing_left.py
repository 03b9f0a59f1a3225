"""A sleeping engine is taken off its GPU altogether by the driver's checkpoint, as far as simulated GPUs can show it:
init container, launcher, socket, NVML's proof, record and condition are the real ones, the driver is played.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from greenthread.kube.resources import EVENTS
from greenthread.units import GIB
from tests.end_to_end.cluster import FAST_ENGINE, NAMESPACE, ONE, Cluster, Object, kill
from tests.testbeds.embedded import EmbeddedApi

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

LEFT = GIB + GIB // 2


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver functions that fail next time, a line each."""
    return tmp_path_factory.mktemp("cuda") / "faults"


@pytest.fixture(scope="module")
def running(faults: Path) -> Iterator[Cluster]:
    engine = FAST_ENGINE | {"GREENTHREAD_SIM_LEFT_BYTES": str(LEFT), "GREENTHREAD_SIM_CUDA_FAULTS": str(faults)}
    parts = {"GREENTHREAD_SLEEP_BACKEND": "greenthread", "GREENTHREAD_CHECKPOINT": "true"}
    with EmbeddedApi() as api, Cluster(api, {ONE: 1}, engine, parts) as cluster:
        cluster.apply("ada", staging={"pinned": True})
        cluster.ready("ada")
        yield cluster


@pytest.fixture
def cluster(running: Cluster, faults: Path) -> Cluster:
    faults.unlink(missing_ok=True)
    running.rest("ada")
    return running


def used(cluster: Cluster) -> int:
    return cluster.ledgers[ONE].used_bytes(0)


def last(cluster: Cluster, kind: str) -> Object:
    return [record for record in cluster.status("ada")["records"] if record["kind"] == kind][-1]


def limits(cluster: Cluster) -> Object:
    conditions = cluster.model("ada")["status"]["conditions"]
    return next((c for c in conditions if c["type"] == "SleepsAsAsked"), {"status": "", "message": ""})


def test_asleep_the_engine_holds_nothing_and_wakes_as_it_was(cluster: Cluster) -> None:
    before = cluster.chat("ada").content
    assert used(cluster) > 40 * GIB
    [engine] = cluster.engine_pids("ada")
    cluster.sleep("ada")
    assert used(cluster) == 0
    assert last(cluster, "sleep")["left"] == 0
    assert cluster.chat("ada").content == before
    assert cluster.engine_pids("ada") == {engine}


def test_a_checkpoint_that_fails_leaves_what_vllm_leaves_and_the_model_says_so(cluster: Cluster, faults: Path) -> None:
    cluster.wake("ada")
    faults.write_text("cuCheckpointProcessCheckpoint")
    cluster.sleep("ada")
    assert used(cluster) == LEFT
    assert last(cluster, "sleep")["left"] == LEFT
    cluster.until(lambda: limits(cluster)["status"] == "False", "the condition tells")
    assert "cuCheckpointProcessCheckpoint: CUDA_ERROR_UNKNOWN" in limits(cluster)["message"]
    assert cluster.chat("ada").status == 200
    cluster.sleep("ada")
    assert used(cluster) == 0
    cluster.until(lambda: limits(cluster)["status"] == "True", "the next sleep went well")


def test_an_engine_that_cannot_be_restored_is_started_afresh_and_the_request_is_answered(
    cluster: Cluster, faults: Path
) -> None:
    cluster.wake("ada")
    [engine] = cluster.engine_pids("ada")
    cluster.sleep("ada")
    faults.write_text("cuCheckpointProcessRestore")
    answer = cluster.chat("ada")
    assert answer.status == 200
    assert engine not in cluster.engine_pids("ada")
    assert "cuCheckpointProcessRestore" in last(cluster, "wake")["error"]

    def told() -> bool:
        events = cluster.kube.list(EVENTS, NAMESPACE).items
        return any("cuCheckpointProcessRestore" in event["message"] for event in events)

    cluster.until(told, "an Event tells")


def test_a_sidecar_that_restarts_beside_a_checkpointed_engine_wakes_it(cluster: Cluster) -> None:
    cluster.wake("ada")
    [engine] = cluster.engine_pids("ada")
    cluster.sleep("ada")
    [pod] = cluster.pods_of("ada")
    kill(cluster.pid(pod, "sidecar"))
    cluster.until(lambda: not cluster.status("ada")["bootReady"], "the sidecar is gone")
    cluster.until(lambda: cluster.status("ada")["bootReady"], "the sidecar is back")
    cluster.ready("ada")
    assert cluster.chat("ada").status == 200
    assert cluster.engine_pids("ada") == {engine}
