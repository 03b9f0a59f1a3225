"""`python -m controller.agent`: one on every GPU node."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress

from controller.agent.agent import Agent
from controller.agent.nvml import Devices, DriverError
from controller.agent.settings import Settings, SettingsError
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig, load_config
from greenthread.kube.errors import ConfigError


async def run(settings: Settings, config: ClusterConfig) -> None:
    """Works until SIGTERM or SIGINT."""
    devices = Devices(settings.nvml)
    async with AsyncClient(config) as client:
        working = asyncio.create_task(Agent(client, settings, devices).run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, working.cancel)
        try:
            with suppress(asyncio.CancelledError):
                await working
        finally:
            devices.close()


def main() -> int:
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(run(Settings.from_env(), load_config()))
    except (SettingsError, ConfigError, DriverError) as error:
        print(f"agent: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
