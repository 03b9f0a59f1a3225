"""Where a replica is placed, against a brute force that tries every block of GPUs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greenthread.placement import Impossible, Placement, Slot, place

GIB = 2**30


def node(name: str, count: int, **fields: int) -> list[Slot]:
    return [Slot(name, index, 96 * GIB, **fields) for index in range(count)]


def test_the_least_loaded_gpu_is_taken() -> None:
    slots = [
        Slot("a", 0, 96 * GIB, load=80 * GIB),
        Slot("a", 1, 96 * GIB, load=10 * GIB),
        Slot("b", 0, 96 * GIB, load=20 * GIB),
    ]
    assert place(slots, 1) == Placement("a", (1,))


def test_replicas_of_one_model_spread_before_load_counts() -> None:
    slots = [Slot("a", 0, 96 * GIB, load=0, replicas=1), Slot("a", 1, 96 * GIB, load=80 * GIB)]
    assert place(slots, 1) == Placement("a", (1,))


def test_a_block_is_on_one_node_and_contiguous() -> None:
    slots = [*node("a", 1), Slot("b", 0, 96 * GIB), Slot("b", 2, 96 * GIB), Slot("b", 3, 96 * GIB)]
    assert place(slots, 2) == Placement("b", (2, 3))


def test_blocks_are_aligned_so_that_big_ones_still_find_room() -> None:
    slots = [Slot("a", index, 96 * GIB, load=30 * GIB if index == 0 else 0) for index in range(4)]
    assert place(slots, 2) == Placement("a", (2, 3))


def test_full_gpus_are_shared_in_turns() -> None:
    assert place(node("a", 1, load=500 * GIB), 1, need=90 * GIB) == Placement("a", (0,))


def test_a_reason_says_what_is_missing() -> None:
    def reason(*args: object, **named: object) -> str:
        found = place(*args, **named)  # type: ignore[arg-type]
        assert isinstance(found, Impossible)
        return found.reason

    assert "is the node agent running" in reason([], 1)
    assert reason(node("a", 2) + node("b", 1), 4) == "needs 4 neighbouring GPUs on one node; a has 2, b has 1"
    assert reason(node("a", 1), 1, need=120 * GIB) == "needs 120.0 GiB on each GPU, and the largest has 96.0 GiB"
    assert reason(node("a", 1), 1, excluded={"a": "is cordoned"}) == "no node can be used: a is cordoned"
    assert "b is cordoned" in reason(node("a", 1) + node("b", 2), 2, excluded={"b": "is cordoned"})
    assert "(not usable: a/0: lost)" in reason([Slot("a", 0, 96 * GIB, fault="lost")], 1)


slot = st.builds(
    Slot,
    node=st.sampled_from("abc"),
    index=st.integers(0, 7),
    total=st.sampled_from([24, 48, 96]).map(lambda gib: gib * GIB),
    load=st.integers(0, 100).map(lambda gib: gib * GIB),
    replicas=st.integers(0, 2),
    fault=st.sampled_from(["", "", "", "lost"]),
)
machines = st.lists(slot, max_size=20, unique_by=lambda slot: (slot.node, slot.index))


@given(
    machines,
    st.sampled_from([1, 2, 4, 8]),
    st.none() | st.integers(1, 100).map(lambda gib: gib * GIB),
    st.dictionaries(st.sampled_from("abc"), st.just("is cordoned"), max_size=2),
)
def test_the_best_block_is_found_and_only_an_allowed_one(
    slots: list[Slot], size: int, need: int | None, excluded: dict[str, str]
) -> None:
    at = {(slot.node, slot.index): slot for slot in slots}
    blocks = [
        block
        for node_name in "abc"
        for start in range(8)
        if len(block := [at[node_name, i] for i in range(start, start + size) if (node_name, i) in at]) == size
        and node_name not in excluded
        and not any(slot.fault or (need is not None and need > slot.total) for slot in block)
    ]
    found = place(slots, size, need, excluded)
    if not blocks:
        assert isinstance(found, Impossible)
        assert found.reason
        return
    assert isinstance(found, Placement)
    chosen = [at[found.node, index] for index in found.indices]
    assert chosen in blocks
    best = min((max(s.replicas for s in block), max(s.load for s in block)) for block in blocks)
    assert (max(s.replicas for s in chosen), max(s.load for s in chosen)) == best


@given(machines, st.sampled_from([1, 2, 4]), st.randoms())
def test_the_order_of_the_gpus_does_not_matter(slots: list[Slot], size: int, random: object) -> None:
    mixed = list(slots)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert place(mixed, size) == place(slots, size)
