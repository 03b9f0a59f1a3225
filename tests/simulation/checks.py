"""What must hold after every step, judged by the machine and the API's storage and not by what the parts believe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from greenthread.gpu import Gpu, State, gpu_name
from localcluster.api.storage import Change
from sidecar.metrics import SidecarState
from sidecar.reasons import Why

if TYPE_CHECKING:
    from tests.simulation.pods import SimPod
    from tests.simulation.world import World

S = SidecarState


@dataclass
class _Seen:
    """One sidecar as last looked at."""

    pod: SimPod
    lifecycle: Any
    gauges: dict[SidecarState, Any]
    all: tuple[Any, ...]
    state: SidecarState


class Checks:
    """The invariants. Each violation is told once, with the moment at which it was seen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._gpus: dict[str, Gpu] = {}
        self._sidecars: dict[SimPod, _Seen] = {}
        self._told: set[str] = set()

    def violated(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._world.note(f"VIOLATION: {text}")
            self._world.violations.append(text)

    # -- every turn of the loop: between any two steps of any part --------------------------------------------------

    def turn(self) -> None:
        """The state's gauge: exactly one is 1, and it is the state; and the state agrees with the engine."""
        for seen in self._sidecars.values():
            state = seen.lifecycle._state
            a, b, c, d, e = seen.all
            if seen.gauges[state]._value != 1.0 or a._value + b._value + c._value + d._value + e._value != 1.0:
                shown = [str(each) for each, gauge in seen.gauges.items() if gauge._value]
                self.violated(f"{seen.pod.ref.name} is {state}, its gauge says {shown}")
            if state is not seen.state:
                seen.state = state
                self._entered(seen, state)

    def follow(self, pod: SimPod) -> None:
        """A sidecar has started."""
        assert pod.sidecar is not None
        lifecycle: Any = pod.sidecar.lifecycle
        gauge = pod.sidecar.metrics._state
        gauges = {state: gauge.labels(str(state))._value for state in S}
        self._sidecars[pod] = _Seen(pod, lifecycle, gauges, tuple(gauges.values()), lifecycle._state)
        self._watch_decisions(pod, lifecycle)

    def forget(self, pod: SimPod) -> None:
        self._sidecars.pop(pod, None)

    def _entered(self, seen: _Seen, state: SidecarState) -> None:
        pod, host = seen.pod, seen.pod.host
        self._world.note(f"{pod.ref.name}: {state}")
        holds = self._world.machine.held.get(host.pid or 0)
        if state is S.SERVING:
            if not host.awake and not seen.lifecycle._died:
                self.violated(f"{pod.ref.name} says that it serves, and its engine is not awake")
            if pod.serving_since is None:
                pod.serving_since = self._world.clock.now()
        elif state in (S.SLEEPING, S.PENDING):
            pod.serving_since, pod.wished = None, False
            if holds:
                self.violated(f"{pod.ref.name} is {state}, and its engine holds {holds}")
        self._reserved(pod, state in (S.WAKING, S.SERVING))

    # -- every write to a GPU object ----------------------------------------------------------------------------------

    def written(self, change: Change) -> None:
        """Over-commit by the ledger, locks and entries; and the history."""
        if not change.after.obj.get("status"):
            return
        after = Gpu.from_object(change.after.obj)
        before, self._gpus[after.name] = self._gpus.get(after.name), after
        if before is None:
            return
        if after.reserved > before.reserved and after.reserved > after.total - after.foreign:
            self.violated(f"{after.name}: reserved rose to {after.reserved} above total less foreign")
        for pid, devices in self._world.machine.held.items():
            self._covered(pid, devices)
        self._tell(before, after)

    def _covered(self, pid: int, devices: dict[int, int]) -> None:
        """Whatever an engine holds is reserved for its pod."""
        pod = self._world.machine.pods[pid]
        for device, held in devices.items():
            gpu = self._gpus.get(gpu_name("n", device))
            mine = gpu.occupant(pod) if gpu else None
            if held > (mine.reserved if mine else 0):
                said = f"{mine.reserved} ({mine.state})" if mine else "nothing"
                self.violated(f"the engine of {pod.name} holds {held} on device {device}, where {said} is reserved")

    def took(self, pid: int) -> None:
        """An engine took memory."""
        self._covered(pid, self._world.machine.held[pid])

    def _reserved(self, pod: SimPod, wanted: bool) -> None:
        for device in pod.settings.gpu_indices if wanted else ():
            gpu = self._gpus.get(gpu_name("n", device))
            mine = gpu.occupant(pod.ref) if gpu else None
            if mine is None or not mine.reserved:
                self.violated(f"{pod.ref.name} is awake without a reservation on device {device}")

    def entry_state(self, pod: SimPod, state: State) -> bool:
        """Whether some entry of the pod says ``state``."""
        mine = [gpu.occupant(pod.ref) for gpu in self._gpus.values()]
        return any(occupant is not None and occupant.state is state for occupant in mine)

    def needs_others(self, pod: SimPod, down: SimPod) -> bool:
        """Whether a pod that sleeps has no room on its GPUs, and would if all but ``down`` slept."""
        need = self._world.needs[pod.model]
        mine = [gpu for gpu in self._gpus.values() if gpu.occupant(pod.ref) is not None]
        held = {gpu.name: entry.reserved for gpu in mine if (entry := gpu.occupant(down.ref)) is not None}
        sleeps = self.entry_state(pod, State.SLEEPING) and any(gpu.room < need for gpu in mine)
        return sleeps and all(gpu.total - gpu.foreign - held.get(gpu.name, 0) >= need for gpu in mine)

    def _tell(self, before: Gpu, after: Gpu) -> None:
        note = self._world.note
        for occupant in after.occupants:
            old = before.occupant(occupant.pod)
            if old is None or old.state is not occupant.state:
                note(f"{after.name}: {occupant.pod.name} {old.state if old else '-'} -> {occupant.state}")
        for intent in after.intents:
            older = before.intent(intent.pod)
            if older is None:
                note(f"{after.name}: {intent.pod.name} waits{' to boot' if intent.boot else ''}")
            if intent.victims and (older is None or older.victims != intent.victims):
                note(f"{after.name}: {intent.pod.name} names {[victim.name for victim in intent.victims]}")
        for intent in before.intents:
            if after.intent(intent.pod) is None:
                note(f"{after.name}: {intent.pod.name} waits no more")
        if (before.wake_lock and before.wake_lock.holder) != (after.wake_lock and after.wake_lock.holder):
            note(f"{after.name}: lock {after.wake_lock.holder if after.wake_lock else 'free'}")

    # -- every decision to sleep --------------------------------------------------------------------------------------

    def _watch_decisions(self, pod: SimPod, lifecycle: Any) -> None:
        """A pinned model never goes by itself, nobody within its minRuntime, and nobody gives way to no one."""
        put_to_sleep, wish_sleep = lifecycle._put_to_sleep, lifecycle.wish_sleep

        def wished(preempt: bool) -> None:
            pod.wished = True
            wish_sleep(preempt)

        async def checked(reason: Any) -> bool:
            self._world.note(f"{pod.ref.name}: to sleep, {reason.text}")
            asked = pod.wished or lifecycle._stopping or self.entry_state(pod, State.DEACTIVATING)
            if lifecycle._state is S.SERVING and not asked and pod.host.awake and not lifecycle._died:
                self._may_go(pod, reason.why)
            return bool(await put_to_sleep(reason))

        lifecycle.wish_sleep = wished
        lifecycle._put_to_sleep = checked

    def _may_go(self, pod: SimPod, why: Why) -> None:
        assert pod.sidecar is not None
        model = pod.sidecar._model
        assert model is not None
        fairness = model.spec.fairness
        if fairness.popular:
            self.violated(f"{pod.ref.name} is pinned and goes: {why.value}")
        since: datetime | None = pod.serving_since
        served = (self._world.clock.now() - since).total_seconds() if since is not None else math.inf
        if served < fairness.min_runtime - 0.01:
            self.violated(f"{pod.ref.name} served {served:.3f} s of {fairness.min_runtime:.0f} and goes: {why.value}")
        if why in (Why.YIELDED, Why.IDLE) and pod.sidecar.door.in_flight:
            self.violated(f"{pod.ref.name} has requests in flight and goes: {why.value}")

    # -- at the end ---------------------------------------------------------------------------------------------------

    def truthful(self) -> bool:
        """Every byte in use is reserved, every reservation is in use, and everybody listed exists."""
        world = self._world
        alive = {pod.ref: pod for pod in world.pods.values()}
        for gpu in self._gpus.values():
            for occupant in gpu.occupants:
                pod = alive.get(occupant.pod)
                held = world.machine.held.get(pod.host.pid or 0, {}).get(gpu.index, 0) if pod else -1
                if held != occupant.reserved:
                    return False
        return True

    def at_rest(self) -> bool:
        """Nobody waits, wakes, boots or leaves, and all pods are there."""
        world = self._world
        sidecars = [pod.sidecar for pod in world.pods.values() if pod.sidecar]
        return (
            len(sidecars) == len(world.pods) == world.models
            and all(sidecar.lifecycle.boot_ready for sidecar in sidecars)
            and not any(gpu.intents or gpu.wake_lock for gpu in self._gpus.values())
            and all(o.state in (State.SLEEPING, State.SERVING) for g in self._gpus.values() for o in g.occupants)
            and self.truthful()
        )

    def rest(self) -> None:
        """No stuck intent, lock or waiter; the objects say what is so."""
        for gpu in self._gpus.values():
            if gpu.intents:
                self.violated(f"{gpu.name}: {[intent.pod.name for intent in gpu.intents]} wait for ever")
            if gpu.wake_lock:
                self.violated(f"{gpu.name}: the lock stays with {gpu.wake_lock.holder}")
            for occupant in gpu.occupants:
                if occupant.state not in (State.SLEEPING, State.SERVING):
                    self.violated(f"{gpu.name}: {occupant.pod.name} stays {occupant.state}")
        if not self.truthful():
            entries = [(o.pod.name, str(o.state), o.reserved) for g in self._gpus.values() for o in g.occupants]
            self.violated(f"the GPU objects do not say what is in use: {entries} {self._world.machine.held}")
        for pod in self._world.pods.values():
            if pod.sidecar is None:
                self.violated(f"{pod.ref.name} has no sidecar")
                continue
            lifecycle, door = pod.sidecar.lifecycle, pod.sidecar.door
            if not lifecycle.boot_ready:
                self.violated(f"{pod.ref.name} never booted: {lifecycle.explain()}")
            if door.waiting or door.in_flight:
                self.violated(f"{pod.ref.name}: {door.waiting} wait and {door.in_flight} are in flight for ever")

    def answers(self) -> None:
        """Every request was answered once, with its answer or with a reason that was true; none ran twice."""
        world = self._world
        runs: dict[str, int] = {}
        for host in world.hosts:
            for name, count in host.served.items():
                runs[name] = runs.get(name, 0) + count
        for ask in world.asks:
            ran = runs.get(ask.id, 0)
            if ran > 1:
                self.violated(f"request {ask.id} ran {ran} times")
            if not ask.outcome:
                self.violated(f"request {ask.id} of {ask.model} was never answered")
            elif ask.outcome.startswith("nonsense"):
                self.violated(f"request {ask.id} of {ask.model} got {ask.outcome}")
            elif ask.outcome == "answered" and not ran:
                self.violated(f"request {ask.id} was answered and never ran")
            elif ask.outcome.startswith("broke") and not world.broke_during(ask):
                self.violated(f"request {ask.id} of {ask.model}: {ask.outcome}; but nothing broke")
            elif "the model serves" in ask.outcome:
                self.violated(f"request {ask.id} of {ask.model} waited for nothing: {ask.outcome}")
            elif ask.outcome.startswith("refused") and ran:
                self.violated(f"request {ask.id} ran and was refused: {ask.outcome}")
            if ask.outcome != "answered":
                asked = f"request {ask.id} of {ask.model}, asked at {ask.began:.3f}"
                world.note(f"{asked}: {ask.outcome or 'no answer'}")
