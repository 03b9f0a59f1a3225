"""A pod's own account: asked for as kubelets do, written for the pod alone, renewed in time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from greenthread.clock import format_time
from greenthread.kube.config import ClusterConfig, load_config
from greenthread.kube.core import Object
from greenthread.kube.errors import NotFound, Unreachable
from greenthread.kube.resources import Resource
from localcluster.supervisor import account as module
from localcluster.supervisor.account import Account, renew_in
from localcluster.supervisor.container_spec import Place, Refused, resolve
from tests.unit.localcluster_supervisor.builders import container, pod, settings
from tests.virtual import run

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HERE = ClusterConfig(server="https://127.0.0.1:6443", ca=b"PEM", token="an administrator's")


class Fixed:
    def now(self) -> datetime:
        return NOW


class Api:
    """Makes tokens, or raises what it is told first."""

    def __init__(self, *trouble: Exception) -> None:
        self.trouble, self.asked = list(trouble), []

    async def create(self, resource: Resource, obj: Object, namespace: str) -> Object:
        self.asked.append((resource.path(namespace), obj))
        if self.trouble:
            raise self.trouble.pop(0)
        ends = format_time(NOW + timedelta(seconds=obj["spec"]["expirationSeconds"]))
        return {"status": {"token": f"token-{len(self.asked)}", "expirationTimestamp": ends}}


def account(api: Any, folder: Path) -> Account:
    return Account(pod(serviceAccountName="till"), api, Fixed(), HERE, folder)


def test_the_token_is_bound_to_the_pod_and_nobody_elses_is_handed_on(tmp_path: Path) -> None:
    api = Api()
    mine = account(api, tmp_path)
    run(mine.obtain())
    [(path, asked)] = api.asked
    assert path == "/api/v1/namespaces/shop/serviceaccounts/till/token"
    assert asked["spec"]["boundObjectRef"] == {"kind": "Pod", "apiVersion": "v1", "name": "till-0", "uid": "uid-till-0"}
    config = load_config(mine.kubeconfig)
    assert (config.server, config.ca, config.namespace) == (HERE.server, b"PEM", "shop")
    assert config.authorization() == "Bearer token-1"
    assert "administrator" not in mine.kubeconfig.read_text()
    assert {file.stat().st_mode & 0o777 for file in mine.kubeconfig.parent.iterdir()} == {0o600}


def test_an_api_that_does_not_answer_is_waited_for(tmp_path: Path) -> None:
    mine = account(Api(Unreachable("down"), Unreachable("down")), tmp_path)
    run(mine.obtain())
    assert load_config(mine.kubeconfig).authorization() == "Bearer token-3"


def test_a_pod_whose_account_does_not_exist_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no ServiceAccount shop/till"):
        run(account(Api(NotFound(404, "NotFound", "serviceaccounts")), tmp_path).obtain())


def test_a_program_that_runs_sees_the_new_token(tmp_path: Path) -> None:
    mine = account(Api(), tmp_path)

    async def scenario() -> None:
        await mine.obtain()
        config = load_config(mine.kubeconfig)
        keeping = asyncio.create_task(mine.keep())
        await asyncio.sleep(0.79 * module.LIFETIME)
        assert config.authorization() == "Bearer token-1"
        await asyncio.sleep(0.02 * module.LIFETIME)
        assert config.authorization() == "Bearer token-2"
        keeping.cancel()

    run(scenario())


def test_a_renewal_that_fails_is_tried_again_and_the_token_stays(tmp_path: Path) -> None:
    api = Api()
    mine = account(api, tmp_path)

    async def scenario() -> None:
        await mine.obtain()
        api.trouble = [Unreachable("down")]
        keeping = asyncio.create_task(mine.keep())
        await asyncio.sleep(0.8 * module.LIFETIME + 1)
        assert load_config(mine.kubeconfig).authorization() == "Bearer token-1"
        await asyncio.sleep(module.RETRY)
        assert load_config(mine.kubeconfig).authorization() == "Bearer token-3"
        keeping.cancel()

    run(scenario())


def test_tokens_are_renewed_before_they_end() -> None:
    assert renew_in("2026-11-22T13:00:00Z", NOW) == pytest.approx(2880)
    assert renew_in("2026-11-22T11:00:00Z", NOW) == module.RETRY


def test_the_pods_kubeconfig_wins_over_the_images(tmp_path: Path) -> None:
    spec = container()
    inherited = {"KUBECONFIG": "/root/admin"}
    place = Place({}, {}, tmp_path / "kubeconfig")
    assert resolve(pod(spec), spec, settings(), place, inherited, {}).env["KUBECONFIG"] == str(tmp_path / "kubeconfig")
    assert resolve(pod(spec), spec, settings(), Place({}, {}), inherited, {}).env["KUBECONFIG"] == "/root/admin"
