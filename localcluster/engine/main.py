"""Start, serve and end of the simulated engine: `vllm serve MODEL …`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

from localcluster.engine import settings as engine_settings
from localcluster.engine.arguments import Arguments, parse
from localcluster.engine.engine import Engine
from localcluster.engine.faults import SimulatedFailure
from localcluster.engine.http import Connection
from localcluster.engine.memory import GpuMemory, NotEnoughMemory, Plan
from localcluster.engine.server import Server
from localcluster.engine.weights import weight_bytes
from localcluster.gpus.ledger import Ledger, LedgerError, OutOfMemoryError, open_ledger

_GRACE_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Run the engine until a signal ends it. Returns the exit status: 1 when it could not start or died."""
    parsed = parse(arguments)
    try:
        settings = engine_settings.from_environment()
        idle_seconds = int(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5"))
        ledger = open_ledger()
        plan = memory_plan(parsed, ledger)
        engine = Engine(parsed, settings, GpuMemory(ledger, plan, settings.left_bytes), ledger)
    except (ValueError, LedgerError) as error:
        _say(f"ERROR {error}")
        return 1
    return asyncio.run(_run(engine, idle_seconds))


async def _run(engine: Engine, idle_seconds: float) -> int:
    arguments = engine.arguments
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    _say(f"INFO vLLM API server version 0.32.0 (simulated), model {arguments.model}")
    boot = asyncio.create_task(engine.boot())
    until = asyncio.create_task(ended.wait())
    await asyncio.wait([boot, until], return_when=asyncio.FIRST_COMPLETED)
    if not boot.done():
        boot.cancel()
        with suppress(asyncio.CancelledError):
            await boot
        return 0
    try:
        boot.result()
    except (OutOfMemoryError, NotEnoughMemory, SimulatedFailure) as error:
        _say(_died(error))
        return 1
    connections: set[Connection] = set()
    handle = Server(engine, os.environ.get("VLLM_SERVER_DEV_MODE") == "1").handle
    try:
        server = await loop.create_server(
            lambda: Connection(handle, connections, idle_seconds), arguments.host, arguments.port
        )
    except OSError as error:
        _say(
            f"ERROR [Errno {error.errno}] error while attempting to bind on {arguments.host}:{arguments.port}: {error}"
        )
        return 1
    _say(f"INFO Starting vLLM API server on http://{arguments.host}:{arguments.port}")
    dead = asyncio.create_task(engine.dead.wait())
    await asyncio.wait([dead, until], return_when=asyncio.FIRST_COMPLETED)
    server.close()
    if engine.dead.is_set():
        _say(_died(engine.death))
        # Those who asked hear of it; then the API server goes down with its engine.
        await _drain(connections, 0.25)
        return 1
    for connection in list(connections):
        connection.close_when_idle()
    await _drain(connections, _GRACE_SECONDS)
    await engine.stop()
    return 0


async def _drain(connections: set[Connection], seconds: float) -> None:
    """Wait for the answers that are under way, so long at most, and close the rest."""
    answering = [connection.answering for connection in connections if connection.answering is not None]
    if answering:
        await asyncio.wait(answering, timeout=seconds)
    for connection in list(connections):
        connection.transport.abort()


def memory_plan(arguments: Arguments, ledger: Ledger) -> Plan:
    """Which GPUs, from CUDA_VISIBLE_DEVICES (all where it is not set), and how much of each. ValueError with advice."""
    count = arguments.tensor_parallel_size
    known = [device.index for device in ledger.devices()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = known if visible is None else [_index(part.strip(), ledger) for part in visible.split(",") if part.strip()]
    if len(chosen) < count:
        raise ValueError(
            f"World size ({count}) is larger than the number of available GPUs ({len(chosen)}) in this node "
            f"(CUDA_VISIBLE_DEVICES={visible or ''})"
        )
    weights = weight_bytes(arguments.model, arguments.dtype, arguments.quantization) // count
    return Plan(tuple(chosen[:count]), weights, arguments.gpu_memory_utilization)


def _index(text: str, ledger: Ledger) -> int:
    for device in ledger.devices():
        if text in (str(device.index), device.uuid):
            return device.index
    raise ValueError(f"CUDA_VISIBLE_DEVICES names {text}, and there is no such simulated GPU")


def _died(error: BaseException | None) -> str:
    kind = "torch.OutOfMemoryError" if isinstance(error, OutOfMemoryError) else "RuntimeError"
    return f"ERROR EngineCore encountered a fatal error.\n{kind}: {error}"


def _say(text: str) -> None:
    print(f"(EngineCore pid={os.getpid()}) {text}", file=sys.stderr, flush=True)
