"""``python -m sidecar``: the front door of one model pod. ``python -m sidecar deliver FOLDER`` puts what runs inside
vLLM there."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop

from greenthread.clock import SystemClock
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from greenthread.kube.errors import ConfigError
from proxy.server import ProxyServer
from proxy.settings import Settings as ProxySettings
from sidecar.app import Sidecar
from sidecar.engine.command import CommandEngine
from sidecar.engine.vllm import VllmEngine
from sidecar.settings import Settings, SettingsError
from sidecar.tracing import WakeSpans, tracing_of


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM; then drains, releases the memory and leaves the GPUs."""
    client = AsyncClient(load_config())
    sidecar = Sidecar(settings, client)
    kind: type[VllmEngine | CommandEngine] = CommandEngine if settings.engine_kind == "command" else VllmEngine
    engine: VllmEngine | CommandEngine = kind(settings, lambda text: sidecar.lifecycle.engine_died(text))
    sidecar.attach(engine)
    engine.open()
    tracing = tracing_of(settings)
    if tracing is not None:
        WakeSpans(tracing, settings.model, SystemClock()).follow(sidecar.door, sidecar.recorder)
    server = ProxyServer(sidecar.front_door(), ProxySettings(heartbeat=settings.heartbeat), tracing=tracing)
    await server.start(settings.host, settings.port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sidecar.lifecycle.stop)
    try:
        await sidecar.run()
    finally:
        await server.stop(grace=5.0)
        await engine.close()
        await client.close()
        if tracing is not None:
            await tracing.close()


def main(arguments: Sequence[str] = ()) -> int:
    if arguments:
        from vllm_sleep import deliver  # no start of a front door waits for it

        return deliver.main([*arguments][1:] if arguments[0] == "deliver" else [])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        uvloop.run(serve(Settings.from_env()))
    except (SettingsError, ConfigError, OSError) as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
