"""The supervisor runs real processes for pods, on the embedded API and on a real kube-apiserver."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from greenthread.kube.aio import AsyncClient
from greenthread.kube.config import load_config
from greenthread.kube.core import Object
from greenthread.kube.errors import NotFound
from greenthread.kube.resources import CONFIG_MAPS, ENDPOINT_SLICES, LEASES, NODES, PODS, SECRETS, SERVICES, Resource
from localcluster.api.core import Api
from localcluster.api.inprocess import InProcess
from localcluster.api.pods import log_folder
from localcluster.api.storage import Store
from localcluster.supervisor.leftovers import in_session, read_stat
from localcluster.supervisor.settings import Image, Settings
from localcluster.supervisor.supervisor import Supervisor
from tests.testbeds.kube import RealApi, own_address
from tests.testbeds.programs import Missing, skip_or_fail

pytestmark = pytest.mark.processes

NAMESPACE = "default"

# answers 200 with its environment, or 503 while the file `sick` lies in RUN_DIR
WEB = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sick = os.path.exists(os.path.join(os.environ.get("RUN_DIR", "/"), "sick"))
        self.send_response(503 if sick else 200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())
    def log_message(self, *_): pass
print("serving", flush=True)
http.server.ThreadingHTTPServer(("", int(os.environ["HTTP_PORT"])), Handler).serve_forever()
"""


class Bed:
    """One API with supervisors on it."""

    def __init__(self, client: AsyncClient, folder: Path, address: str) -> None:
        self.client = client
        self.settings = Settings(
            node="node-a",
            state=folder / "state",
            logs=folder / "logs",
            images={"web": Image((sys.executable, "-c", WEB), {"FROM_IMAGE": "yes"})},
            address=address,
            backoff=0.05,
        )

    @asynccontextmanager
    async def supervisor(self) -> AsyncIterator[Supervisor]:
        supervisor = Supervisor(self.client, self.settings)
        task = asyncio.create_task(supervisor.run())
        await supervisor.synced()
        yield supervisor
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def run(
        self, *containers: Object, name: str = "web-0", labels: dict[str, str] | None = None, **spec: Any
    ) -> str:
        """Create a pod; its name."""
        metadata = {"name": name, "labels": labels or {"app": "web"}}
        fields = {"terminationGracePeriodSeconds": 5} | spec
        await self.client.create(
            PODS, {"metadata": metadata, "spec": {"containers": [*containers]} | fields}, NAMESPACE
        )
        return name

    async def until(
        self, holds: Callable[[Object], Any], name: str = "web-0", resource: Resource = PODS, seconds: float = 15
    ) -> Object:
        """The object once it is as wanted, told by a watch."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    found = await self.client.list(resource, NAMESPACE, field_selector=f"metadata.name={name}")
                    if found.items and holds(found.items[0]):
                        return found.items[0]
                    watch = self.client.watch(resource, NAMESPACE, resource_version=found.resource_version)
                    async for event in watch:
                        if event.object.get("metadata", {}).get("name") == name and holds(event.object):
                            return event.object
                        if event.type == "DELETED":
                            break
        except TimeoutError:
            now = (await self.client.list(resource, NAMESPACE, field_selector=f"metadata.name={name}")).items
            raise AssertionError(f"{resource.kind} {name} did not become as wanted: {now}") from None

    async def until_gone(self, name: str = "web-0", resource: Resource = PODS, seconds: float = 15) -> None:
        async with asyncio.timeout(seconds):
            while True:
                found = await self.client.list(resource, NAMESPACE)
                if all(item["metadata"]["name"] != name for item in found.items):
                    return
                async for event in self.client.watch(resource, NAMESPACE, resource_version=found.resource_version):
                    if event.type == "DELETED" and event.object["metadata"]["name"] == name:
                        return

    async def log(self, pod: Object, container: str, end: str) -> str:
        """The log of a container's first life, once it ends as wanted (or after 5 s, however it is then)."""
        meta = pod["metadata"]
        file = self.settings.logs / f"{meta['namespace']}_{meta['name']}_{meta['uid']}" / container / "0.log"
        for _ in range(250):
            if file.read_text().endswith(end):
                break
            await asyncio.sleep(0.02)
        return file.read_text()


