"""Deliberate breaks of the product's code: the simulation is worth something if it finds each of them.

`python -m tests.simulation --mutants` counts the seeds that it takes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from greenthread import fairness
from greenthread.kube.errors import Conflict, Invalid
from sidecar import lifecycle as lifecycles
from sidecar.claims import Claims
from sidecar.door import Door
from sidecar.engine.vllm import VllmEngine
from sidecar.lifecycle import Lifecycle
from sidecar.metrics import Metrics

#: By name: what is broken, told by the docstring of the function that breaks it.
MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(function: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[function.__name__.replace("_", "-")] = function
    return function


async def _nothing(*_arguments: Any, **_options: Any) -> None:
    return None


def _around(owner: Any, name: str) -> Callable[[Any], None]:
    """Replaces ``owner.name`` by the decorated function, which gets the original as its first argument."""
    original = getattr(owner, name)

    def install(function: Any) -> None:
        @functools.wraps(original)
        def changed(*arguments: Any, **options: Any) -> Any:
            return function(original, *arguments, **options)

        setattr(owner, name, changed)

    return install


@mutant
def ignores_popular() -> None:
    """A pinned model gives way like any other."""

    @_around(lifecycles, "reason_to_sleep")
    def changed(original: Any, me: Any, gpus: Any, now: Any) -> Any:
        spec = replace(me.spec, fairness=replace(me.spec.fairness, popular=False))
        return original(replace(me, spec=spec), gpus, now)


@mutant
def ignores_min_runtime() -> None:
    """A named model goes before its minRuntime is over."""

    @_around(lifecycles, "reason_to_sleep")
    def changed(original: Any, me: Any, gpus: Any, now: Any) -> Any:
        return original(replace(me, protected_for=0.0), gpus, now)

    fairness.protected_for = lambda occupant, now: 0.0


@mutant
def wakes_without_the_lock() -> None:
    """A claim neither tests nor takes the wake lock."""

    @_around(Claims, "_claim_patch")
    def changed(original: Any, *arguments: Any) -> Any:
        return [op for op in original(*arguments) if op["path"] != "/status/wakeLock"]

    @_around(Claims, "gpus")
    def unlocked(original: Any, self: Any) -> Any:
        return tuple(replace(gpu, wake_lock=None) for gpu in original(self))


@mutant
def takes_a_refusal_for_success() -> None:
    """A write that the API server refused (409, 422) counts as made."""

    @_around(Claims, "_attempt")
    async def changed(original: Any, self: Any, name: str, patch: Any) -> None:
        send = self._client.patch

        async def sent(*arguments: Any, **options: Any) -> Any:
            try:
                return await send(*arguments, **options)
            except (Conflict, Invalid):
                return self._object(name)

        self._client.patch = sent
        try:
            await original(self, name, patch)
        finally:
            self._client.patch = send


@mutant
def holds_while_it_waits() -> None:
    """A gang whose second claim was refused keeps the first, and so does a claim whose answer was lost."""
    Claims.holding = lambda self: False  # type: ignore[method-assign]
    Claims._turn_back_patch = lambda *arguments: []  # type: ignore[method-assign]


@mutant
def forgets_its_intent() -> None:
    """Its clients have left, and its intent stays."""
    Claims.withdraw = _nothing  # type: ignore[method-assign]


@mutant
def serves_before_the_engine_is_awake() -> None:
    """The door opens when the wake was asked for, not when it is done."""

    @_around(VllmEngine, "wake")
    async def changed(original: Any, self: Any) -> None:
        self.waking = asyncio.ensure_future(original(self))


@mutant
def releases_before_the_engine_sleeps() -> None:
    """The reservation goes when the sleep was asked for, not when it is done."""

    @_around(VllmEngine, "sleep")
    async def changed(original: Any, self: Any) -> None:
        self.sleeping = asyncio.ensure_future(original(self))


@mutant
def lets_a_failed_engine_live() -> None:
    """An engine whose wake failed is not killed before its claim is released."""

    @_around(Lifecycle, "_wake_failed")
    async def changed(original: Any, self: Any, error: Any, record: Any) -> None:
        kill, self._engine.kill = self._engine.kill, _nothing
        try:
            await original(self, error, record)
        finally:
            self._engine.kill = kill


@mutant
def lets_a_stubborn_engine_live() -> None:
    """An engine that does not sleep is taken for asleep."""

    @_around(Lifecycle, "_rest_engine")
    async def changed(original: Any, self: Any) -> Any:
        kill, self._engine.kill = self._engine.kill, _nothing
        try:
            return await original(self)
        finally:
            self._engine.kill = kill


@mutant
def does_not_drain() -> None:
    """It goes to sleep over the requests that are in flight."""
    Lifecycle._drain = _nothing  # type: ignore[method-assign]


@mutant
def runs_a_post_again() -> None:
    """A request whose upstream broke before it answered is sent once more."""
    from proxy.exchange import Exchange
    from sidecar import frontdoor

    frontdoor.Forward = functools.partial(frontdoor.Forward, retry=True)

    @_around(Exchange, "on_upstream_error")
    def changed(original: Any, self: Any, why: str) -> None:
        if self._replay and not self.head_sent:
            self._run_elsewhere()
        else:
            original(self, why)


@mutant
def forgets_who_waited() -> None:
    """When the door opens, only the first of those who wait is let in."""

    @_around(Door, "reopen")
    def changed(original: Any, self: Any) -> None:
        self._waiting = dict(list(self._waiting.items())[:1])
        original(self)


@mutant
def forgets_the_gauge_on_failure() -> None:
    """A wake that failed leaves the state's gauge as it was."""

    @_around(Lifecycle, "_wake_failed")
    async def changed(original: Any, self: Any, error: Any, record: Any) -> None:
        self._metrics.set_state = lambda state: None
        await original(self, error, record)
        del self._metrics.set_state


