"""One engine of each kind for all tests here: the real one takes more than a minute to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localcluster.gpus.ledger import GIB, create
from tests.real_vllm.engines import Engine
from tests.testbeds.programs import Missing, need_vllm, skip_or_fail

REAL = pytest.param("real", marks=[pytest.mark.real, pytest.mark.timeout(600)])


@pytest.fixture(scope="session", params=["simulated", REAL])
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has booted."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "real":
        try:
            need_vllm()
        except Missing as missing:
            skip_or_fail(missing)
    ledger = create(folder / "gpus.db", count=1, total_bytes=96 * GIB)
    with Engine(request.param, ledger, folder) as engine:
        yield engine
    ledger.close()


@pytest.fixture
def engine(booted: Engine) -> Iterator[Engine]:
    """The engine, awake before and after each test."""
    yield booted
    booted.control("/wake_up")
    booted.control("/resume")
    assert not booted.sleeping
