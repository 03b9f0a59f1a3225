"""The API server is the arbiter of a GPU: no over-commit, no stolen lock, no impossible step, whoever writes.

The same verdicts and the same words on the embedded API and on kube-apiserver.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from greenthread.gpu import State
from tests.conformance.crd_api import GIB, Answer, Api, Object, send
from tests.conformance.gpus import NOW, TOTAL, WAYS, Gpu, changed, device, intent, lock, occupant

Write = Callable[[Gpu, Object, Object], Answer]

RISE = (
    "reservedMemoryBytes may rise only in the write that claims (waking, converting) or that ends a wake or a boot: "
    "claim first, use after"
)
HELD = "an occupant that holds memory may not be removed: first write state sleeping and reservedMemoryBytes 0 for it"
UNLOCKED = (
    "an occupant is waking only while it holds the wake lock (wakeLock.holder: namespace/podName): write both at once"
)
SLEEPING = "a sleeping occupant holds no memory: write reservedMemoryBytes 0, or another state until its memory is free"
LOCKED = "the wake lock is held by default/a: it must be released before another pod can take it"
POD = "write namespace/podName"

EMPTY = device()
SERVING = device(occupant("a", "serving", 40), occupant("b"))
WAKING = device(occupant("a", "waking", 40), occupant("b"), wakeLock=lock("a"))
FULL = device(occupant("a", "serving", 40), occupant("b", "deactivating", 40), occupant("c"))
GROWN = changed(FULL, foreignMemoryBytes=20 * GIB)  # other programs took what is reserved
SHRUNK = changed(FULL, totalMemoryBytes=60 * GIB)


def too_much(held: int, room: int, total: int = 80, foreign: int = 0) -> str:
    held, room, total, foreign = (gib * GIB for gib in (held, room, total, foreign))
    why = f"the occupants would hold {held} bytes of {room} (total {total} less foreign {foreign})"
    return f"{why}: read the GPU again and wait for room"


def follow(old: str, new: str) -> str:
    order = "sleeping -> waking or converting -> serving -> deactivating -> sleeping"
    return f"an occupant that is {old} may not become {new} ({order})"


HOSTILE: list[tuple[str, Object, Object, str, str]] = [
    # what, before, the keys that it changes, field, message
    (
        "claims more than the device",
        EMPTY,
        {"occupants": [occupant("a", "converting", 81)]},
        "status",
        too_much(81, 80),
    ),
    (
        "claims what another holds",
        SERVING,
        {"occupants": [occupant("a", "serving", 40), occupant("b", "waking", 41)], "wakeLock": lock("b")},
        "status",
        too_much(81, 80),
    ),
    (
        "claims what foreign programs hold",
        changed(SERVING, foreignMemoryBytes=10 * GIB),
        {"occupants": [occupant("a", "serving", 40), occupant("b", "converting", 40)]},
        "status",
        too_much(80, 70, foreign=10),
    ),
    (
        "shifts memory to itself while the device is over-committed",
        GROWN,
        {
            "occupants": [
                occupant("a", "serving", 30),
                occupant("b", "deactivating", 40),
                occupant("c", "converting", 11),
            ]
        },
        "status",
        too_much(81, 60, foreign=20),
    ),
    (
        "claims a byte on a full device",
        FULL,
        {
            "occupants": [
                occupant("a", "serving", 40),
                occupant("b", "deactivating", 40),
                occupant("c", "converting", reservedMemoryBytes=1),
            ]
        },
        "status",
        f"the occupants would hold {TOTAL + 1} bytes of {TOTAL}",
    ),
    (
        "publishes more than there is",
        device(occupant("a", "converting", 40)),
        {"occupants": [occupant("a", "serving", 81)]},
        "status",
        too_much(81, 80),
    ),
    (
        "hides a claim behind negative bytes",
        SERVING,
        {
            "occupants": [
                occupant("a", "serving", 40),
                occupant("b", "converting", 80),
                occupant("c", "converting", -40),
            ]
        },
        "status.occupants[2].reservedMemoryBytes",
        "should be greater than or equal to 0",
    ),
    (
        "overflows the sum",
        EMPTY,
        {"occupants": [occupant("a", "converting", reservedMemoryBytes=2**62)]},
        "status.occupants[0].reservedMemoryBytes",
        "should be less than or equal to 1125899906842624",
    ),
    (
        "grows while it serves",
        SERVING,
        {"occupants": [occupant("a", "serving", 41), occupant("b")]},
        "status.occupants[0]",
        RISE,
    ),
    (
        "grows while it deactivates",
        FULL,
        {"occupants": [occupant("a", "serving", 30), occupant("b", "deactivating", 50), occupant("c")]},
        "status.occupants[1]",
        RISE,
    ),
    (
        "grows as it leaves",
        SERVING,
        {"occupants": [occupant("a", "deactivating", 41), occupant("b")]},
        "status.occupants[0]",
        RISE,
    ),
    (
        "sleeps on memory",
        SERVING,
        {"occupants": [occupant("a", "sleeping", 40), occupant("b")]},
        "status.occupants[0]",
        SLEEPING,
    ),
    (
        "takes a held lock",
        WAKING,
        {"wakeLock": lock("b"), "occupants": [occupant("a", "deactivating", 40), occupant("b", "waking", 40)]},
        "status",
        LOCKED,
    ),
    (
        "takes a held lock and leaves its holder waking",
        WAKING,
        {"wakeLock": lock("b")},
        "status",
        LOCKED,
    ),
    (
        "wakes without the lock",
        SERVING,
        {"occupants": [occupant("a", "serving", 40), occupant("b", "waking", 40)]},
        "status",
        UNLOCKED,
    ),
    (
        "wakes under another's lock",
        WAKING,
        {"occupants": [occupant("a", "waking", 40), occupant("b", "waking", 40)]},
        "status",
        UNLOCKED,
    ),
    (
        "takes the lock in the name of a pod of another namespace",
        SERVING,
        {
            "occupants": [occupant("a", "serving", 40), occupant("b", "waking", 40)],
            "wakeLock": {"holder": "other/b", "acquiredAt": NOW},
        },
        "status",
        UNLOCKED,
    ),
    (
        "releases the lock of one that still wakes",
        WAKING,
        {"wakeLock": None},
        "status",
        UNLOCKED,
    ),
    ("removes one that holds memory", SERVING, {"occupants": [occupant("b")]}, "status", HELD),
    ("empties the list", SERVING, {"occupants": []}, "status", HELD),
    (
        "puts another in the place of one that holds memory",
        SERVING,
        {"occupants": [occupant("x", "sleeping"), occupant("b")]},
        "status",
        HELD,
    ),
    (
        "arrives serving",
        EMPTY,
        {"occupants": [occupant("a", "serving", 10)]},
        "status.occupants[0]",
        "a new occupant may be sleeping, waking or converting, not serving",
    ),
    (
        "arrives deactivating",
        EMPTY,
        {"occupants": [occupant("a", "deactivating", 10)]},
        "status.occupants[0]",
        "a new occupant may be sleeping, waking or converting, not deactivating",
    ),
    (
        "is there twice",
        EMPTY,
        {"occupants": [occupant("a"), occupant("a")]},
        "status.occupants[1]",
        "Duplicate value",
    ),
    (
        "waits twice",
        EMPTY,
        {"preemptionIntents": [intent("a", 10), intent("a", 20)]},
        "status.preemptionIntents[1]",
        "Duplicate value",
    ),
    (
        "is in no known state",
        SERVING,
        {"occupants": [occupant("a", "resting", 40), occupant("b")]},
        "status.occupants[0].state",
        "supported values: ",
    ),
    ("has no name", EMPTY, {"occupants": [occupant("")]}, "status.occupants[0].podName", "write the pod's name"),
    (
        "has a name that could pass for another",
        EMPTY,
        {"occupants": [occupant("a/b")]},
        "status.occupants[0].podName",
        "write the pod's name",
    ),
    (
        "has a namespace that could pass for another",
        EMPTY,
        {"occupants": [occupant("a", namespace="b/c")]},
        "status.occupants[0].namespace",
        "write the pod's namespace",
    ),
    (
        "holds the lock without a namespace",
        EMPTY,
        {"wakeLock": {"holder": "a", "acquiredAt": NOW}},
        "status.wakeLock.holder",
        POD,
    ),
    (
        "names a victim without a namespace",
        EMPTY,
        {"preemptionIntents": [{**intent("a", 10), "victims": ["b"]}]},
        "status.preemptionIntents[0].victims[0]",
        POD,
    ),
    (
        "waits since never",
        EMPTY,
        {"preemptionIntents": [{**intent("a", 10), "since": "yesterday"}]},
        "status.preemptionIntents[0].since",
        "must be of type date-time",
    ),
    (
        "waits for less than nothing",
        EMPTY,
        {"preemptionIntents": [intent("a", -1)]},
        "status.preemptionIntents[0].requestedMemoryBytes",
        "should be greater than or equal to 0",
    ),
    (
        "fills the list",
        EMPTY,
        {"occupants": [occupant(f"p{number}") for number in range(65)]},
        "status.occupants",
        "must have at most 64 items",
    ),
    (
        "takes the device's memory away",
        SERVING,
        {"totalMemoryBytes": None},
        "status.totalMemoryBytes",
        "Required value",
    ),
]


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("before", "changes", "field", "message"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE]
)
def test_nobody(crd_api: Api, write: Write, before: Object, changes: Object, field: str, message: str) -> None:
    """... gets through with this, and a refused write changes nothing."""
    gpu = Gpu(crd_api, before)
    old = gpu.read()
    answer = write(gpu, old["status"], changed(old["status"], **changes))
    assert answer.status == 422, answer.body
    assert answer.body["reason"] == "Invalid"
    assert [text for where, text in answer.causes if where == field and message in text], answer.causes
    assert gpu.read() == old


def test_nobody_gets_through_by_setting_a_list_or_the_status_to_null(crd_api: Api) -> None:
    gpu = Gpu(crd_api, SERVING)
    old = gpu.read()
    assert HELD in gpu.merge({"occupants": None}).causes[0][1]
    assert HELD in gpu.patch({"op": "remove", "path": "/occupants"}).causes[0][1]
    assert HELD in gpu.replace({key: value for key, value in old["status"].items() if key != "occupants"}).causes[0][1]
    gone = "it may not be removed, since it says who holds this GPU's memory"
    whole = {key: value for key, value in old.items() if key != "status"}
    for answer in (
        gpu.merge(None),
        gpu.patch({"op": "remove", "path": ""}),
        send(crd_api, "PUT", gpu.path + "/status", whole),
    ):
        assert [(where, gone in text) for where, text in answer.causes] == [("status", True)], answer.body
    assert gpu.read() == old


HONEST: list[tuple[str, Object, Object]] = [
    ("claims the last byte", SERVING, {"occupants": [occupant("a", "serving", 40), occupant("b", "converting", 40)]}),
    (
        "claims and takes the lock in one write",
        SERVING,
        {"occupants": [occupant("a", "serving", 40), occupant("b", "waking", 40)], "wakeLock": lock("b")},
    ),
    ("arrives asleep", SERVING, {"occupants": [occupant("a", "serving", 40), occupant("b"), occupant("c")]}),
    ("shrinks on a full device", FULL, {"occupants": [occupant("a", "serving", 30), *FULL["occupants"][1:]]}),
    ("shrinks though others grew", GROWN, {"occupants": [occupant("a", "serving", 39), *GROWN["occupants"][1:]]}),
    ("shrinks though the device did", SHRUNK, {"occupants": [occupant("a", "serving", 39), *SHRUNK["occupants"][1:]]}),
    (
        "goes to sleep on an over-committed device",
        GROWN,
        {"occupants": [occupant("a", "serving", 40), occupant("b"), occupant("c")]},
    ),
    ("waits on an over-committed device", GROWN, {"preemptionIntents": [intent("c", 40, "a")]}),
    (
        "is measured on an over-committed device",
        GROWN,
        {"stats": {"usedMemoryBytes": 70 * GIB, "utilizationPercent": 99}, "availableMemoryBytes": 0},
    ),
    (
        "is used on an over-committed device",
        GROWN,
        {"occupants": [occupant("a", "serving", 40, lastAccessed=NOW, popular=True), *GROWN["occupants"][1:]]},
    ),
    ("has other programs growing into what is reserved", FULL, {"foreignMemoryBytes": 30 * GIB}),
    ("becomes a smaller device", FULL, {"totalMemoryBytes": 40 * GIB}),
    ("measures more at boot", device(occupant("a", "converting", 40)), {"occupants": [occupant("a", "serving", 41)]}),
    ("measures less at boot", device(occupant("a", "converting", 40)), {"occupants": [occupant("a", "serving", 30)]}),
    (
        "measures more at boot and goes to sleep at once",
        device(occupant("a", "converting", 40)),
        {"occupants": [occupant("a", "deactivating", 41)]},
    ),
    (
        "publishes and releases the lock in one write",
        WAKING,
        {"occupants": [occupant("a", "serving", 40, becameServingAt=NOW), occupant("b")], "wakeLock": None},
    ),
    (
        "gives up a wake in one write, its memory not free yet",
        WAKING,
        {"occupants": [occupant("a", "deactivating", 40), occupant("b")], "wakeLock": None},
    ),
    (
        "turns a claim back into an intent in one write",
        WAKING,
        {"occupants": [occupant("a"), occupant("b")], "wakeLock": None, "preemptionIntents": [intent("a", 40)]},
    ),
    (
        "hands over: one publishes, and the next takes the lock in a later write",
        changed(SERVING),
        {"occupants": [occupant("a", "serving", 40), occupant("b", "waking", 10)], "wakeLock": lock("b")},
    ),
    (
        "boots beside one that wakes",
        WAKING,
        {"occupants": [occupant("a", "waking", 40), occupant("b", "converting", 40)]},
    ),
    ("leaves after it freed its memory", SERVING, {"occupants": [occupant("a", "serving", 40)]}),
    (
        "changes the order of the list",
        SERVING,
        {"occupants": [occupant("b"), occupant("a", "serving", 40)]},
    ),
    (
        "has a namesake in another namespace",
        SERVING,
        {"occupants": [*SERVING["occupants"], occupant("a", namespace="other")]},
    ),
]


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("before", "changes"), [h[1:] for h in HONEST], ids=[h[0] for h in HONEST])
def test_whoever(crd_api: Api, write: Write, before: Object, changes: Object) -> None:
    """... does this gets through, and it is stored as written."""
    gpu = Gpu(crd_api, before)
    old = gpu.status
    write(gpu, old, changed(old, **changes)).ok()
    assert gpu.status == {key: value for key, value in changed(old, **changes).items() if value is not None}


FOLLOWS = {
    "sleeping": {"waking", "converting"},
    "waking": {"serving", "deactivating", "sleeping"},
    "converting": {"serving", "deactivating", "sleeping"},
    "serving": {"deactivating", "sleeping"},
    "deactivating": {"sleeping"},
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)), ids=str)
def test_an_occupant_moves_only_between_states_that_follow_each_other(crd_api: Api, old: State, new: State) -> None:
    held = {state: 0 if state == "sleeping" else 10 for state in State}
    gpu = Gpu(crd_api, device(occupant("a", old, held[old]), **({"wakeLock": lock("a")} if old == "waking" else {})))
    after = {"occupants": [occupant("a", new, held[new])], "wakeLock": lock("a") if new == "waking" else None}
    answer = gpu.merge(after)
    if new == old or new in FOLLOWS[old]:
        assert answer.ok()["status"]["occupants"][0]["state"] == new
    else:
        expected = [("status.occupants[0]", True)]
        assert answer.status == 422
        assert [
            (where, follow(old, new) in text) for where, text in answer.causes if follow(old, new) in text
        ] == expected


def test_of_32_pods_that_race_for_80_gib_without_reading_exactly_8_of_10_gib_get_in(crd_api: Api) -> None:
    gpu = Gpu(crd_api, EMPTY)
    answers = race(lambda pod: gpu.patch(add(occupant(pod, "converting", 10))))
    refused = [answer for answer in answers if answer.status == 422]
    assert (len(answers) - len(refused), len(refused)) == (8, 24)
    assert {answer.causes[0][1].partition("bytes of")[2] for answer in refused} == {
        too_much(90, 80).partition("bytes of")[2]
    }
    assert sum(entry["reservedMemoryBytes"] for entry in gpu.status["occupants"]) == TOTAL


def test_of_32_pods_that_race_for_the_lock_one_gets_it(crd_api: Api) -> None:
    gpu = Gpu(crd_api, EMPTY)
    take = {"op": "add", "path": "/wakeLock"}
    answers = race(lambda pod: gpu.patch({**take, "value": lock(pod)}, add(occupant(pod, "waking", 1))))
    assert sorted(answer.status for answer in answers) == [200, *[422] * 31]
    [winner] = gpu.status["occupants"]
    assert gpu.status["wakeLock"]["holder"] == f"default/{winner['podName']}"


def test_of_pods_that_race_to_be_listed_all_are(crd_api: Api) -> None:
    gpu = Gpu(crd_api, EMPTY)
    race(lambda pod: gpu.patch(add(occupant(pod))))
    assert len(gpu.status["occupants"]) == 32


def add(entry: Object) -> Object:
    return {"op": "add", "path": "/occupants/-", "value": entry}


def race(write: Callable[[str], Answer]) -> list[Answer]:
    """32 pods write at once, each again while the server only says that it was too busy (409)."""

    def until_answered(pod: str) -> Answer:
        answer = write(pod)
        while answer.status == 409:
            answer = write(pod)
        return answer

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(until_answered, [f"pod-{number}" for number in range(32)]))


@pytest.mark.parametrize("value", [-1, 2**50 + 1])
@pytest.mark.parametrize("field", ["totalMemoryBytes", "availableMemoryBytes", "foreignMemoryBytes"])
def test_memory_is_from_0_to_2_to_the_50_bytes(crd_api: Api, field: str, value: int) -> None:
    gpu = Gpu(crd_api, EMPTY)
    answer = gpu.merge({field: value})
    assert answer.status == 422
    assert [where for where, _ in answer.causes] == [f"status.{field}"]


@pytest.mark.parametrize("missing", ["node", "index", "totalMemoryBytes"])
def test_a_device_has_a_node_an_index_and_memory(crd_api: Api, missing: str) -> None:
    answer = Gpu(crd_api).merge({key: value for key, value in EMPTY.items() if key != missing})
    assert [cause for cause in answer.causes if cause == (f"status.{missing}", "Required value")], answer.causes


@pytest.mark.parametrize("missing", ["modelName", "state"])
def test_an_occupant_says_its_model_and_state(crd_api: Api, missing: str) -> None:
    answer = Gpu(crd_api, EMPTY).merge({"occupants": [{k: v for k, v in occupant("a").items() if k != missing}]})
    assert (f"status.occupants[0].{missing}", "Required value") in answer.causes


@pytest.mark.parametrize("missing", ["modelName", "requestedMemoryBytes", "since"])
def test_an_intent_says_its_model_its_bytes_and_since_when(crd_api: Api, missing: str) -> None:
    answer = Gpu(crd_api, EMPTY).merge(
        {"preemptionIntents": [{k: v for k, v in intent("a", 1).items() if k != missing}]}
    )
    assert (f"status.preemptionIntents[0].{missing}", "Required value") in answer.causes


@pytest.mark.parametrize("missing", ["holder", "acquiredAt"])
def test_a_lock_says_who_holds_it_and_since_when(crd_api: Api, missing: str) -> None:
    answer = Gpu(crd_api, EMPTY).merge({"wakeLock": {k: v for k, v in lock("a").items() if k != missing}})
    assert (f"status.wakeLock.{missing}", "Required value") in answer.causes


def test_lists_are_bounded(crd_api: Api) -> None:
    gpu = Gpu(crd_api, EMPTY)
    intents = gpu.merge({"preemptionIntents": [intent(f"p{number}", 1) for number in range(65)]})
    victims = gpu.merge({"preemptionIntents": [intent("a", 1, *(f"p{number}" for number in range(65)))]})
    for answer, where in ((intents, "status.preemptionIntents"), (victims, "status.preemptionIntents[0].victims")):
        assert [field for field, text in answer.causes if "must have at most 64 items" in text] == [where]