@mutant
def shows_two_states() -> None:
    """The gauge of the state before stays 1."""

    def changed(self: Any, state: Any) -> None:
        self._state.labels(str(state)).set(1)

    Metrics.set_state = changed  # type: ignore[method-assign]


@mutant
def names_nobody() -> None:
    """Who waits never preempts."""
    fairness._victims = lambda *arguments: ()


@mutant
def does_not_look_at_its_answers() -> None:
    """What the answer to an own write shows of others is no reason to decide again."""

    def changed(self: Any, name: str, obj: Any) -> None:
        self._reflectors[name].update(obj)
        self._parsed.pop(name, None)

    Claims._put = changed  # type: ignore[method-assign]


@mutant
def leaves_the_door_open_to_a_dead_engine() -> None:
    """The door is shut only when the owner of the state comes to it."""

    @_around(Lifecycle, "engine_died")
    def changed(original: Any, self: Any, text: str) -> None:
        shut, self._door.shut = self._door.shut, lambda: None
        original(self, text)
        self._door.shut = shut


@mutant
def trusts_an_engine_that_was_waking() -> None:
    """A restarted sidecar does not look into the journal: an operation under way is not waited out."""
    VllmEngine._under_way = lambda self: None  # type: ignore[method-assign]


@mutant
def cleans_up_after_the_living() -> None:
    """The agent takes a pod whose sidecar is down for gone."""
    from controller.agent import agent
    from controller.agent.cleanup import Life

    @_around(agent, "sidecar_life")
    def changed(original: Any, *arguments: Any) -> Life:
        life: Life = original(*arguments)
        return Life.GONE if life is Life.DOWN else life

    @_around(agent, "clean")
    def blind(original: Any, gpu: Any, lives: Any, holders: Any) -> Any:
        return original(gpu, lives, frozenset())


@mutant
def keeps_silent_about_who_is_down() -> None:
    """The agent does not say that the sidecar of an occupant is down: its memory counts as coming."""
    from controller.agent import cleanup

    cleanup.stands_in_the_way = lambda occupant: False


@mutant
def frees_what_a_process_still_holds() -> None:
    """The agent does not look whether the dead pod's processes are gone."""
    from controller.agent import agent

    @_around(agent, "clean")
    def changed(original: Any, gpu: Any, lives: Any, holders: Any) -> Any:
        return original(gpu, lives, frozenset())
