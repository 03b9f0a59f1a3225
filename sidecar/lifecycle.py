"""The sidecar's state machine. One task owns it: `sleeping` → `pending` → `waking` → `serving` → `deactivating` → …

Everybody else only tells it that something changed (``poke``) and reads ``state``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

from greenthread import fairness
from greenthread.clock import Clock
from greenthread.fairness import CannotFit, Decision, Fits, Preempt, Wait, Want
from greenthread.gpu import Occupant, State
from greenthread.kube.errors import ApiError, Unreachable
from greenthread.model import ModelSpec
from sidecar.claims import Claims, Refused, entry
from sidecar.door import Door
from sidecar.engine import Engine, EngineError, EngineLost, Rest
from sidecar.metrics import Metrics, SidecarState
from sidecar.reasons import Reason, Serving, Why, reason_to_sleep
from sidecar.records import Record, Recorder
from sidecar.retry import Prospect, retry_after
from sidecar.settings import Settings
from sidecar.wants import Wants

log = logging.getLogger(__name__)

#: Seconds between two tries against an API server that fails: the first and the longest.
_API_BACKOFF = (0.1, 5.0)
#: Seconds by which whoever is older goes first when a wake lock is free: more than it takes to read, decide and write.
_HEAD_START = 0.05
#: Seconds for the write that begins a sleep: clients wait at the door meanwhile, and the engine could serve them.
_ANNOUNCE_WITHIN = 3.0
#: Who serves writes its lastAccessed only when somebody waits, and at most this often (seconds).
_TOUCH_EVERY = 1.0


class Lifecycle:
    """Wakes the model when somebody wants it and room can be had; puts it to sleep when it should."""

    def __init__(
        self,
        settings: Settings,
        claims: Claims,
        engine: Engine,
        door: Door,
        metrics: Metrics,
        recorder: Recorder,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._settings, self._claims, self._engine, self._door = settings, claims, engine, door
        self._metrics, self._recorder, self._clock = metrics, recorder, clock
        self._rng = rng or random.Random()  # noqa: S311 spreads retries, keeps no secret
        self._spec: ModelSpec | None = None
        self._changed = asyncio.Event()
        self._state = SidecarState.SLEEPING
        self._since = clock.now()
        self._stopping = False
        self._died = ""
        self._wants = Wants(settings, door, clock, self._rng)
        #: Its engine has booted once: a pod whose engine boots again after a crash is healthy, its clients wait.
        self.healthy = False
        self._wished_sleep: Why | None = None
        self._became_serving_at: datetime | None = None
        self._touched_at = 0.0
        self._decision: Decision | None = None
        self._trouble = ""
        self._record = Record("boot", "", "", "")
        self.error = ""
        self.last_wake: float | None = None
        door.on_change = self.poke
        door.reason = self.explain
        door.retry_after = self._retry_after
        door.waking = lambda: self._state in (SidecarState.PENDING, SidecarState.WAKING)

    # -- what others may ask and tell -------------------------------------------------------------------------------

    @property
    def state(self) -> SidecarState:
        return self._state

    @property
    def since(self) -> datetime:
        """When the current state began."""
        return self._since

    @property
    def boot_ready(self) -> bool:
        """Whether the engine can be woken; else it must boot first."""
        return self._wants.boot_ready

    def poke(self) -> None:
        """Something changed: decide again."""
        self._changed.set()

    def configure(self, spec: ModelSpec) -> None:
        """The Model's spec, at start and whenever it changes."""
        self._spec = spec
        self._engine.configure(spec)
        self.poke()

    def wish_wake(self, at: datetime) -> None:
        """A person wants the model awake."""
        if self._state is not SidecarState.SERVING:
            self._wants.wished_wake = at
            self.poke()

    def wish_sleep(self, preempt: bool) -> None:
        """A person wants it asleep, now; ``preempt``: so that another gets the memory."""
        self._wants.wished_wake = None
        if self._state in (SidecarState.SERVING, SidecarState.WAKING):
            self._wished_sleep = Why.PREEMPTED if preempt else Why.ASKED
            self.poke()

    def engine_died(self, text: str) -> None:
        """The engine process ended, whoever ended it."""
        self._died = text
        self._wants.boot_ready = False
        self._door.shut()  # now, not when the owner comes to it: who arrives meanwhile waits for the next engine
        self.poke()

    def stop(self) -> None:
        """Drain, release, leave. ``run`` returns when done."""
        self._stopping = True
        self._door.close_for_good("this replica is going away")
        self.poke()

    def explain(self) -> str:
        """Why the model does not serve now, for a person."""
        if self._trouble:
            return self._trouble
        if self._state is SidecarState.SERVING:
            return "the model serves"
        if self._state is SidecarState.PENDING and self._decision is not None:
            text = f"{self._settings.model} {fairness.explain(self._decision, self._clock.now())}"
            asked = self._door.asked
            return text if asked is None or asked.preempts else f"{text}; who waits asked not to preempt"
        if self._state is SidecarState.DEACTIVATING:
            return "the model is going to sleep and wakes again after that"
        if self._state is SidecarState.WAKING:
            return "the model is waking" if self.boot_ready else "the engine is booting"
        if self.error:
            return self.error
        return "the model is asleep"

    # -- the owner --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until ``stop`` has been carried out. Needs ``configure`` first."""
        await self._repair()
        while not self._stopping:
            if self._state is SidecarState.SERVING:
                await self._serve()
            elif await self._wanted():
                want = await self._acquire()
                if want is not None:
                    await self._bring_up(want)
        if self._state is SidecarState.SERVING:
            await self._put_to_sleep(Reason(Why.STOPPED))
        await self._engine.kill()
        await self._insist(self._claims.leave)

    async def _repair(self) -> None:
        """After a (re)start: the engine comes to rest, then occupant, lock and intents are made true."""
        await self._claims.synced()
        while not self._stopping:
            self._changed.clear()
            missing = self._claims.missing()
            if not missing:
                break
            self._trouble = f"no node agent has registered {', '.join(missing)} yet"
            await self._wait()
        self._trouble = ""
        rest = await self._engine.settle()
        mine = [gpu.occupant(self._claims.pod) for gpu in self._claims.gpus()]
        first = mine[0] if mine else None
        serving = all(occupant is not None and occupant.state is State.SERVING for occupant in mine)
        if rest is Rest.AWAKE and first is not None and serving and not self._stopping:
            self._wants.serving_memory = first.reserved
            self._became_serving_at = first.became_serving_at or self._clock.now()
            self._wants.boot_ready = self.healthy = True
            await self._insist(self._claims.withdraw)
            self._enter(SidecarState.SERVING)
            if not self._died:
                self._door.open()
            return
        if rest is Rest.AWAKE:  # without a whole claim
            rest = await self._rest_engine()
        if rest is Rest.ASLEEP and self._wants.serving_memory is None:
            await self._engine.kill()
            rest = Rest.ABSENT
        if rest is Rest.ABSENT:
            await self._engine.leftovers_gone()
        self._died = ""
        self._wants.boot_ready = self.healthy = rest is Rest.ASLEEP
        await self._insist(lambda: self._claims.release(self._entry(State.SLEEPING, 0)))

    async def _wanted(self) -> bool:
        """Asleep: returns when somebody wants the model, or False when the pod goes away."""
        while not self._stopping:
            self._changed.clear()
            self._wished_sleep = None
            if self._want() is not None:
                return True
            kept = await self._keep_entry(State.SLEEPING, 0)
            pause = None if self.boot_ready else self._wants.boot_pause
            await self._wait(pause if kept else min(_API_BACKOFF[1], pause or math.inf))
        return False

    def _want(self) -> Want | None:
        assert self._spec is not None
        return self._wants.current(self._spec, self._claims.gpus())

    async def _acquire(self) -> Want | None:
        """Pending: returns what was claimed; None when nobody wants it any more, with nothing held or announced."""
        self._enter(SidecarState.PENDING)
        asked = _loop_time()
        record = Record("wake" if self.boot_ready else "boot", self._recorder.now(), "", self._where())
        self._record = record
        announced, refusals, stood_back = False, 0, False
        while True:
            self._changed.clear()
            want = None if self._stopping else self._want()
            try:
                if want is None:
                    if self._claims.holding():
                        await self._claims.release(self._entry(State.SLEEPING, 0))
                    elif announced:
                        await self._claims.withdraw()
                    self._enter(SidecarState.SLEEPING)
                    return None
                if self._claims.holding():  # a claim of which no answer came: nobody waits while holding
                    await self._claims.turn_back(want, self._entry(State.SLEEPING, 0))
                    announced = True
                self._decision = decision = fairness.decide(want, self._claims.gpus(), self._clock.now())
                if not isinstance(decision, Fits) and not record.waited_for:
                    record.waited_for = fairness.explain(decision, self._clock.now())
                    if not want.boot:
                        self._recorder.event("Waiting", f"asks for room: {record.waited_for}")
                until: datetime | None = None
                passes = want.lock and any(fairness.somebody_older(want, gpu) for gpu in self._claims.gpus())
                stood_back = stood_back and isinstance(decision, Fits)
                match decision:
                    case Fits() if passes and not stood_back:
                        stood_back = True
                        await asyncio.sleep(_HEAD_START)
                        continue
                    case Fits():
                        claiming = _loop_time()
                        announced = True  # a gang that turns back leaves intents
                        await self._claims.claim(want, self._entry(self._claim_state(), want.need))
                        if want.lock is not self.boot_ready:
                            continue  # the engine died meanwhile: a boot takes another claim than a wake
                        record.steps["queue"] = claiming - asked
                        record.steps["claim"] = _loop_time() - claiming
                        record.reason = self._asked_by(want)
                        self._metrics.set_reserved(want.need)
                        return want
                    case CannotFit():
                        if announced:
                            await self._claims.withdraw()
                        announced = False
                    case Wait(until=moment):
                        announced, until = True, moment
                        await self._claims.intend(want, None)
                    case Preempt(victims=victims):
                        announced = True
                        await self._claims.intend(want, victims)
                        self._metrics.preemptor.inc(len(victims))
                        names = [victim.model for victim in victims]
                        record.victims += names
                        self._recorder.event("Preempting", f"asks {', '.join(names)} to make room")
                        continue
                self._trouble, refusals = "", 0
                await self._wait_until(self._give_up_wish(until))
            except Refused:
                refusals += 1
                if refusals > 3:  # refused although it seems to fit: do not hammer
                    await self._wait(min(0.005 * 2**refusals, 1.0) * self._rng.uniform(0.5, 1.0))
            except (ApiError, Unreachable) as error:
                refusals += 1
                self._trouble = f"the Kubernetes API does not take the claim: {error}"
                log.warning("%s", self._trouble)
                await self._pause(refusals)

    def _give_up_wish(self, until: datetime | None) -> datetime | None:
        """Tells a person whose wish waited as long as a request may; the earlier of ``until`` and that moment."""
        if self._wants.wished_wake is None:
            return until
        end = self._wants.wished_wake + timedelta(seconds=self._settings.queue_timeout)
        if self._clock.now() >= end:
            self._wants.wished_wake = None
            self._recorder.event("WakeFailed", f"waited {self._settings.queue_timeout:.0f} s; {self.explain()}", True)
            self.poke()
            return until
        return end if until is None else min(until, end)

    def _claim_state(self) -> State:
        return State.WAKING if self.boot_ready else State.CONVERTING

    def _asked_by(self, want: Want) -> str:
        if want.boot:
            return "boot after a failure" if self.healthy else "first boot"
        return "request" if self._door.waiting else "asked to"

    async def _bring_up(self, want: Want) -> None:
        """Waking, under a claim: the engine starts or wakes, the door opens, then the claim is published."""
        self._enter(SidecarState.WAKING)
        self._trouble, self._decision = "", None
        record, began, boot = self._record, _loop_time(), not self.boot_ready
        try:
            if boot:
                await self._boot(want)
            else:
                await self._engine.wake()
            if self._died:
                raise EngineError(self._died)
        except EngineError as error:
            await self._wake_failed(error, record)
            return
        record.steps["engine"] = _loop_time() - began
        record.memory = self._wants.serving_memory or want.need
        self.error = ""
        # An engine that uses more than its boot claimed sleeps first, and claims what it needs when it wakes.
        within = record.memory <= want.need
        asked = (self._wants.by_somebody and within) or not boot
        self._became_serving_at = self._clock.now()
        if asked and not self._stopping:
            self._wants.wished_wake = None
            self._enter(SidecarState.SERVING)
            self._door.open()
            self.last_wake = record.total = sum(record.steps.values())
            self._metrics.wake_duration.observe(record.total)
            self._recorder.add(record, "Woke")
            return
        record.total = sum(record.steps.values())
        self._recorder.add(record, "Booted")
        await self._put_to_sleep(Reason(Why.STOPPED if self._stopping else Why.BOOTED))

    async def _boot(self, want: Want) -> None:
        """Starts the engine and measures it. Stopping the pod ends a boot at once."""
        self._died = ""
        boot = asyncio.ensure_future(self._engine.start())
        try:
            while not boot.done():
                self._changed.clear()
                if self._stopping:
                    await self._engine.kill()
                    boot.cancel()
                    raise EngineError("the pod goes away")
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({boot, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            boot.result()
        finally:
            boot.cancel()
        measured = await self._engine.memory()
        if measured is not None and max(measured) > 0:
            self._metrics.set_serving(measured)
        else:
            measured = [want.need]
            log.warning("NVML does not show what the engine uses; its claim of %d bytes stands", want.need)
        self._wants.booted(max(measured))
        self._recorder.serving_memory(max(measured))
        self.healthy = True

    async def _wake_failed(self, error: EngineError, record: Record) -> None:
        """The engine is killed, its memory released, and those who wait are told, unless its next boot is for them."""
        log.warning("%s failed: %s", record.kind, error)
        record.total = sum(record.steps.values())
        self.error = record.error = str(error)
        if not isinstance(error, EngineLost):
            self._door.turn_away(f"the model could not {record.kind}: {error}")
            self._wants.wished_wake = None
        await self._engine.kill()
        self._wants.boot_failed()
        await self._insist(lambda: self._claims.release(self._entry(State.SLEEPING, 0)))
        self._metrics.set_reserved(0)
        (self._metrics.failed_boots if record.kind == "boot" else self._metrics.failed_wakes).inc()
        self._recorder.add(record, "BootFailed" if record.kind == "boot" else "WakeFailed", warning=True)
        self._enter(SidecarState.SLEEPING)

    # -- serving ----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Serving: returns when asleep (or when the pod is to go)."""
        while not self._stopping:
            self._changed.clear()
            self._door.watched = self._others_wait()  # before anything is awaited: it may become idle meanwhile
            answer = reason_to_sleep(self._serving(), self._claims.gpus(), self._clock.now())
            if isinstance(answer, Reason):
                if await self._put_to_sleep(answer):
                    return
                continue
            if not await self._keep_entry(State.SERVING, self._wants.serving_memory or 0):
                answer = min(answer, _API_BACKOFF[1])
            await self._wait(None if answer == math.inf else answer)

    def _serving(self) -> Serving:
        assert self._spec is not None
        return Serving(
            pod=self._claims.pod,
            spec=self._spec,
            in_flight=self._door.in_flight,
            idle_for=_loop_time() - self._door.idle_since,
            protected_for=fairness.protected_for(self._entry(State.SERVING, 0), self._clock.now()),
            last_used=self._door.last_used,
            wished=self._wished_sleep,
            engine_died=bool(self._died),
        )

    async def _put_to_sleep(self, reason: Reason) -> bool:
        """Deactivating: drains, sleeps, releases. False: it serves on (the write that begins it was refused)."""
        assert self._spec is not None
        self._door.shut()
        self._wished_sleep = None
        began, freed = _loop_time(), self._wants.serving_memory or 0
        kind = "crash" if reason.why is Why.CRASHED else "sleep"
        record = Record(kind, self._recorder.now(), reason.text, self._where(), memory=freed)
        record.for_model = reason.intent.model if reason.intent else ""
        leaving = self._entry(State.DEACTIVATING, self._held())
        try:
            async with asyncio.timeout(_ANNOUNCE_WITHIN):
                if reason.why is Why.YIELDED:
                    await self._claims.give_way(leaving)
                elif reason.why is not Why.BOOTED:
                    await self._claims.publish(leaving)
        except (Refused, ApiError, Unreachable, TimeoutError) as error:
            if reason.why not in (Why.CRASHED, Why.STOPPED):
                if not self._died:
                    self._door.reopen()
                if not isinstance(error, Refused):
                    log.warning("cannot announce the sleep, serving on: %s", error or "the API server does not answer")
                    await self._pause(1)
                return False
        self._enter(SidecarState.DEACTIVATING)
        draining = _loop_time()
        await self._drain()
        sleeping = _loop_time()
        rest = Rest.ABSENT
        if reason.why is Why.STOPPED or self._died:
            await self._engine.kill()
        else:
            rest = await self._rest_engine()
        record.steps = {"drain": sleeping - draining, "engine": _loop_time() - sleeping}
        self._became_serving_at = None
        self._wants.boot_ready = rest is Rest.ASLEEP  # before the write: an engine that dies meanwhile must boot
        released = self._entry(State.SLEEPING, 0)
        await self._insist(lambda: self._claims.release(released))
        self._metrics.set_reserved(0)
        record.total = _loop_time() - began
        if rest is Rest.ASLEEP:
            record.left = await self._left_behind()  # after the write that others wait for
        self._metrics.sleep_duration.observe(record.total)
        if reason.why in (Why.PREEMPTED, Why.YIELDED):
            self._metrics.preempted.inc()
        if rest is Rest.ABSENT:
            if reason.why is Why.CRASHED:
                record.error, self.error = self._died, self._died
                self._wants.boot_failed()
            self._died = ""
        self._recorder.add(record, _EVENT_OF[reason.why], warning=bool(record.error))
        self._enter(SidecarState.SLEEPING)
        return True

    async def _drain(self) -> None:
        """Returns when nothing is in flight, or at drainTimeout, or when the engine died."""
        assert self._spec is not None
        deadline = _loop_time() + self._spec.sleep.drain_timeout
        self._door.watched = True
        while self._door.in_flight and not self._died:
            self._changed.clear()
            if _loop_time() >= deadline:
                self._metrics.barrier_timeouts.inc()
                log.warning("%d requests are still in flight and are cut off", self._door.in_flight)
                break
            await self._wait(deadline - _loop_time())

    async def _rest_engine(self) -> Rest:
        """Puts the engine to sleep, or kills it when it does not obey. Its memory is free on return."""
        try:
            await self._engine.sleep()
        except EngineError as error:
            await self._start_afresh(f"the engine does not sleep: {error}")
            return Rest.ABSENT
        return Rest.ABSENT if self._died else Rest.ASLEEP

    async def _left_behind(self) -> int | None:
        """Bytes that the sleeping engine still holds; one that leaks is killed, and boots again."""
        try:
            return await self._engine.left_behind()
        except EngineError as error:
            self._wants.boot_ready = False
            await self._start_afresh(str(error))
            return None

    async def _start_afresh(self, why: str) -> None:
        self._recorder.event("EngineRestarted", why, warning=True)
        await self._engine.kill()

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _enter(self, state: SidecarState) -> None:
        if state is not self._state:
            log.info("%s -> %s", self._state, state)
        self._state, self._since = state, self._clock.now()
        self._metrics.set_state(state)
        self._door.entered(state)
        self._recorder.changed()

    def _held(self) -> int:
        """Bytes that this pod's entries reserve now."""
        entries = (gpu.occupant(self._claims.pod) for gpu in self._claims.gpus())
        return max((mine.reserved for mine in entries if mine is not None), default=0)

    def _entry(self, state: State, reserved: int) -> Occupant:
        assert self._spec is not None
        return entry(
            self._claims.pod,
            self._settings.model,
            state,
            reserved,
            popular=self._spec.fairness.popular,
            last_accessed=self._door.last_accessed,
            became_serving_at=self._became_serving_at if reserved or state is State.SERVING else None,
            min_runtime=self._spec.fairness.min_runtime,
        )

    async def _keep_entry(self, state: State, reserved: int) -> bool:
        """Writes this pod's entry when it is not what it should be; lastAccessed only counts while somebody waits.

        False: the API server did not take it; try again later.
        """
        wanted = self._entry(state, reserved)
        gpus = self._claims.gpus()
        entries = [gpu.occupant(self._claims.pod) for gpu in gpus]
        stale = any(mine is None or replace(mine, last_accessed=wanted.last_accessed) != wanted for mine in entries)
        if state is State.SERVING and not stale and self._others_wait():
            wanted = replace(wanted, last_accessed=self._door.last_used)
            stale = _loop_time() >= self._touched_at + _TOUCH_EVERY and any(mine != wanted for mine in entries)
        if not stale:
            return True
        try:
            self._touched_at = _loop_time()
            await self._claims.publish(wanted)
        except (Refused, ApiError, Unreachable) as error:
            log.warning("this pod's entry is not written yet: %s", error)
            return False
        return True

    def _others_wait(self) -> bool:
        return any(intent.pod != self._claims.pod for gpu in self._claims.gpus() for intent in gpu.intents)

    def _where(self) -> str:
        return f"{self._settings.node}/{'-'.join(map(str, self._settings.gpu_indices))}"

    def _retry_after(self) -> float:
        now, me, gpus = self._clock.now(), self._claims.pod, self._claims.gpus()
        intents = {intent.pod: intent for gpu in gpus for intent in gpu.intents}
        mine = intents.pop(me, None)
        decision = self._decision if self._state is SidecarState.PENDING else None
        until = decision.until if isinstance(decision, Wait) else None
        prospect = Prospect(
            self._state,
            for_now=(now - self._since).total_seconds(),
            boot_ready=self.boot_ready,
            boot_pause=self._wants.boot_pause,
            ahead=sum(mine is None or intent.age < mine.age for intent in intents.values()),
            decides_in=0.0 if until is None else max((until - now).total_seconds(), 0.0),
            cannot_fit=isinstance(decision, CannotFit),
        )
        return retry_after(prospect, self._recorder.records)

    async def _wait(self, seconds: float | None = None) -> None:
        """Until something changes or the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _wait_until(self, moment: datetime | None) -> None:
        if moment is None:
            await self._wait()
        else:
            await self._wait(max((moment - self._clock.now()).total_seconds(), 0.0))

    async def _pause(self, failures: int) -> None:
        first, longest = _API_BACKOFF
        await asyncio.sleep(min(first * 2 ** min(failures, 10), longest) * self._rng.uniform(0.5, 1.0))

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Writes, again and again if need be: what is free must be said to be free."""
        failures = 0
        while True:
            try:
                await write()
                return
            except (Refused, ApiError, Unreachable) as error:
                failures += 1
                log.warning("the API server did not take a write that must be made: %s", error)
                await self._pause(failures)


_EVENT_OF = {
    Why.IDLE: "Slept",
    Why.YIELDED: "GaveWay",
    Why.PREEMPTED: "Preempted",
    Why.ASKED: "Slept",
    Why.BOOTED: "Slept",
    Why.BEGUN: "Slept",
    Why.STOPPED: "Slept",
    Why.CRASHED: "EngineDied",
}


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
