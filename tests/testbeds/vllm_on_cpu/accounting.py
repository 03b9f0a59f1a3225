"""Runs inside vLLM's API server: what its sleeps and wakes would free and take is freed and taken in the ledger."""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import parse_qs

from localcluster.engine.arguments import parse
from localcluster.engine.main import memory_plan
from localcluster.engine.memory import GpuMemory
from localcluster.gpus.ledger import OutOfMemoryError, open_ledger


class LedgerMiddleware:
    """ASGI middleware around vLLM's control paths. It holds no state of its own: the ledger knows what is held."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._ledger = open_ledger()
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["GREENTHREAD_TEST_VISIBLE_DEVICES"]
        try:
            self._plan = memory_plan(parse(os.environ["GREENTHREAD_TEST_VLLM_ARGUMENTS"].split("\n")), self._ledger)
        finally:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        self._memory = GpuMemory(self._ledger, self._plan, 0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "POST" else ""
        query = parse_qs(scope.get("query_string", b"").decode())
        if path == "/wake_up":
            self._take(query.get("tags", ["weights", "kv_cache"]))
        if path != "/sleep" or query.get("level") == ["0"]:
            await self._app(scope, receive, send)
            return

        async def freeing(message: Any) -> None:
            # Before the one who asked can hear that it sleeps.
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._memory.free_all()
            await send(message)

        await self._app(scope, receive, freeing)

    def _take(self, tags: list[str]) -> None:
        first = self._plan.devices[0]
        try:
            self._memory.map_context()
            if "weights" in tags and not self._ledger.held_bytes(first, "weights"):
                self._memory.map_weights()
            if "kv_cache" in tags and not self._ledger.held_bytes(first, "kv_cache"):
                self._memory.map_kv_cache()
        except OutOfMemoryError as error:
            print(f"torch.OutOfMemoryError: {error}", file=sys.stderr, flush=True)
            os._exit(1)
