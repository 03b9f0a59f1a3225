"""The programs that are measured, each a process (or more) bound to one core, before the same upstream."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.proxy_bed import configs, load, setup
from benchmarks.proxy_bed.subject import MODEL, Subject
from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.kube.resources import CRDS, ENDPOINT_SLICES, GPUS, MODELS, NAMESPACES, PODS
from greenthread.names import API_VERSION, DEFAULT_NAMESPACE
from greenthread.units import GIB
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.group import ProcessGroup
from tests.testbeds.programs import Missing

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

#: What the measured proxy does not share with the load and the upstream.
PROXY_CORE, OTHER_CORE = 1, 0

#: Seconds that the engine takes to wake in the storm: longer than all clients need to arrive.
WAKE_SECONDS = 3.0


class Bed:
    """All programs, running. `subjects` has those that could be had, ours and nginx always."""

    def __init__(self, peers: Sequence[str]) -> None:
        """`peers`: which of haproxy, aiohttp, starlette are wanted beside nginx."""
        self._wanted = tuple(peers)
        self.subjects: dict[str, Subject] = {}
        self.folder = Path()
        self.upstream = free_port()
        self._group: ProcessGroup | None = None

    @contextmanager
    def running(self) -> Iterator[Bed]:
        """Starts everything; the model of our sidecar is asleep."""
        with tempfile.TemporaryDirectory(prefix="greenthread-bench-") as folder, EmbeddedApi() as api:
            self.folder = Path(folder)
            self._group = ProcessGroup()
            try:
                self._start_ours(api)
                self._start_peers()
                yield self
            finally:
                self._group.stop()

    # the programs

    def _start(self, name: str, core: int, command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        assert self._group is not None
        variables = [f"{key}={value}" for key, value in (env or {}).items()]
        path = f"PYTHONPATH={ROOT}"
        self._group.start(
            name, ["taskset", "-c", str(core), "env", path, *variables, *command], self.folder / f"{name}.log"
        )
        return self._group.running[name].pid

    def log(self, name: str) -> str:
        """What a program wrote."""
        return (self.folder / f"{name}.log").read_text()

    def _start_ours(self, api: EmbeddedApi) -> None:
        (self.folder / "requests").write_bytes(load.requests_file())
        make_objects(Client(load_config(api.kubeconfig)), self.upstream)
        run_dir = self.folder / "run"
        run_dir.mkdir()
        (run_dir / "stopped-to-sleep").touch()  # as an earlier sidecar leaves an engine that it stopped
        pod = {"POD_NAMESPACE": DEFAULT_NAMESPACE, "POD_NAME": f"{MODEL}-0", "POD_UID": "", "RUN_DIR": str(run_dir)}
        api_env = {"KUBECONFIG": str(api.kubeconfig)}
        port = free_port()
        pid = self._start(
            "sidecar",
            PROXY_CORE,
            [sys.executable, "-m", "sidecar"],
            {
                **pod,
                **api_env,
                "MODEL_NAME": MODEL,
                "MODEL_NAMESPACE": DEFAULT_NAMESPACE,
                "NODE_NAME": "n",
                "GPU_INDICES": "0",
                "SIDECAR_HOST": "127.0.0.1",
                "HTTP_PORT": str(port),
                "ENGINE_PORT": str(self.upstream),
                "ENGINE_KIND": "command",
                "SERVING_MEMORY_PER_GPU": str(GIB),
            },
        )
        gate = (ROOT / "controller" / "gate.sh").read_text()
        engine = f"sleep {WAKE_SECONDS}; exec {setup.load_program()} {self.upstream} {self.folder}/requests"
        self._start("engine", OTHER_CORE, ["sh", "-c", gate, "gate", "sh", "-c", engine], pod)
        self._add("sidecar", port, pid)
        port = free_port()
        pid = self._start("gateway", PROXY_CORE, [sys.executable, "-m", "gateway"], {**api_env, "HTTP_PORT": str(port)})
        self._add("gateway", port, pid)
        until(lambda: get(port, "/health") == 200, "the gateway is ready")
        until(lambda: self.status()["state"] == "sleeping" and self.status()["bootReady"], "the model sleeps")

    def _start_peers(self) -> None:
        folder = str(self.folder)
        nginx = setup.program("nginx")
        port = free_port()
        config = self._write("peer.conf", configs.nginx_peer(folder, port, self.upstream))
        master = self._start("nginx", PROXY_CORE, [nginx, "-c", config, "-p", folder])
        until(lambda: bool(children(master)), "nginx has a worker")
        self._add("nginx", port, children(master)[0])
        for name in self._wanted:
            port = free_port()
            try:
                if name == "haproxy":
                    config = self._write("haproxy.cfg", configs.haproxy_peer(port, self.upstream))
                    command = [setup.program("haproxy"), "-db", "-f", config]
                else:
                    script = str(HERE / f"peer_{name}.py")
                    command = [setup.python_with_peers(), script, str(port), str(self.upstream)]
            except Missing as missing:
                print(f"{name} is left out: {missing}", file=sys.stderr)
                continue
            self._add(name, port, self._start(name, PROXY_CORE, command))

    def _write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def _add(self, name: str, port: int, pid: int) -> None:
        try:
            until(lambda: listens(port), f"{name} listens")
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self.log(name)}") from None
        self.subjects[name] = Subject(name, port, pid)

    # our sidecar

    def status(self) -> dict[str, Any]:
        """What our sidecar says of itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.subjects["sidecar"].port, timeout=30)
        connection.request("GET", "/status")
        found = dict(json.loads(connection.getresponse().read()))
        connection.close()
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric of our sidecar."""
        connection = http.client.HTTPConnection("127.0.0.1", self.subjects["sidecar"].port, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        lines = [line.rpartition(" ") for line in text.splitlines() if line.partition(" ")[0].partition("{")[0] == name]
        return sum(float(value) for _, _, value in lines)


def make_objects(kube: Client, engine_port: int) -> None:
    """The objects for one model on one GPU: the sidecar claims there, the gateway goes straight to the engine."""
    for path in sorted((ROOT / "manifests" / "crds").glob("*.yaml")):
        kube.create(CRDS, yaml.safe_load(path.read_text()))
    until(lambda: _can_list(kube), "the API knows Models and GPUs")
    kube.create(NAMESPACES, {"metadata": {"name": DEFAULT_NAMESPACE}})
    meta = {"name": MODEL, "namespace": DEFAULT_NAMESPACE}
    spec = {"modelName": f"test/{MODEL}", "sleep": {"idleTimeout": "0s"}}
    kube.create(MODELS, {"apiVersion": API_VERSION, "kind": "Model", "metadata": meta, "spec": spec})
    gpu = {"name": "n-0", "namespace": DEFAULT_NAMESPACE}
    kube.create(GPUS, {"apiVersion": API_VERSION, "kind": "GPU", "metadata": gpu})
    status = {
        "node": "n", "index": 0, "uuid": "GPU-0", "product": "None", "totalMemoryBytes": 96 * GIB,
        "availableMemoryBytes": 96 * GIB, "foreignMemoryBytes": 0, "occupants": [], "preemptionIntents": [],
    }  # fmt: skip
    kube.patch(GPUS, "n-0", {"status": status}, DEFAULT_NAMESPACE, "status")
    pod = {"name": f"{MODEL}-0", "namespace": DEFAULT_NAMESPACE}
    containers = [{"name": "sidecar", "image": "sidecar"}]
    kube.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": {"containers": containers}})
    kube.create(
        ENDPOINT_SLICES,
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": MODEL,
                "namespace": DEFAULT_NAMESPACE,
                "labels": {"kubernetes.io/service-name": MODEL},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["127.0.0.1"],
                    "conditions": {"ready": True},
                    "targetRef": {"kind": "Pod", "namespace": DEFAULT_NAMESPACE, "name": f"{MODEL}-0"},
                }
            ],
            "ports": [{"name": "http", "port": engine_port, "protocol": "TCP"}],
        },
    )


def _can_list(kube: Client) -> bool:
    try:
        kube.list(GPUS)
        kube.list(MODELS)
    except Exception:
        return False
    return True


def free_port() -> int:
    """A port of 127.0.0.1 that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(port: int, path: str) -> int:
    """Status of a GET; 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def children(pid: int) -> list[int]:
    """Pids of a process's children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Waits for a condition; TimeoutError that names it."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"it did not come true within {seconds:.0f} s that {what}")
        time.sleep(0.02)


def cores() -> set[int]:
    """Which cores this process may use."""
    return os.sched_getaffinity(0)
