"""The event loop of a simulation: virtual time, a network in memory, and processes that can die at any await."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
import selectors
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.virtual import Stuck


@dataclass(eq=False)
class Process:
    """One process of the simulation: what it does carries it in its context. Dead, nothing of it reaches anybody."""

    name: str
    dead: bool = False
    pipes: set[Pipe] = field(default_factory=set)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def kill(self) -> None:
        """SIGKILL. Its sockets close, as an operating system would close them."""
        self.dead = True
        for task in sorted(self.tasks, key=asyncio.Task.get_name):
            task.cancel()
        for pipe in sorted(self.pipes, key=lambda pipe: pipe.number):
            pipe.vanish()


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")
#: What has no process of its own: the loop's first steps.
_NOBODY = Process("world")


def context_of(process: Process) -> contextvars.Context:
    """A context in which to start the tasks of a process."""
    context = contextvars.copy_context()
    context.run(PROCESS.set, process)
    return context


def _adopt(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """The task factory: a task belongs to the process in whose context it begins."""
    context = options.get("context")
    process = context.get(PROCESS) if context is not None else None
    process = process or PROCESS.get(_NOBODY)
    task = asyncio.Task(coroutine, loop=loop, name=f"{process.name} {next(loop._numbers)}", **options)  # type: ignore[attr-defined]
    process.tasks.add(task)
    task.add_done_callback(process.tasks.discard)
    return task


class _Selector(selectors.SelectSelector):
    """Never waits and never asks the kernel: there are no sockets here, and the next timer is due at once."""

    loop: SimLoop

    def select(self, timeout: float | None = None) -> Any:
        loop = self.loop
        loop.elapsed += loop.turn
        loop.on_turn()
        if timeout is None:
            raise Stuck("all tasks wait for each other")
        if timeout:
            loop.elapsed += timeout
        return ()


class SimLoop(asyncio.SelectorEventLoop):
    """`on_turn` is called at every turn: between any two steps of any task."""

    #: Seconds that a turn takes: nobody waits for ever for what is almost due.
    turn = 1e-6

    def __init__(self, rng: random.Random) -> None:
        selector = _Selector()
        selector.loop = self
        self.elapsed = 0.0
        self.rng = rng
        self.on_turn: Callable[[], None] = lambda: None
        #: Probability that a connection breaks some time after it was made, by the port that it leads to.
        self.breaks: dict[int, Callable[[], float]] = {}
        self.on_break: Callable[[int], None] = lambda port: None
        self._listeners: dict[int, Listener] = {}
        self._ports = itertools.count(50_000)
        self._numbers = itertools.count()
        self._fuse: tuple[Process, Callable[[], None]] | None = None
        self._steps = 0
        super().__init__(selector)
        self.set_task_factory(_adopt)

    def time(self) -> float:
        return self.elapsed

    # -- death at an await ----------------------------------------------------------------------------------------

    def arm(self, process: Process, steps: int, fire: Callable[[], None]) -> None:
        """Calls ``fire`` when a task of the process is about to go on for the ``steps``-th time. One at a time."""
        self._fuse, self._steps = (process, fire), steps
        self.call_soon = self._counting  # type: ignore[method-assign]

    def disarm(self) -> None:
        self._fuse = None
        self.__dict__.pop("call_soon", None)

    def _counting(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        assert self._fuse is not None
        process, fire = self._fuse
        if (context.get(PROCESS) if context is not None else PROCESS.get(_NOBODY)) is process:
            self._steps -= 1
            if self._steps <= 0:
                self.disarm()
                super().call_soon(fire)
        return super().call_soon(callback, *args, context=context)

    # -- sockets --------------------------------------------------------------------------------------------------

    async def create_server(self, factory: Any, host: Any = None, port: Any = 0, **_options: Any) -> Any:
        number = port or next(self._ports)
        listener = Listener(self, number, factory, PROCESS.get(_NOBODY), contextvars.copy_context())
        self.add_listener(listener)
        return listener

    def add_listener(self, listener: Listener) -> None:
        self._listeners[listener.port] = listener

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_options: Any) -> Any:
        await asyncio.sleep(self.rng.random() * 0.002)
        listener = self._listeners.get(port)
        if listener is None or listener.process.dead or not listener.accepts():
            raise ConnectionRefusedError(111, "connection refused")
        near = Pipe(self, PROCESS.get(_NOBODY), contextvars.copy_context(), port)
        far = Pipe(self, listener.process, listener.context, port)
        near.peer, far.peer = far, near
        near.protocol, far.protocol = factory(), listener.context.copy().run(listener.factory)
        self.call_soon(far.begin, context=far.context.copy())
        near.begin()
        likely = self.breaks.get(port)
        if likely is not None and self.rng.random() < likely():
            self.call_later(self.rng.expovariate(2.0), near.cut)
        return near, near.protocol

    def forget(self, port: int) -> None:
        self._listeners.pop(port, None)


class Listener:
    """In the place of `asyncio.Server`."""

    def __init__(self, loop: SimLoop, port: int, factory: Any, process: Process, context: contextvars.Context) -> None:
        self._loop, self.port, self.factory, self.process, self.context = loop, port, factory, process, context
        self.accepts: Callable[[], bool] = lambda: True
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def close(self) -> None:
        self._loop.forget(self.port)


_END, _RESET = object(), object()


class Pipe(asyncio.Transport):
    """One end of a connection in memory: ordered, with a delay, with back-pressure by what is under way."""

    def __init__(self, loop: SimLoop, process: Process, context: contextvars.Context, port: int) -> None:
        super().__init__()
        self._loop, self.process, self.context, self.port = loop, process, context, port
        self.number = next(loop._numbers)
        self.peer: Pipe
        self.protocol: Any
        self._incoming: deque[Any] = deque()
        self._owed = 0
        self._paused = self._closing = self._lost = False
        self._high, self._blocked, self.under_way = 65536, False, 0
        process.pipes.add(self)

    def begin(self) -> None:
        if not self.process.dead:
            self.protocol.connection_made(self)

    # what a protocol calls

    def write(self, data: Any) -> None:
        if not self._closing and not self.process.dead and data:
            self.under_way += len(data)
            self.peer._send(bytes(data))
            if self.under_way > self._high and not self._blocked:
                self._blocked = True
                self.protocol.pause_writing()

    def write_eof(self) -> None:
        self.peer._send(_END)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.peer._send(_END)
            self._loop.call_soon(self._lose, None, context=self.context.copy())

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self.peer._send(_RESET)
            self._loop.call_soon(self._lose, None, context=self.context.copy())

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            owed, self._owed = self._owed, 0
            for _ in range(owed):
                self._loop.call_soon(self._receive, context=self.context.copy())

    def is_reading(self) -> bool:
        return not self._paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else 65536

    def get_write_buffer_size(self) -> int:
        return self.under_way

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # the wire

    def _send(self, item: Any) -> None:
        """From the peer: it arrives after a while, in order."""
        self._incoming.append(item)
        self._loop.call_later(self._loop.rng.random() * 0.002, self._receive, context=self.context.copy())

    def _receive(self) -> None:
        if self._lost or self.process.dead or not self._incoming:
            return
        if self._paused and self._incoming[0] is not _RESET:
            self._owed += 1
            return
        item = self._incoming.popleft()
        if item is _RESET:
            self._closing = True
            self._lose(ConnectionResetError(104, "connection reset by peer"))
        elif item is _END:
            if not self.protocol.eof_received():
                self.close()
        else:
            peer = self.peer
            peer.under_way -= len(item)
            if peer._blocked and peer.under_way <= peer._high // 4 and not peer._lost and not peer.process.dead:
                peer._blocked = False
                peer.protocol.resume_writing()
            if not self._closing:
                self.protocol.data_received(item)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost and not self.process.dead:
            self._lost = True
            self.process.pipes.discard(self)
            self.protocol.connection_lost(error)

    def vanish(self) -> None:
        """Its process died."""
        if not self._lost:
            self._lost = self._closing = True
            self.peer._send(_RESET)

    def cut(self) -> None:
        """The connection breaks: both ends see it."""
        if self._lost or self.peer._lost:
            return
        self._loop.on_break(self.port)
        for end in (self, self.peer):
            end._closing = True
            self._loop.call_soon(end._lose, ConnectionResetError(104, "simulated"), context=end.context.copy())
