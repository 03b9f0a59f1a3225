"""vLLM through its development-mode control API, which only ever listens on the pod's loopback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

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
                await self._call("POST", "/wake_up", params={"tags": "weights"})
                await self._call("POST", "/collective_rpc", json={"method": "reload_weights"})
                await self._call("POST", "/wake_up", params={"tags": "kv_cache"})
            else:
                await self._call("POST", "/wake_up")

    async def sleep(self) -> None:
        async with self._operation("sleep", self._settings.sleep_timeout):
            self._level_file.write_text(str(self._level))
            await self._call("POST", "/sleep", params={"level": self._level, "mode": "abort"})

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise EngineError(f"the engine does not answer {path}: {error or type(error).__name__}") from error
        if response.status_code != 200:
            raise EngineError(f"the engine answered {path} with {response.status_code}: {response.text[:500]}")
        try:
            answer = response.json() if response.content else {}
        except ValueError:
            raise EngineError(f"the engine answered {path} with something that is not JSON") from None
        return answer if isinstance(answer, dict) else {}
