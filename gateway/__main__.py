"""`python -m gateway`: serve until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvloop

from gateway.app import Gateway, described
from gateway.settings import Settings, SettingsError
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from greenthread.kube.errors import ConfigError
from proxy.tracing import from_environment


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    async with AsyncClient(load_config()) as client:
        tracing = from_environment("greenthread-gateway", described)
        gateway = Gateway(settings, client, tracing)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        port = await gateway.start()
        logging.getLogger("gateway").info("listening on http://%s:%d", settings.host, port)
        try:
            await gateway.run(stop)
        finally:
            if tracing is not None:
                await tracing.close()


def main() -> int:
    """0 after an ordered stop, 1 when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.from_env()
        uvloop.run(serve(settings))
    except (SettingsError, ConfigError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"gateway: {error}; is another program on this port? Set HTTP_PORT or METRICS_PORT.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
