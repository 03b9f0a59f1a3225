"""`python -m controller`: waits for the lead, then makes the cluster what the Models ask for."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from aiohttp import web

from controller import operator
from controller.core import Controller
from controller.leader import Leader, LeadLost
from controller.metrics import ApiRequests, ControllerMetrics, serve
from controller.settings import Settings, SettingsError
from greenthread.clock import SystemClock
from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig, load_config
from greenthread.kube.errors import ConfigError, KubeError

log = logging.getLogger("controller")

#: Seconds between two attempts to read the cluster at the start.
RETRY = 2.0
#: Seconds that kopf gets to close its watches.
STOP = 3.0


async def run(settings: Settings, config: ClusterConfig) -> int:
    """Runs one replica; returns the process's exit status."""
    metrics = ControllerMetrics()
    runner: web.AppRunner | None = None
    async with AsyncClient(config) as client:
        metrics.registry.register(ApiRequests("gthread_controller_api_requests", client))
        leader = Leader(client, SystemClock(), settings.namespace, settings.lease_name, settings.identity)
        try:
            if settings.metrics_port is not None:
                runner = await serve(settings.metrics_port, metrics.registry, lambda: "")
            await leader.acquire()
            metrics.leader.set(1)
            return await _lead(settings, config, client, leader, metrics)
        except OSError as error:
            log.error("port %s for metrics cannot be used: %s", settings.metrics_port, error)
            return 1
        finally:
            if runner is not None:
                await runner.cleanup()


async def _lead(
    settings: Settings, config: ClusterConfig, client: AsyncClient, leader: Leader, metrics: ControllerMetrics
) -> int:
    keeping = asyncio.create_task(_keep(leader))
    controller = Controller(client, settings, SystemClock(), metrics)
    while True:
        try:
            await controller.prime()
            break
        except KubeError as error:
            log.warning("the cluster cannot be read yet: %s", error)
            await asyncio.sleep(RETRY)
    stop = asyncio.Event()
    # before kopf, which at its end cancels every task that is younger than itself
    tasks = {
        asyncio.create_task(controller.run(), name="reconciling"),
        asyncio.create_task(stop.wait(), name="stop"),
    }
    working = tasks | {asyncio.create_task(operator.watch(controller, config, stop), name="watching")}
    done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
    # nothing is written once this has ended: kopf only reads
    for task in tasks - done:
        task.cancel()
    await asyncio.wait(tasks)
    keeping.cancel()
    await leader.release()
    stop.set()
    await asyncio.wait(working, timeout=STOP)
    failed = [task for task in done if task.get_name() != "stop"]
    for task in failed:
        log.error("%s has ended", task.get_name(), exc_info=None if task.cancelled() else task.exception())
    return 1 if failed else 0


async def _keep(leader: Leader) -> None:
    try:
        await leader.keep()
    except LeadLost as error:
        # another may act already: no clean-up, not one request more
        log.critical("the lead is lost, this process stops: %s", error)
        logging.shutdown()
        os._exit(1)


def main() -> int:
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return asyncio.run(run(Settings.from_env(), load_config()))
    except (SettingsError, ConfigError) as error:
        print(f"controller: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
