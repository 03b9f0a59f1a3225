"""Getting around: commands, filters, pages and back, namespaces, sorting, the mouse; what a refused action says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from textual.geometry import Offset

from greenthread.chat import ChatError, Kind, Piece
from greenthread.kube.core import Response
from greenthread.kube.resources import MODELS, NAMESPACES
from tests.parts.tui.looks import strips
from tests.parts.tui.test_looks import settle, shown
from tests.parts.tui.test_overview import line_with, opened, text_of, until
from tests.parts.tui.world import World, report
from tui.app import Dashboard
from tui.chat import Conversation
from tui.detail import Detail
from tui.events import Events
from tui.gpus import Gpus, OneGpu
from tui.logs import Logs
from tui.models import Models
from tui.objects import Yaml
from tui.overview import Overview
from tui.pages import PAGES
from tui.waits import Waits


def messages(app: Dashboard) -> list[str]:
    return [notification.message for notification in app._notifications]


async def test_tab_leads_through_all_pages_and_escape_back_the_same_way() -> None:
    async with opened() as (_, app, pilot):
        seen = []
        for _ in PAGES:
            seen.append(app.page.identity[0])  # type: ignore[union-attr]
            await pilot.press("tab")
            await pilot.pause()
        assert seen == list(PAGES)
        assert isinstance(app.screen, Overview)
        assert len(app.screen_stack) == 1  # a page that is open already comes up again
        await pilot.press("tab", "tab")
        await pilot.press("escape")
        assert isinstance(app.screen, Waits)
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)


async def test_commands_open_pages_and_are_completed() -> None:
    async with opened() as (_, app, pilot):
        for text, kind in (
            (":waits", Waits),
            (":models", Models),
            (":gpus", Gpus),
            (":gpu node-a-1", OneGpu),
            (":events", Events),
            (":model kimi", Detail),
            (":yaml kimi", Yaml),
            (":logs kimi sidecar", Logs),
            (":chat kimi", Conversation),
        ):
            app.run_command(text[1:])
            await pilot.pause()
            assert isinstance(app.screen, kind)
        app.run_command("overview")
        await pilot.pause()
        await pilot.press("colon", *"the", "tab")
        assert app.screen.query_one("#prompt").value == "theme"  # type: ignore[attr-defined]
        await pilot.press("space", *"li", "tab", "enter")
        await pilot.pause()
        assert app.palette.name == "light"
        await pilot.press("colon", "up")
        assert app.screen.query_one("#prompt").value == "theme light"  # type: ignore[attr-defined]
        await pilot.press("escape", "j")
        assert app.screen.selected == ("prod", "kimi-vl-a3b")  # type: ignore[attr-defined]


async def test_a_command_that_cannot_be_run_says_why() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("colon", *"wayts", "enter")
        await pilot.pause()
        assert messages(app) == ["there is no command wayts: did you mean waits?"]
        app.run_command("sleep nobody")
        await pilot.pause()
        assert messages(app)[-1] == "there is no model nobody"


async def test_keys_that_come_with_the_slash_are_typed_and_never_act() -> None:
    async with opened() as (world, app, pilot):
        await pilot.press("slash", *"swpxq")
        await pilot.pause()
        assert app.screen.query_one("#prompt").value == "swpxq"  # type: ignore[attr-defined]
        assert "0 of 8" in line_with(app, " MODEL ")
        await pilot.press("escape")
        await pilot.pause()
        assert line_with(app, "gpt-oss-20b        ★")
        model = await world.client.get(MODELS, "gpt-oss-20b", "prod")
        assert model["spec"]["fairness"]["popular"] is True


async def test_every_table_has_a_filter() -> None:
    async with shown("waits") as (_, app, pilot):
        for page, words, kept, gone in (
            ("waits", "mistral", "mistral-small-24b", "3 of 3"),
            ("models", "pending", "qwen-3-4b-thinking", "gpt-oss-20b "),
            ("gpus", "gpt-oss", "node-a/1", "node-a/0"),
            ("events", "whisper slept", "slept in 92ms", "asks for room"),
        ):
            app.run_command(page)
            await pilot.pause()
            await pilot.press("slash", *words.replace(" ", "§").replace("§", " "), "enter")
            await settle(app, pilot)
            text = "\n".join(text_of(app))
            assert kept in text
            assert gone not in text.split("WHY")[0].split("LOCK")[0]


async def test_digits_choose_the_namespaces_with_the_most_models() -> None:
    world = World()
    async with world:
        await world.story()
        await world.client.create(NAMESPACES, {"metadata": {"name": "team"}})
        for name in ("a", "b"):
            await world.model(name, "0", 1, report("sleeping", 5), namespace="team")
        app = world.app()
        async with app.run_test(size=(120, 34)) as pilot:
            await until(pilot, lambda: len(app.data.snapshot().models) == 10)
            app.paint()
            await pilot.press("2")
            await pilot.pause()
            assert " team " in text_of(app)[0]
            assert line_with(app, "team/a")
            assert not line_with(app, "prod/whisper")
            await pilot.press("1")
            await pilot.pause()
            assert line_with(app, "prod/whisper")
            assert not line_with(app, "team/a")
            await pilot.press("0")
            await pilot.pause()
            assert "all namespaces" in text_of(app)[0]
            await pilot.press("7")
            await pilot.pause()
            assert messages(app)[-1].startswith("there is no namespace 7")
            app.run_command("ns team")
            await pilot.pause()
            assert " team " in text_of(app)[0]


async def test_models_are_sorted_by_key_and_by_a_click_on_a_heading() -> None:
    async with opened() as (_, app, pilot):
        app.run_command("models")
        await pilot.pause()

        def order() -> list[str]:
            names = ("gpt-oss-20b", "llama-3-1-8b", "kimi-vl-a3b", "qwen-3-4b-thinking")
            lines = [line for line in text_of(app)[3:12] if any(name in line for name in names)]
            return [next(name for name in names if name in line) for line in lines]

        await pilot.press("Q")
        await pilot.pause()
        assert order()[:2] == ["qwen-3-4b-thinking", "kimi-vl-a3b"]
        await pilot.press("Q")
        await pilot.pause()
        assert order()[-2:] == ["kimi-vl-a3b", "qwen-3-4b-thinking"]
        heading = text_of(app)[2]
        await pilot.click("#table-heading", offset=Offset(heading.index("VRAM"), 0))
        await pilot.pause()
        assert order()[:3] == ["gpt-oss-20b", "llama-3-1-8b", "kimi-vl-a3b"]
        assert "VRAM ↓" in text_of(app)[2]


async def test_a_click_on_a_heading_of_the_first_page_sorts_on_a_page_of_its_own() -> None:
    async with opened() as (_, app, pilot):
        lines = text_of(app)
        heading = next(line for line in lines if "QUEUE" in line)
        await pilot.click("#table-heading", offset=Offset(heading.index("QUEUE"), 0))
        await pilot.pause()
        assert isinstance(app.screen, Models)
        await settle(app, pilot)
        assert "QUEUE↓" in text_of(app)[2]
        assert "qwen-3-4b-thinking" in text_of(app)[3]


async def test_footer_hints_can_be_clicked_and_say_what_applies_here() -> None:
    async with opened() as (_, app, pilot):
        footer = text_of(app)[-1]
        await pilot.click("#footer", offset=Offset(footer.index("tab waits"), 0))
        await pilot.pause()
        assert isinstance(app.screen, Waits)
        assert "x preempt llama-3-1-8b" in text_of(app)[-1]
        await pilot.press("x")
        await pilot.pause()
        assert "Preempt llama-3-1-8b?" in "\n".join(text_of(app))


async def test_a_gpu_opens_with_enter_and_its_occupants_can_be_acted_on() -> None:
    async with shown("waits") as (_, app, pilot):
        app.run_command("gpus")
        await pilot.pause()
        await pilot.press("enter")
        await settle(app, pilot)
        assert isinstance(app.screen, OneGpu)
        assert app.screen.selected == ("prod", "llama-3-1-8b")
        await pilot.press("j", "enter")
        await pilot.pause()
        assert isinstance(app.screen, Detail)
        assert app.screen.selected == ("prod", "kimi-vl-a3b")


async def test_yaml_is_read_from_the_server_and_follows_it() -> None:
    async with opened() as (world, app, pilot):
        await pilot.press("y")
        await until(pilot, lambda: "popular: true" in app.page.copied())  # type: ignore[union-attr]
        assert "modelName: test/gpt-oss-20b" in app.page.copied()  # type: ignore[union-attr]
        assert "managedFields" not in app.page.copied()  # type: ignore[union-attr]
        await world.client.patch(MODELS, "gpt-oss-20b", {"spec": {"fairness": {"popular": False}}}, namespace="prod")
        await until(pilot, lambda: "popular: false" in app.page.copied())  # type: ignore[union-attr]


async def test_logs_are_followed_without_escapes_and_filtered() -> None:
    async with opened() as (_, app, pilot):
        await pilot.press("l")
        await until(pilot, lambda: bool(line_with(app, "wake up")))
        assert line_with(app, "(EngineCore pid=71) INFO 11-22 14:01:02 vLLM")
        assert line_with(app, '   File "engine.py"')
        await pilot.press("slash", *"error", "enter")
        await settle(app, pilot)
        assert line_with(app, "ERROR")
        assert not line_with(app, "wake up")


async def test_a_user_without_the_right_is_told_which_one_lacks() -> None:
    async with opened() as (world, app, pilot):
        real = world.network.request

        async def refuse(method: str, path: str, *args: Any, **options: Any) -> Any:
            if method != "PATCH":
                return await real(method, path, *args, **options)
            said = 'models.greenthread.ai "gpt-oss-20b" is forbidden: User "anna" cannot patch resource "models"'
            status = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": said}
            return Response(403, {"content-type": "application/json"}, json.dumps(status).encode())

        world.network.request = refuse  # type: ignore[method-assign]
        await pilot.press("p")
        await until(pilot, lambda: bool(messages(app)))
        assert messages(app)[0].startswith("no permission to patch models.greenthread.ai: ")
        assert 'User "anna" cannot patch' in messages(app)[0]
        assert next(iter(app._notifications)).title == "gpt-oss-20b was left as it is"


async def test_a_chat_shows_the_answer_and_stops_at_escape() -> None:
    async with shown("story") as (_, app, pilot):
        await pilot.press("a")
        await pilot.pause()
        assert isinstance(app.screen, Conversation)
        await pilot.press(*"why? q", "enter")
        await until(pilot, lambda: bool(line_with(app, "46 tokens")))
        text = "\n".join(text_of(app))
        assert "why? q" in text
        assert "nobody asks" in text
        assert "**" not in text
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)


class Slow:
    """Says one word, and then nothing until it is stopped; or refuses."""

    def __init__(self, error: str = "") -> None:
        self.stopped = threading.Event()
        self._error = error

    def ask(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> Iterator[Piece]:
        if self._error:
            raise ChatError(self._error, 503)
        yield Piece(Kind.TEXT, "Well")
        assert self.stopped.wait(30)

    def stop(self) -> None:
        self.stopped.set()


async def test_escape_stops_an_answer_that_goes_on_and_then_leaves() -> None:
    model = Slow()
    async with shown("story", model) as (_, app, pilot):
        await pilot.press("a", *"why?", "enter")
        await until(pilot, lambda: bool(line_with(app, "   Well")))
        assert "esc stop" in text_of(app)[-1]
        await pilot.press("escape")
        await until(pilot, lambda: bool(line_with(app, "stopped")))
        assert model.stopped.is_set()
        assert isinstance(app.screen, Conversation)
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)


async def test_leaving_the_program_ends_an_answer_that_goes_on() -> None:
    model = Slow()
    async with shown("story", model) as (_, app, pilot):
        await pilot.press("a", *"why?", "enter")
        await until(pilot, lambda: bool(line_with(app, "   Well")))
    assert model.stopped.is_set()


async def test_what_a_model_refuses_with_is_told_and_one_may_ask_again() -> None:
    async with shown("story", Slow("the queue is full: 256 requests wait already")) as (_, app, pilot):
        await pilot.press("a", *"why?", "enter")
        await until(pilot, lambda: bool(line_with(app, "the queue is full")))
        assert "enter send" in text_of(app)[-1]


async def test_readonly_neither_completes_nor_runs_what_acts_nor_chats() -> None:
    async with opened(readonly=True) as (_, app, pilot):
        assert app.completions("sle") == []
        app.run_command("sleep gpt-oss-20b")
        await pilot.pause()
        assert "read-only" in messages(app)[-1]
        await pilot.press("a")
        assert isinstance(app.screen, Overview)


async def test_amber_is_only_for_who_waits() -> None:
    async with shown("rest") as (_, app, pilot):
        for page in ("overview", "waits", "gpus", "models"):
            app.run_command(page)
            await settle(app, pilot)
            for strip in strips(app):
                for text, style, _ in strip:
                    amber = style is not None and style.color is not None and style.color.name == app.palette.pending
                    # requests that wait are counted, and Events tell of waits that were
                    assert not amber or text.strip() in ("◌", "2", "")
