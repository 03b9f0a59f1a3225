"""Why a serving model goes to sleep: rules that hold in every world, and the moment that it names."""

import math
from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from greenthread.gpu import State
from greenthread.model import ModelSpec
from sidecar.reasons import Reason, Serving, Why, reason_to_sleep
from tests.unit.greenthread.test_fairness_oracle import NOW, PODS, at, ref, worlds

RULES = {Why.IDLE, Why.YIELDED, Why.PREEMPTED}


@st.composite
def serving(draw):
    """One of the pods of a world, as it sees itself while it serves."""
    spec = ModelSpec(model_name="test/x")
    spec = replace(
        spec,
        fairness=replace(
            spec.fairness,
            popular=draw(st.sampled_from([False, False, False, True])),
            yield_after=draw(st.sampled_from([0.0, 0.5, 2.0])),
        ),
        sleep=replace(spec.sleep, idle_timeout=draw(st.sampled_from([0.0, 1.0, 30.0]))),
    )
    return Serving(
        pod=ref(draw(st.sampled_from(PODS))),
        spec=spec,
        in_flight=draw(st.sampled_from([0, 0, 1])),
        idle_for=draw(st.sampled_from([0.0, 0.3, 1.0, 40.0])),
        protected_for=draw(st.sampled_from([0.0, 0.0, 0.2, 5.0])),
        last_used=at(draw(st.integers(-9, 0))),
        wished=draw(st.sampled_from([None, None, None, Why.ASKED])),
    )


def begun(me, gpus):
    return any((mine := gpu.occupant(me.pod)) and mine.state is State.DEACTIVATING for gpu in gpus)


@settings(max_examples=150, deadline=None)
@given(serving(), worlds())
def test_pinned_protected_and_busy_models_stay(me, world):
    _want, gpus = world
    answer = reason_to_sleep(me, gpus, NOW)
    if me.wished:
        assert answer == Reason(me.wished)
    elif begun(me, gpus):
        assert answer == Reason(Why.BEGUN)
    elif me.spec.fairness.popular:
        assert answer == math.inf
    elif isinstance(answer, Reason):
        assert answer.why in RULES
        assert me.protected_for == 0
        assert answer.why is Why.PREEMPTED or not me.in_flight
        assert answer.why is not Why.YIELDED or me.idle_for >= me.spec.fairness.yield_after > 0
        assert answer.why is not Why.IDLE or me.idle_for >= me.spec.sleep.idle_timeout > 0


@settings(max_examples=150, deadline=None)
@given(serving(), worlds(), st.floats(0.0, 0.99))
def test_time_alone_gives_no_reason_before_the_moment_that_it_named(me, world, part):
    _want, gpus = world
    answer = reason_to_sleep(me, gpus, NOW)
    if isinstance(answer, Reason):
        return
    passed = part * min(answer, 100.0)
    later = replace(me, idle_for=me.idle_for + passed, protected_for=max(me.protected_for - passed, 0.0))
    assert not isinstance(reason_to_sleep(later, gpus, NOW + timedelta(seconds=passed)), Reason)
