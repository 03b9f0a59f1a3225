"""The simulated machine: devices with a ledger that cannot be fooled, and the engine processes on them."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from controller.agent.nvml import Fault, Process, Reading
from greenthread.gpu import PodRef
from greenthread.http_async import Reply
from sidecar.engine import EngineError
from tests.simulation import loop as simulated


@dataclass
class Faults:
    """How often an engine's operation goes wrong (probability of each), and how."""

    fail: float = 0.0
    hang: float = 0.0
    #: It dies some time after it woke or booted, or in the middle of an operation.
    crash: float = 0.0
    #: An answer breaks off: before its first byte, or in its middle.
    broken_answer: float = 0.0


@dataclass
class Machine:
    """Devices of one node and the processes on them. Memory past the end is a violation: a real engine would die."""

    rng: random.Random
    totals: list[int]
    #: Told of everything that must never happen.
    violated: Callable[[str], None]
    held: dict[int, dict[int, int]] = field(default_factory=dict)  # pid -> device -> bytes
    pods: dict[int, PodRef] = field(default_factory=dict)  # pid -> pod
    waking: dict[int, int] = field(default_factory=dict)  # device -> pid
    pids: Any = field(default_factory=lambda: itertools.count(100))
    faults: Faults = field(default_factory=Faults)
    #: Called when a process took memory.
    on_take: Callable[[int], None] = lambda pid: None

    def used(self, device: int) -> int:
        return sum(devices.get(device, 0) for devices in self.held.values())

    def take(self, pid: int, device: int, count: int) -> None:
        others = self.used(device) - self.held.get(pid, {}).get(device, 0)
        if others + count > self.totals[device]:
            self.violated(f"{self.pods.get(pid)} takes {count} on device {device}, where others use {others}")
        self.held.setdefault(pid, {})[device] = count
        self.on_take(pid)

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

    async def used_by(self, owns: Callable[[int], bool]) -> list[int]:
        held = [devices for pid, devices in self._machine.held.items() if owns(pid)]
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
        #: Called whenever it dies or breaks an answer off.
        self.on_break: Callable[[], None] = lambda: None
        #: Called when it is put to sleep over requests that it works on.
        self.on_cut: Callable[[], None] = lambda: None
        self.served: dict[str, int] = {}  # request -> how often it ran
        self.wakes = 0
        self.connections: set[Any] = set()
        self._gone = asyncio.Event()
        self._gone.set()
        self._healthy_at = 0.0
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def booted(self) -> bool:
        """Whether it listens."""
        return self.pid is not None and asyncio.get_running_loop().time() >= self._healthy_at

    @property
    def awake(self) -> bool:
        return self.booted and not self.asleep

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
        rng = self.machine.rng
        hangs = rng.random() < self.machine.faults.hang
        self._healthy_at = asyncio.get_running_loop().time() + (10_000 if hangs else rng.uniform(1, 4))
        for device in self.devices:
            self.machine.take(self.pid, device, self.need)
        self._roll()

    async def gone(self) -> None:
        await self._gone.wait()

    async def kill(self) -> None:
        if self.pid is not None:
            pid = self.pid
            await asyncio.sleep(self.machine.rng.uniform(0, 0.05))
            if self.pid == pid:
                self.end()

    def family(self) -> list[int]:
        return [] if self.pid is None else [self.pid]

    def owns(self, pid: int) -> bool:
        return pid == self.pid

    def end(self) -> None:
        """The process is gone, and its memory is free."""
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        self.machine.free(pid)
        self.on_break()
        for task in list(self._tasks):
            task.cancel()
        self._tasks.clear()
        self.abort_requests()
        self._gone.set()

    def crash(self) -> None:
        """It ends by itself."""
        if self.pid is not None:
            self.end()
            self.on_exit("engine process ended by itself")

    def abort_requests(self) -> None:
        for connection in sorted(self.connections, key=lambda connection: connection.transport.number):
            connection.transport.abort()

    def _roll(self) -> None:
        if self.machine.rng.random() < self.machine.faults.crash:
            asyncio.get_running_loop().call_later(self.machine.rng.expovariate(1.0), self.crash)

    # vLLM's control API, worked off in order whoever asked and whether or not he still listens

    async def control(self, target: str) -> Reply:
        path, params = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query))
        pid = self.pid
        if pid is None or not self.booted:
            raise ConnectionRefusedError("connection refused")
        if path == "/health":
            return Reply(200, b"")
        if path == "/is_sleeping":
            return Reply(200, json.dumps({"is_sleeping": self.asleep}).encode())
        context = simulated.context_of(simulated.Process(f"engine {pid}"))
        task = asyncio.get_running_loop().create_task(self._operate(path, params, pid), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self.pid != pid and not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise ConnectionResetError("server disconnected") from None
            raise

    async def _operate(self, path: str, params: dict[str, str], pid: int) -> Reply:
        rng, faults = self.machine.rng, self.machine.faults
        async with self._lock:
            dice, late = rng.random(), rng.random() < 0.5
            hangs, fails = dice < faults.hang, faults.hang <= dice < faults.hang + faults.fail
            if hangs and not late:
                await asyncio.sleep(10_000)
            if fails and not late:
                return Reply(500, f"{path} failed".encode())
            if rng.random() < faults.crash:
                asyncio.get_running_loop().call_later(rng.uniform(0.0, 0.4), self._crash_if, pid)
            if path == "/sleep":
                if any(connection.busy and not connection.left for connection in self.connections):
                    self.on_cut()
                self.abort_requests()
                await asyncio.sleep(rng.uniform(0.02, 0.3))
                if not fails:  # one that fails may leave its memory taken
                    self.asleep = True
                    self.machine.free(pid)
            elif path == "/wake_up":
                await self._wake(pid)
                # with level 2 it is awake only when its weights are read and its cache is back
                self.asleep = params.get("tags") == "weights" and self.asleep
                self._roll()
            else:
                await asyncio.sleep(rng.uniform(0.01, 0.1))
            if hangs:
                await asyncio.sleep(10_000)
            if fails:
                return Reply(500, f"{path} failed".encode())
            return Reply(200, b"{}")

    def _crash_if(self, pid: int) -> None:
        if self.pid == pid:
            self.crash()

    async def _wake(self, pid: int) -> None:
        for device in self.devices:
            other = self.machine.waking.get(device)
            if other is not None and other != pid:
                self.machine.violated(f"{self.pod} wakes on device {device} while {self.machine.pods[other]} does")
            self.machine.waking[device] = pid
            self.machine.take(pid, device, self.need)
        try:
            await asyncio.sleep(self.machine.rng.uniform(0.1, 0.6))
        finally:
            for device in self.devices:
                if self.machine.waking.get(device) == pid:
                    del self.machine.waking[device]
        self.wakes += 1

    # requests

    def run_request(self, request: str) -> None:
        """A request has reached the engine."""
        if self.asleep:
            self.machine.violated(f"request {request} reached the sleeping engine of {self.pod}")
        self.served[request] = self.served.get(request, 0) + 1


class ControlLine:
    """A sidecar's way to its engine; nothing more comes over it when the sidecar is dead."""

    def __init__(self, host: EngineHost, process: simulated.Process) -> None:
        self._host, self._process = host, process

    async def ask(self, method: str, target: str, body: bytes | None) -> Reply:
        await asyncio.sleep(self._host.machine.rng.uniform(0.0002, 0.002))
        if self._process.dead:
            await asyncio.get_running_loop().create_future()
        return await self._host.control(target)
