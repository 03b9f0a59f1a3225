"""Any OpenAI-shaped server without a sleep of its own: it sleeps by being stopped and wakes by being started."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sidecar.engine import EngineError, Rest
from sidecar.engine.base import ProcessEngine


class CommandEngine(ProcessEngine):
    """llama.cpp, SGLang, TGI, …"""

    health_paths = ("/health", "/v1/models")

    async def settle(self) -> Rest:
        if self._process.pid is None and self._stopped.exists():
            return Rest.ASLEEP
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
        self._stopped.unlink(missing_ok=True)

    async def sleep(self) -> None:
        self._stopped.touch()
        await self.kill()

    @property
    def _stopped(self) -> Path:
        """Tells a restarted sidecar that the engine was stopped to sleep, not missing."""
        return Path(self._settings.run_dir) / "stopped-to-sleep"
