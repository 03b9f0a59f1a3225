"""The real program in a real terminal: tmux holds it, and the API server is the embedded one, on HTTP."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from greenthread.clock import format_time
from greenthread.kube.resources import MODELS
from localcluster.api.server import Server
from tests.parts.tui.world import World, occupant

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux here"),
]
KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: prod-eu
contexts: [{{name: prod-eu, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: me, user: {{}}}}]
"""


class Terminal:
    """A tmux server of its own, with one window."""

    def __init__(self) -> None:
        self._socket = f"greenthread-{uuid.uuid4().hex[:12]}"

    async def __call__(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "tmux", "-L", self._socket, "-f", "/dev/null", *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().rstrip("\n")

    async def screen(self) -> list[str]:
        return (await self("capture-pane", "-p")).split("\n")

    async def type(self, *keys: str) -> None:
        await self("send-keys", *keys)

    async def until(self, condition: Callable[[str], bool]) -> str:
        """The screen, once it is as wanted."""
        text = ""
        for _ in range(300):
            text = "\n".join(await self.screen())
            if condition(text):
                return text
            await asyncio.sleep(0.1)
        raise AssertionError(f"it did not happen in time:\n{text}")

    async def says(self, words: str) -> str:
        return await self.until(lambda text: words in text)


@asynccontextmanager
async def started(folder: Path, *options: str) -> AsyncIterator[tuple[World, Terminal, Server]]:
    """The dashboard on the story, in a terminal of 120x34, from a shell that goes on after it."""
    async with World() as world:
        await world.story()
        server, terminal = Server(world.api), Terminal()
        port = await server.start()
        (folder / "kubeconfig").write_text(KUBECONFIG.format(port=port))
        command = " ".join([sys.executable, "-m", "kubectl_greenthread.main", "dashboard", *options])
        shell = f"env -u COLUMNS -u LINES -u LC_ALL -u LC_CTYPE LANG=C.UTF-8 KUBECONFIG={folder}/kubeconfig TZ=UTC sh"
        try:
            await terminal("new-session", "-d", "-x", "120", "-y", "34", "-c", os.getcwd(), shell)
            await terminal("set-option", "-g", "escape-time", "0")
            await terminal("resize-window", "-x", "120", "-y", "34")
            await terminal.type(f"PS1='$ '; {command}; echo left with $?", "Enter")
            await terminal.says("8 models")
            yield world, terminal, server
        finally:
            await terminal("kill-server")
            await server.stop()


async def test_a_day_at_the_terminal(tmp_path: Path) -> None:
    async with started(tmp_path) as (world, terminal, _):
        text = await terminal.says("▸ ▍ gpt-oss-20b")
        assert "◌ qwen-3-4b-thinking" in text
        assert await terminal("display-message", "-p", "#{alternate_on}") == "1"

        # a filter, typed in one go with the key that opens it
        await terminal.type("/llama sleep", "Enter")
        text = await terminal.says("1 of 8")
        assert "kimi-vl-a3b          " not in text.split("1 of 8")[1].split("WHY")[0]
        await terminal.type("Escape")
        await terminal.until(lambda text: "1 of 8" not in text)

        # a wake is asked for, with its command; then it happens
        await terminal.type("G", "w")
        text = await terminal.says("asked whisper-large-v3 to wake")
        assert "kubectl greenthread wake whisper-large-v3 -n prod" in text
        model = await world.client.get(MODELS, "whisper-large-v3", "prod")
        assert "greenthread.ai/wake" in model["metadata"]["annotations"]
        others = [occupant("gpt-oss-20b", "serving", 88.2, popular=True), occupant("llama-3-1-70b", "sleeping")]
        lock = {"holder": "prod/whisper-large-v3-0", "acquiredAt": format_time(datetime.now(UTC))}
        waking = [*others, occupant("whisper-large-v3", "waking", 3.1)]
        await world.patch_gpu("node-a-1", occupants=waking, wakeLock=lock)
        await terminal.until(lambda text: "◐ waking" in text.split("whisper-large-v3")[-1] or "◐ copy" in text)
        serving = [*others, occupant("whisper-large-v3", "serving", 3.1)]
        await world.patch_gpu("node-a-1", occupants=serving, wakeLock=None)
        await terminal.says("whisper-large-v3     ● serving")

        # what disturbs is asked first; enter cancels
        await terminal.type("g", "j", "j", "s")
        await terminal.says("Put llama-3-1-8b to sleep?")
        await terminal.type("Enter")
        await terminal.until(lambda text: "Put llama-3-1-8b to sleep?" not in text)
        model = await world.client.get(MODELS, "llama-3-1-8b", "prod")
        assert "annotations" not in model["metadata"]

        # a command, completed; back with esc
        await terminal.type(":wai", "Tab", "Enter")
        await terminal.says("who waits for what")
        await terminal.type("Escape")
        await terminal.says("MEMORY")

        for width, height in ((80, 24), (200, 50), (60, 20)):
            await terminal("resize-window", "-x", str(width), "-y", str(height))
            await terminal.until(lambda text, h=height: "quit" in text.split("\n")[-1] and len(text.split("\n")) == h)
            lines = await terminal.screen()
            assert lines[0].startswith(" GreenThread")
            assert any("NEXT" in line for line in lines)

        await terminal.type("q")
        await terminal.says("left with 0")
        # the shell has its screen, cursor and mouse back
        flags = await terminal("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}")
        assert flags == "0 1 0"


async def test_ctrl_c_leaves_too_and_readonly_never_acts(tmp_path: Path) -> None:
    async with started(tmp_path, "--readonly", "--ascii", "--theme", "light") as (world, terminal, _):
        text = await terminal.says("read-only")
        assert text.isascii()
        assert "sleep  " not in text.split("\n")[-1]
        await terminal.type("s", "w", "p", "x")
        await terminal.type(":sleep gpt-oss-20b", "Enter")
        assert (await terminal.says("this dashboard is read-only")).isascii()
        model = await world.client.get(MODELS, "gpt-oss-20b", "prod")
        assert "annotations" not in model["metadata"]
        await terminal.type("C-c")
        await terminal.says("left with 0")


async def test_a_lost_server_is_told_and_found_again(tmp_path: Path) -> None:
    async with started(tmp_path) as (world, terminal, server):
        port = server.port
        await server.stop()
        text = await terminal.says("connection lost")
        assert f"no API server listens at http://127.0.0.1:{port}" in " ".join(text.split())
        assert "gpt-oss-20b" in text
        await terminal.type("p")  # what acts says that it could not
        await terminal.says("was left as it is")
        again = Server(world.api)
        await again.start(port)
        try:
            await world.patch_gpu("node-a-1", stats={"utilizationPercent": 97})
            text = await terminal.until(lambda text: "connection lost" not in text and "97%" in text)
            assert "● live" in text
        finally:
            await again.stop()
