"""vLLM through its development-mode control API, which only ever listens on the pod's loopback."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenthread.model import ModelSpec
from sidecar.engine import EngineError, Rest
from sidecar.engine.base import ProcessEngine
from sidecar.settings import Settings

log = logging.getLogger(__name__)


class VllmEngine(ProcessEngine):
    """Sleeps at level 1 (weights stay in pinned host memory) or 2 (weights are read back), by ``staging.pinned``."""

    def __init__(self, settings: Settings, on_exit: Callable[[str], None], **stand_ins: Any) -> None:
        super().__init__(settings, on_exit, **stand_ins)
        self._level = 2
        self._level_file = Path(settings.run_dir) / "sleep-level"

    def configure(self, spec: ModelSpec) -> None:
        self._level = 1 if spec.staging.pinned else 2

    async def settle(self) -> Rest:
        if self._process.pid is None:
            self._journal.unlink(missing_ok=True)
            return Rest.ABSENT
        under_way = self._under_way()
        try:
            if under_way is None:
                async with asyncio.timeout(5.0):
                    sleeping = (await self._call("GET", "/is_sleeping")).get("is_sleeping")
                return Rest.ASLEEP if sleeping else Rest.AWAKE
            if under_way in ("wake", "sleep"):
                # The engine works off its control calls in order, so a sleep ends whatever was under way.
                await self.sleep()
                return Rest.ASLEEP
        except (EngineError, TimeoutError) as error:
            log.warning("the engine does not come to rest and is killed: %s", error)
        await self.kill()
        return Rest.ABSENT

    async def wake(self) -> None:
        level = self._level_file.read_text().strip() if self._level_file.exists() else "1"
        async with self._operation("wake", self._settings.wake_timeout):
            if level == "2":
                await self._call("POST", "/wake_up?tags=weights")
                await self._call("POST", "/collective_rpc", {"method": "reload_weights"})
                await self._call("POST", "/wake_up?tags=kv_cache")
            else:
                await self._call("POST", "/wake_up")

    async def sleep(self) -> None:
        async with self._operation("sleep", self._settings.sleep_timeout):
            self._level_file.write_text(str(self._level))
            await self._call("POST", f"/sleep?level={self._level}&mode=abort")

    async def _call(self, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        path = target.partition("?")[0]
        try:
            reply = await self._ask(method, target, None if body is None else json.dumps(body).encode())
        except OSError as error:
            raise EngineError(f"the engine does not answer {path}: {str(error) or type(error).__name__}") from error
        if reply.status != 200:
            text = reply.body[:500].decode("utf-8", "replace")
            raise EngineError(f"the engine answered {path} with {reply.status}: {text}")
        try:
            answer = json.loads(reply.body) if reply.body else {}
        except ValueError:
            raise EngineError(f"the engine answered {path} with something that is not JSON") from None
        return answer if isinstance(answer, dict) else {}