@pytest.fixture(scope="module")
def real_api() -> Any:
    try:
        with RealApi() as api:
            yield api
    except Missing as missing:
        skip_or_fail(missing)


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.real)])
async def bed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bed]:
    if request.param == "real":
        client = AsyncClient(load_config(request.getfixturevalue("real_api").kubeconfig))
        address = own_address()
    else:
        client = AsyncClient(InProcess(Api(Store(":memory:"), logs=log_folder(tmp_path / "logs"))))
        address = "127.0.0.1"
    yield Bed(client, tmp_path, address)
    for resource in (PODS, SERVICES, SECRETS, CONFIG_MAPS, ENDPOINT_SLICES):
        for item in (await client.list(resource, NAMESPACE)).items:
            if item["metadata"]["name"] != "kubernetes":
                await client.delete(resource, item["metadata"]["name"], NAMESPACE, grace_seconds=0)
    await client.close()


def web(**fields: Any) -> Object:
    """A container that serves its environment."""
    port = {"name": "HTTP_PORT", "value": "8080"}
    fields["env"] = [port, *fields.get("env", [])]
    return {"name": "web", "image": "web", "ports": [{"name": "http", "containerPort": 8080}]} | fields


def shell(script: str, name: str = "main", **fields: Any) -> Object:
    return {"name": name, "image": "none", "command": ["sh", "-c", script]} | fields


def container(pod: Object, number: int = 0) -> Object:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return statuses[number] if len(statuses) > number else {"state": {}, "restartCount": 0}


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def pid_of(pod: Object, number: int = 0) -> int:
    return int(container(pod, number)["containerID"].removeprefix("process://"))


