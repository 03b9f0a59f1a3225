"""The engine behind the API: which of its memory is awake, which requests run, and how fast tokens come.

The states and the answers are those of vLLM's engine core: sleeping tags, a paused scheduler, requests that wait inside
without a word while it is paused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from localcluster.engine.arguments import Arguments
from localcluster.engine.errors import ApiError, engine_dead
from localcluster.engine.faults import ControlFaults, Fault, SimulatedFailure
from localcluster.engine.memory import GpuMemory, NotEnoughMemory
from localcluster.engine.metrics import Metrics
from localcluster.engine.settings import Settings
from localcluster.gpus.ledger import Ledger, OutOfMemoryError

TAGS = frozenset({"weights", "kv_cache"})
_LOAD_SECONDS = 0.1
_PATIENCE_SECONDS = 0.1
"""A longer wait for a token must end at once when the request is aborted."""

_NEVER_RELOADED = ("sharded_state", "tensorizer", "dummy")

T = TypeVar("T")


class WorkerError(Exception):
    """A call of `collective_rpc` failed; the engine lives on."""


class Work:
    """One request inside the engine."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.generated_tokens = 0
        self.aborted = False
        self.fault: Fault | None = None
        self.garbage = False
        self.finish_reason = "stop"


class Engine:
    """The state of the simulated engine. One event loop owns it."""

    def __init__(self, arguments: Arguments, settings: Settings, memory: GpuMemory, ledger: Ledger) -> None:
        self.arguments, self.settings, self.memory, self.ledger = arguments, settings, memory, ledger
        self.faults = ControlFaults(settings.faults)
        self.metrics = Metrics(arguments.served_names[0])
        self.dead = asyncio.Event()
        self.death: BaseException | None = None
        self._sleeping: set[str] = set()
        self._level = 0
        self._paused = False
        self._frozen = False
        self._weights_valid = True
        self._works: set[Work] = set()
        self._running: set[Work] = set()
        self._changed = asyncio.Condition()
        self._control = asyncio.Lock()
        self._load_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # Boot

    async def boot(self) -> None:
        """Take the memory as a starting vLLM does. Raises what vLLM would die of."""
        await self.faults.strike("boot")
        self.memory.start()
        await asyncio.sleep(self.settings.boot_seconds / 2)
        # Tensor parallel ranks share the disk.
        ranks = self.arguments.tensor_parallel_size
        await self.memory.copy_weights(self.settings.disk_gbps * 1e9 / ranks)
        self.memory.map_kv_cache()
        await asyncio.sleep(self.settings.boot_seconds / 2)

    # Control, as vLLM's engine core has it

    async def to_its_end(self, operation: Coroutine[None, None, T]) -> T:
        """Carry a control operation out even when the one who asked leaves: vLLM's engine core does not notice that."""
        return await asyncio.shield(self._in_background(operation))

    @property
    def is_sleeping(self) -> bool:
        """Paused or not all memory resident."""
        return self._paused or bool(self._sleeping)

    @property
    def is_paused(self) -> bool:
        """Whether the scheduler is paused."""
        return self._paused

    async def sleep(self, level: int, mode: str) -> None:
        """Pause, and from level 1 on give the memory back (only with --enable-sleep-mode)."""
        with self.metrics.operation("sleep"):
            async with self._dying(), self._control:
                await self.pause(mode)
                await self.faults.strike("sleep")
                if level < 1 or "weights" in self._sleeping:
                    return
                await asyncio.sleep(self.settings.sleep_seconds)
                if self.arguments.sleep_mode:
                    self.memory.free_all()
                    if level == 2 and self.arguments.sleep_backend == "cumem":
                        self._weights_valid = False
                self._level = level
                self._sleeping |= TAGS

    async def wake_up(self, tags: list[str] | None) -> bool:
        """Bring the tags back (None: all). Returns whether everything is awake; then the scheduler goes on."""
        with self.metrics.operation("wake"):
            async with self._dying(), self._control:
                await self.faults.strike("wake")
                wanted = TAGS if tags is None else {tag for tag in tags if tag != "scheduling"}
                # vLLM leaves the whole call undone when one of its tags is not asleep.
                if self._sleeping and (tags is None or wanted <= self._sleeping):
                    await self._bring_back(wanted & self._sleeping)
                if self._sleeping:
                    return False
                await self.resume()
                return True

    async def _bring_back(self, tags: frozenset[str] | set[str]) -> None:
        if self.arguments.sleep_mode:
            self.memory.map_context()
            if "weights" in tags:
                if self._level == 1:
                    await self.memory.copy_weights(self.settings.link_gbps * 1e9)
                elif self.arguments.sleep_backend == "cumem":
                    self.memory.map_weights()
                else:  # it keeps them in a file
                    await self.memory.copy_weights(self.settings.disk_gbps * 1e9)
            if "kv_cache" in tags:
                self.memory.map_kv_cache()
        self._sleeping -= tags

    async def reload_weights(self) -> None:
        """Read the weights from disk again. Kills the engine when their memory is not there."""
        async with self._dying(), self._control:
            if "weights" in self._sleeping and self.arguments.sleep_mode:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if self.arguments.load_format in _NEVER_RELOADED:
                raise WorkerError(f"Model reloading with `{self.arguments.load_format}` format")
            ranks = self.arguments.tensor_parallel_size
            await asyncio.sleep(self.memory.weights * ranks / (self.settings.disk_gbps * 1e9))
            self._weights_valid = True

    async def pause(self, mode: str) -> None:
        """Take no new request. What runs is aborted, waited for or frozen (`abort`, `wait`, `keep`)."""
        async with self._changed:
            self._paused = True
            if mode == "abort":
                for work in self._works:
                    work.aborted = True
            self._frozen = mode == "keep"
            self._changed.notify_all()
            if mode != "keep":
                await self._changed.wait_for(lambda: not self._running)

    async def resume(self) -> None:
        """Let the scheduler go on."""
        async with self._changed:
            self._paused = self._frozen = False
            self._changed.notify_all()

    @asynccontextmanager
    async def _dying(self) -> AsyncIterator[None]:
        """What goes wrong inside kills the engine, and the caller hears that it died."""
        if self.dead.is_set():
            raise engine_dead()
        try:
            yield
        except SimulatedFailure as error:
            raise ApiError(str(error), 500, "InternalServerError") from error
        except (OutOfMemoryError, NotEnoughMemory, RuntimeError) as error:
            await self.die(error)
            raise engine_dead() from error

    async def die(self, error: BaseException) -> None:
        """Remember what the engine died of and end every request with an error."""
        self.death = error
        self.dead.set()
        async with self._changed:
            self._changed.notify_all()

    # Requests

    @asynccontextmanager
    async def work(self, path: str, request_id: str, prompt_tokens: int, fault: Fault | None) -> AsyncIterator[Work]:
        """Run a request: wait, as long as it takes, until the engine is awake and has a place; record how it ended.

        A request that is aborted while it waits comes through too, as vLLM answers it: with nothing generated.
        """
        work = Work(prompt_tokens)
        work.fault = fault
        self._works.add(work)
        number, outcome = 0, "error"
        request = self.metrics.request(work)
        try:
            async with self._changed:
                self._count()
                await self._changed.wait_for(lambda: work.aborted or self._admits())
                if self.dead.is_set():
                    raise engine_dead()
                self._running.add(work)
                self._count()
            request.admitted()
            work.garbage = not self._weights_valid or (fault is not None and fault.kind == "garbage")
            number = self.ledger.begin_request(request_id, self.arguments.served_names[0], path)
            yield work
            outcome = "aborted" if work.aborted else "ok"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "aborted"
            raise
        finally:
            self._works.discard(work)
            self._running.discard(work)
            if number:
                self.ledger.end_request(number, outcome)
            request.ended("abort" if outcome == "aborted" else "error" if outcome == "error" else work.finish_reason)
            self._count()
            # A cancelled task must not wait; whoever waits for this end is woken by a task of its own.
            self._in_background(self._notify())

    async def steps(self, work: Work, steps: Sequence[Sequence[T]]) -> AsyncGenerator[T, None]:
        """The tokens of each step (one for each answer that is generated at once) at their time.

        Ends early when the engine aborts the request (`work.aborted`). Raises ApiError when it dies.
        """
        settings = self.settings
        loop = asyncio.get_running_loop()
        due = loop.time() + settings.ttft_ms / 1000
        for step in steps:
            # Kept to the schedule, not to the sum of sleeps, so that a busy machine does not slow the model down.
            left = max(due - loop.time(), 0)
            await (self.hold_up(work, left) if left > _PATIENCE_SECONDS else asyncio.sleep(left))
            due += settings.token_ms / 1000
            if self._frozen:
                async with self._changed:
                    await self._changed.wait_for(lambda: work.aborted or not self._frozen or self.dead.is_set())
                due = loop.time() + settings.token_ms / 1000
            if self.dead.is_set():
                raise engine_dead()
            if work.aborted:
                return
            self.metrics.token(work)
            for token in step:
                work.generated_tokens += 1
                yield token

    async def hold_up(self, work: Work, seconds: float | None) -> None:
        """Keep a request waiting (None: for ever), unless the engine ends it."""
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait_for(lambda: work.aborted or self.dead.is_set())
        if self.dead.is_set():
            raise engine_dead()

    def _admits(self) -> bool:
        return self.dead.is_set() or (not self.is_sleeping and len(self._running) < self.arguments.max_num_seqs)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _in_background(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _count(self) -> None:
        self.metrics.running = len(self._running)
        self.metrics.waiting = len(self._works) - len(self._running)
        if self._load_task is None or self._load_task.done():
            self._load_task = self._in_background(self._report_load())

    async def _report_load(self) -> None:
        """Tell the ledger, a little later, so that a burst of short requests is one write."""
        reported = -1
        while reported != len(self._running):
            reported = len(self._running)
            self.ledger.report_load(reported)
            await asyncio.sleep(_LOAD_SECONDS)

    @property
    def sleep_state(self) -> str:
        """vLLM's word for it in the metrics."""
        if not self._sleeping:
            return "awake"
        return "discard_all" if self._level == 2 else "weights_offloaded"

    async def stop(self) -> None:
        """End the background tasks."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
