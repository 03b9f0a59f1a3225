"""What all tests share: the Kubernetes API they run against, `--api embedded` or `--api real`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbeds.admin import Admin
from tests.testbeds.programs import Missing, skip_or_fail


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--api",
        choices=["embedded", "real"],
        help="the Kubernetes API to test against: the embedded one, or kube-apiserver (default: both, the latter's "
        "tests marked `real`)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "api" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--api")
        kinds = [pytest.param("embedded"), pytest.param("real", marks=pytest.mark.real)]
        wanted = [kind for kind in kinds if chosen in (None, kind.values[0])]
        metafunc.parametrize("api", wanted, indirect=True, scope="session")


@pytest.fixture(scope="session")
def api(request: pytest.FixtureRequest) -> Iterator[Admin]:
    """A fresh API server for this run. `url`, `token`, `ca_file` and `kubeconfig` say how to reach it."""
    from tests.testbeds.embedded import EmbeddedApi
    from tests.testbeds.kube import GARBAGE_COLLECTION, RealApi

    try:
        bed = RealApi(GARBAGE_COLLECTION) if request.param == "real" else EmbeddedApi()
    except Missing as missing:
        skip_or_fail(missing)
    with bed as running:
        yield running
