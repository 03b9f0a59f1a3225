"""The demonstration's steps: what is asked, and what must then be true. Every printed line was checked or measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from greenthread.gpu import State
from greenthread.units import short_bytes, short_duration
from localcluster.gpus.ledger import Ledger
from localcluster.stage import Answer, Stage, Story, Wrong

#: Seconds that a step may take before the demonstration gives up: machines may be slow, but not endlessly.
BOOT, STEP = 90.0, 60.0
BIG = "llama-3-1-70b"
CROWD = 20


#: Events on Models that are told as they come.
TOLD = frozenset(
    ["Booted", "Waiting", "Preempting", "Preempted", "GaveWay", "Woke", "BootFailed", "WakeFailed", "EngineDied"]
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Models by the part they play, found from where the controller put them."""

    first: str
    second: str
    #: Comes to the first one's GPU while that is busy.
    intruder: str
    #: Comes to the second one's GPU while that is idle.
    guest: str


class Demonstration:
    """Prints each step with its time; `wrong` lists what was not as it must be."""

    def __init__(self, stage: Stage, ledger: Ledger, write: Callable[[str], None], began: float) -> None:
        """`began`: when the program started, by `time.monotonic`."""
        self._stage, self._ledger, self._write, self._began = stage, ledger, write, began
        self.wrong: list[str] = []
        stage.on_story = self._on_story

    async def run(self) -> None:
        """All steps. Raises Wrong when one of them cannot even begin."""
        await self.boot()
        cast = self._cast()
        await self.wake(cast)
        await self.fill(cast)
        await self.preempt(cast)
        await self.give_way(cast)
        await self.gang(cast)
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

    def _on_story(self, story: Story) -> None:
        if story.reason in TOLD:
            self.say(f"{story.model} {story.text}")

    # steps

    async def boot(self) -> None:
        """Each model boots once, so that its memory is known, and goes to sleep."""
        stage = self._stage
        names = sorted(stage.models())
        self.title(f"{len(names)} models boot once, each measures its memory, then all sleep")

        def all_ready() -> bool:
            ready = all(model.status.phase == "Ready" for model in stage.models().values())
            return ready and all(stage.is_in(name, State.SLEEPING) for name in names)

        await stage.until(all_ready, BOOT, "that all models are ready and asleep")
        used = [self._ledger.used_bytes(gpu.index) for gpu in stage.gpus()]
        self.check(not any(used), f"{len(names)} models are ready, and both GPUs are empty")

    async def wake(self, cast: Cast) -> None:
        stage = self._stage
        self.title(f"{CROWD} requests at once for a model that sleeps")
        self.say(f"asked {cast.first} {CROWD} times")
        answers = await asyncio.gather(*(self._ask(cast.first, f"Question {n}", n == 0) for n in range(CROWD)))
        await self._story(cast.first, "Woke", 0)
        bad = [answer.error or answer.finish_reason for answer in answers if not answer.complete]
        wakes = len(stage.stories(cast.first, "Woke"))
        self.check(
            not bad and wakes == 1,
            f"{CROWD - len(bad)} of {CROWD} answered, by {wakes} wake{': ' + bad[0] if bad else ''}",
        )
        self.check(stage.is_in(cast.first, State.SERVING), f"the GPU object says that {cast.first} serves")

    async def fill(self, cast: Cast) -> None:
        self.title("Another model fills the other GPU")
        await self._ask_alone(cast.second)
        free = min(gpu.total - gpu.reserved for gpu in self._stage.gpus())
        self.check(
            self._stage.is_in(cast.first, State.SERVING) and self._stage.is_in(cast.second, State.SERVING),
            f"both GPUs are full ({short_bytes(free)} free on each), four models sleep",
        )

    async def preempt(self, cast: Cast) -> None:
        """The first model is busy with a long answer: only preemption gets its memory, and it may finish."""
        stage = self._stage
        self.title(f"{cast.intruder} needs the GPU on which {cast.first} is answering (minRuntime 10s, maxWaitTime 5s)")
        streaming = asyncio.Event()
        long_answer = asyncio.create_task(stage.ask(cast.first, "Tell me all of it.", 1200, streaming.set))
        started = asyncio.create_task(streaming.wait())
        await asyncio.wait([long_answer, started], return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        self.say(f"{cast.first} streams a long answer")
        story = await self._ask_alone(cast.intruder)
        interrupted = await long_answer
        evicted = await self._story(cast.first, "Preempted", 0)
        self.check(
            evicted.record.get("forModel") == cast.intruder and cast.first in story.record.get("victims", []),
            f"the victim was {cast.first}: {evicted.record.get('reason')}",
        )
        self.check(
            interrupted.complete and len(interrupted.pieces) >= 1000,
            f"the answer that {cast.first} was giving was finished first ({len(interrupted.pieces)} tokens"
            f"{': ' + interrupted.error if interrupted.error else ''})",
        )
        self.check(stage.is_in(cast.first, State.SLEEPING), f"{cast.first} sleeps and holds no GPU memory")

    async def give_way(self, cast: Cast) -> None:
        """The second model is idle and past its minRuntime: nobody has to wait maxWaitTime for it."""
        self.title(f"{cast.guest} needs the GPU of {cast.second}, which is idle")
        story = await self._ask_alone(cast.guest)
        left = await self._story(cast.second, "GaveWay", 0)
        limit = self._stage.models()[cast.guest].spec.fairness.max_wait_time
        waited = float(story.record.get("steps", {}).get("queue", limit))
        self.check(
            left.record.get("forModel") == cast.guest and waited < limit,
            f"{cast.second} gave way by itself: {short_duration(waited)} of waiting and not {short_duration(limit)}",
        )

    async def gang(self, cast: Cast) -> None:
        self.title(f"{BIG} needs both GPUs at once (tensorParallelSize 2)")
        await self._ask_alone(BIG)
        entries = self._stage.on_gpu(BIG)
        self.check(
            len(entries) == len(self._stage.gpus())
            and all(entry.state is State.SERVING for entry in entries)
            and all(self._stage.is_in(name, State.SLEEPING) for name in (cast.intruder, cast.guest)),
            f"{BIG} serves on both GPUs, {cast.intruder} and {cast.guest} made room",
        )

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
        """Two of the small models of each GPU. Raises Wrong when the controller did not spread them."""
        by_gpu: dict[tuple[int, ...], list[str]] = {}
        for name, model in sorted(self._stage.models().items()):
            if model.spec.tensor_parallel_size == 1:
                by_gpu.setdefault(model.status.gpus, []).append(name)
        if sorted(map(len, by_gpu.values())) != [2, 3]:
            raise Wrong(f"that the five small models are spread over two GPUs (they are placed as {by_gpu})")
        one, other = (by_gpu[gpu] for gpu in sorted(by_gpu))
        return Cast(first=one[0], second=other[0], intruder=one[1], guest=other[1])

    async def _ask_alone(self, model: str) -> Story:
        """One request for a sleeping model; the record of its wake."""
        before = len(self._stage.stories(model, "Woke"))
        self.say(f"asked {model}")
        answer = await self._ask(model, "Why do models sleep?", told=True)
        story = await self._story(model, "Woke", before)
        words = answer.text[:60] + ("…" if len(answer.text) > 60 else "")
        streamed = answer.complete and len(answer.pieces) > 1 and answer.last_token > answer.first_token
        took = short_duration(answer.last_token - answer.first_token)
        self.check(
            streamed,
            f"{len(answer.pieces)} tokens streamed in {took}: “{words}”"
            if streamed
            else f"{model} did not stream a whole answer: {answer.error or answer.finish_reason or 'no text'}",
        )
        return story

    async def _ask(self, model: str, question: str, told: bool) -> Answer:
        began = time.monotonic()

        def on_first() -> None:
            if told:
                self.say(f"first token of {model} after {short_duration(time.monotonic() - began)}")

        return await self._stage.ask(model, question, 40, on_first)

    async def _story(self, model: str, reason: str, before: int) -> Story:
        stories = self._stage.stories
        await self._stage.until(lambda: len(stories(model, reason)) > before, STEP, f"the event {reason} of {model}")
        return stories(model, reason)[before]
