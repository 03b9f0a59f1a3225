"""A whole cluster of real processes: every part of the product on one Kubernetes API, over simulated GPUs.

Two nodes with a supervisor and an agent each: `one` has one GPU, `two` has two. Controller and gateway run as Pods on
`one`. Models are put on a node by their nodeSelector. The truth is read from three places that the product cannot
argue with: the GPU objects, the ledger of the simulated GPUs, and the ledger's record of the requests that engines ran.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from greenthread.clock import format_time, parse_time
from greenthread.gpu import Gpu, Occupant, State
from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.kube.errors import NotFound
from greenthread.kube.resources import EVENTS, GPUS, LEASES, MODELS, NAMESPACES, PODS
from greenthread.names import (
    ANNOTATION_PORTS,
    ANNOTATION_SLEEP,
    ANNOTATION_WAKE,
    API_VERSION,
    DEFAULT_NAMESPACE,
    LABEL_MODEL,
)
from greenthread.units import GIB, short_bytes
from localcluster import parts
from localcluster.gpus import ledger as ledgers
from localcluster.gpus.ledger import Ledger, RequestRecord
from localcluster.state import Folder, Remembered
from localcluster.supervisor.ports import Ports
from tests.end_to_end.view import View
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.group import ProcessGroup
from tests.testbeds.kube import APISERVER, RealApi, own_address
from tests.testbeds.programs import kubernetes_version, need

Object = dict[str, Any]
T = TypeVar("T")

ONE, TWO = "one", "two"
GPUS_OF = {ONE: 1, TWO: 2}
MEMORY = 96 * GIB
#: The installation's namespace, and another one in which people may make Models.
NAMESPACE, TEAM = DEFAULT_NAMESPACE, "team-b"
#: A sidecarImage whose requests wait for 2 s.
IMPATIENT_SIDECAR = "test/impatient-sidecar"
MANIFESTS = Path(__file__).parents[2] / "manifests"
CRDS = MANIFESTS / "crds"
#: Of an installation what says who may do what.
RIGHTS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
ACCOUNTS = "system:serviceaccount:"

#: The account of each part.
ACCOUNT_OF = {part: f"greenthread-{part}" for part in ("controller", "agent")} | {"gateway": "greenthread-apiserver"}

#: Factor on every deadline, for a slow or busy machine.
PATIENCE = float(os.environ.get("GREENTHREAD_TEST_PATIENCE", "1"))
#: Seconds until a condition counts as never coming true.
DEADLINE = 40.0

#: After how much silence a streaming request that waits gets a sign of life.
HEARTBEAT = "500ms"

#: The simulated engine: one that boots, wakes, sleeps and speaks as fast as a test wants it.
FAST_ENGINE = {
    "GREENTHREAD_SIM_BOOT_SECONDS": "0.1",
    "GREENTHREAD_SIM_DISK_GBPS": "100",
    "GREENTHREAD_SIM_LINK_GBPS": "200",
    "GREENTHREAD_SIM_SLEEP_SECONDS": "0.02",
    "GREENTHREAD_SIM_TTFT_MS": "5",
    "GREENTHREAD_SIM_TOKEN_MS": "1",
}
#: What a test's Models have unless it says otherwise: no protection, a short wait, never asleep by themselves.
FAIRNESS = {"popular": False, "minRuntime": "0s", "maxWaitTime": "200ms", "yieldAfter": "100ms"}
SLEEP = {"idleTimeout": "0s", "drainTimeout": "20s"}


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    text: str
    #: Time from the first byte sent to the last one received, seconds.
    seconds: float
    headers: Mapping[str, str]
    request_id: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def content(self) -> str:
        """The text of a chat completion."""
        assert self.status == 200, self
        return str(self.json["choices"][0]["message"]["content"])

    @property
    def error(self) -> str:
        """The message of an OpenAI-shaped error."""
        return str(self.json["error"]["message"])


class Cluster:
    """All parts, running. `with Cluster(api) as cluster:` starts them and stops them all."""

    def __init__(
        self,
        api: EmbeddedApi | RealApi,
        nodes: Mapping[str, int] = GPUS_OF,
        engine_env: Mapping[str, str] = FAST_ENGINE,
        part_env: Mapping[str, str] | None = None,
    ) -> None:
        """`nodes`: how many GPUs each has. `engine_env`, `part_env`: what engines, and all our parts, have in their
        environment."""
        self.api, self.nodes, self._engine_env = api, dict(nodes), dict(engine_env)
        self._part_env = dict(part_env or {})
        self.real = isinstance(api, RealApi)
        #: Where pods are published. A real API server takes no loopback address in an EndpointSlice.
        self.address = own_address() if self.real else "127.0.0.1"
        self._temporary = tempfile.TemporaryDirectory(prefix="greenthread-e2e-")
        self.folder = Path(self._temporary.name)
        self.kube = Client(load_config(api.kubeconfig))
        self.ledgers: dict[str, Ledger] = {}
        self.view = View(load_config(api.kubeconfig))
        self._group: ProcessGroup | None = None
        self._audited, self._api_back = 0, datetime.fromtimestamp(0, UTC)
        self._clients = ThreadPoolExecutor(80)
        self.http = httpx.Client(timeout=60 * PATIENCE, limits=httpx.Limits(max_connections=200))
        self.remembered = Remembered(node=ONE, api_port=0, gateway_port=Ports().take())

    # start and stop

    def __enter__(self) -> Cluster:
        self._group = ProcessGroup()
        try:
            self.api.kubectl("apply", "-f", str(CRDS))
            self.api.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
            for namespace in (NAMESPACE, TEAM):
                self.kube.create(NAMESPACES, {"metadata": {"name": namespace}})
            if self.real:
                self.api.kubectl("apply", "-f", "-", stdin=_rights())
            self.view.start()
            for node in self.nodes:
                self._start_node(node)
            for pod in self._system_pods():
                self.kube.create(PODS, pod)
            self.until(lambda: len(self.view.objects(GPUS)) == sum(self.nodes.values()), "the agents register all GPUs")
            self.until(self._parts_ready, "controller, agents and gateway are ready")
        except BaseException:
            print(self.picture(), file=sys.stderr)
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every process and removes the folder."""
        assert self._group is not None
        self.view.stop()
        supervisors = [process for name, process in self._group.running.items() if name in self.nodes]
        for process in supervisors:
            process.send_signal(signal.SIGTERM)  # it then ends its pods, which it started in sessions of their own
        for process in supervisors:
            try:
                process.wait(30 * PATIENCE)
            except subprocess.TimeoutExpired:
                print("a supervisor does not end, and is killed", file=sys.stderr)
        self._group.stop()
        self._clients.shutdown(wait=False, cancel_futures=True)
        self.http.close()
        for ledger in self.ledgers.values():
            ledger.close()
        self._temporary.cleanup()

    def _node_folder(self, node: str) -> Folder:
        return Folder(self.folder / node)

    def _start_node(self, node: str) -> None:
        folder = self._node_folder(node)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.kubeconfig.write_bytes(self.api.kubeconfig.read_bytes())
        self.ledgers[node] = ledgers.create(folder.ledger, self.nodes[node], MEMORY)
        here = {"SIDECAR_HOST": self.address, "GATEWAY_HOST": self.address, "HEARTBEAT": HEARTBEAT}
        here |= self._part_env
        images = {
            name: replace(image, env={**image.env, **(self._engine_env if name == "*" else here)})
            for name, image in parts.images(folder, parts.Simulation(self.nodes[node], MEMORY)).items()
        }
        impatient = images[parts.SIDECAR_IMAGE]
        env = {**impatient.env, "QUEUE_TIMEOUT_SECONDS": "2"}
        images = {IMPATIENT_SIDECAR: replace(impatient, env=env), **images}
        text = json.dumps({glob: asdict(image) for glob, image in images.items()})
        (folder.path / "images.json").write_text(text)
        self._start_supervisor(node)

    def _start_supervisor(self, node: str) -> None:
        folder = self._node_folder(node)
        command = [sys.executable, "-m", "localcluster.supervisor", "--node", node, "--backoff", "0.2"]
        command += ["--kubeconfig", str(folder.kubeconfig), "--state", str(folder.pods), "--logs", str(self.logs)]
        command += ["--images", str(folder.path / "images.json"), "--address", self.address]
        command += ["--accounts"] if self.real else []
        assert self._group is not None
        self._group.start(node, command, folder.path / "supervisor.log")

    def reboot(self, node: str) -> None:
        """Everything that runs on the node dies at once, and the node comes back."""
        assert self._group is not None
        self._group.kill(node)
        self._start_supervisor(node)

    @property
    def logs(self) -> Path:
        """Where the pods' logs lie; the embedded API serves them to kubectl."""
        return self.api.logs if isinstance(self.api, EmbeddedApi) else self.folder / "logs"

    def _system_pods(self) -> list[Object]:
        pods = parts.system_pods(self.remembered)
        for pod in pods:
            for container in pod["spec"]["containers"]:
                for variable in container["env"]:
                    if variable["name"] == "GREENTHREAD_GATEWAY_URL":
                        variable["value"] = self.gateway
            if self.real:  # as the installation has it: each part speaks as its own account
                pod["spec"]["serviceAccountName"] = ACCOUNT_OF[pod["metadata"]["labels"][parts.LABEL_PART]]
                pod["spec"]["containers"][0]["env"] += [
                    {"name": "GREENTHREAD_POD_SERVICE_ACCOUNT", "value": "greenthread-sidecar"},
                    {"name": "GREENTHREAD_ROUTE_GATEWAY", "value": ""},
                ]
        controller, agent = (
            next(pod for pod in pods if pod["metadata"]["name"] == f"greenthread-{part}")
            for part in ("controller", "agent")
        )
        for node in self.nodes:
            if node != self.remembered.node:
                pods.append(_copy(agent, f"-{node}"))
                pods[-1]["spec"]["nodeName"] = node
        return [*pods, _copy(controller, "-spare")]

    def _parts_ready(self) -> bool:
        pods = [pod for pod in self.view.objects(PODS) if LABEL_MODEL not in pod["metadata"].get("labels", {})]
        return len(pods) == len(self._system_pods()) and all(map(self.is_ready, pods))

    # addresses

    @property
    def gateway(self) -> str:
        return f"http://{self.address}:{self.remembered.gateway_port}"

    def sidecar(self, model: str, number: int = 0) -> str:
        """URL of the sidecar of one of the Model's pods."""
        return f"http://{self.address}:{self.port(self.pods_of(model)[number], 'http')}"

    def engine(self, model: str, number: int = 0) -> str:
        """URL of the engine itself, which only processes on the node reach."""
        return f"http://127.0.0.1:{self.port(self.pods_of(model)[number], 'engine')}"

    @staticmethod
    def port(pod: Object, name: str) -> int:
        return int(json.loads(pod["metadata"]["annotations"][ANNOTATION_PORTS])[name])

    # Models and pods

    def apply(self, name: str, node: str = ONE, **spec: Any) -> None:
        """Creates a Model on a node; `fairness` and `sleep` are added to the fast ones of all tests."""
        self.kube.create(MODELS, manifest(name, node, **spec))
        self.until(lambda: self.view.get(MODELS, name), f"the view knows {name}")

    def change(self, name: str, annotations: Mapping[str, str | None] | None = None, **spec: Any) -> None:
        """Merges into a Model's spec and annotations."""
        body: Object = {"spec": spec} if spec else {}
        if annotations:
            body["metadata"] = {"annotations": dict(annotations)}
        self._patch(name, body)

    def _patch(self, name: str, body: Object) -> None:
        """Patches a Model; returns when the view knows, so that nobody takes its old status for the answer."""
        version = int(self.kube.patch(MODELS, name, body, NAMESPACE)["metadata"]["resourceVersion"])
        self.until(
            lambda: int(self.model(name)["metadata"]["resourceVersion"]) >= version, f"the change of {name} is seen"
        )

    def wake(self, name: str) -> None:
        """Wakes a Model without a request, and waits until it serves."""
        self.change(name, {ANNOTATION_WAKE: format_time(datetime.now(UTC))})
        self.until(lambda: self.states(name) == [State.SERVING], f"{name} serves")

    def sleep(self, *names: str) -> None:
        """Puts Models to sleep and waits until they hold no memory, and their sidecars have it on record."""
        for name in names:
            self.change(name, {ANNOTATION_SLEEP: format_time(datetime.now(UTC))})
        self.until(
            lambda: not any(self.reserved(name) for name in names) and all(self._is_asleep(name) for name in names),
            f"{', '.join(names)} sleep",
        )

    def rest(self, *names: str) -> None:
        """The state in which each test finds these Models: one ready replica, asleep, with the tests' fairness."""
        for name in names:
            model = self.kube.get(MODELS, name, NAMESPACE)
            spec = {"fairness": FAIRNESS, "sleep": SLEEP}
            asleep: Object = {"metadata": {"annotations": {ANNOTATION_SLEEP: format_time(datetime.now(UTC))}}}
            if any(model["spec"][key] != model["spec"][key] | value for key, value in spec.items()):
                asleep["spec"] = spec
            self._patch(name, asleep)
        self.ready(*names)
        self.until(
            lambda: (
                not any(self.reserved(name) or self.waits(name) for name in names)
                and all(self._is_asleep(name) for name in names)
            ),
            f"{', '.join(names)} are asleep",
        )

    def _is_asleep(self, name: str) -> bool:
        """By the word of its sidecars: booted, and nothing under way."""
        found = [self._status(pod) for pod in self.pods_of(name)]
        return bool(found) and all(said["state"] == "sleeping" and said["bootReady"] for said in found)

    def status(self, model: str, number: int = 0) -> Object:
        """`GET /status` of the sidecar of one of the Model's pods; empty while it does not answer."""
        return self._status(self.pods_of(model)[number])

    def reachable(self, model: str) -> bool:
        """Whether the gateway has an endpoint of the Model, booted and ready; wakes nothing."""
        try:
            return self.http.get(f"{self.gateway}/{model}/health").status_code == 200
        except httpx.TransportError:
            return False

    def _status(self, pod: Object) -> Object:
        try:
            return dict(self.http.get(f"http://{self.address}:{self.port(pod, 'http')}/status").json())
        except (httpx.TransportError, KeyError):
            return {"state": "", "bootReady": False}

    def ready(self, *names: str, seconds: float = DEADLINE) -> None:
        """Waits until the Models' condition Ready is true and no pod of an earlier spec is left."""
        self.until(
            lambda: (
                all(self.condition(name, "Ready") == "True" for name in names)
                and all(self.condition(name, "UpToDate") == "True" for name in names)
            ),
            f"{', '.join(names)} are Ready and up to date",
            seconds,
        )

    def delete(self, *names: str, wait: bool = True) -> None:
        for name in names:
            try:
                self.kube.delete(MODELS, name, NAMESPACE)
            except NotFound:
                pass
        if wait:
            self.until(lambda: not any(self.view.get(MODELS, name) for name in names), f"{names} are gone")

    def others(self, *names: str) -> list[str]:
        """Models beside these."""
        return [obj["metadata"]["name"] for obj in self.view.objects(MODELS) if obj["metadata"]["name"] not in names]

    def model(self, name: str) -> Object:
        """The Model as last seen; AssertionError when there is none."""
        found = self.view.get(MODELS, name)
        assert found is not None, f"there is no Model {name}"
        return found

    def measured(self, name: str) -> int:
        """`status.servingMemoryPerGPU`, once it is there."""
        return self.until(
            lambda: int((self.model(name).get("status") or {}).get("servingMemoryPerGPU") or 0),
            f"the status of {name} tells its memory",
        )

    def condition(self, name: str, kind: str, namespace: str = NAMESPACE) -> str:
        """`True`, `False`, or `""` while it is not said of the present spec."""
        model = self.view.get(MODELS, name, namespace) or {}
        status = model.get("status") or {}
        if status.get("observedGeneration") != model.get("metadata", {}).get("generation"):
            return ""
        return next((c["status"] for c in status.get("conditions") or [] if c["type"] == kind), "")

    def pods_of(self, model: str) -> list[Object]:
        """The Model's pods, by ordinal and age."""
        pods = [pod for pod in self.view.objects(PODS) if pod["metadata"].get("labels", {}).get(LABEL_MODEL) == model]
        return sorted(pods, key=lambda pod: (pod["metadata"]["name"], pod["metadata"]["creationTimestamp"]))

    @staticmethod
    def is_ready(pod: Object | None) -> bool:
        conditions = ((pod or {}).get("status") or {}).get("conditions") or []
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    @staticmethod
    def pid(pod: Object, container: str) -> int | None:
        """Pid of a container's first process, None while it does not run."""
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            if status["name"] == container and "running" in status["state"]:
                return int(status["containerID"].removeprefix("process://"))
        return None

    def engine_pids(self, model: str) -> set[int]:
        """Pids of the Model's engines: the processes that wait behind the gate are none."""
        found = set()
        for pod in self.pods_of(model):
            for node in self.nodes:
                file = self._node_folder(node).pods / "pods" / pod["metadata"]["uid"]
                for record in file.glob("**/engine.json"):
                    found.add(int(json.loads(record.read_text())["pid"]))
        return found

    def engine_starts(self, model: str) -> int:
        """How often an engine process began to run in the Model's pods, by the engines' own word."""
        return sum(self.log(pod, "vllm").count("INFO vLLM API server version") for pod in self.pods_of(model))

    def kubeconfig_of(self, pod: Object) -> Path:
        """How the pod's programs speak to the real API server."""
        return self._node_folder(pod["spec"]["nodeName"]).pods / "pods" / pod["metadata"]["uid"] / "account/kubeconfig"

    def log(self, pod: Object, container: str) -> str:
        """All that a container wrote, in all its lives."""
        meta = pod["metadata"]
        folder = self.logs / f"{meta['namespace']}_{meta['name']}_{meta['uid']}" / container
        files = sorted(folder.glob("*.log"), key=lambda file: int(file.stem))
        return "".join(file.read_text(errors="replace") for file in files)

    # GPUs

    def gpus(self, node: str = "") -> list[Gpu]:
        """The GPU objects as last seen, by name."""
        return [Gpu.from_object(obj) for obj in self.view.objects(GPUS) if obj["metadata"]["name"].startswith(node)]

    def occupants(self, model: str) -> list[Occupant]:
        """The Model's entries on all GPUs."""
        return [occupant for gpu in self.gpus() for occupant in gpu.occupants if occupant.model == model]

    def states(self, model: str) -> list[State]:
        """States of the Model's entries, each once."""
        return sorted({occupant.state for occupant in self.occupants(model)})

    def reserved(self, model: str) -> int:
        """Bytes that the Model reserves on all GPUs."""
        return sum(occupant.reserved for occupant in self.occupants(model))

    def waits(self, model: str) -> bool:
        """Whether the Model has an intent anywhere."""
        return any(intent.model == model for gpu in self.gpus() for intent in gpu.intents)

    def serving(self, node: str = "") -> set[str]:
        """Models that serve on a node's GPUs."""
        return {o.model for gpu in self.gpus(node) for o in gpu.occupants if o.state is State.SERVING}

    def until_serving(self, node: str, models: set[str]) -> None:
        """Waits until exactly these serve on the node."""
        self.until(lambda: self.serving(node) == models, f"{', '.join(models)} and nobody else serve on node {node}")

    def history(self, model: str) -> list[State]:
        """The states that the Model's entries went through since the test began, without repetitions."""
        found: list[State] = []
        for obj in self.view.history(GPUS):
            for occupant in Gpu.from_object(obj).occupants:
                if occupant.model == model and (not found or found[-1] is not occupant.state):
                    found.append(occupant.state)
        return found

    @contextmanager
    def no_api(self) -> Iterator[None]:
        """The API server is dead, and comes back at the end with all its objects."""
        if isinstance(self.api, RealApi):
            self.api.kill(APISERVER)
        else:
            self.api.kill()
        try:
            yield
        finally:
            if isinstance(self.api, RealApi):
                self.api.start(APISERVER)
            else:
                self.api.start()
            self._api_back = datetime.now(UTC)

    @contextmanager
    def foreign_memory(self, node: str, gpu: int, size: int) -> Iterator[int]:
        """A program of somebody else's holds memory on a device; its pid."""
        command = [sys.executable, "-m", "localcluster.gpus", "hold", "--gpu", str(gpu), "--bytes", str(size)]
        env = {**os.environ, ledgers.ENVIRONMENT: str(self._node_folder(node).ledger)}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert "holding" in process.stdout.readline()
                yield process.pid
            finally:
                process.terminate()

    # what engines did

    def runs(self, request_id: str) -> list[RequestRecord]:
        """How often engines ran the request, and how it ended."""
        return [record for ledger in self.ledgers.values() for record in ledger.requests(request_id)]

    def begin(self) -> None:
        """A test begins: histories count from here."""
        self.view.forget()
        if isinstance(self.api, RealApi) and self.api.audit_log.exists():
            self._audited = self.api.audit_log.stat().st_size

    def check(self) -> None:
        """What must be true after every test: no claim was wrong, and no request ran twice."""
        for node, ledger in self.ledgers.items():
            refusals = ledger.refusals()
            assert not refusals, f"an engine on {node} ran out of memory, so a claim was wrong: {refusals}"
            ids = [record.request_id for record in ledger.requests() if record.request_id.startswith("test-")]
            twice = {name for name in ids if ids.count(name) > 1} if len(set(ids)) != len(ids) else set()
            assert not twice, f"requests ran twice: {[self.runs(name) for name in twice]}"
        for gpu in self.gpus():
            assert gpu.reserved <= gpu.total, f"{gpu.name} is over-committed: {gpu}"
        assert not self.forbidden(), "a part lacks a right"

    def audited(self) -> list[Object]:
        """The audit log of the test so far, answers only, on a real API server that keeps one."""
        if not isinstance(self.api, RealApi) or not self.api.audit_log.exists():
            return []
        with self.api.audit_log.open() as log:
            log.seek(self._audited)
            # the last line may be half written
            lines = [line for line in log if '"stage":"ResponseComplete"' in line and line.endswith("\n")]
        return [json.loads(line) for line in lines]

    def forbidden(self) -> set[tuple[str, str, str]]:
        """What parts were refused for want of a right since the test began: account, verb and path, why."""
        return {
            (
                event["user"]["username"].removeprefix(ACCOUNTS),
                f"{event['verb']} {event['requestURI'].partition('?')[0]}",
                event["responseStatus"].get("message", ""),
            )
            for event in self.audited()
            if (event.get("responseStatus") or {}).get("code") == 403
            and event["user"]["username"].startswith(ACCOUNTS)
            # an API server that has just started does not know the roles yet
            and parse_time(event["requestReceivedTimestamp"]) > self._api_back + timedelta(seconds=5)
        }

    # requests

    def post(self, url: str, body: Object | bytes, timeout: float = 60, **headers: str) -> Answer:
        """One POST with a request id of its own; `X_Simulate="slow=1s"` is a header."""
        request_id = f"test-{uuid.uuid4().hex}"
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | {"X-Request-Id": request_id}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        began = time.monotonic()
        answer = self.http.post(
            url, content=content, headers={"Content-Type": "application/json"} | sent, timeout=timeout * PATIENCE
        )
        return Answer(answer.status_code, answer.text, time.monotonic() - began, answer.headers, request_id)

    def chat(self, model: str, text: str = "Hello", through: str = "", **options: Any) -> Answer:
        """A chat completion through the gateway, or through the sidecar at the URL `through`."""
        base = through or f"{self.gateway}/{model}"
        headers = {name: options.pop(name) for name in list(options) if name.startswith("X_")}
        timeout = options.pop("timeout", 60)
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16} | options
        return self.post(f"{base}/v1/chat/completions", body, timeout, **headers)

    def chats(self, model: str, count: int = 1, **options: Any) -> list[Future[Answer]]:
        """`count` chats at once, in the background."""
        return [self._clients.submit(self.chat, model, f"question {number}", **options) for number in range(count)]

    def background(self, work: Callable[..., T], *arguments: Any, **options: Any) -> Future[T]:
        return self._clients.submit(work, *arguments, **options)

    def stream(self, model: str, seconds: float, through: str = "") -> Stream:
        """A streamed chat that takes `seconds` once it began (a token every 20 ms)."""
        return Stream(self, through or f"{self.gateway}/{model}", model, seconds)

    # waiting

    def until(self, holds: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
        """Returns as soon as `holds()` is true; looks whenever an object changes. AssertionError at the deadline."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            seen = self.view.version
            result = holds()
            if result:
                return result
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"it did not come true within {seconds * PATIENCE:.0f} s that {what}")
            # 0.1 s: what is not an object, say the ledger, announces nothing
            self.view.wait(seen, min(left, 0.1))

    def never(self, holds: Callable[[], Any], what: str, seconds: float) -> None:
        """Fails as soon as `holds()` is true within `seconds` of real time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            seen = self.view.version
            assert not holds(), what
            self.view.wait(seen, min(left, 0.1))

    def leader(self) -> str:
        """Name of the controller pod that leads."""
        lease = self.kube.get(LEASES, "greenthread-controller", NAMESPACE)
        return str(lease["spec"].get("holderIdentity") or "")

    def events(self, model: str) -> list[Object]:
        """The Events of the present Model, oldest first."""
        uid = self.model(model)["metadata"]["uid"]
        found = [event for event in self.view.objects(EVENTS) if event["involvedObject"].get("uid") == uid]
        return sorted(found, key=lambda event: (event["lastTimestamp"], event["metadata"]["name"]))

    def picture(self) -> str:
        """The whole state for a person who reads a failure: GPUs, Models, pods, and the ends of their logs."""
        lines = ["GPUs"]
        for gpu in self.gpus():
            sizes = f"{short_bytes(gpu.total)}, foreign {short_bytes(gpu.foreign)}"
            lines.append(f"  {gpu.name}: {sizes}, lock {gpu.wake_lock and gpu.wake_lock.holder}")
            lines += [
                f"    {o.pod.name} {o.state} {short_bytes(o.reserved)} popular={o.popular} until={o.protected_until}"
                for o in gpu.occupants
            ]
            lines += [
                f"    waits: {i.pod.name} {short_bytes(i.requested)} {i.since} boot={i.boot} victims={i.victims}"
                for i in gpu.intents
            ]
        lines.append("Models")
        for model in self.view.objects(MODELS):
            conditions = (model.get("status") or {}).get("conditions")
            lines.append(f"  {model['metadata']['name']} {json.dumps(conditions)}")
        lines.append("Pods")
        for pod in self.view.objects(PODS):
            statuses = (pod.get("status") or {}).get("containerStatuses")
            lines.append(f"  {pod['metadata']['name']} {json.dumps(statuses)}")
            for container in pod["spec"]["containers"]:
                tail = self.log(pod, container["name"]).splitlines()[-12:]
                lines += [f"    {container['name']}| {line}" for line in tail]
        for node in self.nodes:
            file = self._node_folder(node).path / "supervisor.log"
            tail = file.read_text(errors="replace").splitlines()[-12:] if file.exists() else []
            lines += [f"  supervisor {node}| {line}" for line in tail]
        return "\n".join(lines)


class Stream:
    """A streamed chat under way. `first` is set when its first token came; `result()` waits for its end."""

    def __init__(self, cluster: Cluster, base: str, model: str, seconds: float) -> None:
        self.first = threading.Event()
        self.request_id = f"test-{uuid.uuid4().hex}"
        self.text = ""
        self.done = False
        self._cluster, self._base, self._model = cluster, base, model
        self._tokens = int(seconds * 1000 / float(FAST_ENGINE["GREENTHREAD_SIM_TOKEN_MS"]))
        self._future = cluster.background(self._run)

    def _run(self) -> str:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": "tell me a long story"}],
            "max_tokens": self._tokens,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"X-Request-Id": self.request_id}
        url = f"{self._base}/v1/chat/completions"
        timeout = httpx.Timeout(60 * PATIENCE)
        with httpx.Client(timeout=timeout) as client, client.stream("POST", url, json=body, headers=headers) as answer:
            if answer.status_code != 200:
                answer.read()
                raise AssertionError(f"the stream was answered with {answer.status_code}: {answer.text}")
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk, chunk
                    for choice in chunk["choices"]:
                        self.text += choice["delta"].get("content") or ""
                    if self.text:
                        self.first.set()
        return self.text

    def started(self) -> None:
        """Waits for the first token."""
        self._cluster.until(lambda: self.first.is_set() or self._future.done(), "the stream begins")
        if self._future.done():
            self._future.result()

    def result(self) -> str:
        """The whole text; raises what broke the stream."""
        return self._future.result(60 * PATIENCE)


