"""A reflector's copy follows the collection, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from greenthread.kube import errors
from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Response
from greenthread.kube.reflector import LAST_DELAY, Reflector
from greenthread.kube.resources import MODELS


class AtOnce(random.Random):
    """Jitter without waiting."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


def model(name: str, version: int, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "prod", "name": name, "resourceVersion": str(version)}, "spec": spec}


def listing(version: int, *items: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version)}, "items": list(items)}


def gone() -> tuple[str, dict[str, Any]]:
    return ("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})


class Script:
    """A transport that plays lists and watches in order; the last watch stays open and takes `push`."""

    where = "the script"

    def __init__(self, lists: list[Any], watches: list[Any]) -> None:
        self.lists, self.watches = lists, watches
        self.watched_from: list[str] = []
        self.live: asyncio.Queue[Any] = asyncio.Queue()
        self.idle = asyncio.Event()

    async def request(
        self, method: str, path: str, params: Mapping[str, str], headers: Any, body: Any, timeout: float
    ) -> Response:
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Response):
            return answer
        return Response(200, {}, json.dumps(answer).encode())

    async def stream(
        self, method: str, path: str, params: Mapping[str, str], headers: Any, timeout: float
    ) -> AsyncGenerator[bytes | Response, None]:
        self.watched_from.append(params.get("resourceVersion", ""))
        if self.watches:
            for item in self.watches.pop(0):
                if isinstance(item, Exception):
                    raise item
                yield item if isinstance(item, Response) else line(item)
            return
        while True:
            if self.live.empty():
                self.idle.set()
            item = await self.live.get()
            if isinstance(item, Exception):
                raise item
            yield line(item)

    async def close(self) -> None:
        pass

    async def push(self, *items: Any) -> None:
        self.idle.clear()
        for item in items:
            self.live.put_nowait(item)
        await self.idle.wait()


def line(item: tuple[str, dict[str, Any]]) -> bytes:
    return json.dumps({"type": item[0], "object": item[1]}).encode()


class Running:
    def __init__(self, lists: list[Any], watches: list[Any] | None = None) -> None:
        self.script = Script(lists, watches or [])
        self.heard: list[tuple[str, str, str]] = []
        self.reflector = Reflector(AsyncClient(self.script), MODELS, on_event=self._hear, rng=AtOnce())

    def _hear(self, kind: str, obj: dict[str, Any]) -> None:
        self.heard.append((kind, obj["metadata"]["name"], obj["metadata"]["resourceVersion"]))

    def versions(self) -> dict[str, str]:
        return {name: obj["metadata"]["resourceVersion"] for (_, name), obj in self.reflector.objects.items()}

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.reflector.run())
        await self.reflector.synced()
        await self.script.idle.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def test_it_lists_then_watches_from_there() -> None:
    async with Running([listing(5, model("a", 3), model("b", 4))]) as running:
        assert running.versions() == {"a": "3", "b": "4"}
        await running.script.push(("MODIFIED", model("a", 6)), ("DELETED", model("b", 7)), ("ADDED", model("c", 8)))
        assert running.versions() == {"a": "6", "c": "8"}
        assert running.heard[2:] == [("MODIFIED", "a", "6"), ("DELETED", "b", "7"), ("ADDED", "c", "8")]
        assert running.script.watched_from == ["5"]
        assert running.reflector.last_contact is not None


async def test_a_watch_that_ends_goes_on_from_its_last_bookmark() -> None:
    bookmark = ("BOOKMARK", {"metadata": {"resourceVersion": "20"}})
    async with Running([listing(5, model("a", 3))], [[("MODIFIED", model("a", 9)), bookmark]]) as running:
        assert running.script.watched_from == ["5", "20"]
        assert running.heard == [("ADDED", "a", "3"), ("MODIFIED", "a", "9")]


@pytest.mark.parametrize("early", [True, False])
async def test_after_410_it_lists_again_and_tells_only_what_changed(early: bool) -> None:
    body = json.dumps(gone()[1]).encode()
    expired = [Response(410, {}, body)] if early else [gone()]
    lists = [listing(5, model("a", 1), model("b", 2), model("c", 3)), listing(30, model("a", 1), model("b", 22))]
    async with Running(lists, [expired]) as running:
        assert running.heard[3:] == [("DELETED", "c", "3"), ("MODIFIED", "b", "22")]
        assert running.versions() == {"a": "1", "b": "22"}
        assert running.script.watched_from == ["5", "30"]


@pytest.mark.parametrize("failure", [errors.Unreachable("cut off"), errors.ApiError(500, "InternalError", "no")])
async def test_after_a_lost_connection_it_goes_on_where_it_was(failure: Exception) -> None:
    watches = [[("MODIFIED", model("a", 9)), failure], [failure]]
    async with Running([listing(5, model("a", 3))], watches) as running:
        assert running.script.watched_from == ["5", "9", "9"]
        await running.script.push(("MODIFIED", model("a", 10)))
        assert running.versions() == {"a": "10"}
        assert running.reflector.error is None


