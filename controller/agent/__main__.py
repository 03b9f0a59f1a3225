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
from controller.metrics import ApiRequests, serve
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig, load_config
from greenthread.kube.errors import ConfigError


async def run(settings: Settings, config: ClusterConfig) -> None:
    """Works until SIGTERM or SIGINT."""
    devices = Devices(settings.nvml)
    async with AsyncClient(config) as client:
        agent = Agent(client, settings, devices)
        agent.metrics.registry.register(ApiRequests("gthread_agent_api_requests", client))
        serving = None
        if settings.metrics_port is not None:
            serving = await serve(settings.metrics_port, agent.metrics.registry, agent.unready)
        working = asyncio.create_task(agent.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, working.cancel)
        try:
            with suppress(asyncio.CancelledError):
                await working
        finally:
            devices.close()
            if serving is not None:
                await serving.cleanup()


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
    except OSError as error:
        print(f"agent: {error}; is another program on this port? Set METRICS_PORT.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
