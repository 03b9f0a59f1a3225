"""Our value classes are those of `dataclasses`, only made later."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Mapping

import pytest

from greenthread import values


@values.dataclass(frozen=True, slots=True)
class Slotted:
    a: int
    b: str = "x"
    c: Mapping[str, int] = values.field(default_factory=dict, repr=False)
    d: int = values.field(default=4, compare=False)

    @property
    def twice(self) -> int:
        return 2 * self.a


@values.dataclass(frozen=True)
class Open:
    a: int
    b: int = 2


@values.dataclass(frozen=True, slots=True)
class Empty:
    pass


def test_fields_are_given_by_place_and_by_name_with_defaults() -> None:
    assert (Slotted(1).a, Slotted(1).b, Slotted(1).c, Slotted(1, d=5).d) == (1, "x", {}, 5)
    assert (Open(1, 3).b, Open(a=1).b, Open.b) == (3, 2, 2)
    assert Slotted(1).c is not Slotted(1).c
    assert Slotted(3).twice == 6
    with pytest.raises(TypeError, match="'a'"):
        Slotted()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Slotted(1, e=2)  # type: ignore[call-arg]


def test_they_are_equal_by_value_and_by_class() -> None:
    assert Slotted(1, c={"k": 1}) == Slotted(1, c={"k": 1})
    assert Slotted(1, d=1) == Slotted(1, d=2)
    assert Slotted(1) != Slotted(2)
    assert Open(1) != Slotted(1)
    assert Empty() == Empty()
    assert len({Open(1), Open(1), Open(2)}) == 2
    assert repr(Slotted(1)) == "Slotted(a=1, b='x', d=4)"


@pytest.mark.parametrize("value", [Slotted(1), Open(1)])
def test_they_are_frozen(value: Slotted | Open) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.a = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del value.a
    assert value.a == 1
    assert not hasattr(Slotted(1), "__dict__")


def test_the_standard_librarys_functions_know_them() -> None:
    assert dataclasses.replace(Slotted(1), b="y") == Slotted(1, "y")
    assert values.replace(Slotted(1), a=2) == Slotted(2)
    assert Slotted(1).__replace__(a=2) == Slotted(2)  # type: ignore[attr-defined]  # what copy.replace calls
    assert [field.name for field in dataclasses.fields(Open)] == ["a", "b"]
    assert dataclasses.asdict(Open(1)) == {"a": 1, "b": 2}
    assert copy.deepcopy(Slotted(1, c={"k": 1})) == Slotted(1, c={"k": 1})
    assert pickle.loads(pickle.dumps(Slotted(7))) == Slotted(7)
    match Open(1, 5):
        case Open(a=1, b=found):
            assert found == 5
        case _:
            pytest.fail("it does not match")


def test_the_vocabulary_does_not_import_what_takes_long() -> None:
    code = "import sys, greenthread.snapshot; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"dataclasses", "inspect"} & set(loaded)
