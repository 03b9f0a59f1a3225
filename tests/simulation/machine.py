"""The simulated machine: devices with a ledger that cannot be fooled, engine processes, vLLM's control API."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from controller.agent.nvml import Fault, Process, Reading
from greenthread.gpu import PodRef
from sidecar.engine import EngineError


class Violation(AssertionError):
    """A property of the protocol does not hold."""


@dataclass
class Faults:
    """How often an engine's operation goes wrong (probability of each call), and how."""

    fail: float = 0.0
    hang: float = 0.0
    crash: float = 0.0


@dataclass
class Machine:
    """Devices of one node and the processes on them. Memory past the end is a violation: a real engine would die."""

    rng: random.Random
    totals: list[int]
    held: dict[int, dict[int, int]] = field(default_factory=dict)  # pid -> device -> bytes
    pods: dict[int, PodRef] = field(default_factory=dict)  # pid -> pod
    waking: dict[int, int] = field(default_factory=dict)  # device -> pid
    pids: Any = field(default_factory=lambda: itertools.count(100))
    faults: Faults = field(default_factory=Faults)

    def used(self, device: int) -> int:
        return sum(devices.get(device, 0) for devices in self.held.values())

    def take(self, pid: int, device: int, count: int) -> None:
        others = self.used(device) - self.held.get(pid, {}).get(device, 0)
        if others + count > self.totals[device]:
            raise Violation(f"{self.pods.get(pid)} takes {count} on device {device}, where others use {others}")
        self.held.setdefault(pid, {})[device] = count

    def free(self, pid: int) -> None:
        self.held.pop(pid, None)
        self.waking = {device: other for device, other in self.waking.items() if other != pid}

    # what the agent and the sidecars see of it

    def read(self) -> list[Reading | Fault]:
        return [
            Reading(
                index, f"GPU-{index}", "Simulated", total, self.used(index),
                tuple(Process(pid, held[index]) for pid, held in self.held.items() if held.get(index)),
            )
            for index, total in enumerate(self.totals)
        ]  # fmt: skip

    def of(self, pids: frozenset[int]) -> dict[int, PodRef]:
        return {pid: self.pods[pid] for pid in pids if pid in self.pods}

    def learn(self, uid: str, pod: PodRef) -> None:
        """Owners of processes are known here anyway."""


class Memory:
    """In the place of `DeviceMemory`."""

    def __init__(self, machine: Machine, devices: tuple[int, ...]) -> None:
        self._machine, self._devices = machine, devices

    async def used(self) -> list[int]:
        return [self._machine.used(device) for device in self._devices]

    async def used_by(self, pids: Iterable[int]) -> list[int]:
        held = [self._machine.held.get(pid, {}) for pid in pids]
        return [sum(devices.get(device, 0) for devices in held) for device in self._devices]

    async def used_by_pod(self, pod: PodRef, other_than: Iterable[int]) -> bool:
        known = set(other_than)
        return any(self._machine.pods.get(pid) == pod for pid in self._machine.held if pid not in known)


class EngineHost:
    """The engine container of a pod: it outlives its sidecar. In the place of `EngineProcess` and of vLLM."""

    def __init__(self, machine: Machine, pod: PodRef, devices: tuple[int, ...], need: int) -> None:
        self.machine, self.pod, self.devices, self.need = machine, pod, devices, need
        self.pid: int | None = None
        self.asleep = False
        self.on_exit: Callable[[str], None] = lambda text: None
        self.served: dict[str, int] = {}  # request -> how often it ran
        self.wakes = 0
        self._gone = asyncio.Event()
        self._gone.set()
        self._healthy_at = 0.0
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # EngineProcess

    def open(self) -> None:
        """The gate is always there."""

    def close(self) -> None:
        """A sidecar that closes or dies leaves the engine alone."""
        self.on_exit = lambda text: None

    async def start(self, timeout: float) -> None:
        if self.pid is not None:
            raise EngineError("an engine is running already")
        self.pid = next(self.machine.pids)
        self.machine.pods[self.pid] = self.pod
        self._gone.clear()
        self.asleep = False
        self._lock = asyncio.Lock()
        loop = asyncio.get_running_loop()
        self._healthy_at = loop.time() + self.machine.rng.uniform(1, 4)
        for device in self.devices:
            self.machine.take(self.pid, device, self.need)
        self._roll()

    async def gone(self) -> None:
        await self._gone.wait()

    async def kill(self) -> None:
        if self.pid is not None:
            await asyncio.sleep(self.machine.rng.uniform(0, 0.05))
            self._end()

    def family(self) -> list[int]:
        return [] if self.pid is None else [self.pid]

    def _end(self) -> None:
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        self.machine.free(pid)
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._gone.set()

    def crash(self) -> None:
        """It ends by itself."""
        if self.pid is not None:
            self._end()
            self.on_exit("engine process ended by itself")

    def _roll(self) -> None:
        if self.machine.rng.random() < self.machine.faults.crash:
            delay = self.machine.rng.expovariate(1.0)
            asyncio.get_running_loop().call_later(delay, self.crash)

    # vLLM's control API, worked off in order whoever asked and whether or not he still listens

    async def control(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        pid = self.pid
        if pid is None:
            raise httpx.ConnectError("connection refused")
        if path == "/health":
            booted = asyncio.get_running_loop().time() >= self._healthy_at
            if not booted:
                raise httpx.ConnectError("connection refused")
            return httpx.Response(200)
        if path == "/is_sleeping":
            return httpx.Response(200, json={"is_sleeping": self.asleep})
        task = asyncio.create_task(self._operate(path, pid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self.pid != pid and not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise httpx.RemoteProtocolError("server disconnected") from None
            raise

    async def _operate(self, path: str, pid: int) -> httpx.Response:
        rng, faults = self.machine.rng, self.machine.faults
        async with self._lock:
            dice = rng.random()
            if dice < faults.hang:
                await asyncio.sleep(10_000)
            if path == "/sleep":
                await asyncio.sleep(rng.uniform(0.02, 0.3))
                if dice < faults.hang + faults.fail:
                    return httpx.Response(500, text="sleep failed")
                self.asleep = True
                self.machine.free(pid)
            elif path == "/wake_up":
                await self._wake(pid)
                if dice < faults.hang + faults.fail:
                    return httpx.Response(500, text="wake failed")
                self.asleep = False
                self._roll()
            return httpx.Response(200, json={})

    async def _wake(self, pid: int) -> None:
        for device in self.devices:
            other = self.machine.waking.get(device)
            if other is not None and other != pid:
                raise Violation(f"{self.pod} wakes on device {device} while {self.machine.pods[other]} does")
            self.machine.waking[device] = pid
            self.machine.take(pid, device, self.need)
        try:
            await asyncio.sleep(self.machine.rng.uniform(0.1, 0.6))
        finally:
            for device in self.devices:
                if self.machine.waking.get(device) == pid:
                    del self.machine.waking[device]
        self.wakes += 1

    def run_request(self, request: str) -> None:
        """A request reaches the engine."""
        if self.pid is None or self.asleep:
            return  # the client sees a broken connection, or waits inside the engine; the caller checks
        self.served[request] = self.served.get(request, 0) + 1
        if self.served[request] > 1:
            raise Violation(f"request {request} ran twice")


class ControlTransport(httpx.AsyncBaseTransport):
    """The sidecar's way to its engine."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(self._host.machine.rng.uniform(0.0002, 0.002))
        return await self._host.control(request)
