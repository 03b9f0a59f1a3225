"""The decisions against an oracle that tries everything, written from docs/protocol.md and not from the code."""

from datetime import UTC, datetime, timedelta
from itertools import chain, combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from greenthread import fairness
from greenthread.fairness import CannotFit, Fits, Preempt, Wait, Want
from greenthread.gpu import Gpu, Intent, Occupant, PodRef, State, WakeLock

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
ME = "me"
PODS = [f"p{number}" for number in range(6)]


def ref(name):
    return PodRef("default", name)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


pod = st.fixed_dictionaries(
    {
        "state": st.sampled_from(
            [State.SERVING] * 4 + [State.SLEEPING, State.WAKING, State.CONVERTING, State.DEACTIVATING]
        ),
        "reserved": st.sampled_from([10, 20, 30, 40, 60]),
        "popular": st.sampled_from([False, False, False, True]),
        "used": st.integers(-9, 0),
        "protected": st.sampled_from([-5, -1, 0, 1, 3, 8]),
        "places": st.sets(st.integers(0, 2), min_size=1),
        "down": st.sampled_from([False, False, False, True]),
        "waits": st.sampled_from([None, None, "request", "boot", "gently"]),
        "since": st.sampled_from([-30, -9, -4, -1]),
        "asks_for": st.sampled_from([10, 30, 60]),
        "names": st.sets(st.sampled_from(PODS), max_size=2),
    }
)


@st.composite
def worlds(draw):
    """Up to three GPUs with up to six pods, of which some serve, some wait and some name others; and a want."""
    count = draw(st.integers(1, 3))
    pods = dict(zip(PODS, draw(st.lists(pod, max_size=len(PODS))), strict=False))
    holder = draw(st.sampled_from([None, None, None, ME, *pods]))
    gpus = []
    for index in range(count):
        here = {name: row for name, row in pods.items() if index in row["places"]}
        occupants = [
            Occupant(
                ref(name), name, row["state"], 0 if row["state"] is State.SLEEPING else row["reserved"], row["popular"],
                at(row["used"]), at(-60), at(row["protected"]), row["down"],
            )
            for name, row in here.items()
        ]  # fmt: skip
        intents = [
            Intent(
                ref(name), name, row["asks_for"], at(row["since"]), tuple(map(ref, sorted(row["names"]))),
                row["waits"] == "boot", row["waits"] != "gently",
            )
            for name, row in here.items()
            if row["waits"]
        ]  # fmt: skip
        lock = WakeLock(ref(holder), NOW) if holder else None
        foreign = draw(st.sampled_from([0, 0, 15]))
        gpus.append(
            Gpu(
                f"n-{index}", "n", index, 100, foreign,
                occupants=tuple(occupants), intents=tuple(intents), wake_lock=lock,
            )
        )  # fmt: skip
    want = Want(
        ref(ME), ME, draw(st.sampled_from([5, 20, 45, 70, 95])), at(draw(st.sampled_from([-31, -9, -4, -2, 0]))),
        draw(st.sampled_from([0.0, 3.0, 10.0])), boot=draw(st.booleans()), lock=draw(st.booleans()),
        preempts=draw(st.sampled_from([True, True, True, False])),
    )  # fmt: skip
    return want, gpus


def older(want, gpu):
    mine = (not want.preempts, want.boot, want.since, want.pod.name)
    return [i for i in gpu.intents if (not i.preempts, i.boot, i.since, i.pod.name) < mine]


def named(gpus):
    return {victim for gpu in gpus for intent in gpu.intents for victim in intent.victims}


def may_obey(occupant):
    return occupant.state is State.SERVING and not occupant.popular and not occupant.sidecar_down


def leaves(occupant):
    return occupant.state is State.DEACTIVATING and not occupant.sidecar_down


def enough(want, gpus, leaving):
    """Whether there is room everywhere, for it and for the older, once ``leaving`` have left."""
    return all(
        gpu.total - gpu.foreign - sum(o.reserved for o in gpu.occupants if o.pod not in leaving)
        >= want.need + sum(i.requested for i in older(want, gpu))
        for gpu in gpus
    )


def locked(want, gpus):
    return want.lock and any(gpu.wake_lock and gpu.wake_lock.holder != want.pod for gpu in gpus)


def unpinned(gpus):
    """Everybody who is not pinned."""
    return {o.pod for gpu in gpus for o in gpu.occupants if not o.popular}


def on_their_way(gpus):
    asked = named(gpus)
    everybody = [o for gpu in gpus for o in gpu.occupants]
    return {o.pod for o in everybody if leaves(o) or (may_obey(o) and o.pod in asked)}


def candidates(gpus, now):
    """Who may be preempted, the longest unused first; and the ends of the minRuntime of those who may not yet."""
    asked = named(gpus)
    found = {o.pod: o for gpu in gpus for o in gpu.occupants if may_obey(o) and o.pod not in asked}
    free = sorted((o for o in found.values() if o.protected_until <= now), key=lambda o: (o.last_accessed, o.pod.name))
    return free, [o.protected_until for o in found.values() if o.protected_until > now]


