"""The engine: the process that holds GPU memory, and how it is started, put to sleep, woken and killed."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from greenthread.model import ModelSpec


class EngineError(Exception):
    """The engine did not do what it was asked; the message is for people."""


class EngineLost(EngineError):
    """The engine has to be started afresh, for no fault of what was asked: requests may wait for that."""


class Rest(StrEnum):
    """What an engine is found to be when its sidecar starts."""

    #: No engine process: it has to be started under a claim.
    ABSENT = "absent"
    #: It holds no memory and can be woken.
    ASLEEP = "asleep"
    #: Up and ready to serve.
    AWAKE = "awake"


class Engine(Protocol):
    """One engine. None of these calls touches a claim: the caller holds one where memory is used."""

    async def settle(self) -> Rest:
        """Comes to rest after a restart of the sidecar: waits out, or kills, what was under way."""

    async def leftovers_gone(self) -> None:
        """Returns when no process of an earlier pod of the same name holds memory on this pod's GPUs."""

    async def start(self) -> None:
        """Starts the process and returns when it can serve. Memory is used from now on. EngineError."""

    async def wake(self) -> None:
        """Takes its memory again and returns when it can serve. EngineError."""

    async def sleep(self) -> None:
        """Releases its memory and returns when it is released. EngineError: it may still hold it.

        What is still in flight is aborted.
        """

    async def kill(self) -> None:
        """Ends the process and returns when it is gone, and with it its memory."""

    async def memory(self) -> list[int] | None:
        """Bytes its processes use on each of its GPUs now, or None when that cannot be seen."""

    async def left_behind(self) -> int | None:
        """Asleep: bytes that its processes still hold on the GPU where they hold most; None when NVML does not tell.

        EngineLost: it is more than its allowance.
        """

    @property
    def shortfalls(self) -> list[str]:
        """What it does less well than its Model asks for, and why; for people."""

    def configure(self, spec: ModelSpec) -> None:
        """Takes the live part of the Model's spec (staging)."""
