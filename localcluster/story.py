"""The demonstration's steps: what is asked, and what must then be true. Every printed line was checked or measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from greenthread.gpu import State
from greenthread.units import short_bytes, short_duration
from localcluster.gpus.ledger import Ledger
from localcluster.stage import Answer, Stage, Story

#: Seconds that a step may take before the demonstration gives up: machines may be slow, but not endlessly.
BOOT, STEP = 90.0, 60.0
BIG = "llama-3-1-70b"
CROWD = 20


@dataclass(frozen=True, slots=True)
class Cast:
    """Models by the part they play, found from where the controller put them."""

    first: str
    second: str
    #: Comes to the first one's GPU while that is busy.
    intruder: str
    #: Comes to the second one's GPU while that is idle.
    guest: str
    #: Is asked by many at once.
    popular: str


class Demonstration:
    """Prints each step with its time; `wrong` lists what was not as it must be."""

    def __init__(self, stage: Stage, ledger: Ledger, say: Callable[[str], None], began: float) -> None:
        """`began`: when the program started, by `time.monotonic`."""
        self._stage, self._ledger, self._write, self._began = stage, ledger, say, began
        self.wrong: list[str] = []

    async def run(self) -> None:
        """All steps. Raises Wrong when one of them cannot even begin."""
        await self.boot()
        cast = self._cast()
        await self.wake(cast)
        await self.fill(cast)
        await self.preempt(cast)
        await self.give_way(cast)
        await self.gang(cast)
        await self.crowd(cast)
        self.honest()
        await self._stage.until(self._stage.at_rest, STEP, "that every sidecar reports no request in flight or queued")

    # telling

    def title(self, text: str) -> None:
        self._write(f"\n{text}")

    def say(self, text: str) -> None:
        self._write(f"{self._time()}        {text}")

    def check(self, holds: bool, text: str) -> None:
        """A line that must be true; when it is not, it says WRONG and counts."""
        if not holds:
            self.wrong.append(text)
        self._write(f"{self._time()} {'ok   ' if holds else 'WRONG'}  {text}")

    def _time(self) -> str:
        return f"{time.monotonic() - self._began:6.1f}s"

    # steps

    async def boot(self) -> None:
        """Each model boots once, so that its memory is known, and goes to sleep."""
        stage = self._stage
        names = sorted(stage.models())
        self.title(f"{len(names)} models boot once, each measures its memory, then all sleep")
        told: set[str] = set()

        def all_ready() -> bool:
            for name in names:
                for story in stage.stories(name, "Booted"):
                    if name not in told:
                        told.add(name)
                        self.say(f"{name} {story.text}")
            ready = all(model.status.phase == "Ready" for model in stage.models().values())
            return ready and all(stage.is_in(name, State.SLEEPING) for name in names)

        await stage.until(all_ready, BOOT, "that all models are ready and asleep")
        used = [self._ledger.used_bytes(gpu.index) for gpu in stage.gpus()]
        self.check(not any(used), f"{len(names)} models are ready, and both GPUs are empty")

    async def wake(self, cast: Cast) -> None:
        self.title("A request for a sleeping model wakes it")
        await self._ask_and_tell(cast.first)

    async def fill(self, cast: Cast) -> None:
        self.title("A second model fills the other GPU")
        await self._ask_and_tell(cast.second)
        free = min(gpu.total - gpu.reserved for gpu in self._stage.gpus())
        self.check(
            self._stage.is_in(cast.first, State.SERVING) and self._stage.is_in(cast.second, State.SERVING),
            f"both GPUs are full ({short_bytes(free)} free on each), four models sleep",
        )

    async def preempt(self, cast: Cast) -> None:
        """The first model is busy with a long answer: only preemption gets its memory, and it may finish."""
        stage = self._stage
        self.title(f"{cast.intruder} needs the GPU on which {cast.first} is answering")
        streaming = asyncio.Event()
        long_answer = asyncio.create_task(stage.ask(cast.first, "Tell me all of it.", 1200, streaming.set))
        await asyncio.wait([long_answer, asyncio.create_task(streaming.wait())], return_when=asyncio.FIRST_COMPLETED)
        before = len(stage.stories(cast.intruder, "Woke"))
        self.say(f"asked {cast.intruder} while {cast.first} streams; it waits (maxWaitTime 5s, minRuntime 10s)")
        answer = await stage.ask(cast.intruder, "And you?", 40)
        interrupted = await long_answer
        story = await self._story(cast.intruder, "Woke", before)
        evicted = await self._story(cast.first, "Preempted", 0)
        self.check(
            evicted.record.get("forModel") == cast.intruder and cast.first in story.record.get("victims", []),
            f"victim: {cast.first}, {evicted.record.get('reason')}: {evicted.text}",
        )
        self.check(
            interrupted.complete and len(interrupted.pieces) >= 1000,
            f"the answer that {cast.first} was giving was finished first ({len(interrupted.pieces)} tokens"
            f"{': ' + interrupted.error if interrupted.error else ''})",
        )
        self._tell(answer, story)
        self.check(stage.is_in(cast.first, State.SLEEPING), f"{cast.first} sleeps and holds no GPU memory")

    async def give_way(self, cast: Cast) -> None:
        """The second model is idle and past its minRuntime: nobody has to wait maxWaitTime for it."""
        stage = self._stage
        self.title(f"{cast.guest} needs the GPU of {cast.second}, which is idle")
        answer, story = await self._ask(cast.guest)
        left = await self._story(cast.second, "GaveWay", 0)
        limit = stage.models()[cast.guest].spec.fairness.max_wait_time
        self.check(
            left.record.get("forModel") == cast.guest and answer.first_token < limit,
            f"{cast.second} gave way by itself: nobody waited the {short_duration(limit)} of maxWaitTime",
        )
        self._tell(answer, story)

    async def gang(self, cast: Cast) -> None:
        self.title(f"{BIG} needs both GPUs at once (tensorParallelSize 2)")
        answer, story = await self._ask(BIG)
        self.check(
            all(occupant.state is State.SERVING for occupant in self._stage.on_gpu(BIG))
            and len(self._stage.on_gpu(BIG)) == 2
            and all(self._stage.is_in(name, State.SLEEPING) for name in (cast.intruder, cast.guest)),
            f"{BIG} serves on both GPUs, {cast.intruder} and {cast.guest} made room",
        )
        self._tell(answer, story)

    async def crowd(self, cast: Cast) -> None:
        stage = self._stage
        self.title(f"{CROWD} requests at once for {cast.popular}, which sleeps")
        before = len(stage.stories(cast.popular, "Woke"))
        answers = await asyncio.gather(*(stage.ask(cast.popular, f"Question {n}", 20) for n in range(CROWD)))
        story = await self._story(cast.popular, "Woke", before)
        bad = [answer.error or answer.finish_reason for answer in answers if not answer.complete]
        self.check(not bad, f"{CROWD - len(bad)} of {CROWD} answered{': ' + bad[0] if bad else ''}")
        wakes = len(stage.stories(cast.popular, "Woke")) - before
        self.check(wakes == 1, f"by {wakes} wake")
        self._tell(min(answers, key=lambda answer: answer.first_token), story)

    def honest(self) -> None:
        """What the simulated devices say, which no part of the product can write."""
        self.title("What the GPUs themselves say")
        refused = self._ledger.refusals()
        self.check(not refused, f"{len(refused)} allocations went past the end of a GPU")
        for device in self._ledger.devices():
            self.check(
                0 < device.peak_bytes <= device.total_bytes,
                f"GPU {device.index}: never more than {short_bytes(device.peak_bytes)} of "
                f"{short_bytes(device.total_bytes)} in use",
            )

    # parts of steps

    def _cast(self) -> Cast:
        """One GPU has three of the small models, the other two."""
        by_gpu: dict[str, list[str]] = {}
        for name, model in sorted(self._stage.models().items()):
            if model.spec.tensor_parallel_size == 1:
                by_gpu.setdefault(model.status.gpus, []).append(name)
        fuller, other = sorted(by_gpu.values(), key=len, reverse=True)
        return Cast(first=fuller[0], second=other[0], intruder=fuller[1], guest=other[1], popular=fuller[2])

    async def _ask_and_tell(self, model: str) -> None:
        answer, story = await self._ask(model)
        self._tell(answer, story)
        self.check(self._stage.is_in(model, State.SERVING), f"the GPU object says that {model} serves")

    async def _ask(self, model: str) -> tuple[Answer, Story]:
        before = len(self._stage.stories(model, "Woke"))
        self.say(f"asked {model}")
        answer = await self._stage.ask(model, "Why do models sleep?", 40)
        return answer, await self._story(model, "Woke", before)

    async def _story(self, model: str, reason: str, before: int) -> Story:
        stories = self._stage.stories
        await self._stage.until(lambda: len(stories(model, reason)) > before, STEP, f"that {model} tells: {reason}")
        return stories(model, reason)[before]

    def _tell(self, answer: Answer, story: Story) -> None:
        waited = story.record.get("waitedFor")
        if waited:
            self.say(f"waited: {answer.model} {waited}")
        self.say(f"{answer.model} {story.text}")
        streamed = answer.complete and len(answer.pieces) > 1 and answer.last_token > answer.first_token
        words = answer.text[:60] + ("…" if len(answer.text) > 60 else "")
        self.check(
            streamed,
            f"first token after {short_duration(answer.first_token)}, {len(answer.pieces)} tokens streamed in "
            f"{short_duration(answer.last_token - answer.first_token)}: “{words}”"
            if streamed
            else f"{answer.model} did not stream a whole answer: {answer.error or answer.finish_reason or 'no text'}",
        )
