"""Recordings that are opened: to be shown, or to be gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import click

from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Response
from greenthread.kube.errors import Unreachable
from tui.data import ClusterData, Link
from tui.history import History, NoRecording
from tui.recording import CannotRecord, Recorder, load

LARGE = 4 * 2**20
"""Bytes of a recording from which on reading it takes a second or more."""


class _NoCluster:
    """Answers nothing: a recording has no cluster."""

    where = "a recording"

    async def request(self, *_: Any, **__: Any) -> Response:
        raise Unreachable("this is a recording: there is no cluster to ask")

    async def stream(self, *_: Any, **__: Any) -> AsyncGenerator[bytes | Response, None]:
        for line in list[bytes]():
            yield line
        raise Unreachable("this is a recording: there is no cluster to ask")

    async def close(self) -> None:
        """Nothing is held."""


class Recording(ClusterData):
    """A recording in the place of a cluster."""

    def __init__(self, history: History, about: Mapping[str, Any]) -> None:
        namespace = about.get("namespace")
        super().__init__(
            AsyncClient(_NoCluster()), namespace=namespace if isinstance(namespace, str) else None,
            history=history, context=str(about.get("context") or ""),
        )  # fmt: skip

    async def run(self) -> None:
        """Nothing happens any more."""
        await self._survey()
        await asyncio.Event().wait()

    @property
    def link(self) -> Link:
        return Link("live", None)


def open_recording(path: Path, history: History) -> Recording:
    """Reads a recording to be shown. ClickException, with words for people, if it cannot be."""
    try:
        if path.stat().st_size > LARGE:
            click.echo(f"reading {path} …", err=True)
        about, _ = load(path, history)
    except NoRecording as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from None
    if not history.segments:
        raise click.ClickException(f"{path}: there is nothing in it")
    return Recording(history, about[-1] if about else {})


def go_on_recording(path: Path, history: History) -> Recorder:
    """Opens a recording to be gone on with, new or old; what is in it goes into the history. ClickException."""
    try:
        recorder = Recorder(path)
        _, whole = load(path, history)
        recorder.keep(whole)
    except (CannotRecord, NoRecording) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from None
    return recorder
