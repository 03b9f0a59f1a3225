"""`greenthread demo`: the whole program with simulated GPUs, six models, and clients that make them give way."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from kubectl_greenthread.main import run
from localcluster import manifests
from localcluster.gpus.ledger import Ledger
from localcluster.stage import Stage, Wrong
from localcluster.state import ClusterError, Folder, Remembered
from localcluster.story import STEP, Demonstration
from localcluster.supervisor.process import die_with_parent

GPUS, MEMORY = 2, "96Gi"
#: Recipes that are played.
MODELS = ("gpt-oss-20b", "kimi-vl-s3b-thinking-2506", "llama-3-1-70b", "llama-3-1-8b", "qwen-3-4b-thinking-2507",
          "qwen-3-5-35b-a3b")  # fmt: skip
#: A simulated boot would else spend two seconds a model on nothing.
ENGINES = {"GREENTHREAD_SIM_BOOT_SECONDS": "0.5"}
#: Seconds for the cluster to come up, and to go.
UP, DOWN = 60.0, 40.0
#: Seconds between two requests of the sample traffic.
TRAFFIC_GAP = 1.5


@click.command("demo", short_help="Show the whole thing on simulated GPUs in two minutes.")
@click.option("--live/--no-live", default=None, help="Open the live view at the end (default: on a terminal).")
def command(live: bool | None) -> int:
    """Run six models on two simulated GPUs: requests wake them, fill the GPUs, and preempt. Nothing is left behind."""
    began = time.monotonic()
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    path = Path(tempfile.mkdtemp(prefix="greenthread-demo-"))
    folder = Folder(path)
    wrong = ["the demonstration did not end"]
    try:
        with _stop_by_signal(), _cluster(folder) as remembered:
            url = f"http://127.0.0.1:{remembered.gateway_port}"
            click.echo(f"{time.monotonic() - began:6.1f}s        the local cluster is up; models: {url}/v1")
            wrong = asyncio.run(_play(folder, url, began))
            click.echo()
            _top(folder)
            if not wrong and (live or (live is None and on_terminal)):
                _live(folder, url)
    except (ClusterError, Wrong) as error:
        wrong = [str(error)]
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        wrong = []  # nothing went wrong: somebody had seen enough
        raise
    finally:
        if wrong:
            click.echo(f"the logs are kept in {folder.logs}", err=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
    click.echo()
    if wrong:
        click.echo(f"{len(wrong)} of the steps went wrong:", err=True)
        for text in wrong:
            click.echo(f"  {text}", err=True)
        return 1
    click.echo(f"Everything was as it should be. {time.monotonic() - began:.0f} s. Next: greenthread up --help")
    return 0


async def _play(folder: Folder, url: str, began: float) -> list[str]:
    """The steps; returns what was wrong."""
    async with AsyncClient(load_config(folder.kubeconfig)) as client:
        stage = Stage(client, url)
        demonstration = Demonstration(stage, Ledger(folder.ledger), click.echo, began)
        watching = asyncio.create_task(stage.watch())
        playing = asyncio.create_task(_steps(stage, demonstration))
        try:
            await asyncio.wait([watching, playing], return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, playing):
                if task.done():
                    task.result()
        finally:
            for task in (watching, playing):
                task.cancel()
            await asyncio.gather(watching, playing, return_exceptions=True)
            await stage.close()
        return demonstration.wrong


async def _steps(stage: Stage, demonstration: Demonstration) -> None:
    await stage.until(
        lambda: len(stage.models()) == len(MODELS) and len(stage.gpus()) == GPUS, STEP, "that models and GPUs exist"
    )
    await demonstration.run()


@contextmanager
def _cluster(folder: Folder) -> Iterator[Remembered]:
    """`greenthread up` as a child, the way a person would start it. It ends with us, however we end."""
    recipes = manifests.packaged("recipes")
    options = ["--state-dir", str(folder.path), *(f"-f{recipes / name}.yaml" for name in MODELS)]
    options += ["--simulate-gpus", str(GPUS), "--gpu-memory", MEMORY]
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "localcluster.up", *options],
        env=os.environ | ENGINES,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for us; we tell it
        preexec_fn=die_with_parent(signal.SIGTERM),
    )
    complaints: list[str] = []
    ready = threading.Event()
    for stream, sink in ((child.stdout, None), (child.stderr, complaints)):
        threading.Thread(target=_read, args=(stream, sink, ready), daemon=True).start()
    try:
        deadline = time.monotonic() + UP
        while not ready.wait(0.05):
            if child.poll() is not None:
                time.sleep(0.1)  # the readers' last lines
                raise ClusterError("the local cluster did not start: " + (" ".join(complaints) or "it said nothing"))
            if time.monotonic() > deadline:
                raise ClusterError(f"the local cluster was not up after {UP:.0f} s: " + " ".join(complaints))
        remembered = folder.remembered()
        assert remembered is not None
        yield remembered
        if child.poll() is not None:
            raise ClusterError("the local cluster ended by itself: " + " ".join(complaints))
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(DOWN)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _read(stream: object, sink: list[str] | None, ready: threading.Event) -> None:
    for line in stream:  # type: ignore[attr-defined]
        if sink is None:
            if line.startswith("GreenThread is up"):
                ready.set()
        else:
            sink.append(line.strip().removeprefix("error: "))


@contextmanager
def _stop_by_signal() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does: with everything stopped."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _top(folder: Folder) -> None:
    """The table of `kubectl greenthread top`, by the same code."""
    command = [sys.executable, "-P", "-m", "kubectl_greenthread.main", "top"]
    done = subprocess.run(command, env=os.environ | {"KUBECONFIG": str(folder.kubeconfig)}, check=False)
    if done.returncode:
        raise Wrong(f"`greenthread top` ended with status {done.returncode}")


def _live(folder: Folder, url: str) -> None:
    """The live view over light traffic, until `q`."""
    stop = threading.Event()
    traffic = threading.Thread(target=lambda: asyncio.run(_traffic(folder, url, stop)), daemon=True)
    traffic.start()
    os.environ["KUBECONFIG"] = str(folder.kubeconfig)
    try:
        if code := run(["live"], "greenthread"):
            raise Wrong(f"the live view ended with status {code}")
    finally:
        stop.set()
        traffic.join(5)


async def _traffic(folder: Folder, url: str, stop: threading.Event) -> None:
    """One model after another is asked something, now and then two at once."""
    async with AsyncClient(load_config(folder.kubeconfig)) as client:
        stage = Stage(client, url)
        watching = asyncio.create_task(stage.watch())
        asked: set[asyncio.Task[object]] = set()
        turn = 0
        with suppress(Wrong):
            await stage.until(lambda: len(stage.models()) == 6, STEP, "that models exist")
        names = sorted(stage.models())
        while not stop.is_set():
            # a favourite between the others, so that some requests find their model awake
            name = names[turn // 6 % len(names)] if turn % 3 else names[0]
            turn += 1
            task: asyncio.Task[object] = asyncio.create_task(stage.ask(name, f"Question {turn}", 150))
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(TRAFFIC_GAP)
        for task in (watching, *asked):
            task.cancel()
        await asyncio.gather(watching, *asked, return_exceptions=True)
        await stage.close()


if __name__ == "__main__":
    sys.exit(run(["demo", *sys.argv[1:]], "greenthread"))
