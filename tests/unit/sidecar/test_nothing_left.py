"""What a sleeping engine may leave on its GPU: the backend's levels, the launcher's checkpoint, NVML's proof."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from greenthread.gpu import PodRef
from greenthread.http_async import Reply
from sidecar.engine import EngineError, EngineLost
from sidecar.engine.memory import DeviceMemory
from sidecar.engine.vllm import VllmEngine
from sidecar.settings import Settings
from tests.unit.sidecar.test_lifecycle import in_world, state
from tests.unit.sidecar.test_vllm import Asked, pinned
from tests.unit.sidecar.world import GIB


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(PodRef("ns", "p"), "u", "m", "node", changes.pop("gpus", (0,)), str(folder), **changes)


@asynccontextmanager
async def launcher(folder: Path, answer: Callable[[str], dict[str, Any] | bytes]) -> AsyncIterator[list[str]]:
    """A launcher, played on the real socket: the calls it gets."""
    calls: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(json.loads(await reader.readline())["call"])
        said = answer(calls[-1])
        writer.write(said if isinstance(said, bytes) else json.dumps(said).encode() + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "launcher.sock")
    async with server:
        yield calls


DONE = {"processes": 1, "seconds": 0.1}


class Processes:
    """An engine's processes, played."""

    pid = 7

    def owns(self, pid: int) -> bool:
        return True


class Memory(DeviceMemory):
    """NVML, played: bytes of the engine, or of somebody else when it is of another namespace."""

    def __init__(self, *used: int | None) -> None:
        self._values: Iterator[int | None] = iter(used)

    async def used(self) -> list[int] | None:
        return None

    async def used_by(self, owns: Any) -> list[int] | None:
        value = next(self._values)
        return None if value is None else [0, value]


# the levels


async def test_our_backend_brings_weights_back_from_its_file_without_loading_them_anew(tmp_path: Path) -> None:
    asked = Asked()
    engine = VllmEngine(settings(tmp_path, sleep_backend="greenthread"), print, ask=asked)
    engine.configure(pinned(False))
    await engine.sleep()
    await engine.wake()
    assert asked.calls == [("POST", "/sleep?level=2&mode=abort", None), ("POST", "/wake_up", None)]


class NoHostMemory(Asked):
    """An engine whose sleep at level 1 finds no host memory."""

    async def __call__(self, method: str, target: str, body: bytes | None) -> Reply:
        reply = await super().__call__(method, target, body)
        return Reply(500, b"the pinned copy needs 13.0G more") if "level=1" in target else reply


async def test_without_host_memory_the_weights_go_to_disk_and_the_report_says_so(tmp_path: Path) -> None:
    asked = NoHostMemory()
    engine = VllmEngine(settings(tmp_path, sleep_backend="greenthread"), print, ask=asked)
    engine.configure(pinned(True))
    await engine.sleep()
    await engine.wake()
    targets = [target for _, target, _ in asked.calls]
    assert targets == ["/sleep?level=1&mode=abort", "/sleep?level=2&mode=abort", "/wake_up"]
    [told] = engine.shortfalls
    assert "on disk and not in host memory" in told
    assert "needs 13.0G more" in told


async def test_vllms_own_backend_has_no_second_choice(tmp_path: Path) -> None:
    engine = VllmEngine(settings(tmp_path), print, ask=NoHostMemory())
    engine.configure(pinned(True))
    with pytest.raises(EngineError, match="500"):
        await engine.sleep()


async def test_the_first_sleep_of_an_engine_gets_time_to_copy_all_weights(tmp_path: Path) -> None:
    class Slow(Asked):
        async def __call__(self, method: str, target: str, body: bytes | None) -> Reply:
            await asyncio.sleep(0.05)
            return Reply(200, b"{}")

    times = settings(tmp_path, sleep_timeout=0.01, first_sleep_timeout=5.0)
    engine = VllmEngine(times, print, ask=Slow())
    await engine.sleep()
    with pytest.raises(EngineError, match="did not sleep within"):
        await engine.sleep()


# the checkpoint


async def test_the_engine_is_checkpointed_after_its_sleep_and_restored_before_its_wake(tmp_path: Path) -> None:
    asked = Asked()
    async with launcher(tmp_path, lambda call: DONE) as calls:
        engine = VllmEngine(settings(tmp_path, checkpoint=True), print, ask=asked)
        engine.configure(pinned(True))
        await engine.sleep()
        assert (calls, len(asked.calls)) == (["checkpoint"], 1)
        await engine.wake()
        assert (calls, len(asked.calls)) == (["checkpoint", "restore"], 2)
    assert engine.shortfalls == []


async def test_a_refused_checkpoint_is_told_until_one_succeeds(tmp_path: Path) -> None:
    answers = iter([{"error": "the driver is too old", "lost": False}, DONE])
    async with launcher(tmp_path, lambda call: next(answers)):
        engine = VllmEngine(settings(tmp_path, checkpoint=True), print, ask=Asked())
        await engine.sleep()
        assert engine.shortfalls == [
            "its engine stays on the GPU with what vLLM leaves: checkpoint: the driver is too old"
        ]
        await engine.sleep()
        assert engine.shortfalls == []


async def test_no_launcher_is_no_reason_not_to_sleep(tmp_path: Path) -> None:
    engine = VllmEngine(settings(tmp_path, checkpoint=True), print, ask=Asked())
    await engine.sleep()
    assert "does not answer" in engine.shortfalls[0]


