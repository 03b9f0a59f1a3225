"""`greenthread up`: serve models on this machine, without Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import shlex
import signal
import sys
from pathlib import Path

import click

from greenthread.names import SLEEP_BACKENDS
from greenthread.units import human_bytes, parse_quantity
from localcluster import parts
from localcluster.cluster import Cluster, Options
from localcluster.parts import Simulation
from localcluster.state import ClusterError, Folder, default_folder

log = logging.getLogger(__name__)

LOG_BYTES = 10 * 1024 * 1024


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes, written like Kubernetes writes them: 96Gi."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_quantity(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("up", short_help="Run GreenThread on this machine, without Kubernetes.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps models and settings. Default: ~/.local/state/greenthread",
)
@click.option("-f", "--filename", "apply", type=click.Path(path_type=Path), multiple=True, metavar="FILE|FOLDER",
              help="Models to apply at the start.")  # fmt: skip
@click.option("--gateway-port", type=click.IntRange(1, 65535), help="Port of the models' URL.")
@click.option("--api-port", type=click.IntRange(1, 65535), help="Port of the Kubernetes API.")
@click.option("--simulate-gpus", type=click.IntRange(1, 64), metavar="N", help="N simulated GPUs, simulated engines.")
@click.option("--sleep-backend", type=click.Choice(SLEEP_BACKENDS),
              help="How vLLM sleeps: by its own backend, or by ours, which keeps the weights (vLLM 0.33).")  # fmt: skip
@click.option("--checkpoint/--no-checkpoint", default=None, help="Take sleeping engines off their GPU altogether.")
@click.option("--gpu-memory", type=Size(), default="96Gi", show_default=True, help="Memory of each simulated GPU.")
def command(
    state_dir: Path | None,
    apply: tuple[Path, ...],
    gateway_port: int | None,
    api_port: int | None,
    simulate_gpus: int | None,
    gpu_memory: int,
    sleep_backend: str | None,
    checkpoint: bool | None,
) -> int:
    """Run GreenThread on this machine's GPUs, without Kubernetes, until Ctrl-C. Models are kept for the next time.

    It is an ordinary Kubernetes API for kubectl and for every verb of this program: see the KUBECONFIG that it prints.
    """
    folder = Folder((state_dir or default_folder()).expanduser().absolute())
    simulation = Simulation(simulate_gpus, gpu_memory) if simulate_gpus else None
    if simulation is None:
        if missing := parts.missing_hardware():
            raise click.ClickException(f"{missing}. To try GreenThread without one: --simulate-gpus 2")
        if missing := parts.missing_engine():
            click.echo(f"warning: {missing}", err=True)
    if sleep_backend is not None:  # the controller has them from here
        os.environ["GREENTHREAD_SLEEP_BACKEND"] = sleep_backend
    if checkpoint is not None:
        os.environ["GREENTHREAD_CHECKPOINT"] = str(checkpoint).lower()
    options = Options(folder, api_port, gateway_port, simulation, apply)
    try:
        folder.make()
        _log_to(folder)
        return asyncio.run(serve(options))
    except ClusterError as error:
        raise click.ClickException(str(error)) from error


async def serve(options: Options) -> int:
    """Run the cluster until a signal comes; the exit code. Raises ClusterError."""
    cluster = Cluster(options, tell=_tell)
    running = asyncio.create_task(cluster.run(ready=lambda: _say_ready(cluster, options)))
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if stopped:
            cluster.hurry()
            _tell("stopping at once")
        else:
            running.cancel()
            _tell("stopping (again: at once)")
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        _tell(f"stopped; everything is kept in {options.folder.path}")
    except BaseExceptionGroup as group:
        raise _first(group) from None
    return 0


def _tell(line: str) -> None:
    """A line for people; whoever started us may have gone, which must not keep us from stopping."""
    log.info("%s", line)
    try:
        click.echo(line, err=True)
    except OSError:
        log.warning("nobody reads what is said here any more")


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _say_ready(cluster: Cluster, options: Options) -> None:
    simulation = options.simulation
    gpus = f", {simulation.gpus} simulated GPUs of {human_bytes(simulation.memory)}" if simulation else ""
    click.echo(f"GreenThread is up on node {cluster.remembered.node}{gpus}. Ctrl-C stops it and keeps your models.\n")
    click.echo(f"  export KUBECONFIG={shlex.quote(str(options.folder.kubeconfig))}")
    click.echo(f"  models:  {cluster.gateway_url}/v1    (OpenAI and Anthropic clients)")
    click.echo(f"  logs:    {options.folder.logs}\n")
    click.echo("Then, in another terminal: greenthread top")
    sys.stdout.flush()


def _log_to(folder: Folder) -> None:
    """What goes wrong in passing, for who looks for it."""
    handler = logging.handlers.RotatingFileHandler(folder.logs / "up.log", maxBytes=LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    from kubectl_greenthread.main import run

    sys.exit(run(["up", *sys.argv[1:]], "greenthread"))
