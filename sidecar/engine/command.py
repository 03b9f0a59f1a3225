"""Any OpenAI-shaped server without a sleep of its own: it sleeps by being stopped and wakes by being started."""

from __future__ import annotations

import asyncio

from sidecar.engine import EngineError, Rest
from sidecar.engine.base import ProcessEngine


class CommandEngine(ProcessEngine):
    """llama.cpp, SGLang, TGI, …"""

    health_paths = ("/health", "/v1/models")

    async def settle(self) -> Rest:
        if self._process.pid is not None and self._under_way() is None:
            try:
                async with asyncio.timeout(5.0):
                    await self._healthy()
                return Rest.AWAKE
            except (EngineError, TimeoutError):
                pass  # running, but not well: it is started afresh under a claim
        await self.kill()
        return Rest.ABSENT

    async def wake(self) -> None:
        await self.start()

    async def sleep(self) -> None:
        await self.kill()
