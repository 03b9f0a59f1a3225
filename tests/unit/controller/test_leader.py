"""Of several candidates exactly one leads, on a virtual clock against the embedded API."""

from __future__ import annotations

import asyncio
import random

import pytest

from controller.leader import Leader, LeadLost, Timing
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Unreachable
from greenthread.kube.resources import LEASES
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from tests.virtual import VirtualClock, run

from .builders import NAMESPACE, new_cluster

TIMING = Timing(lease_duration=15, renew_deadline=10, retry_period=2)


class Line(InProcess):
    """A way to the API that can be cut."""

    cut = False

    async def request(self, *arguments: object, **named: object):  # type: ignore[no-untyped-def, override]
        if self.cut:
            await asyncio.sleep(1)
            raise Unreachable("the line is cut")
        return await super().request(*arguments, **named)  # type: ignore[arg-type]


class Candidate:
    def __init__(self, api: Api, name: str, seed: int) -> None:
        self.line = Line(api)
        self.name = name
        self.leader = Leader(
            AsyncClient(self.line), VirtualClock(), NAMESPACE, "controller", name, TIMING, random.Random(seed)
        )
        self.led_from: float | None = None
        self.led_until: float | None = None
        self.leads = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await self.leader.acquire()
        self.led_from = loop.time()
        self.leads.set()
        try:
            await self.leader.keep()
        except LeadLost:
            self.led_until = loop.time()

    async def die(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def holder(client: AsyncClient) -> str:
    return str((await client.get(LEASES, "controller", NAMESPACE))["spec"]["holderIdentity"])


def test_one_of_two_leads_and_renews() -> None:
    async def main() -> None:
        api, client = await new_cluster({})
        one, two = Candidate(api, "one", 1), Candidate(api, "two", 2)
        await asyncio.sleep(120)
        assert sorted([one.leader.leading, two.leader.leading]) == [False, True]
        assert await holder(client) == ("one" if one.leader.leading else "two")
        lease = await client.get(LEASES, "controller", NAMESPACE)
        assert lease["spec"]["leaseDurationSeconds"] == 15
        assert lease["spec"]["leaseTransitions"] == 0
        for candidate in (one, two):
            await candidate.die()

    run(main())


def test_when_the_leader_dies_the_other_leads_within_the_lease() -> None:
    async def main() -> None:
        api, client = await new_cluster({})
        one = Candidate(api, "one", 1)
        await asyncio.sleep(1)
        two = Candidate(api, "two", 2)
        await asyncio.sleep(31)
        loop = asyncio.get_running_loop()
        died = loop.time()
        await one.die()
        await two.leads.wait()
        assert two.led_from is not None
        # since it last saw the lease renewed, which is at most one look before the end
        assert TIMING.lease_duration - 2 * TIMING.retry_period <= two.led_from - died
        assert two.led_from - died <= TIMING.lease_duration + TIMING.retry_period
        assert (await client.get(LEASES, "controller", NAMESPACE))["spec"]["leaseTransitions"] == 1
        await two.die()

    run(main())


def test_a_lead_that_is_given_up_is_taken_at_the_next_look() -> None:
    async def main() -> None:
        api, _ = await new_cluster({})
        one = Candidate(api, "one", 1)
        await asyncio.sleep(1)
        two = Candidate(api, "two", 2)
        await asyncio.sleep(10)
        await one.die()
        await one.leader.release()
        released = asyncio.get_running_loop().time()
        await two.leads.wait()
        assert two.led_from is not None
        assert two.led_from - released < 1.3 * TIMING.retry_period
        await two.die()

    run(main())


@pytest.mark.parametrize("seed", range(10))
def test_a_leader_that_is_cut_off_stops_before_another_begins(seed: int) -> None:
    async def main() -> None:
        api, _ = await new_cluster({})
        one = Candidate(api, "one", seed)
        await asyncio.sleep(1)
        two = Candidate(api, "two", seed + 100)
        await asyncio.sleep(20 + random.Random(seed).random() * 4)
        one.line.cut = True
        await two.leads.wait()
        assert two.led_from is not None
        assert one.led_until is not None
        assert one.led_until < two.led_from
        await two.die()

    run(main())


def test_a_short_outage_costs_nobody_the_lead() -> None:
    async def main() -> None:
        api, _ = await new_cluster({})
        one = Candidate(api, "one", 1)
        await asyncio.sleep(1)
        two = Candidate(api, "two", 2)
        await asyncio.sleep(20)
        one.line.cut = two.line.cut = True
        await asyncio.sleep(6)
        one.line.cut = two.line.cut = False
        await asyncio.sleep(60)
        assert one.leader.leading
        assert not two.leader.leading
        for candidate in (one, two):
            await candidate.die()

    run(main())


def test_a_lease_that_somebody_else_took_is_lost_at_once() -> None:
    async def main() -> None:
        api, client = await new_cluster({})
        one = Candidate(api, "one", 1)
        await asyncio.sleep(5)
        lease = await client.get(LEASES, "controller", NAMESPACE)
        await client.replace(LEASES, lease | {"spec": lease["spec"] | {"holderIdentity": "thief"}})
        await asyncio.sleep(TIMING.retry_period + 0.1)
        assert one.led_until is not None

    run(main())
