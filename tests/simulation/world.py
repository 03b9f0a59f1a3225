"""One seed, one schedule: the real parts on a simulated API server, network and machine."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from controller.agent.agent import Agent
from controller.agent.settings import Settings as AgentSettings
from controller.core import WATCHED, Controller
from controller.settings import PodSettings
from controller.settings import Settings as ControllerSettings
from gateway.app import Gateway
from gateway.settings import Settings as GatewaySettings
from greenthread.clock import format_time
from greenthread.gpu import State
from greenthread.kube.aio import AsyncClient
from greenthread.kube.errors import KubeError, NotFound
from greenthread.kube.reflector import Reflector
from greenthread.kube.resources import MODELS, PODS, Key
from localcluster.api.core import Api
from localcluster.api.crds import CRDS
from localcluster.api.inprocess import InProcess
from localcluster.api.messages import Request, Response
from localcluster.api.storage import Store, dumps
from tests.crds import crds
from tests.simulation.checks import Checks
from tests.simulation.clients import GATEWAY_PORT, Ask, ask
from tests.simulation.loop import Process, SimLoop, context_of
from tests.simulation.machine import EngineHost, Faults, Machine
from tests.simulation.network import Network, Weather
from tests.simulation.pods import NAMESPACE, NODE, Kubelet, SimPod
from tests.virtual import START

GIB = 2**30
TOTAL = 100 * GIB

#: Seconds that the parts get to come to rest after the storm.
CALM = 500.0
#: A silent watch is found out after 90 s, a swallowed request after 30; then comes one pause of up to 10 s.
SILENCE, SWALLOWED = 105.0, 45.0
#: Longer than clients are kept waiting.
STAYS_DOWN = 30.0


@cache
def template() -> list[tuple[str, Key, bytes]]:
    """What stands in every world's storage at first: the CRDs, the namespace, the node."""
    api = Api(Store(":memory:"), rng=random.Random("template"))

    def create(path: str, obj: Any) -> None:
        answer = api.handle(Request("POST", path, {}, {"content-type": "application/json"}, dumps(obj)))
        assert isinstance(answer, Response), answer
        assert answer.status == 201, answer.body

    for crd in crds():
        create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    return [
        (resource, key, stored.raw)
        for resource in (CRDS, "namespaces", "nodes")
        for key, stored in api.store.all(resource).items()
    ]


def storage() -> Store:
    store = Store(":memory:")
    for resource, key, raw in template():
        store.put(resource, key, json.loads(raw))
    return store