def subsets(pods):
    return (set(chosen) for chosen in chain.from_iterable(combinations(pods, n) for n in range(len(pods) + 1)))


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_the_decision_is_the_oracles(world):
    want, gpus = world
    decision = fairness.decide(want, gpus, NOW)
    short = not enough(want, gpus, set())
    alone = [Want(want.pod, want.model, want.need, at(-(10**6)), 0.0, preempts=True)]  # nobody is older than that
    if not short and not locked(want, gpus):
        assert decision == Fits()
    elif any(not _fits_some_day(alone[0], gpu) for gpu in gpus):
        assert isinstance(decision, CannotFit)
    elif not want.preempts:
        assert isinstance(decision, Wait), "asks nobody to go, so no moment changes anything"
        assert decision.until is None
    elif short and want.since + timedelta(seconds=want.max_wait) > NOW:
        assert isinstance(decision, Wait), "the barrier"
        assert decision.until == want.since + timedelta(seconds=want.max_wait)
    elif enough(want, gpus, on_their_way(gpus)):
        assert isinstance(decision, Wait), "it just waits for what comes"
        assert decision.until is None
    else:
        _victims_are_right(want, gpus, decision)


def _fits_some_day(want, gpu):
    pinned = sum(o.reserved for o in gpu.occupants if o.popular)
    return gpu.total - gpu.foreign - pinned >= want.need


def _victims_are_right(want, gpus, decision):
    free, ends = candidates(gpus, NOW)
    coming = on_their_way(gpus)
    ages = [o.pod for o in free]
    sufficient = [chosen for chosen in subsets(ages) if enough(want, gpus, coming | chosen)]
    if not sufficient:
        assert isinstance(decision, Wait), "names nobody when it would not help"
        assert decision.until == min(ends, default=None), "no write announces the end of a minRuntime"
        return
    assert isinstance(decision, Preempt)
    victims = [victim.pod for victim in decision.victims]
    assert victims == [name for name in ages if name in set(victims)], "the longest unused first, each once"
    assert set(victims) in sufficient
    assert not any(smaller < set(victims) for smaller in sufficient), "nobody is named in vain"
    younger = ages[ages.index(victims[-1]) :]
    assert not any(chosen.isdisjoint(younger) for chosen in sufficient), "nobody used later than need be is named"


@settings(max_examples=80, deadline=None)
@given(worlds(), st.floats(0.001, 60))
def test_while_it_waits_time_alone_changes_nothing_before_the_moment_that_it_named(world, later):
    want, gpus = world
    decision = fairness.decide(want, gpus, NOW)
    if isinstance(decision, Wait):
        then = NOW + timedelta(seconds=later)
        if decision.until is not None and then >= decision.until:
            then = decision.until - timedelta(milliseconds=1)
        if then > NOW:
            assert isinstance(fairness.decide(want, gpus, then), Wait)


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_who_fits_delays_nobody_older_and_steals_no_lock(world):
    want, gpus = world
    if isinstance(fairness.decide(want, gpus, NOW), Fits):
        for gpu in gpus:
            assert gpu.room - want.need >= sum(intent.requested for intent in older(want, gpu))
            assert not locked(want, [gpu])


@settings(max_examples=80, deadline=None)
@given(worlds(), st.sampled_from(PODS))
def test_who_gives_way_is_needed_by_the_oldest_whom_that_helps(world, name):
    _want, gpus = world
    me = ref(name)
    asked = named(gpus)
    waiters = []
    for gpu in gpus:
        mine = gpu.occupant(me)
        if mine is None or not mine.reserved:
            continue
        coming = sum(
            o.reserved for o in gpu.occupants if o.pod != me and (leaves(o) or (may_obey(o) and o.pod in asked))
        )
        for intent in gpu.intents:
            as_want = Want(intent.pod, "", intent.requested, intent.since, 0.0, intent.boot, preempts=intent.preempts)
            before = sum(i.requested for i in older(as_want, gpu) if i.pod != me)
            if intent.pod != me and intent.preempts and gpu.room + coming < intent.requested + before:
                waiters.append(intent)
    found = fairness.gives_way(me, gpus)
    if not waiters:
        assert found is None
    else:
        assert found == min(waiters, key=lambda i: (i.boot, i.since, i.pod.name))


@settings(max_examples=40, deadline=None)
@given(worlds(), st.sampled_from(PODS))
def test_who_is_named_obeys_the_oldest_that_named_it(world, name):
    _want, gpus = world
    naming = [intent for gpu in gpus for intent in gpu.intents if ref(name) in intent.victims]
    found = fairness.named_by(ref(name), gpus)
    assert found == min(naming, key=lambda i: (not i.preempts, i.boot, i.since, i.pod.name), default=None)
