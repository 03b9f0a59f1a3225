"""`python -m localcluster.supervisor`: run the pods of one node for any Kubernetes API."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path

from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import ClusterConfig, load_config
from greenthread.kube.errors import KubeError
from localcluster.supervisor.settings import Settings, load_images
from localcluster.supervisor.supervisor import Supervisor


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m localcluster.supervisor", description=__doc__)
    parser.add_argument("--kubeconfig", help="default: $KUBECONFIG, else ~/.kube/config")
    parser.add_argument("--node", default=socket.gethostname().lower(), help="name of the node (default: this host's)")
    parser.add_argument("--state", type=Path, required=True, help="folder for volumes and process records")
    parser.add_argument("--logs", type=Path, help="folder for logs (default: STATE/logs)")
    parser.add_argument("--images", type=Path, help='JSON: {"glob": {"entrypoint": [...], "env": {...}}}')
    parser.add_argument("--address", default="127.0.0.1", help="address that pods are published under")
    parser.add_argument("--backoff", type=float, default=10.0, help="seconds before the first restart")
    parser.add_argument(
        "--accounts",
        action="store_true",
        help="give pods that name a ServiceAccount a kubeconfig with its token",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        config = load_config(options.kubeconfig)
        settings = Settings(
            node=options.node,
            state=options.state,
            logs=options.logs or options.state / "logs",
            images=load_images(options.images) if options.images else {},
            address=options.address,
            backoff=options.backoff,
            accounts=config if options.accounts else None,
        )
        asyncio.run(_run(config, settings))
    except (KubeError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(config: ClusterConfig, settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncClient(config) as client:
        task = asyncio.create_task(Supervisor(client, settings).run())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            pass


if __name__ == "__main__":
    sys.exit(main())
