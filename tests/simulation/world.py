"""One seed, one schedule: the real sidecars, agent and controller on a simulated API server, network and machine."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from controller.agent.agent import Agent
from controller.agent.settings import Settings as AgentSettings
from controller.core import WATCHED, Controller
from controller.settings import PodSettings
from controller.settings import Settings as ControllerSettings
from greenthread.clock import format_time
from greenthread.gpu import Gpu, PodRef, State
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import KubeError
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import CRDS, GPUS, MODELS, NAMESPACES, NODES, PODS
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.storage import Change, Store
from proxy.routes import Outcome, Refuse
from sidecar.app import Sidecar
from sidecar.engine.vllm import VllmEngine
from sidecar.reasons import Why
from sidecar.settings import Settings
from tests.simulation.machine import ControlTransport, EngineHost, Faults, Machine, Memory, Violation
from tests.simulation.network import Network, Weather
from tests.virtual import START

GIB = 2**30
NAMESPACE = "greenthread-system"
NODE = "n"
CRD_FOLDER = Path(__file__).parents[2] / "manifests" / "crds"
TOTAL = 100 * GIB

#: Seconds of trouble, and seconds that the parts then get to come to rest.
STORM, CALM = 60.0, 400.0


@cache
def crds() -> list[Any]:
    return [yaml.safe_load(path.read_text()) for path in sorted(CRD_FOLDER.glob("*.yaml"))]


class Clock:
    """The wall clock, which may jump; the loop's time does not."""

    offset = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time() + self.offset)


@dataclass
class Ask:
    """One client's request and what became of it."""

    id: str
    model: str
    outcome: str = ""
    #: Its sidecar was killed or its engine broke meanwhile: nobody can promise an answer.
    excused: bool = False


class SimPod:
    """A kubelet's work for one pod: its sidecar is restarted when it dies, its engine container lives on."""

    def __init__(self, world: World, obj: dict[str, Any], need: int) -> None:
        meta = obj["metadata"]
        self.world, self.obj, self.uid = world, obj, meta["uid"]
        self.ref = PodRef(meta["namespace"], meta["name"])
        self.model = meta["labels"]["greenthread.ai/model"]
        devices = tuple(int(i) for i in meta["annotations"]["greenthread.ai/gpus"].split(","))
        env = {e["name"]: e.get("value", "") for e in obj["spec"]["containers"][0]["env"]}
        memory = env.get("SERVING_MEMORY_PER_GPU", "")
        self.run_dir = world.tmp / meta["uid"]
        self.run_dir.mkdir()
        self.settings = Settings(
            pod=self.ref, pod_uid=self.uid, model=self.model, node=NODE, gpu_indices=devices,
            run_dir=str(self.run_dir), namespace=NAMESPACE, queue_timeout=40.0, boot_timeout=60.0,
            wake_timeout=5.0, sleep_timeout=3.0, serving_memory=int(memory) if memory else None,
        )  # fmt: skip
        self.host = EngineHost(world.machine, self.ref, devices, need)
        self.sidecar: Sidecar | None = None
        self.network: Network | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        self.restart_at: float | None = 0.0

    def start(self) -> None:
        world = self.world
        self.network = Network(world.api, world.rng, world.weather)
        self.network.on_fuse = self.kill
        sidecar = Sidecar(self.settings, AsyncClient(self.network), world.clock)
        memory: Any = Memory(world.machine, self.settings.gpu_indices)
        process: Any = self.host
        self.host.on_exit = lambda text: sidecar.lifecycle.engine_died(text)
        engine = VllmEngine(
            self.settings, self.host.on_exit, process=process, memory=memory, transport=ControlTransport(self.host)
        )
        sidecar.attach(engine)
        world.watch_decisions(self, sidecar)
        engine.open()
        self.sidecar = sidecar
        self.task = asyncio.create_task(sidecar.run(), name=f"sidecar {self.ref.name}")
        if self.stopping:
            sidecar.lifecycle.stop()

    def kill(self, after: float | None = None) -> None:
        """SIGKILL to the sidecar; its kubelet starts it anew."""
        if self.task is None or self.network is None:
            return
        self.world.note(f"kill sidecar {self.ref.name}")
        self.network.kill()
        self.host.close()
        self.task.cancel()
        self.world.excuse(self)
        self.sidecar, self.task = None, None
        pause = self.world.rng.uniform(0.1, 5.0) if after is None else after
        self.restart_at = asyncio.get_running_loop().time() + pause