def manifest(name: str, node: str, **spec: Any) -> Object:
    """A Model for one node, with the tests' fairness and sleep."""
    fairness, sleep = FAIRNESS | spec.pop("fairness", {}), SLEEP | spec.pop("sleep", {})
    return {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "modelName": f"tests/{name}-1b",
            "gpuMemoryUtilization": "0.45",
            "nodeSelector": {"kubernetes.io/hostname": node},
            "fairness": fairness,
            "sleep": sleep,
        }
        | spec,
    }


def results(futures: Sequence[Future[T]], seconds: float = 60) -> list[T]:
    """What background work returned."""
    return [future.result(seconds * PATIENCE) for future in futures]


def kill(pid: int | None) -> None:
    """SIGKILL."""
    assert pid, "there is no such process"
    os.kill(pid, signal.SIGKILL)


def _copy(pod: Object, suffix: str) -> Object:
    copied: Object = json.loads(json.dumps(pod))
    copied["metadata"]["name"] += suffix
    return copied


def _rights() -> str:
    """Accounts, roles and admission policies, as the chart installs them."""
    command = [str(need("helm")), "template", "greenthread", str(MANIFESTS / "charts" / "greenthread")]
    command += ["--namespace", NAMESPACE, "--set", f"modelNamespaces={{{TEAM}}}"]
    command += ["--kube-version", kubernetes_version()]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    docs = [doc for doc in yaml.safe_load_all(made) if doc]
    return yaml.safe_dump_all(doc for doc in docs if doc["kind"] in RIGHTS + POLICIES)
