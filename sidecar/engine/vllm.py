"""vLLM through its development-mode control API, which only ever listens on the pod's loopback."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenthread.model import ModelSpec
from sidecar.engine import EngineError, EngineLost, Rest
from sidecar.engine.base import ProcessEngine
from sidecar.engine.launcher import Launcher
from sidecar.settings import Settings

log = logging.getLogger(__name__)


class Refused(EngineError):
    """The engine answered, and said no."""


class VllmEngine(ProcessEngine):
    """Sleeps at level 1 (weights stay in pinned host memory) or 2 (read back from disk), by ``staging.pinned``.

    vLLM's own backend drops the weights at level 2, and they are loaded anew; ours keeps them in a file. With
    ``settings.checkpoint`` what is left of a sleeping engine is taken off the GPU as well.
    """

    def __init__(
        self,
        settings: Settings,
        on_exit: Callable[[str], None],
        launcher: Launcher | None = None,
        **stand_ins: Any,
    ) -> None:
        super().__init__(settings, on_exit, **stand_ins)
        self._level = 2
        self._level_file = Path(settings.run_dir) / "sleep-level"
        self._slept = False
        self._launcher: Launcher | None = None
        self._shortfalls: dict[str, str] = {}
        if settings.checkpoint and len(settings.gpu_indices) == 1:
            self._launcher = launcher or Launcher(settings.run_dir)
        elif settings.checkpoint:
            self._shortfalls["checkpoint"] = "its engine stays on the GPUs with what vLLM leaves: it runs on several"

    def configure(self, spec: ModelSpec) -> None:
        self._level = 1 if spec.staging.pinned else 2

    @property
    def shortfalls(self) -> list[str]:
        return list(self._shortfalls.values())

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
                if self._launcher:
                    await self._launcher.call("restore")
                # The engine works off its control calls in order, so a sleep ends whatever was under way.
                await self.sleep()
                return Rest.ASLEEP
        except (EngineError, TimeoutError) as error:
            log.warning("the engine does not come to rest and is killed: %s", error)
        await self.kill()
        return Rest.ABSENT

    async def start(self) -> None:
        self._slept = False
        await super().start()

    async def wake(self) -> None:
        level = self._level_file.read_text().strip() if self._level_file.exists() else "1"
        async with self._operation("wake", self._settings.wake_timeout):
            if self._launcher:
                try:
                    await self._launcher.call("restore")
                except EngineError as error:
                    raise EngineLost(str(error)) from None
            if level == "2" and self._settings.sleep_backend == "cumem":
                await self._call("POST", "/wake_up?tags=weights")
                await self._call("POST", "/collective_rpc", {"method": "reload_weights"})
                await self._call("POST", "/wake_up?tags=kv_cache")
            else:
                await self._call("POST", "/wake_up")

    async def sleep(self) -> None:
        timeout = self._settings.sleep_timeout if self._slept else self._settings.first_sleep_timeout
        async with self._operation("sleep", timeout):
            try:
                await self._sleep_at(self._level)
                self._shortfalls.pop("pinned", None)
            except Refused as error:
                if self._level != 1 or self._settings.sleep_backend == "cumem":
                    raise
                # there is no host memory for its weights: they can be read back from disk
                await self._sleep_at(2)
                self._shortfalls["pinned"] = f"its weights are on disk and not in host memory: {error}"
            if self._launcher:
                await self._checkpoint(self._launcher)
        self._slept = True

    async def _sleep_at(self, level: int) -> None:
        self._level_file.write_text(str(level))
        await self._call("POST", f"/sleep?level={level}&mode=abort")

    async def _checkpoint(self, launcher: Launcher) -> None:
        try:
            self._off = False
            await launcher.call("checkpoint")
            self._off = True
            self._shortfalls.pop("checkpoint", None)
        except EngineLost:
            raise
        except EngineError as error:
            self._shortfalls["checkpoint"] = f"its engine stays on the GPU with what vLLM leaves: {error}"
            log.warning("%s", self._shortfalls["checkpoint"])

    async def _call(self, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        path = target.partition("?")[0]
        try:
            reply = await self._ask(method, target, None if body is None else json.dumps(body).encode())
        except OSError as error:
            raise EngineError(f"the engine does not answer {path}: {str(error) or type(error).__name__}") from error
        if reply.status != 200:
            text = reply.body[:500].decode("utf-8", "replace")
            raise Refused(f"the engine answered {path} with {reply.status}: {text}")
        try:
            answer = json.loads(reply.body) if reply.body else {}
        except ValueError:
            raise EngineError(f"the engine answered {path} with something that is not JSON") from None
        return answer if isinstance(answer, dict) else {}
