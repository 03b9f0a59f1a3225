"""Makes the cluster what one Model asks for: its pods, Service, route and status. Plain async code, no framework."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from controller import network
from controller.events import Recorder
from controller.nodes import Nodes, excluded, hostname
from controller.plan import Plan, known_memory, plan
from controller.pod_view import PodView
from controller.pods import SpecError, make_pod, template_hash
from controller.settings import Settings
from controller.status import STAGING, Situation, merge_patch, model_status
from controller.store import Store
from greenthread.clock import Clock
from greenthread.gpu import Gpu
from greenthread.kube.aio import AsyncClient
from greenthread.kube.core import Object
from greenthread.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NoSuchKind, NotFound
from greenthread.kube.resources import HTTP_ROUTES, MODELS, PODS, SERVICES, Key, key_of
from greenthread.model import Model
from greenthread.names import FINALIZER
from greenthread.placement import Impossible, Placement, Slot, place
from greenthread.units import short_bytes

log = logging.getLogger(__name__)

#: Seconds until a replica that broke gets a new pod: the first pause, doubled each time, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
#: Seconds until what no watch tells is looked at again: nodes, and names that somebody else has.
LOOK_AGAIN = 30.0
#: Seconds until a cluster without the Gateway API is asked again.
ROUTES_PAUSE = 600.0


class Reconciler:
    """`reconcile(key)` does one step for one Model and is called again whenever something about it changed."""

    def __init__(self, client: AsyncClient, store: Store, settings: Settings, clock: Clock, recorder: Recorder) -> None:
        self._client, self._store, self._settings = client, store, settings
        self._clock, self._recorder = clock, recorder
        self._nodes = Nodes(client)
        #: Pods that are being created now: other placements count them before the API has answered.
        self._placing: dict[Key, tuple[Key, PodView]] = {}
        self._pauses: dict[tuple[str, int], tuple[int, float]] = {}  # (uid, ordinal): failures, not before
        self._routes: dict[str, Object] = {}  # by uid: what was written
        self._no_routes_until = 0.0
        self._told: dict[str, str] = {}  # by uid: the last problem an event was written for

    async def reconcile(self, key: Key) -> float | None:
        """One step. Returns in how many seconds it wants another turn, None: when something changes.

        Raises KubeError when the API refused or could not be reached; the caller tries again later.
        """
        model, obj = self._store.model(key), self._store.object(MODELS, key)
        if model is None or obj is None:
            return None
        if model.deleting:
            await self._finish(model, obj)
            return None
        if FINALIZER not in (obj["metadata"].get("finalizers") or ()):
            obj = await self._set_finalizers(obj, [*(obj["metadata"].get("finalizers") or ()), FINALIZER])
        try:
            hash8 = template_hash(model, self._settings.pods)
        except SpecError as error:
            pods = self._own_pods(model)
            await self._write_status(model, obj, Situation("", pods, self._gpus(model), spec_problem=str(error)))
            return None
        problems, again = await self._pods(model, obj, hash8)
        address_problem, pause = await self._network(model)
        again = min((wish for wish in (again, pause) if wish is not None), default=None)
        pods = self._own_pods(model)
        await self._write_status(
            model,
            obj,
            Situation(
                hash8,
                pods,
                self._gpus(model),
                self._known_memory(model, obj, hash8, pods),
                network.url(model, self._settings.gateway_url, self._has_short_address(model)),
                problems,
                address_problem,
            ),
        )
        return again

    # pods

    async def _pods(self, model: Model, obj: Object, hash8: str) -> tuple[list[str], float | None]:
        """Makes and deletes pods; returns why some could not be made, and when to look again (seconds)."""
        pods = self._own_pods(model)
        lost, suspected = await self._lost_nodes(pods)
        wanted = plan(model.spec.replicas, hash8, pods, lost)
        loop_time = asyncio.get_running_loop().time()
        for removal in wanted.delete:
            if removal.broken:
                self._pause(model, removal.pod.ordinal, loop_time)
                self._recorder.warning(model, "PodReplaced", f"pod {removal.pod.ref.name}: {removal.reason}")
            else:
                self._recorder.normal(model, "PodDeleted", f"pod {removal.pod.ref.name}: {removal.reason}")
            await self._delete_pod(removal.pod)
        for pod in pods:
            if pod.ready:
                self._pauses.pop((model.uid, pod.ordinal), None)
        problems, again = await self._create(model, obj, hash8, pods, wanted)
        if suspected and again is None:
            again = LOOK_AGAIN
        return problems, again

    async def _create(
        self, model: Model, obj: Object, hash8: str, pods: Sequence[PodView], wanted: Plan
    ) -> tuple[list[str], float | None]:
        problems: list[str] = []
        again: float | None = None
        self._store.unplaced.discard((model.namespace, model.name))
        memory = self._known_memory(model, obj, hash8, pods)
        for ordinal in wanted.create:
            wait = self._pauses.get((model.uid, ordinal), (0, 0.0))[1] - asyncio.get_running_loop().time()
            if wait > 0:
                problems.append(f"replica {ordinal} broke and is made again in {wait:.0f} s")
                again = wait if again is None else min(again, wait)
                continue
            nodes = await self._nodes.all()
            found = self._place(model, memory, nodes)
            if isinstance(found, Impossible):
                problems.append(f"replica {ordinal}: {found.reason}")
                # most of what can help is a change of the GPUs, which is watched; nodes are not
                self._store.unplaced.add((model.namespace, model.name))
                again = LOOK_AGAIN
                break  # no place for one is no place for the next
            pod = make_pod(model, self._settings.pods, ordinal, found, memory, hostname(nodes, found.node))
            if not await self._create_pod(model, pod):
                problems.append(f"replica {ordinal}: a pod {pod['metadata']['name']} of somebody else is in the way")
                again = LOOK_AGAIN
        told = "; ".join(problems) if self._key(model) in self._store.unplaced else ""
        if told and self._told.get(model.uid) != told:
            self._recorder.warning(model, "Unschedulable", told)
        self._told[model.uid] = told
        return problems, again

    def _place(self, model: Model, memory: int | None, nodes: Mapping[str, Object]) -> Placement | Impossible:
        loads: dict[tuple[str, int], int] = {}
        replicas: dict[tuple[str, int], int] = {}
        totals = {(gpu.node, gpu.index): gpu.total for gpu in self._store.gpus()}
        for owner, pod in (*self._store.pods(), *self._placing.values()):
            owner_model = self._store.model(owner)
            share = owner_model.spec.gpu_memory_utilization if owner_model else 0.9
            for index in pod.gpus:
                slot = (pod.node, index)
                loads[slot] = loads.get(slot, 0) + (pod.serving_memory or int(share * totals.get(slot, 0)))
                if owner == self._key(model):
                    replicas[slot] = replicas.get(slot, 0) + 1
        slots = [
            Slot(
                gpu.node,
                gpu.index,
                gpu.total,
                loads.get((gpu.node, gpu.index), 0),
                replicas.get((gpu.node, gpu.index), 0),
                self._store.fault(gpu),
            )
            for gpu in self._store.gpus()
            if gpu.node
        ]
        names = sorted({slot.node for slot in slots})
        return place(slots, model.spec.tensor_parallel_size, memory, excluded(model.spec, names, nodes))

    async def _create_pod(self, model: Model, pod: Object) -> bool:
        """False when a pod of that name is there that is not this Model's."""
        key = (model.namespace, pod["metadata"]["name"])
        view = PodView.from_object(pod)
        # what the scheduler will make of the label
        self._placing[key] = (self._key(model), view)
        try:
            made = await self._client.create(PODS, pod)
            self._store.put(PODS, made)
        except AlreadyExists:
            there = await self._client.get(PODS, pod["metadata"]["name"], model.namespace)
            if not network.is_owned(there, model):
                return False
            self._store.put(PODS, there)  # our own, and the watch is late
            return True
        finally:
            del self._placing[key]
        where = f"{view.node}/{','.join(map(str, view.gpus))}"
        self._recorder.normal(model, "PodCreated", f"pod {view.ref.name} on {where}")
        return True

    async def _delete_pod(self, pod: PodView) -> None:
        try:
            left = await self._client.delete(PODS, pod.ref.name, pod.ref.namespace, uid=pod.uid)
        except NotFound:
            self._forget(pod)
        except Conflict:
            pass  # another pod of that name: the watch will tell
        else:
            if left.get("kind") == "Pod":
                self._store.put(PODS, left)

    def _forget(self, pod: PodView) -> None:
        obj = self._store.object(PODS, (pod.ref.namespace, pod.ref.name))
        if obj is not None and obj["metadata"].get("uid") == pod.uid:
            self._store.remove(PODS, obj)

    def _pause(self, model: Model, ordinal: int, now: float) -> None:
        failures = self._pauses.get((model.uid, ordinal), (0, 0.0))[0]
        pause = min(FIRST_PAUSE * 2.0 ** min(failures, 20), LONGEST_PAUSE)
        self._pauses[(model.uid, ordinal)] = (failures + 1, now + pause)

    async def _lost_nodes(self, pods: Sequence[PodView]) -> tuple[set[str], set[str]]:
        """Nodes of these pods that the cluster no longer has, and those whose GPU objects alone are gone.

        GPU objects go with their node, by their owner reference; so the nodes themselves need no watch.
        """
        suspects = {pod.node for pod in pods if pod.node and not self._store.has_gpus(pod.node)}
        lost = suspects - set(await self._nodes.all()) if suspects else set()
        return lost, suspects - lost

    def _own_pods(self, model: Model) -> list[PodView]:
        pods = self._store.pods_of(self._key(model))
        found = ((pod, self._store.object(PODS, (pod.ref.namespace, pod.ref.name))) for pod in pods)
        return [pod for pod, obj in found if obj is not None and network.is_owned(obj, model)]

    def _known_memory(self, model: Model, obj: Object, hash8: str, pods: Sequence[PodView]) -> int | None:
        status = obj.get("status") or {}
        current = status.get("observedGeneration") == model.generation
        return known_memory(pods, hash8, status.get("servingMemoryPerGPU"), current)

    def _gpus(self, model: Model) -> list[Gpu]:
        """GPUs that know this Model."""
        return self._store.gpus_of(self._key(model))

    # Service and route

    async def _network(self, model: Model) -> tuple[tuple[str, str], float | None]:
        """Keeps Service and route. What is wrong with its addresses (reason, message), and when to look again."""
        clash = await self._service(model)
        if clash:
            return ("NameTaken", clash), LOOK_AGAIN
        try:
            await self._route(model)
        except (Invalid, Forbidden) as error:  # it serves all the same: the gateway knows the way without a route
            return ("RouteRefused", f"its HTTPRoute is refused: {error}"), LOOK_AGAIN
        if not self._has_short_address(model):
            owner = network.short_address_owner(self._store.models_named(model.name))
            return (
                "NameShared",
                f"model {owner.namespace}/{owner.name} is older and has the address /{model.name}; this one answers at "
                f"/{model.namespace}/{model.name}",
            ), None
        return ("", ""), None

    def _has_short_address(self, model: Model) -> bool:
        others = self._store.models_named(model.name)
        return not others or network.short_address_owner(others).namespace == model.namespace

    async def _service(self, model: Model) -> str:
        """Keeps the Service; returns who has its name, or ""."""
        wanted = network.service(model)
        present = self._store.object(SERVICES, self._key(model))
        if present is None:
            try:
                self._store.put(SERVICES, await self._client.create(SERVICES, wanted))
                return ""
            except AlreadyExists:
                present = await self._client.get(SERVICES, model.name, model.namespace)
            except Invalid as error:
                return f"its Service is refused: {error}"
        if not network.is_owned(present, model):
            return (
                f"the Service {model.namespace}/{model.name} does not belong to this model, and its name is needed: "
                "delete the Service, or give the model another name"
            )
        changes = network.service_changes(present, wanted)
        if changes:
            self._store.put(SERVICES, await self._client.patch(SERVICES, model.name, changes, model.namespace))
        else:
            self._store.put(SERVICES, present)
        return ""

    async def _route(self, model: Model) -> None:
        if not self._settings.route_gateway:
            return
        now = asyncio.get_running_loop().time()
        wanted = network.route(model, self._settings, self._has_short_address(model))
        if self._routes.get(model.uid) == wanted or now < self._no_routes_until:
            return
        try:
            await self._client.create(HTTP_ROUTES, wanted)
        except NoSuchKind:
            self._no_routes_until = now + ROUTES_PAUSE  # no Gateway API here: the gateway serves alone
            return
        except AlreadyExists:
            present = await self._client.get(HTTP_ROUTES, model.name, model.namespace)
            if not network.is_owned(present, model):
                log.warning("HTTPRoute %s/%s is not ours and stays as it is", model.namespace, model.name)
            elif present.get("spec") != wanted["spec"]:
                await self._client.patch(HTTP_ROUTES, model.name, {"spec": wanted["spec"]}, model.namespace)
        self._routes[model.uid] = wanted

    # the end

    async def _finish(self, model: Model, obj: Object) -> None:
        """A deleted Model: its pods drain and go, then their memory must be free, then it may go."""
        finalizers = obj["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            return
        pods = self._own_pods(model)
        for pod in pods:
            if not pod.deleting:
                await self._delete_pod(pod)
        pods = self._own_pods(model)
        held = [
            (gpu, occupant)
            for gpu in self._gpus(model)
            for occupant in gpu.occupants
            if (occupant.pod.namespace, occupant.model) == self._key(model) and occupant.reserved
        ]
        if pods:
            waits_for = f"waits for its pods to end: {', '.join(pod.ref.name for pod in pods[:5])}"
        elif held:
            waits_for = "waits for its GPU memory to be free, by the node agent's word: " + ", ".join(
                f"{short_bytes(occupant.reserved)} on {gpu.node}/{gpu.index}" for gpu, occupant in held[:5]
            )
        else:
            try:
                await self._set_finalizers(obj, [name for name in finalizers if name != FINALIZER])
            except NotFound:
                pass
            self._drop(model)
            return
        await self._write_status(model, obj, Situation("", pods, self._gpus(model), waits_for=waits_for))

    def _drop(self, model: Model) -> None:
        self._routes.pop(model.uid, None)
        self._told.pop(model.uid, None)
        for uid, ordinal in [entry for entry in self._pauses if entry[0] == model.uid]:
            del self._pauses[(uid, ordinal)]

    async def _set_finalizers(self, obj: Object, finalizers: list[str]) -> Object:
        # with the resourceVersion, so that a finalizer that somebody added meanwhile is not lost
        meta: dict[str, Any] = {"resourceVersion": obj["metadata"]["resourceVersion"], "finalizers": finalizers}
        namespace, name = key_of(obj)
        written = await self._client.patch(MODELS, name, {"metadata": meta}, namespace)
        self._store.put(MODELS, written)
        return written

    # status

    async def _write_status(self, model: Model, obj: Object, situation: Situation) -> None:
        previous = obj.get("status") or {}
        status = model_status(model, situation, previous, self._clock.now())
        patch = merge_patch(previous, status)
        if not patch:
            return
        try:
            written = await self._client.patch(
                MODELS, model.name, {"status": patch}, model.namespace, subresource="status"
            )
        except NotFound:
            return  # deleted meanwhile: the watch will tell
        self._store.put(MODELS, written)
        phase = status["phase"]
        # that it begins is said by the event of its first pod, that it has booted by its sidecar's
        if phase not in (previous.get("phase", "Pending"), STAGING):
            ready = next(c for c in status["conditions"] if c["type"] == "Ready")
            tell = self._recorder.warning if phase == "Failed" else self._recorder.normal
            tell(model, "Deleting" if model.deleting else phase, ready["message"])

    @staticmethod
    def _key(model: Model) -> Key:
        return (model.namespace, model.name)
