"""What every engine that is a process of this pod has: the gate, /health, memory by NVML, a journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from greenthread.http_async import Reply, ask_once
from greenthread.model import ModelSpec
from greenthread.units import short_bytes
from sidecar.engine import EngineError, EngineLost
from sidecar.engine.memory import DeviceMemory
from sidecar.engine.process import EngineProcess
from sidecar.settings import Settings

#: Seconds between two looks at a booting engine's /health: vLLM announces nothing.
_HEALTH_EVERY = 0.1
#: Seconds between two looks at the processes that a dead pod left behind.
_LEFTOVERS_EVERY = 0.5
#: Most bytes of an answer to a control call: these are states and error messages.
_MOST_ANSWER = 1024 * 1024

#: One request to the engine: method, path with its query, JSON body. OSError when there is no whole answer.
Ask = Callable[[str, str, bytes | None], Awaitable[Reply]]


class ProcessEngine:
    """Starts, kills and measures the engine process.

    The journal names the operation under way, so that a restarted sidecar knows whether the engine is at rest.
    """

    #: Paths of which one answers 200 when the engine can serve.
    health_paths: tuple[str, ...] = ("/health",)

    def __init__(
        self,
        settings: Settings,
        on_exit: Callable[[str], None],
        process: EngineProcess | None = None,
        memory: DeviceMemory | None = None,
        ask: Ask | None = None,
    ) -> None:
        """The last three are what a simulator puts in the place of real processes, devices and sockets."""
        self._settings = settings
        self._journal = Path(settings.run_dir) / "engine-operation.json"
        self._process = process or EngineProcess(settings.run_dir, on_exit)
        self._memory = memory or DeviceMemory(settings.gpu_indices)
        self._before: list[int] | None = None
        #: Whether it was taken off its GPU; and what this engine process left behind when it first slept, so or so.
        self._off = False
        self._first_left: dict[bool, int] = {}
        self._ask = ask or self._ask_engine

    def open(self) -> None:
        """Takes the gate over."""
        self._process.open()

    async def close(self) -> None:
        """Lets go of the gate; the engine lives on."""
        self._process.close()

    async def _ask_engine(self, method: str, target: str, body: bytes | None) -> Reply:
        # vLLM closes idle connections, and a call on a kept one may break: was it run? So each has its own.
        return await ask_once("127.0.0.1", self._settings.engine_port, method, target, body, _MOST_ANSWER)

    def configure(self, spec: ModelSpec) -> None:
        """Nothing of the spec is live for a plain process."""

    @property
    def shortfalls(self) -> list[str]:
        """A plain process does what it can."""
        return []

    async def left_behind(self) -> int | None:
        """What an engine leaves grows with nothing but leaks, so each process's first sleep is the measure."""
        by_process = await self._memory.used_by(self._process.owns) if self._process.pid is not None else [0]
        if by_process is None:
            return None
        left = max(by_process)
        first = self._first_left.setdefault(self._off, left)
        if left > first + self._settings.sleep_allowance:
            raise EngineLost(
                f"asleep, it still holds {short_bytes(left)} of a GPU, after its first sleep it was "
                f"{short_bytes(first)}: it leaks, and is started afresh"
            )
        return left

    async def memory(self) -> list[int] | None:
        if self._process.pid is None:
            return [0] * len(self._settings.gpu_indices)
        by_process = await self._memory.used_by(self._process.owns)
        if by_process is not None:
            return by_process
        now = await self._memory.used()
        if now is None or self._before is None:
            return None
        return [max(after - before, 0) for before, after in zip(self._before, now, strict=True)]

    async def leftovers_gone(self) -> None:
        """Returns when no process of an earlier pod of the same name holds memory on this pod's GPUs."""
        pod, own = self._settings.pod, self._process.family()
        while await self._memory.used_by_pod(pod, own):  # noqa: ASYNC110 NVML tells no events
            await asyncio.sleep(_LEFTOVERS_EVERY)

    async def kill(self) -> None:
        await self._process.kill()
        self._journal.unlink(missing_ok=True)

    async def start(self) -> None:
        timeout = self._settings.boot_timeout
        self._first_left.clear()
        self._before = await self._memory.used()
        async with self._operation("start", timeout):
            await self._process.start(timeout)
            await self._healthy()

    async def _healthy(self) -> None:
        """Returns when the engine says so; EngineError when the process ends before."""
        gone = asyncio.ensure_future(self._process.gone())
        try:
            while not gone.done():
                for path in self.health_paths:
                    try:
                        if (await self._ask("GET", path, None)).status == 200:
                            return
                    except OSError:
                        break  # not listening yet
                await asyncio.wait({gone}, timeout=_HEALTH_EVERY)
        finally:
            gone.cancel()
        raise EngineError("the engine process ended while it booted; its log says why")

    @asynccontextmanager
    async def _operation(self, name: str, timeout: float) -> AsyncIterator[None]:
        """Journals one operation and bounds its time; a failed one stays in the journal: the engine is not at rest."""
        self._journal.write_text(json.dumps({"operation": name}))
        try:
            async with asyncio.timeout(timeout):
                yield
        except TimeoutError:
            raise EngineError(f"the engine did not {name} within {timeout:.0f} s") from None
        self._journal.unlink(missing_ok=True)

    def _under_way(self) -> str | None:
        try:
            return str(json.loads(self._journal.read_text())["operation"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError):
            return "unknown"
