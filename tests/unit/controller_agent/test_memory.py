"""Foreign memory: what is in use beyond the awake occupants' own processes. And when a change is worth a write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agent.memory import foreign_memory, pause_before_write, used_by_pods, wanted_status
from controller.agent.nvml import Process, Reading
from controller.agent.settings import Settings
from greenthread.gpu import Gpu, Occupant, PodRef, State

GIB = 2**30
TOTAL = 96 * GIB
A, B, C = (PodRef("team", name) for name in "abc")
AWAKE = [State.WAKING, State.CONVERTING, State.SERVING, State.DEACTIVATING]


def gpu(*occupants: Occupant, foreign: int = 0) -> Gpu:
    return Gpu("n-0", "n", 0, TOTAL, foreign, occupants=occupants)


def reading(used: int, *processes: tuple[int, int | None]) -> Reading:
    return Reading(0, "GPU-1", "H100", TOTAL, used, tuple(Process(*process) for process in processes), 0, 40, 70)


def test_other_programs_and_what_sleepers_leave_are_foreign() -> None:
    here = gpu(Occupant(A, "a", State.SERVING, 80 * GIB), Occupant(B, "b", State.SLEEPING))
    used = {A: 60 * GIB, B: 2 * GIB}  # and 3 GiB of a program that is nobody's
    assert foreign_memory(here, reading(65 * GIB), used) == 5 * GIB


@pytest.mark.parametrize("state", AWAKE)
def test_an_awake_occupants_own_processes_are_not(state: State) -> None:
    here = gpu(Occupant(A, "a", state, 80 * GIB))
    for held in (0, GIB, 40 * GIB, 80 * GIB):
        assert foreign_memory(here, reading(held), {A: held}) == 0


def test_hidden_processes_of_an_awake_occupant_count_up_to_its_reservation() -> None:
    here = gpu(Occupant(A, "a", State.SERVING, 80 * GIB))
    assert foreign_memory(here, reading(70 * GIB), {}) == 0
    assert foreign_memory(here, reading(85 * GIB), {}) == 5 * GIB


def test_another_program_does_not_vanish_while_an_engine_begins_to_wake() -> None:
    """The engine holds nothing yet: what is in use is still the other program's."""
    here = gpu(Occupant(A, "a", State.WAKING, 70 * GIB), foreign=20 * GIB)
    assert foreign_memory(here, reading(20 * GIB), {}) == 20 * GIB
    assert foreign_memory(here, reading(50 * GIB), {}) == 20 * GIB
    assert foreign_memory(here, reading(5 * GIB), {}) == 5 * GIB


def test_a_driver_that_does_not_tell_bytes_hides_the_process() -> None:
    owners = {7: A, 8: A, 9: B}
    assert used_by_pods(reading(9, (7, 5), (8, None), (9, 4), (10, 3)), owners) == {A: None, B: 4}


occupants = st.lists(
    st.tuples(st.sampled_from([A, B, C]), st.sampled_from(list(State)), st.integers(0, 40)),
    unique_by=lambda entry: entry[0],
    max_size=3,
)


@given(occupants, st.integers(0, 30), st.data())
def test_with_every_process_in_sight_it_is_exact(entries: Any, others: int, data: st.DataObject) -> None:
    held = {pod: data.draw(st.integers(1, 40)) for pod, _, _ in entries}
    here = gpu(*(Occupant(pod, pod.name, state, reserved) for pod, state, reserved in entries), foreign=others)
    asleep = sum(held[pod] for pod, state, _ in entries if state is State.SLEEPING)
    used = others + sum(held.values())
    assert foreign_memory(here, reading(used), held) == others + asleep


@given(occupants, st.integers(0, 100), st.integers(0, 30), st.data())
def test_whatever_is_hidden_it_lies_between_what_is_sure_and_what_is_in_use(
    entries: Any, before: int, others: int, data: st.DataObject
) -> None:
    """While engines keep to their reservations."""
    held = {
        pod: data.draw(st.integers(0, reserved if state is not State.SLEEPING else 5))
        for pod, state, reserved in entries
    }
    seen = {pod: count for pod, count in held.items() if data.draw(st.booleans())}
    here = gpu(*(Occupant(pod, pod.name, state, reserved) for pod, state, reserved in entries), foreign=before)
    used = others + sum(held.values())
    awake_in_sight = sum(seen.get(pod, 0) for pod, state, _ in entries if state is not State.SLEEPING)
    hidden = sum(reserved for pod, state, reserved in entries if state is not State.SLEEPING and pod not in seen)
    found = foreign_memory(here, reading(used), seen)
    assert max(used - awake_in_sight - hidden, 0) <= found <= used - awake_in_sight


def test_available_is_what_nobody_holds_and_never_below_zero() -> None:
    serving = Occupant(A, "a", State.SERVING, 80 * GIB)
    wanted = wanted_status("n", gpu(serving), reading(70 * GIB, (7, 60 * GIB)), {A: 60 * GIB})
    assert (wanted.foreign, wanted.available) == (10 * GIB, 6 * GIB)
    crowded = wanted_status("n", gpu(serving), reading(95 * GIB), {A: 60 * GIB})
    assert crowded.available == 0
    assert wanted.fields["stats"] == {
        "usedMemoryBytes": 70 * GIB,
        "freeMemoryBytes": 26 * GIB,
        "utilizationPercent": 0,
        "temperatureCelsius": 40,
        "powerWatts": 70,
    }


def test_what_a_device_does_not_measure_is_left_out() -> None:
    bare = replace(reading(0), utilization=None, temperature=None, power=None)
    assert wanted_status("n", gpu(), bare, {}).fields["stats"].keys() == {"usedMemoryBytes", "freeMemoryBytes"}


def pause(before: Reading, after: Reading, here: Gpu = gpu()) -> float | None:
    settings = Settings("n")
    return pause_before_write(
        wanted_status("n", here, before, {}).fields, wanted_status("n", here, after, {}), settings
    )


def test_a_device_at_rest_is_not_written() -> None:
    assert pause(reading(0), reading(0)) is None
    jitter = replace(reading(1000), temperature=41, power=75, utilization=1)
    assert pause(reading(0), jitter) is None


def test_small_changes_wait_and_big_ones_do_not() -> None:
    assert pause(reading(0), replace(reading(0), temperature=55)) == 5.0
    assert pause(reading(0), reading(TOTAL // 200)) == 5.0
    assert pause(reading(0), reading(TOTAL // 50)) == 0.5
    assert pause(reading(0), replace(reading(0), uuid="GPU-2")) == 0.5


def test_a_claim_is_seen_in_what_is_available() -> None:
    claimed = gpu(Occupant(A, "a", State.WAKING, 50 * GIB))
    old = wanted_status("n", gpu(), reading(0), {}).fields
    assert pause_before_write(old, wanted_status("n", claimed, reading(0), {}), Settings("n")) == 0.5
