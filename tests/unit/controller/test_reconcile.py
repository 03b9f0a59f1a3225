"""From a Model to its pods, Service and status, and back: the reconciler against the embedded API."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest

from controller.core import SETTLE
from controller.settings import PodSettings
from greenthread.kube.errors import NotFound
from greenthread.kube.resources import CRDS, GPUS, HTTP_ROUTES, MODELS, NODES, PODS, SERVICES
from tests.virtual import run

from .builders import GIB, NAMESPACE, make_gpu, make_model
from .world import SETTINGS, World, world


def in_world(main: Any, nodes: dict[str, int] | None = None, settings: Any = SETTINGS) -> None:
    async def outer() -> None:
        async with world(nodes, settings) as here:
            await main(here)

    run(outer())


async def spec(here: World, name: str = "m", **change: Any) -> None:
    await here.client.patch(MODELS, name, {"spec": change}, "team")
    await here.settle()


def test_a_model_gets_a_pod_a_service_a_finalizer_and_a_status() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        (pod,) = await here.pods()
        assert pod["metadata"]["annotations"]["greenthread.ai/gpus"] == "0"
        service = await here.client.get(SERVICES, "m", "team")
        assert service["spec"]["ports"][0]["targetPort"] == "http"
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        model = await here.model()
        assert model["metadata"]["finalizers"] == ["greenthread.ai/drain"]
        assert model["metadata"].get("annotations", {}) == {}
        assert model["status"]["phase"] == "Pending"
        assert model["status"]["url"] == "http://gw/m/v1"
        assert model["status"]["observedGeneration"] == 1
        assert (await here.condition())[0] == "False"
        await here.run_pods()
        assert (await here.condition())[0] == "True"
        assert (await here.model())["status"]["phase"] == "Ready"
        events = await here.events()
        assert any(event.startswith("PodCreated: pod m-0-") for event in events)
        assert any(event.startswith("Ready: ") for event in events)

    in_world(main)


def test_events_tell_a_start_once_each_and_leave_the_end_of_the_boot_to_its_sidecar() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        (pod,) = await here.pods()
        await here.occupy(pod, "node-a-0", "converting", 80 * GIB)
        await here.occupy(pod, "node-a-0", "deactivating", 80 * GIB)
        assert (await here.model())["status"]["phase"] == "Staging"
        await here.occupy(pod, "node-a-0", "sleeping", 0)
        await here.run_pods()
        assert sorted(event.partition(":")[0] for event in await here.events()) == ["Converting", "PodCreated", "Ready"]

    in_world(main)


def test_nothing_is_written_while_nothing_changes() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        await here.run_pods()
        await here.settle(10)
        before = dict(here.line._transport.requests)  # type: ignore[attr-defined]
        await here.settle(300)
        assert here.line._transport.requests == before  # type: ignore[attr-defined]

    in_world(main)


def test_models_spread_over_the_gpus_and_replicas_get_their_own() -> None:
    async def main(here: World) -> None:
        for name in "abc":
            await make_model(here.client, name)
        await make_model(here.client, "d", replicas=2, tensorParallelSize=2)
        await here.settle()
        places = [
            pod["metadata"]["annotations"]["greenthread.ai/gpus"] for name in "abc" for pod in await here.pods(name)
        ]
        assert sorted(places) == ["0", "1", "2"]
        blocks = [pod["metadata"]["annotations"]["greenthread.ai/gpus"] for pod in await here.pods("d")]
        assert sorted(blocks) in (["0,1", "2,3"], ["2,3", "0,1"])

    in_world(main, {"node-a": 4})


def test_a_changed_spec_replaces_the_pod_when_its_successor_is_ready() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        await here.run_pods()
        (old,) = await here.pod_names()
        await spec(here, dtype="float16")
        both = await here.pod_names()
        assert len(both) == 2
        assert old in both
        assert (await here.condition())[0] == "True"
        assert (await here.condition("UpToDate"))[:2] == ("False", "Replacing")
        (new,) = set(both) - {old}
        for pod in await here.pods():
            if pod["metadata"]["name"] == new:
                await here.bind(pod)
                await here.set_status(pod, phase="Running", conditions=[{"type": "Ready", "status": "True"}])
        await here.settle()
        going = [pod for pod in await here.pods() if pod["metadata"].get("deletionTimestamp")]
        assert [pod["metadata"]["name"] for pod in going] == [old]
        await here.end_pods()
        assert await here.pod_names() == [new]
        assert (await here.condition("UpToDate"))[0] == "True"

    in_world(main)


def test_live_parts_of_the_spec_replace_nothing() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        before = await here.pods()
        await spec(here, fairness={"popular": True}, sleep={"idleTimeout": "1h"}, staging={"pinned": True})
        assert await here.pods() == before
        assert (await here.model())["status"]["observedGeneration"] == 2
        assert (await here.model())["status"]["distribution"]["stagingTier"] == "system"

    in_world(main)


def test_replicas_go_up_and_down() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await spec(here, replicas=3)
        assert [name[:3] for name in await here.pod_names()] == ["m-0", "m-1", "m-2"]
        await spec(here, replicas=1)
        assert [name[:3] for name in await here.pod_names()] == ["m-0"]
        await spec(here, replicas=0)
        assert await here.pod_names() == []
        assert (await here.condition())[1] == "NoReplicas"

    in_world(main)


def test_a_failed_pod_is_replaced_and_the_pause_grows() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        pauses = []
        for _ in range(4):
            (pod,) = await here.pods()
            await here.bind(pod)
            await here.set_status(pod, phase="Failed", reason="Evicted", message="the node was low on memory")
            began = asyncio.get_running_loop().time()
            while not await here.pods() or (await here.pods())[0]["metadata"]["uid"] == pod["metadata"]["uid"]:
                await here.settle(0.25)
            pauses.append(asyncio.get_running_loop().time() - began)
        assert pauses == sorted(pauses)
        assert pauses[0] < 2.5
        assert pauses[-1] >= 8
        assert any("Evicted: the node was low on memory" in event for event in await here.events())

    in_world(main)


def test_pods_of_a_lost_node_move() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        (pod,) = await here.pods()
        node = pod["spec"]["nodeSelector"]["kubernetes.io/hostname"]
        await here.client.delete(GPUS, f"{node}-0", NAMESPACE)  # as its owner reference makes it go
        await here.client.delete(NODES, node)
        await here.settle(60)
        (moved,) = await here.pods()
        assert moved["spec"]["nodeSelector"]["kubernetes.io/hostname"] != node

    in_world(main, {"node-a": 1, "node-b": 1})


def test_a_place_that_cannot_be_found_is_told_and_found_when_there_is_one() -> None:
    async def main(here: World) -> None:
        await make_model(here.client, tensorParallelSize=4)
        await here.settle()
        assert await here.pods() == []
        assert (await here.condition()) == (
            "False",
            "Unschedulable",
            "replica 0: needs 4 neighbouring GPUs on one node; node-a has 2",
        )
        told = [event for event in await here.events() if event.startswith("Unschedulable")]
        assert len(told) == 1
        for index in (2, 3):
            await make_gpu(here.client, "node-a", index)
        await here.settle()
        assert len(await here.pods()) == 1

    in_world(main)


def test_node_selectors_taints_and_cordons_are_obeyed() -> None:
    async def main(here: World) -> None:
        await here.client.patch(NODES, "node-a", {"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}})
        await here.client.patch(NODES, "node-b", {"spec": {"unschedulable": True}})
        await make_model(here.client)
        await make_model(here.client, "n", nodeSelector={"disk": "nvme"}, tolerations=[{"operator": "Exists"}])
        await make_model(here.client, "t", tolerations=[{"key": "gpu", "operator": "Exists"}])
        await here.settle()
        reason = (await here.condition())[2]
        assert "node-a has the taint gpu:NoSchedule" in reason
        assert "node-b is cordoned" in reason
        assert "node-a does not have the label disk=nvme" in (await here.condition(name="n"))[2]
        (pod,) = await here.pods("t")
        assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "node-a"}
        await here.client.patch(NODES, "node-b", {"spec": {"unschedulable": None}})
        await here.settle(60)  # nodes are not watched
        assert len(await here.pods()) == 1

    in_world(main, {"node-a": 1, "node-b": 1})


def test_a_gpu_that_its_agent_calls_faulty_gets_no_new_pods() -> None:
    async def main(here: World) -> None:
        fault = {"metadata": {"annotations": {"greenthread.ai/fault": "NVML: GPU is lost"}}}
        await here.client.patch(GPUS, "node-a-0", fault, NAMESPACE)
        await make_model(here.client)
        await here.settle()
        (pod,) = await here.pods()
        assert pod["metadata"]["annotations"]["greenthread.ai/gpus"] == "1"

    in_world(main)


def test_measured_memory_is_shown_and_handed_to_the_next_pod_of_the_same_template() -> None:
    def known(pod: dict[str, Any]) -> str | None:
        env = pod["spec"]["containers"][0]["env"]
        return next((entry["value"] for entry in env if entry["name"] == "SERVING_MEMORY_PER_GPU"), None)

    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        (pod,) = await here.pods()
        assert known(pod) is None
        measured = {"metadata": {"annotations": {"greenthread.ai/serving-memory-per-gpu": str(88 * GIB)}}}
        await here.client.patch(PODS, pod["metadata"]["name"], measured, "team")
        await here.settle()
        assert (await here.model())["status"]["servingMemoryPerGPU"] == 88 * GIB
        assert (await here.model())["status"]["memory"]["servingHuman"] == "88.0 GiB"
        await here.client.delete(PODS, pod["metadata"]["name"], "team")
        await here.settle(5)
        (again,) = await here.pods()
        assert again["metadata"]["uid"] != pod["metadata"]["uid"]
        assert known(again) == str(88 * GIB)
        await spec(here, dtype="float16")
        assert [known(pod) for pod in await here.pods()] == [None]

    in_world(main)


def test_a_deletion_drains_then_frees_then_lets_go() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        await here.run_pods()
        (pod,) = await here.pods()
        await here.occupy(pod, "node-a-0", "converting", 80 * GIB)
        await here.client.delete(MODELS, "m", "team")
        await here.settle()
        assert (await here.pods())[0]["metadata"]["deletionTimestamp"]
        assert (await here.condition())[1] == "Deleting"
        assert "waits for its pods to end" in (await here.condition())[2]
        await here.end_pods()
        assert await here.pods() == []
        assert "80.0G on node-a/0" in (await here.condition())[2]
        await here.occupy(pod, "node-a-0", "sleeping", 0)
        with pytest.raises(NotFound):
            await here.model()
        with pytest.raises(NotFound):  # its owner reference
            await here.client.get(SERVICES, "m", "team")

    in_world(main)


def test_a_service_of_somebody_else_is_left_alone_and_told() -> None:
    async def main(here: World) -> None:
        port = {"ports": [{"port": 80}]}
        theirs = await here.client.create(SERVICES, {"metadata": {"name": "m"}, "spec": port}, "team")
        await make_model(here.client)
        await here.settle()
        status, reason, message = await here.condition("Addressed")
        assert (status, reason) == ("False", "NameTaken")
        assert "team/m" in message
        assert len(await here.pods()) == 1
        assert await here.client.get(SERVICES, "m", "team") == theirs
        await here.client.delete(SERVICES, "m", "team")
        await here.settle(60)
        assert (await here.condition("Addressed"))[0] == "True"

    in_world(main)


def test_of_two_models_of_one_name_the_older_has_the_short_address() -> None:
    async def main(here: World) -> None:
        await make_model(here.client, "m", "other")
        await here.settle(2)
        await make_model(here.client, "m", "team")
        await here.settle()
        assert (await here.model("m", "other"))["status"]["url"] == "http://gw/m/v1"
        assert (await here.model("m", "team"))["status"]["url"] == "http://gw/team/m/v1"
        status, reason, message = await here.condition("Addressed")
        assert (status, reason) == ("False", "NameShared")
        assert "other/m is older" in message
        await here.client.delete(MODELS, "m", "other")
        await here.settle(2)
        assert (await here.model("m", "team"))["status"]["url"] == "http://gw/m/v1"
        assert (await here.condition("Addressed"))[0] == "True"

    in_world(main)


def test_a_damaged_service_and_a_deleted_one_are_mended() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        damage = {"spec": {"selector": {"app": "other"}}}
        await here.client.patch(SERVICES, "m", damage, "team")
        await here.settle()
        selector = (await here.client.get(SERVICES, "m", "team"))["spec"]["selector"]
        assert selector == {"app.kubernetes.io/name": "greenthread-model", "greenthread.ai/model": "m"}
        await here.client.delete(SERVICES, "m", "team")
        await here.settle()
        await here.client.get(SERVICES, "m", "team")

    in_world(main)


ROUTE_CRD = {
    "metadata": {"name": "httproutes.gateway.networking.k8s.io"},
    "spec": {
        "group": "gateway.networking.k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "HTTPRoute", "listKind": "HTTPRouteList", "plural": "httproutes", "singular": "httproute"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def test_a_route_is_made_where_there_is_a_gateway_api() -> None:
    async def main(here: World) -> None:
        await here.client.create(CRDS, ROUTE_CRD)
        await make_model(here.client)
        await here.settle()
        route = await here.client.get(HTTP_ROUTES, "m", "team")
        assert route["spec"]["parentRefs"] == [{"name": "greenthread", "namespace": "greenthread-system"}]
        paths = [f"/{prefix}{api}" for prefix in ("team/m", "m") for api in ("/v1", "/v2")]
        for rule, path in zip(route["spec"]["rules"], paths, strict=True):
            assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": path}}]
            replaced = {"type": "ReplacePrefixMatch", "replacePrefixMatch": path[-3:]}
            assert rule["filters"][0]["urlRewrite"]["path"] == replaced
            assert rule["backendRefs"] == [{"name": "m", "port": 80}]

    in_world(main)


def test_a_route_that_is_refused_is_told_and_holds_nothing_up() -> None:
    async def main(here: World) -> None:
        crd: Any = copy.deepcopy(ROUTE_CRD)
        rules = [{"rule": "!has(self.spec)", "message": "this Gateway API is too old"}]
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = rules
        await here.client.create(CRDS, crd)
        await make_model(here.client)
        await here.settle()
        status, reason, message = await here.condition("Addressed")
        assert (status, reason) == ("False", "RouteRefused")
        assert "this Gateway API is too old" in message
        assert len(await here.pods()) == 1

    in_world(main)


def test_an_engine_kind_that_is_unknown_is_told() -> None:
    async def main(here: World) -> None:
        annotations = {"greenthread.ai/engine": "tgi"}
        body = {"metadata": {"name": "m", "annotations": annotations}, "spec": {"modelName": "org/m"}}
        await here.client.create(MODELS, body, "team")
        await here.settle()
        assert (await here.condition())[1:] == (
            "InvalidSpec",
            "the annotation greenthread.ai/engine is 'tgi': write vllm or command",
        )
        assert (await here.model())["status"]["phase"] == "Failed"

    in_world(main)


def test_other_peoples_finalizers_and_labels_stay() -> None:
    async def main(here: World) -> None:
        body = {"metadata": {"name": "m", "finalizers": ["example.com/theirs"]}, "spec": {"modelName": "org/m"}}
        await here.client.create(MODELS, body, "team")
        await here.settle()
        assert (await here.model())["metadata"]["finalizers"] == ["example.com/theirs", "greenthread.ai/drain"]
        await here.client.delete(MODELS, "m", "team")
        await here.settle()
        assert (await here.model())["metadata"]["finalizers"] == ["example.com/theirs"]

    in_world(main)


def test_a_new_leader_finds_everything_and_changes_nothing() -> None:
    async def main(here: World) -> None:
        for name in "abc":
            await make_model(here.client, name)
        await here.settle()
        for name in "abc":
            await here.run_pods(name=name)
        await here.stop()
        await make_model(here.client, "d")
        await here.client.delete(PODS, (await here.pod_names("a"))[0], "team", grace_seconds=0)
        before = {name: await here.pods(name) for name in "bc"}
        successor = World(here.api, here.client)
        await successor.start()
        await successor.settle()
        assert {name: await here.pods(name) for name in "bc"} == before
        assert len(await here.pods("a")) == len(await here.pods("d")) == 1
        await successor.stop()
        await here.start()

    in_world(main)


def test_a_deletion_that_no_watch_told_is_found_when_the_watch_begins_anew() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        observe = here.controller.observe
        here.controller.observe = lambda *_: None  # type: ignore[method-assign]
        await here.client.delete(PODS, (await here.pod_names())[0], "team")
        await here.settle(2)
        assert await here.pods() == []
        here.controller.observe = observe  # type: ignore[method-assign]
        observe(GPUS, None, await here.client.get(GPUS, "node-a-0", NAMESPACE))
        observe(PODS, None, {"metadata": {"name": "x", "namespace": "y", "uid": "z", "resourceVersion": "1"}})
        await here.settle(3)
        assert len(await here.pods()) == 1

    in_world(main)


def test_a_gateway_that_comes_or_goes_changes_the_address_and_no_pod() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        (pod,) = await here.pods()
        await here.stop()
        successor = World(here.api, here.client, replace(SETTINGS, gateway_url=""))
        await successor.start()
        await successor.settle()
        assert (await here.model())["status"]["url"] == "http://m.team.svc/v1"  # its own Service
        assert [left["metadata"]["uid"] for left in await here.pods()] == [pod["metadata"]["uid"]]
        await successor.stop()
        await here.start()

    in_world(main)


def test_images_of_a_new_installation_roll_the_pods() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        await here.run_pods()
        await here.stop()
        images = PodSettings(vllm_image="vllm/vllm-openai:next")
        successor = World(here.api, here.client, replace(SETTINGS, pods=images))
        await successor.start()
        await successor.settle()
        assert len(await here.pods()) == 2
        await successor.stop()
        await here.start()

    in_world(main)


def test_the_steps_of_a_wake_become_one_write_of_the_status() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        await here.run_pods()
        (pod,) = await here.pods()
        await here.occupy(pod, "node-a-0", "sleeping", 0)
        assert (await here.model())["status"]["sleepingReplicas"] == 1
        before = here.line._transport.requests["PATCH models"]  # type: ignore[attr-defined]
        for state, reserved in (("waking", GIB), ("serving", GIB)):
            await here.occupy(pod, "node-a-0", state, reserved, settle=0.04)
        status = (await here.model())["status"]
        assert (status["sleepingReplicas"], status["servingReplicas"]) == (1, 0)  # not while the wake needs the cores
        await here.settle(SETTLE)
        status = (await here.model())["status"]
        assert (status["sleepingReplicas"], status["servingReplicas"]) == (0, 1)
        await here.settle(10)
        assert here.line._transport.requests["PATCH models"] == before + 1  # type: ignore[attr-defined]

    in_world(main)


def test_states_that_never_rest_do_not_keep_the_status_back() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        await here.run_pods()
        (pod,) = await here.pods()
        await here.occupy(pod, "node-a-0", "waking", GIB)
        await here.occupy(pod, "node-a-0", "serving", GIB, settle=0)
        for reserved in range(10):
            await here.occupy(pod, "node-a-0", "serving", GIB - reserved, settle=SETTLE / 8)
        assert (await here.model())["status"]["servingReplicas"] == 1

    in_world(main)


def test_what_needs_doing_is_done_at_once_in_the_middle_of_a_wake() -> None:
    async def main(here: World) -> None:
        await make_model(here.client)
        await here.settle()
        await here.run_pods()
        (pod,) = await here.pods()
        await here.occupy(pod, "node-a-0", "waking", GIB, settle=0.01)
        await here.client.patch(MODELS, "m", {"spec": {"replicas": 2}}, "team")
        await asyncio.sleep(0.01)
        assert len(await here.pods()) == 2
        await here.occupy(pod, "node-a-0", "serving", GIB, settle=0.01)
        await here.set_status(pod, phase="Failed", reason="Evicted", conditions=[])
        await asyncio.sleep(0.01)
        assert pod["metadata"]["name"] not in await here.pod_names()
        await here.occupy(pod, "node-a-0", "deactivating", GIB, settle=0.01)
        await here.client.delete(MODELS, "m", "team")
        await asyncio.sleep(0.01)
        assert (await here.condition())[1] == "Deleting"

    in_world(main)
