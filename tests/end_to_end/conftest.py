from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.end_to_end.cluster import TWO, Cluster
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.kube import GARBAGE_COLLECTION, RealApi
from tests.testbeds.programs import Missing, need, skip_or_fail

#: Models of the node with one GPU: two of the small ones fit together, three do not; `big` needs the GPU alone.
SMALL = ("ada", "bob", "cleo")
BIG = "big"
#: Of the node with two: a replica on each GPU, and one that needs both.
BOTH_GPUS = ("twins", "gang")

CLUSTER = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def api(request: pytest.FixtureRequest) -> Iterator[EmbeddedApi | RealApi]:
    """An API server for the cluster alone, in place of the one that all other tests share."""
    try:
        if request.param == "real":
            need("helm")  # makes the parts' accounts
            bed: EmbeddedApi | RealApi = RealApi(GARBAGE_COLLECTION, audit=True)
        else:
            bed = EmbeddedApi()
    except Missing as missing:
        skip_or_fail(missing)
    with bed as running:
        yield running


@pytest.fixture(scope="session")
def running(api: EmbeddedApi | RealApi, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """All parts on this API, with the Models that many tests share: started once for a run."""
    with Cluster(api) as cluster:
        for name in SMALL:
            cluster.apply(name)
        cluster.apply(BIG, gpuMemoryUtilization="0.90")
        cluster.apply("twins", TWO, gpuMemoryUtilization="0.90", replicas=2)
        cluster.apply("gang", TWO, gpuMemoryUtilization="0.90", tensorParallelSize=2)
        request.config.stash[CLUSTER] = cluster
        # boots wait for memory like requests do: none must be left when tests begin
        cluster.ready(*SMALL, BIG, *BOTH_GPUS)
        yield cluster
        del request.config.stash[CLUSTER]


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The cluster with its shared Models asleep, and no others. At the end: what must be true after every test."""
    running.rest(*SMALL, BIG, *BOTH_GPUS)
    running.begin()
    yield running
    running.delete(*running.others(*SMALL, BIG, *BOTH_GPUS))
    running.check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    cluster = item.config.stash.get(CLUSTER, None)
    if report.failed and cluster is not None and "running" in item.fixturenames:
        report.sections.append(("cluster", cluster.picture()))
    return report
