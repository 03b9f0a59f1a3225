"""Each key once, never two workers on one key, failed ones again after a growing pause."""

from __future__ import annotations

import asyncio
import random

from controller.queue import LONGEST_PAUSE, KeyedQueue
from tests.virtual import run


def test_a_key_that_is_added_often_gets_one_turn() -> None:
    async def main() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        for _ in range(5):
            queue.add("a")
        queue.add("b")
        assert [await queue.get(), await queue.get()] == ["a", "b"]
        assert len(queue) == 0

    run(main())


def test_news_during_a_turn_means_one_more_turn() -> None:
    async def main() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add("a")
        await queue.get()
        queue.add("a")
        queue.add("a")
        assert len(queue) == 0  # nobody else may have it now
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert len(queue) == 0

    run(main())


def test_failures_in_a_row_wait_longer_and_success_forgets_them() -> None:
    async def main() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        pauses = [queue.failed("a") for _ in range(12)]
        assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
        assert pauses[-1] == LONGEST_PAUSE
        queue.succeeded("a")
        assert queue.failed("a") == 0.1

    run(main())


def test_the_soonest_of_two_wishes_counts() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add_after("a", 30)
        queue.add_after("a", 5)
        queue.add_after("a", 60)
        await queue.get()
        assert loop.time() == 5

    run(main())


def test_a_turn_is_also_the_one_that_was_asked_for_later() -> None:
    async def main() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add_after("a", 5)
        queue.add("a")
        queue.done(await queue.get())
        await asyncio.sleep(10)
        assert len(queue) == 0
        queue.add("a")
        await queue.get()
        queue.add_after("a", 5)  # during the turn: it may have come too late for it
        await asyncio.sleep(10)
        queue.done("a")
        assert len(queue) == 1

    run(main())


def test_news_without_end_put_nothing_off() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        queue: KeyedQueue[str] = KeyedQueue()

        async def chatter() -> None:
            while True:
                queue.add_after("a", 1.0)
                await asyncio.sleep(0.5)

        task = asyncio.create_task(chatter())
        await queue.get()
        assert loop.time() == 1.0
        task.cancel()

    run(main())


def test_no_key_is_lost_and_none_is_worked_on_twice_at_once() -> None:
    async def main() -> None:
        rng = random.Random(7)
        queue: KeyedQueue[int] = KeyedQueue()
        wanted, served, active = [0] * 10, [0] * 10, set()

        async def worker() -> None:
            while True:
                key = await queue.get()
                assert key not in active
                active.add(key)
                seen = wanted[key]
                await asyncio.sleep(rng.random())
                served[key] = seen
                active.discard(key)
                queue.done(key)

        workers = [asyncio.create_task(worker()) for _ in range(4)]
        for _ in range(500):
            key = rng.randrange(10)
            wanted[key] += 1
            queue.add(key)
            await asyncio.sleep(rng.random() * 0.1)
        await asyncio.sleep(10)
        assert served == wanted
        for task in workers:
            task.cancel()

    run(main())
