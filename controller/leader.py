"""Leader election by a Lease, as client-go does it: of several controllers exactly one acts."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Any

from greenthread.clock import Clock, format_time
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import Conflict, KubeError, NotFound
from greenthread.kube.resources import LEASES

log = logging.getLogger(__name__)

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A leader that cannot renew within `renew_deadline` stops before its lease of `lease_duration` ends."""

    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0


class LeadLost(Exception):
    """Somebody else may lead now: stop at once."""


class Leader:
    """One candidate. `acquire()` returns when it leads; then `keep()` runs until the lead is lost."""

    def __init__(
        self,
        client: AsyncClient,
        clock: Clock,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._client, self._clock = client, clock
        self._namespace, self._name, self._identity = namespace, name, identity
        self.timing = timing or Timing()
        self._rng = rng or random.Random()  # noqa: S311 spreads candidates, keeps no secret
        self._lease: Object | None = None
        #: What the lease said, and the loop's time when it first did: clocks of two machines are not compared.
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self.leading = False

    @property
    def holder(self) -> str:
        """Who leads, as last seen; "" when nobody does."""
        return str((self._lease or {}).get("spec", {}).get("holderIdentity") or "")

    async def acquire(self) -> None:
        """Returns as soon as this candidate leads. Waits out an API that cannot be reached."""
        waiting_for = ""
        while not await self._try():
            if self.holder and self.holder != waiting_for:
                waiting_for = self.holder
                log.info("%s leads; this replica waits", waiting_for)
            pause = self.timing.retry_period * self._rng.uniform(1.0, 1.2)
            if self.holder:  # not a moment later than the lease allows
                left = self._ends_at() - asyncio.get_running_loop().time()
                pause = min(pause, max(left, 0.05))
            await asyncio.sleep(pause)
        self.leading = True
        log.info("this replica (%s) leads", self._identity)

    async def keep(self) -> None:
        """Renews the lease; raises LeadLost when that failed for `renew_deadline` seconds or another has it."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        try:
            while True:
                await asyncio.sleep(self.timing.retry_period)
                try:
                    async with asyncio.timeout_at(renewed + self.timing.renew_deadline):
                        if await self._try():
                            renewed = loop.time()
                        elif self.holder != self._identity:
                            raise LeadLost(f"{self.holder or 'nobody'} has the lease {self._name} now")
                except TimeoutError:
                    pass
                if loop.time() >= renewed + self.timing.renew_deadline:
                    raise LeadLost(f"the lease {self._name} could not be renewed for {loop.time() - renewed:.0f} s")
        finally:
            self.leading = False

    async def release(self) -> None:
        """Gives the lead up, so that another need not wait for the lease to end. Only after all work has stopped."""
        if self._lease is None or self.holder != self._identity:
            return
        spec = self._lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._client.replace(LEASES, self._lease | {"spec": spec})
        except KubeError as error:
            log.warning("the lease %s is not released: %s", self._name, error)

    async def _try(self) -> bool:
        """Takes or renews the lease if it may; False when another holds it or the API did not let us."""
        try:
            try:
                lease = await self._client.get(LEASES, self._name, self._namespace)
            except NotFound:
                lease = {"metadata": {"name": self._name, "namespace": self._namespace}, "spec": {}}
                self._lease = await self._client.create(LEASES, self._claimed(lease))
                return True
            self._observe(lease)
            if self.holder != self._identity and not self._expired():
                return False
            self._observe(await self._client.replace(LEASES, self._claimed(lease)))
            return True
        except Conflict:
            return False  # another candidate was faster
        except KubeError as error:
            log.warning("lease %s: %s", self._name, error)
            return False

    def _observe(self, lease: Object) -> None:
        self._lease = lease
        spec = lease.get("spec") or {}
        seen = (str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or ""))
        if seen != self._seen:
            self._seen, self._seen_at = seen, asyncio.get_running_loop().time()

    def _expired(self) -> bool:
        return not self.holder or asyncio.get_running_loop().time() >= self._ends_at()

    def _ends_at(self) -> float:
        """The loop's time at which the lease, as last seen, ends."""
        spec = (self._lease or {}).get("spec", {})
        return self._seen_at + float(spec.get("leaseDurationSeconds") or self.timing.lease_duration)

    def _claimed(self, lease: Object) -> Object:
        spec = lease.get("spec") or {}
        now = format_time(self._clock.now())
        mine = spec.get("holderIdentity") == self._identity
        claimed = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(int(self.timing.lease_duration), 1),
            "acquireTime": spec.get("acquireTime") if mine and spec.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (not mine and bool(spec.get("renewTime"))),
        }
        return lease | {"spec": spec | claimed}