@dataclass(frozen=True)
class Shape:
    """How large a world is, and for how long things go wrong in it (seconds)."""

    models: int
    gpus: int
    storm: float

    @classmethod
    def of(cls, seed: int) -> Shape:
        """Most are small and short, so that there can be many; every twentieth is large."""
        if seed % 20 == 19:
            return cls(5 + seed // 20 % 4, 2 + seed // 20 % 3, 40.0)
        return cls(2 + seed % 3, 1 + seed // 3 % 2, 8.0)


class Clock:
    """The wall clock, which may jump; the loop's time does not."""

    offset = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time() + self.offset)


@dataclass
class Part:
    """A program that is neither a sidecar nor an engine: it is killed and started again."""

    name: str
    start: Callable[[], None]
    process: Process
    network: Network
    task: asyncio.Task[Any]


@dataclass
class World:
    seed: int
    loop: SimLoop
    shape: Shape
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = self.loop.rng
        self.models = self.shape.models
        self.tmp = Path(tempfile.mkdtemp(prefix="simulation-"))
        self.clock = Clock()
        self.weather = Weather()
        self.violations: list[str] = []
        self.checks = Checks(self)
        self.machine = Machine(self.rng, [TOTAL] * self.shape.gpus, self.checks.violated)
        self.machine.on_take = self.checks.took
        self.api = Api(storage(), clock=self.clock, rng=random.Random(self.seed))
        self.client = AsyncClient(InProcess(self.api))
        self.pods: dict[str, SimPod] = {}
        self.hosts: list[EngineHost] = []
        self.parts: dict[str, Part] = {}
        self.needs: dict[str, int] = {}
        self.asks: list[Ask] = []
        self.asking: set[asyncio.Task[None]] = set()
        self.models_of_ports: dict[int, str] = {}
        self._broke: dict[str, list[float]] = {}
        self.loop.on_turn = self.checks.turn
        self.loop.on_break = lambda port: self.broke(self.models_of_ports.get(port, ""))

    def note(self, text: str) -> None:
        self.history.append(f"{self.loop.time():9.3f}  {text}")

    def broke(self, model: str) -> None:
        """Something between the clients and the answers of ``model`` ("": of all) broke, so an answer may have."""
        self._broke.setdefault(model, []).append(self.loop.time())

    def broke_during(self, request: Ask) -> bool:
        times = self._broke.get(request.model, []) + self._broke.get("", [])
        return any(request.began - 0.1 <= moment <= request.ended + 0.1 for moment in times)

    # -- the parts ----------------------------------------------------------------------------------------------------

    async def set_up(self) -> None:
        self.api.store.subscribe("gpus.greenthread.ai", self.checks.written)
        self.start_agent()
        self.start_controller()
        self.start_gateway()
        self._kubelet = asyncio.create_task(Kubelet(self).run())
        for number in range(self.models):
            await self._make_model(f"m{number}")

    async def _make_model(self, name: str) -> None:
        rng = self.rng
        gang = min(rng.choice([1, 1, 1, 2, 2, 4]), self.shape.gpus)
        need = rng.choice([30, 45, 60, 88]) * GIB
        spec = {
            "modelName": f"test/{name}",
            "gpuMemoryUtilization": f"{need / TOTAL - 0.01:.2f}",
            "tensorParallelSize": 1 if gang == 3 else gang,
            "fairness": {
                "popular": rng.random() < 0.1,
                "minRuntime": rng.choice(["0s", "1s", "3s"]),
                "maxWaitTime": rng.choice(["0s", "1s", "4s"]),
                "yieldAfter": rng.choice(["0s", "200ms", "1s"]),
            },
            "sleep": {"idleTimeout": rng.choice(["0s", "2s", "5m"]), "drainTimeout": rng.choice(["1s", "10s"])},
            "staging": {"pinned": rng.random() < 0.5},
        }
        self.needs[name] = need
        await self.client.create(MODELS, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})

    def _part(self, name: str, main: Callable[[AsyncClient], Any], start: Callable[[], None]) -> None:
        process, network = Process(name), Network(self.api, self.rng, self.weather)
        context = context_of(process)
        task = self.loop.create_task(context.run(main, AsyncClient(network)), context=context)
        part = self.parts[name] = Part(name, start, process, network, task)
        network.on_fuse = lambda: self.kill(part)

    def kill(self, part: Part) -> None:
        """SIGKILL; it is started again after a while."""
        if part.process.dead:
            return
        self.note(f"kill {part.name}")
        if part.name == "gateway":
            self.broke("")
            self.loop.forget(GATEWAY_PORT)
        part.network.kill()
        part.process.kill()
        self.loop.call_later(self.rng.uniform(0.1, 3.0), part.start)

    def start_agent(self) -> None:
        async def in_place(function: Callable[..., Any], /, *arguments: Any) -> Any:
            await asyncio.sleep(self.rng.uniform(0, 0.01))
            return function(*arguments)

        async def main(client: AsyncClient) -> None:
            owners: Any = self.machine
            settings = AgentSettings(NODE, NAMESPACE)
            await Agent(client, settings, self.machine, owners=owners, in_thread=in_place).run()

        self._part("agent", main, self.start_agent)

    def start_controller(self) -> None:
        async def main(client: AsyncClient) -> None:
            settings = ControllerSettings(PodSettings(namespace=NAMESPACE), identity="c")
            controller = Controller(client, settings, self.clock)
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

                    watch = Reflector(client, resource, label_selector=selector, on_event=observe, rng=self.rng)
                    group.create_task(watch.run())

        self._part("controller", main, self.start_controller)

    def start_gateway(self) -> None:
        async def main(client: AsyncClient) -> None:
            settings = GatewaySettings(port=GATEWAY_PORT, namespace=NAMESPACE, hold_timeout=25.0)
            gateway = Gateway(settings, client)
            gateway.server.hangups.close()  # there are no file descriptors to watch
            await gateway.start()
            await gateway.run(asyncio.Event())

        self._part("gateway", main, self.start_gateway)

    # -- the run ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole schedule; `violations` says what did not hold."""
        try:
            await self.set_up()
            await asyncio.sleep(self.rng.uniform(0, self.shape.storm / 2))
            await self._storm()
            self.note("calm")
            await self._clear_sky()
            await self._come_to_rest()
            self.checks.rest()
            if not self.violations:
                await self._everybody_is_served()
                self.checks.rest()
            if not self.violations:
                await self._a_sidecar_stays_down()
                self.checks.rest()
            self.checks.answers()
        finally:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            shutil.rmtree(self.tmp, ignore_errors=True)

    async def _storm(self) -> None:
        rng, weather = self.rng, self.weather
        intensity = rng.choice([0.0, 0.01, 0.05])
        weather.slow, weather.lost_before, weather.lost_after = intensity, intensity, intensity
        weather.conflict = rng.choice([0.0, intensity, 0.3])
        weather.error = rng.choice([0.0, 0.0, intensity])
        weather.gap, weather.gone = rng.choice([0.0, 0.1]), rng.choice([0.0, 0.1])
        weather.silent = rng.choice([0.0, 0.0, 0.0, 0.01])
        weather.lag = rng.choice([0.0, 0.2, 0.2, 3.0])
        weather.broken_connection = rng.choice([0.0, 0.0, 0.05])
        self.machine.faults = Faults(*(rng.choice([0.0, 0.0, 0.05]) for _ in range(4)))
        killing = rng.choice([0.0, 0.1, 0.4])
        end = self.loop.time() + self.shape.storm
        while self.loop.time() < end:
            await asyncio.sleep(rng.expovariate(4.0))
            if self._ended():
                return
            dice = rng.random()
            if dice < 0.7:
                for _ in range(rng.choice([1, 1, 1, 5])):
                    self.new_ask()
            elif dice < 0.7 + 0.25 * killing:
                self._kill_something()
            elif dice < 0.84:
                await self._person()
            elif dice < 0.855:
                weather.down = True
                self.note("the API server is away")
                self.loop.call_later(rng.uniform(0.5, 10), self._api_back)
            elif dice < 0.865:
                self.clock.offset += rng.uniform(-2.0, 5.0)
                self.note(f"the clock jumps to {self.clock.offset:+.1f}s")

    def _api_back(self) -> None:
        self.weather.down = False
        self.note("the API server is back")

    def new_ask(self, model: str = "") -> None:
        """Of ``model``, a patient client's short one; without, one that may stream, and leave before its end."""
        rng, patience, stream = self.rng, math.inf, False
        if not model:
            model = f"m{rng.randrange(self.models)}"
            patience, stream = rng.choice([0.05, 0.5, 5.0, math.inf, math.inf, math.inf]), rng.random() < 0.3
        request = Ask(f"r{len(self.asks)}", model, stream, self.loop.time())
        self.asks.append(request)
        task = asyncio.create_task(ask(self, request, patience))
        self.asking.add(task)
        task.add_done_callback(self.asking.discard)

    def _kill_something(self) -> None:
        """At once, at an await of its own some steps away, or around one of its requests to the API server."""
        rng = self.rng
        pods = [pod for pod in self.pods.values() if pod.task is not None]
        kind = rng.choice(["sidecar", "sidecar", "sidecar", "engine", "engine", "agent", "controller", "gateway"])
        how = rng.choice(["now", "step", "step", "request"])
        if kind in self.parts:
            part = self.parts[kind]
            self._die(how, part.process, part.network, lambda: self.kill(part))
        elif pods:
            pod = rng.choice(pods)
            if kind == "sidecar":
                self._die(how, pod.process, pod.network, pod.kill)
            elif pod.host.pid is not None:
                # of an engine, steps are those of the sidecar that works with it
                self._die("now" if how == "request" else how, pod.process, None, lambda: self._crash(pod))

    def _crash(self, pod: SimPod) -> None:
        self.note(f"engine of {pod.ref.name} crashes")
        pod.host.crash()

    def _die(self, how: str, process: Process, network: Network | None, fire: Callable[[], None]) -> None:
        if how == "now" or process.dead:
            fire()
        elif how == "step":
            self.loop.arm(process, self.rng.choice([1, 3, 10, 30, 100]) * self.rng.randrange(1, 10), fire)
        elif network is not None:
            network.fuse = self.rng.randrange(1, 12)

    async def _person(self) -> None:
        rng = self.rng
        model = f"m{rng.randrange(self.models)}"
        wish = rng.choice(["wake", "sleep", "preempt", "pin", "unpin", "change", "delete", "delete by force"])
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
                grace = 0 if wish == "delete by force" else None
                with suppress(NotFound):
                    await self.client.delete(PODS, pods[0].ref.name, NAMESPACE, grace_seconds=grace)
            return
        await self.client.patch(MODELS, model, body, NAMESPACE)

    # -- the end of the storm ---------------------------------------------------------------------------------------

    async def _clear_sky(self) -> None:
        """Nothing goes wrong any more; nobody is pinned any more, so that everybody can be served."""
        silent = self.weather.silent
        for name, value in vars(Weather()).items():
            setattr(self.weather, name, value)
        self.weather.lag = 0.0
        self.machine.faults = Faults()
        self.loop.disarm()
        for network in [part.network for part in self.parts.values()] + [pod.network for pod in self.pods.values()]:
            if network is not None:
                network.fuse = None
        for number in range(self.models):
            await self.client.patch(MODELS, f"m{number}", {"spec": {"fairness": {"popular": False}}}, NAMESPACE)
        await asyncio.sleep(SILENCE if silent else SWALLOWED)

    async def _come_to_rest(self) -> None:
        end = self.loop.time() + CALM
        while self.loop.time() < end and not self._ended():
            await asyncio.sleep(0.5)
            if not self.asking and self.checks.at_rest():
                return

    async def _everybody_is_served(self) -> None:
        """All models are asked at once, twice: in calm weather there is no excuse."""
        for _ in range(2):
            first = len(self.asks)
            for number in self.rng.sample(range(self.models), self.models):
                for _ in range(3):
                    self.new_ask(f"m{number}")
            await self._come_to_rest()
            self._all_answered(first, "in calm")

    async def _a_sidecar_stays_down(self) -> None:
        """While it serves, or leaves. Whoever fits beside what its engine holds is served all the same."""
        rng = self.rng
        serving = [pod for pod in self.pods.values() if self.checks.entry_state(pod, State.SERVING)]
        beside: list[str] = []
        for down in rng.sample(serving, len(serving)):
            beside = [pod.model for pod in self.pods.values() if self.checks.needs_others(pod, down)]
            if beside:
                break
        else:
            return
        if rng.random() < 0.7 and down.sidecar is not None:
            down.sidecar.lifecycle.wish_sleep(preempt=False)
            for _ in range(5000):
                if not self.checks.entry_state(down, State.SERVING):
                    break
                await asyncio.sleep(0.001)
        down.kill(after=STAYS_DOWN)
        first = len(self.asks)
        for model in rng.sample(beside, min(len(beside), 2)):
            self.new_ask(model)
        await self._come_to_rest()
        self._all_answered(first, f"while the sidecar of {down.ref.name} was down")

    def _all_answered(self, first: int, when: str) -> None:
        for request in self.asks[first:]:
            if request.outcome != "answered":
                self.checks.violated(f"{when}, {request.id} of {request.model} got {request.outcome or 'nothing'}")

    def _ended(self) -> bool:
        """Whether it has failed already: the rest would only blur the history."""
        if self._kubelet.done():
            self._kubelet.result()  # a mistake of the simulation itself
        for part in self.parts.values():
            if part.task.done() and not part.process.dead:
                error = None if part.task.cancelled() else part.task.exception()
                self.checks.violated(f"the {part.name} ended with {error!r}")
        return bool(self.violations)


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