def is_alive(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state != "Z"


async def eventually(holds: Callable[[], bool]) -> None:
    """For what no API tells."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.02)
    assert holds()


async def ask(bed: Bed, port: int) -> tuple[int, str]:
    def blocking() -> tuple[int, str]:
        connection = http.client.HTTPConnection(bed.settings.address, port, timeout=5)
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    return await asyncio.to_thread(blocking)


async def test_an_unscheduled_pod_is_taken_runs_and_becomes_ready(bed: Bed) -> None:
    async with bed.supervisor():
        await bed.run(web(readinessProbe={"httpGet": {"port": "http"}, "periodSeconds": 1}))
        pod = await bed.until(is_ready)
        assert pod["spec"]["nodeName"] == "node-a"
        assert pod["status"]["phase"] == "Running"
        assert pod["status"]["podIP"] == bed.settings.address
        assert container(pod)["ready"] is True
        status, environment = await ask(bed, _ports(pod)["http"])
        assert status == 200
        assert '"FROM_IMAGE": "yes"' in environment
        assert await bed.log(pod, "web", "\n") == "serving\n"


def _ports(pod: Object) -> dict[str, int]:
    import json

    ports: dict[str, int] = json.loads(pod["metadata"]["annotations"]["greenthread.ai/ports"])
    return ports


async def test_the_node_is_registered_and_its_lease_held(bed: Bed) -> None:
    async with bed.supervisor():
        async with asyncio.timeout(10):
            while True:
                try:
                    lease = await bed.client.get(LEASES, "node-a", "kube-node-lease")
                    break
                except NotFound:
                    await asyncio.sleep(0.05)
        assert lease["spec"]["holderIdentity"] == "node-a"
        node = await bed.client.get(NODES, "node-a")
        assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "node-a"
        conditions = {condition["type"]: condition["status"] for condition in node["status"]["conditions"]}
        assert conditions["Ready"] == "True"


async def test_pods_of_other_nodes_are_left_alone(bed: Bed) -> None:
    async with bed.supervisor():
        await bed.run(shell("sleep 60"), name="elsewhere", nodeName="node-b")
        await bed.run(shell("sleep 60"), name="picky", nodeSelector={"gpu": "h100"})
        await bed.run(shell("sleep 60"), name="mine", nodeSelector={"kubernetes.io/hostname": "node-a"})
        await bed.until(is_ready, "mine")
        assert "containerStatuses" not in (await bed.client.get(PODS, "elsewhere", NAMESPACE)).get("status", {})
        assert not (await bed.client.get(PODS, "picky", NAMESPACE))["spec"].get("nodeName")


async def test_environment_from_secret_config_map_and_fields(bed: Bed) -> None:
    await bed.client.create(SECRETS, {"metadata": {"name": "hf"}, "stringData": {"token": "s3cret"}}, NAMESPACE)
    await bed.client.create(CONFIG_MAPS, {"metadata": {"name": "conf"}, "data": {"mode": "fast"}}, NAMESPACE)
    env = [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "mode"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "RUN_DIR", "value": "/run/x"},
    ]
    async with bed.supervisor():
        await bed.run(
            shell(
                'echo "$TOKEN $MODE $POD $1"; echo hi > "$RUN_DIR/file"; sleep 60',
                env=env,
                args=["x", "$(MODE)er"],
                volumeMounts=[{"name": "run", "mountPath": "/run/x"}],
            ),
            shell('until [ -s "$RUN_DIR/file" ]; do sleep 0.02; done; echo found; sleep 60', "reader", env=env,
                  volumeMounts=[{"name": "run", "mountPath": "/run/x"}],
                  readinessProbe={"exec": {"command": ["sh", "-c", 'test -s "$RUN_DIR/file"']}, "periodSeconds": 1}),
            volumes=[{"name": "run", "emptyDir": {}}],
        )  # fmt: skip
        pod = await bed.until(is_ready)
        assert await bed.log(pod, "main", "\n") == "s3cret fast web-0 faster\n"


async def test_a_missing_secret_is_told_and_made_good(bed: Bed) -> None:
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "late", "key": "token"}}}]
    async with bed.supervisor():
        await bed.run(shell('echo "$TOKEN"; sleep 60', env=env))
        pod = await bed.until(lambda pod: container(pod)["state"].get("waiting", {}).get("message"))
        waiting = container(pod)["state"]["waiting"]
        assert waiting["reason"] == "CreateContainerConfigError"
        assert "Secret 'late'" in waiting["message"]
        await bed.client.create(SECRETS, {"metadata": {"name": "late"}, "stringData": {"token": "now"}}, NAMESPACE)
        assert await bed.log(await bed.until(is_ready), "main", "\n") == "now\n"


async def test_a_crash_restarts_with_backoff_and_tells_how_it_ended(bed: Bed) -> None:
    async with bed.supervisor():
        await bed.run(
            shell("echo boom; exit 3", terminationMessagePolicy="FallbackToLogsOnError"), shell("sleep 60", "calm")
        )
        pod = await bed.until(lambda pod: container(pod)["restartCount"] >= 3)
        last = container(pod)["lastState"]["terminated"]
        assert (last["exitCode"], last["reason"], last["message"]) == (3, "Error", "boom")
        assert container(pod, 1)["restartCount"] == 0


async def test_one_crash_is_no_crash_loop(bed: Bed, tmp_path: Path) -> None:
    """As with kubelets: the controller takes a loop for a Model that has failed, and clients are told so."""
    seen: set[str] = set()

    def back(pod: Object) -> bool:
        seen.add(container(pod)["state"].get("waiting", {}).get("reason", ""))
        return is_ready(pod) and container(pod)["restartCount"] == 1

    async with bed.supervisor():
        await bed.run(shell(f"if mkdir {tmp_path}/once; then sleep 0.2; exit 3; fi; sleep 60"))
        pod = await bed.until(back)
        assert container(pod)["lastState"]["terminated"]["exitCode"] == 3
        assert "CrashLoopBackOff" not in seen


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (7, "Failed")])
async def test_a_pod_that_never_restarts_ends(bed: Bed, code: int, phase: str) -> None:
    async with bed.supervisor():
        await bed.run(shell(f"exit {code}"), restartPolicy="Never")
        pod = await bed.until(lambda pod: pod["status"].get("phase") == phase)
        assert container(pod)["state"]["terminated"]["exitCode"] == code
        assert container(pod)["restartCount"] == 0


async def test_init_containers_run_first_and_in_order(bed: Bed) -> None:
    mounts = {"volumeMounts": [{"name": "run", "mountPath": "/r"}], "env": [{"name": "R", "value": "/r"}]}
    async with bed.supervisor():
        await bed.run(
            shell('cat "$R/order"; sleep 60', **mounts),
            initContainers=[
                shell('sleep 0.1; echo one >> "$R/order"', "first", **mounts),
                shell('echo two >> "$R/order"', "second", **mounts),
            ],
            volumes=[{"name": "run", "emptyDir": {}}],
        )
        pod = await bed.until(is_ready)
        assert await bed.log(pod, "main", "two\n") == "one\ntwo\n"


async def test_readiness_comes_and_goes_and_so_do_the_endpoints(bed: Bed) -> None:
    spec = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    await bed.client.create(SERVICES, {"metadata": {"name": "shop"}, "spec": spec}, NAMESPACE)
    async with bed.supervisor():
        await bed.run(
            web(
                env=[{"name": "RUN_DIR", "value": "/r"}],
                volumeMounts=[{"name": "run", "mountPath": "/r"}],
                readinessProbe={"httpGet": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 1},
            ),
            volumes=[{"name": "run", "emptyDir": {}}],
        )

        def serves(ready: bool) -> Callable[[Object], bool]:
            return lambda found: found["endpoints"][0]["conditions"]["ready"] is ready

        slice_ = await bed.until(serves(True), "shop-web-0", ENDPOINT_SLICES)
        pod = await bed.until(is_ready)
        assert slice_["endpoints"][0]["addresses"] == [bed.settings.address]
        assert slice_["ports"][0]["port"] == _ports(pod)["http"]
        assert slice_["metadata"]["labels"]["kubernetes.io/service-name"] == "shop"

        sick = bed.settings.state / "pods" / pod["metadata"]["uid"] / "volumes" / "run" / "sick"
        sick.touch()
        await bed.until(serves(False), "shop-web-0", ENDPOINT_SLICES)
        assert not is_ready(await bed.until(lambda pod: not is_ready(pod)))
        sick.unlink()
        await bed.until(serves(True), "shop-web-0", ENDPOINT_SLICES)

        await bed.client.delete(PODS, "web-0", NAMESPACE)
        await bed.until_gone("shop-web-0", ENDPOINT_SLICES)


async def test_a_failed_liveness_probe_restarts_the_container(bed: Bed) -> None:
    probe = {"exec": {"command": ["sh", "-c", "exit 1"]}, "periodSeconds": 1, "failureThreshold": 2}
    async with bed.supervisor():
        await bed.run(shell("sleep 60", livenessProbe=probe))
        pod = await bed.until(lambda pod: container(pod)["restartCount"] >= 1)
        assert "liveness probe failed" in container(pod)["lastState"]["terminated"]["message"]


async def test_the_startup_probe_holds_the_others_back(bed: Bed) -> None:
    mounts = {"volumeMounts": [{"name": "run", "mountPath": "/r"}], "env": [{"name": "R", "value": "/r"}]}
    async with bed.supervisor():
        await bed.run(
            shell(
                'sleep 0.5; touch "$R/up"; sleep 60',
                startupProbe={
                    "exec": {"command": ["sh", "-c", 'test -e "$R/up"']},
                    "periodSeconds": 1,
                    "failureThreshold": 9,
                },
                livenessProbe={
                    "exec": {"command": ["sh", "-c", 'test -e "$R/up"']},
                    "periodSeconds": 1,
                    "failureThreshold": 1,
                },
                **mounts,
            ),
            volumes=[{"name": "run", "emptyDir": {}}],
        )
        pod = await bed.until(is_ready)
        assert container(pod)["restartCount"] == 0


async def test_deletion_gives_grace_then_kills_and_frees_everything(bed: Bed) -> None:
    async with bed.supervisor():
        polite = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done", "polite")
        stubborn = shell("trap '' TERM; echo up; sleep 60 & wait; sleep 60", "stubborn")
        await bed.run(polite, stubborn, terminationGracePeriodSeconds=1)
        pod = await bed.until(is_ready)
        assert await bed.log(pod, "polite", "up\n") == "up\n"
        assert await bed.log(pod, "stubborn", "up\n") == "up\n"
        folder = bed.settings.state / "pods" / pod["metadata"]["uid"]
        began = asyncio.get_running_loop().time()
        await bed.client.delete(PODS, "web-0", NAMESPACE)
        await bed.until_gone()
        assert 0.9 <= asyncio.get_running_loop().time() - began < 10  # the grace is 1 s; machines are busy
        assert await bed.log(pod, "polite", "bye\n") == "up\nbye\n"
        assert in_session(pid_of(pod, 0)) == in_session(pid_of(pod, 1)) == []
        await eventually(lambda: not folder.exists())


async def test_the_end_of_the_supervisor_stops_processes_and_keeps_objects(bed: Bed) -> None:
    async with bed.supervisor():
        await bed.run(shell("sleep 60 & sleep 60"))
        pod = await bed.until(is_ready)
        assert is_alive(pid_of(pod))
    assert in_session(pid_of(pod)) == []
    assert not (await bed.client.get(PODS, "web-0", NAMESPACE))["metadata"].get("deletionTimestamp")


async def test_a_new_supervisor_starts_the_pods_anew(bed: Bed) -> None:
    async with bed.supervisor():
        await bed.run(web(), name="web-0")
        await bed.run(shell("exit 0"), name="done", restartPolicy="Never")
        first = await bed.until(is_ready)
        await bed.until(lambda pod: pod["status"].get("phase") == "Succeeded", "done")
    async with bed.supervisor():
        again = await bed.until(lambda pod: container(pod)["restartCount"] == 1 and is_ready(pod))
        assert again["metadata"]["uid"] == first["metadata"]["uid"]
        assert _ports(again) == _ports(first)
        assert pid_of(again) != pid_of(first)
        assert container(again)["lastState"]["terminated"]["exitCode"] == 137
        done = await bed.client.get(PODS, "done", NAMESPACE)
        assert (done["status"]["phase"], container(done)["restartCount"]) == ("Succeeded", 0)


async def test_a_pod_deleted_while_no_supervisor_ran_goes_with_the_next(bed: Bed) -> None:
    async with bed.supervisor():
        await bed.run(shell("sleep 60"))
        await bed.until(is_ready)
    await bed.client.delete(PODS, "web-0", NAMESPACE)
    assert (await bed.client.get(PODS, "web-0", NAMESPACE))["metadata"]["deletionTimestamp"]
    async with bed.supervisor():
        await bed.until_gone()


async def test_what_cannot_run_is_told_in_the_pods_status(bed: Bed) -> None:
    async with bed.supervisor():
        await bed.run({"name": "main", "image": "nobody/knows"}, name="image")
        await bed.run(shell("true", command=["/no/such/program"]), name="program")
        await bed.run(shell("true"), name="volume", volumes=[{"name": "v", "secret": {"secretName": "s"}}])

        def reason(pod: Object) -> str:
            return str(container(pod)["state"].get("waiting", {}).get("message", ""))

        assert "no image 'nobody/knows'" in reason(await bed.until(reason, "image"))
        assert "was not found" in reason(await bed.until(reason, "program"))
        assert "secret is not supported" in reason(await bed.until(reason, "volume"))


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)


async def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """The whole program, with SIGKILL: its containers, and what they started, are gone."""
    folder = tmp_path / "api"
    api = _start("localcluster.api", "--state-dir", str(folder))
    arguments = ["--kubeconfig", str(folder / "kubeconfig"), "--node", "node-a", "--state", str(tmp_path / "state")]
    supervisor = None
    try:
        assert api.stdout is not None
        assert (await asyncio.to_thread(api.stdout.readline)).startswith("ready")
        async with AsyncClient(load_config(folder / "kubeconfig")) as client:
            bed = Bed(client, tmp_path, "127.0.0.1")
            await bed.run(shell("sleep 60 & sleep 60"))
            supervisor = _start("localcluster.supervisor", *arguments)
            pid = pid_of(await bed.until(is_ready))
            os.kill(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
            await eventually(lambda: not in_session(pid))
    finally:
        for process in (supervisor, api):
            if process is not None:
                process.kill()
                process.wait()
