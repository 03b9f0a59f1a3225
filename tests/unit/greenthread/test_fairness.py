"""The claim protocol's decisions: who wakes, who waits, who gives way, who is preempted."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from greenthread import fairness
from greenthread.fairness import CannotFit, Fits, Preempt, Wait, Want
from greenthread.gpu import Gpu, Intent, Occupant, PodRef, State, WakeLock

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


def ref(name):
    return PodRef("default", name)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def serving(name, reserved, *, used=-60, protected=-1, popular=False):
    return Occupant(ref(name), name, State.SERVING, reserved, popular, at(used), at(-120), at(protected))


def waits(name, requested, since=-1, victims=(), boot=False):
    return Intent(ref(name), name, requested, at(since), tuple(ref(v) for v in victims), boot)


def gpu(*occupants, total=100, foreign=0, intents=(), lock=None, index=0):
    holder = WakeLock(ref(lock), NOW) if lock else None
    return Gpu(f"n-{index}", "n", index, total, foreign, occupants=occupants, intents=tuple(intents), wake_lock=holder)


def want(need, since=0.0, max_wait=5.0, name="me", **more):
    return Want(ref(name), name, need, at(since), max_wait, **more)


def test_wakes_at_once_when_it_fits():
    assert fairness.decide(want(60), [gpu(serving("a", 40))], NOW) == Fits()


def test_what_other_programs_use_is_not_room():
    assert isinstance(fairness.decide(want(60), [gpu(foreign=41)], NOW), CannotFit)


def test_waits_while_another_wakes_on_its_gpu():
    decision = fairness.decide(want(10), [gpu(Occupant(ref("a"), "a", State.WAKING, 40), lock="a")], NOW)
    assert isinstance(decision, Wait)
    assert "waits while a wakes on n/0" in fairness.explain(decision, NOW)


def test_a_boot_needs_no_wake_lock():
    waking = gpu(Occupant(ref("a"), "a", State.WAKING, 40), lock="a")
    assert fairness.decide(want(10, boot=True, lock=False), [waking], NOW) == Fits()


def test_a_younger_one_passes_an_older_only_without_delaying_it():
    older = [waits("old", 50, since=-10)]
    assert fairness.decide(want(30), [gpu(serving("a", 20), intents=older)], NOW) == Fits()
    assert isinstance(fairness.decide(want(31), [gpu(serving("a", 20), intents=older)], NOW), Wait)


def test_boots_stand_behind_real_requests_however_old():
    boot = [waits("boot", 50, since=-1000, boot=True)]
    assert fairness.decide(want(100), [gpu(intents=boot)], NOW) == Fits()
    real = [waits("real", 60, since=-1)]
    assert isinstance(fairness.decide(want(60, since=-1000, boot=True), [gpu(intents=real)], NOW), Wait)


def test_nobody_makes_room_for_a_request_that_may_not_preempt():
    polite = replace(waits("polite", 50, since=-9), preempts=False)
    busy = gpu(serving("a", 40), serving("b", 40), intents=[polite])
    for boot in (False, True):
        decision = fairness.decide(want(40, since=-6, boot=boot, lock=not boot), [busy], NOW)
        assert isinstance(decision, Preempt)
        assert len(decision.victims) == 1, "not also for the older one that asks nobody to go"
    assert fairness.gives_way(ref("a"), [busy]) is None


def test_equal_ages_are_told_apart_by_name():
    one, two = want(100, name="a"), want(100, name="b")
    assert fairness.decide(one, [gpu(intents=[waits("b", 100, since=0)])], NOW) == Fits()
    assert isinstance(fairness.decide(two, [gpu(intents=[waits("a", 100, since=0)])], NOW), Wait)


def test_waits_until_max_wait_time_before_it_preempts():
    decision = fairness.decide(want(60, since=-2), [gpu(serving("a", 60))], NOW)
    assert isinstance(decision, Wait)
    assert decision.until == at(3)
    assert isinstance(fairness.decide(want(60, since=-5), [gpu(serving("a", 60))], NOW), Preempt)


def test_the_least_recently_used_goes_first_and_no_more_than_needed():
    full = gpu(serving("new", 30, used=-1), serving("old", 30, used=-90), serving("mid", 40, used=-50))
    decision = fairness.decide(want(30, max_wait=0), [full], NOW)
    assert [victim.model for victim in decision.victims] == ["old"]
    decision = fairness.decide(want(40, max_wait=0), [full], NOW)
    assert [victim.model for victim in decision.victims] == ["mid"], "the older one alone does not help, so it stays"


def test_pinned_and_protected_models_are_never_victims():
    pinned = gpu(serving("a", 60, popular=True), total=100)
    assert isinstance(fairness.decide(want(60, max_wait=0), [pinned], NOW), CannotFit)
    protected = gpu(serving("a", 60, protected=8))
    decision = fairness.decide(want(60, max_wait=0), [protected], NOW)
    assert isinstance(decision, Wait)
    assert decision.until == at(8), "no write announces the end of a minRuntime: a timer must"
    assert "must serve 8.0s more" in fairness.explain(decision, NOW)
    assert "must serve 3.0s more" in fairness.explain(decision, at(5)), "it counts down without a new decision"
    assert "is serving" in fairness.explain(decision, at(8))


def test_names_nobody_when_it_would_not_help():
    full = gpu(serving("a", 30), serving("b", 60, protected=8))
    assert isinstance(fairness.decide(want(90, max_wait=0), [full], NOW), Wait)


def test_just_waits_for_what_is_coming():
    leaving = gpu(Occupant(ref("a"), "a", State.DEACTIVATING, 60), serving("b", 40))
    decision = fairness.decide(want(60, max_wait=0), [leaving], NOW)
    assert isinstance(decision, Wait)
    assert decision.coming == ("a",)
    named = gpu(serving("a", 60), serving("b", 40), intents=[waits("other", 60, since=0, victims=["a"])])
    decision = fairness.decide(want(60, since=-9, name="me"), [named], NOW)
    assert isinstance(decision, Wait), "the victim of another makes room for the older"


def test_a_named_model_that_was_pinned_meanwhile_is_not_coming():
    named = gpu(serving("a", 60, popular=True), serving("b", 40), intents=[waits("other", 60, victims=["a"])])
    assert fairness.coming(named) == 0


def test_who_cannot_leave_because_its_sidecar_is_down_is_not_waited_for_and_not_named():
    down = replace(serving("down", 60), sidecar_down=True)
    for stuck in (down, replace(down, state=State.DEACTIVATING)):
        here = gpu(stuck, serving("b", 40), intents=[waits("me", 40, since=-9, victims=["down"])])
        assert fairness.coming(here) == 0
        assert fairness.gives_way(ref("b"), [here]).model == "me", "others may give way"
        decision = fairness.decide(want(40, since=-9), [here], NOW)
        assert [victim.model for victim in decision.victims] == ["b"]
        assert "cannot make room: its sidecar is down" in fairness.explain(decision, NOW)
        waiting = fairness.decide(want(60, since=-9), [here], NOW)
        assert isinstance(waiting, Wait), "nobody else would help, and the sidecar will be back"
        assert waiting.coming == ()


def test_a_gang_needs_room_on_every_gpu_at_once():
    gpus = [gpu(index=0), gpu(serving("a", 60), index=1)]
    assert isinstance(fairness.decide(want(60), gpus, NOW), Wait)
    decision = fairness.decide(want(60, max_wait=0), gpus, NOW)
    assert [victim.model for victim in decision.victims] == ["a"]


def test_gives_way_only_to_a_waiter_that_lacks_room_even_with_what_is_coming():
    me = serving("me", 50)
    assert fairness.gives_way(ref("me"), [gpu(me)]) is None
    assert fairness.gives_way(ref("me"), [gpu(me, intents=[waits("w", 60)])]).model == "w"
    assert fairness.gives_way(ref("me"), [gpu(me, intents=[waits("w", 50)])]) is None
    coming = gpu(me, Occupant(ref("x"), "x", State.DEACTIVATING, 50), intents=[waits("w", 50)])
    assert fairness.gives_way(ref("me"), [coming]) is None
    assert fairness.gives_way(ref("me"), [gpu(me, intents=[waits("me", 90)])]) is None


def test_the_reason_names_what_is_short_and_why_each_stays():
    full = gpu(serving("llama", 62, protected=8), Occupant(ref("k"), "kimi", State.WAKING, 9), lock="k")
    text = fairness.explain(fairness.decide(want(62), [full], NOW), NOW)
    assert "llama" in text
    assert "must serve 8.0s more" in text
    assert "kimi" in text
    assert "short" in text


# -- against a brute-force oracle -------------------------------------------------------------------------------------

_occupants = st.lists(
    st.tuples(
        st.sampled_from(list(State)),
        st.integers(1, 60),
        st.booleans(),
        st.integers(-100, 0),
        st.integers(-20, 20),
        st.sets(st.integers(0, 1), min_size=1),
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(_occupants, st.integers(1, 120), st.integers(0, 20))
def test_victims_are_allowed_sufficient_and_none_too_many(rows, need, foreign):
    per_gpu = [[], []]
    for number, (state, reserved, popular, used, protected, places) in enumerate(rows):
        held = 0 if state is State.SLEEPING else reserved
        occupant = Occupant(ref(f"p{number}"), f"p{number}", state, held, popular, at(used), None, at(protected))
        for place in places:
            per_gpu[place].append(occupant)
    gpus = [gpu(*occupants, foreign=foreign, index=k) for k, occupants in enumerate(per_gpu)]
    decision = fairness.decide(want(need, max_wait=0), gpus, NOW)

    def room(without):
        return [g.room + sum(o.reserved for o in g.occupants if o.pod in without) for g in gpus]

    leaving = {o.pod for g in gpus for o in g.occupants if o.state is State.DEACTIVATING}
    allowed = {
        o.pod
        for g in gpus
        for o in g.occupants
        if o.state is State.SERVING and not o.popular and o.protected_until <= NOW
    }
    possible = [
        set(chosen)
        for size in range(len(allowed) + 1)
        for chosen in combinations(sorted(allowed), size)
        if min(room(leaving | set(chosen))) >= need
    ]
    pinned = [g.total - g.foreign - sum(o.reserved for o in g.occupants if o.popular) for g in gpus]
    if min(room(set())) >= need:
        assert decision == Fits()
    elif min(pinned) < need:
        assert isinstance(decision, CannotFit)
    elif not possible or set() in possible:
        assert isinstance(decision, Wait)
    else:
        victims = {victim.pod for victim in decision.victims}
        assert victims in possible
        assert not any(smaller < victims for smaller in possible), "every victim is needed"
