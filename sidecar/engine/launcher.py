"""Asks the launcher around the engine (vllm_sleep/launch.py) to take the rest of it off the GPU, and to put it back."""

from __future__ import annotations

import asyncio
import json
import os

from sidecar.engine import EngineError, EngineLost

_SOCKET = "launcher.sock"
_MOST = 64 * 1024  # bytes of an answer


class Launcher:
    """One call, one connection. The caller bounds the time."""

    def __init__(self, run_dir: str) -> None:
        self._folder = run_dir

    async def call(self, name: str) -> None:
        """`checkpoint` or `restore`. EngineError: it was not done, the engine is as before; EngineLost: it is of no use
        any more."""
        try:
            folder = os.open(self._folder, os.O_PATH)
            try:  # a socket's address has room for 107 characters only
                reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/{_SOCKET}", limit=_MOST)
            finally:
                os.close(folder)
        except OSError as error:
            raise EngineError(f"the engine's launcher does not answer: {error.strerror or error}") from None
        try:
            writer.write(json.dumps({"call": name}).encode() + b"\n")
            answer = json.loads(await reader.readline())
        except (OSError, ValueError) as error:
            raise EngineLost(f"the engine's launcher did not answer {name}: {error}") from None
        finally:
            writer.close()
        if "error" in answer:
            raise (EngineLost if answer.get("lost") else EngineError)(f"{name}: {answer['error']}")