async def test_a_first_list_that_fails_is_tried_again() -> None:
    forbidden = errors.Forbidden(403, "Forbidden", "no")
    async with Running([errors.Unreachable("down"), forbidden, listing(5)]) as running:
        assert running.versions() == {}


async def test_the_error_is_there_while_the_copy_is_not_kept_true() -> None:
    async with Running([listing(5)]) as running:
        blocked = asyncio.Event()

        class Blocked(AtOnce):
            def uniform(self, a: float, b: float) -> float:
                blocked.set()
                return LAST_DELAY * 1000

        running.reflector._rng = Blocked()
        running.script.live.put_nowait(errors.Unreachable("down"))
        await blocked.wait()
        assert str(running.reflector.error) == "down"


async def test_delays_double_to_a_bound_with_jitter_and_obey_retry_after() -> None:
    reflector = Reflector(AsyncClient(Script([], [])), MODELS, rng=random.Random(1))
    delays = []
    for failures in range(1, 60):
        reflector._failures = failures
        delays.append(reflector._delay())
    assert 0.1 <= delays[0] <= 0.2
    assert all(LAST_DELAY / 2 <= delay <= LAST_DELAY for delay in delays[10:])
    assert len(set(delays)) == len(delays)
    reflector._failures, reflector.error = 1, errors.TooManyRequests(429, "", "", None, 7.0)
    assert reflector._delay() == 7.0


async def test_an_answer_that_the_version_is_too_old_ends_an_outage() -> None:
    """It lists at once: the pauses of an outage were for a server that did not answer."""
    body = json.dumps({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}).encode()
    away = [errors.Unreachable("nobody there")]
    watches: list[Any] = [[("MODIFIED", model("a", 6)), *away], *([away] * 5), [Response(410, {}, body)]]
    pauses: list[int] = []

    class Counting(Reflector):
        def _delay(self) -> float:
            pauses.append(self._failures)
            return 0.0

    script = Script([listing(5, model("a", 3)), listing(9, model("a", 8))], watches)
    reflector = Counting(AsyncClient(script), MODELS)
    task = asyncio.create_task(reflector.run())
    await script.idle.wait()
    task.cancel()
    assert pauses == [1, 2, 3, 4, 5, 6], "none after the 410"
    assert script.watched_from == ["5", *["6"] * 6, "9"]


async def test_ones_own_write_is_seen_at_once_and_never_undone_by_older_news() -> None:
    async with Running([listing(5, model("a", 3))]) as running:
        assert running.reflector.update(model("a", 8))
        await running.script.push(("MODIFIED", model("a", 7)))
        assert running.versions() == {"a": "8"}
        await running.script.push(("MODIFIED", model("a", 8)))
        assert running.heard == [("ADDED", "a", "3")]  # the writer knows its own write
        assert not running.reflector.update(model("a", 7))
        assert not running.reflector.update(model("a", 8))
        # versions are numbers, not text
        assert running.reflector.update(model("a", 10))


async def test_an_answer_that_comes_after_the_deletion_does_not_revive_the_object() -> None:
    async with Running([listing(5, model("a", 3))]) as running:
        await running.script.push(("DELETED", model("a", 9)))
        assert not running.reflector.update(model("a", 7))
        assert running.versions() == {}
        assert running.reflector.update(model("a", 12))
        await running.script.push(("DELETED", model("a", 9)))
        assert running.versions() == {"a": "12"}


async def test_a_list_older_than_ones_own_write_does_not_undo_it() -> None:
    script = [listing(5, model("a", 3)), listing(30, model("a", 3))]
    running = Running(script)
    async with running:
        running.reflector.update(model("a", 31))
        running.reflector.update(model("new", 32))
        await running.script.push(gone())
        assert running.versions() == {"a": "31", "new": "32"}


async def test_a_server_that_calls_every_list_too_old_is_not_asked_in_a_tight_loop() -> None:
    waits = 0

    class Counting(AtOnce):
        def uniform(self, a: float, b: float) -> float:
            nonlocal waits
            waits += 1
            return 0.0

    running = Running([listing(5)] * 10, [[gone()]] * 9)
    running.reflector._rng = Counting()
    async with running:
        assert waits == 9


async def test_a_callback_that_fails_ends_the_run() -> None:
    def broken(kind: str, obj: dict[str, Any]) -> None:
        raise RuntimeError("a mistake of ours")

    reflector = Reflector(AsyncClient(Script([listing(5, model("a", 3))], [])), MODELS, on_event=broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        await reflector.run()