@dataclass
class World:
    seed: int
    models: int = 3
    gpus: int = 2
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.tmp = Path(tempfile.mkdtemp(prefix="simulation-"))
        self.clock = Clock()
        self.weather = Weather()
        self.machine = Machine(self.rng, [TOTAL] * self.gpus)
        self.api = Api(Store(":memory:"), clock=self.clock, rng=random.Random(self.seed))
        self.client = AsyncClient(InProcess(self.api))
        self.pods: dict[str, SimPod] = {}
        self.asks: list[Ask] = []
        self.running: dict[str, Ask] = {}
        self.asking: set[asyncio.Task[None]] = set()
        self.violations: list[str] = []
        self.parts: dict[str, tuple[asyncio.Task[Any], Network]] = {}
        self.needs: dict[str, int] = {}
        self.specs: dict[str, dict[str, Any]] = {}

    # -- history and invariants ---------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.history.append(f"{asyncio.get_running_loop().time():9.3f}  {text}")

    def violated(self, text: str) -> None:
        self.note(f"VIOLATION: {text}")
        self.violations.append(text)

    def _written(self, change: Change) -> None:
        """After every write to a GPU object."""
        if change.type != "MODIFIED" or change.before is None or not change.after.obj.get("status"):
            return
        if not change.before.obj.get("status"):
            return
        before, after = Gpu.from_object(change.before.obj), Gpu.from_object(change.after.obj)
        if after.reserved > before.reserved and after.reserved > after.total - after.foreign:
            self.violated(f"{after.name}: reserved rose to {after.reserved} above total less foreign")
        for occupant in after.occupants:
            old = before.occupant(occupant.pod)
            if old is None or old.state is not occupant.state:
                self.note(f"{after.name}: {occupant.pod.name} {old.state if old else '-'} -> {occupant.state}")
        for intent in after.intents:
            if before.intent(intent.pod) is None:
                self.note(f"{after.name}: {intent.pod.name} waits{' to boot' if intent.boot else ''}")
            if (old_intent := before.intent(intent.pod)) is None or old_intent.victims != intent.victims:
                names = [victim.name for victim in intent.victims]
                if names:
                    self.note(f"{after.name}: {intent.pod.name} names {names}")
        if (before.wake_lock and before.wake_lock.holder) != (after.wake_lock and after.wake_lock.holder):
            self.note(f"{after.name}: lock {after.wake_lock.holder if after.wake_lock else 'free'}")

    def watch_decisions(self, pod: SimPod, sidecar: Sidecar) -> None:
        """Checks every decision to sleep against the rules, from outside."""
        lifecycle: Any = sidecar.lifecycle
        original = lifecycle._put_to_sleep

        async def checked(reason: Any) -> bool:
            if reason.why in (Why.IDLE, Why.YIELDED, Why.PREEMPTED) and reason.intent is not None:
                spec = lifecycle._spec
                began = lifecycle._became_serving_at
                served = (self.clock.now() - began).total_seconds()
                if spec.fairness.popular:
                    self.violated(f"{pod.ref.name} is pinned and goes: {reason.text}")
                if served < spec.fairness.min_runtime - 0.001:
                    self.violated(f"{pod.ref.name} served {served:.3f} s of its minRuntime and goes: {reason.text}")
            self.note(f"{pod.ref.name}: to sleep, {reason.text}")
            return bool(await original(reason))

        lifecycle._put_to_sleep = checked

    def excuse(self, pod: SimPod) -> None:
        for ask in self.asks:
            if ask.model == pod.model and not ask.outcome:
                ask.excused = True

    # -- the parts ----------------------------------------------------------------------------------------------------

    async def set_up(self) -> None:
        for crd in crds():
            await self.client.create(CRDS, crd)
        await self.client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        await self.client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        self.api.store.subscribe("gpus.greenthread.ai", self._written)
        self.start_agent()
        self.start_controller()
        self._kubelet_task = asyncio.create_task(self._kubelet())
        rng = self.rng
        for number in range(self.models):
            gang = self.gpus > 1 and rng.random() < 0.25
            need = rng.choice([30, 45, 60, 88]) * GIB
            spec = {
                "modelName": f"test/m{number}",
                "gpuMemoryUtilization": f"{need / TOTAL - 0.01:.2f}",
                "tensorParallelSize": 2 if gang else 1,
                "fairness": {
                    "popular": rng.random() < 0.1,
                    "minRuntime": rng.choice(["0s", "1s", "4s"]),
                    "maxWaitTime": rng.choice(["0s", "1s", "5s"]),
                    "yieldAfter": rng.choice(["0s", "200ms", "1s"]),
                },
                "sleep": {"idleTimeout": rng.choice(["0s", "3s", "5m"]), "drainTimeout": rng.choice(["1s", "10s"])},
                "staging": {"pinned": rng.random() < 0.5},
            }
            name = f"m{number}"
            self.needs[name], self.specs[name] = need, spec
            meta = {"name": name, "namespace": NAMESPACE}
            await self.client.create(MODELS, {"metadata": meta, "spec": spec})

    def start_agent(self) -> None:
        network = Network(self.api, self.rng, self.weather)

        async def in_place(function: Callable[..., Any], /, *arguments: Any) -> Any:
            await asyncio.sleep(self.rng.uniform(0, 0.01))
            return function(*arguments)

        owners: Any = self.machine
        agent = Agent(
            AsyncClient(network), AgentSettings(NODE, NAMESPACE), self.machine, owners=owners, in_thread=in_place
        )
        self._part("agent", agent.run(), network, self.start_agent)

    def start_controller(self) -> None:
        network = Network(self.api, self.rng, self.weather)
        client = AsyncClient(network)
        controller = Controller(client, ControllerSettings(PodSettings(namespace=NAMESPACE), identity="c"), self.clock)

        async def work() -> None:
            while True:
                try:
                    await controller.prime()
                    break
                except KubeError:
                    await asyncio.sleep(1.0)
            async with asyncio.TaskGroup() as group:
                group.create_task(controller.run())
                for resource, selector in WATCHED.items():

                    def observe(kind: str, obj: dict[str, Any], resource: Any = resource) -> None:
                        controller.observe(resource, kind, obj)

                    group.create_task(
                        Reflector(client, resource, label_selector=selector, on_event=observe, rng=self.rng).run()
                    )

        self._part("controller", work(), network, self.start_controller)

    def _part(self, name: str, work: Any, network: Network, start: Callable[[], None]) -> None:
        task = asyncio.create_task(work, name=name)
        self.parts[name] = (task, network)

        def die() -> None:
            self.note(f"kill {name}")
            network.kill()
            task.cancel()
            asyncio.get_running_loop().call_later(self.rng.uniform(0.1, 5.0), start)

        network.on_fuse = die

    async def _kubelet(self) -> None:
        """Runs the pods. Its own connection is always good: it is not what is tested."""
        while True:
            now = asyncio.get_running_loop().time()
            found = {pod["metadata"]["uid"]: pod for pod in (await self.client.list(PODS, NAMESPACE)).items}
            for uid, obj in found.items():
                pod = self.pods.get(uid)
                if pod is None:
                    model = obj["metadata"]["labels"]["greenthread.ai/model"]
                    pod = self.pods[uid] = SimPod(self, obj, self.needs[model])
                    binding = {"metadata": {"name": pod.ref.name}, "target": {"kind": "Node", "name": NODE}}
                    await self._post(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod.ref.name}/binding", binding)
                    await self._status(pod, False)
                    self.note(f"pod {pod.ref.name} starts")
                if obj["metadata"].get("deletionTimestamp") and not pod.stopping:
                    pod.stopping = True
                    pod.kill_at = now + 45.0  # type: ignore[attr-defined]
                    self.note(f"pod {pod.ref.name} is to stop")
                    if pod.sidecar:
                        pod.sidecar.lifecycle.stop()
                await self._care(pod, obj, now)
            await asyncio.sleep(0.1)

    async def _care(self, pod: SimPod, obj: dict[str, Any], now: float) -> None:
        if pod.task is not None and pod.task.done():
            error = None if pod.task.cancelled() else pod.task.exception()
            if isinstance(error, Violation):
                self.violated(str(error))
            elif error is not None:
                self.violated(f"the sidecar of {pod.ref.name} ended with {error!r}")
            pod.task = None
            if pod.stopping:
                pod.restart_at = math.inf
        finished = pod.stopping and (pod.restart_at == math.inf or now >= pod.kill_at)  # type: ignore[attr-defined]
        if finished:
            pod.kill(after=math.inf)
            pod.host._end()
            await self.client.delete(PODS, pod.ref.name, NAMESPACE, uid=pod.uid, grace_seconds=0)
            self.pods.pop(pod.uid)
            self.note(f"pod {pod.ref.name} is gone")
            return
        if pod.task is None and pod.restart_at is not None and now >= pod.restart_at:
            pod.restart_at = None
            pod.start()
        ready = bool(pod.sidecar and pod.sidecar.lifecycle.healthy)
        was = any(c["type"] == "Ready" and c["status"] == "True" for c in obj["status"].get("conditions", ()))
        running = pod.task is not None
        was_running = any(
            s.get("ready") is not None and "running" in s["state"] for s in obj["status"].get("containerStatuses", ())
        )
        if ready != was or running != was_running:
            await self._status(pod, ready)

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        from localcluster.api.messages import Request
        from localcluster.api.storage import dumps

        self.api.handle(Request("POST", path, {}, {"content-type": "application/json"}, dumps(body)))

    async def _status(self, pod: SimPod, ready: bool) -> None:
        moment = format_time(self.clock.now())[:19] + "Z"
        state = {"running": {"startedAt": moment}} if pod.task else {"waiting": {"reason": "CrashLoopBackOff"}}
        status = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": moment}],
            "containerStatuses": [
                {"name": "sidecar", "ready": ready, "restartCount": 0, "image": "x", "imageID": "", "state": state}
            ],
        }
        await self.client.patch(PODS, pod.ref.name, {"status": status}, NAMESPACE, subresource="status")

    # -- clients ------------------------------------------------------------------------------------------------------

    async def ask(self, ask: Ask, patience: float) -> None:
        """One client. It tries again as long as no sidecar took the request, as the gateway does."""
        end = asyncio.get_running_loop().time() + 60
        while True:
            pods = [p for p in self.pods.values() if p.model == ask.model and p.sidecar and not p.stopping]
            if pods:
                pod = self.rng.choice(pods)
                break
            if asyncio.get_running_loop().time() > end:
                ask.outcome = "no pod"
                return
            await asyncio.sleep(0.2)
        sidecar = pod.sidecar
        assert sidecar is not None
        door = sidecar.door

        class Exchange:
            status = 200

        exchange = Exchange()
        try:
            async with asyncio.timeout(patience):
                if not door.try_enter(exchange):
                    await door.enter(exchange)
        except Refuse as refusal:
            ask.outcome = f"refused: {refusal.message}"
            return
        except TimeoutError:
            ask.outcome = "left"
            return
        if pod.sidecar is not sidecar:
            ask.excused, ask.outcome = True, "its sidecar died"
            return
        outcome = Outcome.SUCCESS
        host = pod.host
        if host.pid is None:
            ask.outcome, outcome = "engine broke", Outcome.UPSTREAM_ERROR
        elif host.asleep:
            self.violated(f"request {ask.id} reached the sleeping engine of {pod.ref.name}")
        else:
            pid = host.pid
            host.run_request(ask.id)
            await asyncio.sleep(self.rng.choice([0.0, 0.1, 0.5, 3.0]))
            if host.pid != pid or host.asleep:
                ask.outcome, outcome = "engine broke", Outcome.UPSTREAM_ERROR
            else:
                ask.outcome = "answered"
        if pod.sidecar is sidecar:
            door.leave(exchange, outcome)

    def new_ask(self) -> None:
        model = f"m{self.rng.randrange(self.models)}"
        ask = Ask(f"r{len(self.asks)}", model)
        self.asks.append(ask)
        patience = self.rng.choice([0.5, 10.0, 1000.0, 1000.0, 1000.0])
        task = asyncio.create_task(self.ask(ask, patience))
        self.asking.add(task)
        task.add_done_callback(self.asking.discard)

    # -- the run ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole schedule; `violations` says what did not hold."""
        try:
            await self.set_up()
            await asyncio.sleep(self.rng.uniform(0, 20))
            await self._storm()
            self.note("calm")
            self._clear_sky()
            await self._come_to_rest()
            self._check_rest()
        except Violation as violation:
            self.violated(str(violation))
        finally:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            shutil.rmtree(self.tmp, ignore_errors=True)

    async def _storm(self) -> None:
        rng = self.rng
        intensity = rng.choice([0.0, 0.01, 0.05])
        self.weather.slow = self.weather.lost_before = self.weather.lost_after = intensity
        self.weather.conflict = rng.choice([0.0, intensity, 0.3])
        self.weather.gap, self.weather.gone = rng.choice([0.0, 0.1]), rng.choice([0.0, 0.1])
        self.machine.faults = Faults(*(rng.choice([0.0, 0.0, 0.03]) for _ in range(3)))
        end = asyncio.get_running_loop().time() + STORM
        killing = rng.choice([0.0, 0.1, 0.4])
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(rng.expovariate(4.0))
            self._raise_violations()
            dice = rng.random()
            if dice < 0.7:
                for _ in range(rng.choice([1, 1, 1, 5])):
                    self.new_ask()
            elif dice < 0.7 + 0.2 * killing:
                self._kill_something()
            elif dice < 0.81:
                await self._person()
            elif dice < 0.82:
                self.weather.down = True
                self.note("the API server is away")
                asyncio.get_running_loop().call_later(rng.uniform(0.5, 15), self._api_back)
            elif dice < 0.825:
                self.clock.offset += rng.uniform(-2.0, 5.0)
                self.note(f"the clock jumps to {self.clock.offset:+.1f}s")

    def _api_back(self) -> None:
        self.weather.down = False
        self.note("the API server is back")

    def _kill_something(self) -> None:
        rng = self.rng
        pods = [pod for pod in self.pods.values() if pod.task is not None]
        kind = rng.choice(["sidecar", "sidecar", "fuse", "fuse", "engine", "agent", "controller"])
        if kind in ("agent", "controller"):
            network = self.parts[kind][1]
            network.fuse = rng.randrange(1, 8)
        elif pods:
            pod = rng.choice(pods)
            if kind == "sidecar":
                pod.kill()
            elif kind == "fuse" and pod.network:
                pod.network.fuse = rng.randrange(1, 12)
            elif kind == "engine":
                self.note(f"engine of {pod.ref.name} crashes")
                pod.host.crash()

    async def _person(self) -> None:
        rng = self.rng
        model = f"m{rng.randrange(self.models)}"
        wish = rng.choice(["wake", "sleep", "preempt", "pin", "unpin", "change", "delete-pod"])
        self.note(f"a person: {wish} {model}")
        if wish in ("wake", "sleep", "preempt"):
            body: dict[str, Any] = {
                "metadata": {"annotations": {f"greenthread.ai/{wish}": format_time(self.clock.now())}}
            }
        elif wish in ("pin", "unpin"):
            body = {"spec": {"fairness": {"popular": wish == "pin"}}}
        elif wish == "change":
            body = {"spec": {"extraArgs": [f"--seed={rng.randrange(3)}"]}}
        else:
            pods = [pod for pod in self.pods.values() if pod.model == model]
            if pods:
                await self.client.delete(PODS, pods[0].ref.name, NAMESPACE)
            return
        await self.client.patch(MODELS, model, body, NAMESPACE)

    def _clear_sky(self) -> None:
        for name, value in vars(Weather()).items():
            setattr(self.weather, name, value)
        self.machine.faults = Faults()
        for _task, network in self.parts.values():
            network.fuse = None
        for pod in self.pods.values():
            if pod.network:
                pod.network.fuse = None

    async def _come_to_rest(self) -> None:
        """No new arrivals; nobody is pinned any more, so that everybody can be served."""
        for number in range(self.models):
            await self.client.patch(MODELS, f"m{number}", {"spec": {"fairness": {"popular": False}}}, NAMESPACE)
        end = asyncio.get_running_loop().time() + CALM
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(1.0)
            self._raise_violations()
            if not self.asking and await self._at_rest():
                return

    async def _at_rest(self) -> bool:
        gpus = [Gpu.from_object(obj) for obj in (await self.client.list(GPUS, NAMESPACE)).items]
        pods = [pod for pod in self.pods.values() if pod.sidecar]
        return (
            len(pods) == self.models
            and all(pod.sidecar and pod.sidecar.lifecycle.boot_ready for pod in pods)
            and not any(gpu.intents or gpu.wake_lock for gpu in gpus)
            and all(o.state in (State.SLEEPING, State.SERVING) for gpu in gpus for o in gpu.occupants)
            and self._truthful(gpus)
        )

    def _truthful(self, gpus: list[Gpu]) -> bool:
        """Every byte in use is reserved, every reservation is in use, and everybody listed exists."""
        alive = {pod.ref: pod for pod in self.pods.values()}
        for gpu in gpus:
            for occupant in gpu.occupants:
                pod = alive.get(occupant.pod)
                held = self.machine.held.get(pod.host.pid or 0, {}).get(gpu.index, 0) if pod else -1
                if held != occupant.reserved:
                    return False
        return True

    def _raise_violations(self) -> None:
        for name, (task, _network) in self.parts.items():
            if task.done() and not task.cancelled() and task.exception() is not None:
                raise Violation(f"the {name} ended with {task.exception()!r}")
        if self.violations:
            raise Violation(self.violations[0])

    def _check_rest(self) -> None:
        for ask in self.asks:
            if not ask.outcome and not ask.excused:
                self.violated(f"request {ask.id} of {ask.model} was never answered")
            self.note(
                f"request {ask.id} of {ask.model}: {ask.outcome or 'no answer'}{' (excused)' if ask.excused else ''}"
            ) if not ask.outcome.startswith("answered") else None
        gpus = [Gpu.from_object(stored.obj) for stored in self.api.store.all("gpus.greenthread.ai").values()]
        for gpu in gpus:
            if gpu.intents:
                self.violated(f"{gpu.name}: {[intent.pod.name for intent in gpu.intents]} wait for ever")
            if gpu.wake_lock:
                self.violated(f"{gpu.name}: the lock stays with {gpu.wake_lock.holder}")
        if gpus and not self._truthful(gpus):
            self.violated(
                "the GPU objects do not say what is in use: "
                + str([(o.pod.name, str(o.state), o.reserved) for g in gpus for o in g.occupants])
                + str(self.machine.held)
            )
        for pod in self.pods.values():
            if pod.sidecar and not pod.sidecar.lifecycle.boot_ready:
                self.violated(f"{pod.ref.name} never booted: {pod.sidecar.lifecycle.explain()}")


def logging_to(history: list[str]) -> logging.Handler:
    """Puts the parts' own log lines into the history."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                now = asyncio.get_running_loop().time()
            except RuntimeError:
                now = math.nan
            history.append(f"{now:9.3f}    {record.name}: {record.getMessage()}")

    return Handler()