@pytest.mark.parametrize("answer", [{"error": "going back failed", "lost": True}, b"", b"?\n"], ids=["lost", "", "?"])
async def test_an_engine_that_a_checkpoint_broke_is_lost(tmp_path: Path, answer: Any) -> None:
    async with launcher(tmp_path, lambda call: answer):
        engine = VllmEngine(settings(tmp_path, checkpoint=True), print, ask=Asked())
        with pytest.raises(EngineLost):
            await engine.sleep()


async def test_an_engine_that_cannot_be_restored_is_lost(tmp_path: Path) -> None:
    async with launcher(tmp_path, lambda call: {"error": "cuCheckpointProcessRestore: …", "lost": False}):
        engine = VllmEngine(settings(tmp_path, checkpoint=True), print, ask=Asked())
        with pytest.raises(EngineLost, match="cuCheckpointProcessRestore"):
            await engine.wake()


async def test_several_gpus_are_not_checkpointed_and_the_report_says_so(tmp_path: Path) -> None:
    engine = VllmEngine(settings(tmp_path, checkpoint=True, gpus=(0, 1)), print, ask=Asked())
    await engine.sleep()
    assert engine.shortfalls == ["its engine stays on the GPUs with what vLLM leaves: it runs on several"]


async def test_a_run_folder_of_any_length_has_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30)
    folder.mkdir()
    here = os.getcwd()
    os.chdir(folder)  # a server can only be bound to a short name
    try:
        async with launcher(Path(), lambda call: DONE) as calls:
            engine = VllmEngine(settings(folder, checkpoint=True), print, ask=Asked())
            await engine.sleep()
    finally:
        os.chdir(here)
    assert calls == ["checkpoint"]


# the proof


def measured(folder: Path, *used: int | None, **changes: Any) -> VllmEngine:
    stand_ins = {"ask": Asked(), "process": Processes(), "memory": Memory(*used)}
    return VllmEngine(settings(folder, **changes), print, **stand_ins)


async def test_nvml_tells_what_is_left_and_what_it_cannot_tell_is_no_zero(tmp_path: Path) -> None:
    engine = measured(tmp_path, 2 * GIB, 0, None)
    assert await engine.left_behind() == 2 * GIB
    assert await engine.left_behind() == 0
    assert await engine.left_behind() is None


async def test_an_engine_that_leaves_more_each_time_is_lost_once_it_is_past_its_allowance(tmp_path: Path) -> None:
    engine = measured(tmp_path, 2 * GIB, 3 * GIB, 3 * GIB + 1)
    assert [await engine.left_behind(), await engine.left_behind()] == [2 * GIB, 3 * GIB]
    with pytest.raises(EngineLost, match="it leaks"):
        await engine.left_behind()


async def test_what_a_failed_checkpoint_leaves_is_no_leak(tmp_path: Path) -> None:
    answers = iter([DONE, {"error": "no", "lost": False}, DONE])
    async with launcher(tmp_path, lambda call: next(answers)):
        engine = measured(tmp_path, 0, 3 * GIB, 2 * GIB, checkpoint=True)
        await engine.sleep()
        assert await engine.left_behind() == 0
        await engine.sleep()
        assert await engine.left_behind() == 3 * GIB
        await engine.sleep()
        with pytest.raises(EngineLost):
            await engine.left_behind()


def test_processes_that_were_seen_once_and_are_gone_hold_nothing() -> None:
    """A checkpointed process is not listed any more; before it was ever seen, that would mean nothing."""
    memory = DeviceMemory((0,), "tests.unit.sidecar.listed")
    from tests.unit.sidecar import listed

    listed.processes = []
    assert memory._used_by({7}.__contains__) is None
    listed.processes = [(7, 5), (9, 3)]
    assert memory._used_by({7}.__contains__) == [5]
    listed.processes = [(9, 3)]
    assert memory._used_by({7}.__contains__) == [0]


# the sidecar


@in_world
async def test_a_request_waits_while_a_lost_engine_is_started_afresh(world: Any) -> None:
    await world.model("a", 60 * GIB)
    world.engines["a"].lost.append("wake")
    assert await world.request("a") == "ok"
    assert world.engines["a"].calls[-3:] == ["wake", "kill", "start"]
    kinds = [(record.kind, record.error) for record in world.sidecars["a"].recorder.records]
    assert ("wake", "wake: the engine has to be started afresh") in kinds


@in_world
async def test_an_engine_that_leaks_is_started_afresh_and_the_model_hears_of_it(world: Any) -> None:
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s"}, sleep={"idleTimeout": "1s"})
    assert await world.request("a") == "ok"
    world.engines["a"].leaks = True
    await world.until(lambda: state(world, "a") == "sleeping")
    await world.until(lambda: world.sidecars["a"].lifecycle.boot_ready)
    assert "kill" in world.engines["a"].calls
    assert await world.request("a") == "ok"
    await asyncio.sleep(1)
    assert "EngineRestarted" in await world.events("a")


@in_world
async def test_the_record_of_a_sleep_and_the_report_say_what_is_left_and_what_falls_short(world: Any) -> None:
    await world.model("a", 60 * GIB, fairness={"minRuntime": "0s"}, sleep={"idleTimeout": "1s"})
    engine = world.engines["a"]
    engine.left, engine.shortfalls = 3 * GIB, ["its weights are on disk"]
    assert await world.request("a") == "ok"
    await world.until(lambda: state(world, "a") == "sleeping")
    record = world.sidecars["a"].recorder.records[-1]
    assert record.to_object()["left"] == 3 * GIB
    assert record.text().endswith("freed 60.0G, left 3.0G")
    await asyncio.sleep(10)
    assert (await world.report("a"))["shortfalls"] == ["its weights are on disk"]
