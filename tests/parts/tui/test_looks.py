"""Every page at three sizes looks as it is stored to look (see `looks.py`; UPDATE_LOOKS=1 stores anew)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from greenthread.chat import Kind, Piece
from greenthread.kube.aio import AsyncClient
from tests.parts.tui.looks import compare
from tests.parts.tui.test_overview import until
from tests.parts.tui.world import World
from tui.app import Dashboard
from tui.data import ClusterData
from tui.detail import Detail
from tui.speaker import Speaker
from tui.view import View
from tui.wakes import Key

SIZES = [(80, 24), (120, 34), (200, 50)]


class Standing(Dashboard):
    """The dashboard with a connection that is always as old."""

    def view(self) -> View:
        view = super().view()
        age = 0.2 if view.link.state == "live" else 61.0
        return replace(view, link=replace(view.link, age=age))


class Scripted:
    """A model that always says the same."""

    def ask(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> Iterator[Piece]:
        yield Piece(Kind.BEGIN)
        yield Piece(Kind.COMMENT, "waiting")
        yield Piece(Kind.THINKING, "The user asks about sleep.")
        for text in ("## Sleep\n", "A model that **nobody asks** gives its memory back:\n", "```\nPOST /sleep\n```\n",
                     "The next request wakes it with `POST /wake_up`, "
                     "which takes as long as its weights take to come back over the link to the host."):  # fmt: skip
            yield Piece(Kind.TEXT, text)
        yield Piece(Kind.END, "stop", {"completion_tokens": 46})

    def stop(self) -> None:
        """Nothing goes on."""


@asynccontextmanager
async def shown(
    story: str, model: Speaker | None = None, **options: Any
) -> AsyncIterator[tuple[World, Dashboard, Pilot[None]]]:
    """The dashboard on one of the world's stories, at the first size; `model` answers in chats."""
    async with World() as world:
        await getattr(world, story)()
        data = ClusterData(AsyncClient(world.network), clock=world.clock)

        def speaker(_: Key) -> Speaker:
            return model or Scripted()

        app = Standing(data, "prod-eu", zone=UTC, speaker=speaker, **options)
        async with app.run_test(size=SIZES[0]) as pilot:
            await until(pilot, lambda: len(data.snapshot().models) == 8 and len(data.events) >= 4)
            await settle(app, pilot)
            yield world, app, pilot


async def settle(app: Dashboard, pilot: Pilot[None]) -> None:
    """Paints until nothing is left to be laid out."""
    for _ in range(3):
        app.paint()
        await pilot.pause()
    for field in app.screen.query(Input):
        field.cursor_blink = False
    await pilot.pause()


async def compare_all(app: Dashboard, pilot: Pilot[None], name: str, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
    for width, height in sizes:
        await pilot.resize_terminal(width, height)
        await settle(app, pilot)
        compare(app, f"{name}-{width}x{height}")


PAGES = {
    "overview": ("story", ["j", "j", "j"]),
    "overview-waits": ("waits", ["j", "j"]),
    "waits": ("waits", [":waits", "j"]),
    "waits-nobody": ("rest", [":waits"]),
    "models": ("story", [":models", "V"]),
    "gpus": ("waits", [":gpus"]),
    "gpu": ("waits", [":gpu node-a-0", "j"]),
    "events": ("past", [":events", "j"]),
    "model": ("past", [":model llama-3-1-8b"]),
    "yaml": ("story", [":yaml llama-3-1-8b"]),
    "logs": ("story", [":logs llama-3-1-8b"]),
    "filter": ("story", ["slash", *"llama"]),
    "command": ("story", ["colon", *"sleep l", "tab"]),
    "help": ("story", ["question_mark"]),
    "confirm": ("story", ["s"]),
}


@pytest.mark.parametrize("page", PAGES)
async def test_every_page_looks_as_it_should_at_three_sizes(page: str) -> None:
    story, keys = PAGES[page]
    async with shown(story) as (_, app, pilot):
        for key in keys:
            if key.startswith(":"):
                app.run_command(key[1:])
            else:
                await pilot.press(key)
            await pilot.pause()
        if page in ("yaml", "logs"):
            await until(pilot, lambda: bool(app.page and app.page.copied()))
            await pilot.pause(0.15)  # a log is painted at most ten times a second
        if page == "model":
            await charts_are_there(app, pilot)
        await compare_all(app, pilot, page)


async def charts_are_there(app: Dashboard, pilot: Pilot[None]) -> None:
    """What draws curves is imported meanwhile."""
    page = app.page
    assert isinstance(page, Detail)
    await until(pilot, lambda: page._charts is not None)


async def test_a_chat_looks_as_it_should() -> None:
    async with shown("story") as (_, app, pilot):
        app.run_command("chat kimi")
        await pilot.pause()
        await pilot.press(*"Why?", "enter")
        await until(pilot, lambda: bool(app.page and "wake_up" in app.page.copied()))
        await pilot.pause(0.1)
        await compare_all(app, pilot, "chat")


@pytest.mark.parametrize("theme", ["light", "high-contrast", "colour-blind"])
async def test_every_theme_looks_as_it_should(theme: str) -> None:
    async with shown("waits", theme=theme) as (_, app, pilot):
        await compare_all(app, pilot, f"theme-{theme}", [(120, 34)])


async def test_ascii_looks_as_it_should_and_is_ascii() -> None:
    async with shown("waits", ascii_only=True) as (_, app, pilot):
        for page in ("overview", "waits", "gpus", "model llama-3-1-8b"):
            app.run_command(page)
            await pilot.pause()
            if isinstance(app.page, Detail):
                await charts_are_there(app, pilot)
            await compare_all(app, pilot, f"ascii-{page.split()[0]}", [(80, 24)])
            assert all(strip.text.isascii() for strip in app.screen._compositor.render_strips())


async def test_a_lost_connection_looks_as_it_should() -> None:
    async with shown("story") as (world, app, pilot):
        world.network.cut()
        await until(pilot, lambda: app.data.link.state == "lost")
        await compare_all(app, pilot, "lost", [(120, 34)])
